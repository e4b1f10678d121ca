"""Evaluation pairs in a campaign: they share no prompt with training pairs, reach no training file, and the lead sees
whether they are decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from label_support import answer, make_pair, open_store
from support import read_rows, run_here, write_rows

from evaluation.duel.configuration import DuelReportConfig
from labeling_ui.configuration import LabelConfig
from labeling_ui.database.errors import StoreError
from labeling_ui.quality.duels import LiveDuels
from labeling_ui.store.answers import Submission
from labeling_ui.store.store import Store
from tiebreak.config import StageConfig
from tiebreak.data.reading import read_preferences
from tiebreak.files import write_json, write_jsonl
from tiebreak.measures.sequential import SMALLEST_GAP
from tiebreak.records import Pair
from tiebreak.runs.run import start_run


def duel_pair(n: int) -> Pair:
    return make_pair(n).model_copy(update={"purpose": "evaluation", "split": "test"})


def add(store: Store, pairs: list[Pair], overlap: int = 1, batch: str = "duel") -> int:
    return store.add_pairs(pairs, overlap=overlap, seed=0, source="duel", source_id="d", batch=batch)


def judge_all(store: Store, rater: str, value: int, edited: str | None = None) -> None:
    """A vote for the first completion (value > 0) on every pair left."""
    while (given := store.claim(rater)) is not None:
        vote = -value if given.left_id.endswith("-0") else value
        extra = {"edited_text": edited} if edited else {}
        submission = Submission(client_id=given.id, pair_id=given.item_id, answer=vote, **extra)
        store.submit(rater, submission)


def test_judgments_of_evaluation_pairs_reach_no_training_file(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(n) for n in range(3)])
    add(store, [duel_pair(n) for n in range(10, 14)])
    judge_all(store, "r0", 2, edited="a better answer")
    store.close()
    out = tmp_path / "label"
    formats = ("--formats", "unpaired", "csv")
    status, printed = run_here("label", "export", "--store", store.url, "--output", out, *formats)
    assert status == 0, printed
    assert len(read_rows(out / "final" / "judgments.jsonl")) == 7
    trained = {"pair-0", "pair-1", "pair-2"}
    for name in ("preferences", "edit_preferences", "unpaired"):
        assert {row["pair_id"] for row in read_rows(out / "final" / f"{name}.jsonl")} == trained, name
    asked = {row["prompt"]["messages"][0]["content"] for row in read_rows(out / "final" / "demonstrations.jsonl")}
    assert asked == {f"question {n}?" for n in range(3)}
    report = json.loads((out / "final" / "report.json").read_text())
    assert report["evaluation"] == {"pairs": 4, "judgments": 4, "judged_in_part": []}
    assert "after_filtering" not in report["agreement"]["human"]


def test_a_settled_evaluation_pair_stays_out_too(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(0)], raters=2)
    add(store, [duel_pair(10)], overlap=2)
    judge_all(store, "r0", 2)
    judge_all(store, "r1", -2)
    store.add_rater("Zoe", rater_id="lead", role="lead")
    opened = store.open_dispute("lead", "pair-10")
    store.adjudicate("lead", answer(opened.assignment.item_id, 2))
    store.close()
    status, printed = run_here("label", "export", "--store", store.url, "--output", tmp_path / "label")
    assert status == 0, printed
    assert {row["pair_id"] for row in read_rows(tmp_path / "label" / "final" / "preferences.jsonl")} <= {"pair-0"}


def test_votes_are_exported_on_request_as_ones_for_or_against_the_chosen_answer(tmp_path: Path) -> None:
    """Two for the first answer, one for the second; on the other pair a lead's answer replaces all votes."""
    store = open_store(tmp_path, [make_pair(0), make_pair(1)], overlap=3, raters=3)
    for rater, value in (("r0", 2), ("r1", 1), ("r2", -3)):
        judge_all(store, rater, value)
    store.add_rater("Zoe", rater_id="lead", role="lead")
    opened = store.open_dispute("lead", "pair-1")
    prefers_second = -1 if opened.assignment.left_id.endswith("-1") else 1
    store.adjudicate("lead", answer("pair-1", prefers_second))
    store.close()
    for name, flags in {"plain": (), "votes": ("--aggregation.votes", "true")}.items():
        status, printed = run_here("label", "export", "--store", store.url, "--output", tmp_path / name, *flags)
        assert status == 0, printed
    assert not any("votes" in row for row in read_rows(tmp_path / "plain" / "final" / "preferences.jsonl"))
    rows = {row["pair_id"]: row for row in read_rows(tmp_path / "votes" / "final" / "preferences.jsonl")}
    votes = {pair: {one["rater"]: one["vote"] for one in row["votes"]} for pair, row in rows.items()}
    assert votes == {"pair-0": {"r0": 1, "r1": 1, "r2": -1}, "pair-1": {"lead": 1}}
    assert rows["pair-1"]["chosen"][0]["content"] == "second answer"
    [first, _] = read_preferences(str(tmp_path / "votes"))
    assert {one.rater: one.vote for one in first.votes or ()} == votes[first.pair_id or ""]


