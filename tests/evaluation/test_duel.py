"""Duels by the command line: an evaluation's answers, simulated raters in the labelling app, and the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import read_rows, run_here, write_rows

from evaluation.duel.configuration import DuelReportConfig
from evaluation.duel.pairs import Evaluated, describe
from evaluation.duel.report import judged_in_part, judges_of, judgments_of
from evaluation.duel.win_rates import build_figures, programs_of
from tiebreak.errors import DataError, HandoffError
from tiebreak.messages import Message
from tiebreak.records import Completion, ExportedJudgment, Pair

UNTRACKED = ("--tracking.mode", "disabled")
GOOD = (
    "Lower the pH to 5.8 with 1 ml of acid per litre, wait 30 minutes, then measure it again and repeat until it holds"
)
POOR = "Great question! It is important to consider many things, and it depends"
PROMPTS = 14


def evaluation(folder: Path, split: str = "test", same_model: bool = False) -> Path:
    """A finished evaluate run of three policies: good, poor and mixed (good on even prompts). Of the last two prompts,
    mixed and poor give the same answer."""
    rows = []
    for n in range(PROMPTS):
        good, poor = f"{GOOD} at {n}", f"{POOR} {n}"
        texts = {"good": f"{good}.", "poor": poor, "mixed": f"{good}!" if n % 2 == 0 else f"{poor}."}
        if n >= PROMPTS - 2:
            texts["mixed"] = texts["poor"]
        for name, text in texts.items():
            rows.append(
                {
                    "prompt_id": f"prompt-{n}",
                    "messages": [{"role": "user", "content": f"question {n}?"}],
                    "policy": name,
                    "text": text,
                    "finished": True,
                    "score": float(len(text)),
                    "yardstick_score": float(text.startswith("Lower")),
                    "length_tokens": 9,
                }
            )
    write_rows(folder / "final" / "completions.jsonl", rows)
    ids = {"good": "sha-g", "poor": "sha-p", "mixed": "sha-p" if same_model else "sha-m"}
    policies = {name: {"source": "sft", "id": identity} for name, identity in ids.items()}
    report = {"policies": policies, "split": split, "yardstick_name": "rubric"}
    (folder / "final" / "report.json").write_text(json.dumps(report))
    return folder


@pytest.fixture(scope="module")
def real_evaluation(finished_recipe: Path) -> Path:
    return finished_recipe / "runs" / "evaluate"


@pytest.fixture
def made(real_evaluation: Path, tmp_path: Path) -> Path:
    """The recipe's evaluation with the answers of `evaluation`."""
    folder = tmp_path / "evaluate"
    shutil.copytree(real_evaluation, folder)
    return evaluation(folder)


def test_judgments_of_an_evaluations_pairs_go_to_the_next_evaluation(real_evaluation: Path, tmp_path: Path) -> None:
    label = tmp_path / "label"
    simulated = ("--simulate.enabled", "true", "--overlap", "1")
    status, message = run_here("label", "--pairs", real_evaluation, "--output", label, *simulated, *UNTRACKED)
    assert status == 0, message
    nexts = [line for line in message.splitlines() if line.startswith("next: ")]
    assert nexts == [f"next: tiebreak evaluate --config FILE --output FOLDER --yardsticks people:{label}"]


