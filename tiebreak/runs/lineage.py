"""The origin of a run, down to judgments, and the runs that a judgment or a rater's work led to.

Runs are joined by the ids in their records, so folders may have moved. An unfinished run counts: it has learned already.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiebreak.errors import RunError, TiebreakError
from tiebreak.runs.chain import DEPTH
from tiebreak.runs.run import MANIFEST, RUN_FILE, read_manifest, read_run_file
from tiebreak.stages import find_stage

_NO_RUNS = frozenset(
    {"checkpoints", "final", "partial", "wandb", "trackers", "mlruns", "store", "node_modules", ".git", ".venv"}
)


@dataclass(frozen=True)
class Raters:
    """One rater's judgments under one version of the guidelines."""

    rater: str
    guideline_version: str
    kind: str
    judgments: int


@dataclass(frozen=True)
class LineageRun:
    """A run folder, finished or not."""

    folder: str
    record: Mapping[str, Any] = field(repr=False)
    finished: bool = True

    @property
    def id(self) -> str:
        """The manifest's id; an unfinished run is named by its folder."""
        return str(self.record.get("id") or os.path.abspath(self.folder))

    @property
    def stage(self) -> str:
        return str(self.record["stage"])

    @property
    def is_model(self) -> bool:
        return find_stage(self.stage).trains

    @property
    def input_ids(self) -> dict[str, str]:
        return {str(name): str(one["id"]) for name, one in self.record["inputs"].items()}

    def judgments(self) -> Iterator[dict[str, Any]]:
        """The judgments that a labelling run exported."""
        return _rows(Path(self.folder) / "final" / "judgments.jsonl")

    def preferences(self) -> Iterator[dict[str, Any]]:
        return _rows(Path(self.folder) / "final" / "preferences.jsonl")

    def raters(self) -> list[Raters]:
        """Who judged, by pseudonym and guideline version."""
        counts = Counter(
            (str(row.get("rater_id", "")), str(row.get("guideline_version", "")), str(row.get("kind", "")))
            for row in self.judgments()
        )
        return [Raters(*who, count) for who, count in sorted(counts.items())]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line) if line.strip() else None
                if isinstance(row, dict):
                    yield row


@dataclass(frozen=True)
class ReachedRun:
    """A run that a judgment reached, and the path to it: the inputs' names, from the labelling run on."""

    run: LineageRun
    way: tuple[str, ...]


class Family:
    """All runs below some folders, joined by their ids."""

    def __init__(self, runs: Sequence[LineageRun]) -> None:
        self.runs = {one.id: one for one in reversed(runs)}
        self.runs = dict(reversed(list(self.runs.items())))

    @classmethod
    def around(cls, folder: str) -> Family:
        """A run's neighbours, up to two folders above it; of a folder of runs, those inside.

        Raises:
            RunError: there is no such folder, or no run in it.
        """
        path = Path(folder)
        if not path.is_dir():
            raise RunError(f"no such run folder: {folder}")
        if not _is_run(path):
            found = list(_read_below(path))
            if not found:
                raise RunError(f"no runs in {folder} (looked {DEPTH} levels deep)")
            return cls(found)
        root = path.absolute().parent
        near = [_read(path), *_read_below(root)]
        run_ids = {one.id for one in near}
        if any(
            one["kind"] == "run" and one["id"] not in run_ids for run in near for one in run.record["inputs"].values()
        ):
            near += _read_below(root.parent)
        return cls(near)

    def made_from(self, run: LineageRun) -> list[LineageRun]:
        """The run and all that it was made from, inputs first, each once; those that are not there are left out."""
        found: dict[str, LineageRun] = {}

        def walk(one: LineageRun) -> None:
            for identity in one.input_ids.values():
                if identity in self.runs and identity not in found:
                    walk(self.runs[identity])
            found[one.id] = one

        walk(run)
        return list(found.values())

    def made_of(self, run: LineageRun) -> list[ReachedRun]:
        """All runs that were made from this one, the nearest first."""
        found: dict[str, ReachedRun] = {}
        waiting = [ReachedRun(run, ())]
        while waiting:
            here = waiting.pop(0)
            for one in self.runs.values():
                names = [name for name, identity in one.input_ids.items() if identity == here.run.id]
                if names and one.id not in found:
                    found[one.id] = ReachedRun(one, (*here.way, f"{names[0]} of {one.stage}"))
                    waiting.append(found[one.id])
        return list(found.values())

    def labelled(self) -> list[LineageRun]:
        return [one for one in self.runs.values() if one.stage == "label"]


