"""Copies a run folder to W&B, in a separate process.

Every stage starts one (`tiebreak.tracking.recorder`); `tiebreak wandb sync` copies in its own process. It follows the
folder as it grows; if anything fails or hangs online, it starts over as an offline run with the same id in the folder's
`wandb/`, which W&B's own program can send later. It may outlive its stage; it ends once another copy of the folder has
started. A copy has each row of metrics.jsonl once: W&B's step is the row's index in the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from tiebreak.tracking.contents import (
    ALERTS,
    FACTS_FILE,
    FOLDER,
    KL_OF,
    STATE_FILE,
    STEP,
    SUMMARIES,
    NewAnswers,
    NewRows,
    best_policy,
    model_files,
    most_telling,
    read_json,
    read_line,
    read_rows,
    reports_in,
    summary_of,
    table_of,
    tables_in,
)

SECONDS_A_CALL = 120.0
"""longest duration of a W&B call while the stage works"""


class Deadline:
    """Ends or replaces this process when a W&B call takes too long: the hanging thread itself cannot."""

    def __init__(self, on_time: Any) -> None:
        self._on_time = on_time
        self._call: float | None = None
        self._all: float | None = None
        threading.Thread(target=self._watch, daemon=True).start()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        self._call = time.monotonic() + SECONDS_A_CALL
        yield
        self._call = None

    def finish_within(self, seconds: float) -> None:
        """Limit all remaining work to this time."""
        self._all = time.monotonic() + seconds

    def _watch(self) -> None:
        while True:
            time.sleep(0.1)
            if any(until is not None and time.monotonic() > until for until in (self._call, self._all)):
                self._on_time()


class Copy:
    """A run folder as a W&B run."""

    def __init__(self, folder: Path, mode: str, identity: str = "") -> None:
        self.folder, self.mode = folder, mode
        self.identity = identity
        """of the process that copies; empty for the command"""
        self.facts = read_json(folder / FOLDER / FACTS_FILE)
        self.sent = 0
        """rows of metrics.jsonl"""
        self._new = NewRows(folder)
        self._alerts = 0
        """alerts sent"""
        self._answers = NewAnswers(folder)
        self.run: Any = None
        self.lacks = ""
        """what W&B did not accept"""
        self.moved = ""
        """why its files are not where the user wants them"""

    def begin(self, **settings: Any) -> None:
        """Open the W&B run; online, resume that of an interrupted stage."""
        import wandb

        self._end_if_replaced()
        facts = self.facts
        self.moved = refused_folder(self.folder)
        self.run = wandb.init(
            id=facts["run_id"],
            resume="allow" if self.mode == "online" else None,  # an offline copy is whole, and replaces what was sent
            project=facts["project"],
            group=facts["group"],
            job_type=facts["job_type"],
            name=facts["name"],
            tags=facts["tags"],
            notes=facts.get("notes"),
            config=facts["config"],
            dir=None if os.environ.get("WANDB_DIR") and not self.moved else str(self.folder),
            mode=cast("Any", self.mode),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False, **settings),
        )
        self._define_metrics()
        self.already = self.run.starting_step
        if self.already:  # an earlier copy has sent those that were there
            self._alerts = len(read_rows(self.folder / ALERTS))

    def _define_metrics(self) -> None:
        """The charts' horizontal axes, and the summaries of each figure."""
        summary = SUMMARIES if aggregates() else None
        self.run.define_metric(STEP)
        for pattern in ("train/*", "eval/*"):
            self.run.define_metric(pattern, step_metric=STEP, summary=summary)
        for name, kl in KL_OF.items():
            self.run.define_metric(name, step_metric=kl, summary=summary)

    def send_rows(self) -> None:
        """The rows added since the last call. An incomplete line waits for its end."""
        self._end_if_replaced()
        for row, named in self._new:
            if self.sent >= self.already:
                self.run.log(named | self._answers_until(row["step"]), step=self.sent)
            self.sent += 1
        self._send_alerts()

    def _answers_until(self, step: int) -> dict[str, Any]:
        """The table of answers to held-out prompts, where an evaluation has added to it."""
        import wandb

        rows = self._answers.until(step)
        columns, cells = table_of(most_telling(rows))
        return {self._answers.name: wandb.Table(columns=columns, data=cells)} if rows else {}

    def _send_alerts(self) -> None:
        for row in read_rows(self.folder / ALERTS)[self._alerts :]:
            self._alerts += 1
            self.run.alert(title=f"{self.facts['name']}: monitor", text=row["message"], level="WARN")

    def _end_if_replaced(self) -> None:
        """The folder belongs to a later copy, or to another run."""
        if is_replaced(self.folder, self.identity):
            if self.run is not None and self.mode == "offline":
                shutil.rmtree(self.run.settings.sync_dir, ignore_errors=True)
            os._exit(0)

    def send_result(self, manifest: Mapping[str, Any]) -> None:
        """A finished run's remaining data: final figures, tables and an artifact."""
        self.run.summary.update(summary_of(self.folder, manifest, aggregated=aggregates()))
        try:
            self._send_tables()
            self._send_artifact(manifest)
        except Exception as error:  # noqa: BLE001 - the run's figures are there
            self.lacks = f"W&B did not accept tables and artifacts ({one_line(error)})"

    def _send_tables(self) -> None:
        import wandb

        for name, (columns, rows) in tables_in(self.folder):
            self.run.log({name: wandb.Table(columns=columns, data=rows)})

    def _send_artifact(self, manifest: Mapping[str, Any]) -> None:
        import wandb

        artifact = wandb.Artifact(self.facts["artifact"], type=self.facts["stage"], metadata=dict(manifest))
        models = model_files(self.folder) if self.facts.get("log_model") else []
        for path in (self.folder / "manifest.json", *reports_in(self.folder), *models):
            artifact.add_file(str(path), name=str(path.relative_to(self.folder)))
        if self.mode == "online":
            self._link()
        self.run.log_artifact(artifact, aliases=["latest", manifest["id"], *self.facts.get("aliases", [])])

    def _link(self) -> None:
        """Link the run's inputs, and name an evaluation's best policy `best`. Inputs that were run offline are missing
        in W&B, which loses only the link."""
        import wandb

        best = self.facts.get("keys", {}).get(f"policy_{best_policy(self.folder)}")
        for name, identity in self.facts["inputs"].items():
            with contextlib.suppress(wandb.Error, ValueError):
                used = self.run.use_artifact(f"{name}:{identity}")
                if name == best and "best" not in used.aliases:
                    used.aliases.append("best")
                    used.save()

    def end(self, finished: bool) -> None:
        """Close the W&B run; an offline copy replaces earlier ones.

        Raises:
            RuntimeError: W&B gave up on its rows, as after a key was revoked, its folder was removed, or its disk is full.
        """
        self._end_if_replaced()
        own, log = Path(self.run.settings.sync_dir), Path(self.run.settings.log_internal)
        self.run.finish(exit_code=0 if finished else 1)
        if not own.is_dir():
            raise RuntimeError(f"{own} was removed")
        if lost := lost_rows(log):
            raise RuntimeError(lost)
        if self.mode == "offline":
            if lost := written_out(own, log, self.sent):
                shutil.rmtree(own, ignore_errors=True)
                raise RuntimeError(lost)
            for path in own.parent.glob(f"offline-run-*-{self.facts['run_id']}"):
                if path != own:
                    shutil.rmtree(path, ignore_errors=True)
        self.path = own


