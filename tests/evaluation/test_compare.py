"""The report: its figures against numbers worked by hand, its page in a real browser, and what it must refuse.

Every recipe here is made of real run folders, written through `runs.start_run` and `Run.finish`.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.compare import CompareConfig, compare, judge_by_hand, summary_table
from evaluation.compare.charts import Spot, kl_chart, line_chart
from evaluation.compare.curves import MAX_POINTS, read_panels, reward_against_kl, thin
from evaluation.compare.reading import read_chain
from evaluation.compare.summary import distinct_names, guard_decision, verdict
from tiebreak.config import StageConfig
from tiebreak.errors import HandoffError, RunError
from tiebreak.files import write_json, write_jsonl
from tiebreak.hashing import hash_text
from tiebreak.measures.statistics import bootstrap_interval
from tiebreak.page.charts import spread, tick_labels, ticks
from tiebreak.page.document import embedded_json
from tiebreak.page.markup import el, visible
from tiebreak.page.numbers import number
from tiebreak.runs import run as runs

CHROMIUM = "/usr/bin/chromium"
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CRITERIA = ("concrete", "actionable", "direct", "unrepeated", "length", "finished")
REPOSITORY = Path(__file__).parents[2]


class AnyConfig(StageConfig):
    """A stage's configuration, as far as a run folder needs one."""

    note: str = ""


def write_run(
    folder: Path,
    stage: str,
    inputs: dict[str, str],
    files: dict[str, Any],
    rows: list[dict[str, Any]] | None = None,
    **facts: Any,
) -> str:
    """A finished run folder; returns its path as other stages name it."""
    run = runs.start_run(AnyConfig(output=str(folder)), stage, inputs)
    for name, content in files.items():
        (write_jsonl if name.endswith(".jsonl") else write_json)(run.final / name, content)
    if rows:
        write_jsonl(run.metrics, rows)
    run.facts |= facts
    run.finish()
    return str(folder)


def answer(prompt: int, policy: str, met: int, text: str, score: float | None, kl: float | None) -> dict[str, Any]:
    """A row of completions.jsonl that meets the first `met` of the six criteria."""
    return {
        "prompt_id": f"prompt-{prompt:03d}",
        "messages": [{"role": "user", "content": f"Question {prompt}: my lettuce droops, what now?"}],
        "policy": policy,
        "text": text,
        "finished": met == 6,
        "rubric": {name: place < met for place, name in enumerate(CRITERIA)},
        "rubric_score": met / 6,
        "score": score,
        "kl": kl,
        "length_tokens": len(text.split()),
    }


def figures_of(rows: list[dict[str, Any]], baseline: list[dict[str, Any]] | None) -> dict[str, Any]:
    """A policy's figures as evaluate reports them."""
    scores = [row["rubric_score"] for row in rows]
    figures: dict[str, Any] = {
        "rubric_mean": sum(scores) / len(scores),
        "rubric_interval": bootstrap_interval(scores, resamples=500),
        "criteria": {c: sum(row["rubric"][c] for row in rows) / len(rows) for c in rows[0]["rubric"]},
        "win_rate_vs_sft": None,
        "win_rate_interval": None,
        "score_mean": sum(row["score"] for row in rows) / len(rows),
        "score_interval": bootstrap_interval([row["score"] for row in rows], resamples=500),
        "kl_per_sequence": sum(row["kl"] for row in rows) / len(rows),
        "kl_per_token": 0.05,
        "length_tokens_mean": sum(row["length_tokens"] for row in rows) / len(rows),
        "unfinished_share": sum(not row["finished"] for row in rows) / len(rows),
        "repetition_mean": 0.04,
        "n_prompts": len(rows),
        "source": "runs/somewhere",
        "id": "0123456789abcdef01234567",
    }
    if baseline:
        wins = [
            0.5 + 0.5 * ((a := r["rubric_score"]) > (b := s["rubric_score"])) - 0.5 * (a < b)
            for r, s in zip(rows, baseline, strict=True)
        ]
        figures |= {
            "win_rate_vs_sft": sum(wins) / len(wins),
            "win_rate_interval": bootstrap_interval(wins, resamples=500),
        }
    return figures


def write_evaluation(folder: Path, rows: list[dict[str, Any]], inputs: dict[str, str], **changed: Any) -> str:
    """A finished *evaluate* run over `rows`."""
    names = list(dict.fromkeys(row["policy"] for row in rows))
    of = {name: [row for row in rows if row["policy"] == name] for name in names}
    policies = {name: figures_of(of[name], None if name == "sft" else of["sft"]) for name in names}
    report = {
        "policies": policies,
        "baseline": "sft",
        "sampling": {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "max_new_tokens": 96, "seed": 0},
        "yardstick": "rubric",
        "kinds": ["simulated"],
        **changed,
    }
    return write_run(
        folder, "evaluate", inputs, {"report.json": report, "completions.jsonl": rows}, kinds=["simulated"]
    )


def hand_rows() -> list[dict[str, Any]]:
    """Four prompts. Criteria met: base 2 2 2 2, sft 3 3 3 3, dpo 6 6 4 3, ppo 3 4 3 2."""
    met = {"base": (2, 2, 2, 2), "sft": (3, 3, 3, 3), "dpo": (6, 6, 4, 3), "ppo": (3, 4, 3, 2)}
    kl = {"base": 9.0, "sft": 0.0, "dpo": 4.0, "ppo": 2.0}
    return [
        answer(
            prompt,
            policy,
            met[policy][prompt],
            "Lower the pH to 5.8. " * (prompt + 1),
            met[policy][prompt] / 2,
            kl[policy],
        )
        for policy in met
        for prompt in range(4)
    ]


def sft_rows(decay: list[float]) -> list[dict[str, Any]]:
    """Metrics rows under TRL's names; `decay` falls from 1."""
    rows: list[dict[str, Any]] = [
        {
            "step": s,
            "step_seconds": 0.8,
            "loss": 1.4 + d,
            "mean_token_accuracy": 0.7 - 0.2 * d,
            "learning_rate": 1e-4 * d,
            "grad_norm": 2 * d,
        }
        for s, d in enumerate(decay, start=1)
    ]
    held_out = {"step": len(rows), "eval_loss": 1.9, "eval_mean_token_accuracy": 0.61, "eval_runtime": 3.2}
    return [*rows, held_out]


