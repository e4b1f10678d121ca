"""Trackio: a run of the project that `tracking.project` names, in Trackio's folder (TRACKIO_DIR), as `trackio show` reads
it; on a Space or a server where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL names one."""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import trackio

from tiebreak.tracking.contents import STEP
from tiebreak.tracking.trackers import Point, Result, flat_config

_FAILURES = ("could not", "failed", "skipped")
"""in Trackio's warnings: its client never raises"""


class TrackioClient:
    """A run of Trackio. Its steps are the rows of metrics.jsonl, as W&B's: two rows may have one optimizer step, which is
    the figure train/global_step."""

    place = ""

    def begin(self, folder: Path, facts: Mapping[str, Any]) -> int:
        """Open the run: in a folder a new one that replaces the interrupted stage's; elsewhere, resume that."""
        self._warnings = warnings.catch_warnings(record=True)
        self._warned = self._warnings.__enter__() or []
        warnings.simplefilter("always")
        elsewhere = os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")
        self.place = elsewhere or f"trackio show --project {shlex.quote(facts['project'])}"
        name = f"{facts['name']}-{facts['run_id']}"
        if not elsewhere:
            with suppress(ValueError):  # a new project
                for run in trackio.Api().runs(facts["project"]):
                    if run.name == name:
                        run.delete()
        self._run = trackio.init(
            project=facts["project"],
            name=name,
            group=facts.get("group"),
            config={
                **flat_config(facts["config"]),
                "stage": facts["stage"],
                "tags": ", ".join(facts["tags"]),
                "command": facts.get("notes") or "",
            },
            resume="allow",
            private=True,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self._next = int(facts.get("sent", 0)) if elsewhere else 0
        return self._next

    def log(self, points: Sequence[Point]) -> None:
        """One step a row."""
        for point in points:
            self._run.log({**point.values, STEP: point.step}, step=point.index)
            self._next = point.index + 1

    def alert(self, title: str, text: str) -> None:
        """An alert, which Trackio can pass on to a webhook."""
        self._run.alert(title=title, text=text)

    def finish(self, result: Result | None) -> None:
        """Final figures and tables in a last step. Trackio waits up to 30 s for its own threads.

        Raises:
            RuntimeError: by its warnings, something is missing.
        """
        if result:
            figures = {f"final/{key}": value for key, value in result.figures.items()}
            tables = {name: trackio.Table(columns, rows) for name, (columns, rows) in result.tables.items()}
            self._run.log({**figures, **tables}, step=self._next)
        trackio.finish()
        self._warnings.__exit__(None, None, None)
        messages = [str(one.message) for one in self._warned]
        if lost := [text for text in messages if any(word in text.lower() for word in _FAILURES)]:
            raise RuntimeError(lost[-1])
