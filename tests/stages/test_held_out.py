"""Held-out rows that are all dropped: a training continues without its held-out figures, and says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import TINY_TRAINING, run_here, write_config, write_rows

QUIET = {"tracking": {"mode": "disabled"}}
TRAINING = {**TINY_TRAINING, "max_steps": 1}


def preferences(folder: Path, held_out: str) -> Path:
    """Four to train on, and one held out with this answer."""
    rows: list[dict[str, Any]] = [
        {"prompt": f"Why is {crop} pale?", "chosen": "Feed it.", "rejected": "No idea.", "split": "train"}
        for crop in ("basil", "mint", "kale", "dill")
    ]
    last = {"prompt": "Why is cress pale?", "chosen": held_out, "rejected": "No idea.", "split": "validation"}
    return write_rows(folder / "preferences.jsonl", [*rows, last])


@pytest.mark.parametrize(
    ("stage", "held_out", "drops", "reason"),
    [
        ("reward", "Feed it. " * 99, "refuse", "every one of the 1 preferences is longer than"),
        ("dpo", "Feed it.<|im_end|>", "drop", "1 of 1 preferences cannot be rendered as they are"),
    ],
)
def test_a_training_needs_no_held_out_row(
    stage: str, held_out: str, drops: str, reason: str, tiny_model: Path, tmp_path: Path
) -> None:
    config = write_config(
        tmp_path / "config.yaml",
        output=tmp_path / "run",
        policy=tiny_model,
        preferences=preferences(tmp_path, held_out),
        on_bad_row=drops,
        adapter={"r": 2},
        training=TRAINING,
        **QUIET,
    )
    status, message = run_here(stage, "--config", config)
    assert status == 0, message
    assert f"nothing is held out for validation: {reason}" in message
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["counts"] == {"train": 4, "validation": 0}
