"""The checkpoint that a run resumes from: the newest one that is complete and intact.

A checkpoint gets a file COMPLETE once all of it is on disk; it lists the files with their sizes and, for small ones, their
hashes. If a file is missing or has changed since, the previous checkpoint is used instead. So the two newest *intact*
ones are kept, whatever else is there.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tiebreak.files import write_text_atomically
from tiebreak.hashing import hash_file

MARKER = "COMPLETE"
HASHED_BYTES = 64 * 2**20
"""larger files are compared by size only: a checkpoint is written many times, and read once"""
KEPT = 2
STATE = "trainer_state.json"
_ZIPPED = (".pt", ".pth", ".bin")


def mark_complete(folder: Path, facts: Mapping[str, Any]) -> None:
    """Fsync every file of a checkpoint, then write its marker with `facts`."""
    files = {}
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        size = path.stat().st_size
        files[str(path.relative_to(folder))] = [size, hash_file(path) if size <= HASHED_BYTES else None]
    write_text_atomically(folder / MARKER, json.dumps({**facts, "files": files}))


def marked(folder: Path) -> list[Path]:
    """The folder's checkpoints with a marker, newest first."""
    found = [marker.parent for marker in folder.glob(f"checkpoint-*/{MARKER}")]
    return sorted(found, key=step_of, reverse=True)


def delete_old(folder: Path, key: str) -> None:
    """Delete the checkpoints before the `KEPT` newest intact ones of the run with this key. Damaged ones do not count."""
    intact = 0
    for checkpoint in marked(folder):
        if intact == KEPT:
            delete(checkpoint)
        elif not fault_of(checkpoint) and facts_of(checkpoint).get("key", key) == key:
            intact += 1


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint, its marker first: what is left of it, if this is interrupted, is not a checkpoint."""
    with suppress(OSError):  # one too many does no harm
        (checkpoint / MARKER).unlink(missing_ok=True)
        shutil.rmtree(checkpoint)


def step_of(checkpoint: Path) -> int:
    """The optimizer step of a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


def facts_of(checkpoint: Path) -> dict[str, Any]:
    """The marker's facts; none from older versions."""
    text = (checkpoint / MARKER).read_text(encoding="utf-8")
    facts = json.loads(text) if text else {}
    return facts if isinstance(facts, dict) else {}


def fault_of(checkpoint: Path) -> str:
    """Why a checkpoint cannot be resumed from; empty if it can."""
    try:
        listed = facts_of(checkpoint).get("files")
        return _listed_fault(checkpoint, listed) or _shape_fault(checkpoint, has_list=listed is not None)
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
            return f"{name} has {path.stat().st_size} of {size} bytes"
        if digest is not None and hash_file(path) != digest:
            return f"{name} has changed"
    return ""


def _shape_fault(checkpoint: Path, *, has_list: bool) -> str:
    """Errors visible without a list of files, and of files too large to be hashed.

    Args:
        has_list: whether there is a list.
    """
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    if state["global_step"] != step_of(checkpoint):
        return f"{STATE} is from step {state['global_step']}"
    if 0 < state["max_steps"] < state["global_step"]:
        return f"it is past the run's end at step {state['max_steps']}"
    files = [] if has_list else list(_files(checkpoint))
    names = {path.name for path in files}
    if files and not any(name.endswith(".safetensors") for name in names):
        return "it has no weights"
    if files and not any(path.is_dir() for path in checkpoint.glob("global_step*")):  # DeepSpeed writes its own there
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
    if path.suffix in _ZIPPED:  # torch.save's format: the table of contents is at the end
        return zipfile.is_zipfile(path)
    return size > 0


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MARKER)
