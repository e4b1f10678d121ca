"""The audit trail of a folder: each stage that ran below it, with time, user, inputs and result.

    runs/quickstart/audit.jsonl      an event a line; `tiebreak audit begin runs/quickstart` makes it

Lines are only ever appended. Each has the hash of the line before it, so that a line that is changed, removed or put in
between breaks the chain. Whoever can write the file can also write a whole new chain: keep the last hash elsewhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiebreak.errors import RunError
from tiebreak.hashing import hash_file, hash_text

TRAIL = "audit.jsonl"
DEPTH = 4
"""how many folders above a run's a trail is looked for"""
FIRST = "0" * 64
MANIFEST = "manifest.json"


def trail_above(folder: Path) -> Path | None:
    """The trail that a run is recorded in: the nearest above it; None if there is none."""
    parents = folder.resolve().parents[:DEPTH]
    return next((parent / TRAIL for parent in parents if (parent / TRAIL).is_file()), None)


def begin_trail(folder: Path) -> Path:
    """Make a folder's trail.

    Raises:
        RunError: it has one.
    """
    file = folder / TRAIL
    if file.exists():
        raise RunError(f"{file} exists: runs below {folder} are recorded in it already")
    folder.mkdir(parents=True, exist_ok=True)
    file.touch()
    append(file, {"event": "begun"})
    return file


def append(file: Path, event: Mapping[str, Any]) -> None:
    """Append an event, on disk before this returns. Processes take turns."""
    with file.open("r+", encoding="utf-8") as trail:
        fcntl.flock(trail, fcntl.LOCK_EX)
        lines = trail.read().splitlines()
        row = {
            "number": len(lines),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "user": _user(),
            "host": platform.node(),
            **event,
            "previous": json.loads(lines[-1])["hash"] if lines else FIRST,
        }
        trail.seek(0, os.SEEK_END)
        trail.write(json.dumps(row | {"hash": _hash(row)}, ensure_ascii=False, sort_keys=True) + "\n")
        trail.flush()
        os.fsync(trail.fileno())


def record(folder: Path, event: str, facts: Mapping[str, Any]) -> None:
    """Record what happened to a run, if there is a trail above it.

    Raises:
        RunError: the trail cannot be written: a stage does not run past it.
    """
    file = trail_above(folder)
    if file is None:
        return
    place = os.path.relpath(folder.resolve(), file.parent)
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    try:
        append(file, {"event": event, "folder": place, "command": command, **facts})
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"the audit trail {file} cannot be written ({error}): 'tiebreak audit verify' checks it"
        ) from error


def _user() -> str:
    with contextlib.suppress(KeyError, OSError, ImportError):
        return getpass.getuser()
    return str(os.getuid())


def _hash(row: Mapping[str, Any]) -> str:
    return hash_text(json.dumps(row, ensure_ascii=False, sort_keys=True))


# --- verifying ---


@dataclass(frozen=True)
class Trail:
    """A trail that was read, with its faults."""

    file: Path
    events: list[dict[str, Any]]
    faults: list[str]

    @property
    def head(self) -> str:
        """The last line's hash."""
        return str(self.events[-1]["hash"]) if self.events else FIRST


def verify(folder: Path, head: str | None = None) -> Trail:
    """Check the chain, and the finished runs against it.

    Args:
        head: a hash that was kept elsewhere, which must be in the trail.

    Raises:
        RunError: there is no trail.
    """
    file = folder / TRAIL
    if not file.is_file():
        raise RunError(f"no audit trail in {folder}: tiebreak audit begin {folder}")
    events: list[dict[str, Any]] = []
    faults: list[str] = []
    before = FIRST
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
        try:
            row = json.loads(line)
            stated = row.pop("hash")
        except (ValueError, KeyError, AttributeError):
            faults.append(f"line {number + 1} is no event")
            continue
        if _hash(row) != stated:
            faults.append(f"line {number + 1} was changed: its hash is another")
        if row.get("previous") != before or row.get("number") != number:
            faults.append(f"line {number + 1} does not follow the line before it: lines were removed, added or moved")
        before = stated
        events.append(row | {"hash": stated})
    if head and head not in [row["hash"] for row in events]:
        faults.append(f"no line has the hash {head}: the end was cut off, or the trail was written anew")
    faults += _run_faults(folder, events)
    return Trail(file, events, faults)


def _run_faults(folder: Path, events: list[dict[str, Any]]) -> Iterator[str]:
    finished = {row["folder"]: row for row in events if row.get("event") == "finished"}
    for place, row in finished.items():
        manifest = folder / place / MANIFEST
        if not manifest.is_file():
            yield f"{place} was finished as {row['id']}, and is not there"
            continue
        identity = json.loads(manifest.read_text(encoding="utf-8")).get("id")
        if identity != row["id"]:
            yield f"{place} was finished as {row['id']}, and holds {identity}"
            continue
        yield from _output_faults(folder, place, row.get("outputs", {}))
    recorded_folders = {(folder / place).resolve() for place in finished}
    below = sorted(folder.glob(f"*/{MANIFEST}")) + sorted(folder.glob(f"*/*/{MANIFEST}"))
    for manifest in below:
        if (
            manifest.parent.resolve() not in recorded_folders
            and trail_above(manifest.parent) == (folder / TRAIL).resolve()
        ):
            yield f"{manifest.parent.relative_to(folder)} is a finished run that the trail does not have"


def _output_faults(folder: Path, place: str, outputs: Mapping[str, str]) -> Iterator[str]:
    for name, digest in outputs.items():
        path = folder / place / name
        if path.is_file() and hash_file(path) != digest:
            yield f"{place}/{name} has changed since its stage finished"
        elif not path.is_file() and not name.startswith("final/merged/"):  # which may be removed to save space
            yield f"{place}/{name} is not there"