def test_a_duel_from_an_evaluation_to_its_report(made: Path, tmp_path: Path) -> None:
    duel, label, report = tmp_path / "duel", tmp_path / "label", tmp_path / "report"
    status, message = run_here("duel", "--evaluation", made, "--output", duel, *UNTRACKED)
    assert status == 0, message
    assert "2 comparisons of equal answers" in message
    pairs = read_rows(duel / "final" / "pairs.jsonl")
    # 12 prompts with three different answers, 2 with two: 12·3 + 2.
    assert len(pairs) == 38
    assert {(one["purpose"], one["split"]) for one in pairs} == {("evaluation", "test")}
    assert sum(" = " in side["policy"] for one in pairs for side in one["completions"]) == 2
    assert [one["id"] for one in pairs] != sorted(one["id"] for one in pairs)

    simulated = ("--simulate.enabled", "true", "--simulate.error-rate", "0", "--overlap", "2")
    status, message = run_here("label", "--pairs", duel, "--output", label, *simulated, *UNTRACKED)
    assert status == 0, message
    nexts = [line for line in message.splitlines() if line.startswith("next: ")]
    assert nexts == [f"next: tiebreak duel report --judgments {label} --duel {duel} --output {duel}-report"]
    assert (label / "final" / "preferences.jsonl").read_text() == ""
    assert len(read_rows(label / "final" / "judgments.jsonl")) == 76
    assert json.loads((label / "final" / "report.json").read_text())["evaluation"] == {
        "pairs": 38,
        "judgments": 76,
        "judged_in_part": [],
    }

    judged = tmp_path / "judge"
    words = ("--pairs", duel, "--function", "rubric", "--output", judged, "--injection-pairs", "0")
    assert run_here("judge", *words, *UNTRACKED)[0] == 0
    words = ("--duel", duel, "--judgments", label, "--judges", judged, "--output", report)
    status, message = run_here("duel", "report", *words, *UNTRACKED)
    assert status == 0, message
    found = json.loads((report / "report.json").read_text())
    by_pair = {tuple(one["policies"]): one for one in found["contests"]}
    assert set(by_pair) == {(a, b) for n, a in enumerate(found["policies"]) for b in found["policies"][n + 1 :]}

    def rate(first: str, second: str) -> Any:
        one = by_pair.get((first, second))
        return one["people"]["value"] if one else 1 - by_pair[second, first]["people"]["value"]

    assert rate("good", "poor") == 1.0
    assert rate("good", "mixed") == pytest.approx((0.5 * 6 + 1 * 8) / 14, abs=1e-6)  # equal in quality on six prompts
    assert rate("mixed", "poor") == 1.0  # its poor answers end as sentences do; the two equal texts were not asked
    for one in found["contests"]:
        programs = {row["name"]: row for row in one["programs"]}
        assert set(programs) == {"judge-function-rubric", "reward model", "rubric"}
        assert programs["judge-function-rubric"]["value"] == one["people"]["value"]
        assert programs["rubric"]["agreement"] == 1.0
    ratings = [row["policy"] for row in found["ratings"]]
    assert ratings == ["good", "mixed", "poor"]
    page = (report / "report.html").read_text()
    assert "good has the highest rating" in page
    assert "The raters are simulated" in page
    assert "http://" not in page


def test_a_duel_of_the_recipes_own_policies(real_evaluation: Path, tmp_path: Path) -> None:
    """The real files of an evaluate run are read: all answers of two policies, each once."""
    duel = tmp_path / "duel"
    words = ("--evaluation", real_evaluation, "--policies", "sft", "ppo", "--max-prompts", "3", "--output", duel)
    status, message = run_here("duel", *words, *UNTRACKED)
    rows = read_rows(real_evaluation / "final" / "completions.jsonl")
    different = len({row["prompt_id"] for row in rows})
    counts = json.loads((duel / "final" / "report.json").read_text())["counts"] if status == 0 else {}
    assert (status, counts.get("prompts")) == (0, min(different, 3)), message
    assert sum(counts[key] for key in ("pairs", "same", "empty")) == 3


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        ({"split": "train"}, (), "is on the train split"),
        ({"same_model": True}, (), "poor and mixed are the same model"),
        ({}, ("--policies", "good"), "needs two or more policies"),
        ({}, ("--policies", "good", "best"), "no best in"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    made: Path, tmp_path: Path, change: dict[str, Any], flags: tuple[str, ...], message: str
) -> None:
    evaluation(made, **change)
    status, printed = run_here("duel", "--evaluation", made, *flags, "--output", tmp_path / "duel", *UNTRACKED)
    assert (status, message in printed) == (2 if "needs" in message else 1, True), printed
    assert not (tmp_path / "duel" / "manifest.json").exists()