def _is_run(path: Path) -> bool:
    return (path / MANIFEST).is_file() or (path / RUN_FILE).is_file()


def _read(path: Path) -> LineageRun:
    finished = (path / MANIFEST).is_file()
    folder = os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
    return LineageRun(folder, read_manifest(path) if finished else read_run_file(path), finished)


def _read_below(root: Path) -> Iterator[LineageRun]:
    """Every readable run below a folder."""
    waiting = [(root, 0)]
    while waiting:
        folder, depth = waiting.pop(0)
        if _is_run(folder):
            try:
                yield _read(folder)
            except TiebreakError:
                continue
        elif depth < DEPTH:
            try:
                inside = sorted(e.path for e in os.scandir(folder) if e.is_dir() and e.name not in _NO_RUNS)
            except OSError:
                continue
            waiting += [(Path(one), depth + 1) for one in inside]


# --- a judgment, a rater ---


@dataclass(frozen=True)
class Trace:
    """A labelling run with the judgments asked for, and what was made from it."""

    label: LineageRun
    judgments: int
    split: str
    """splits of the preferences that came of them: `train`, `validation`, `test`, several, or empty if none did"""
    made: list[ReachedRun]

    @property
    def models(self) -> list[ReachedRun]:
        return [one for one in self.made if one.run.is_model]


def trace_judgment(family: Family, identity: str) -> list[Trace]:
    """Where a judgment went.

    Args:
        identity: a pair's id, or PAIR:RATER.

    Raises:
        RunError: no labelling run has it.
    """
    pair, _, rater = identity.partition(":")
    traces = []
    for label in family.labelled():
        mine = [
            row for row in label.judgments() if row.get("pair_id") == pair and rater in ("", str(row.get("rater_id")))
        ]
        if mine:
            learned = [row for row in label.preferences() if row.get("pair_id") == pair and _counts(row, rater)]
            traces.append(_trace(family, label, len(mine), learned))
    if not traces:
        raise RunError(f"no labelling run here has a judgment {identity}: give a pair's id, or PAIR:RATER")
    return traces


def trace_rater(family: Family, rater: str) -> list[Trace]:
    """Where a rater's judgments went. All models of a labelling run count: aggregation weighs raters by one another.

    Raises:
        RunError: no labelling run has judgments of this rater.
    """
    traces, raters = [], set[str]()
    for label in family.labelled():
        judges = [str(row.get("rater_id")) for row in label.judgments()]
        raters |= set(judges)
        if rater in judges:
            learned = [row for row in label.preferences() if _counts(row, rater)]
            traces.append(_trace(family, label, judges.count(rater), learned))
    if not traces:
        among = f": there are {', '.join(sorted(raters)[:8])}" if raters else ""
        raise RunError(f"no labelling run here has judgments of {rater!r}{among}")
    return traces


def _counts(preference: Mapping[str, Any], rater: str) -> bool:
    """Whether a rater's vote is in a preference; of one without raters, that is unknown, and assumed."""
    return not rater or preference.get("raters") is None or rater in preference["raters"]


def _trace(family: Family, label: LineageRun, judgments: int, learned: Sequence[Mapping[str, Any]]) -> Trace:
    splits = sorted({str(row.get("split") or "train") for row in learned})
    return Trace(label, judgments, " and ".join(splits), family.made_of(label))
