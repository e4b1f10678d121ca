"""The metrics of a run: rows of its metrics.jsonl, and a copy in W&B. No torch: the labelling app's runs have one too.

The run folder is the source of truth. A separate process copies it to W&B (`tiebreak.tracking.wandb_copy`), so W&B cannot
affect the stage: the stage never waits for it while working, and at most `LONGEST_WAIT` seconds at its end. A copy that
takes longer, as on a busy machine, continues after the stage. Unsent data stays in the run folder's `wandb/`, as an
offline run with the same id: `wandb sync PATH` or `tiebreak wandb sync RUN` sends it. Read an offline run with `wandb leet
inspect --json PATH`.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tiebreak.config import TrackingConfig
from tiebreak.records import write_json, write_jsonl
from tiebreak.runs.run import MANIFEST, RUN_FILE, Run, git_commit, read_metrics
from tiebreak.terminal import is_main_process, say
from tiebreak.tracking.wandb_copy import FACTS_FILE, FOLDER, STATE_FILE, artifact_name, read_json

LONGEST_WAIT = 28.0
"""seconds that a stage waits for W&B at its end, in total"""
SECONDS_ONLINE, SECONDS_OFFLINE = 10.0, 600.0
"""that the copy itself may take from then on: to send the rest, and if that fails, to write it into the run folder"""
_OF_A_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")


class RunRecorder:
    """Appends rows to a run's metrics.jsonl, which is copied to W&B. Does nothing except on the main process."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._copy = WandbCopy(run)
        self._last_step, self._last_time = 0, time.monotonic()

    def keep_up_to(self, step: int) -> None:
        """Drop rows past `step`, which a resumed run computes again."""
        self._last_step = step
        if not is_main_process():
            return
        if self.run.metrics.exists():
            write_jsonl(self.run.metrics, [row for row in read_metrics(self.run.folder) if row["step"] <= step])
        self._copy.start()  # not before: it reads the rows

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
        self._copy.check()

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table of examples, as a file in the run folder and in W&B."""
        if is_main_process():
            path = self.run.folder / f"{name}.jsonl"
            write_jsonl(path, [dict(zip(columns, row, strict=True)) for row in rows])

    def finish(self) -> None:
        """Send the finished run to W&B: the last rows, tables, final figures, and an artifact linked to its inputs."""
        if is_main_process():
            self._copy.finish()


def track(run: Run) -> None:
    """Copy a finished run without training to W&B."""
    RunRecorder(run).finish()


def track_again(run: Run) -> None:
    """Copy a finished run whose copy to W&B was started but not completed; nothing if it was, or was not wanted."""
    if is_main_process() and (run.folder / FOLDER / FACTS_FILE).is_file() and not is_copied(run.folder):
        RunRecorder(run).finish()


def is_copied(folder: Path) -> bool:
    """Whether W&B, or an offline copy, has a finished run completely."""
    state = read_json(folder / FOLDER / STATE_FILE)
    return state.get("state") == "done" and state.get("manifest_id") == read_json(folder / MANIFEST).get("id")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class _DetachedProcess(subprocess.Popen[bytes]):
    """A process that may outlive this one."""

    def __del__(self, *_: object, **__: object) -> None:
        """Suppress the warning that it is still running."""


class WandbCopy:
    """The process that copies a run folder to W&B. Its methods return soon, whatever happens to it."""

    def __init__(self, run: Run) -> None:
        self._folder, self._run = run.folder, run
        self._process: _DetachedProcess | None = None
        self._close_pipe: Callable[[], object] = lambda: None
        self._pipe = -1
        self._wanted = wanted_mode(run) != "disabled"
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

    def _spawn(self, mode: str, copy: str) -> _DetachedProcess:
        environment = {name: value for name, value in os.environ.items() if name not in _OF_A_LAUNCH}
        if self._restarted:
            environment.pop("WANDB_DIR", None)  # where the first copy failed
        environment.setdefault("WANDB_DATA_DIR", str((self._folder / FOLDER / "data").resolve()))  # of its artifacts
        limits = (str(SECONDS_ONLINE), str(SECONDS_OFFLINE))
        theirs, self._pipe = os.pipe()
        self._close_pipe = weakref.finalize(self, os.close, self._pipe)
        try:
            return _DetachedProcess(
                [
                    sys.executable,
                    "-m",
                    "tiebreak.tracking.wandb_copy",
                    "follow",
                    str(self._folder),
                    mode,
                    *limits,
                    str(os.getpid()),
                    copy,
                ],
                env=environment,
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the stage: data already passed on is still written
            )
        finally:
            os.close(theirs)


def wanted_mode(run: Run) -> str:
    """`disabled`, `offline` or `online` from configuration or environment; otherwise `auto`: online if W&B has a login."""
    if run.config.tracking.mode != "auto":
        return run.config.tracking.mode
    named = {"dryrun": "offline", "run": "online", "shared": "online"}
    mode = os.environ.get("WANDB_MODE", "").strip().lower()
    if not mode and os.environ.get("WANDB_DISABLED", "").strip().lower() in ("1", "on", "yes", "true"):
        return "disabled"  # transformers' variable
    mode = named.get(mode, mode)
    return mode if mode in ("online", "offline", "disabled") else "auto"


def _run_id(asked: str) -> str:
    """A run's id in characters that W&B takes."""
    return re.sub(r"[:;,#?/'\s]", "-", asked.strip()) or secrets.token_hex(4)


