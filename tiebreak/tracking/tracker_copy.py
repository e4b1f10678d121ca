"""Copies a run folder to a tracker other than W&B, in a separate process that `tiebreak.tracking.tracker_process` starts.

It follows the folder as it grows, and may outlive its stage. Whatever fails or hangs ends this process only: metrics.jsonl
has everything, and `tiebreak track NAME RUN` sends it later, in its own process.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tiebreak.tracking.contents import (
    ALERTS,
    STEP,
    NewRows,
    model_files,
    read_json,
    read_rows,
    reports_in,
    summary_of,
    tables_in,
)
from tiebreak.tracking.trackers import Point, Result, Tracker, build_tracker
from tiebreak.tracking.wandb_copy import Deadline, End, one_line

FOLDER = "trackers"
"""of a run folder"""


def facts_file(folder: Path, name: str) -> Path:
    """The run's metadata for a tracker."""
    return folder / FOLDER / f"{name}.json"


def state_file(folder: Path, name: str) -> Path:
    """The copy's report to its stage."""
    return folder / FOLDER / f"{name}.state.json"


class TrackerCopy:
    """A run folder as a run of a tracker."""

    def __init__(self, folder: Path, name: str, tracker: Tracker) -> None:
        self.folder, self.name, self.tracker = folder, name, tracker
        self._facts = read_json(facts_file(folder, name))
        self._state = read_json(state_file(folder, name))
        self._new = NewRows(folder)
        self.rows = 0
        self._alerts = 0

    def begin(self) -> None:
        """Open the tracker's run; rows that an earlier copy sent are not sent again."""
        self._already = self.tracker.begin(self.folder, {**self._facts, "sent": self._state.get("rows", 0)})
        self._alerts = len(read_rows(self.folder / ALERTS)) if self._already else 0

    def send_rows(self) -> None:
        """The rows added since the last call."""
        points = [point for point in self._new_points() if point.index >= self._already]
        if points:
            self.tracker.log(points)
        for row in read_rows(self.folder / ALERTS)[self._alerts :]:
            self._alerts += 1
            self.tracker.alert(f"{self._facts['name']}: monitor", row["message"])
        if points:
            self.note(state="running")

    def _new_points(self) -> Iterator[Point]:
        for row, named in self._new:
            yield Point(self.rows, row["step"], {key: value for key, value in named.items() if _is_figure(key, value)})
            self.rows += 1

    def end(self) -> dict[str, Any]:
        """Send the rest, and close the run; returns the finished run's manifest, {} of an interrupted one."""
        manifest = read_json(self.folder / "manifest.json")
        self.tracker.finish(self._result(manifest) if manifest else None)
        return manifest

    def _result(self, manifest: Mapping[str, Any]) -> Result:
        figures = summary_of(self.folder, manifest)
        files = [self.folder / "manifest.json", *reports_in(self.folder)]
        return Result(
            figures={key: value for key, value in figures.items() if isinstance(value, str) or _is_number(value)},
            tables=dict(tables_in(self.folder)),
            files=[*files, *(model_files(self.folder) if self._facts.get("log_model") else [])],
            folder=self.folder,
        )

    def note(self, **state: Any) -> None:
        """Report to the stage."""
        path = state_file(self.folder, self.name)
        temporary = path.with_suffix(".tmp")
        with suppress(OSError):
            temporary.write_text(json.dumps({"rows": self.rows, **state}), encoding="utf-8")
            temporary.replace(path)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_figure(key: str, value: Any) -> bool:
    return key != STEP and _is_number(value)


def follow(folder: Path, name: str, seconds: float, stage: int, identity: str) -> None:
    """Copy a run as it grows, until the process `stage` finishes it or ends.

    Args:
        seconds: time from then on.
        identity: of this copy; it ends if another has begun.
    """
    os.nice(5)
    end = End(stage)

    def fail(reason: str) -> None:
        if read_json(facts_file(folder, name)).get("copy") == identity:
            path = state_file(folder, name)
            with suppress(OSError):
                state = read_json(path)
                path.write_text(json.dumps({**state, "state": "failed", "error": reason}), encoding="utf-8")
        os._exit(1)

    deadline = Deadline(lambda: fail("no response in time"))
    end.then(lambda: deadline.finish_within(seconds))
    try:
        with deadline():
            copy = TrackerCopy(folder, name, build_tracker(name))
            copy.begin()
        while not end.word:
            if read_json(facts_file(folder, name)).get("copy") != identity:
                os._exit(0)
            with deadline():
                copy.send_rows()
            end.wait(0.5)
        copy.send_rows()
        manifest = copy.end()
        copy.note(state="done", manifest_id=manifest.get("id"), place=copy.tracker.place)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the tracker's
        fail(one_line(error))
    os._exit(0)  # everything is sent; exit handlers of the client would wait for an unresponsive server


if __name__ == "__main__":
    _, folder, name, seconds, stage, identity = sys.argv
    follow(Path(folder), name, float(seconds), int(stage), identity)
