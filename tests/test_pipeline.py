"""The whole recipe on a tiny model: uncut, and with kill -9 in every stage; both end in the same report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import REPOSITORY, run_command, write_config

STAGES = ("prepare", "sft", "sample", "label", "reward", "dpo", "ppo", "evaluate", "compare")


def write_recipe(folder: Path, model: Path) -> Path:
    """The quickstart's own files, made small enough for a random two-layer model."""
    training = {
        "training.max_steps": 3,
        "training.per_device_batch_size": 2,
        "training.save_steps": 1,
        "training.learning_rate": 1e-3,
    }
    short = {"sampling.max_new_tokens": 8}
    overrides = {
        "prepare": {"policy": str(model)},
        "sft": {"policy": str(model), "adapter.r": 4, "adapter.alpha": 8, **training, **short},
        "sample": {"max_prompts": 16, "batch_size": 8, "sampling": [{"temperature": 1.0, "max_new_tokens": 8}]},
        # a random model's answers are all alike to the rubric: raters who err nearly always tell them apart
        "label": {"simulate.error_rate": 0.9, "overlap": 1, "simulate.raters": 1},
        "reward": training,
        "dpo": {**training, **short},
        "ppo": {
            **training,
            **short,
            "episodes_per_rollout": 2,
            "rollouts": 3,
            "ppo_epochs": 1,
            "max_validation_prompts": 2,
            "stop_when_all_cut_off": False,
        },
        "evaluate": {"policies.base": str(model), "max_prompts": 4, "batch_size": 2, **short},
        "compare": {},
    }
    stages = [{"stage": s, "config": f"configs/quickstart/{s}.yaml", "overrides": overrides[s]} for s in STAGES]
    return write_config(
        folder / "pipeline.yaml", name="tiny", from_root="runs/quickstart", root=folder / "runs", stages=stages
    )


def start(recipe: Path) -> subprocess.Popen[bytes]:
    with (recipe.parent / "killed.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tiebreak.cli", "run", "--config", str(recipe)],
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )


def kill_once_there(recipe: Path, marker: str) -> bool:
    """Start the recipe and kill -9 all of it as soon as a file like `marker` is there; False if it ended first."""
    process = start(recipe)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if any((recipe.parent / "runs").glob(marker)):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    raise TimeoutError(f"{marker} never came: {(recipe.parent / 'killed.log').read_text()[-3000:]}")


def report(folder: Path) -> dict[str, object]:
    values = json.loads((folder / "runs" / "compare" / "report.json").read_text())
    values.pop("timings")
    return values


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("uncut")
    result = run_command("run", "--config", write_recipe(folder, tiny_model), timeout=900)
    assert result.returncode == 0, result.stderr[-6000:]
    return folder


def test_the_report_has_every_policy(uncut: Path) -> None:
    policies = json.loads((uncut / "runs" / "compare" / "report.json").read_text())["policies"]
    assert list(policies) == ["base", "sft", "dpo", "ppo"]
    for name, figures in policies.items():
        assert figures["n_prompts"] == 4
        assert 0.0 <= figures["rubric_mean"] <= 1.0
        assert (figures["win_rate_vs_sft"] is None) == (name == "sft")
    assert policies["sft"]["kl_per_sequence"] == pytest.approx(0.0, abs=1e-3)
    assert (uncut / "runs" / "compare" / "report.html").stat().st_size > 10_000


def test_a_second_run_skips_every_stage_and_says_why(uncut: Path) -> None:
    started = time.monotonic()
    result = run_command("run", "--config", uncut / "pipeline.yaml")
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stderr.count("fresh, skipped") == len(STAGES)
    assert time.monotonic() - started < 60


def test_a_changed_key_is_not_overwritten_in_silence(uncut: Path) -> None:
    recipe = uncut / "changed.yaml"
    recipe.write_text(
        (uncut / "pipeline.yaml").read_text().replace("simulate.error_rate: 0.9", "simulate.error_rate: 0.8")
    )
    before = (uncut / "runs" / "label" / "manifest.json").read_bytes()
    result = run_command("run", "--config", recipe)
    assert result.returncode == 1
    assert "label" in result.stderr
    assert "--replace" in result.stderr
    assert (uncut / "runs" / "label" / "manifest.json").read_bytes() == before


def test_kill_9_in_every_stage_ends_in_the_same_report(uncut: Path, tmp_path: Path, tiny_model: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model)
    markers = (
        "sft/checkpoints/checkpoint-1/COMPLETE",
        "sample/partial/*/00001.json",
        "label/run.json",
        "reward/checkpoints/checkpoint-2/COMPLETE",
        "dpo/checkpoints/checkpoint-1/trainer_state.json",
        "ppo/checkpoints/checkpoint-2/COMPLETE",
        "evaluate/partial/answers-of-dpo/*.json",
    )
    killed = [marker for marker in markers if kill_once_there(recipe, marker)]
    assert len(killed) >= 6, f"only {killed} were cut off"
    result = run_command("run", "--config", recipe, timeout=900)
    assert result.returncode == 0, result.stderr[-6000:]
    assert report(tmp_path) == report(uncut)