def reward_rows(decay: list[float]) -> list[dict[str, Any]]:
    return [
        {"step": s, "loss": 0.3 + 0.39 * d, "accuracy": 0.85 - 0.35 * d, "margin": 1 - d}
        for s, d in enumerate(decay, start=1)
    ]


def dpo_rows(decay: list[float]) -> list[dict[str, Any]]:
    return [
        {
            "step": s,
            "loss": math.log(2) - 0.4 * (1 - d),
            "rewards/accuracies": 0.9 - 0.4 * d,
            "rewards/margins": 1 - d,
            "rewards/chosen": 0.4 * (1 - d),
            "rewards/rejected": -0.6 * (1 - d),
            "logps/chosen": -80 + 4 * d,
            "logps/rejected": -88 + 9 * d,
        }
        for s, d in enumerate(decay, start=1)
    ]


def ppo_rows(decay: list[float]) -> list[dict[str, Any]]:
    return [
        {
            "step": s,
            "objective/kl": 2.1 * (1 - d),
            "objective/scores": 0.4 + 0.5 * (1 - d) + 0.05 * (s % 3),
            "objective/rlhf_reward": 0.4 + 0.4 * (1 - d),
            "objective/entropy": float("nan") if s == 3 else 40 - d,
            "policy/clipfrac_avg": 0.05 + 0.05 * d,
            "loss/policy_avg": -0.01 * d,
            "loss/value_avg": 0.3 * d,
            "val/ratio": 1 + 0.01 * d,
            "eval/scores": 1.5,
            "strange_metric": 3.0,
        }
        for s, d in enumerate(decay, start=1)
    ]


def guard_of(scores: list[float], kept: int, stopped_at: int | None = None, patience: int = 2) -> dict[str, Any]:
    """A guard's part of a manifest: a verdict every four steps, a nat apart, the training's own score rising by halves."""
    history = [
        {"step": 4 * n, "score": score, "kl": 1.2 * n, "training_score": 0.5 * n} for n, score in enumerate(scores)
    ]
    return {
        "kept": history[kept],
        "stopped_at_step": stopped_at,
        "patience": patience,
        "prompts": 32,
        "history": history,
    }


def write_recipe(root: Path, rows: list[dict[str, Any]] | None = None, steps: int = 12) -> str:
    """A whole recipe's folders under `root`; returns the evaluate run's."""
    prompt = [{"role": "user", "content": "Question?"}]
    prompts = [{"id": f"p{n}", "messages": prompt, "split": "test" if n % 4 == 0 else "train"} for n in range(20)]
    prepare = write_run(
        root / "prepare",
        "prepare",
        {},
        {"prompts.jsonl": prompts},
        counts={"kept": 20, "dropped": {"near_duplicate": 3}},
    )
    decay = [math.exp(-step / steps) for step in range(steps)]
    start = "bundled:smollm2-135m-instruct"
    sft = write_run(
        root / "sft",
        "sft",
        {"demonstrations": prepare, "policy": start},
        {"adapter.json": {"stage": "sft"}},
        sft_rows(decay),
        metrics={"eval_loss": 1.9, "train_runtime": 12.5},
    )
    pairs = [{"n": n} for n in range(14)]
    sample = write_run(root / "sample", "sample", {"policy": sft, "prompts": prepare}, {"pairs.jsonl": pairs})
    judged = {"judgments.jsonl": [{"kind": "simulated"}] * 28, "preferences.jsonl": [{"kind": "simulated"}] * 11}
    label = write_run(root / "label", "label", {"pairs": sample}, judged, kinds={"simulated": 28})
    learnt = {"preferences": label, "policy": sft}
    kinds = ["simulated"]
    reward = write_run(
        root / "reward", "reward", learnt, {"head.json": {"of": "reward"}}, reward_rows(decay), kinds=kinds
    )
    dpo = write_run(root / "dpo", "dpo", learnt, {"adapter.json": {"stage": "dpo"}}, dpo_rows(decay), kinds=kinds)
    used = {"reward_model": reward, "policy": sft, "prompts": prepare}
    facts = {"kinds": kinds, "guard": guard_of([0.1, 0.4, 0.3, -0.2], kept=1, stopped_at=12)}
    ppo = write_run(root / "ppo", "ppo", used, {"adapter.json": {"stage": "ppo"}}, ppo_rows(decay), **facts)
    inputs = {"prompts": prepare, "policies.sft": sft, "policies.dpo": dpo, "policies.ppo": ppo, "reward_model": reward}
    return write_evaluation(root / "evaluate", rows or hand_rows(), inputs)


# --- figures ---


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return write_recipe(Path("runs/a"))


def report_of(evaluation: str, output: str = "runs/report", **keys: Any) -> dict[str, Any]:
    """The report.json that compare writes."""
    compare(CompareConfig(output=output, evaluation=evaluation, **keys))
    report: dict[str, Any] = json.loads((Path(output) / "report.json").read_text(encoding="utf-8"))
    return report


def test_figures_are_those_of_the_evaluation(recipe: str) -> None:
    report = report_of(recipe)
    assert list(report["policies"]) == ["base", "sft", "dpo", "ppo"]
    dpo = report["policies"]["dpo"]
    assert dpo["rubric_mean"] == pytest.approx((6 + 6 + 4 + 3) / 24)
    assert dpo["win_rate_vs_sft"] == pytest.approx(3.5 / 4)  # three wins and a tie
    assert dpo["score_mean"] == pytest.approx((3 + 3 + 2 + 1.5) / 4)
    assert (dpo["kl_per_sequence"], dpo["n_prompts"]) == (4.0, 4)
    assert report["policies"]["sft"]["win_rate_vs_sft"] is None


def test_changes_are_paired_by_prompt(recipe: str) -> None:
    sft, dpo, ppo = report_of(recipe)["changes"]
    assert (sft["from"], dpo["from"], ppo["from"]) == ("base", "sft", "sft")
    assert dpo["rubric_difference"] == pytest.approx((3 + 3 + 1 + 0) / 24)
    assert (dpo["prompts_better"], dpo["prompts_equal"], dpo["prompts_worse"]) == (3, 1, 0)
    assert ppo["rubric_difference"] == pytest.approx(0.0)
    assert (ppo["prompts_better"], ppo["prompts_equal"], ppo["prompts_worse"]) == (1, 2, 1)
    # every prompt of SFT gained exactly one criterion of six over base: a paired interval has no width
    assert sft["rubric_difference_interval"] == pytest.approx([1 / 6, 1 / 6])
    assert dpo["criteria"]["unrepeated"] == pytest.approx(
        3 / 4
    )  # the fourth criterion: met by 6, 6 and 4, by none of SFT


