"""From judgments to preferences: a hand-worked campaign, sides, simulated raters, the command line."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import pytest
from label_support import ROOT, answer, environment, make_pair, open_store, rubric_pairs, tiebreak, write_pairs

from labeling_ui.configuration import LabelConfig
from labeling_ui.exchange.export import build_edits, export, judgments_as_csv, unpaired, write_dataset, write_parquet
from labeling_ui.exchange.foreign import read_own
from labeling_ui.exchange.importing import import_records
from labeling_ui.label import export_hint
from labeling_ui.quality.aggregate import (
    REASONS,
    AggregationConfig,
    AggregationResult,
    KnownAnswers,
    Vote,
    build_preferences,
    decide,
    group_judgments,
)
from labeling_ui.quality.agreement import percent_agreement, pooled_agreement
from labeling_ui.quality.votes import read_votes
from labeling_ui.simulate import SimulateConfig, SimulatedRater, simulate
from labeling_ui.store.answers import Submission
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from tiebreak.config import load_config
from tiebreak.data.pairs import read_pairs
from tiebreak.data.reading import Rules, read_preferences, read_records
from tiebreak.files import write_jsonl
from tiebreak.measures.yardstick import find_yardstick
from tiebreak.records import Demonstration, ExportedJudgment, Judgment, ModelVerdict, Pair, Preference
from tiebreak.runs.audit import COMMAND
from tiebreak.runs.run import identify_input, read_manifest, start_run


def opinion(n: int, rater: str, answer: int | None, *, swapped: bool = False, **more: bool) -> Judgment:
    """A judgment of pair n; swapped: completion 1 on the left."""
    left, right = (f"{n}-1", f"{n}-0") if swapped else (f"{n}-0", f"{n}-1")
    return Judgment(pair_id=f"pair-{n}", rater_id=rater, left=left, right=right, answer=answer, kind="human", **more)  # type: ignore[arg-type]


HAND_WORKED = [
    # Pair 0: three raters prefer completion 1; answers 3, 2 and (sides swapped) −1 → strength (3 + 2 + 1) / 3 = 2.
    opinion(0, "a", 3), opinion(0, "b", 2), opinion(0, "c", -1, swapped=True),
    # Pair 1: two for completion 0 with 1 and 3, one for completion 1 → agreement 2/3, strength 2.
    opinion(1, "a", -1), opinion(1, "b", 3, swapped=True), opinion(1, "c", 1),
    # Pair 2: a tie, a both-bad, one preference: neither has most votes.
    opinion(2, "a", 0), opinion(2, "b", None, both_bad=True), opinion(2, "c", 2),
    # Pair 3: one each and a tie: split. Pair 4: skipped by the only rater. Pair 5: one vote and a skip.
    opinion(3, "a", 1), opinion(3, "b", -1), opinion(3, "c", 0),
    opinion(4, "a", None, skip=True),
    opinion(5, "a", -3), opinion(5, "b", None, skip=True),
]  # fmt: skip


def aggregated(
    judgments: list[Judgment], config: AggregationConfig | None = None, known_answers: KnownAnswers | None = None
) -> AggregationResult:
    return build_preferences([make_pair(n) for n in range(6)], group_judgments(judgments), config, known_answers)


def preferences_of(judgments: list[Judgment]) -> tuple[list[Preference], dict[str, int]]:
    made = aggregated(judgments)
    return made.preferences, {reason: count for reason, count in made.reasons.items() if count}


def test_hand_worked_campaign() -> None:
    preferences, outcomes = preferences_of(HAND_WORKED)
    facts = [(p.pair_id, p.chosen_text, p.rejected_text, p.strength, p.agreement, p.raters) for p in preferences]
    assert facts == [
        ("pair-0", "second answer", "first answer", 2.0, 1.0, ("a", "b", "c")),
        ("pair-1", "first answer", "second answer", 2.0, pytest.approx(2 / 3, abs=1e-6), ("a", "b", "c")),
        ("pair-5", "first answer", "second answer", 3.0, 1.0, ("a",)),
    ]
    assert outcomes == {"preferred": 3, "tie": 1, "split": 1, "skipped": 1}
    assert [(p.chosen_finished, p.rejected_finished) for p in preferences] == [
        (False, True),
        (True, False),
        (True, False),
    ]
    assert {p.kind for p in preferences} == {"human"}


def test_hand_worked_agreement() -> None:
    votes = read_votes([], HAND_WORKED, "human")
    # Pairs of votes that agree / all: pair 0: 3/3, pair 1: 1/3, pair 2: 1/3 (tie and both-bad are both neither), pair
    # 3: 0/3.
    with_ties = pooled_agreement(votes, ties=True)
    assert (with_ties.value, with_ties.n) == (pytest.approx(5 / 12), 12)
    by_item = percent_agreement(votes, ties=True)
    assert (by_item.value, by_item.n) == (pytest.approx((1 + 1 / 3 + 1 / 3 + 0) / 4), 4)
    # Without: pair 0: 3/3, pair 1: 1/3, pair 3: 0/1.
    without = pooled_agreement(votes, ties=False)
    assert (without.value, without.n) == (pytest.approx(4 / 7), 7)
    by_item = percent_agreement(votes, ties=False)
    assert (by_item.value, by_item.n) == (pytest.approx((1 + 1 / 3 + 0) / 3), 3)


def test_swapping_the_sides_and_the_sign_changes_no_preference() -> None:
    mirrored = [
        j.model_copy(update={"left": j.right, "right": j.left, "answer": None if j.answer is None else -j.answer})
        for j in HAND_WORKED
    ]
    assert preferences_of(mirrored) == preferences_of(HAND_WORKED)
    turned = [j.model_copy(update={"left": j.right, "right": j.left}) for j in HAND_WORKED]
    chosen = [(p.chosen, p.rejected) for p in preferences_of(HAND_WORKED)[0]]
    assert [(p.rejected, p.chosen) for p in preferences_of(turned)[0]] == chosen


def test_kinds_are_never_aggregated_together() -> None:
    model = opinion(0, "m", -3).model_copy(update={"kind": "model"})
    preferences, _ = preferences_of([opinion(0, "a", 3), model])
    assert [(p.kind, p.chosen_text) for p in preferences] == [("human", "second answer"), ("model", "first answer")]


def test_an_edit_is_a_demonstration_and_beats_what_it_mends() -> None:
    edited = opinion(0, "a", -2, swapped=True).model_copy(update={"edited_text": "second answer, edited"})
    unchanged = opinion(0, "b", 2).model_copy(update={"edited_text": "second answer "})
    machine = edited.model_copy(update={"rater_id": "m", "kind": "model"})
    (edit,) = build_edits([make_pair(0)], [edited, unchanged, machine, opinion(0, "c", 1)])
    assert edit.demonstration.completion == "second answer, edited"
    assert edit.demonstration.prompt.messages == make_pair(0).messages
    # edited > chosen > rejected: the middle one is the judgment's own.
    assert [(p.chosen_text, p.rejected_text, p.raters) for p in edit.preferences] == [
        ("second answer, edited", "second answer", ("a",)),
        ("second answer, edited", "first answer", ("a",)),
    ]


def ranked(rater: str, **more: Any) -> Judgment:
    """What a rater says of the three completions of pair 0, which they were shown as 1, 2, 0."""
    same = {"pair_id": "pair-0", "rater_id": rater, "left": "0-1", "right": "0-2", "shown": ("0-1", "0-2", "0-0")}
    return Judgment.model_validate({**same, "kind": "human", **more})


def test_ids_as_drawn_and_tools_go_along_where_the_answer_was_not_edited(tmp_path: Path) -> None:
    """A preference is trained on as the tokens that were drawn; an edited answer has none."""
    tool = {"type": "function", "function": {"name": "ec", "parameters": {"type": "object"}}}

    def drawn(n: int, *tokenizers: str) -> Pair:
        pair = make_pair(n)
        completions = tuple(
            one.model_copy(update={"ids": (n, number), "tokenizer_sha256": tokenizer})
            for number, (one, tokenizer) in enumerate(zip(pair.completions, tokenizers, strict=True))
        )
        return pair.model_copy(update={"completions": completions, "tools": (tool,)})

    pairs = [make_pair(0), drawn(1, "t", "t"), drawn(2, "t", "other")]
    judged = [opinion(0, "a", 3), opinion(1, "a", 3), opinion(2, "a", 3)]
    found = build_preferences(pairs, group_judgments(judged)).preferences
    assert [(p.chosen_ids, p.rejected_ids, p.tokenizer_sha256) for p in found] == [
        (None, None, None),
        ((1, 1), (1, 0), "t"),
        (None, None, None),  # two tokenizers
    ]
    assert [p.tools for p in found] == [(), (tool,), (tool,)]
    (edit,) = build_edits(pairs, [opinion(1, "a", 3).model_copy(update={"edited_text": "second answer, edited"})])
    assert [(p.chosen_ids, p.rejected_ids) for p in edit.preferences] == [(None, (1, 1)), (None, (1, 0))]
    assert edit.demonstration.prompt.tools == (tool,)
    # Arrow, which takes its columns from the first row, keeps them all
    write_parquet(tmp_path / "parquet", found)
    write_dataset(tmp_path / "saved", found)
    for source in ("parquet", "saved"):
        again = read_preferences(str(tmp_path / source), Rules(validation_share=0.0))
        assert [p.model_copy(update={"prompt_id": ""}) for p in again] == [
            p.model_copy(update={"prompt_id": ""}) for p in found
        ]


def test_an_edit_of_a_ranking_beats_all_that_were_ranked() -> None:
    pairs = [make_pair(0, "zero", "one", ("two",))]
    order = ranked("a", ranking=(("0-2",), ("0-0",), ("0-1",)), edited_text="two, edited")
    (edit,) = build_edits(pairs, [order, ranked("b", both_bad=True)])
    assert (edit.demonstration.completion, edit.demonstration.prompt.id) == ("two, edited", pairs[0].prompt_id)
    # edited > first > second > third: what follows the first ">" is among the votes.
    assert [(p.chosen_text, p.rejected_text) for p in edit.preferences] == [
        ("two, edited", "two"), ("two, edited", "zero"), ("two, edited", "one")
    ]  # fmt: skip
    implied = order.pairwise()
    assert [one.edited_text for one in implied] == ["two, edited", None, "two, edited"], "of 1-2, 1-0 and 2-0"
    (together,) = build_edits(pairs, implied)
    assert together.demonstration == edit.demonstration
    assert sorted(together.preferences, key=str) == sorted(edit.preferences, key=str)
    made = build_preferences(pairs, group_judgments([order]), AggregationConfig(), KnownAnswers())
    assert sorted((p.chosen_text, p.rejected_text) for p in made.preferences) == [
        ("two", "one"), ("two", "zero"), ("zero", "one")
    ]  # fmt: skip


def test_where_all_are_bad_every_one_of_them_is() -> None:
    pairs = [make_pair(0, "zero", "one", ("two",))]
    bad = [ranked("a", both_bad=True), ranked("b", both_bad=True)]
    made = build_preferences(pairs, group_judgments(bad), AggregationConfig(), KnownAnswers())
    rows = [(row["completion"][0]["content"], row["label"]) for row in unpaired(pairs, made, True)]
    assert sorted(rows) == [("one", False), ("two", False), ("zero", False)]
    assert percent_agreement(read_votes(pairs, bad, "human"), ties=True).n == 3
    assert [one.skip for one in ranked("a", skip=True).pairwise()] == [True] * 3


def test_a_ranking_that_is_left_out_leaves_no_edit(tmp_path: Path) -> None:
    store = open_store(tmp_path, [], raters=1)
    pairs = [make_pair(0, "zero", "one", ("two",)), make_pair(1)]
    store.add_pairs(pairs, overlap=1, seed=0, source="t", source_id="t", ranking=True)
    order = {"ranking": [["0-2"], ["0-0"], ["0-1"]], "edited_text": "two, edited", "flags": ["unsafe"]}
    for given, fields in (("pair-0", order), ("pair-1", {"answer": 1})):
        store.claim("r0")
        store.submit("r0", Submission.model_validate({"client_id": given, "pair_id": given, **fields}))
    for name, drop in (("kept", []), ("dropped", ["unsafe"])):
        run = start_run(LabelConfig(output=str(tmp_path / name), pairs="pairs"), "label", {})
        report = export(store, run, AggregationConfig.model_validate({"drop_flagged": drop}))
        assert report["edits"] == (0 if drop else 1)
        assert report["preferences"]["total"] == (1 if drop else 4)
    assert not (tmp_path / "dropped/final/demonstrations.jsonl").exists()
    (edit,) = read_records(tmp_path / "kept/final/demonstrations.jsonl", Demonstration)
    assert edit.completion == "two, edited"
    store.close()


def test_unpaired_labels() -> None:
    judgments = [opinion(0, "a", 2), opinion(1, "a", None, both_bad=True), opinion(2, "a", 0)]
    made, pairs = aggregated(judgments), [make_pair(n) for n in range(3)]
    rows = [(row["pair_id"], row["completion"][0]["content"], row["label"]) for row in unpaired(pairs, made, True)]
    assert rows == [
        ("pair-0", "second answer", True), ("pair-0", "first answer", False),
        ("pair-1", "first answer", False), ("pair-1", "second answer", False),
    ]  # fmt: skip
    assert len(list(unpaired(pairs, made, False))) == 2, "both bad is used nowhere"
    both_ways = aggregated(judgments, AggregationConfig(ties="both_ways"))
    assert [row["pair_id"] for row in unpaired(pairs, both_ways, False)] == ["pair-0"] * 2, "a tie is neither"


def test_ties_kept_both_ways_carry_half_the_weight() -> None:
    preferences = aggregated(HAND_WORKED, AggregationConfig(ties="both_ways")).preferences
    both = [p for p in preferences if p.pair_id == "pair-2"]
    assert [(p.chosen_text, p.weight, p.strength, p.margin, p.confidence) for p in both] == [
        ("first answer", 0.5, 0.0, 0.0, 0.5),
        ("second answer", 0.5, 0.0, 0.0, 0.5),
    ]
    assert len(preferences) == 5, "splits stay out"


def test_what_becomes_of_skips_few_votes_doubt_and_flags() -> None:
    def reasons(**config: Any) -> dict[str, int]:
        return {r: n for r, n in aggregated(HAND_WORKED, AggregationConfig(**config)).reasons.items() if n}

    # Counted, the skip of pair 5 stands against its one vote; pair 4 stays skipped.
    assert reasons(skips="count") == {"preferred": 2, "tie": 1, "split": 2, "skipped": 1}
    assert reasons(min_votes=2) == {"preferred": 2, "tie": 1, "split": 1, "skipped": 1, "few_votes": 1}
    assert reasons(min_confidence=0.7) == {"preferred": 2, "tie": 1, "split": 1, "skipped": 1, "unsure": 1}
    flagged = [*HAND_WORKED, opinion(0, "d", None, skip=True).model_copy(update={"flags": ("unsafe",)})]
    made = aggregated(flagged, AggregationConfig(drop_flagged=["unsafe"]))
    assert (made.reasons["flagged"], [p.pair_id for p in made.preferences]) == (1, ["pair-1", "pair-5"])
    assert len(aggregated(flagged, AggregationConfig(drop_flagged=["broken_prompt"])).preferences) == 3


def test_what_leads_settle_overrides_and_is_told_apart() -> None:
    # The lead turns pair 1 round (2 of 3 raters had judged otherwise), settles pair 3, and a pair nobody judged.
    settled = {("pair-1", "1-0", "1-1"): Vote("lead", -2), ("pair-3", "3-0", "3-1"): Vote("lead", 3)}
    settled |= {("pair-0", "0-0", "0-1"): Vote("lead", -1), ("pair-2", "2-0", "2-1"): Vote("lead", 0)}
    known_answers = KnownAnswers(adjudicated=settled)
    made = aggregated([j for j in HAND_WORKED if j.pair_id != "pair-5"], known_answers=known_answers)
    facts = {p.pair_id: (p.chosen_text, p.strength, p.agreement, p.weight, p.raters) for p in made.preferences}
    assert facts == {
        "pair-0": ("second answer", 1.0, 1.0, 1.0, ("lead",)),
        "pair-1": ("second answer", 2.0, pytest.approx(1 / 3, abs=1e-6), 1.0, ("lead",)),
        "pair-3": ("first answer", 3.0, pytest.approx(1 / 3, abs=1e-6), 1.0, ("lead",)),
    }
    assert {p.adjudicated for p in made.preferences} == {True}
    assert made.overruled == 2, "pairs 1 and 3; pair 2 was a tie to the raters, too"
    unjudged = aggregated([], known_answers=KnownAnswers(adjudicated={("pair-5", "5-0", "5-1"): Vote("lead", 2)}))
    assert [(p.pair_id, p.agreement) for p in unjudged.preferences] == [("pair-5", 0.0)]


def test_gold_trains_nothing_unless_it_is_kept() -> None:
    known_answers = KnownAnswers(gold={("pair-1", "1-0", "1-1"): Vote("gold", -1)})
    made = aggregated(HAND_WORKED, known_answers=known_answers)
    assert (made.reasons["gold"], [p.pair_id for p in made.preferences]) == (1, ["pair-0", "pair-5"])
    (gold,) = [
        p
        for p in aggregated(HAND_WORKED, AggregationConfig(gold="keep"), known_answers).preferences
        if p.pair_id == "pair-1"
    ]
    assert (gold.chosen_text, gold.raters, gold.strength, gold.confidence) == ("second answer", ("gold",), None, 1.0)


@pytest.mark.parametrize("method", ["dawid_skene", "bradley_terry"])
def test_models_give_soft_labels_and_weights(method: Literal["dawid_skene", "bradley_terry"]) -> None:
    # Raters a and b always agree; c says the opposite, except of pair 5, which b skipped.
    judgments = [opinion(n, rater, 2 if n % 2 else -2) for n in range(5) for rater in "ab"]
    judgments += [opinion(n, "c", -2 if n % 2 else 2) for n in range(5)] + [opinion(5, "a", 2), opinion(5, "c", -2)]
    made = aggregated(judgments, AggregationConfig(method=method))
    assert [p.chosen_text == "second answer" for p in made.preferences] == [n % 2 == 1 for n in range(6)]
    for preference in made.preferences:
        assert preference.confidence is not None
        assert preference.weight == pytest.approx(2 * preference.confidence - 1, abs=1e-5)
        assert (preference.strength, preference.margin) == (2.0, pytest.approx(2 / 3, abs=1e-6))
    last = made.preferences[5]
    assert last.agreement == 0.5, "one against one: a is believed"
    assert aggregated(judgments[-2:]).reasons["split"] == 1, "to the majority, that is nobody's"
    accuracies = {one.rater_id: one.accuracy.value or 0 for one in made.reliabilities["human"]}
    assert accuracies["c"] < 0.5 < min(accuracies["a"], accuracies["b"])


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =HYPERLINK()", "＝1", "\r=1"])
def test_a_spreadsheet_shows_a_formula_and_does_not_run_it(text: str) -> None:
    judgment = opinion(0, "a", -3).model_copy(update={"rationale": text, "edited_text": "1 - 1"})
    (row,) = csv.DictReader(io.StringIO(judgments_as_csv([judgment]), newline=""))
    assert row["rationale"] == f"'{text}"
    assert (row["answer"], row["edited_text"], row["pair_id"]) == ("-3", "1 - 1", "pair-0")


def test_a_table_has_empty_cells_for_what_a_judgment_does_not_have() -> None:
    linked = opinion(0, "a", 1).model_copy(update={"links": ("https://example.org",)})
    rows = list(csv.DictReader(io.StringIO(judgments_as_csv([linked, opinion(0, "b", 1)]), newline="")))
    assert [row["links"] for row in rows] == ["https://example.org", ""]


def test_a_table_has_the_verdicts_of_model_judges() -> None:
    verdict = ModelVerdict(model="m", answers=(2, None), prompt_tokens=7)
    judged = opinion(0, "j", 1).model_copy(update={"kind": "model", "judge": verdict})
    (row,) = csv.DictReader(io.StringIO(judgments_as_csv([judged]), newline=""))
    assert row["judge"].startswith("model: m; answers: 2, ; confidence: ; prompt_tokens: 7")


def test_both_bad_is_told_from_a_tie() -> None:
    (group,) = group_judgments([opinion(0, r, None, both_bad=True) for r in "ab"] + [opinion(0, "c", 0)])
    assert decide(group).reason == "both_bad"


# --- simulated raters ---


def test_the_rubrics_answer_by_hand() -> None:
    # POOR against GOOD: all but the length fails or little less; the difference is three criteria or more.
    pair = rubric_pairs(1)[0]
    good, poor = (completion.text for completion in pair.completions)
    rater = simulated_rater()
    assert rater.measure("", good) == 1.0
    assert rater.measure("", poor) <= 0.5
    assert rater.answer("", good, poor) == -3
    assert rater.answer("", poor, good) == 3
    assert rater.answer("", good, good) == 0
    assert rater.answer("", good, "Add 5 ml to the tub.") == -1, "only the length is missing: one criterion"
    undecided = simulated_rater(tie_threshold=0.2)
    assert undecided.answer("", good, "Add 5 ml to the tub.") == 0, "a difference within the threshold is a tie"


def simulated_rater(**keys: object) -> SimulatedRater:
    return SimulatedRater(SimulateConfig.model_validate(keys), find_yardstick("rubric"))


def test_simulated_raters_judge_by_a_yardstick_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def brief(prompt, answer):\n    return -float(len(answer)) if prompt else 0.0\n")
    write_pairs(tmp_path, [make_pair(n, "four", "sixsix", ("eighteight",)) for n in range(4)])
    recipe = {"pairs": "pairs.jsonl", "output": "label", "overlap": 1, "tracking": {"mode": "disabled"}}
    simulated = {"raters": 1, "error_rate": 0.0, "yardstick": "mine:brief", "tie_threshold": 2, "strength_step": 2}
    (tmp_path / "label.yaml").write_text(json.dumps(recipe | {"simulate": simulated}))
    tiebreak("label", "--config", "label.yaml", cwd=tmp_path)
    assert os.environ[COMMAND] == "tiebreak label --config label.yaml", "for the notes in W&B"
    judgments = read_records(tmp_path / "label/final/judgments.jsonl", ExportedJudgment)
    texts = {one.id: one.text for pair in read_records(tmp_path / "pairs.jsonl", Pair) for one in pair.completions}
    found = {(texts[one.left], texts[one.right], one.answer) for one in judgments}
    by_hand = {("four", "sixsix"): 0, ("sixsix", "eighteight"): -2, ("four", "eighteight"): -3}
    for left, right, value in found:
        expected = by_hand.get((left, right), -by_hand.get((right, left), 0))
        assert value == expected, (left, right)
    (tmp_path / "mine.py").write_text("def brief(prompt, answer):\n    return float('nan')\n")
    refused = tiebreak("label", "--config", "label.yaml", "--output", "other", cwd=tmp_path, ok=False)
    assert "mine:brief returned nan" in refused.stderr


def test_the_stated_error_rate_is_the_measured_one(tmp_path: Path) -> None:
    store = open_store(tmp_path, rubric_pairs(300), overlap=3, raters=3)
    rater_in_error, exact = simulated_rater(error_rate=0.2), simulated_rater(error_rate=0.0)
    wrong = total = 0
    for rater in ("r0", "r1", "r2"):
        for pair in store.pairs():
            for left, right in ((0, 1), (1, 0)):
                assignment = claimed(pair, rater, left, right)
                wrong += rater_in_error.judge(assignment).answer != exact.judge(assignment).answer
                total += 1
    # 900 independent draws (each seen from both sides): 0.2 within four standard deviations.
    assert total == 1800
    assert abs(wrong / total - 0.2) < 4 * (0.2 * 0.8 / 900) ** 0.5
    assert exact.judge(claimed(store.pairs()[0], "r0", 0, 1)).answer == -3


def claimed(pair, rater: str, left: int, right: int):  # type: ignore[no-untyped-def]
    from labeling_ui.store.work.assigning import Assignment

    sides = (pair.completions[left].id, pair.completions[right].id)
    return Assignment(f"{pair.id}-{rater}", pair.id, rater, sides, pair)


def test_simulated_errors_do_not_depend_on_the_side() -> None:
    for pair in rubric_pairs(30):
        one, other = (
            simulated_rater(error_rate=0.5).judge(claimed(pair, "r", *sides)).answer for sides in ((0, 1), (1, 0))
        )
        assert one == -(other or 0)


def label_words(folder: Path, *more: str) -> list[str]:
    return ["label", "--output", str(folder / "label"), "--pairs", str(folder / "pairs.jsonl"), "--overlap", "2", *more]


SIMULATE = ("--simulate", "true", "--simulate.raters", "3", "--formats", "parquet", "unpaired", "datasets", "csv")
FILES = ("preferences.jsonl", "judgments.jsonl", "report.json")


def test_simulated_run_through_the_command_line_is_deterministic_and_survives_kill(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
        write_pairs(folder, [*rubric_pairs(120), make_pair(500, "a b", "c d", ("e f",))])
    result = tiebreak(*label_words(whole, *SIMULATE))
    assert "simulated judgments" in result.stdout
    kill_half_way(label_words(cut, *SIMULATE), cut / "label" / "store" / "labels.sqlite")
    assert not (cut / "label" / "manifest.json").exists()
    tiebreak(*label_words(cut, *SIMULATE))
    for name in FILES:
        assert (whole / "label/final" / name).read_bytes() == (cut / "label/final" / name).read_bytes(), name
    manifests = [read_manifest(folder / "label") for folder in (whole, cut)]
    assert manifests[0]["outputs"] == manifests[1]["outputs"]
    assert manifests[0]["kinds"] == {"simulated": (120 + 3) * 2}
    check_simulated_run(whole)
    assert "nothing to do" in tiebreak(*label_words(whole, *SIMULATE)).stdout


def kill_half_way(words: list[str], database: Path) -> None:
    """Start the command and SIGKILL it when some, not all, judgments are in the store."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tiebreak.command.cli", *words], cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL
    )
    for _ in range(3000):
        if count_judgments(database) >= 40:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    assert 40 <= count_judgments(database) < 246


