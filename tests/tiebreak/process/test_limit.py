"""`max_time`: a command stops before it, its work kept, with status 80, and the same command ends as an unlimited one."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import end_process, run_command, run_here, succeed, write_config
from transformers import Trainer

import preference.sample
from preference.ppo.trainer import PPOTrainer
from tiebreak.command import pipeline
from tiebreak.process import limit
from tiebreak.runs.run import read_manifest


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [("8h", 28800), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("2d", 172800), ("0.5h", 1800)],
)
def test_durations(duration: str, seconds: float) -> None:
    assert limit.seconds_of(duration) == seconds


@pytest.mark.parametrize("duration", ["", "8", "8 h", "h", "0m", "1h30", "-1h", "soon"])
def test_what_is_no_duration_is_refused(duration: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a duration such as 8h"):
        limit.seconds_of(duration)
    config = write_config(tmp_path / "run.yaml", name="r", stages=[{"stage": "sft", "config": "x"}], max_time=duration)
    status, message = run_here("run", "--config", config)
    assert status == 2
    assert "max_time: give a duration such as 8h, 90m or 1h30m" in message


def test_the_earlier_limit_counts_and_ends_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "now", lambda: 1000.0)
    with limit.limited_to("1h"):
        with limit.limited_to("2h"):
            assert limit.remaining() == 3600
        with limit.limited_to("1m"):
            assert limit.remaining() == 60
        with limit.limited_to(None):
            assert limit.remaining() == 3600
    assert limit.remaining() == math.inf


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [0.0]
    monkeypatch.setattr(limit, "now", lambda: seconds[0])
    return seconds


def take(patched: pytest.MonkeyPatch, owner: Any, name: str, clock: list[float], seconds: float) -> None:
    """Let each call of a function take so long."""
    original: Callable[..., Any] = getattr(owner, name)

    def slow(*args: Any, **kwargs: Any) -> Any:
        clock[0] += seconds
        return original(*args, **kwargs)

    patched.setattr(owner, name, slow)


def test_a_training_stops_while_a_step_and_a_checkpoint_still_fit(
    finished_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    """Steps take 100 s. After the first, 200 s of 5 minutes are left, and 1.5 · (100 + 60) may be needed; 320 s of 7
    minutes are enough for another step, 220 s after it are not."""
    folder, whole = tmp_path / "dpo", finished_recipe / "runs" / "dpo"
    take(monkeypatch, Trainer, "training_step", clock, 100)
    words = ("dpo", "--config", whole / "config.resolved.yaml", "--output", folder, "--training.save_steps", 50)
    status, message = run_here(*words, "--max_time", "5m")
    assert status == 80, message
    assert message.endswith(
        f"stopped before max_time; step 1 of 3 is in {folder / 'checkpoints' / 'checkpoint-1'}: the same command resumes\n"
    )
    assert limit.remaining() == math.inf
    end_process(folder)
    status, message = run_here(*words, "--max-time", "1h")  # another limit is not another run
    assert status == 0, message
    assert f"resuming from {folder / 'checkpoints' / 'checkpoint-1'}" in message
    weights = [(one / "final" / "adapter_model.safetensors").read_bytes() for one in (folder, whole)]
    assert weights[0] == weights[1]
    short = (*words[:4], tmp_path / "other", *words[5:])
    assert run_here(*short, "--max_time", "7m")[0] == 80
    assert [one.name for one in (tmp_path / "other" / "checkpoints").iterdir()] == ["checkpoint-2"]


def test_ppo_stops_within_a_rollout_and_ends_as_an_unlimited_run(
    finished_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    """Updates take 100 s, and a rollout has two. After three of them, 200 s of 500 are left: less than 1.5 · (100 + 60)."""
    folder, whole = tmp_path / "ppo", finished_recipe / "runs" / "ppo"
    take(monkeypatch, PPOTrainer, "training_step", clock, 100)
    words = ("ppo", "--config", whole / "config.resolved.yaml", "--output", folder, "--training.save_steps", 50)
    status, message = run_here(*words, "--max_time", "500s")
    assert status == 80, message
    assert "stopped before max_time; step 3 of 6 is in" in message
    assert [one.name for one in (folder / "checkpoints").iterdir()] == ["checkpoint-3"]
    end_process(folder)
    status, message = run_here(*words)
    assert status == 0, message
    weights = [(one / "final" / "adapter_model.safetensors").read_bytes() for one in (folder, whole)]
    assert weights[0] == weights[1]


@pytest.mark.proof
def test_two_processes_stop_together_and_end_as_an_unlimited_run(finished_recipe: Path, tmp_path: Path) -> None:
    """A step and a checkpoint are allowed 90 s at first: a launch limited to that stops after its first step."""
    config = finished_recipe / "runs" / "sft" / "config.resolved.yaml"
    words = ("sft", "--config", config, "--accelerate", "cpu_zero2", "--tracking.mode", "disabled")
    words += ("--training.save-steps", "100")
    succeed(*words, "--output", tmp_path / "whole")
    stopped = run_command(*words, "--output", tmp_path / "cut", "--max-time", "90s")
    assert stopped.returncode == 80, stopped.stderr[-3000:]
    assert stopped.stderr.count("stopped before max_time; step 1 of 3 is in") == 1
    assert [one.parent.name for one in (tmp_path / "cut" / "checkpoints").glob("*/COMPLETE")] == ["checkpoint-1"]
    succeed(*words, "--output", tmp_path / "cut")
    weights = [(tmp_path / name / "final" / "adapter_model.safetensors").read_bytes() for name in ("cut", "whole")]
    assert weights[0] == weights[1]


def test_a_recipes_limit_reaches_its_stages_and_their_status_is_passed_on(
    finished_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    left: list[float] = []

    def stage(_entry: Any, words: list[str], _environment: dict[str, str]) -> int:
        clock[0] += 50
        left.append(limit.remaining())
        return 80 if words[0] == "sample" and len(left) == 2 else 0

    monkeypatch.setattr(pipeline, "_in_a_process", stage)
    monkeypatch.setattr(pipeline, "stage_state", lambda entry, words: (tmp_path / entry.stage, "new", ""))
    files = {name: finished_recipe / "runs" / name / "config.resolved.yaml" for name in ("prepare", "sample", "dpo")}
    stages = [{"stage": name, "config": file} for name, file in files.items()]
    recipe = write_config(tmp_path / "recipe.yaml", name="r", group="g", stages=stages)
    status, message = run_here("run", "--config", recipe, "--max_time", "3m")
    assert (status, left) == (80, [130, 80])
    assert "stopped before max_time; in stage sample; finished stages are kept: the same command resumes" in message
    status, message = run_here("run", "--config", recipe, "--max_time", "100s")
    assert (status, left[2:]) == (80, [50, 0])
    assert "stopped before max_time; before stage dpo; finished stages are kept" in message


def test_sampling_stops_between_batches(
    finished_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    whole = finished_recipe / "runs" / "sample"
    words = ("sample", "--config", whole / "config.resolved.yaml", "--output", tmp_path / "sample")
    words += ("--batch_size", "4", "--tracking.mode", "disabled")
    take(monkeypatch, preference.sample, "sample_completions", clock, 100)
    with limit.limited_to("150s"):
        status, message = run_here(*words)
    assert status == 80, message
    assert "1 batches of sampling 1 of 1 are kept" in message
    assert limit.ENDS_AT not in os.environ
    end_process(tmp_path / "sample")
    assert run_here(*words)[0] == 0
    assert read_manifest(tmp_path / "sample")["counts"] == read_manifest(whole)["counts"]