def test_data_stages_and_chain(recipe: str) -> None:
    report = report_of(recipe)
    counts = {row["what"]: (row["rows"], row["by"]) for row in report["data"]}
    assert counts["prompts"] == (20, {"test": 5, "train": 15})
    assert counts["judgments"] == (28, {"simulated": 28})
    assert (counts["pairs"][0], counts["preferences"][0]) == (14, 11)
    assert {row["stage"] for row in report["chain"]} == {
        "prepare",
        "sft",
        "sample",
        "label",
        "reward",
        "dpo",
        "ppo",
        "evaluate",
    }
    ids = {row["stage"]: row["id"] for row in report["chain"]}
    assert ids["dpo"] == runs.read_manifest("runs/a/dpo")["id"]
    by_stage = {row["stage"]: row for row in report["chain"]}
    assert by_stage["dpo"]["inputs"]["policy"] == {"kind": "run", "id": ids["sft"]}
    stages = {row["stage"]: row for row in report["stages"]}
    assert stages["sft"]["metrics"] == {"eval_loss": 1.9}  # train_runtime is a time
    assert stages["prepare"]["counts"]["dropped"] == {"near_duplicate": 3}
    timed = {row["stage"]: row for row in report["timings"]["stages"]}
    assert timed["dpo"]["folder"] == "runs/a/dpo"
    assert timed["dpo"]["seconds"] is not None
    assert timed["dpo"]["peak_memory_bytes"] > 0


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.51, 0.9), "better"),
        ((0.5, 0.9), "undecided"),
        ((0.4, 0.5), "undecided"),
        ((0.1, 0.49), "worse"),
        (None, "unknown"),
    ],
)
def test_verdict_excludes_an_even_half(interval: tuple[float, float] | None, expected: str) -> None:
    assert verdict(interval) == expected


def test_headline_claims_what_the_intervals_allow(recipe: str) -> None:
    headline = report_of(recipe)["headline"]
    assert headline["verdicts"] == {"dpo": "too few", "ppo": "too few"}
    assert headline["claim"] == "4 prompts are too few to compare DPO and PPO with SFT"
    assert any("simulated raters, not from people" in caveat for caveat in headline["caveats"])
    assert any("Only 4 prompts" in caveat for caveat in headline["caveats"])


def test_a_losing_policy_is_reported_to_lose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [answer(p, "sft", 4, "a", 0.0, 0.0) for p in range(30)] + [
        answer(p, "dpo", 2, "b", 0.0, 1.0) for p in range(30)
    ]
    headline = report_of(write_evaluation(Path("evaluate"), rows, {}))["headline"]
    assert headline["claim"] == "DPO loses more often than it wins against SFT"
    assert headline["sentences"] == [
        "DPO wins 0% of 30 held-out prompts against SFT (95% interval 0% to 14%, wholly below an even 50%)."
    ]


def test_a_reward_model_no_better_than_chance_is_reported_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [answer(p, policy, 3, "a", 0.0, 0.0) for policy in ("sft", "ppo") for p in range(30)]
    for name, interval in (("weak", [0.44, 0.71]), ("strong", [0.51, 0.71])):
        metrics = {"held_out_accuracy": 0.58, "held_out_accuracy_interval": interval}
        reward = write_run(
            Path(name), "reward", {}, {"head.json": {"name": name}}, [{"step": 1, "loss": 0.7}], metrics=metrics
        )
        evaluation = write_evaluation(Path(f"evaluate-{name}"), rows, {"reward_model": reward})
        caveats = report_of(evaluation, f"report-{name}")["headline"]["caveats"]
        opening = "The reward model is right about 58% of held-out preferences (95% interval 44% to 71%"
        assert any(caveat.startswith(opening) for caveat in caveats) == (name == "weak")
        page = Path(f"report-{name}/report.html").read_text(encoding="utf-8")
        assert "held out accuracy 0.580 (95% interval" in page


def test_simulated_raters_are_named_even_if_only_a_stage_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    label = write_run(
        Path("label"), "label", {}, {"preferences.jsonl": [{"kind": "simulated"}]}, kinds=["human", "simulated"]
    )
    rows = [answer(p, policy, 3, "a", 0.0, 0.0) for policy in ("sft", "dpo") for p in range(30)]
    report = report_of(write_evaluation(Path("evaluate"), rows, {"preferences": label}, kinds=[]))
    assert report["kinds"] == ["human", "simulated"]
    assert report["headline"]["caveats"][0].startswith("Part of the preferences come from simulated raters")


def test_two_recipes_differ_in_timings_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        reports.append(report_of(write_recipe(Path("runs/a"))))
    first, second = (json.dumps({k: v for k, v in r.items() if k != "timings"}) for r in reports)
    assert first == second
    assert "runs/a" not in first  # where things lie is a matter of `timings`
    assert all("timings" in report for report in reports)


