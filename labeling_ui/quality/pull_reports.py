"""Reports of reward models with the pulls of their training pairs, as `tiebreak reward report` writes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from tiebreak.data.reading import read_records
from tiebreak.errors import HandoffError, TiebreakError
from tiebreak.messages import Record
from tiebreak.runs.run import MANIFEST, read_manifest

PULLS = Path("final") / "pulls.jsonl"


class PairPull(Record):
    """A row of a report's pulls.jsonl."""

    pair_id: str | None
    raters: tuple[str, ...] | None
    pull: float
    """in units of the average pair's; negative: learning from the pair raised the others' loss"""
    chosen: str = ""
    """hash of the chosen answer's text"""
    adjudicated: bool = False


@dataclass(frozen=True)
class PullReport:
    """A finished report of a reward model, with the pulls of its training pairs."""

    folder: str
    rows: tuple[PairPull, ...]
    """the strongest against the rest first"""


_Stamp = tuple[int, int, int] | None
"""A file's inode, size and time of the last change; None: there is no file."""
_UNREAD: _Stamp = (-1, -1, -1)


@dataclass(frozen=True)
class ShownReport:
    """A report as a server has it."""

    report: PullReport
    problem: str = ""
    """why it could not be read again; `report` is then the earlier one, or has no rows"""


class PullReports:
    """The reports that a server shows. It reads a report again when the report's manifest has changed, and the list of
    them when the configuration file has: a new report needs no restart."""

    def __init__(
        self, folders: Sequence[str] = (), file: Path | None = None, named: Callable[[], Sequence[str]] | None = None
    ) -> None:
        """Read the reports.

        Args:
            folders: the reports' run folders.
            file: the configuration file that names them.
            named: reads it again.

        Raises:
            RunError, HandoffError: as `read_pull_report`.
        """
        self._file, self._named, self._lock = file, named, Lock()
        self._file_stamp, self._file_problem = _stamp(file), ""
        self._stamps = {folder: _stamp(Path(folder) / MANIFEST) for folder in folders}
        self._shown = tuple(ShownReport(read_pull_report(folder)) for folder in folders)

    def __call__(self) -> tuple[ShownReport, ...]:
        """The reports as they are now: the same tuple as long as nothing has changed."""
        with self._lock:
            file_stamp = _stamp(self._file)
            renamed = file_stamp != self._file_stamp
            if renamed:
                self._file_stamp, self._file_problem = file_stamp, self._read_names()
            stamps = {folder: _stamp(Path(folder) / MANIFEST) for folder in self._stamps}
            changed = {folder for folder in stamps if stamps[folder] != self._stamps[folder]}
            if renamed or changed:
                self._read_again(stamps, changed)
            return self._shown

    def _read_names(self) -> str:
        """Take the folders that the configuration names now; returns why it cannot be read, or nothing."""
        if self._named is None:
            return ""
        try:
            folders = self._named()
        except (TiebreakError, OSError) as error:
            return str(error)
        self._stamps = {folder: self._stamps.get(folder, _UNREAD) for folder in folders}
        return ""

    def _read_again(self, stamps: dict[str, _Stamp], changed: set[str]) -> None:
        earlier = {one.report.folder: one for one in self._shown}
        found = [_read_now(folder, earlier) if folder in changed else earlier[folder] for folder in stamps]
        if self._file_problem:
            found.append(ShownReport(PullReport(str(self._file), ()), self._file_problem))
        self._stamps, self._shown = stamps, tuple(found)


def _stamp(file: Path | None) -> _Stamp:
    try:
        status = os.stat(file) if file is not None else None
    except OSError:
        return None
    return status and (status.st_ino, status.st_size, status.st_mtime_ns)


def _read_now(folder: str, earlier: dict[str, ShownReport]) -> ShownReport:
    try:
        return ShownReport(read_pull_report(folder))
    except (TiebreakError, OSError) as error:
        report = earlier[folder].report if folder in earlier else PullReport(folder, ())
        return ShownReport(report, str(error))


def read_pull_report(folder: str) -> PullReport:
    """The pulls of a finished reward report.

    Raises:
        RunError: it is not finished.
        HandoffError: it is another stage's run, or estimated no pulls.
    """
    stage = read_manifest(folder)["stage"]
    if stage != "reward report":
        raise HandoffError(
            f"reward_reports: {folder} is a finished '{stage}' run: give the folder of a 'tiebreak reward report'"
        )
    file = Path(folder) / PULLS
    if not file.is_file():
        raise HandoffError(
            f"reward_reports: {folder} has no pulls of training pairs: run 'tiebreak reward report --influence_pairs 1000' "
            "into a new folder"
        )
    rows = sorted(read_records(file, PairPull), key=lambda one: one.pull)
    return PullReport(folder, tuple(rows))
