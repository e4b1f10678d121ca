"""Single answers beside the pairs: rated, reviewed and classified, from a file of rows to the files of an export."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from label_support import CHROMIUM, answer, make_pair, needs_chromium, open_store, serving, tiebreak
from test_label_browser import axe, faults_of_both  # noqa: F401

from labeling_ui import label
from labeling_ui.configuration import LabelConfig
from labeling_ui.database.errors import RefusedError
from labeling_ui.database.migrations import MIGRATIONS
from labeling_ui.exchange.single import difference
from labeling_ui.label import build_page
from labeling_ui.quality.agreement import krippendorff_alpha, measure_votes
from labeling_ui.quality.single import measure_assessments
from labeling_ui.quality.vote_cache import LiveVotes
from labeling_ui.store.answers import Answer, Submission
from labeling_ui.store.leads.finding import Search
from labeling_ui.store.leads.rejecting import Selection
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from labeling_ui.store.work.standing import StopConfig
from tiebreak.assessments import Assessment, SingleAnswer, SingleTask, read_judgment
from tiebreak.data.reading import read_answers, read_demonstrations
from tiebreak.data.single import read_single_answers
from tiebreak.errors import ConfigError, DataError
from tiebreak.messages import Message, prompt_id
from tiebreak.records import Completion, Demonstration, Prompt

LIMES = "Limes need\niron.\n"


def make_single(n: int, task: SingleTask, text: str = "an answer", **fields: Any) -> SingleAnswer:
    messages = (Message(role="user", content=f"question {n}?"),)
    completion = Completion(id=f"{n}-only", text=text)
    about = {"id": f"answer-{n}", "prompt_id": prompt_id(messages), "messages": messages}
    return SingleAnswer(**about, completions=(completion,), task=task, **fields)


def assess(store: Store, rater: str, item: str, value: Any, **fields: Any) -> str:
    submission = Submission(client_id=f"{rater} {item}", pair_id=item, value=value, **fields)
    return store.submit(rater, submission).judgment_id


def give_all(store: Store, rater: str) -> list[str]:
    given = []
    while (assignment := store.claim(rater, given)) is not None:
        given.append(assignment.item_id)
    return given


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def export_of(store: Store, output: Path) -> Path:
    label.main(["export", "--store", store.url, "--output", str(output)])
    return output / "final"


# --- the store ---


def test_single_answers_with_a_known_answer_measure_raters_and_count_nowhere_else(url: str, tmp_path: Path) -> None:
    """Right by hand: the same class, the same verdict, a rating at most one step off; a skip is neither."""
    single = [make_single(n, task) for n, task in enumerate(("rate", "rate", "review", "classify", "review"))]
    store = open_store(url, [*single, make_pair(9)], raters=2)
    rows = [(0, 4), (1, 4), (2, "reject"), (3, "law")]
    known = tmp_path / "gold.jsonl"
    known.write_text("".join(json.dumps({"item_id": f"answer-{n}", "value": value}) + "\n" for n, value in rows))
    label.main(["gold", "--gold", str(known), "--store", store.engine.url.render_as_string(hide_password=False)])
    assert [(one.item_id, one.value) for one in store.gold()] == [(f"answer-{n}", value) for n, value in rows]
    for item, value in (("answer-0", None), ("answer-0", 0), ("answer-2", "maybe"), ("answer-3", 3), ("pair-9", "law")):
        with pytest.raises(RefusedError):
            store.set_gold(item, None, value)
    store.rules.gold_share = 1.0
    for rater, values in (("r0", (5, 2, "reject", "law", "accept")), ("r1", (4, 3, "accept", "medicine"))):
        while (given := store.claim(rater)) is not None:
            if given.item_id == "pair-9":
                store.submit(rater, answer("pair-9", 1))
            else:
                assess(store, rater, given.item_id, values[int(given.item_id[-1])], rationale="false")
    assert store.gold_agreements() == {"r0": (3, 4), "r1": (2, 4)}, "2 is two steps from 4"
    wrong = next(one for one in store.history("r1") if one.judgment.pair_id == "answer-2")
    store.amend("r1", wrong.judgment_id, "again", Answer(skip=True))
    assert store.gold_agreements()["r1"] == (2, 3), "a skip does not count"
    assert {task: one["answers"] for task, one in measure_assessments(store.assessments()).items()} == {"review": 1}
    assert [row["answer_id"] for row in rows_of(export_of(store, tmp_path / "out") / "reviews.jsonl")] == ["answer-4"]
    assert not (tmp_path / "out" / "final" / "ratings.jsonl").exists()
    assert LiveVotes(store).read() is not None
    assert store.open_item("answer-3").gold_value == "law"
    store.remove_gold("answer-3")
    assert verify(store).faults == []
    store.close()


def test_a_rater_is_stopped_by_single_answers_too(tmp_path: Path) -> None:
    """Ten wrong classes in a row: Wald's test of 0.85 against 0.6 needs ln(0.95/0.01) / ln(0.4/0.15) = 4.6, so five."""
    store = open_store(tmp_path, [make_single(n, "classify") for n in range(10)], raters=1)
    for n in range(10):
        store.set_gold(f"answer-{n}", None, "law")
    store.rules.gold_share, store.rules.stop = 1.0, StopConfig(pace=None, consistency=None)
    for n in range(10):
        if store.standing("r0") == "" and (given := store.claim("r0")) is not None:
            assess(store, "r0", given.item_id, "medicine", seconds_active=float(n))
    assert store.standing("r0") == "stopped"
    assert store.judged_by("r0") == 5
    store.close()