def test_the_same_command_again_does_nothing_and_a_lost_page_is_written_again(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report_of(recipe)
    folder = Path("runs/report")
    before = {name: (folder / name).read_bytes() for name in ("report.html", "report.json", "manifest.json")}
    (folder / "report.html").unlink()
    capsys.readouterr()
    report_of(recipe)
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert "DPO" in capsys.readouterr().out


def test_a_cut_off_compare_ends_in_the_same_report(recipe: str, tmp_path: Path) -> None:
    words = ("compare", "--evaluation", recipe, "--output", "runs/report")
    assert run_command(tmp_path, *words).returncode == 0
    folder = Path("runs/report")
    whole = {name: (folder / name).read_bytes() for name in ("report.html", "report.json", "final/report.json")}
    identity = runs.read_manifest(folder)["id"]
    # what kill -9 leaves: no manifest, and any state of the rest
    (folder / "manifest.json").unlink()
    (folder / "report.json").unlink()
    (folder / "report.html").write_text("<!doctype", encoding="utf-8")
    assert run_command(tmp_path, *words).returncode == 0
    assert {name: (folder / name).read_bytes() for name in whole} == whole
    assert runs.read_manifest(folder)["id"] == identity


# --- the guard ---


@pytest.mark.parametrize(
    ("guard", "sentence"),
    [
        (
            guard_of([0.1, 0.4, 0.3, -0.2], kept=1, stopped_at=12),
            "DPO was guarded by a reward model that its training did not see, which scored the answers to 32 validation "
            "prompts at 4 steps. It scored the policy of step 4 highest, which was kept: its score rose from 0.100 to "
            "0.400, at a KL of 1.20 nats per answer. Training was stopped at step 12: that score had fallen 2 times in a "
            "row, to −0.200, while the training score rose.",
        ),
        (guard_of([0.1, 0.4], kept=1), "It scored the last policy of step 4 highest, which was kept"),
        (guard_of([0.1, 0.4], kept=1), "Training ran to its end, step 4."),
        (
            guard_of([0.1, 0.0], 0, stopped_at=4, patience=1),
            "no policy higher than the initial one, so",
        ),
        (guard_of([0.1, 0.0], 0, stopped_at=4, patience=1), "that score had fallen once, to 0"),
    ],
)
def test_a_guards_decision_in_words(guard: dict[str, Any], sentence: str) -> None:
    assert sentence in guard_decision("dpo", guard)


def test_the_report_draws_both_scores_and_rings_the_kept_step(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(recipe)
    (guard,) = [stage["guard"] for stage in report["stages"] if "guard" in stage]
    assert guard["decision"] in capsys.readouterr().out
    page = Path("runs/report/report.html").read_text(encoding="utf-8")
    assert guard["decision"] in page
    charts = [svg for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if 'class="kept"' in svg]
    rings, points = [], []
    for svg in charts:
        rings.append(re.search(r'class="kept" cx="([^"]+)" cy="([^"]+)"', svg).groups())  # type: ignore[union-attr]
        points.append(re.findall(r'class="dot[^"]*" cx="([^"]+)" cy="([^"]+)"', svg))
        assert "step 4, kept" in svg
    assert len(charts) == 2
    assert [drawn[1] for drawn in points] == rings  # the second of the four verdicts
    own, held_out = ([float(y) for _, y in drawn] for drawn in points)
    assert own == sorted(own, reverse=True)  # up is a smaller y: the training's own score rises throughout
    assert min(held_out) == held_out[1]
    assert [x for x, _ in points[0]] == [x for x, _ in points[1]]  # one axis of KL


@pytest.mark.parametrize("stage", ["ppo", "dpo"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_guard_of_the_same_judgments_is_reported_as_one(
    stage: str, shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine, others = (
        write_run(Path(name), "label", {}, {"preferences.jsonl": [{"kind": "human", "n": name}]}, kinds=["human"])
        for name in ("mine", "others")
    )
    reward = write_run(Path("reward"), "reward", {"preferences": mine}, {"head.json": {"seed": 0}})
    judge = write_run(Path("judge"), "reward", {"preferences": mine if shared else others}, {"head.json": {"seed": 1}})
    learned = {"reward_model": reward} if stage == "ppo" else {"preferences": mine}
    inputs = learned | {"guard.reward_model": judge}
    policy = write_run(Path(stage), stage, inputs, {"adapter.json": {}}, guard=guard_of([0.1, 0.4], kept=1))
    rows = [answer(p, name, 3, "a", 0.0, 0.0) for name in ("sft", stage) for p in range(30)]
    report = report_of(write_evaluation(Path("evaluate"), rows, {f"policy_{stage}": policy}))
    opening = f"{stage.upper()}'s guard learned from the same preferences as {stage.upper()}'s training"
    assert any(caveat.startswith(opening) for caveat in report["headline"]["caveats"]) == shared


def test_a_figure_of_the_guard_is_drawn_as_held_out_beside_the_trainings() -> None:
    rows = [
        {"step": 2 * n, "objective/scores": 0.1 * n, "guard/score": -0.1 * n, "guard/training_score": 0.2 * n}
        for n in range(3)
    ]
    main, _ = read_panels(rows, "ppo")
    assert [[(curve.key, curve.held_out) for curve in panel.curves] for panel in main] == [
        [("objective/scores", False), ("guard/training_score", True)],
        [("guard/score", True)],
    ]


# --- judgments that pull against the rest ---


def pull_report(root: Path, preferences: str, sft: str) -> tuple[str, str]:
    """A reward model, and its report on four pairs. Of p0, ann and ben prefer "good" and cat "poor"; ann alone judged p1,
    a lead settled p2 against ben, and of p3 nobody's judgment is known."""
    reward = write_run(root / "reward", "reward", {"preferences": preferences, "policy": sft}, {"head.json": {}})
    values = {
        "p0": (-4.0, ["ann", "ben", "cat"]),
        "p1": (-1.5, ["ann"]),
        "p2": (-0.5, ["lead"]),
        "p3": (1.0, ["x", "y"]),
    }
    pulls = [
        {"pair_id": name, "raters": raters, "pull": pull, "chosen": hash_text("good"), "adjudicated": name == "p2"}
        for name, (pull, raters) in values.items()
    ]
    rows = [
        {
            "pair_id": one["pair_id"],
            "raters": one["raters"],
            "pull": one["pull"],
            "prompt": [{"role": "user", "content": f"Question {one['pair_id']}?"}],
            "chosen": "good",
            "rejected": "<b>poor</b>",
        }
        for one in pulls
        if one["pull"] < 0
    ]
    summary = {"against_the_rest": {"pairs": 4, "of": 9, "against": 3, "rows": rows}}
    files = {"report.json": summary, "pulls.jsonl": pulls}
    return reward, write_run(root / "reward-report", "reward report", {"reward_model": reward}, files)


def test_judgments_that_pull_against_the_rest_are_named_with_who_made_them(recipe: str) -> None:
    sides = [{"id": name, "text": name} for name in ("good", "poor")]
    ask = [{"role": "user", "content": "?"}]
    pairs = [{"id": f"p{n}", "prompt_id": f"q{n}", "messages": ask, "completions": sides} for n in range(3)]
    votes = [
        ("p0", "ann", 1),
        ("p0", "ben", 2),
        ("p0", "cat", -1),
        ("p1", "ann", 1),
        ("p2", "ben", -1),
        ("p2", "cat", 0),
    ]
    judgments = [
        {"pair_id": pair, "rater_id": rater, "left": "poor", "right": "good", "answer": answer, "kind": "human"}
        for pair, rater, answer in votes
    ]
    judgments.append({**judgments[2], "answer": 3, "repeat": True})  # cat's second look does not count
    root, sft = Path("runs/b"), "runs/a/sft"
    sample = write_run(root / "sample", "sample", {"policy": sft}, {"pairs.jsonl": pairs})
    label = write_run(
        root / "label", "label", {"pairs": sample}, {"judgments.jsonl": judgments, "preferences.jsonl": []}
    )
    reward, report = pull_report(root, label, sft)
    evaluated = write_evaluation(root / "evaluate", hand_rows(), {"policies.sft": sft, "reward_model": reward})
    [found] = report_of(evaluated, runs=[report])["pulls"]
    assert [row["preferred_by"] for row in found["rows"]] == [["ann", "ben"], ["ann"], ["lead"]]
    shares = {row["rater"]: (row["value"], row["n"]) for row in found["raters"]}
    assert shares == {"ann": (1.0, 2), "ben": (1.0, 1), "lead": (1.0, 1)}
    assert found["raters"][0]["interval"][0] == pytest.approx(2 / (2 + 1.959964**2))  # Wilson of 2 of 2: n/(n + z²)
    assert (found["pairs"], found["of"], found["against"], found["behind_the_policies"]) == (4, 9, 3, True)
    page = Path("runs/report/report.html").read_text(encoding="utf-8")
    assert "preferred by ann, ben" in page
    assert "pull −4.0" in page
    assert "<b>poor</b>" not in page.split("<script")[0]
    assert "None of the policies above was made from this reward model" not in page

    [other] = report_of(recipe, "runs/other", runs=[report])["pulls"]  # of the first recipe's policies
    assert not other["behind_the_policies"]
    assert "None of the policies above was made from this reward model" in Path("runs/other/report.html").read_text()
    assert "pulls" not in report_of(recipe, "runs/without")


def test_without_judgments_a_pair_of_several_raters_is_nobodys(recipe: str) -> None:
    """Preferences from a file name who judged, not who preferred what."""
    rows = [{"prompt": "q?", "chosen": "good", "rejected": "poor"}]
    write_jsonl(Path("pairs.jsonl"), rows)
    _, report = pull_report(Path("runs/b"), "pairs.jsonl", "runs/a/sft")
    [found] = report_of(recipe, runs=[report])["pulls"]
    assert [row["preferred_by"] for row in found["rows"]] == [[], ["ann"], ["lead"]]
    assert "judged by ann, ben, cat" in Path("runs/report/report.html").read_text(encoding="utf-8")


# --- what is refused ---


def test_refuses_an_unfinished_evaluation(recipe: str) -> None:
    (Path(recipe) / "manifest.json").unlink()
    with pytest.raises(RunError, match="runs/a/evaluate is not finished"):
        report_of(recipe)
    assert not Path("runs/report").exists()


def test_refuses_a_missing_evaluation(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder: /nowhere/evaluate"):
        report_of("/nowhere/evaluate", str(tmp_path / "report"))


@pytest.mark.usefixtures("recipe")
def test_refuses_another_stage() -> None:
    with pytest.raises(
        HandoffError, match="runs/a/dpo is a finished 'dpo' run: compare reads the folder of an 'evaluate' run"
    ):
        report_of("runs/a/dpo")


def test_refuses_changed_completions(recipe: str) -> None:
    with (Path(recipe) / "final" / "completions.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n")
    with pytest.raises(HandoffError, match="has changed since the run finished"):
        report_of(recipe)


def test_refuses_a_chain_whose_folder_holds_another_run(recipe: str) -> None:
    manifest = Path("runs/a/dpo/manifest.json")
    manifest.write_text(manifest.read_text(encoding="utf-8").replace(runs.read_manifest("runs/a/dpo")["id"], "f" * 24))
    with pytest.raises(HandoffError, match="runs/a/dpo now holds another run"):
        report_of(recipe)


def test_refuses_a_report_without_the_figures(tmp_path: Path) -> None:
    rows = [answer(0, "sft", 3, "a", 0.0, 0.0)]
    folder = write_evaluation(tmp_path / "evaluate", rows, {}, policies={"sft": {"rubric_mean": "high"}})
    with pytest.raises(HandoffError, match=r"rubric_mean: .*rubric_interval: Field required"):
        report_of(folder, str(tmp_path / "report"))


def test_refuses_a_policy_that_skipped_prompts(tmp_path: Path) -> None:
    rows = [answer(p, "sft", 3, "a", 0.0, 0.0) for p in range(3)] + [
        answer(p, "dpo", 3, "a", 0.0, 0.0) for p in range(2)
    ]
    policies = {name: figures_of(rows[:3], None) for name in ("sft", "dpo")}
    files = {"report.json": {"policies": policies}, "completions.jsonl": rows}
    folder = write_run(tmp_path / "evaluate", "evaluate", {}, files)
    with pytest.raises(HandoffError, match="policy 'dpo' has no completion for 1 of 3 prompts"):
        report_of(folder, str(tmp_path / "report"))


OTHER_ROWS = [{**row, "prompt_id": "prompt-other"} if row["prompt_id"] == "prompt-003" else row for row in hand_rows()]


@pytest.mark.parametrize(
    ("rows", "changed", "reason"),
    [
        (OTHER_ROWS, {}, "the prompts differ .1 only in the first, 1 only in the second."),
        (None, {"yardstick": "judge"}, "the yardsticks differ .rubric and judge."),
        (
            None,
            {"sampling": {"temperature": 0.2, "top_p": 1.0, "top_k": 0, "max_new_tokens": 96, "seed": 1}},
            "temperature: 0.7 and 0.2",
        ),
    ],
)
def test_incomparable_evaluations_never_stand_side_by_side(
    recipe: str, rows: list[dict[str, Any]] | None, changed: dict[str, Any], reason: str
) -> None:
    other = write_evaluation(Path("runs/b/evaluate"), rows or hand_rows(), {}, **changed)
    with pytest.raises(HandoffError, match=f"runs/b/evaluate is not comparable with runs/a/evaluate: .*{reason}"):
        report_of(recipe, against=[other])
    assert not Path("runs/report").exists()


def test_another_seed_stands_beside_the_first_but_not_its_scores(recipe: str) -> None:
    seed = {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "max_new_tokens": 96, "seed": 1}
    reward = write_run(Path("runs/b/reward"), "reward", {}, {"head.json": {"seed": 1}})
    other = write_evaluation(Path("runs/b/evaluate"), hand_rows(), {"reward_model": reward}, sampling=seed)
    against = report_of(recipe, against=[other])["against"]
    assert [one["name"] for one in against["evaluations"]] == ["a", "b"]
    assert [one["seed"] for one in against["evaluations"]] == [0, 1]
    assert against["score_comparable"] is False  # two reward models
    same = write_evaluation(Path("runs/c/evaluate"), hand_rows(), {"reward_model": "runs/a/reward"}, sampling=seed)
    assert report_of(recipe, output="runs/again", against=[same])["against"]["score_comparable"] is True
    assert "do not come from one reward model" in Path("runs/report/report.html").read_text(encoding="utf-8")
    assert "do not come from one reward model" not in Path("runs/again/report.html").read_text(encoding="utf-8")


# --- curves and charts ---


def test_panels_take_a_figure_and_its_held_out_twin_and_lose_nothing() -> None:
    rows: list[dict[str, Any]] = [
        {
            "step": 1,
            "step_seconds": 0.5,
            "loss": 0.69,
            "rewards/margins": 0.0,
            "new/figure": 1,
            "flag": True,
            "note": "x",
        },
        {"step": 1, "loss": 0.7},  # logged again after a resume: the later one counts
        {"step": 2, "loss": float("nan"), "rewards/margins": 0.2},
        {"step": 2, "eval_loss": 0.6, "eval_runtime": 3.0, "eval_num_tokens": 99.0},
        {"step": 3, "loss": None},  # how a recorder writes what is not finite
    ]
    main, further = read_panels(rows, "dpo")
    assert [panel.title for panel in main] == ["Loss", "Margin of implicit rewards"]
    assert [(c.key, c.points, c.held_out, c.skipped) for c in main[0].curves] == [
        ("loss", ((1.0, 0.7),), False, 2),
        ("eval_loss", ((2.0, 0.6),), True, 0),
    ]
    assert [panel.title for panel in further] == ["new/figure"]
    assert main[0].reference == pytest.approx(0.693147, abs=1e-6)
    for config in ({"algorithm": "cpo"}, {"loss_type": ["ipo"]}, {"loss_type": ["sigmoid"], "loss_weights": [2.0]}):
        assert read_panels(rows, "dpo", config)[0][0].reference is None, config


def test_thinning_keeps_the_mean_and_the_bound() -> None:
    points = [(float(step), float(step % 7)) for step in range(1, 1001)]
    thinned, each = thin(points)
    assert len(thinned) <= MAX_POINTS
    assert each == 5
    assert sum(y for _, y in thinned) / len(thinned) == pytest.approx(sum(y for _, y in points) / 1000)


def test_reward_against_kl_leaves_out_what_is_not_a_number() -> None:
    rows = [
        {"step": 1, "objective/kl": 0.0, "objective/scores": 1.0},
        {"step": 2, "objective/kl": float("nan"), "objective/scores": 2.0},
    ]
    assert reward_against_kl([*rows, {"step": 3, "loss": 1.0}]) == [(1.0, 0.0, 1.0)]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"step": st.integers(0, 10**6)},
            optional={key: st.floats(-1e300, 1e300) for key in ("loss", "eval_loss", "rewards/margins")},
        ),
        min_size=1,
        max_size=30,
    )
)
def test_any_figures_can_be_drawn_inside_their_panel(rows: list[dict[str, Any]]) -> None:
    for panel in read_panels(rows, "dpo")[0]:
        drawn = line_chart(panel, ["sft"] * len(panel.curves))
        for points in re.findall(r'points="([^"]+)"', drawn):
            for x, y in (map(float, pair.split(",")) for pair in points.split()):
                assert 46 - 0.1 <= x <= 330.1
                assert 20 - 0.1 <= y <= 148.1


def test_names_in_charts_are_not_crossed_out() -> None:
    """SVG draws in the order of the text. A step's label avoids the whisker of a policy beside the path."""
    rows = [{"step": step, "rewards/accuracies": 0.4 + step / 50} for step in range(1, 21)]
    (panel,) = (one for one in read_panels(rows, "dpo")[0] if one.reference_name)
    drawn = line_chart(panel, ["dpo"], kept=10)
    assert drawn.index("polyline") < drawn.index(f">{panel.reference_name}<") < drawn.index("cursor")
    assert drawn.index("polyline") < drawn.index(">kept<")
    path = [(8.0, 0.0, 0.12), (40.0, 2.3, 0.39)]
    spots = [Spot("SFT", 0.0, -0.33, (-0.67, 0.0), "sft", "square"), Spot("base", 25.1, -0.88, None, "base", "circle")]
    drawn = kl_chart(path, spots, "SFT")
    [ends] = re.findall(r'whisker tone-sft" x1="(.+?)" y1="(.+?)" x2=".+?" y2="(.+?)"', drawn)
    [place] = re.findall(r'x="([^"]+)" y="([^"]+)">step 8<', drawn)
    (x, top, base), (left, bottom) = map(float, ends), map(float, place)
    assert not (left < x < left + 6.6 * len("step 8") and top < bottom + 3 and bottom - 10 < base)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(-1e300, 1e300), min_size=1), st.floats(-9, 9))
