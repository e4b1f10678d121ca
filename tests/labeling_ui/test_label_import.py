"""What other tools export becomes pairs and judgments: in the shapes that those tools write, through the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from label_support import make_pair, open_store, tiebreak

from labeling_ui.exchange.export import build_edits, write_labels
from labeling_ui.exchange.foreign import FieldNames, read_foreign, read_gold, read_objects, read_own
from labeling_ui.exchange.importing import import_records
from labeling_ui.label import main as label
from labeling_ui.quality.aggregate import AggregationConfig
from labeling_ui.store.answers import Submission
from labeling_ui.store.raters import NameTakenError, find_rater
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from tiebreak.errors import DataError
from tiebreak.files import write_jsonl
from tiebreak.records import Judgment


def argilla_record(n: int, responses: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """As `Record.to_dict` of argilla 2.8 writes it."""
    texts = {"prompt": f"question {n}?", "response1": f"first {n}", "response2": f"second {n}"}
    return {
        "id": f"r{n}", "fields": {**texts, **fields}, "metadata": {}, "suggestions": {}, "responses": responses,
        "vectors": {}, "status": "completed", "_server_id": f"0000-{n}",
    }  # fmt: skip


def by(value: Any, user: str = "1f2e-anna") -> dict[str, Any]:
    return {"value": value, "user_id": user}


ARGILLA = [
    argilla_record(0, {"preference": [by("response1"), by("response2", "9c3d-ben")]}),
    argilla_record(1, {"preference": [by("Tie")]}, prompt=[{"role": "user", "content": "question 1?"}]),
    argilla_record(2, {"preference": [by(["response2", "response1"]), by(["response1", "response2"], "9c3d-ben")]}),
    argilla_record(3, {}),
]


def label_studio_task(n: int, *annotations: dict[str, Any]) -> dict[str, Any]:
    """As Label Studio's JSON export writes it."""
    data = {"question": f"question {n}?", "text1": f"first {n}", "text2": f"second {n}"}
    return {"id": n, "data": data, "annotations": list(annotations), "predictions": [], "project": 83, "meta": {}}


def annotation(result: list[dict[str, Any]], completed_by: Any = 10, **more: Any) -> dict[str, Any]:
    row = {"id": 1001, "was_cancelled": False, "ground_truth": False, "lead_time": 4.288, "task": 1}
    return {**row, "completed_by": completed_by, "result": result, **more}


def pairwise(selected: str) -> dict[str, Any]:
    value = {"selected": selected}
    return {"value": value, "id": "Dx", "from_name": "pw", "to_name": "pw", "type": "pairwise", "origin": "manual"}


def choice(word: str) -> dict[str, Any]:
    value = {"choices": [word]}
    return {"value": value, "id": "Ey", "from_name": "tied", "to_name": "text1", "type": "choices", "origin": "manual"}


LABEL_STUDIO = [
    label_studio_task(
        0, annotation([pairwise("left")]), annotation([pairwise("right")], {"id": 11, "email": "b@x.org"})
    ),
    label_studio_task(1, annotation([choice("Both bad")]), annotation([], 11)),
    label_studio_task(2, annotation([], was_cancelled=True)),
]
LABEL_STUDIO_FIELDS = ("--fields.prompt", "question", "--fields.first", "text1", "--fields.second", "text2")


def potato_state(user: str, *labels: tuple[str, str, str, str]) -> dict[str, Any]:
    """As Potato 2.12's `UserState.to_json` writes it; labels are (instance, scheme, name, value)."""
    by_instance: dict[str, list[Any]] = {}
    for instance, scheme, name, value in labels:
        by_instance.setdefault(instance, []).append([{"schema": scheme, "name": name}, value])
    return {
        "user_id": user, "instance_id_ordering": list(by_instance), "current_instance_index": 0,
        "current_phase_and_page": ["annotation", "annotation"], "completed_phase_and_pages": [], "max_assignments": -1,
        "instance_id_to_behavioral_data": {}, "instance_id_to_label_to_value": by_instance,
        "instance_id_to_span_to_value": {},
    }  # fmt: skip