def aggregates() -> bool:
    """Whether W&B summarises figures as min, max and last. A sweep's objective must be a plain number."""
    return "WANDB_SWEEP_ID" not in os.environ


_LOST_ROWS = "filestream: fatal error: "


def lost_rows(log: Path) -> str:
    """Why W&B's service sent no more rows, by its log: `finish` raises nothing then. Empty if it sent all."""
    if not log.is_file():
        return ""
    messages = (read_line(line).get("msg", "") for line in log.read_text(encoding="utf-8").splitlines())
    found = next((message for message in messages if str(message).startswith(_LOST_ROWS)), "")
    return str(found).removeprefix(_LOST_ROWS)


SECONDS_TO_WRITE = 20.0
"""that W&B's service may take, after the run's end, to write the rest of an offline copy"""
_FAILED_WRITE = "writer: failed to save record"


def written_out(folder: Path, log: Path, rows: int) -> str:
    """`rows_lacking`, once W&B's service has written the rest."""
    give_up = time.monotonic() + SECONDS_TO_WRITE
    while (lost := rows_lacking(folder, rows)) and time.monotonic() < give_up:
        if log.is_file() and _FAILED_WRITE in log.read_text(encoding="utf-8", errors="replace"):
            break
        time.sleep(0.2)
    return lost


