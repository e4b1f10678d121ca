"""The metrics of a run: rows of its metrics.jsonl, and copies in W&B and other trackers. No torch: the labelling app's
runs have one too.

The run folder is the source of truth. A separate process copies it to W&B (`tiebreak.tracking.wandb_copy`), so W&B cannot
affect the stage: the stage never waits for it while working, and at most `LONGEST_WAIT` seconds at its end. A copy that
takes longer, as on a busy machine, continues after the stage. Unsent data stays in the run folder's `wandb/`, as an
offline run with the same id: `wandb sync PATH` or `tiebreak wandb sync RUN` sends it. Read an offline run with `wandb leet
inspect --json PATH`. Trackio, TensorBoard and MLflow (`tracking.report_to`) have a process each
(`tiebreak.tracking.tracker_process`).
"""

from __future__ import annotations

import json
import math
import os
import secrets
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tiebreak.files import write_json, write_jsonl
from tiebreak.runs.run import MANIFEST, Run, read_metrics
from tiebreak.terminal import is_main_process, say
from tiebreak.tracking.beside import DetachedProcess, environment_beside, start_beside
from tiebreak.tracking.contents import ALERTS, FACTS_FILE, FOLDER, STATE_FILE, read_json, read_rows
from tiebreak.tracking.facts import facts_of, wanted_mode
from tiebreak.tracking.tracker_process import TrackerProcess, further_trackers

LONGEST_WAIT = 28.0
"""seconds that a stage waits for W&B and other trackers at its end, in total"""
SECONDS_ONLINE, SECONDS_OFFLINE = 10.0, 600.0
"""that the copy itself may take from then on: to send the rest, and if that fails, to write it into the run folder"""