def count_judgments(database: Path) -> int:
    if not database.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            return int(connection.execute("SELECT count(*) FROM judgments").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def check_simulated_run(folder: Path) -> None:
    preferences = read_preferences(str(folder / "label"))
    assert {preference.kind for preference in preferences} == {"simulated"}
    assert {rater for preference in preferences for rater in preference.raters or ()} == {
        f"simulated-{n}" for n in range(3)
    }
    measure = simulated_rater().measure
    rubric = [measure("", p.chosen_text) - measure("", p.rejected_text) for p in preferences]
    assert sum(difference > 0 for difference in rubric) / len(rubric) > 0.9, (
        "raters who err in one of ten go by the rubric"
    )
    parquet = read_preferences(str(folder / "label/final/parquet/train.parquet"))
    assert [(p.chosen, p.rejected, p.weight, p.kind) for p in parquet] == [
        (p.chosen, p.rejected, p.weight, p.kind) for p in preferences
    ]
    report = json.loads((folder / "label/final/report.json").read_text())
    assert report["judgments"]["kinds"] == {"simulated": 246}
    assert report["preferences"]["total"] + report["preferences"]["dropped"] == 123
    assert sum(report["preferences"]["outcomes"].values()) == 123
    store = Store.open(f"sqlite:///{folder}/label/store/labels.sqlite")
    assert verify(store).faults == []
    assert verify(store).head == report["event_log_head"]


def test_another_seed_gives_other_judgments(tmp_path: Path) -> None:
    records = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        store = Store.open(f"sqlite:///{tmp_path}/{seed}/labels.sqlite", create=True, clock=None)
        store.add_pairs(rubric_pairs(20), overlap=2, seed=0, source="t", source_id="t")
        assert simulate(store, SimulateConfig(raters=2, error_rate=0.5, seed=seed)) == 40
        records.append(store.judgments()[0])
    assert records[0] != records[1]


def test_simulating_into_a_store_of_people_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path, rubric_pairs(3), raters=1)
    store.close()
    write_pairs(tmp_path, rubric_pairs(3))
    before = (tmp_path / "labels.sqlite").read_bytes()
    result = tiebreak(*label_words(tmp_path, *SIMULATE, "--store", store.url), ok=False)
    assert "not simulated" in result.stderr
    assert (tmp_path / "labels.sqlite").read_bytes() == before