def test_the_three_tasks_are_judged_undone_rejected_and_exported(url: str, tmp_path: Path) -> None:
    singles = [
        make_single(0, "rate"),
        make_single(1, "review", LIMES, source="synthetic", tags=("plants",), origin={"generator": "m", "seed": 3}),
        make_single(2, "classify"),
    ]
    store = open_store(url, [make_pair(9), *singles], overlap=2, raters=2)
    assert give_all(store, "r0") == ["pair-9", "answer-0", "answer-1"], "three at once, in campaign order"
    store.submit("r0", answer("pair-9", 2))
    assess(store, "r0", "answer-0", 4)
    assess(store, "r0", "answer-1", "edit", edited_text="Limes need\nmagnesium.\n")
    assert give_all(store, "r0") == ["answer-2"]
    undone = assess(store, "r0", "answer-2", "law")
    assert store.undo("r0", undone).draft == {**store_draft(), "value": "law"}
    store.submit("r0", Submission(client_id="again", pair_id="answer-2", value="medicine"))
    changed = store.amend("r0", store.last_judgment("r0") or "", "changed", Answer(value="law"))
    assert isinstance(changed.judgment, Assessment)
    assert (changed.judgment.value, changed.judgment.right, changed.judgment.task) == ("law", "", "classify")

    assert give_all(store, "r1")[1:] == ["answer-0", "answer-1"]
    bad = assess(store, "r1", "answer-0", 1)
    assert store.reject(Selection(judgment_ids=(bad,)), "hasty", again=True) == 1
    assert store.claim("r1", ["pair-9", "answer-1"]).item_id == "answer-0"  # type: ignore[union-attr]
    store.submit("r1", Submission(client_id="once more", pair_id="answer-0", value=5))
    assess(store, "r1", "answer-1", "reject", rationale="It is magnesium.")
    assert verify(store).faults == []

    status = store.status()
    assert (status["pairs"], status["items"], status["items_judged"]) == (1, 1, 1), "no single answer counts as a pair"
    assert (status["single_answers"], status["single_answers_judged"], status["judgments"]) == (3, 3, {"human": 6})
    [progress] = store.batch_progress().values()
    assert (progress.pairs, progress.single_answers, progress.wanted) == (1, 3, 8)
    assert [pair.id for pair in store.pairs()] == ["pair-9"]
    assert len(store.judgments()[0]) == 1
    assert measure_votes(LiveVotes(store).read())["judgments"] == 1
    assert [one.values for one in store.disputes("r0")] == [{"edit": 1, "reject": 1}]
    assert [one.item_id for one in store.find(Search(text="magnesium")).items] == []
    assert [one.task for one in store.find(Search(text="iron")).items] == ["review"]
    opened = store.open_item("answer-1")
    assert [read_judgment(one.judgment.model_dump_json()) for one in opened.judgments]

    final = export_of(store, tmp_path / "out")
    assert len(rows_of(final / "judgments.jsonl")) == 1
    [rating] = rows_of(final / "ratings.jsonl")
    assert (rating["rating"], rating["votes"], rating["raters"], rating["kind"]) == (
        4.5,
        {"4": 1, "5": 1},
        ["r0", "r1"],
        "human",
    )
    [undecided] = rows_of(final / "undecided.jsonl")
    assert undecided["votes"] == {"edit": 1, "reject": 1}
    assert undecided["origin"] == {"generator": "m", "seed": 3}
    [classed] = rows_of(final / "classes.jsonl")
    assert (classed["class"], classed["share"]) == ("law", 1.0)
    assert not (final / "demonstrations.jsonl").exists()
    report = json.loads((final / "report.json").read_text())
    assert report["judgments"]["total"] == report["pairs"]["total"] == 1
    assert report["single_answers"]["review"]["outcomes"] == {"undecided": 1}


