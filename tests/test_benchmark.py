"""The benchmark on a tiny model: its contestants run, its losses agree, its table and its file say the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY


def test_the_benchmark_measures_ours_beside_trls_in_fresh_processes(tiny_model: Path, tmp_path: Path) -> None:
    written = tmp_path / "results.json"
    words = ["--only", "dpo, multi-turn", "--rows", "2", "--steps", "3", "--contestants", "trl"]
    done = subprocess.run(
        [sys.executable, "benchmarks/training.py", *words, "--model", str(tiny_model), "--results", str(written)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = json.loads(written.read_text())
    ours, theirs = result["contestants"]["ours"], result["contestants"]["trl"]
    assert ours["losses"][0] == pytest.approx(0.6931, abs=1e-3)  # ln 2
    assert len(set(ours["losses"])) == 3
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-3)
    assert result["losses_agree"]
    assert result["ours / trl"]["throughput"] == pytest.approx(
        (theirs["step_seconds"] + theirs["setup_seconds"]) / ours["step_seconds"]
    )
    assert ours["padded_tokens_a_row"] > ours["tokens_a_row"]
    assert 0 < ours["matrix_product_share"] < 1.2
    assert f"| {ours['peak_mib']:.0f} |" in " ".join(done.stdout.split("\n"))


def ppo_result(model: Path, written: Path, *others: str) -> tuple[dict[str, Any], str]:
    """What the case `ppo` writes of ours and of `others`, and what it prints: two rollouts of eight episodes."""
    words = ["--only", "ppo", "--rows", "2", "--rollouts", "2", "--contestants", *others]
    done = subprocess.run(
        [sys.executable, "benchmarks/training.py", *words, "--model", str(model), "--results", str(written)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = json.loads(written.read_text())
    assert result["case"] == "ppo, multi-turn"
    return result, done.stdout


def test_ppo_is_measured_a_rollout_at_a_time_and_its_memory_beside_sfts(tiny_model: Path, tmp_path: Path) -> None:
    result, printed = ppo_result(tiny_model, tmp_path / "results.json", "our sft")
    ours, sft = result["contestants"]["ours"], result["contestants"]["our sft"]
    assert len(ours["steps"]) == len(ours["losses"]) == 2
    assert ours["step_seconds"] == ours["steps"][1]
    assert set(ours["phases"]) == {"generate", "assess", "update"}
    assert min(ours["phases"].values()) > 0
    assert sum(ours["phases"].values()) == pytest.approx(ours["step_seconds"], rel=0.05)
    assert ours["first_rollout"]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert ours["first_rollout"]["score_deviation"] > 0.01
    assert ours["losses"][0] != ours["losses"][1]
    # completions are of 32 tokens, and SFT's conversations begin with the same prompts
    prompts = ours["tokens_a_row"] - 32
    assert 0 < prompts < sft["tokens_a_row"]
    assert ours["tokens_per_second"] * ours["step_seconds"] == pytest.approx(8 * (prompts + 32))
    assert len(sft["losses"]) == 4
    assert result["ours / our sft"] == {"memory": pytest.approx(ours["peak_mib"] / sft["peak_mib"])}
    met = result["ours / our sft"]["memory"] <= 1.3
    assert f"memory ÷ our sft ≤ 1.3: {'met' if met else 'MISSED'}" in printed


def test_ppo_and_trls_begin_alike(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same reward model (else a side refuses to train), no KL, scores of one mean; TRL pays for padding."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import ppo

    if not ppo.environment_is_made():
        pytest.skip("TRL 1.12's environment is not there: benchmarks/training.py --only ppo makes it")
    result, printed = ppo_result(tiny_model, tmp_path / "results.json", ppo.TRL)
    ours, theirs = result["contestants"]["ours"], result["contestants"][ppo.TRL]
    assert theirs["first_rollout"]["kl"] == pytest.approx(0.0, abs=1e-3)
    assert result["first_kls_are_zero"]
    assert result["first_scores_agree"]
    assert theirs["tokens_a_row"] == ours["tokens_a_row"] < theirs["padded_tokens_a_row"]
    assert len(theirs["steps"]) == 2
    assert sum(theirs["phases"].values()) == pytest.approx(theirs["step_seconds"], rel=0.05)
    ratio = theirs["step_seconds"] / ours["step_seconds"]
    assert result[f"ours / {ppo.TRL}"]["throughput"] == pytest.approx(ratio)
    assert f"| {ratio:.2f} |" in printed


def test_unlike_beginnings_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: deviations 3 and 4 over 25 episodes make a standard error of 1."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import ppo
    from measuring import Measured
    from rollouts import Job, require_same_scores

    def began(kl: float, mean: float, deviation: float) -> Measured:
        first = {"kl": kl, "score_mean": mean, "score_deviation": deviation}
        return Measured([], 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, first_rollout=first)

    told = ppo.first_rollouts({"ours": began(0.0, 2.0, 3.0), ppo.TRL: began(2e-6, 0.5, 4.0)}, 25)
    assert told["first_scores_apart_in_standard_errors"] == pytest.approx(1.5)
    assert told["first_kls_are_zero"]
    assert told["first_scores_agree"]
    told = ppo.first_rollouts({"ours": began(0.0, 5.0, 3.0), ppo.TRL: began(-0.2, 0.5, 4.0)}, 25)
    assert not told["first_kls_are_zero"]
    assert not told["first_scores_agree"]
    job = Job("", "", "", "", "", [[1], [2]], [0.5, -20.0], episodes_a_step=1, rollouts=2)
    require_same_scores([0.5005, -20.01], job)
    with pytest.raises(SystemExit, match=r"scores a prompt -20\.100000 here, and -20\.000000"):
        require_same_scores([0.5, -20.1], job)