# --- the other commands ---


def test_counts_raters_and_agreement_are_aligned_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from label_support import answer

    from labeling_ui.label import main as label
    from labeling_ui.raters import main as raters

    store = open_store(tmp_path, [make_pair(n) for n in range(3)], overlap=2, raters=2)
    store.move_rater("r1", "botany")
    for rater in ("r0", "r1"):
        first = store.claim(rater)
        assert first is not None
        store.submit(rater, answer(first.item_id, 2 if first.left_id == "0-0" else -2))
    url = ["--store", store.url]
    label(["status", *url])
    status = store.status()
    assert capsys.readouterr().out.splitlines() == [
        store.url,
        "  pairs       3",
        "  items       3  1 judged, 0 disputed",
        "  judgments   2  of 6 wanted: 2 human",
        "  raters      2",
        f"  events     {status['events']}  head {status['head'][:16]}",
    ]
    raters(["list", *url])
    assert capsys.readouterr().out.splitlines() == [
        "id  name     kind   role   pool    judgments",
        "r0  rater 0  human  rater  -               1",
        "r1  rater 1  human  rater  botany          1",
    ]
    label(["agreement", *url])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 human judgments of 1 item"
    (figure,) = (line for line in lines if line.startswith("agreement, counting ties"))
    (undefined,) = (line for line in lines if line.startswith("self-consistency"))
    assert figure.split()[3:] == ["100.0%", "[20.7%,", "100.0%]", "1"], "Wilson's interval of 1 of 1: from 1 / (1 + z²)"
    assert undefined.split()[1:] == ["-", "-", "0"]
    assert len(figure) == len(undefined) == len(lines[2]), "one width"