def store_draft() -> dict[str, Any]:
    empty: dict[str, Any] = {
        "answer": None, "both_bad": False, "skip": False, "skip_reason": "", "ranking": None, "aspects": {},
        "rationale": "", "edited_text": None, "flags": [],
    }  # fmt: skip
    return empty


def test_leases_skips_and_repeats_are_those_of_pairs(tmp_path: Path) -> None:
    now = [10**12]
    singles = [make_single(n, "rate") for n in range(30)]
    store = open_store(tmp_path, singles, raters=2, clock=lambda: now[0])  # type: ignore[arg-type]
    assert store.claim("r0").item_id == "answer-0"  # type: ignore[union-attr]
    now[0] += 1_201_000
    assert store.claim("r1").item_id == "answer-0", "an expired lease frees the place"  # type: ignore[union-attr]
    assess(store, "r1", "answer-0", None, skip=True, skip_reason="not_my_field")
    store.rules.repeat_share = 1.0
    seen: list[str] = []
    while (given := store.claim("r0")) is not None and len(seen) < 32:
        seen.append(given.item_id)
        store.submit("r0", Submission(client_id=str(len(seen)), pair_id=given.item_id, value=3))
    again = [name for name in seen if seen.count(name) > 1]
    assert again, "after twenty judgments, some come a second time"
    assert "answer-0" in seen, "a skip leaves the place to others"
    assert verify(store).faults == []
    measured = label.measure_assessments(store.assessments())["rate"]
    assert measured["self_consistency"]["value"] == 1.0
    assert measured["judgments"] == measured["answers"] == len(set(seen)), "repeats count nowhere else"


@pytest.mark.parametrize(
    ("task", "fields", "words"),
    [
        ("rate", {"answer": 1}, "needs a value"),
        ("rate", {"value": "good"}, "no value of the task rate"),
        ("review", {"value": 3}, "no value of the task review"),
        ("review", {"value": "maybe"}, "accept, edit, reject"),
        ("review", {"value": "edit"}, "needs it"),
        ("review", {"value": "reject"}, "needs a reason"),
        ("review", {"both_bad": True}, "needs a value"),
        ("classify", {"value": "law", "aspects": {"honest": 1}}, "aspects"),
    ],
)
def test_what_the_task_does_not_ask_is_refused(
    tmp_path: Path, task: SingleTask, fields: dict[str, Any], words: str
) -> None:
    store = open_store(tmp_path, [make_single(0, task)])
    store.claim("r0")
    with pytest.raises(RefusedError, match=words):
        store.submit("r0", Submission(client_id="x", pair_id="answer-0", **fields))
    assert store.last_judgment("r0") is None


def test_a_pair_takes_no_value(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(0)])
    store.claim("r0")
    with pytest.raises(RefusedError, match="a value is for single answers"):
        assess(store, "r0", "pair-0", 3)