def test_ticks_have_labels_of_their_own_at_their_values(values: list[float], magnitude: float) -> None:
    for shown in (values, [value / 1e300 * 10**magnitude for value in values]):
        low, high = spread(shown)
        places = ticks(low, high)
        labels = tick_labels(places)
        assert len(set(labels)) == len(labels) > 0
        assert all(len(label) < 15 for label in labels)
        for place, label in zip(places, labels, strict=True):
            assert low <= place <= high or math.isclose(place, low) or math.isclose(place, high)
            read = float(label.replace("−", "-").replace(",", ""))
            assert abs(read - place) <= (high - low) / 100


@pytest.mark.parametrize(
    ("names", "claim"),
    [
        (["sft"], "Only SFT was evaluated"),
        (["base", "sft"], "base shows no clear difference from SFT"),
        (["sft", "a-1", "b-2"], "a-1 and b-2 show no clear difference from SFT"),
        (["dpo", "ppo"], "DPO and PPO were not compared with SFT"),
    ],
)
def test_any_set_of_policies_makes_a_page(names: list[str], claim: str, tmp_path: Path) -> None:
    rows = [answer(p, name, 3, "a", 0.5, 0.0) for name in names for p in range(30)]
    policies = {name: figures_of(rows[:30], rows[:30] if name != "sft" and "sft" in names else None) for name in names}
    folder = write_evaluation(tmp_path / "evaluate", rows, {}, policies=policies) if "sft" in names else None
    if folder is None:
        files = {"report.json": {"policies": policies}, "completions.jsonl": rows}
        folder = write_run(tmp_path / "evaluate", "evaluate", {}, files)
    report = report_of(folder, str(tmp_path / "report"))
    assert report["headline"]["claim"] == claim
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "Answers side by side" in page
    assert "Training curves" not in page  # no run logged anything: no empty section