def test_export_status_and_verify_from_the_store_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(n) for n in range(2)], raters=1)
    nothing = tiebreak("label", "export", "--store", store.url, "--output", str(tmp_path / "out"), ok=False)
    assert "no judgment" in nothing.stderr
    from label_support import answer

    first = store.claim("r0")
    assert first is not None
    store.submit("r0", answer("pair-0", -3))
    tiebreak("label", "export", "--store", store.url, "--output", str(tmp_path / "out"))
    (preference,) = read_preferences(str(tmp_path / "out"))
    winner = {c.id: c.text for c in first.pair.completions}[first.left_id]
    assert (preference.chosen_text, preference.kind, preference.raters) == (winner, "human", ("r0",))
    status = json.loads(tiebreak("label", "status", "--store", store.url, "--json").stdout)
    assert (status["judgments"], status["judgments_wanted"]) == ({"human": 1}, 2)
    assert json.loads(tiebreak("label", "verify", "--store", store.url, "--json").stdout)["ok"] is True
    store.claim("r0")
    store.submit("r0", answer("pair-1", 0))
    again = tiebreak("label", "export", "--store", store.url, "--output", str(tmp_path / "out"), ok=False)
    assert "earlier export" in again.stderr
    with sqlite3.connect(tmp_path / "labels.sqlite") as connection:
        connection.execute("DELETE FROM judgments")
    broken = tiebreak("label", "verify", "--store", store.url, "--json", ok=False)
    assert json.loads(broken.stdout)["ok"] is False
    assert "does not match the log" in broken.stderr