def test_a_store_from_before_opens_and_takes_single_answers(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(0)])
    store.claim("r0")
    store.submit("r0", answer("pair-0"))
    store.close()
    with sqlite3.connect(tmp_path / "labels.sqlite") as connection:  # as the tables were
        connection.execute("PRAGMA writable_schema=ON")
        for after, before in (
            ("'ranking', 'rate', 'review', 'classify'", "'ranking'"),
            ("second_id TEXT,", "second_id TEXT NOT NULL,"),
            ("right_id TEXT,", "right_id TEXT NOT NULL,"),
        ):
            connection.execute("UPDATE sqlite_master SET sql = replace(sql, ?, ?)", (after, before))
    with sqlite3.connect(tmp_path / "labels.sqlite") as connection, pytest.raises(sqlite3.IntegrityError):
        connection.execute("UPDATE items SET task = 'rate'")
    store = Store.open(f"sqlite:///{tmp_path}/labels.sqlite")
    with store.engine.begin() as connection:
        MIGRATIONS[13](connection)
    assert store.add_pairs([make_single(1, "rate")], overlap=1, seed=0, source="more", source_id="more") == 1
    store.claim("r0")
    assess(store, "r0", "answer-1", 2)
    assert verify(store).faults == []


# --- outcomes ---


@pytest.mark.parametrize(
    ("verdicts", "outcome", "text"),
    [
        (["accept"], "accept", LIMES),
        (["edit"], "edit", "edit 0"),
        (["reject"], "reject", None),
        (["accept", "edit"], "edit", "edit 1"),
        (["accept", "accept", "edit"], "accept", LIMES),
        (["edit", "reject"], None, None),
        (["edit", "edit", "reject"], "edit", "edit 0"),
        (["reject", "reject", "accept"], "reject", None),
    ],
)
def test_reviews_become_demonstrations(
    tmp_path: Path, verdicts: list[str], outcome: str | None, text: str | None
) -> None:
    single = make_single(0, "review", LIMES, source="synthetic", tags=("plants",), split="validation")
    store = open_store(tmp_path, [single], overlap=len(verdicts), raters=len(verdicts))  # type: ignore[list-item]
    for n, verdict in enumerate(verdicts):
        store.claim(f"r{n}")
        edited = f"edit {n}" if verdict == "edit" else None
        assess(store, f"r{n}", "answer-0", verdict, edited_text=edited, rationale="a reason")
    final = export_of(store, tmp_path / "out")
    made = read_demonstrations(str(tmp_path / "out")) if (final / "demonstrations.jsonl").exists() else []
    assert [one.text for one in made] == ([] if text is None else [text])
    for one in made:
        assert (one.prompt.source, one.prompt.split) == ("synthetic", "validation")
        assert one.prompt.tags == ("plants", f"reviewed:{'edited' if outcome == 'edit' else 'accepted'}")
    if outcome is None:
        assert not (final / "reviews.jsonl").exists()
        return
    [row] = rows_of(final / "reviews.jsonl")
    assert (row["verdict"], row["label"]) == (outcome, outcome != "reject")
    # The file itself is read as data too: rejected answers train nothing but KTO.
    [labelled] = read_answers(str(final / "reviews.jsonl"))
    assert labelled.label == row["label"]
    if outcome == "edit":
        assert row["original"] == LIMES
        assert sorted(row["difference"]) == [f"+{text}", "-Limes need", "-iron."]


def test_the_difference_names_the_lines_that_changed() -> None:
    assert difference("a\nb\nc", "a\nB\nc\nd") == ["-b", "+B", "+d"]
    assert difference("same", "same") == []


def test_ordinal_alpha_of_the_published_example() -> None:
    """Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", D: four observers, twelve units, five values."""
    rows = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    tallies = np.array([[[row[unit] for row in rows].count(value) for value in range(1, 6)] for unit in range(12)])
    values = range(1, 6)
    assert krippendorff_alpha(tallies, values, interval=False).value == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(tallies, values, interval=False, ordinal=True).value == pytest.approx(0.815, abs=5e-4)
    assert krippendorff_alpha(tallies, values, interval=True).value == pytest.approx(0.849, abs=5e-4)


# --- reading rows ---