def write_potato(folder: Path) -> list[str]:
    rows = [{"id": f"i{n}", "prompt": f"question {n}?", "items": [f"first {n}", f"second {n}"]} for n in range(3)]
    write_jsonl(folder / "data.jsonl", rows)
    states = {
        "ann@x.org": [("i0", "which", "scale_value", "-3"), ("i0", "which", "justification", "{}")],
        "ben": [("i0", "which", "selection", "B"), ("i1", "which", "selection", "tie"), ("i2", "other", "label", "x")],
    }
    for user, labels in states.items():
        (folder / "output" / user).mkdir(parents=True)
        (folder / "output" / user / "user_state.json").write_text(json.dumps(potato_state(user, *labels), indent=2))
    return ["--pairs", str(folder / "data.jsonl"), "--judgments", str(folder / "output")]


def write_export(folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    (folder / "export.json").write_text(json.dumps(rows, indent=1))
    return ["--judgments", str(folder / "export.json")]


def imported(folder: Path, *words: str) -> dict[tuple[str, str], list[tuple[Any, ...]]]:
    """(prompt, first text) → (answer, both_bad, skip) of each rater; twice is once, and the store is whole."""
    url = f"sqlite:///{folder}/labels.sqlite"
    tiebreak("label", "import", *words, "--store", url)
    assert "added 0 pairs and 0 judgments" in tiebreak("label", "import", *words, "--store", url).stdout
    store = Store.open(url)
    assert verify(store).faults == []
    pairs = {pair.id: pair for pair in store.pairs()}
    found: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    for judgment in store.judgments()[0]:
        pair = pairs[judgment.pair_id]
        texts = {completion.id: completion.text for completion in pair.completions}
        key = (pair.messages[-1].content, texts[judgment.left])
        found.setdefault(key, []).append((judgment.answer, judgment.both_bad, judgment.skip))
        assert judgment.kind == "human"
        assert not {"anna", "ben", "@", "10"} & {judgment.rater_id, *judgment.rater_id.split("-")}
    return {key: sorted(answers, key=str) for key, answers in found.items()}


def test_argilla(tmp_path: Path) -> None:
    assert imported(tmp_path, "--format", "argilla", *write_export(tmp_path, ARGILLA)) == {
        ("question 0?", "first 0"): [(-2, False, False), (2, False, False)],
        ("question 1?", "first 1"): [(0, False, False)],
        ("question 2?", "first 2"): [(-2, False, False), (2, False, False)],
    }


def test_label_studio(tmp_path: Path) -> None:
    words = ("--format", "label_studio", *write_export(tmp_path, LABEL_STUDIO), *LABEL_STUDIO_FIELDS)
    assert imported(tmp_path, *words) == {
        ("question 0?", "first 0"): [(-2, False, False), (2, False, False)],
        ("question 1?", "first 1"): [(None, False, True), (None, True, False)],
        ("question 2?", "first 2"): [(None, False, True)],
    }
    judgments = Store.open(f"sqlite:///{tmp_path}/labels.sqlite").judgments()[0]
    assert len({judgment.rater_id for judgment in judgments}) == 2, "by number or by record, 11 is one annotator"
    assert judgments[0].seconds_active == 4.288


def test_potato(tmp_path: Path) -> None:
    assert imported(tmp_path, "--format", "potato", *write_potato(tmp_path)) == {
        ("question 0?", "first 0"): [(-3, False, False), (2, False, False)],
        ("question 1?", "first 1"): [(0, False, False)],
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([argilla_record(0, {"q": [by("maybe")]})], "export.json:2: 'maybe' is not an answer"),
        ([argilla_record(0, {"q": [by("A")], "other": [by("B")]})], "export.json:2: has answers to other, q"),
        ([argilla_record(0, {"q": [by("A")]}), {"text": "flat"}], "export.json:23: has no object 'fields'"),
        (
            [{"fields": {"prompt": "q"}, "responses": {}}],
            "has no field 'response1', only prompt: choose one with --fields",
        ),
        ([argilla_record(0, {"q": [{"value": "A"}]})], "not in the tool's format (KeyError: 'user_id')"),
        ([argilla_record(0, {}, response2="first 0")], "two completions of the pair are the same"),
    ],
)
def test_what_cannot_be_understood_is_named_with_its_line(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    write_export(tmp_path, rows)
    with pytest.raises(DataError) as caught:
        read_foreign("argilla", None, str(tmp_path / "export.json"), FieldNames())
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("value", "status", "answer"),
    [
        ([{"value": "response1", "rank": 2}, {"value": "response2", "rank": 1}], "submitted", 2),
        ([{"value": "response2", "rank": "2"}, {"value": "response1", "rank": "1"}], None, -2),
        ([{"value": "response1", "rank": 1}, {"value": "response2", "rank": 1}], "submitted", 0),
        ("response1", "draft", "nothing"),
        ("response1", "discarded", None),
    ],
)
def test_argillas_ranks_and_states_count(value: Any, status: str | None, answer: Any, tmp_path: Path) -> None:
    """A ranking with ranks was read in the order of its list, ties as wins, and drafts as answers."""
    response = by(value) if status is None else {**by(value), "status": status}
    write_export(tmp_path, [argilla_record(0, {"preference": [response]})])
    found = read_foreign("argilla", None, str(tmp_path / "export.json"), FieldNames()).judgments
    assert [(one.answer, one.skip) for one in found] == ([] if answer == "nothing" else [(answer, answer is None)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"id": 1},\n{"id": 2},\n', "export.json: not JSON (the array that begins it does not end)"),
        ('[{"id": 1},\n{"id": ]', "export.json:2: not JSON"),
        ('[{"id": 1},\n 7]', "export.json:2: a int, not an object"),
        ("[" * 100_000, "export.json"),
    ],
)
def test_broken_json_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "export.json"
    file.write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        read_objects(file)
    with pytest.raises(DataError, match="not a file"):
        read_objects(tmp_path)


