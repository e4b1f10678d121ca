"""A run's inputs, found wherever they are now.

A run records each input's path as given, its path relative to the run's own folder, and the id of its content. So a root
may be renamed, moved or copied: an input is looked up at its old path, then at the relative path, then by id among the
runs beside and below the root (the folder that contains the run's folder).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiebreak.errors import HandoffError, RunError, TiebreakError
from tiebreak.runs.run import MANIFEST, identify_input, read_manifest
from tiebreak.terminal import say

DEPTH = 3
"""search depth below a folder"""
MOST_FOLDERS = 20_000
_NO_ROOTS = frozenset(
    {"checkpoints", "final", "partial", "wandb", "trackers", "mlruns", "node_modules", ".git", ".venv"}
)


@dataclass(frozen=True)
class InputCheck:
    """An input's present state: `same`, `changed`, `gone`, or `not checked` (a mere name)."""

    state: str
    place: str | None = None
    """its place, if it is the same"""


@dataclass
class InputFinder:
    """Finds inputs; caches the folders around."""

    _runs_below: dict[Path, dict[str, Path]] = field(default_factory=dict)

    def find(self, folder: Path | str, record: Mapping[str, Any], recorded: Mapping[str, Any]) -> InputCheck:
        """An input of the run in a folder.

        Args:
            record: the run's manifest or run.json.
            recorded: its entry for the input.
        """
        if recorded["kind"] in ("name", "hub"):
            return InputCheck("not checked")
        there = False
        for place in _places(Path(folder), record, recorded):
            if not Path(place).exists():
                continue
            there = True
            if _id_at(place) == recorded["id"]:
                return InputCheck("same", place)
        if recorded["kind"] == "run" and (moved := self._search(Path(folder), str(recorded["id"]))):
            return InputCheck("same", moved)
        return InputCheck("changed" if there else "gone")

    def _search(self, folder: Path, identity: str) -> str | None:
        root = Path(os.path.normpath(folder)).absolute().parent
        for around in (root, root.parent):
            if around not in self._runs_below:
                self._runs_below[around] = dict(_runs_below(around))
            if identity in self._runs_below[around]:
                found = self._runs_below[around][identity]
                return str(found if Path(folder).is_absolute() else os.path.relpath(found))
        return None


def _places(folder: Path, record: Mapping[str, Any], recorded: Mapping[str, Any]) -> Iterator[str]:
    source = str(recorded["source"])
    yield source
    if "path" in recorded:
        yield os.path.normpath(folder / str(recorded["path"]))
    output = record.get("config", {}).get("output")
    if output:  # records before format 2 have no relative path
        yield os.path.normpath(folder / os.path.relpath(source, output))


def _id_at(place: str) -> str | None:
    try:
        return identify_input(place).id
    except TiebreakError:
        return None


def _runs_below(root: Path) -> Iterator[tuple[str, Path]]:
    """(id, folder) of the finished runs below a folder."""
    seen, waiting = 0, [(root, 0)]
    while waiting and seen < MOST_FOLDERS:
        folder, depth = waiting.pop(0)
        seen += 1
        try:
            entries = [entry for entry in os.scandir(folder) if entry.is_dir() and entry.name not in _NO_ROOTS]
            manifest = folder / MANIFEST
            if manifest.is_file():
                yield str(json.loads(manifest.read_text(encoding="utf-8"))["id"]), folder
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if depth < DEPTH:
            waiting += [(Path(entry.path), depth + 1) for entry in sorted(entries, key=lambda one: one.name)]


def manifest_chain(folder: Path | str, *, as_far_as_known: bool = False) -> list[tuple[str, dict[str, Any]]]:
    """(folder, manifest) of a run and of everything it was made from, inputs first, each once.

    Args:
        as_far_as_known: skip inputs that are not found, and report them.

    Raises:
        RunError: an input run is not found: without it, its caveats would be missing.
        HandoffError: another run is in its place.
    """
    finder, chain = InputFinder(), dict[str, tuple[str, dict[str, Any]]]()

    def walk(where: str) -> None:
        manifest = read_manifest(where)
        for name, one in manifest["inputs"].items():
            if one["kind"] != "run":
                continue
            found = finder.find(where, manifest, one)
            if found.place is not None:
                walk(found.place)
            elif as_far_as_known:
                say(f"{one['source']}, the {name} that {where} was made from, is {found.state}: skipped")
            else:
                raise _lost(where, manifest, name, one, found)
        chain.setdefault(manifest["id"], (where, manifest))

    walk(str(folder))
    return list(chain.values())


def _lost(
    where: str, manifest: Mapping[str, Any], name: str, recorded: Mapping[str, Any], found: InputCheck
) -> TiebreakError:
    source, identity = recorded["source"], str(recorded["id"])[:10]
    if found.state == "changed":
        return HandoffError(
            f"{source} now holds another run than the one that {where} was made from ({identity}, its '{name}'), which "
            f"was not found nearby: run 'tiebreak {manifest['stage']}' again"
        )
    root = Path(where).absolute().parent
    return RunError(
        f"{where} was made from {source} ({identity}, its '{name}'), which is not there, nor under another name in {root} "
        f"or {root.parent}: put it back, or copy it beside {where}; without it, the figures' origin is unknown"
    )