def test_rows_of_many_shapes_are_read_and_keep_where_they_are_from(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    demonstration = Demonstration(
        prompt=Prompt(id="p", messages=(Message(role="user", content="q2"),), source="s"), completion="a2"
    )
    rows: list[dict[str, Any]] = [
        {"prompt": "q1", "response": "a1", "task": "rate", "generator": "m", "kind": "model", "seed": 1},
        {**demonstration.model_dump(mode="json"), "task": "review", "step": "synthesise"},
        {"messages": [{"role": "user", "content": "q3"}, {"role": "assistant", "content": "a3"}], "split": "test"},
        {"prompt": "q1", "response": "a1", "task": "rate"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, two, three = read_single_answers(str(file), "classify")
    assert (one.text, one.task, one.origin) == ("a1", "rate", {"generator": "m", "kind": "model", "seed": 1})
    assert (two.text, two.task, two.source, two.origin) == ("a2", "review", "s", {"step": "synthesise"})
    assert (three.text, three.task, three.split) == ("a3", "classify", "test")
    with pytest.raises(DataError, match=r"rows.jsonl:3: task: missing"):
        read_single_answers(str(file))
    file.write_text(json.dumps({"prompt": "q", "response": "a", "task": "grade"}) + "\n")
    with pytest.raises(DataError, match="'grade' is not one of rate, review, classify"):
        read_single_answers(str(file))


def test_a_campaign_says_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "q", "response": "a", "task": "classify"}) + "\n")
    config = LabelConfig(output=str(tmp_path / "out"), answers=str(file))
    with pytest.raises(ConfigError, match=r"classes: missing: 1 row of .* is to be classified"):
        label.read_some_answers(config)
    with pytest.raises(ValueError, match="each once"):
        LabelConfig(output="out", answers=str(file), classes=["law", "law"])
    with pytest.raises(ValueError, match="simulated raters compare two answers"):
        LabelConfig(output="out", answers=str(file), pairs=str(file), simulate=True)  # type: ignore[arg-type]


# --- the page ---


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("single")
    rows = [
        {"prompt": "q0", "response": "a0", "task": "rate"},
        {
            "prompt": "q1",
            "response": "a **bold** <img src=x onerror=window.pwned=1>",
            "task": "review",
            "source": "synthetic",
        },
        {"prompt": "q2", "response": "a2", "task": "review"},
        {"prompt": "q3", "response": "a3", "task": "classify"},
        {"prompt": "q4", "response": "a4", "task": "review"},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = folder / "label.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "output": "x",
                "answers": str(folder / "rows.jsonl"),
                "classes": ["law", "<b>medicine</b>"],
                "reasons": "strong",
            }
        )
    )
    with serving(folder, [make_pair(0)], "--config", str(config), "--repeat-share", "0") as (address, _):
        yield address, folder


