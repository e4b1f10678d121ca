"""Which checkpoint a run continues from: the newest that is complete, and whole.

A checkpoint gets a file named COMPLETE once everything in it is on disk: its files, with their sizes and, where they are
small, their hashes. One that lost or changed a file since is left out for the one before it, and never trained from.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tiebreak.hashing import hash_file
from tiebreak.records import write_text_atomically

MARKER = "COMPLETE"
HASHED_BYTES = 64 * 2**20
"""of larger files the size alone is compared: a checkpoint is written many times, and read once"""
STATE = "trainer_state.json"
_ZIPPED = (".pt", ".pth", ".bin")


def mark_complete(folder: Path, facts: Mapping[str, Any]) -> None:
    """Fsync every file of a checkpoint, then write its marker, `facts` in it."""
    files = {}
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        size = path.stat().st_size
        files[str(path.relative_to(folder))] = [size, hash_file(path) if size <= HASHED_BYTES else None]
    write_text_atomically(folder / MARKER, json.dumps({**facts, "files": files}))


def marked(folder: Path) -> list[Path]:
    """The checkpoints in a folder that were complete once, newest first."""
    found = [marker.parent for marker in folder.glob(f"checkpoint-*/{MARKER}")]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The optimizer step at which it was written."""
    return int(checkpoint.name.rpartition("-")[2])


def facts_of(checkpoint: Path) -> dict[str, Any]:
    """What its marker says; nothing where an older version wrote it."""
    text = (checkpoint / MARKER).read_text(encoding="utf-8")
    facts = json.loads(text) if text else {}
    return facts if isinstance(facts, dict) else {}


def fault_of(checkpoint: Path) -> str:
    """Why a checkpoint cannot be continued from; empty where it can."""
    try:
        listed = facts_of(checkpoint).get("files")
        return _listed_fault(checkpoint, listed) or _shape_fault(checkpoint, known=listed is not None)
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except (ValueError, KeyError, TypeError) as error:
        return f"its {MARKER} or {STATE} is broken ({error})"


def _listed_fault(checkpoint: Path, listed: Mapping[str, Any] | None) -> str:
    for name, (size, digest) in (listed or {}).items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes of {size}"
        if digest is not None and hash_file(path) != digest:
            return f"{name} has changed"
    return ""


def _shape_fault(checkpoint: Path, *, known: bool) -> str:
    """Faults that show without a list of files, and those of the files that are too large to be hashed.

    Args:
        known: whether there is a list.
    """
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    if state["global_step"] != step_of(checkpoint):
        return f"{STATE} is of step {state['global_step']}"
    if 0 < state["max_steps"] < state["global_step"]:
        return f"it is past the end of the run, of {state['max_steps']} steps"
    files = [] if known else list(_files(checkpoint))
    names = {path.name for path in files}
    if files and not any(name.endswith(".safetensors") for name in names):
        return "it has no weights"
    if files and not any(path.is_dir() for path in checkpoint.glob("global_step*")):  # DeepSpeed keeps its own there
        lacking = [name for name in ("optimizer.pt", "scheduler.pt") if name not in names]
        lacking += [] if any(name.startswith("rng_state") for name in names) else ["rng_state.pth"]
        if lacking:
            return f"{lacking[0]} is missing"
    return next((f"{path.name} is cut short" for path in files if not _is_whole(path)), "")


def _is_whole(path: Path) -> bool:
    size = path.stat().st_size
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            head = int.from_bytes(file.read(8), "little")
            if size < 8 + head:
                return False
            tensors = {k: v for k, v in json.loads(file.read(head)).items() if k != "__metadata__"}
        return size == 8 + head + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    if path.suffix in _ZIPPED:  # as torch.save writes them: the table of contents stands at the end
        return zipfile.is_zipfile(path)
    return size > 0


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MARKER)