class RunRecorder:
    """Appends rows to a run's metrics.jsonl, which is copied to W&B. Does nothing except on the main process."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._copy = WandbCopy(run)
        self._others = [TrackerProcess(run, name) for name in further_trackers(run.config.tracking)]
        self._last_step, self._last_time = 0, time.monotonic()

    @property
    def _copies(self) -> list[WandbCopy | TrackerProcess]:
        return [self._copy, *self._others]

    def keep_up_to(self, step: int) -> None:
        """Drop rows past `step`, which a resumed run computes again, and start the copy to W&B."""
        self._last_step, self._last_time = step, time.monotonic()
        if not is_main_process():
            return
        if self.run.metrics.exists():
            write_jsonl(self.run.metrics, [row for row in read_metrics(self.run.folder) if row["step"] <= step])
        alerts = self.run.folder / ALERTS
        if alerts.exists():
            write_jsonl(alerts, [row for row in read_rows(alerts) if row["step"] <= step])
        self._start_copies()  # not before: they read the rows

    def row(self, step: int, metrics: Mapping[str, Any], beside_seconds: float | None = None) -> None:
        """One logged step. Non-finite values are written as null.

        Args:
            beside_seconds: time spent on measuring them between two steps, excluded from both.
        """
        if not is_main_process():
            return
        if beside_seconds is None:
            now = time.monotonic()
            seconds = (now - self._last_time) / max(1, step - self._last_step)
            self._last_step, self._last_time = step, now
        else:
            seconds = beside_seconds
            self._last_time += beside_seconds
        values = {key: _finite(value) for key, value in metrics.items() if isinstance(value, (int, float))}
        line = {"step": step, "step_seconds": round(seconds, 4), **values}
        with self.run.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
        for copy in self._copies:
            copy.check()

    def leave_out(self, seconds: float) -> None:
        """Exclude this time since the last row from the step's."""
        self._last_time += seconds

    def extend_table(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows of one `step` to a table. Rows of the same or later steps, of an interrupted attempt, are replaced."""
        if is_main_process() and rows:
            path = self.run.folder / f"{name}.jsonl"
            write_jsonl(path, [*(row for row in read_rows(path) if row["step"] < rows[0]["step"]), *rows])

    def alert(self, step: int, message: str) -> None:
        """An alert, in the run folder and in W&B, which notifies the user."""
        if not is_main_process():
            return
        try:
            with (self.run.folder / ALERTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "message": message}, ensure_ascii=False) + "\n")
        except OSError as error:
            say(f"warning: {ALERTS} cannot be written ({error.strerror})")

    def start(self) -> None:
        """Start the copies of a stage that logs no rows."""
        if is_main_process():
            self._start_copies()

    def _start_copies(self) -> None:
        for copy in self._copies:
            copy.start()

    def leave(self) -> None:
        """The stage has ended early: so do the copies."""
        for copy in self._copies:
            copy.leave()

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table of examples, as a file in the run folder and in W&B."""
        if is_main_process():
            path = self.run.folder / f"{name}.jsonl"
            write_jsonl(path, [dict(zip(columns, row, strict=True)) for row in rows])

    def finish(self) -> None:
        """Send the finished run to W&B and the other trackers: the last rows, tables, final figures, and an artifact linked
        to its inputs."""
        if is_main_process():
            self._finish([self._copy], self._others)

    def finish_again(self) -> None:
        """Complete the copies that were started, and are incomplete."""
        lacking = (self.run.folder / FOLDER / FACTS_FILE).is_file() and not is_copied(self.run.folder)
        self._finish([self._copy] if lacking else [], [one for one in self._others if one.is_lacking])

    def _finish(self, wandb: Sequence[WandbCopy], others: Sequence[TrackerProcess]) -> None:
        until = time.monotonic() + LONGEST_WAIT
        for other in others:
            other.announce_end()
        for copy in wandb:
            copy.finish()
        for other in others:
            other.wait(until)


@contextmanager
def tracked(run: Run) -> Iterator[None]:
    """The copies to trackers of a stage that trains nothing, from its start to the run's end:

    with start_run(config, "sample") as run, tracked(run):

    A finished run's copy is completed if it was not.
    """
    if run.finished:
        track_again(run)
        yield
        return
    recorder = RunRecorder(run)
    recorder.start()
    try:
        yield
    finally:
        if not run.finished:
            recorder.leave()
    if run.finished:
        recorder.finish()


def track_again(run: Run) -> None:
    """Complete the copies of a finished run that were started; nothing if none is incomplete, or none was wanted."""
    if is_main_process():
        RunRecorder(run).finish_again()


def is_copied(folder: Path) -> bool:
    """Whether W&B, or an offline copy, has a finished run completely."""
    state = read_json(folder / FOLDER / STATE_FILE)
    return state.get("state") == "done" and state.get("manifest_id") == read_json(folder / MANIFEST).get("id")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class WandbCopy:
    """The process that copies a run folder to W&B. Its methods return soon, whatever happens to it."""

    def __init__(self, run: Run) -> None:
        self._folder, self._run = run.folder, run
        self._process: DetachedProcess | None = None
        self._close_pipe: Callable[[], object] = lambda: None
        self._pipe = -1
        self._wanted = "wandb" in run.config.tracking.report_to and wanted_mode(run) != "disabled"
        self._restarted = False
        self._seen = ""

    def start(self, mode: str | None = None) -> None:
        """Start it, once."""
        if not self._wanted or self._process is not None:
            return
        try:
            (self._folder / FOLDER).mkdir(exist_ok=True)
            copy = secrets.token_hex(8)
            write_json(self._folder / FOLDER / FACTS_FILE, {**facts_of(self._run), "copy": copy})
            with suppress(FileNotFoundError):
                (self._folder / FOLDER / STATE_FILE).unlink()
            self._process = self._spawn(mode or wanted_mode(self._run), copy)
        except Exception as error:  # noqa: BLE001 - nothing of W&B's ends a stage
            self._give_up(f"it cannot be started ({error})")

    def check(self) -> None:
        """Print its reports, and restart it, offline, if it has ended."""
        self.start()
        message = read_json(self._folder / FOLDER / STATE_FILE).get("message", "")
        if message != self._seen:
            self._seen = message
            say("", f"W&B: {message}")
        if self._process is not None and self._process.poll() is not None:
            self._restart()

    def finish(self) -> None:
        """No further rows: wait for its end."""
        began = time.monotonic()
        self.check()
        while self._process is not None:
            left = LONGEST_WAIT - (time.monotonic() - began)
            if not self._let_end(left):
                self._leave()
            elif not is_copied(self._folder):
                self._restart()
            else:
                self.check_message()
                return

    def leave(self) -> None:
        """Let the copy end as that of an interrupted run."""
        self._close_pipe()

    def check_message(self) -> None:
        """Print its final report."""
        message = read_json(self._folder / FOLDER / STATE_FILE).get("message", "")
        if message != self._seen:
            say(f"W&B: {message}")

    def _let_end(self, seconds: float) -> bool:
        """Signal the end of the run; whether it finished in time."""
        assert self._process is not None
        with suppress(OSError):
            os.write(self._pipe, b"finished\n")
        self._close_pipe()
        give_up = time.monotonic() + seconds
        while self._process.poll() is None and not is_copied(self._folder):
            if time.monotonic() > give_up:
                return False
            time.sleep(0.05)
        return True

    def _restart(self) -> None:
        """It has ended unexpectedly: restart the copy in the run folder, once."""
        assert self._process is not None
        self._close_pipe()
        reason = read_json(self._folder / FOLDER / STATE_FILE).get("error") or f"status {self._process.returncode}"
        self._process = None
        if self._restarted:
            self._give_up(f"its process ended ({reason})")
            return
        self._restarted = True
        self.start("offline")

    def _give_up(self, reason: str) -> None:
        say(f"W&B: {reason}; the run continues without it. 'tiebreak wandb sync {self._folder}' sends it later")
        self._wanted, self._process = False, None

    def _leave(self) -> None:
        """Let it continue after the stage."""
        say(
            f"W&B: the copy is not complete after {LONGEST_WAIT:.0f} s, and continues in the background. "
            f"'tiebreak wandb sync {self._folder}' sends the run, whatever becomes of it"
        )
        self._wanted, self._process = False, None

    def _spawn(self, mode: str, copy: str) -> DetachedProcess:
        environment = environment_beside()
        if self._restarted:
            environment.pop("WANDB_DIR", None)  # where the first copy failed
        environment.setdefault("WANDB_DATA_DIR", str((self._folder / FOLDER / "data").resolve()))  # of its artifacts
        limits = (str(SECONDS_ONLINE), str(SECONDS_OFFLINE))
        words = ("follow", str(self._folder), mode, *limits, str(os.getpid()), copy)
        process, self._pipe = start_beside("tiebreak.tracking.wandb_copy", words, environment)
        self._close_pipe = weakref.finalize(self, os.close, self._pipe)
        return process