def test_ticks_and_numbers() -> None:
    assert ticks(0.0, 1.0) == [0.0, 0.5, 1.0]
    assert tick_labels([0.5, 0.55, 0.6]) == ["0.50", "0.55", "0.60"]
    assert tick_labels([0.69314, 0.69315]) == ["0.69314", "0.69315"]
    assert tick_labels([0.0, 5e-6, 1e-5]) == ["0", "0.5e−5", "1.0e−5"]
    assert tick_labels([0.0, 950_000, 1_000_000]) == ["0", "0.95e6", "1.00e6"]
    assert spread([0.6931472, 0.6931471]) == pytest.approx((0.6238, 0.7625), abs=1e-4)  # a curve that does not move
    assert [number(v) for v in (None, 0, 16, 0.69315, -12.345, 12345.6, 2e-5)] == [
        "–",
        "0",
        "16",
        "0.693",
        "−12.3",
        "12,346",
        "2.0e−5",
    ]
    assert number(-0.0004, 2) == "0.00"


def test_names_that_tell_folders_apart() -> None:
    assert distinct_names(["runs/seed0/evaluate", "runs/seed1/evaluate"]) == ["seed0", "seed1"]
    assert distinct_names(["a/evaluate", "b/c/evaluate"]) == ["a/evaluate", "b/c/evaluate"]


