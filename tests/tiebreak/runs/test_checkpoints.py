"""A checkpoint that lost or changed a file is left out for the one before it: by a list of files, and by shape without."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import run_here, write_checkpoint

from tiebreak.runs.checkpoints import HASHED_BYTES, delete_old, fault_of, mark_complete, marked
from tiebreak.runs.run import read_metrics


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.mark.parametrize("damage", [cut_in_half, empty, Path.unlink, flip_a_bit])
@pytest.mark.parametrize("file", FILES)
def test_any_damage_to_any_file_shows(tmp_path: Path, file: str, damage: Callable[[Path], None]) -> None:
    checkpoint = write_checkpoint(tmp_path, 4)
    mark_complete(checkpoint, {})
    assert fault_of(checkpoint) == ""
    damage(checkpoint / file)
    assert file in fault_of(checkpoint)


@pytest.mark.parametrize("damage", [cut_in_half, empty, Path.unlink])
@pytest.mark.parametrize("file", FILES)
def test_a_checkpoint_of_an_older_version_is_looked_at_by_its_shape(
    tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    checkpoint = write_checkpoint(tmp_path, 4)
    assert fault_of(checkpoint) == ""
    damage(checkpoint / file)
    assert fault_of(checkpoint)


def test_a_broken_marker_and_a_step_past_the_end_are_faults(tmp_path: Path) -> None:
    torn = write_checkpoint(tmp_path, 4)
    (torn / "COMPLETE").write_text('{"files": {')
    assert "COMPLETE" in fault_of(torn)
    # transformers took another step each time that a run was killed after its last one
    past = write_checkpoint(tmp_path, 5, last=3)
    assert "past the run's end at step 3" in fault_of(past)
    assert [one.name for one in marked(tmp_path)] == ["checkpoint-5", "checkpoint-4"]


def test_a_damaged_checkpoint_pushes_no_intact_one_out(tmp_path: Path) -> None:
    def steps() -> list[int]:
        return sorted(int(one.name.rpartition("-")[2]) for one in tmp_path.iterdir())

    for step in (1, 2, 3):
        mark_complete(write_checkpoint(tmp_path, step), {"key": "ours"})
        if step == 2:
            cut_in_half(tmp_path / "checkpoint-2" / "optimizer.pt")
        delete_old(tmp_path, "ours")
    assert steps() == [1, 2, 3]
    mark_complete(write_checkpoint(tmp_path, 4), {"key": "another run's"})
    delete_old(tmp_path, "ours")
    assert steps() == [1, 2, 3, 4]
    mark_complete(write_checkpoint(tmp_path, 5), {"key": "ours"})
    (tmp_path / "checkpoint-6").mkdir()  # being written
    delete_old(tmp_path, "ours")
    assert steps() == [3, 4, 5, 6]


def test_large_files_are_compared_by_size(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, 4)
    with (checkpoint / "large.bin").open("wb") as file:
        file.truncate(HASHED_BYTES + 1)
    mark_complete(checkpoint, {})
    assert json.loads((checkpoint / "COMPLETE").read_text())["files"]["large.bin"] == [HASHED_BYTES + 1, None]
    with (checkpoint / "large.bin").open("r+b") as file:
        file.truncate(HASHED_BYTES)
    assert "large.bin has 67108864 of 67108865 bytes" in fault_of(checkpoint)


def test_a_damaged_checkpoint_is_never_trained_from(finished_recipe: Path, tmp_path: Path) -> None:
    """The newest lost its optimizer, the one before has half its weights: DPO starts again, to the same weights."""
    folder = tmp_path / "dpo"
    shutil.copytree(finished_recipe / "runs" / "dpo", folder)
    whole = (folder / "final" / "adapter_model.safetensors").read_bytes()
    (folder / "manifest.json").unlink()
    (folder / "checkpoints" / "checkpoint-3" / "optimizer.pt").unlink()
    words = ("dpo", "--config", folder / "config.resolved.yaml", "--output", folder)
    status, message = run_here(*words)
    assert status == 0, message
    assert "checkpoint-3 is damaged and skipped: optimizer.pt is missing" in message
    assert f"resuming from {folder / 'checkpoints' / 'checkpoint-2'}" in message
    assert (folder / "final" / "adapter_model.safetensors").read_bytes() == whole
    (folder / "manifest.json").unlink()
    for step in (2, 3):
        cut_in_half(folder / "checkpoints" / f"checkpoint-{step}" / "adapter_model.safetensors")
    status, message = run_here(*words)
    assert status == 0, message
    assert "resuming from" not in message
    assert (folder / "final" / "adapter_model.safetensors").read_bytes() == whole
    assert [row["step"] for row in read_metrics(folder) if "loss" in row] == [1, 2, 3]


def test_a_checkpoint_of_another_run_is_never_trained_from(finished_recipe: Path, tmp_path: Path) -> None:
    """Of the same stage, data and steps, but another seed: every file of it is whole."""
    folder, other = tmp_path / "dpo", tmp_path / "other"
    shutil.copytree(finished_recipe / "runs" / "dpo", folder)
    whole = (folder / "final" / "adapter_model.safetensors").read_bytes()
    words = ("dpo", "--config", folder / "config.resolved.yaml", "--output")
    status, message = run_here(*words, other, "--training.seed", "5")
    assert status == 0, message
    (folder / "manifest.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "checkpoint-3")
    shutil.copytree(other / "checkpoints" / "checkpoint-3", folder / "checkpoints" / "checkpoint-3")
    status, message = run_here(*words, folder)
    assert status == 0, message
    assert "checkpoint-3 is from another run, and skipped" in message
    assert f"resuming from {folder / 'checkpoints' / 'checkpoint-2'}" in message
    assert (folder / "final" / "adapter_model.safetensors").read_bytes() == whole
