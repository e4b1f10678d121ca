"""Ten steps of each stage on two processes, under ZeRO-1, -2, -3 and FSDP2, against one process:  make spread

The losses agree to 1e-4 (1 × 4 rows and 2 × 2), and the final folder is an ordinary one: the stage's own fresh process
has loaded it alone. PPO's are compared with two processes that hold the whole model each. Not in the suite: sixteen
launches take minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from support import REPOSITORY, run_command, write_rows

from tiebreak.runs.run import read_manifest, read_metrics
from tiebreak.stages import STAGES as STAGE_MODULES

STAGES = ("sft", "reward", "dpo", "ppo")
SPREADS = ("cpu_zero1", "cpu_zero2", "cpu_zero3", "fsdp2")
TRAINING = ("--training.max-steps", 10, "--training.learning-rate", 1e-3, "--training.max-length-tokens", 128)
ADAPTER = ("--adapter.r", 4, "--adapter.alpha", 8, "--tracking.mode", "disabled")


def words_of(stage: str, folder: Path, model: Path) -> tuple[Any, ...]:
    """A stage on rows of several lengths; PPO against a function, which needs no reward model."""
    prompts = [f"Why is {n} so cold?{' Say more.' * (n % 4)}" for n in range(40)]
    chosen, rejected = ([f"Cool it.{' Wait.' * (n % 3)}" for n in range(40)], "It depends.")
    if stage == "sft":
        rows = [{"prompt": p, "completion": c, "split": "train"} for p, c in zip(prompts, chosen, strict=True)]
        own: tuple[Any, ...] = ("--demonstrations", write_rows(folder / "rows.jsonl", rows))
    elif stage == "ppo":
        (folder / "length.py").write_text(
            "def grade(prompts, completions, **_):\n    return [len(c) for c in completions]\n"
        )
        rows = [{"prompt": p, "split": "train"} for p in prompts]
        own = (
            *("--prompts", write_rows(folder / "rows.jsonl", rows), "--rewards", '[{"function": "length:grade"}]'),
            *("--episodes-per-rollout", 8, "--ppo-epochs", 1, "--rollouts", 5, "--sampling.max-new-tokens", 8),
            *("--max-validation-prompts", 0, "--stop-when-all-cut-off", "false"),
        )
    else:
        rows = [
            {"prompt": p, "chosen": c, "rejected": rejected, "split": "train"}
            for p, c in zip(prompts, chosen, strict=True)
        ]
        own = ("--preferences", write_rows(folder / "rows.jsonl", rows))
        own += ("--garbage-prompts", 0) if stage == "reward" else ()
    return (stage, "--policy", model, *own, *TRAINING, *ADAPTER)


def run(words: tuple[Any, ...], spread: str, folder: Path) -> list[float]:
    """The losses of a run."""
    size = 4 if spread == "alone" else 2
    words = (*words, "--output", folder / spread, "--training.per-device-batch-size", size)
    if spread in ("fsdp2", "ddp"):
        module = ("-m", STAGE_MODULES[words[0]].module, *words[1:])
        script = (REPOSITORY / "tests/sharded/fsdp2.py", *words) if spread == "fsdp2" else module
        done = subprocess.run(
            [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2", *map(str, script)],
            cwd=folder, env={**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{folder}"}, capture_output=True,
            text=True, timeout=900, check=False,
        )  # fmt: skip
    else:
        launch = () if spread == "alone" else ("--accelerate", REPOSITORY / f"configs/accelerate/{spread}.yaml")
        paths = {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{folder}"}
        done = run_command(*words, *launch, cwd=folder, environment=paths, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [float(row["loss"]) for row in read_metrics(folder / spread) if row.get("loss") is not None]
    assert losses, done.stderr[-3000:]
    return losses


@pytest.mark.parametrize("stage", STAGES)
def test_ten_steps(stage: str, tmp_path: Path, tiny_model: Path) -> None:
    words = words_of(stage, tmp_path, tiny_model)
    plain = "ddp" if stage == "ppo" else "alone"  # PPO shuffles a rollout's episodes on each process by itself
    alone = run(words, plain, tmp_path)
    saved = load_file(tmp_path / plain / "final" / "adapter_model.safetensors")
    for spread in SPREADS:
        if stage == "ppo" and spread == "fsdp2":  # refused: see runs.placement.require_own_pace
            continue
        losses = run(words, spread, tmp_path)
        apart = max(abs(a - b) for a, b in zip(alone, losses, strict=True))
        print(f"{stage} {spread}: losses apart by {apart:.1e} at most")
        assert apart < 1e-4, spread
        whole = load_file(tmp_path / spread / "final" / "adapter_model.safetensors")
        assert {name: tensor.shape for name, tensor in whole.items()} == {n: t.shape for n, t in saved.items()}, spread
        assert read_manifest(tmp_path / spread)["probe_difference"] <= 1e-5