def test_judgments_of_another_duel_are_refused(tmp_path: Path) -> None:
    two = tuple(Completion(id=name, text=name) for name in "ab")
    pairs = [Pair(id="p", prompt_id="q", messages=(Message(role="user", content="?"),), completions=two)]
    vote = {"pair_id": "p", "left": "a", "right": "b", "answer": 1}
    row = {**vote, "rater_id": "r", "kind": "human"}
    assert len(judgments_of(str(write_rows(tmp_path / "j.jsonl", [row])), pairs)) == 1
    other = write_rows(tmp_path / "other.jsonl", [{**row, "left": "c"}])
    with pytest.raises(DataError, match=r"1 in .*other\.jsonl name a completion that the pair does not have"):
        judgments_of(str(other), pairs)


def test_repeats_skips_and_models_finish_no_pair() -> None:
    """Of pairs that need two judgments, only the first has two: the others have one and something that is not counted."""
    further: dict[str, dict[str, Any]] = {
        "both": {},
        "repeat": {"repeat": True},
        "skip": {"skip": True, "answer": None},
    }
    rows = [
        ExportedJudgment.model_validate(
            {"pair_id": pair, "rater_id": rater, "left": "a", "right": "b", "answer": 1, "kind": "human", **more}
        )
        for pair, own in {**further, "model": {"kind": "model"}}.items()
        for rater, more in (("r", {}), ("s", own))
    ]
    config = DuelReportConfig(output="o", duel="d", judgments="j.jsonl", overlap=2)
    assert judged_in_part(config, rows) == {"repeat", "skip", "model"}


def test_evaluation_pairs_are_not_selected_for_training(made: Path, tmp_path: Path) -> None:
    assert run_here("duel", "--evaluation", made, "--output", tmp_path / "duel", *UNTRACKED)[0] == 0
    words = ("--pairs", tmp_path / "duel", "--selected-pairs", "2", "--output", tmp_path / "select")
    status, printed = run_here("select", *words, *UNTRACKED)
    assert (status, "never reach training" in printed) == (1, True), printed


def test_empty_answers_are_reported_and_measured_by_no_program() -> None:
    """Of five prompts, a is silent at two and b at one of them: three are compared, by people and programs alike."""
    texts = {"a": ["", " ", "x", "x", "x"], "b": ["", "y", "y", "y", "y"]}
    rows = [
        {"prompt_id": f"p{n}", "policy": name, "text": text, "score": float(len(text)), "yardstick_score": None}
        for name, each in texts.items()
        for n, text in enumerate(each)
    ]
    [program] = programs_of(rows, ["a", "b"], "rubric")
    assert program.outcomes[("a", "b")].keys() == {"p2", "p3", "p4"}
    answers: dict[str, dict[str, Any]] = {}
    for row in rows:
        answers.setdefault(row["prompt_id"], {})[row["policy"]] = row
    about = {"policies": {"a": {}, "b": {}}, "split": "test", "yardstick_name": "rubric"}
    summary = describe(Evaluated("e", ["a", "b"], about, answers), sorted(answers), [])
    assert (summary["empty_answers"], summary["counts"]["empty"]) == ({"a": 2, "b": 1}, 1)
    counts = {**summary["counts"], "judged": 0}
    found = build_figures([], [], ["a", "b"], [], counts, empty=summary["empty_answers"])
    assert [one for one in found["caveats"] if "a 2, b 1" in one]
    assert not [one for one in build_figures([], [], ["a", "b"], [], counts)["caveats"] if "empty" in one]


def test_two_runs_of_one_judge_are_refused(tmp_path: Path) -> None:
    """The second run's verdicts would not count, and nothing would say so."""
    two = tuple(Completion(id=name, text=name) for name in "ab")
    pairs = [Pair(id="p", prompt_id="q", messages=(Message(role="user", content="?"),), completions=two)]
    for name in ("one", "two"):
        verdict = {"pair_id": "p", "left": "a", "right": "b", "answer": 1, "rater_id": "j", "kind": "model"}
        write_rows(tmp_path / name / "final" / "judgments.jsonl", [verdict])
        (tmp_path / name / "manifest.json").write_text(
            json.dumps({"id": name, "stage": "judge", "inputs": {}, "config": {}})
        )
    config = DuelReportConfig(output="o", duel="d", judgments="l", judges=[str(tmp_path / n) for n in ("one", "two")])
    with pytest.raises(HandoffError, match=r"one and .*two are both of j, whose verdict on a pair counts once"):
        judges_of(config, pairs, [], ["a", "b"])
