"""Reports of a finished run, which may fail without losing it: samples, report pages, a merged copy.

    runs/quickstart/reward/reports.json        {"report": {"state": "failed", "error": "…", "request": {…}}, …}

A stage plans its reports before it finishes its run, and makes them afterwards. A failure is printed in one line and
recorded; the same command makes that report again, and trains nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tiebreak.errors import TiebreakError
from tiebreak.files import write_json
from tiebreak.runs.run import Run
from tiebreak.terminal import say

REPORTS_FILE = "reports.json"
SAMPLES = "samples"
"""the table of samples"""


@dataclass(frozen=True)
class Report:
    """One report of a run."""

    state: Literal["planned", "done", "failed"] = "planned"
    error: str | None = None
    request: dict[str, Any] = field(default_factory=dict)
    """its input, for reports that can be made again without their stage"""


class Reports:
    """The reports of one run."""

    def __init__(self, run: Run) -> None:
        self._run, self._path = run, run.folder / REPORTS_FILE
        self._reports = read_reports(run.folder)

    def plan(self, requests: Mapping[str, Mapping[str, Any]]) -> None:
        """Record the reports to make, before the run is finished."""
        self._reports = {name: Report(request=dict(request)) for name, request in requests.items()}
        self._write()

    def open(self, name: str) -> dict[str, Any] | None:
        """A report's input, if it is planned and not done."""
        report = self._reports.get(name)
        return None if report is None or report.state == "done" else report.request

    @property
    def names(self) -> list[str]:
        """Names of unfinished reports."""
        return [name for name in self._reports if self.open(name) is not None]

    def make(self, name: str, body: Callable[[dict[str, Any]], object]) -> bool:
        """Make a report that is planned and not done; whether it is done now."""
        request = self.open(name)
        if request is None:
            return True
        try:
            body(request)
            done = Report(state="done", request=request)
        except Exception as error:  # noqa: BLE001 - the training is finished, whatever happens here
            reason = (
                str(error) if isinstance(error, TiebreakError | RuntimeError) else f"{type(error).__name__}: {error}"
            )
            done = Report(state="failed", error=reason, request=request)
            say(f"warning: {name} failed ({reason}). The run is finished and usable; the same command tries again")
        self._reports[name] = done
        self._write()
        return done.state == "done"

    def _write(self) -> None:
        _write(self._path, self._reports)


def note_done(folder: Path, name: str) -> None:
    """Record a report that was made again without its stage."""
    reports = read_reports(folder)
    _write(folder / REPORTS_FILE, reports | {name: replace(reports[name], state="done", error=None)})


def _write(path: Path, reports: Mapping[str, Report]) -> None:
    try:
        write_json(path, {name: asdict(report) for name, report in reports.items()})
    except OSError as error:
        say(f"warning: {path} is not writable ({error.strerror})")


def read_reports(folder: Path) -> dict[str, Report]:
    """A run's recorded reports; none for old runs without a record."""
    path = folder / REPORTS_FILE
    if not path.is_file():
        return {}
    return {name: Report(**one) for name, one in json.loads(path.read_text()).items()}