# --- markup ---


def test_everything_is_escaped_but_what_was_built() -> None:
    built = el("p", "<b>&", el("i", 'x"y'), title='"><script>', cls="a")
    assert built == '<p class="a" title="&quot;&gt;&lt;script&gt;">&lt;b&gt;&amp;<i>x&quot;y</i></p>'
    assert visible("a\x00b\u202ec\r\nd\u200b") == "a␀b‹U+202E›c\nd‹U+200B›"


def test_embedded_json_cannot_close_its_element() -> None:
    hostile = {"text": "</script><script>alert(1)</script><!-- \u2028 &"}
    text = embedded_json(hostile)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == hostile


# --- in a browser ---

HOSTILE = (
    "</p></script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'>"
    "![i](https://example.invalid/a.png) **bold** [l](javascript:window.hacked=3)\x00\u202e \u2028 {{7*7}} &lt;"
)


@pytest.fixture
def browser() -> Any:
    playwright = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


def open_report(browser: Any, folder: str, **context: Any) -> tuple[Any, list[str], list[str]]:
    """The page, the addresses it asked for, and its console messages."""
    page = browser.new_page(**context)
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((Path(folder) / "report.html").resolve().as_uri())
    return page, asked, errors


def test_hostile_text_stays_text_and_nothing_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, browser: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = hand_rows()
    for row in rows[8:]:
        row["text"] = f"{row['prompt_id']} {HOSTILE}"
        row["messages"] = [{"role": "system", "content": HOSTILE}, {"role": "user", "content": HOSTILE}]
    rows = [{**row, "messages": rows[-1]["messages"]} for row in rows]
    evaluation = write_recipe(Path("runs/a"), rows)
    report_of(evaluation, title=f"Title {HOSTILE}")
    page, asked, errors = open_report(browser, "runs/report")
    assert page.evaluate("window.hacked") is None
    shown = page.locator(".answer[data-policy=dpo] .turn").first.inner_text()
    assert "</script><script>window.hacked=1</script>" in shown
    assert "**bold**" in shown
    assert "␀‹U+202E›" in shown
    assert page.locator("main script, main img, main a[href^=javascript]").count() == 0
    embedded = json.loads(page.locator("#report").text_content())
    assert embedded["title"] == f"Title {HOSTILE}"
    assert embedded == json.loads(Path("runs/report/report.json").read_text(encoding="utf-8"))
    assert asked == [Path("runs/report/report.html").resolve().as_uri()]
    assert errors == []