@needs_chromium
def test_raters_answer_by_number_edit_reject_and_undo(
    served: tuple[str, Path],
    tmp_path: Path,
    axe: str,  # noqa: F811
) -> None:
    from playwright.sync_api import sync_playwright

    address, folder = served
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 1366, "height": 768}).new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{address}/rate/")

        def press(*keys: str) -> None:
            page.wait_for_selector(".desk:not([data-fresh])")
            for key in keys:
                page.keyboard.press(key)

        def wait_for(task: str, prompt: str) -> None:
            page.wait_for_function(
                f"document.querySelector('.desk')?.dataset.task === '{task}' && "
                f"document.querySelector('.prompt').innerText.includes('{prompt}')"
            )

        wait_for("pair", "question 0")
        assert page.locator(".values").is_hidden()
        assert "much better" in page.get_attribute("[name=rationale]", "placeholder")
        press("2")
        wait_for("rate", "q0")
        assert page.get_attribute("[name=rationale]", "placeholder") == "Reason (optional)"
        assert page.inner_text(".title") == "How good is this answer?"
        assert page.locator(".answer").count() == 1
        assert page.locator(".scale").is_hidden()
        assert page.locator("[data-do=both_bad]").is_hidden()
        press("b", "t", "e", "9")  # none of them is for ratings
        assert page.inner_text(".flags").split() == [
            "F",
            "Unsafe",
            "Personal",
            "data",
            "Broken",
            "prompt",
            "Wrong",
            "language",
        ]
        press("f", "1")
        assert page.is_checked("[value=unsafe][data-of=A]"), "one answer: a flag needs no letter"
        press("1", "Escape", "?")
        assert "criteria" not in page.inner_text("[data-card=keys]")
        assert "then A or B" not in page.inner_text("[data-card=keys]")
        press("Escape")
        press("4")
        wait_for("review", "q1")
        page.wait_for_function("document.querySelector('.saved').innerText.includes('4 of 5: good')")
        press("2")  # opens the editor
        page.wait_for_selector(".answer textarea:focus")
        page.keyboard.press("Control+a")
        page.keyboard.type("better")
        page.keyboard.press("Escape")
        page.keyboard.press("1")
        assert "accept it as edited" in page.inner_text(".banner")
        assert faults_of_both(page, axe) == []
        page.keyboard.press("2")
        wait_for("review", "q2")
        press("u")  # the edit is there again
        wait_for("review", "q1")
        assert page.input_value(".answer textarea") == "better"
        assert "chosen" in (page.get_attribute("[data-step='\"edit\"']", "class") or "")
        press("Enter")
        wait_for("review", "q2")
        press("3")  # waits for the reason
        page.wait_for_selector("[name=rationale]:focus")
        assert page.get_attribute("[name=rationale]", "placeholder") == "Reason (needed to reject)"
        page.keyboard.type("made up")
        page.keyboard.press("Enter")
        wait_for("classify", "q3")
        assert page.get_attribute("[name=rationale]", "placeholder") == "Reason (optional)"
        assert page.locator(".values").inner_text().split("\n")[-1] == "<b>medicine</b>"
        press("2")
        wait_for("review", "q4")
        press("1")
        page.wait_for_selector(".rest.finished")
        page.keyboard.press("w")
        page.wait_for_selector(".history tr")
        said = page.inner_text(".history")
        for words in ("accepted as edited", "rejected", "4 of 5: good", "<b>medicine</b>"):
            assert words in said
        page.goto(f"{address}/lead/#view=items")
        page.wait_for_selector(".found li")
        page.get_by_text("q1").first.click()
        page.wait_for_selector(".item .given")
        assert "accepted as edited" in page.inner_text(".item .given")
        assert page.evaluate("window.pwned") is None
        page.goto(f"{address}/lead/")
        page.wait_for_selector(".tiles .tile")
        assert "5 of 5" in page.inner_text(".tiles")
        assert errors == []
        browser.close()
    store = Store.open(f"sqlite:///{folder}/label.sqlite")
    assert verify(store).faults == []
    store.close()
    tiebreak("label", "export", "--config", str(folder / "label.yaml"), "--pairs", str(folder / "pairs.jsonl"), "--store",
             f"sqlite:///{folder}/label.sqlite", "--output", str(tmp_path / "out"))  # fmt: skip
    assert [one.text for one in read_demonstrations(str(tmp_path / "out"))] == ["better", "a4"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "answers" in json.dumps(manifest["inputs"])


def test_a_value_that_the_campaign_does_not_offer_is_refused(served: tuple[str, Path]) -> None:
    address, _ = served
    content = json.dumps({"prompt": "q9", "response": "a9", "task": "rate"}) + "\n"
    where = {"name": "more.jsonl", "batch": ""}
    reply = httpx.post(f"{address}/api/lead/pairs/upload", params=where, content=content)
    assert reply.json()["new"] == 1, reply.text
    given = httpx.get(f"{address}/api/next").json()
    if given["task"] == "pair":
        given = httpx.get(f"{address}/api/next", params={"holding": json.dumps([given["pair_id"]])}).json()
    assert (given["task"], given["right"]) == ("rate", None)
    for value in (6, 0, "5", True):
        body = {"client_id": "x", "pair_id": given["pair_id"], "value": value}  # type: ignore[dict-item]
        assert httpx.post(f"{address}/api/judgments", json=body).status_code in (409, 422), value


def test_the_title_of_single_answers_alone_is_what_their_task_asks() -> None:
    """It is the name of the page's tab, of the app, and of mails."""

    def title(**values: Any) -> str:
        return build_page(LabelConfig(output="out", **values)).title

    assert title(answers="a.jsonl", task="review") == "Can this answer be used?"
    assert title(answers="runs/x", flagged=True) == "Can this answer be used?"
    assert title(answers="a.jsonl", task="rate") == "How good is this answer?"
    assert title(answers="a.jsonl", task="rate", title="Mine") == "Mine"
    assert (
        title(answers="a.jsonl") == title(pairs="p.jsonl", answers="a.jsonl", task="rate") == "Which answer is better?"
    )