def test_no_prompt_is_both_trained_on_and_evaluated_on(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(0)])
    with pytest.raises(StoreError, match="1 prompt would have training pairs and evaluation pairs"):
        add(store, [duel_pair(0).model_copy(update={"id": "duel-0"}), duel_pair(1)])
    assert add(store, [duel_pair(1)]) == 1
    with pytest.raises(StoreError, match="compared on what they learn from"):
        add(store, [make_pair(1).model_copy(update={"id": "train-1"})], batch="more")
    held_out = make_pair(1).model_copy(update={"id": "held-1", "split": "validation"})
    assert add(store, [held_out], batch="more") == 1
    file = write_rows(tmp_path / "one.jsonl", [make_pair(1).model_copy(update={"id": "t"}).model_dump(mode="json")])
    store.close()
    status, printed = run_here("label", "import", "--pairs", file, "--store", store.url)
    assert (status, "training pairs and evaluation pairs" in printed) == (1, True), printed


def test_a_corrected_evaluation_pair_stays_one(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(0)])
    add(store, [duel_pair(1)])
    [made] = store.correct_pairs([make_pair(1, first="typo fixed")], source="fix", source_id="f")
    [now] = [pair for pair in store.pairs() if pair.id == made.replaced_by]
    assert now.purpose == "evaluation"


def test_the_lead_sees_a_verdict_once_pairs_have_all_their_judgments(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(100)], raters=2)
    live = LiveDuels(store)
    assert live() == []
    add(store, [duel_pair(n) for n in range(20)], overlap=2)
    [seen] = live()
    assert (seen["state"], seen["n"], seen["pairs"]) == ("undecided", 0, 20)
    assert seen["policies"] == ["secret-model-0", "secret-model-1"]
    judge_all(store, "r0", 2)
    assert live()[0]["n"] == 0, "one of two judgments each"
    judge_all(store, "r1", 1)
    [seen] = live()
    assert (seen["state"], seen["n"], seen["win_rate"], seen["more"]) == ("first", 20, 1.0, 0)
    add(store, [duel_pair(n) for n in range(20, 22)], overlap=2)
    assert live()[0]["pairs"] == 22
    store.withdraw_pairs([f"pair-{n}" for n in range(18)], "typo")
    assert (live()[0]["n"], live()[0]["pairs"]) == (2, 4)