def test_page_has_its_parts_and_its_controls_work(recipe: str, browser: Any) -> None:
    report_of(recipe)
    page, asked, errors = open_report(browser, "runs/report", viewport={"width": 1280, "height": 900})
    headings = page.locator("h2").all_inner_texts()
    assert headings == [
        "Policies",
        "What each stage changed",
        "Reward against KL",
        "Training curves",
        "From prompts to preferences",
        "Answers side by side",
        "Lineage",
    ]
    win = page.locator("#figures tbody tr").nth(2).locator("td").nth(1).inner_text()
    assert win.startswith("88%")
    captions = page.locator("#curves figcaption b").all_inner_texts()
    assert {"Loss", "Margin of implicit rewards", "KL from the SFT policy", "strange_metric"} <= {
        *captions,
        *page.locator("#curves details b").all_text_contents(),
    }
    assert page.locator("#curves figure:not(:has(polyline)):not(:has(circle))").count() == 0  # no empty box

    plot = page.locator("#curves .plot").first
    plot.hover(position={"x": 60, "y": 60})
    assert re.match(r"step \d+: loss", page.locator("#curves .readout").first.inner_text())

    page.select_option("#subject", "dpo")
    page.select_option("#order", "gain")
    assert (
        page.locator("#sample-list .prompt").first.inner_text().startswith(("Question 0", "Question 1"))
    )  # +3 criteria each
    page.select_option("#order", "loss")
    assert page.locator("#sample-list .prompt").first.inner_text().startswith("Question 3")  # unchanged: DPO's worst
    page.uncheck("input[value=base]")
    assert page.locator(".answer[data-policy=base]:visible").count() == 0
    assert page.locator(".answer[data-policy=dpo]:visible").count() == 4
    page.fill("#search", "question 2")
    assert page.locator(".sample:visible").count() == 1
    assert len(asked) == 1
    assert errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone(recipe: str, browser: Any, scheme: str) -> None:
    report_of(recipe, against=[write_evaluation(Path("runs/b/evaluate"), hand_rows(), {})])
    page, _, errors = open_report(browser, "runs/report", viewport={"width": 390, "height": 800}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    background, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert contrast(background, ink) > 7
    soft = page.evaluate("getComputedStyle(document.querySelector('.note-text')).color")
    assert contrast(background, soft) > 4.5
    assert errors == []


def contrast(first: str, second: str) -> float:
    """WCAG 2's contrast ratio of two `rgb(…)` colours."""
    lights = []
    for colour in (first, second):
        channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_page_without_a_script_shows_everything(recipe: str, browser: Any) -> None:
    report_of(recipe)
    page, _, _ = open_report(browser, "runs/report", java_script_enabled=False)
    assert page.locator(".sample:visible").count() == 4
    assert page.locator(".controls:visible").count() == 0


# --- the command ---


def run_command(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """`tiebreak …` as a process in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "tiebreak.command.cli", *words],
        cwd=folder,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
    )


def test_the_command_prints_a_table_where_the_report_lies_and_what_is_next(recipe: str, tmp_path: Path) -> None:
    words = [
        "compare",
        "--config",
        str(REPOSITORY / "configs/quickstart/compare.yaml"),
        "--evaluation",
        recipe,
        "--output",
        "runs/cli",
    ]
    done = run_command(tmp_path, *words, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    printed = done.stdout.decode("ascii")
    top, *rows = printed[printed.index("   policy") :].splitlines()[:9]
    table, meanings = [top, *rows[::2]], rows[1::2]
    assert max(map(len, [*table, *meanings])) <= 100
    assert len({len(line) for line in table}) == 1  # columns stand under one another
    assert [line[:9].strip() for line in table] == ["policy", "base", "SFT", "DPO", "PPO"]
    assert "88%" in table[3]
    assert meanings[1] == "     the baseline: the others are compared with it"
    assert meanings[2].startswith("     too few prompts to compare it with SFT (3 won, 0 lost, 1 tied): about ")
    assert (tmp_path / "runs/cli/report.html").as_uri() in printed
    by_hand = "label.yaml --simulate false --pairs runs/a/sample --output runs/a/label-by-hand"
    assert printed.splitlines()[-1].startswith("next: tiebreak label --config ")
    assert printed.splitlines()[-1].endswith(by_hand)
    assert (tmp_path / "runs/cli/manifest.json").is_file()


def test_pairs_that_people_judged_are_not_suggested_to_people(recipe: str) -> None:
    config, links = CompareConfig(output="out", evaluation=recipe), read_chain(recipe)
    for kinds in (["simulated"], ["human", "simulated"], []):
        assert judge_by_hand(config, links, kinds).endswith("--output runs/a/label-by-hand")
    assert judge_by_hand(config, links, ["human"]) == ""


def test_the_command_reports_a_bad_input_in_one_message(recipe: str, tmp_path: Path) -> None:
    done = run_command(tmp_path, "compare", "--evaluation", "runs/a/sft", "--output", "runs/cli")
    assert done.returncode == 1
    assert done.stderr.decode().startswith("error: runs/a/sft is a finished 'sft' run")
    assert "Traceback" not in done.stderr.decode()
    one = run_command(tmp_path, "compare", "--evaluation", recipe, "--output", "runs/cli", "--against", "runs/nix")
    assert b"error: no such run folder: runs/nix" in one.stderr  # one word for a list is a list of one


def test_the_table_marks_what_is_better_and_says_what_each_row_means() -> None:
    def row(verdict: str | None, p: float | None = None, won: int = 0, lost: int = 0) -> dict[str, Any]:
        counts = None if verdict is None else {"wins": won, "losses": lost, "ties": 40 - won - lost}
        return {
            "rubric_mean": 0.5,
            "rubric_interval": [0.4, 0.6],
            "win_rate_vs_sft": None if counts is None else 0.5 + (won - lost) / 80,
            "win_rate_interval": None,
            "score_mean": None,
            "kl_per_sequence": None,
            "length_tokens_mean": 12.0,
            "n_prompts": 40,
            "outcomes": counts,
            **({"verdict": verdict, "p_value": p} if verdict else {}),
        }

    policies = {
        "sft": row(None),
        "dpo": row("better", 0.0004, won=30, lost=5),
        "ppo": row("worse", 0.02, won=5, lost=17),
        "kto": row("undecided", 0.5, won=11, lost=8),
        "base": row("", won=2, lost=20),
    }
    report = {"baseline": "sft", "policies": policies}
    lines = summary_table(report)[1:]
    assert [line[0] for line in lines[::2]] == [" ", "✓", "✗", "≈", " "]
    assert [line[0] for line in summary_table(report, marks=False)[1::2]] == [" ", "+", "-", "=", " "]
    assert [line.strip() for line in lines[1::2]] == [
        "the baseline: the others are compared with it",
        "better than SFT: 30 won, 5 lost, 5 tied, p < 0.001",
        "worse than SFT: 5 won, 17 lost, 18 tied, p = 0.02",
        "no clear difference from SFT: 11 won, 8 lost, 21 tied, p = 0.50",
        "against SFT: 2 won, 20 lost, 18 tied",
    ]
    older = {**policies["dpo"], "outcomes": None}  # reports once had no counts
    assert summary_table({"baseline": "sft", "policies": {"dpo": older}})[2].strip() == "wins 81% against SFT"
    coloured = summary_table(report, colours=True)
    assert coloured[3].startswith("\x1b[32m✓\x1b[0m  \x1b[1mDPO\x1b[0m")


def test_table_of_a_report_with_gaps_stays_within_100_columns() -> None:
    row = {
        "rubric_mean": 0.5,
        "rubric_interval": [0.4, 0.6],
        "win_rate_vs_sft": None,
        "win_rate_interval": None,
        "score_mean": None,
        "kl_per_sequence": None,
        "length_tokens_mean": 12.0,
        "n_prompts": 100000,
    }
    lines = summary_table(
        {
            "baseline": "sft",
            "policies": {"a-policy-with-a-very-long-name": row, "sft": {**row, "kl_per_sequence": 12345.6}},
        }
    )
    assert max(map(len, lines)) <= 100
