"""A run that was cut off after its last step, in the final evaluation or the reload, ends there: however often it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support import run_here

from tiebreak.runs import read_metrics

CASES = {
    "sft": ("sft", "--training.lr_scheduler", "constant_with_warmup", "--merge", "false"),
    "reward": ("reward", "--training.lr_scheduler", "constant_with_warmup"),
    "dpo": ("dpo", "--training.lr_scheduler", "cosine", "--training.eval_steps", "2"),
    "ppo": ("ppo", "--training.lr_scheduler", "constant_with_warmup"),
    "rloo": ("ppo", "--algorithm", "rloo", "--training.lr_scheduler", "constant_with_warmup"),
    "grpo": ("ppo", "--algorithm", "grpo", "--training.lr_scheduler", "constant_with_warmup"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_cut_off_after_its_last_step_ends_there(
    finished_recipe: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    stage, *options = CASES[case]
    config, folder = finished_recipe / "runs" / stage / "config.resolved.yaml", tmp_path / case
    if case in ("rloo", "grpo"):
        options += ["--completions_per_prompt", "2"]
    words = (stage, "--config", config, "--output", folder, *options)
    status, message = run_here(*words)
    assert status == 0, message
    weights = {path.name: path.read_bytes() for path in (folder / "final").glob("*.safetensors")}
    rows = read_metrics(folder)
    steps = [checkpoint.name for checkpoint in sorted((folder / "checkpoints").iterdir())]
    for _ in range(2):
        (folder / "manifest.json").unlink()
        shutil.rmtree(folder / "final")
        status, message = run_here(*words)
        assert status == 0, message
        assert {path.name: path.read_bytes() for path in (folder / "final").glob("*.safetensors")} == weights
        assert [checkpoint.name for checkpoint in sorted((folder / "checkpoints").iterdir())] == steps
        timeless = [{k: v for k, v in row.items() if "second" not in k and "runtime" not in k} for row in rows]
        again = read_metrics(folder)
        assert [{k: v for k, v in row.items() if "second" not in k and "runtime" not in k} for row in again] == timeless
