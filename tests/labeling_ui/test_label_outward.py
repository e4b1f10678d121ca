"""Exports for other tools: our own importers, written for the tools' files, read the same judgments in them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from label_support import make_pair, open_store

from labeling_ui.exchange.export import write_labels
from labeling_ui.exchange.foreign import FieldNames, Format, read_foreign
from labeling_ui.exchange.importing import import_records
from labeling_ui.quality.aggregate import AggregationConfig
from labeling_ui.store.answers import Submission
from labeling_ui.store.store import Store
from tiebreak.data.reading import read_preferences
from tiebreak.errors import DataError
from tiebreak.records import Judgment

SAID = ["first", "second", "tie", "both_bad", "skip", "first"]
"""What each rater says of pairs 0 to 5, except for the last one, which the second rater finds worse"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outward")
    store = open_store(folder, [make_pair(n, f"one {n}", f"two {n}") for n in range(6)], overlap=2, raters=2)
    for rater in ("r0", "r1"):
        while (given := store.claim(rater)) is not None:
            n = int(given.item_id.removeprefix("pair-"))
            judge(
                store, rater, given.item_id, given.left_id == f"{n}-0", "second" if (n, rater) == (5, "r1") else SAID[n]
            )
    (folder / "final").mkdir()
    write_labels(store, folder / "final", AggregationConfig(), ("argilla", "label_studio", "hub"))
    store.close()
    return folder / "final"


def judge(store: Store, rater: str, pair_id: str, first_is_left: bool, said: str) -> None:
    about = {"client_id": f"{rater} {pair_id}", "pair_id": pair_id, "seconds_active": 2.5}
    if said in ("both_bad", "skip"):
        store.submit(rater, Submission(**about, **{said: True}))
    else:
        strength = {"first": -3, "second": 3, "tie": 0}[said]
        store.submit(rater, Submission(**about, answer=strength if first_is_left else -strength))


@pytest.mark.parametrize("tool", ["argilla", "label_studio"])
def test_another_tools_records_say_the_same(exported: Path, tool: Format) -> None:
    records = read_foreign(tool, None, str(exported / f"{tool}.json"), FieldNames())
    texts = {completion.id: completion.text for pair in records.pairs for completion in pair.completions}
    prompts = {pair.id: pair.messages[-1].content for pair in records.pairs}
    found = Counter(
        (prompts[one.pair_id], texts[one.left], one.answer, one.both_bad, one.skip) for one in records.judgments
    )
    expected: Counter[tuple[object, ...]] = Counter()
    votes = {"first": (-2, False, False), "second": (2, False, False), "tie": (0, False, False)}
    votes |= {"both_bad": (None, True, False), "skip": (None, False, True)}  # type: ignore[dict-item]
    for n in range(6):
        for said in (SAID[n], "second" if n == 5 else SAID[n]):
            expected[f"question {n}?", f"one {n}", *votes[said]] += 1
    assert found == expected
    assert len({one.rater_id for one in records.judgments}) == 2
    text = (exported / f"{tool}.json").read_text()
    assert "secret-model" not in text
    assert '"r0"' not in text
    if tool == "label_studio":
        assert {one.seconds_active for one in records.judgments} == {2.5}
        assert 'value="$response1"' in (exported / "label_studio.xml").read_text()


def test_the_folder_for_the_hub_is_a_data_set(exported: Path) -> None:
    card = (exported / "hub" / "README.md").read_text()
    assert "path: data/train.parquet" in card
    assert "preferences from 12 human judgments of 2 raters" in card
    assert "synthetic" not in card
    rows = (exported / "hub" / "judgments" / "judgments.jsonl").read_text().splitlines()
    assert len(rows) == 12
    assert len({tuple(json.loads(row)) for row in rows}) == 1  # one set of columns
    again = read_preferences(str(exported / "hub" / "data"))
    assert sorted(one.pair_id or "" for one in again) == ["pair-0", "pair-1"]
    assert {one.chosen_text for one in again} == {"one 0", "two 1"}


@pytest.mark.parametrize("tool", ["argilla", "label_studio"])
def test_what_programs_judged_and_what_is_synthetic_comes_back_as_that(tmp_path: Path, tool: Format) -> None:
    """A pair of a test set that is synthetic, judged by a person and by a model."""
    pair = make_pair(0, "one", "two").model_copy(update={"split": "test", "tags": ("synthetic",)})
    store = open_store(tmp_path, [pair], overlap=1, raters=1)
    given = store.claim("r0")
    assert given is not None
    judge(store, "r0", given.item_id, given.left_id == "0-0", "first")
    verdict = Judgment(pair_id="pair-0", rater_id="judge", left="0-0", right="0-1", answer=3, kind="model")
    import_records(store, [], [verdict], source="judged", source_id="j")
    (tmp_path / "final").mkdir()
    write_labels(store, tmp_path / "final", AggregationConfig(), (tool, "hub"))
    card = (tmp_path / "final" / "hub" / "README.md").read_text()
    assert "\n2 of them are of synthetic rows (tag `synthetic`), 1 of these judged by people.\n" in card
    records = read_foreign(tool, None, str(tmp_path / "final" / f"{tool}.json"), FieldNames())
    assert Counter((one.kind, one.answer) for one in records.judgments) == {("human", -2): 1, ("model", 2): 1}
    assert {(one.split, one.tags) for one in records.pairs} == {("test", ("synthetic",))}


def test_an_export_that_does_not_say_who_is_a_program_is_refused(tmp_path: Path) -> None:
    fields = {"prompt": "a?", "response1": "b", "response2": "c"}
    responses = {"preference": [{"value": "response1", "user_id": "u"}]}
    file = tmp_path / "records.json"
    file.write_text(json.dumps([{"fields": fields, "responses": responses, "metadata": {"kind": "human+model"}}]))
    with pytest.raises(DataError, match=r"records\.json: 1 error") as raised:
        read_foreign("argilla", None, str(file), FieldNames())
    assert "no programs says which raters are no people" in str(raised.value)
    file.write_text(json.dumps([{"fields": fields, "responses": responses, "metadata": {"kind": "question"}}]))
    assert [one.kind for one in read_foreign("argilla", None, str(file), FieldNames()).judgments] == ["human"]