def judged_campaign(folder: Path) -> Store:
    """Six pairs and three raters, of whom r2 says the opposite; pair 5 is gold, and pair 0 settled by a lead."""
    store = open_store(folder, [make_pair(n) for n in range(6)], overlap=3, raters=3)
    store.add_rater("lead", role="lead", rater_id="lead")
    store.set_gold("pair-5", "5-1")
    store.rules.gold_share = 0.5
    for rater, value in (("r0", 2), ("r1", 3), ("r2", -1)):
        while (given := store.claim(rater)) is not None:
            second_right = given.right_id.endswith("-1")
            edited = "edited" if rater == "r0" and given.item_id in ("pair-1", "pair-5") else None
            submission = Submission(
                client_id=f"{rater}-{given.item_id}",
                pair_id=given.item_id,
                answer=value if second_right else -value,
                edited_text=edited,
                rationale="=1+1",
            )
            store.submit(rater, submission)
    opened = store.open_dispute("lead", "pair-0").assignment
    first_left = opened.left_id == "0-0"
    store.adjudicate("lead", Submission(client_id="l", pair_id="pair-0", answer=-3 if first_left else 3))
    return store


def test_export_of_a_campaign_with_gold_a_lead_and_a_rater_left_out(tmp_path: Path) -> None:
    from datasets import load_from_disk

    store, out = judged_campaign(tmp_path), tmp_path / "out"
    words = ("label", "export", "--store", store.url, "--output", str(out), "--formats", "datasets", "csv", "parquet")
    tiebreak(*words, "--aggregation.method", "dawid_skene", "--aggregation.exclude-raters", "r2")
    preferences = {p.pair_id: p for p in read_preferences(str(out))}
    assert sorted(preferences) == ["pair-0", "pair-1", "pair-2", "pair-3", "pair-4"]
    settled = preferences.pop("pair-0")
    assert (settled.chosen_text, settled.adjudicated, settled.raters) == ("first answer", True, ("lead",))
    for one in preferences.values():
        assert (one.chosen_text, one.raters, one.strength) == ("second answer", ("r0", "r1"), 2.5)
        assert one.confidence is not None
        assert one.confidence > 0.8
    report = json.loads((out / "final/report.json").read_text())
    assert report["preferences"]["outcomes"] == dict.fromkeys(REASONS, 0) | {"preferred": 5, "gold": 1}
    assert report["adjudicated"] == {"total": 1, "preferences": 1, "overruled": 1}
    before, after = (
        report["agreement"]["human"],
        report["agreement"]["human"]["after_filtering"],
    )
    # Before: 5 pairs and a gold one × 3 pairs of raters, of which r0 and r1 agree. After: those two on the 5 pairs.
    for figure, n in ((before["percent_with_ties"], 5), (before["pooled"]["percent_with_ties"], 18)):
        assert (figure["value"], figure["n"]) == (pytest.approx(1 / 3, abs=1e-6), n)
    assert before["not_counted"] == {"gold": 3, "repeats": 0}
    assert (after["percent_with_ties"]["value"], after["percent_with_ties"]["n"]) == (1.0, 5)
    assert after["left_out"] == {"raters": ["r2"], "judgments": 8}, "r2's six, and the others' two of gold"
    manifest = read_manifest(out)
    assert manifest["raters"] == {"human": 3}
    stated = manifest["agreement"]["human"]
    assert (stated["share"], stated["comparisons"]) == (pytest.approx(1 / 3, abs=1e-6), 5)
    assert (stated["without those left out"]["share"], stated["without those left out"]["comparisons"]) == (1.0, 5)
    assert [one["rater"] for one in report["reliability"]["human"]] == ["r0", "r1"]
    assert report["event_log_head"] == read_manifest(out)["event_log_head"] == store.status()["head"]
    (adjudication,) = read_records(out / "final/adjudications.jsonl", ExportedJudgment)
    assert (adjudication.rater_id, abs(adjudication.answer or 0)) == ("lead", 3)
    assert "lead" not in {j.rater_id for j in read_records(out / "final/judgments.jsonl", ExportedJudgment)}
    rows = load_from_disk(str(out / "final/datasets"))["train"]
    assert {"prompt", "chosen", "rejected", "margin", "weight", "confidence"} <= set(rows.column_names)
    assert rows[1]["margin"] == pytest.approx(2.5 / 3, abs=1e-6)
    assert [
        row["rationale"] for row in csv.DictReader(io.StringIO((out / "final/judgments.csv").read_text(), newline=""))
    ] == ["'=1+1"] * 18
    edits = [json.loads(line) for line in (out / "final/edit_preferences.jsonl").read_text().splitlines()]
    found = [(one["pair_id"], one["rejected"][0]["content"]) for one in edits]
    assert found == [("pair-1", "second answer"), ("pair-1", "first answer")], "that of a gold pair trains nothing"


