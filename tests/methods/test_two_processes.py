"""Methods that are no LoRA, on two processes: ZeRO-2, ZeRO-3 and whole copies train the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from method_cell import TRAINING, write_data
from support import succeed

from tiebreak.runs.run import read_manifest, read_metrics

METHODS: dict[str, dict[str, Any]] = {
    "prompt": {"method": "prompt", "virtual_tokens": 4},
    "ptuning": {"method": "ptuning", "virtual_tokens": 4},
    "prefix": {"method": "prefix", "virtual_tokens": 4},
    "full": {"method": "full"},
}
LAUNCHES = {"cpu": ("--num_processes", "2"), "cpu_zero2": (), "cpu_zero3": ()}


def losses(folder: Path, spread: str, *words: Any) -> list[float]:
    """Of three steps; what was saved has been reloaded by the stage itself."""
    training = {**TRAINING, "per_device_batch_size": 2}
    flags = [word for key, value in training.items() for word in (f"--training.{key}", value)]
    output = folder / spread
    flags += ["--output", output, "--sampling.max-new-tokens", 2, "--tracking.mode", "disabled"]
    succeed(*words, *flags, "--accelerate", spread, *LAUNCHES[spread])
    assert read_manifest(output)["probe_difference"] <= 1e-5
    return [row["loss"] for row in read_metrics(output) if "loss" in row]


@pytest.mark.proof
@pytest.mark.parametrize("method", METHODS)
def test_methods_train_the_same_however_they_are_spread(method: str, tmp_path: Path, tiny_model: Path) -> None:
    write_data(tmp_path)
    words: list[Any] = ["sft", "--policy", tiny_model, "--demonstrations", tmp_path / "demonstrations.jsonl"]
    words += ["--validation-share", 0]
    words += [word for key, value in METHODS[method].items() for word in (f"--adapter.{key}", value)]
    wanted, *others = (losses(tmp_path, spread, *words) for spread in LAUNCHES)
    assert len(wanted) == 3
    for found in others:
        assert found == pytest.approx(wanted, rel=1e-5)
