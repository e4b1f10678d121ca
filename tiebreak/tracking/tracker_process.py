"""A stage's side of its copies to trackers other than W&B. Nothing here raises, or waits longer than it is given."""

from __future__ import annotations

import os
import secrets
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tiebreak.config import TrackingConfig
from tiebreak.files import write_json
from tiebreak.runs.run import MANIFEST, Run
from tiebreak.terminal import say
from tiebreak.tracking.beside import DetachedProcess, environment_beside, start_beside
from tiebreak.tracking.contents import read_json
from tiebreak.tracking.facts import facts_of
from tiebreak.tracking.tracker_copy import FOLDER, facts_file, state_file
from tiebreak.tracking.trackers import TRACKERS

SECONDS_AFTER = 600.0
"""that a copy may take from the end of its stage"""
_REMOTE = {"trackio": ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"), "mlflow": ("MLFLOW_TRACKING_URI",)}
"""variables that name a place on the network; without them a client writes on this machine"""
_ON_THIS_MACHINE = ("sqlite:", "file:", "/", ".")
_PROJECT = {"trackio": "TRACKIO_PROJECT", "mlflow": "MLFLOW_EXPERIMENT_NAME"}
"""variables that name a project where the configuration does not"""


def further_trackers(tracking: TrackingConfig) -> list[str]:
    """Those of a configuration besides W&B."""
    return [] if tracking.mode == "disabled" else [name for name in tracking.report_to if name in TRACKERS]


class TrackerProcess:
    """The process that copies a run folder to a tracker."""

    def __init__(self, run: Run, name: str) -> None:
        self._run, self._folder, self.name = run, run.folder, name
        self.title = TRACKERS[name].title
        self._process: DetachedProcess | None = None
        self._wanted = True
        self._pipe = -1
        self._close_pipe: Callable[[], object] = lambda: None

    @property
    def is_lacking(self) -> bool:
        """Whether the finished run was begun there and is incomplete."""
        return facts_file(self._folder, self.name).is_file() and not self._is_copied()

    def start(self) -> None:
        """Start it, once."""
        if not self._wanted or self._process is not None:
            return
        try:
            (self._folder / FOLDER).mkdir(exist_ok=True)
            copy = secrets.token_hex(8)
            write_json(facts_file(self._folder, self.name), {**tracker_facts(self._run, self.name), "copy": copy})
            self._forget_state()
            words = (str(self._folder), self.name, str(SECONDS_AFTER), str(os.getpid()), copy)
            self._process, self._pipe = start_beside("tiebreak.tracking.tracker_copy", words, self._environment())
            self._close_pipe = weakref.finalize(self, os.close, self._pipe)
        except Exception as error:  # noqa: BLE001 - nothing of a tracker's ends a stage
            self._give_up(f"it cannot be started ({error})")

    def check(self) -> None:
        """Start it, or report its end."""
        self.start()
        if self._process is not None and self._process.poll() is not None and not self._is_copied():
            reason = read_json(state_file(self._folder, self.name)).get("error")
            self._give_up(f"its process ended ({reason or f'status {self._process.returncode}'})")

    def announce_end(self) -> None:
        """Tell the process that the run is finished."""
        self.check()
        with suppress(OSError):
            os.write(self._pipe, b"finished\n")
        self._close_pipe()

    def wait(self, until: float) -> None:
        """Wait for its end, at most until this time of `time.monotonic`."""
        while self._process is not None and not self._is_copied():
            self.check()
            if self._process is not None and time.monotonic() > until:
                say(f"{self.title}: the copy is not complete yet, and continues in the background. {self._later}")
                return
            time.sleep(0.05)

    def leave(self) -> None:
        """Let the copy end as that of an interrupted run."""
        self._close_pipe()

    @property
    def _later(self) -> str:
        return f"'tiebreak track {self.name} {self._folder}' sends the run again"

    def _is_copied(self) -> bool:
        state = read_json(state_file(self._folder, self.name))
        return state.get("state") == "done" and state.get("manifest_id") == read_json(self._folder / MANIFEST).get("id")

    def _give_up(self, reason: str) -> None:
        say(f"{self.title}: {reason}; the run continues without it. {self._later}")
        self._close_pipe()
        self._wanted, self._process = False, None

    def _forget_state(self) -> None:
        """Keep only the number of rows of an earlier copy."""
        path = state_file(self._folder, self.name)
        if rows := read_json(path).get("rows"):
            write_json(path, {"rows": rows})
        else:
            path.unlink(missing_ok=True)

    def _environment(self) -> dict[str, str]:
        environment = environment_beside()
        if self._run.config.tracking.mode == "offline":
            for variable in _REMOTE.get(self.name, ()):
                if not environment.get(variable, "").startswith(_ON_THIS_MACHINE):
                    environment.pop(variable, None)
        return environment


def tracker_facts(run: Run, name: str) -> dict[str, Any]:
    """A run's metadata for a tracker, with the identity of the run that it began there."""
    facts = facts_of(run)
    before = read_json(facts_file(run.folder, name))
    same = before.get("fingerprint") == facts["fingerprint"]
    return {
        **facts,
        "run_id": before["run_id"] if same and before.get("run_id") else secrets.token_hex(4),
        "project": project_of(run.config.tracking, name),
    }


def project_of(tracking: TrackingConfig, name: str) -> str:
    """The project: the configuration's, otherwise that of the tracker's own variable, otherwise the default."""
    default = TrackingConfig.model_fields["project"].default
    variable = os.environ.get(_PROJECT.get(name, ""), "")
    return tracking.project if tracking.project != default else variable or str(default)
