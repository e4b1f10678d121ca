"""Run folders of any stage and in any state, as the overview takes them: finished, in progress, or of an older version."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from evaluation.compare.reading import finite
from tiebreak.config.keys import keys_of
from tiebreak.errors import RunError, TiebreakError, counted
from tiebreak.process.ending import TRACEBACK_FILE
from tiebreak.runs import run as runs
from tiebreak.runs.chain import InputFinder
from tiebreak.stages import STAGES, find_stage

DEPTH = 3
"""search depth for runs below a folder that is not itself a run"""
_NO_ROOTS = frozenset(
    {"checkpoints", "final", "partial", "wandb", "trackers", "mlruns", "store", "node_modules", ".git", ".venv"}
)
_APART = ("output", "tracking", "max_time")
"""keys that do not affect what a run computes"""
ROWS_READ, ROWS_IN_ALL = 2000, 160_000
"""logged rows that are read of one run, and of all; of longer ones, every n-th, and as many with held-out figures"""
_EVALUATED, _GUARDED = b'"eval', b'"guard/'
"""beginnings of the keys of held-out figures"""


@dataclass
class RunRecord:
    """One run folder."""

    folder: str
    stage: str
    state: str
    """`finished`, `running`, `interrupted` or `failed`"""
    record: Mapping[str, Any]
    """its manifest, or run.json"""
    rows: list[dict[str, Any]] = field(default_factory=list)
    every: int = 1
    """of its logged training rows, every n-th was read"""
    every_held_out: int = 1
    """of those with held-out figures"""
    ancestors: dict[str, RunRecord] = field(default_factory=dict)
    """input's name → the run that it names, if that was found"""
    notes: list[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The manifest's id; an unfinished run has none, and is named by its folder."""
        return str(self.record.get("id") or os.path.abspath(self.folder))

    @cached_property
    def config(self) -> dict[str, Any]:
        """Every key that decides what the run computes, dotted; keys that its version lacked have their defaults."""
        sources = {str(one["source"]) for one in self.record["inputs"].values()}
        recorded = flattened(self.record["config"])
        flat = {**_defaults(self.stage, recorded), **recorded}
        return {
            key: value
            for key, value in flat.items()
            if key.partition(".")[0] not in _APART and not (isinstance(value, str) and value in sources)
        }

    @property
    def seeds(self) -> dict[str, Any]:
        return {key: value for key, value in self.config.items() if is_seed(key)}

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Final figures, finite ones: the manifest's, else the last logged."""
        recorded = self.record.get("metrics")
        if not isinstance(recorded, Mapping):
            recorded = last_values(self.rows, find_stage(self.stage).metrics)
        return {key: float(value) for key, value in recorded.items() if is_number(value)}

    def not_finite(self) -> Iterator[str]:
        """What is NaN or infinite among the stage's figures in the rows that were read; curves leave such steps out."""
        for key in find_stage(self.stage).metrics:
            steps = [
                row.get("step") for row in self.rows if isinstance(row.get(key), float) and not is_number(row[key])
            ]
            if steps:
                often = "" if len(steps) == 1 else f" and at {counted(len(steps) - 1, 'later step')}"
                yield f"{key} is not a finite number at step {steps[0]}{often}"

    def inputs(self) -> dict[str, Mapping[str, Any]]:
        return {str(name): one for name, one in self.record["inputs"].items()}


def is_seed(key: str) -> bool:
    """Whether a key is a random seed."""
    return key.rpartition(": ")[2].rpartition(".")[2] == "seed"


def is_number(value: object) -> bool:
    """Whether a logged value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def last_values(rows: Sequence[Mapping[str, Any]], keys: Mapping[str, str]) -> dict[str, Any]:
    newest: dict[str, Any] = {}
    for row in rows:
        newest |= {key: row[key] for key in keys if is_number(row.get(key))}
    return newest


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys, dotted; an empty section is its own value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _defaults(stage: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of keys that an older version's configuration lacks; of sections, only those that it has."""
    if stage not in STAGES:
        return {}
    sections = {key.rpartition(".")[0] for key in recorded} | {""}
    return {
        key: default
        for key, default in _all_defaults(STAGES[stage].configuration).items()
        if key.rpartition(".")[0] in sections
    }


@cache
def _all_defaults(configuration: str) -> Mapping[str, Any]:
    module, _, name = configuration.partition(":")
    model = getattr(importlib.import_module(module), name)
    plain = (str, int, float, bool, type(None))
    return {key.path: key.default for key in keys_of(model) if isinstance(key.default, plain)}


# --- folders ---


def find_runs(paths: Sequence[str]) -> list[str]:
    """The run folders among the paths and below them, each once.

    Raises:
        RunError: a path does not exist, or there is no run.
    """
    found: dict[str, str] = {}
    for path in paths:
        if not Path(path).is_dir():
            raise RunError(f"no such run folder: {path}; compare takes run folders, or folders of them")
        inside = list(_runs_at(Path(path), 0))
        if not inside:
            raise RunError(
                f"no runs in {path}: compare takes run folders, or folders of them (looked {DEPTH} levels deep)"
            )
        for folder in inside:
            found.setdefault(os.path.realpath(folder), str(folder))
    return list(found.values())


def _runs_at(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / runs.MANIFEST).is_file() or (folder / runs.RUN_FILE).is_file():
        yield folder
        return
    if depth == DEPTH:
        return
    for entry in sorted(os.scandir(folder), key=lambda one: one.name):
        if entry.is_dir() and entry.name not in _NO_ROOTS:
            yield from _runs_at(Path(entry.path), depth + 1)


def read_runs(folders: Sequence[str]) -> tuple[list[RunRecord], dict[str, str]]:
    """(the runs in recipe order, folder → why it was left out). A copy of a run is left out."""
    shelf = Shelf(max(min(ROWS_READ, ROWS_IN_ALL // max(len(folders), 1)), 100))
    found: dict[str, RunRecord] = {}
    left_out: dict[str, str] = {}
    for folder in folders:
        try:
            one = shelf.read(folder)
        except TiebreakError as error:
            left_out[folder] = str(error)
            continue
        if one.id in found:
            left_out[folder] = f"the same run as {found[one.id].folder}"
        else:
            found[one.id] = one
    order = {name: place for place, name in enumerate(STAGES)}
    return sorted(found.values(), key=lambda one: order.get(one.stage, len(order))), left_out


class Shelf:
    """Reads runs and those that they were made from, each folder once."""

    def __init__(self, most_rows: int) -> None:
        self._most_rows = most_rows
        self._finder = InputFinder()
        self._read: dict[str, RunRecord] = {}

    def read(self, folder: str) -> RunRecord:
        """A run with its logged rows.

        Raises:
            RunError: its record is broken, or a later version's.
        """
        one = self._with_ancestors(folder)
        if not one.rows:
            one.rows, one.every, one.every_held_out = read_rows(Path(folder), self._most_rows)
        return one

    def _with_ancestors(self, folder: str) -> RunRecord:
        place = os.path.realpath(folder)
        if place in self._read:
            return self._read[place]
        path = Path(folder)
        finished = (path / runs.MANIFEST).is_file()
        record = runs.read_manifest(path) if finished else runs.read_run_file(path)
        one = RunRecord(folder, str(record["stage"]), "finished" if finished else _unfinished(path), finite(record))
        self._read[place] = one
        if int(record.get("format", 1)) < runs.FORMAT:
            one.notes.append("written by an older version: keys that it lacked are shown with their defaults")
        for name, recorded in one.inputs().items():
            if recorded["kind"] == "run":
                self._add_ancestor(one, name, recorded)
        return one

    def _add_ancestor(self, one: RunRecord, name: str, recorded: Mapping[str, Any]) -> None:
        found = self._finder.find(one.folder, one.record, recorded)
        if found.place is None:
            one.notes.append(f"its {name} ({recorded['source']}) is {found.state}: what it came from is unknown")
            return
        try:
            one.ancestors[name] = self._with_ancestors(found.place)
        except TiebreakError as error:
            one.notes.append(f"its {name} cannot be read: {error}")


def _unfinished(path: Path) -> str:
    if runs.is_locked(path):
        return "running"
    return "failed" if (path / TRACEBACK_FILE).is_file() else "interrupted"


def read_rows(folder: Path, most: int) -> tuple[list[dict[str, Any]], int, int]:
    """(logged rows, of the training rows every n-th, of those with held-out figures every m-th): at most about twice `most`
    rows, the last ones among them. A torn line is left out."""
    path = folder / runs.METRICS
    if not path.is_file():
        return [], 1, 1
    lines = path.read_bytes().split(b"\n")
    held_out = [number for number, line in enumerate(lines) if _EVALUATED in line or _GUARDED in line]
    every, of_held_out = (max(-(-count // most), 1) for count in (len(lines), len(held_out)))
    last = range(max(len(lines) - 2, 0), len(lines))
    chosen = {*range(0, len(lines), every), *held_out[::of_held_out], *held_out[-1:], *last}
    rows = []
    for number in sorted(chosen):
        try:
            row = from_json(lines[number] or b"null")
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows, every, of_held_out
