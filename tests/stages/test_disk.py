"""A disk that fills or turns read-only in mid-run: a message says what to do, and the same command ends as an uncut run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support import end_process, run_here

from tiebreak.runs.reports import read_reports
from tiebreak.runs.run import Run, read_manifest
from tiebreak.training import callbacks
from tiebreak.training import stage as stages


class Disk:
    """A file system of 64 MB."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read_only: Path | None = None

    def fill(self) -> None:
        with (self.folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"x" * 4096)

    def turn_read_only(self, folder: Path) -> None:
        """By another one on it, as the kernel turns none read-only in which a file is open."""
        mount("-o", "ro", "tiebreak-test", folder)
        self.read_only = folder

    def recover(self) -> None:
        if self.read_only:
            subprocess.run(["umount", "-l", str(self.read_only)], check=True)
            self.read_only = None
        (self.folder / "filler").unlink(missing_ok=True)


def mount(*words: str | Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", *map(str, words)], capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a file system")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-o", "size=64m", "tiebreak-test", folder)
    made = Disk(folder)
    yield made
    made.recover()
    subprocess.run(["umount", "-l", str(folder)], check=True)


def before(patched: pytest.MonkeyPatch, owner: Any, name: str, call: int, do: Callable[[], None]) -> None:
    """Do something before the call with that number of a function."""
    original = getattr(owner, name)
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            do()
        return original(*args, **kwargs)

    patched.setattr(owner, name, counted)


PLACES = {
    "checkpoints": (callbacks.RunCallback, "on_step_end", 2),
    "final": (stages, "probe_values", 1),
    "manifest": (Run, "finish", 1),
    "reports": (stages, "make_reports", 1),
}
"""before what: the second checkpoint, the model, …"""
EVERY = [(stage, place, "full") for stage in ("sft", "reward", "dpo", "ppo") for place in PLACES]
EVERY += [
    (stage, place, "read-only") for stage in ("sft", "reward", "dpo", "ppo") for place in ("checkpoints", "final")
]
OFTEN = [
    ("dpo", "checkpoints", "full"),
    ("ppo", "manifest", "full"),
    ("reward", "reports", "full"),
    ("sft", "final", "read-only"),
    ("dpo", "checkpoints", "read-only"),
]
CASES = [pytest.param(*case, marks=[] if case in OFTEN else pytest.mark.proof) for case in EVERY]


@pytest.mark.parametrize(("stage", "place", "fault"), CASES)
def test_nothing_is_lost_by_a_disk_that_takes_no_more(
    finished_recipe: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, stage: str, place: str, fault: str
) -> None:
    whole, folder = finished_recipe / "runs" / stage, disk.folder / stage
    words = (stage, "--config", whole / "config.resolved.yaml", "--output", folder)
    with monkeypatch.context() as patched:
        before(patched, *PLACES[place], disk.fill if fault == "full" else lambda: disk.turn_read_only(folder / place))
        status, message = run_here(*words)
    disk.recover()
    assert "Traceback" not in message
    assert "This is a bug" not in message
    if place == "reports":
        assert status == 0
        assert "reports.json is not writable (No space left on device)" in message
    else:
        what = ("no space left on the device", "run the same command again") if fault == "full" else ("read-only",)
        assert status == 1
        assert all(words in message for words in what), message
    end_process(folder)
    status, message = run_here(*words)
    assert status == 0, message
    assert ("resuming from" in message) == (place != "reports")
    for file in (whole / "final").glob("*.safetensors"):
        assert (folder / "final" / file.name).read_bytes() == file.read_bytes()
    assert read_manifest(folder)["id"] == read_manifest(whole)["id"]
    assert all(one.state == "done" for one in read_reports(folder).values())


def test_a_damaged_checkpoint_before_a_disk_that_fills(
    finished_recipe: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is torn, the third lacks its marker: the first is still there."""
    whole, folder = finished_recipe / "runs" / "dpo", disk.folder / "dpo"
    words = ("dpo", "--config", whole / "config.resolved.yaml", "--output", folder)

    def tear() -> None:
        os.truncate(folder / "checkpoints" / "checkpoint-2" / "optimizer.pt", 100)
        disk.fill()

    with monkeypatch.context() as patched:
        before(patched, callbacks, "mark_complete", 3, tear)
        assert run_here(*words)[0] == 1
    disk.recover()
    end_process(folder)
    status, message = run_here(*words)
    assert status == 0, message
    assert "checkpoint-2 is damaged and skipped" in message
    assert f"resuming from {folder / 'checkpoints' / 'checkpoint-1'}" in message
    weights = [(one / "final" / "adapter_model.safetensors").read_bytes() for one in (folder, whole)]
    assert weights[0] == weights[1]
