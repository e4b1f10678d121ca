"""A finished training stays finished, whatever fails in what only reports on it; the same command makes that again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from support import read_rows, run_here

from tiebreak.models.find import find_model
from tiebreak.models.reload import FreshProcess
from tiebreak.runs.run import read_manifest, read_metrics

ASKED = {"messages": [{"role": "user", "content": "Why?"}], "tools": []}


def command(recipe: Path, stage: str, folder: Path, *words: str) -> tuple[int, str]:
    """A stage of the finished recipe, written elsewhere."""
    return run_here(stage, "--config", recipe / "runs" / stage / "config.resolved.yaml", "--output", folder, *words)


def reports(folder: Path) -> dict[str, Any]:
    """The state of each report, or the error it failed with."""
    found = json.loads((folder / "reports.json").read_text())
    return {name: one["error"] or one["state"] for name, one in found.items()}


def fail(error: BaseException) -> Any:
    def body(*_: Any) -> Any:
        raise error

    return body


def test_samples_and_a_merged_copy_that_fail_lose_nothing(
    finished_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = tmp_path / "sft", finished_recipe / "runs" / "sft"
    with monkeypatch.context() as broken:
        broken.setattr(FreshProcess, "samples", fail(RuntimeError("IndexError: list index out of range")))
        broken.setattr(FreshProcess, "merge", fail(OSError(28, "No space left on device")))
        status, message = command(finished_recipe, "sft", folder)
    assert status == 0
    assert "warning: samples failed (IndexError: list index out of range). The run is finished" in message
    assert reports(folder) == {
        "samples": "IndexError: list index out of range",
        "merged": "OSError: [Errno 28] No space left on device",
    }
    finished, logged = read_manifest(folder), read_metrics(folder)
    assert not any("merged" in name for name in finished["outputs"])
    assert find_model(str(folder)).folder == folder / "final"  # what later stages do first
    weights = (folder / "final" / "adapter_model.safetensors").read_bytes()
    assert weights == (whole / "final" / "adapter_model.safetensors").read_bytes()

    status, message = command(finished_recipe, "sft", folder)
    assert status == 0
    assert "making what it lacks: samples, merged" in message
    assert reports(folder) == {"samples": "done", "merged": "done"}
    assert read_rows(folder / "samples.jsonl") == read_rows(whole / "samples.jsonl")
    assert read_metrics(folder) == logged
    again = read_manifest(folder)
    merged = folder / "final" / "merged" / "model.safetensors"
    assert again["outputs"]["final/merged/model.safetensors"] == hashlib.sha256(merged.read_bytes()).hexdigest()
    assert again["outputs"] == read_manifest(whole)["outputs"]
    assert again["id"] == finished["id"] == read_manifest(whole)["id"]
    assert "nothing to do" in command(finished_recipe, "sft", folder)[1]

    (folder / "samples.jsonl").unlink()
    states = json.loads((folder / "reports.json").read_text())
    states["samples"] |= {"state": "failed", "error": "it was lost"}
    (folder / "reports.json").write_text(json.dumps(states))
    status, message = run_here("sample", "--probe", folder)
    assert status == 0, message
    assert re.search(r"the largest difference from its training is [0-9.]+e[-+]\d\d", message)
    assert read_rows(folder / "samples.jsonl") == read_rows(whole / "samples.jsonl")
    assert reports(folder) == {"samples": "done", "merged": "done"}
    assert read_manifest(folder) == again


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--probe takes one finished run"),
        (("nowhere",), "no finished run in nowhere"),
        (("prepare",), "has no final/probe.json: give the folder of a finished training run"),
    ],
)
def test_what_has_no_probe_is_refused(words: tuple[str, ...], message: str, finished_recipe: Path) -> None:
    given = [finished_recipe / "runs" / word if word == "prepare" else word for word in words]
    for form in (("sample", "--probe"), ("sample", "probe")):
        status, printed = run_here(*form, *given)
        assert status in (1, 2)
        assert message in printed


def test_a_reward_report_that_fails_leaves_the_model_and_its_scale(
    finished_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = tmp_path / "reward", finished_recipe / "runs" / "reward"
    with monkeypatch.context() as broken:
        broken.setattr("reward.report.build_page", fail(ZeroDivisionError("division by zero")))
        status, message = command(finished_recipe, "reward", folder)
    assert status == 0
    assert "warning: report failed (ZeroDivisionError: division by zero)" in message
    finished = read_manifest(folder)
    for name in ("adapter_model.safetensors", "score_scale.json", "trained_prompts.json", "validation_scores.jsonl"):
        assert finished["outputs"][f"final/{name}"] == read_manifest(whole)["outputs"][f"final/{name}"]
    assert not (folder / "report.html").exists()
    assert "held_out_accuracy" not in finished["metrics"]

    status, _ = command(finished_recipe, "reward", folder)
    assert status == 0
    again = read_manifest(folder)
    assert (folder / "final" / "report.json").read_bytes() == (whole / "final" / "report.json").read_bytes()
    assert (folder / "report.html").is_file()
    assert again["metrics"] == read_manifest(whole)["metrics"]
    assert again["metrics"].keys() > finished["metrics"].keys()
    assert again["outputs"] == read_manifest(whole)["outputs"]
    assert again["id"] == finished["id"] == read_manifest(whole)["id"]


@pytest.mark.parametrize("stage", ["dpo", "ppo"])
def test_a_kill_after_the_manifest_costs_the_reports_alone(
    finished_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    folder = tmp_path / stage
    with monkeypatch.context() as broken:
        broken.setattr(FreshProcess, "samples", fail(KeyboardInterrupt()))
        assert command(finished_recipe, stage, folder)[0] == 130
    finished = read_manifest(folder)
    assert reports(folder) == {"samples": "planned"}
    assert command(finished_recipe, stage, folder)[0] == 0
    assert reports(folder) == {"samples": "done"}
    assert read_manifest(folder) == finished
    assert len(read_rows(folder / "samples.jsonl")) > 0


def test_an_evaluation_at_the_end_that_fails_is_reported(
    finished_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sft.train.PackedSFTTrainer.evaluate", fail(IndexError("list index out of range")))
    status, message = command(finished_recipe, "sft", tmp_path / "sft", "--merge", "false")
    assert status == 0
    assert "warning: the evaluation at the end failed (IndexError: list index out of range)" in message
    assert "eval_loss" not in read_manifest(tmp_path / "sft")["metrics"]


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_the_training_has_left_its_memory_when_the_saved_model_is_loaded(
    finished_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    from transformers import Trainer

    trainers: list[Trainer] = []
    held: list[int] = []
    train, verify = Trainer.train, FreshProcess.verify

    def training(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        trainers.append(self)
        return train(self, *args, **kwargs)

    def verifying(self: FreshProcess, *args: Any) -> Any:
        (trainer,) = trainers
        held.append(sum(one.numel() for one in (*trainer.model.parameters(), *trainer.model.buffers())))
        held.append(len(trainer.optimizer.state))
        return verify(self, *args)

    monkeypatch.setattr(Trainer, "train", training)
    monkeypatch.setattr(FreshProcess, "verify", verifying)
    assert command(finished_recipe, stage, tmp_path / stage)[0] == 0
    assert held == [0, 0]
    assert read_manifest(tmp_path / stage)["id"] == read_manifest(finished_recipe / "runs" / stage)["id"]


def test_a_fresh_process_that_is_killed_is_started_again(finished_recipe: Path) -> None:
    final = finished_recipe / "runs" / "sft" / "final"
    with FreshProcess(final) as process:
        assert process.verify()[0] <= 1e-5
        running = process._process
        assert running is not None
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        (answer,) = process.samples([ASKED], {"max_new_tokens": 4})
        assert isinstance(answer, str)
        with pytest.raises(RuntimeError, match="ValidationError"):
            process.samples([ASKED], {"max_new_tokens": 0})