def test_a_store_is_exported_after_its_pairs_have_moved(tmp_path: Path) -> None:
    pairs = [make_pair(0), make_pair(1)]
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    store = Store.open(f"sqlite:///{tmp_path}/labels.sqlite", create=True)
    source = {"source": str(tmp_path / "pairs.jsonl"), "source_id": identify_input(str(tmp_path / "pairs.jsonl")).id}
    store.add_pairs(pairs, overlap=1, seed=0, **source)
    store.add_rater("one", rater_id="r0")
    given = store.claim("r0")
    assert given is not None
    store.submit("r0", answer(given.item_id, 2))
    words = ("label", "export", "--store", store.url, "--output")
    assert len(read_preferences(tiebreak_into(tmp_path / "out", words))) == 1
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert "pairs" in manifest["inputs"]
    (tmp_path / "pairs.jsonl").rename(tmp_path / "elsewhere.jsonl")
    assert len(read_preferences(tiebreak_into(tmp_path / "moved", words))) == 1
    assert "pairs" not in json.loads((tmp_path / "moved/manifest.json").read_text())["inputs"]


def tiebreak_into(folder: Path, words: tuple[str, ...]) -> str:
    tiebreak(*words, str(folder))
    return str(folder)


def test_exported_judgments_say_when_and_what_they_count_towards(tmp_path: Path) -> None:
    now = [1_777_887_000_250]  # 2026-05-04, 9:30 UTC
    store = open_store(tmp_path, [make_pair(0)], overlap=2, raters=1, clock=lambda: now[0])
    store.add_pairs([make_pair(n) for n in range(1, 30)], overlap=1, seed=0, source="b", source_id="b", batch="second")
    store.set_gold("pair-0", "0-0")
    store.rules.gold_share, store.rules.repeat_share = 0.1, 0.2
    given = []
    while (shown := store.claim("r0")) is not None:
        now[0] += 60_000
        sent = answer(shown.item_id, 1, f"c{len(given)}").model_copy(
            update={"seconds_active": 20.0, "seconds_idle": 2.5}
        )
        store.submit("r0", sent)
        given.append(shown.item_id)
    tiebreak("label", "export", "--store", store.url, "--output", str(tmp_path / "out"), "--formats", "csv")
    rows = [json.loads(line) for line in (tmp_path / "out/final/judgments.jsonl").read_text().splitlines()]
    assert len(rows) == len(given)
    assert sum(row.get("repeat", False) for row in rows) == len(given) - 30 > 0
    assert {row["pair_id"] for row in rows if row.get("gold")} == {"pair-0"}
    assert {row.get("batch", "") for row in rows} == {"", "second"}
    by_time = sorted(rows, key=lambda row: row["at"])
    assert [row["pair_id"] for row in by_time] == given
    assert (by_time[0]["at"], by_time[0]["seconds_idle"]) == ("2026-05-04T09:31:00.250Z", 2.5)
    table = list(csv.DictReader(io.StringIO((tmp_path / "out/final/judgments.csv").read_text())))
    assert sorted(row["at"] for row in table) == [row["at"] for row in by_time]
    assert {row["pair_id"] for row in table if row["gold"] == "True"} == {"pair-0"}
    write_jsonl(tmp_path / "all.jsonl", store.pairs())
    back = Store.open(f"sqlite:///{tmp_path}/back.sqlite", create=True)
    records = read_own(str(tmp_path / "all.jsonl"), str(tmp_path / "out/final/judgments.jsonl"))
    assert import_records(back, records.pairs, records.judgments, source="t", source_id="t").judgments == len(given)
    assert sorted(back.judgments()[0], key=str) == sorted(store.judgments()[0], key=str)