def test_a_fault_leaves_no_store_and_names_what_is_missing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/labels.sqlite"
    words = write_export(tmp_path, [*ARGILLA, {"fields": {}}])
    result = tiebreak("label", "import", "--format", "argilla", *words, "--store", url, ok=False)
    assert "1 error; nothing was imported" in result.stderr
    assert not (tmp_path / "labels.sqlite").exists()
    assert "--pairs is missing" in tiebreak("label", "import", "--store", url, ok=False).stderr


def test_gold_from_a_file(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(n) for n in range(3)], raters=1)
    write_jsonl(tmp_path / "gold.jsonl", [{"item_id": "pair-0", "preferred_id": "0-1"}, {"item_id": "pair-2"}])
    words = ("label", "gold", "--gold", str(tmp_path / "gold.jsonl"), "--store", store.url)
    errors = tiebreak(*words, ok=False).stderr
    assert "gold.jsonl:2: preferred_id must be 2-0, 2-1 or null" in errors
    assert store.gold() == []
    write_jsonl(
        tmp_path / "gold.jsonl", [{"item_id": f"pair-{n}", "preferred_id": p} for n, p in ((0, "0-1"), (2, None))]
    )
    assert "2 gold pairs" in tiebreak(*words).stdout
    assert {one.item_id: one.preferred_id for one in store.gold()} == {"pair-0": "0-1", "pair-2": None}


