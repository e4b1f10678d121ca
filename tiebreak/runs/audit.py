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
COMMAND = "TIEBREAK_COMMAND"
"""variable with a stage's command"""
FIRST = "0" * 64
MANIFEST = "manifest.json"


def trail_above(folder: Path) -> Path | None:
    """The trail that a run is recorded in: the nearest above it; None if there is none."""
    parents = folder.resolve().parents[:DEPTH]
    return next((parent / TRAIL for parent in parents if (parent / TRAIL).is_file()), None)


def begin_trail(folder: Path) -> tuple[Path, int]:
    """Make a folder's trail; returns it, and the number of finished runs that were there.

    Their ids and files are recorded as their manifests have them, as `found`: when, by whom and how they were made is not
    known.

    Raises:
        RunError: it has one, or a manifest cannot be read.
    """
    file = folder / TRAIL
    if file.exists():
        raise RunError(f"{file} exists: runs below {folder} are recorded in it already")
    folder.mkdir(parents=True, exist_ok=True)
    found = [(place, _facts_of(place)) for place in _runs_below(folder) if trail_above(place) is None]
    file.touch()
    append(file, {"event": "begun"})
    for place, facts in found:
        append(file, {"event": "found", "folder": os.path.relpath(place.resolve(), file.resolve().parent), **facts})
    return file, len(found)


def _runs_below(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The finished runs that the folder's trail would record."""
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir():
            continue
        if (entry / MANIFEST).is_file():
            yield entry
        elif depth > 1:
            yield from _runs_below(entry, depth - 1)


def _facts_of(run: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((run / MANIFEST).read_text(encoding="utf-8"))
        inputs = {name: one["id"] for name, one in manifest["inputs"].items()}
        return {"inputs": inputs, **{key: manifest[key] for key in ("stage", "id", "outputs")}}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{run / MANIFEST} cannot be read ({type(error).__name__}: {error}): repair the run or move it away first"
        ) from error


def _lines_of(text: str) -> list[str]:
    """The lines of a trail: what a user gives may hold other ends of lines than a line feed."""
    return text.removesuffix("\n").split("\n") if text else []


def append(file: Path, event: Mapping[str, Any]) -> None:
    """Append an event, on disk before this returns. Processes take turns."""
    with file.open("r+", encoding="utf-8") as trail:
        fcntl.flock(trail, fcntl.LOCK_EX)
        lines = _lines_of(trail.read())
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
    command = os.environ.get(COMMAND) or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    try:
        append(file, {"event": event, "folder": place, "command": command, **facts})
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"the audit trail {file} cannot be written ({error}): 'tiebreak audit verify' checks it"
        ) from error


def record_move(folder: Path, target: Path) -> None:
    """Record that a run's folder is about to be renamed, if there is a trail above it."""
    if (file := trail_above(folder)) is not None:
        record(folder, "moved", {"to": os.path.relpath(target.resolve(), file.parent)})


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
    for number, line in enumerate(_lines_of(file.read_text(encoding="utf-8"))):
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
    recorded = _recorded(events)
    for place, row in recorded.items():
        known = f"{place} was {row['event']} as {row['id']}"
        manifest = folder / place / MANIFEST
        if not manifest.is_file():
            yield f"{known}, and is not there"
            continue
        try:
            identity = json.loads(manifest.read_text(encoding="utf-8"))["id"]
        except (ValueError, KeyError, TypeError) as error:
            yield f"{known}, and its {MANIFEST} cannot be read ({type(error).__name__}: {error})"
            continue
        if identity != row["id"]:
            yield f"{known}, and holds {identity}"
            continue
        yield from _output_faults(folder, place, row.get("outputs", {}))
    folders = {(folder / place).resolve() for place in recorded}
    for run in _runs_below(folder):
        if run.resolve() not in folders and trail_above(run) == (folder / TRAIL).resolve():
            yield f"{run.relative_to(folder)} is a finished run that the trail does not have"


def _recorded(events: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The finished runs that should be there, by folder."""
    found: dict[str, dict[str, Any]] = {}
    for row in events:
        if row.get("event") in ("finished", "found"):
            found[row["folder"]] = row
        elif row.get("event") == "moved" and row["folder"] in found:
            found[row["to"]] = found.pop(row["folder"])
    return found


def _output_faults(folder: Path, place: str, outputs: Mapping[str, str]) -> Iterator[str]:
    for name, digest in outputs.items():
        path = folder / place / name
        if path.is_file() and hash_file(path) != digest:
            yield f"{place}/{name} has changed since its stage finished"
        elif not path.is_file() and not name.startswith("final/merged/"):  # which may be removed to save space
            yield f"{place}/{name} is not there"
