"""A loss that is NaN or infinite ends a run before its step is taken, and the rows of its batch are named."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import end_process, on_two_processes, read_rows, run_here
from trl import GRPOTrainer

from tiebreak.runs.run import read_metrics
from tiebreak.training.finite import NotFiniteLossError, StepLosses, name_rows
from tiebreak.training.passes import StepInPasses

GROUPS = ("--algorithm", "grpo", "--completions_per_prompt", "2")
CASES = {
    "sft": ("sft", (), "demonstrations"),
    "reward": ("reward", (), "preferences"),
    "dpo": ("dpo", (), "preferences"),
    "ppo": ("ppo", (), "prompts"),
    "grpo": ("ppo", GROUPS, "prompts"),
}


def poison(patched: pytest.MonkeyPatch, case: str, value: float) -> None:
    """Multiply the losses of the second step."""
    if case == "ppo":
        from preference.ppo import trainer as module

        value_loss, calls = module.value_loss, []

        def poisoned_value_loss(*args: Any) -> Any:
            calls.append(1)
            loss, clipped = value_loss(*args)
            return (loss * value if len(calls) == 2 else loss), clipped

        patched.setattr(module, "value_loss", poisoned_value_loss)
        return
    owner: Any = GRPOTrainer if case == "grpo" else StepInPasses
    original = owner.compute_loss

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        return loss * value if self.state.global_step == 1 and self._in_step else loss

    patched.setattr(owner, "compute_loss", compute_loss)


@pytest.mark.parametrize("case", CASES)
def test_a_step_with_such_a_loss_is_not_taken_and_its_rows_are_named(
    finished_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    stage, options, rows = CASES[case]
    config = finished_recipe / "runs" / stage / "config.resolved.yaml"
    words = (stage, "--config", config, "--output", tmp_path / stage, *options, "--tracking.mode", "disabled")
    with monkeypatch.context() as patched:
        poison(patched, case, math.nan if case != "dpo" else math.inf)
        status, message = run_here(*words)
    assert status == 1, message
    reason = " ".join(message.rpartition("error: ")[2].split())
    assert reason.startswith(
        "the loss of step 2 is not a finite number, so it was not taken; the checkpoints before it are in"
    )
    assert f"look at the {rows} of its batch, from {finished_recipe}" in reason
    named = re.findall(r"row (\d+) of (\d+), “([^”…]+)", reason)
    assert 1 <= len(named) <= 2  # of a batch of two
    asked = [row["messages"][-1]["content"] for row in read_rows(finished_recipe / "runs/prepare/final/prompts.jsonl")]
    for _, _, words_of_row in named:  # less what all rows begin with
        assert any(words_of_row[:10] in question for question in asked)
    assert [row["step"] for row in read_metrics(tmp_path / stage) if "loss" in row] in ([1], [])
    kept = [one.name for one in (tmp_path / stage / "checkpoints").iterdir()]
    assert kept in (["checkpoint-1"], [])  # PPO's are on the borders of rollouts
    if case in ("sft", "ppo"):
        end_process(tmp_path / stage)
        assert run_here(*words)[0] == 0
        weights = [
            root / stage / "final" / "adapter_model.safetensors" for root in (tmp_path, finished_recipe / "runs")
        ]
        assert weights[0].read_bytes() == weights[1].read_bytes()


class Decoder:
    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "x" * len(ids)


def test_rows_are_named_by_number_once_and_by_their_words_where_none_is_found() -> None:
    trained_on = [[1, 2], [3], [1, 2, 3]]
    assert name_rows([[1, 2, 3], [3], [9], [3]], trained_on, Decoder()) == ["row 2 of 3, “x”", "row 3 of 3, “xxx”"]
    assert name_rows([[9, 9], [8, 8], [7]], trained_on, Decoder()) == ["“xx”", "“x”"]
    assert name_rows([[n] for n in range(20)], [[n] for n in range(20)], Decoder())[-1] == "and 4 more"


def test_only_the_passes_of_that_loss_count_and_the_next_step_starts_anew() -> None:
    losses = StepLosses()
    for value, ids in ((1.0, [5, 6]), (math.inf, [7, 0])):
        mask = torch.tensor([[1, int(ids[1] > 0)]])
        losses.add(torch.tensor(value), {"input_ids": torch.tensor([ids]), "attention_mask": mask})
    with pytest.raises(NotFiniteLossError) as error:
        losses.require_finite(3, 1)
    assert (error.value.step, error.value.sequences) == (3, [[7]])
    losses.require_finite(4, 1)


@pytest.mark.proof
def test_all_processes_stop_with_the_rows_of_the_one() -> None:
    on_two_processes("ddp", "tests/tiebreak/training/finite_on_two.py")


@pytest.mark.proof
@pytest.mark.parametrize("launcher", ["zero2", "zero3"])
def test_nothing_of_such_a_step_is_saved_under_deepspeed(launcher: str, finished_recipe: Path, tmp_path: Path) -> None:
    """Its engine applies a gradient before anyone can look: the weights in memory are lost, those on the disk are not."""
    config = finished_recipe / "runs" / "sft" / "config.resolved.yaml"
    words = ("--config", config, "--output", tmp_path / "sft", "--tracking.mode", "disabled", "--merge", "false")
    with pytest.raises(AssertionError, match="the loss of step 2 is not a finite number, so it was not taken") as ended:
        on_two_processes(launcher, "tests/tiebreak/training/nan_under_zero.py", *words)
    assert "look at the demonstrations of its batch" in str(ended.value)
    assert not (tmp_path / "sft" / "manifest.json").exists()
    (kept,) = (tmp_path / "sft" / "checkpoints").iterdir()
    assert kept.name == "checkpoint-1"
    weights = load_file(kept / "adapter_model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    assert [row["step"] for row in read_metrics(tmp_path / "sft") if "loss" in row] == [1]