def test_our_own_judgments_come_back_rankings_as_what_they_imply(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    store = open_store(tmp_path / "one", [make_pair(0)], raters=1)
    store.add_pairs([make_pair(1, "a", "b", ("c",))], overlap=1, seed=0, source="t", source_id="t", ranking=True)
    for n in range(2):
        given = store.claim("r0")
        assert given is not None
        fields: dict[str, Any] = {"answer": 2}
        if given.ranking:
            fields = {"ranking": tuple((one,) for one in given.shown), "edited_text": "edited"}
        store.submit("r0", Submission(client_id=f"c{n}", pair_id=given.item_id, seconds_active=3.0, **fields))
    write_jsonl(tmp_path / "pairs.jsonl", store.pairs())
    write_jsonl(tmp_path / "judgments.jsonl", store.judgments()[0])
    url = f"sqlite:///{tmp_path}/two.sqlite"
    files = ("--pairs", str(tmp_path / "pairs.jsonl"), "--judgments", str(tmp_path / "judgments.jsonl"))
    assert "4 judgments" in tiebreak("label", "import", *files, "--store", url).stdout
    again = Store.open(url)
    implied = [one for judgment in store.judgments()[0] for one in judgment.pairwise()]
    assert sorted(again.judgments()[0], key=str) == sorted(implied, key=str)
    restored, before = (build_edits(one.pairs(), one.judgments()[0])[0] for one in (again, store))
    assert restored.demonstration == before.demonstration
    assert sorted(restored.preferences, key=str) == sorted(before.preferences, key=str)
    stray = Judgment(pair_id="nowhere", rater_id="r0", left="a", right="b", answer=1, kind="human")
    write_jsonl(tmp_path / "judgments.jsonl", [*implied, stray])
    errors = tiebreak("label", "import", *files, "--store", url, ok=False).stderr
    assert f"{tmp_path}/judgments.jsonl:5: there is no pair nowhere" in errors


def test_a_stores_own_export_adds_nothing_to_it(url: str, tmp_path: Path) -> None:
    """Its judgments are there: as further ones they would be repeats, and every rater perfectly consistent."""
    store = open_store(url, [make_pair(0), make_pair(1)], overlap=2, raters=2)
    for rater in ("r0", "r1"):
        while (held := store.claim(rater)) is not None:
            store.submit(rater, Submission(client_id=held.id, pair_id=held.item_id, answer=2, rationale="so"))
    rows, _ = store.exported_judgments()
    write_jsonl(tmp_path / "judgments.jsonl", rows)
    write_jsonl(tmp_path / "pairs.jsonl", store.pairs())
    read = read_own(str(tmp_path / "pairs.jsonl"), str(tmp_path / "judgments.jsonl"))
    added = import_records(store, read.pairs, read.judgments, source="export", source_id="export")
    assert (added.judgments, store.status()["judged"]) == (0, 4)
    other = read.judgments[0].model_copy(update={"answer": -1})
    assert import_records(store, [], [other], source="more", source_id="more").judgments == 1
    assert verify(store).faults == []
    store.close()


def test_gold_of_an_export_is_named_and_is_gold_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, other = (
        open_store(tmp_path, [make_pair(0), make_pair(1)], overlap=1, raters=1),
        f"sqlite:///{tmp_path}/2.sqlite",
    )
    while (held := store.claim("r0")) is not None:
        store.submit("r0", Submission(client_id=held.id, pair_id=held.item_id, answer=2))
    store.set_gold("pair-0", "0-1")
    final, again = tmp_path / "final", tmp_path / "again"
    for folder in (final, again):
        folder.mkdir()
    write_labels(store, final, AggregationConfig(), ())
    write_jsonl(tmp_path / "pairs.jsonl", store.pairs())
    files = ("--pairs", str(tmp_path / "pairs.jsonl"), "--judgments", str(final / "judgments.jsonl"))
    label(["import", "--store", other, *files])
    command = f"tiebreak label gold --gold {final}/gold.jsonl --store {other}"
    assert (
        f"1 pair with judgments of gold: they count as votes here. To make them gold: {command}"
        in capsys.readouterr().out
    )
    label(command.split()[2:])
    label(["import", "--store", other, *files])
    assert "judgments of gold" not in capsys.readouterr().out
    write_labels(Store.open(other), again, AggregationConfig(), ())
    assert (again / "preferences.jsonl").read_text() == (final / "preferences.jsonl").read_text() != ""
    assert (again / "gold.jsonl").read_text() == '{"item_id": "pair-0", "preferred_id": "0-1"}\n'
    store.close()


def test_a_rater_id_that_is_a_name_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(0)], raters=1)
    judgment = Judgment(pair_id="pair-0", rater_id="rater 0", left="0-0", right="0-1", answer=1, kind="human")
    with pytest.raises(DataError, match=r"'rater 0' is the name of a rater of .*, whose id is r0"):
        import_records(store, [], [judgment], source="s", source_id="s")
    with pytest.raises(NameTakenError, match="'r0' is the pseudonym of a rater"):
        store.add_rater("r0")
    store.add_rater("aardvark", rater_id="rater 0")  # as an older store may have it: an id that is another's name
    ids = {"r0": "r0", "rater 0": "rater 0", "aardvark": "rater 0", "nobody": None}
    for name, rater_id in ids.items():
        found = find_rater(store.raters(), name)
        assert (found.id if found else None) == rater_id
    store.close()


def test_gold_with_two_answers_for_a_pair_is_refused_and_a_removal_is_all_or_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(n) for n in range(3)])
    gold = tmp_path / "gold.jsonl"
    rows = [{"item_id": "pair-0", "preferred_id": "0-0"}, {"item_id": "pair-1", "preferred_id": "1-0"}]
    gold.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"item_id": "pair-0", "preferred_id": None}]))
    with pytest.raises(DataError, match=r"gold.jsonl:3: pair-0 has another known answer in an earlier row"):
        read_gold(str(gold), store.pairs())
    gold.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    assert [one.item_id for one in read_gold(str(gold), store.pairs())] == ["pair-0", "pair-1"]
    store.set_gold("pair-0", "0-0")
    at = ("--store", f"sqlite:///{tmp_path}/labels.sqlite")
    removed = tiebreak("label", "gold", "--remove", "pair-0", "pair-2", *at, ok=False)
    assert "pair-2: not gold. Nothing was changed" in removed.stderr
    assert [one.item_id for one in store.gold()] == ["pair-0"]
    store.close()