def test_agreement_tells_how_reliable_raters_are_gold_held_fixed(tmp_path: Path) -> None:
    store = judged_campaign(tmp_path)
    report = json.loads(tiebreak("label", "agreement", "--store", store.url, "--json").stdout)
    for model in ("dawid_skene", "bradley_terry"):
        accuracy = {one["rater"]: one["accuracy"]["value"] for one in report["reliability"][model]["raters"]}
        assert accuracy["r2"] < 0.5 < min(accuracy["r0"], accuracy["r1"])
    assert "Dawid-Skene" in tiebreak("label", "agreement", "--store", store.url).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--aggregation.methd", "majority"), "did you mean --aggregation.method?"),
        (("--aggregation.ties", "keep"), "--aggregation.ties: input should be 'drop' or 'both_ways', not 'keep'"),
        (("--aggregation.min-confidence", "1.5"), "--aggregation.min-confidence"),
        (("--aggregation.exclude-raters", "nobody"), "no judgments by nobody"),
    ],
)
def test_wrong_aggregation_is_refused(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    store = open_store(tmp_path, [make_pair(0)], raters=1)
    store.claim("r0")
    store.submit("r0", Submission(client_id="c", pair_id="pair-0", answer=1))
    out = ("--output", str(tmp_path / "out"))
    assert message in tiebreak("label", "export", "--store", store.url, *out, *words, ok=False).stderr
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": 1', "pairs.jsonl:1: not JSON"),
        ('{"id": "p", "prompt_id": "q", "messages": [], "completions": []}', "two or more completions"),
        ("", "contains no pairs"),
    ],
)
def test_broken_pairs_are_refused_and_leave_no_store(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "pairs.jsonl").write_text(content)
    result = tiebreak(*label_words(tmp_path), ok=False)
    assert message in result.stderr
    assert not (tmp_path / "label.sqlite").exists()