def rows_lacking(folder: Path, rows: int) -> str:
    """The message if an offline copy lacks some of `rows` rows; otherwise empty. On a full disk, W&B drops rows without
    an error."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("run-*.wandb")
    kinds = [Record.FromString(record).WhichOneof("record_type") for record in records_in(path)]
    found = kinds.count("history")  # tables are among them
    return "" if found >= rows and "exit" in kinds else f"no room for all rows in {folder}"


_HEADER, _BLOCK, _CHUNK = 7, 2**15, 7
"""bytes of a .wandb file: before its first block, of a block, and before each chunk"""


def records_in(path: Path) -> Iterator[bytes]:
    """The whole records of a .wandb file, a log in LevelDB's format: in blocks, records in one or several chunks, each
    behind its checksum (4 bytes), length (2) and kind (1: whole, 2: first, 3: middle, 4: last)."""
    content = path.read_bytes()
    place, record = _HEADER, b""
    while place + _CHUNK <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < _CHUNK:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        chunk = content[place + _CHUNK : place + _CHUNK + length]
        if kind not in (1, 2, 3, 4) or len(chunk) < length:
            return
        record = chunk if kind in (1, 2) else record + chunk
        if kind in (1, 4):
            yield record
        place += _CHUNK + length


def refused_folder(folder: Path) -> str:
    """Why a run's copy is not in WANDB_DIR; empty if it is. W&B would put it among the temporary files."""
    named = os.environ.get("WANDB_DIR")
    if not named:
        return ""
    try:
        inside = Path(named) / FOLDER
        inside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=inside):
            return ""
    except OSError as error:
        return f"WANDB_DIR={named} cannot be written ({error.strerror}), so W&B's files are in {folder / FOLDER}"


def is_replaced(folder: Path, identity: str) -> bool:
    """Whether another copy of this folder has started since."""
    return bool(identity) and read_json(folder / FOLDER / FACTS_FILE).get("copy", identity) != identity


def note(folder: Path, **state: Any) -> None:
    """A copy's report to its stage."""
    path = folder / FOLDER / STATE_FILE
    temporary = path.with_suffix(".tmp")
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps(state), encoding="utf-8")
        temporary.replace(path)


def default_entity() -> str:
    """The user or team of the login; W&B raises without one."""
    import wandb

    return str(wandb.Api().default_entity)


# --- beside a stage ---


def tidy_environment(mode: str) -> None:
    """Remove variables that `Copy.begin` passes on in W&B's own form, or that are empty: W&B refuses to start on them."""
    passed = {"WANDB_TAGS", "WANDB_RUN_ID", *(("WANDB_MODE",) if mode != "auto" else ())}
    for name, value in list(os.environ.items()):
        if name.startswith("WANDB_") and (name in passed or not value.strip()):
            del os.environ[name]