def facts_of(run: Run) -> dict[str, Any]:
    """A run's metadata for W&B. Keys of `tracking` that differ from their default override W&B's own variables, which
    override the default; tags are combined."""
    return _facts(
        run.folder,
        {
            "stage": run.stage,
            "fingerprint": run.fingerprint,
            "config": run.config.model_dump(mode="json"),
            "inputs": {name: vars(one) for name, one in run.inputs.items()},
        },
    )


def facts_in(folder: Path) -> dict[str, Any]:
    """Those of a run whose folder had no room for W&B's; {} if it has no run."""
    record = read_json(folder / MANIFEST) or read_json(folder / RUN_FILE)
    return _facts(folder, record) if {"stage", "fingerprint", "config", "inputs"} <= record.keys() else {}


def _facts(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    config, environment = record["config"], os.environ
    tracking = TrackingConfig(**config.get("tracking", {}))
    before = read_json(folder / FOLDER / FACTS_FILE)
    before = before if before.get("fingerprint") == record["fingerprint"] else {}
    default = TrackingConfig.model_fields["project"].default
    project = tracking.project if tracking.project != default else environment.get("WANDB_PROJECT") or default
    group = tracking.group or environment.get("WANDB_RUN_GROUP") or environment.get("TIEBREAK_GROUP")
    alone = "TIEBREAK_GROUP" not in environment  # one id cannot identify all stages of a recipe
    seed = (config.get("training") or {}).get("seed")
    tags = [
        record["stage"],
        *tracking.tags,
        *environment.get("WANDB_TAGS", "").split(","),
        *([f"seed-{seed}"] if seed is not None else []),
        git_commit() or "",
    ]
    inputs = [one for one in record["inputs"].values() if one["kind"] == "run"]
    return {
        "fingerprint": record["fingerprint"],
        "run_id": before.get("run_id") or _run_id(environment.get("WANDB_RUN_ID", "") if alone else ""),
        "stage": record["stage"],
        "project": project,
        "group": group or before.get("group"),
        "job_type": environment.get("WANDB_JOB_TYPE") or record["stage"],
        "name": environment.get("WANDB_NAME") or f"{record['stage']}-{record['fingerprint'][:8]}",
        "tags": list(dict.fromkeys(tag.strip()[:64] for tag in tags if tag.strip())),
        "config": config,
        "artifact": artifact_name(folder),
        "inputs": {artifact_name(Path(one["source"])): one["id"] for one in inputs},
    }
