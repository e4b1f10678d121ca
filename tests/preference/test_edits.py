"""Raters' edits as training data, by key: to the bit as if the label run's preferences held them."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_world import World, write_preferences
from support import read_rows, run_here

from tiebreak.config import StageConfig, TrackingConfig
from tiebreak.files import write_jsonl
from tiebreak.records import Preference
from tiebreak.runs.run import start_run


def label_run(folder: Path, rows: list[Preference], edits: list[Preference]) -> Path:
    """A finished label run."""
    run = start_run(StageConfig(output=str(folder), tracking=TrackingConfig(mode="disabled")), "label", {})
    write_jsonl(run.final / "preferences.jsonl", rows)
    if edits:
        write_jsonl(run.final / "edit_preferences.jsonl", edits)
    run.finish()
    return folder


def train(stage: str, world: World, output: Path, data: Path, *words: str) -> tuple[int, str]:
    return run_here(
        *(stage, "--output", output, "--policy", world.policy, "--preferences", data, *words),
        *("--tracking.mode", "disabled", "--adapter.r", "2", "--adapter.alpha", "4"),
        *("--training.max-length-tokens", "32", "--training.learning-rate", "0.01", "--training.max-steps", "2"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo", "reward"])
def test_edits_are_learned_from_by_key(stage: str, world: World, tmp_path: Path) -> None:
    raw = read_rows(write_preferences(tmp_path / "preferences.jsonl", count=8))
    rows = [Preference.model_validate({**row, "split": "train"}) for row in raw]
    edits = [row.model_copy(update={"kind": "human", "chosen": rows[0].chosen}) for row in rows[1:4]]
    label, joined = label_run(tmp_path / "label", rows, edits), label_run(tmp_path / "joined", [*rows, *edits], [])
    weights = []
    for name, data, words in (
        ("edits", label, ["--use-edits", "true"]),
        ("joined", joined, []),
        ("without", label, []),
    ):
        status, message = train(stage, world, tmp_path / f"out-{name}", data, *words)
        assert status == 0, message
        weights.append((tmp_path / f"out-{name}" / "final" / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]
    status, message = train(stage, world, tmp_path / "none", joined, "--use-edits", "true")
    assert status == 1
    assert "use_edits" in message
    assert "holds no edit_preferences.jsonl, which a label run has where raters edited answers" in message


def test_an_algorithm_without_pairs_refuses_them(world: World, tmp_path: Path) -> None:
    status, message = run_here(
        *("dpo", "--algorithm", "kto", "--policy", world.policy, "--preferences", world.preferences),
        *("--output", tmp_path / "kto", "--use-edits", "true"),
    )
    assert status == 2
    assert "use_edits: --algorithm kto has no such thing" in message