def settle_mode(mode: str) -> str:
    """`auto` resolved by W&B: its settings, otherwise online with a login, offline without."""
    if mode != "auto":
        return mode
    import wandb
    from wandb.sdk.lib import wbauth  # used by `wandb.init`; the public functions would prompt the user

    settings = wandb.setup().settings
    if settings.mode != "online":
        return "disabled" if settings.mode == "disabled" else "offline"
    found = wbauth.authenticate_session(host=settings.base_url, source="", prompt=False, update_session=False)
    return "online" if found else "offline"


def follow(
    folder: Path, mode: str, online_seconds: float, offline_seconds: float, stage: int, identity: str, ended: str = ""
) -> None:
    """Copy a run as it grows, until the process `stage` finishes it or ends."""
    os.nice(5)
    tidy_environment(mode)
    environment = dict(os.environ)  # before W&B adds its service to it
    words = [str(online_seconds), str(offline_seconds), str(stage), identity]
    end = End(stage, ended)

    def give_up(reason: str) -> None:
        """Replace this process by an offline copy, which also ends the hanging call."""
        if is_replaced(folder, identity):
            os._exit(0)
        if mode == "offline":
            note(folder, state="failed", error=reason, message="")
            os._exit(1)
        note(folder, state="running", error=reason, message=f"{reason}. The copy is kept in {folder / FOLDER}")
        again = [
            sys.executable,
            "-m",
            "tiebreak.tracking.wandb_copy",
            "follow",
            str(folder),
            "offline",
            *words,
            end.word,
        ]
        os.execve(sys.executable, again, environment)

    seconds = offline_seconds if mode == "offline" else online_seconds
    deadline = Deadline(lambda: give_up("no response in time"))
    end.then(lambda: deadline.finish_within(seconds))
    try:
        with deadline():
            settled = settle_mode(mode)
        if settled == "disabled":
            note(folder, state="done", manifest_id=_manifest(folder).get("id"))
            return
        _copy(Copy(folder, settled, identity), deadline, end, stage)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is W&B's
        give_up(one_line(error))
    os._exit(0)  # everything is sent and written; W&B's exit handlers would wait for an unresponsive server


def _copy(copy: Copy, deadline: Deadline, end: End, stage: int) -> None:
    failed = read_json(copy.folder / FOLDER / STATE_FILE).get("error")
    with deadline():
        copy.begin(x_stats_pid=stage)
    while not end.word:
        with deadline():
            copy.send_rows()
        end.wait(0.5)
    copy.send_rows()
    manifest = _manifest(copy.folder) if end.word == "finished" else {}
    if manifest:
        copy.send_result(manifest)
    copy.end(finished=bool(manifest))
    own = f"{failed}. 'wandb sync {copy.path}' sends the run" if failed else copy.lacks
    message = ". ".join(text for text in (copy.moved, own) if text)
    note(copy.folder, state="done", mode=copy.mode, manifest_id=manifest.get("id"), message=message)


class End:
    """The end of a stage: it reports `finished`, or its process ends."""

    def __init__(self, stage: int, word: str = "") -> None:
        self.word = word
        self._stage = stage
        self._event = threading.Event()
        self._then: Any = lambda: None
        threading.Thread(target=self._listen, daemon=True).start()

    def then(self, call: Any) -> None:
        """Set the action at the end."""
        self._then = call
        if self.word:
            call()

    def wait(self, seconds: float) -> None:
        """Wait for the end, or this long."""
        if not self._event.wait(seconds) and os.getppid() != self._stage:
            self._set("gone")

    def _listen(self) -> None:
        if not self.word:
            self._set("finished" if os.read(0, 100).startswith(b"finished") else "gone")

    def _set(self, word: str) -> None:
        self.word = self.word or word
        self._event.set()
        self._then()


def _manifest(folder: Path) -> dict[str, Any]:
    return read_json(folder / "manifest.json")


def one_line(error: Exception) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else words[:199] + "…"


if __name__ == "__main__":
    _, folder, mode, online, offline, stage, identity, *ended = sys.argv[1:]
    follow(Path(folder), mode, float(online), float(offline), int(stage), identity, *ended)