def test_an_early_report_counts_finished_pairs_alone(tmp_path: Path) -> None:
    """One rater has judged 20 pairs, a second 6 of them; each is to get two judgments. The second prefers the other answer
    throughout, so finished pairs are ties, and those judged in part would all be won."""
    store = open_store(tmp_path, [make_pair(100)], raters=2)
    pairs = [duel_pair(n).model_copy(update={"prompt_id": f"prompt-{n}"}) for n in range(20)]
    add(store, pairs, overlap=2)
    judge_all(store, "r0", 2)
    for _ in range(6):
        given = store.claim("r1")
        assert given is not None
        loses = 2 if given.left_id.endswith("-0") else -2
        store.submit("r1", Submission(client_id=given.id, pair_id=given.item_id, answer=loses))
    [live] = LiveDuels(store)()
    store.close()
    label, duel = tmp_path / "label", tmp_path / "duel"
    status, printed = run_here("label", "export", "--store", store.url, "--output", label)
    assert status == 0, printed
    in_part = json.loads((label / "final" / "report.json").read_text())["evaluation"]["judged_in_part"]
    assert len(in_part) == 14

    write_duel(duel, pairs)
    found, printed = duel_report(duel, label, tmp_path / "report")
    [contest] = found["contests"]
    assert contest["people"]["value"] == 0.5 == live["win_rate"]
    assert contest["people"]["n"] == contest["sequence"]["n"] == 6 == live["n"]
    assert contest["sequence"]["interval"] == pytest.approx(live["interval"])
    assert (found["counts"]["judged"], found["counts"]["in_part"], found["counts"]["judgments"]) == (6, 14, 12)
    assert "14 of 20 pairs have only some of their judgments" in printed
    assert "not judged yet" not in printed

    # The file alone does not say how many judgments a pair is to get.
    file = label / "final" / "judgments.jsonl"
    found, printed = duel_report(duel, file, tmp_path / "file")
    assert (found["contests"][0]["people"]["n"], "Pairs have 1 to 2 judgments each" in printed) == (20, True)
    found, printed = duel_report(duel, file, tmp_path / "overlap", "--overlap", "2")
    assert (found["contests"][0]["people"]["n"], "Pairs have" in printed) == (6, False)
    words = ("--duel", duel, "--judgments", file, "--output", tmp_path / "none", "--overlap", "3")
    status, printed = run_here("duel", "report", *words)
    assert (status, "no pair of the duel has all its judgments yet (20 pairs judged in part)" in printed) == (1, True)


def write_duel(folder: Path, pairs: list[Pair]) -> None:
    """A finished duel of the policies of `make_pair`."""
    with start_run(StageConfig(output=str(folder)), "duel", {}) as run:
        write_jsonl(run.final / "pairs.jsonl", pairs)
        write_jsonl(run.final / "answers.jsonl", [])
        counts = {"prompts": len(pairs), "pairs": len(pairs), "same": 0, "empty": 0}
        policies = {f"secret-model-{k}": {} for k in range(2)}
        write_json(run.final / "report.json", {"policies": policies, "counts": counts, "yardstick_name": "rubric"})
        run.finish()


def duel_report(duel: Path, judgments: Path, output: Path, *flags: str) -> tuple[dict[str, Any], str]:
    """The report of a duel, and what the command prints."""
    words = ("--duel", duel, "--judgments", judgments, "--output", output, "--tracking.mode", "disabled")
    status, printed = run_here("duel", "report", *words, *flags)
    assert status == 0, printed
    return json.loads((output / "report.json").read_text()), printed


def test_policies_of_one_name_in_two_evaluations_are_compared_apart(tmp_path: Path) -> None:
    """The first evaluation's secret-model-0 wins everywhere, and that of the second loses: together, they would tie."""
    store = open_store(tmp_path, [make_pair(100)], raters=1)
    for first, source, value in ((0, "evaluation-1", 2), (20, "evaluation-2", -2)):
        add(store, [duel_pair(n).model_copy(update={"source": source}) for n in range(first, first + 20)], batch=source)
        judge_all(store, "r0", value)
    found = {row["evaluation"]: (row["state"], row["win_rate"], row["pairs"]) for row in LiveDuels(store)()}
    assert found == {"evaluation-1": ("first", 1.0, 20), "evaluation-2": ("second", 0.0, 20)}


def test_what_counts_as_no_difference_is_a_key(tmp_path: Path) -> None:
    """60 prompts, half of them won: the win rate is within 30 points of one half, and not yet within 10."""
    assert LabelConfig(output="x", pairs="p").no_difference == SMALLEST_GAP
    assert DuelReportConfig(output="x", duel="d", judgments="j").no_difference == SMALLEST_GAP
    store = open_store(tmp_path, [make_pair(100)], raters=1)
    for n in range(60):
        add(store, [duel_pair(n)])
        judge_all(store, "r0", 2 if n % 2 else -2)
    states = {gap: LiveDuels(store, gap)()[0]["state"] for gap in (SMALLEST_GAP, 0.3)}
    assert states == {SMALLEST_GAP: "undecided", 0.3: "no difference"}