def test_the_quickstarts_configuration_and_the_simulate_switch() -> None:
    file = "configs/quickstart/label.yaml"
    config = load_config(LabelConfig, ["--config", str(ROOT / file)], "label")
    assert config.simulated
    assert config.simulate is not None
    assert (config.simulate.raters, config.simulate.error_rate, config.overlap) == (3, 0.1, 3)
    assert config.store_url == "sqlite:///runs/quickstart/label/store/labels.sqlite"
    by_hand = load_config(LabelConfig, ["--config", str(ROOT / file), "--simulate.enabled", "false"], "label")
    assert not by_hand.simulated
    assert by_hand.store_url == "sqlite:///runs/quickstart/label.sqlite"
    assert not LabelConfig(output="o", pairs="p", simulate=False).simulated  # type: ignore[arg-type]
    assert LabelConfig(output="o", pairs="p", simulate=True).simulated  # type: ignore[arg-type]


def test_pairs_round_trip(tmp_path: Path) -> None:
    pairs = rubric_pairs(5)
    assert read_pairs(str(write_pairs(tmp_path, pairs))) == pairs


def test_the_hint_of_a_stopped_server_is_a_command_that_works(tmp_path: Path) -> None:
    config = LabelConfig(output=str(tmp_path / "label"), pairs="pairs")
    store = open_store(tmp_path, [make_pair(n) for n in range(3)])
    assert export_hint(store, config, []) == "nothing to export yet: there are no judgments"
    for folder in ("label", "label-2"):
        held = store.claim("r0")
        assert held is not None
        store.submit("r0", answer(held.item_id))
        for _ in range(2):  # the same command again finds the same export
            hint = export_hint(store, config, [])
            assert hint.endswith(f"--output {tmp_path / folder}")
            tiebreak(*shlex.split(hint.removeprefix("next: tiebreak ")))
        assert (tmp_path / folder / "manifest.json").is_file()
    store.withdraw_pairs(["pair-0", "pair-1"])
    assert "nothing to export" in export_hint(store, config, [])
    store.close()


def test_the_hint_has_no_password_and_still_works(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(0)])
    store.submit("r0", answer(store.claim("r0").item_id))  # type: ignore[union-attr]
    store.url = "postgresql+psycopg://team:***@host/labels"
    config = LabelConfig(output=str(tmp_path / "label"), pairs="pairs")
    by_file = export_hint(store, config, ["--config", "label.yaml"])
    assert by_file == f"next: tiebreak label export --config label.yaml --output {tmp_path / 'label'}"
    assert "--store URL" in export_hint(store, config, ["--config", "label.yaml", "--store", "postgresql://x"])
    store.close()
