"""The run folder: a stage's output, and the next stage's input.

    runs/quickstart/dpo/
        run.json                identity of the run, written first: stage, fingerprint, inputs
        config.resolved.yaml    every key of the configuration
        metrics.jsonl           one row per logged step
        checkpoints/            complete ones carry a file named COMPLETE (see tiebreak.runs.checkpoints)
        final/                  the model or the data
        manifest.json           written last, by one atomic rename: without it the folder is an input to nothing

A folder is never overwritten by another configuration or other inputs. After a crash, the same command resumes; after
the end it does nothing. A manifest's `id` hashes what was done (stage, configuration, inputs, outputs), not when or
where, so two runs with the same result have the same id.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from tiebreak import __version__
from tiebreak.config import StageConfig, dump_config, read_yaml
from tiebreak.data.sources import data_files, is_data_folder, pinned_source, split_suffix
from tiebreak.errors import RunError
from tiebreak.extras import require_trackers
from tiebreak.files import write_json, write_text_atomically
from tiebreak.hashing import hash_file, hash_json
from tiebreak.measures.functions import load_function
from tiebreak.process import limit
from tiebreak.process.ending import TRACEBACK_FILE, is_full_disk
from tiebreak.process.stopping import check, deferring, interruptible
from tiebreak.runs import audit, checkpoints
from tiebreak.runs.differences import differences
from tiebreak.runs.energy import EnergyMeter
from tiebreak.runs.hub import model_commit
from tiebreak.runs.placement import Placement, global_batch_of, of_process
from tiebreak.stages import find_stage
from tiebreak.terminal import is_main_process, process_count, say
from tiebreak.terminal.progress import progress

MANIFEST = "manifest.json"
RUN_FILE = "run.json"
RESOLVED_CONFIG = "config.resolved.yaml"
METRICS = "metrics.jsonl"
LOCK = "run.lock"
BAD_ROWS = "bad_rows.jsonl"
"""rows of its inputs that a stage dropped, with place and reason"""
FORMAT = 2
"""of run.json and the manifest. Format 1, which was not recorded, had neither processes nor inputs' relative
paths"""
TRIAL = "{trial}"
_NOT_IDENTITY = ("output", "tracking")
_PINNED_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "bitsandbytes")


@dataclass(frozen=True)
class Input:
    """One input of a stage. `id` is a manifest id, a hash of a file's or a folder's content, or the name of a model or
    of hub data with its commit. If that cannot be determined, as offline without a cache, the name alone counts.
    """

    source: str
    kind: str
    id: str


@dataclass
class Run:
    """A run folder being written. Only the main process writes.

    `with start_run(…) as run:` locks the folder; `run.finish()` finishes it. If the block ends earlier, by an exception or
    a signal, the folder is unlocked as it is: the same command resumes from it.
    """

    folder: Path
    identity: Identity
    finished: bool = False
    """True if the folder already held this very run, finished."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The manifest's additional entries: base weights, adapter, tokenizer, template, metrics."""
    checkpoint: str | None = None
    """the one to resume from: the newest that is complete and intact"""
    key: str = ""
    """random, and in every checkpoint: one that was put in from another run is skipped"""
    steps: int | None = None
    """of the training, once it is known"""
    seconds_before: float = 0.0
    """duration of earlier attempts at this run, up to their last checkpoint"""
    _started: float = field(default_factory=lambda: time.monotonic())
    _meter: EnergyMeter = field(default_factory=EnergyMeter)
    _lock: int | None = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._meter.stop()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def stage(self) -> str:
        return self.identity.stage

    @property
    def config(self) -> StageConfig:
        return self.identity.config

    @property
    def inputs(self) -> Mapping[str, Input]:
        return self.identity.inputs

    @property
    def fingerprint(self) -> str:
        return self.identity.fingerprint

    @property
    def seconds(self) -> float:
        """Duration of this run over all attempts, by a monotonic clock."""
        return round(self.seconds_before + time.monotonic() - self._started, 1)

    def note_seconds(self) -> None:
        """Write run.json with the duration so far: called with every checkpoint."""
        record = self.identity.record(self.folder) | {"seconds": self.seconds, "key": self.key}
        record["energy"] = self._meter.record()
        record |= {"steps": self.steps} if self.steps is not None else {}
        write_json(self.folder / RUN_FILE, record)

    @property
    def is_on_disk(self) -> bool:
        """Whether its manifest is written, by whichever process."""
        return (self.folder / MANIFEST).is_file()

    @property
    def final(self) -> Path:
        return self.folder / "final"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.folder / METRICS

    def finish(self) -> dict[str, Any]:
        """Write the manifest: hash everything in `final/`, rename it into place, and return it."""
        outputs = {
            str(path.relative_to(self.folder)): hash_file(path)
            for path in sorted(self.final.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        }
        if not outputs:
            raise RunError(f"{self.folder}: nothing was written to final/: refusing to finish an empty run")
        manifest = {
            "id": self.identity.hash_with(outputs),
            **self.identity.record(self.folder),
            "outputs": outputs,
            **self.facts,
            "tiebreak": __version__,
            "git_commit": git_commit(),
            "packages": installed_versions(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": self.seconds,
            "peak_memory_bytes": peak_memory_bytes(),
            "energy": self._meter.record(),
        }
        self._meter.stop()
        inputs = {name: one.id for name, one in self.inputs.items()}
        finished = {"stage": self.stage, "id": manifest["id"], "inputs": inputs, "outputs": outputs}
        audit.record(self.folder, "finished", finished | {"git_commit": manifest["git_commit"]})
        write_json(self.folder / MANIFEST, manifest)  # after the event: what is finished is in the trail
        self.finished = True
        self._unlock()
        return manifest

    def amend(self, facts: Mapping[str, Any], made: Sequence[Path] = ()) -> dict[str, Any]:
        """Add reports of the finished run to the manifest, by one atomic rename; its id does not change.

        Args:
            facts: mappings are merged into existing ones.
            made: files of `final/` that are only reports.
        """
        manifest = read_manifest(self.folder)
        hashes = {str(path.relative_to(self.folder)): hash_file(path) for path in made}
        for key, value in {**facts, "outputs": hashes}.items():
            before = manifest.get(key)
            manifest[key] = {**before, **value} if isinstance(before, dict) and isinstance(value, Mapping) else value
        write_json(self.folder / MANIFEST, manifest)
        return manifest


@dataclass(frozen=True)
class Identity:
    """Everything that decides a stage's result, and identifies its folder."""

    stage: str
    config: StageConfig
    inputs: Mapping[str, Input]
    placement: Placement

    @property
    def fingerprint(self) -> str:
        """A hash of it."""
        return hash_json(self._parts())

    def hash_with(self, outputs: Mapping[str, str]) -> str:
        """A manifest's id: a hash of the identity and the outputs."""
        return hash_json({**self._parts(), "outputs": outputs})

    def record(self, folder: Path) -> dict[str, Any]:
        """The identity's entries in run.json and the manifest."""
        return {
            "format": FORMAT,
            "stage": self.stage,
            "fingerprint": self.fingerprint,
            "processes": self.placement.processes,
            "distributed": self.placement.distributed,
            "global_batch": global_batch_of(self.config, self.placement),
            "config": self.config.model_dump(mode="json"),
            "inputs": {name: _record_input(one, folder) for name, one in self.inputs.items()},
        }

    def differs_from(self, record: Mapping[str, Any], *, finished: bool) -> str:
        """How a folder's record differs; empty if both are the same run."""
        revised = frozenset() if finished else self.config.revisable
        if record["stage"] != self.stage:
            return f"it was made by '{record['stage']}', not '{self.stage}'"
        then: Mapping[str, Any] = record["inputs"]
        found = differences(
            record["config"],
            self.config,
            sources_then=frozenset(str(one["source"]) for one in then.values()),
            sources_now=frozenset(one.source for one in self.inputs.values()),
            ignored=(*_NOT_IDENTITY, *self.config.printed, *revised),
        )
        if found:
            shown = ", ".join(f"{one.key} ({one.then!r} there, {one.now!r} now)" for one in found[:5])
            return f"it differs in {shown}"
        if self.config.trains and (apart := self._placed_apart(record)):
            return apart
        changed = [name for name, one in self.inputs.items() if not _is_same_input(one, then.get(name), record)]
        changed += [name for name in then if name not in self.inputs]
        changed = [name for name in changed if name not in revised]
        return f"its configuration is the same, its inputs are not ({', '.join(changed)})" if changed else ""

    def _placed_apart(self, record: Mapping[str, Any]) -> str:
        """Folders before format 2 do not record their number of processes: nearly all had one."""
        there = Placement(int(record.get("processes", 1)), str(record.get("distributed", "none")))
        if there == self.placement:
            return ""
        return (
            f"it was made on {there} with {record.get('global_batch') or global_batch_of(self.config, there)} rows a step, "
            f"and this command has {self.placement} with {global_batch_of(self.config, self.placement)}: other batches "
            "train other weights"
        )

    def _parts(self) -> dict[str, Any]:
        sources = {one.source: "input" for one in self.inputs.values()}
        apart = {*_NOT_IDENTITY, *self.config.printed}
        configuration = {k: v for k, v in self.config.model_dump(mode="json").items() if k not in apart}
        return {
            "stage": self.stage,
            "config": _replace_sources(configuration, sources),
            "inputs": {name: one.id for name, one in self.inputs.items()},
            **({"placement": vars(self.placement)} if self.config.trains else {}),
        }


def identify(
    config: StageConfig, stage: str, inputs: Mapping[str, str] | None = None, placement: Placement | None = None
) -> Identity:
    """The identity of a stage with this configuration.

    Args:
        inputs: by the name of the configuration's key; None: from the configuration.
        placement: of its processes; None: this process's.

    Raises:
        RunError: an input is missing or not finished.
    """
    sources = stage_inputs(config, stage) if inputs is None else inputs
    resolved = {name: identify_input(source) for name, source in sources.items()}
    return Identity(stage, config, resolved, placement or of_process())


def that_drops(run: Run) -> Run | None:
    """The run, if its configuration drops unusable rows; None if it refuses them."""
    return run if getattr(run.config, "on_bad_row", "refuse") == "drop" else None


def stage_inputs(config: StageConfig, stage: str) -> dict[str, str]:
    """A stage's inputs, including the files of the user's functions, which count by content.

    Raises:
        ConfigError: there is no such function.
    """
    found = {key: load_function(name, key, config.config_folder) for key, name in config.function_names().items()}
    template = config.template_file()
    return (
        find_stage(stage).inputs_of(config)
        | config.further_inputs()
        | {key: function.file for key, function in found.items() if function.file}
        | ({"chat_template": str(template)} if template else {})
    )


def start_run(config: StageConfig, stage: str, inputs: Mapping[str, str] | None = None) -> Run:
    """Open the output folder of a stage: a new one, the interrupted one to resume, or the finished one as it is.

    Args:
        inputs: by the name of the configuration's key; None: from the configuration.

    Raises:
        RunError: an input is not finished, or the folder holds another run, or another process is writing it.
        ConfigError: a tracker's package is not installed.
    """
    if config.tracking.mode != "disabled":
        require_trackers(config.tracking.report_to)
    identity = identify(config, stage, inputs)
    run = Run(folder=output_folder(identity), identity=identity)
    state, why = folder_state(run.folder, identity)
    if state == "other":
        raise RunError(conflict_message(run.folder, why))
    if state == "finished":
        _require_outputs(run.folder)
        run.finished = True
        return run
    try:
        run.key = _key_of(run.folder) or uuid.uuid4().hex
        run.checkpoint = _newest_whole_checkpoint(run.checkpoints, run.key)
        if is_main_process():
            _open_folder(run)
    except OSError as error:
        raise _unwritable(run.folder, error) from error
    return run


def _require_outputs(folder: Path) -> None:
    """Refuse a finished run whose outputs are missing; a merged copy may be removed to save space.

    Raises:
        RunError: names what is missing.
    """
    outputs = read_manifest(folder).get("outputs") or {}
    missing = [name for name in outputs if not name.startswith("final/merged/") and not (folder / name).exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise RunError(
            f"{folder} was finished, and lacks {missing[0]}{more} of what it made: put that back, or move the folder away "
            "and run the stage again"
        )


def _key_of(folder: Path) -> str:
    """The key in run.json; empty where there is no run yet, and in runs of earlier versions."""
    try:
        return str(read_run_file(folder).get("key", ""))
    except RunError:
        return ""


def _newest_whole_checkpoint(folder: Path, key: str) -> str | None:
    """Every process looks separately and finds the same one."""
    for checkpoint in checkpoints.marked(folder):
        fault = checkpoints.fault_of(checkpoint)
        if not fault and checkpoints.facts_of(checkpoint).get("key", key) == key:
            return str(checkpoint)
        say(f"{checkpoint} is {f'damaged and skipped: {fault}' if fault else 'from another run, and skipped'}")
    return None


def output_folder(identity: Identity) -> Path:
    """The run's folder: `{trial}` in the configuration's output is replaced by its fingerprint."""
    return Path(identity.config.output.replace(TRIAL, identity.fingerprint[:12]))


def _open_folder(run: Run) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    run._lock = _lock_folder(run.folder)
    for leftover in run.checkpoints.glob("checkpoint-*"):
        newer = run.checkpoint is None or checkpoints.step_of(leftover) > checkpoints.step_of(Path(run.checkpoint))
        if newer or not (leftover / checkpoints.MARKER).exists():  # its step is computed and written again
            (leftover / checkpoints.MARKER).unlink(missing_ok=True)
            shutil.rmtree(leftover)
    shutil.rmtree(run.final, ignore_errors=True)
    run.final.mkdir()
    (run.folder / TRACEBACK_FILE).unlink(missing_ok=True)
    with contextlib.suppress(RunError):
        before = read_run_file(run.folder)
        run.seconds_before = float(before.get("seconds", 0.0))
        run._meter = EnergyMeter(before.get("energy") or {"kwh": None})  # an older version measured nothing
    run._meter.start()
    placed = f"# {run.identity.placement}"
    if (rows := global_batch_of(run.config, run.identity.placement)) is not None:
        placed += f", {rows} rows an optimizer step"
    write_text_atomically(run.folder / RESOLVED_CONFIG, f"{placed}\n{dump_config(run.config)}")
    run.note_seconds()
    event = "resumed" if run.checkpoint else "started"
    audit.record(run.folder, event, {"stage": run.stage, "fingerprint": run.fingerprint})


def _unwritable(folder: Path, error: OSError) -> Exception:
    if is_full_disk(error):
        return error
    return RunError(f"output: {folder} is not writable ({error.strerror}): give another --output, or make it writable")


def _record_input(one: Input, folder: Path) -> dict[str, Any]:
    """With its path relative to the run folder, which still finds it after both were moved."""
    path = Path(one.source)
    beside = {"path": os.path.relpath(path.resolve(), folder.resolve())} if path.exists() else {}
    return {**vars(one), **beside}


def _is_same_input(now: Input, then: Mapping[str, Any] | None, record: Mapping[str, Any]) -> bool:
    if then is None:  # earlier formats recorded no functions
        return int(record.get("format", 1)) < FORMAT and now.kind == "file"
    if now.kind == then["kind"] == "name" and not ("#" in now.id and "#" in then["id"]):
        return bool(now.id.partition("#")[0] == then["id"].partition("#")[0])  # one of the commits is unknown
    return bool(then["id"] == now.id)


def _replace_sources(value: Any, names: Mapping[str, str]) -> Any:
    """Inputs count by content, not by place: their paths are removed from the fingerprint."""
    if isinstance(value, dict):
        return {key: _replace_sources(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replace_sources(inner, names) for inner in value]
    return names.get(value, value) if isinstance(value, str) else value


def folder_state(folder: Path, identity: Identity) -> tuple[str, str]:
    """(state, why): `new`, `cut off`, `finished` (this very run), or `other`: something else, not to be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"output: {folder} is a file, and nothing is overwritten: give another --output")
    if not folder.exists() or not any(folder.iterdir()):
        return "new", "nothing there yet"
    if (folder / MANIFEST).exists():
        apart = identity.differs_from(read_manifest(folder), finished=True)
        return ("other", apart) if apart else ("finished", "it is finished with this configuration and these inputs")
    if (folder / RUN_FILE).exists():
        apart = identity.differs_from(read_run_file(folder), finished=False)
        if not apart:
            return "cut off", "it was interrupted"
        return ("new", "nothing was kept there") if _holds_nothing(folder) else ("other", apart)
    return ("new", "nothing was kept there") if _holds_nothing(folder) else ("other", "it is no run folder")


def _holds_nothing(folder: Path) -> bool:
    """Whether a folder has only remains of a failed start: no checkpoint, no labels, no other files."""
    entries = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    ours = {
        RESOLVED_CONFIG,
        RUN_FILE,
        TRACEBACK_FILE,
        LOCK,
        BAD_ROWS,
        "final",
        "checkpoints",
        "wandb",
        "trackers",
        "work",
    }
    return entries <= ours and not checkpoints.marked(folder / "checkpoints")


_OF_AN_ADAPTER = (".json", ".jinja", ".model", ".safetensors", ".txt")
"""files of a checkpoint that decide its policy's outputs; files only for training are left out"""


def identify_input(source: str) -> Input:
    """An input's identity, by a hash of its content.

    Raises:
        RunError: a run folder that is not finished.
    """
    path = Path(source)
    if source.startswith("hub:"):
        return Input(source, "name", pinned_source(source))
    if (path / "config.cfg").is_file() or (path / "gliner_config.json").is_file():  # a spaCy or a GLiNER model
        return Input(source, "model", _hash_of(path, path.rglob("*")))
    data, _ = split_suffix(source)
    if is_data_folder(data):
        names = {str(file.relative_to(data)): hash_file(file) for file in data_files(data)}
        return Input(source, "data", hash_json([names, source.removeprefix(str(data))]))
    if path.is_dir():
        return _identify_folder(source, path)
    if path.is_file():
        return Input(source, "file", hash_file(path))
    if source.startswith("runs/") or source.endswith((".jsonl", ".parquet", ".json")):
        raise RunError(f"no such input: {source}; run the stage that writes it first, or fix the path")
    commit = model_commit(source)
    return Input(source, "name", f"{source}#{commit}" if commit else source)


def _identify_folder(source: str, path: Path) -> Input:
    """The identity of a finished run, an adapter or a model."""
    if (path / MANIFEST).is_file():
        return Input(source, "run", read_manifest(path)["id"])
    if (path / RUN_FILE).is_file():
        stage = read_run_file(path)["stage"]
        raise RunError(
            f"{path} is not finished (it has no {MANIFEST}): run 'tiebreak {stage} --config "
            f"{path / RESOLVED_CONFIG}' first"
        )
    if (path / "adapter_config.json").is_file():
        read = (file for file in path.glob("*") if file.suffix in _OF_AN_ADAPTER)
        return Input(source, "model", _hash_of(path, read))
    if (path / "config.json").is_file():
        return Input(source, "model", _hash_of(path, path.glob("*")))
    raise RunError(
        f"{path} is not a run folder, a model or data: it has no {MANIFEST}, no config.json, and no data files"
    )


def _hash_of(folder: Path, entries: Iterable[Path]) -> str:
    """One hash of the names and contents of the files among some entries of a folder."""
    files = sorted(entry for entry in entries if entry.is_file())
    return hash_json({str(file.relative_to(folder)): hash_file(file) for file in files})


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """The manifest of a finished run.

    Raises:
        RunError: the folder has none, or it is broken, or from a later version.
    """
    path = Path(folder) / MANIFEST
    manifest = _read_record(path, f"no finished run in {folder}: it has no {MANIFEST}")
    if "id" not in manifest or "stage" not in manifest:
        raise RunError(f"{path} is not a Tiebreak manifest: it has no id or stage")
    return _checked_record(path, manifest)


def read_run_file(folder: Path | str) -> dict[str, Any]:
    """An unfinished folder's record. Without a configuration, as from older versions, the resolved file's is added.

    Raises:
        RunError: the folder has none, or it is broken, or from a later version.
    """
    path = Path(folder) / RUN_FILE
    record = _read_record(path, f"no run in {folder}: it has no {RUN_FILE}")
    if "stage" not in record:
        raise RunError(f"{path} names no stage: it is not from Tiebreak")
    if "config" not in record:
        saved = Path(folder) / RESOLVED_CONFIG
        record["config"] = read_yaml(saved) if saved.is_file() else {}
    return _checked_record(path, record)


def _read_record(path: Path, missing: str) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(missing) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is broken ({error}): remove {path.parent} and run its stage again") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    return record if isinstance(record, dict) else {}


def _checked_record(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Check the entries common to all versions."""
    written = record.get("format", 1)
    if not isinstance(written, int) or written > FORMAT:
        raise RunError(
            f"{path} has format {written}, but this version of Tiebreak supports up to {FORMAT}: a later version "
            "wrote it; update Tiebreak"
        )
    inputs = record.get("inputs")
    whole = isinstance(inputs, dict) and all(
        isinstance(one, dict) and {"source", "kind", "id"} <= one.keys() for one in inputs.values()
    )
    broken = [
        key for key, good in {"inputs": whole, "config": isinstance(record.get("config"), dict)}.items() if not good
    ]
    if broken:
        raise RunError(f"{path} is broken (no {' and no '.join(broken)}): remove {path.parent} and run its stage again")
    return record


def read_metrics(folder: Path | str) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, oldest first; [] if there is none. An incomplete last line is left out."""
    path = Path(folder) / METRICS
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and "step" in row]


def conflict_message(folder: Path, why: str) -> str:
    """The error for a folder with another run."""
    sweep = f"; in a sweep, write {TRIAL} in output, so that every trial gets its own folder"
    return (
        f"{folder} holds another run, and nothing is overwritten; {why}. Give another --output, or move the folder away; "
        f"'tiebreak run --replace' moves it aside for you{sweep if 'WANDB_SWEEP_ID' in os.environ else ''}"
    )


def _lock_folder(folder: Path) -> int:
    descriptor = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunError(f"another process is writing {folder}: wait for it, or stop it") from None
    return descriptor


def is_locked(folder: Path) -> bool:
    """True while another process writes the folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


def git_commit() -> str | None:
    """The commit of the working folder, `+` appended if files differ from it; None outside a repository."""
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def installed_versions() -> dict[str, str]:
    """Versions of the packages that decide what training computes."""
    versions = {}
    for name in _PINNED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def peak_memory_bytes() -> int:
    """The largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def in_batches(run: Run, keys: list[Any], batch_size: int, compute: Any, what: str, title: str = "") -> list[Any]:
    """`compute(keys of one batch, advance)` for every batch, each stored on disk as soon as it is done.

    An interrupted stage computes only the missing batches, in the same batches as before, so it ends in the
    same result. Several processes share the batches out: each computes its own, and reads those of the others from the
    folder.

    Args:
        compute: returns a JSON value for each key, and may call `advance(count)` as keys get done.
        what: names the batches' folder.
        title: of the progress; empty: `what`.
    """
    title = title or what
    if not is_main_process():
        _wait(lambda: (run.folder / RUN_FILE).is_file(), "the main process to open the run folder")
    partial = run.folder / "partial" / what.replace(" ", "-")
    partial.mkdir(parents=True, exist_ok=True)
    files = [partial / f"{number:05d}.json" for number in range(math.ceil(len(keys) / batch_size))]
    if all(file.exists() for file in files):
        return [result for file in files for result in json.loads(file.read_text())]
    processes, rank = process_count(), int(os.environ.get("RANK", "0"))
    longest = 0.0
    with progress(len(keys), title) as bar:
        for number, file in enumerate(files):
            limit.leave_in_time(longest, f"{number} batches of {title} are kept")
            started = limit.now()
            start = number * batch_size
            kept = file.exists()
            if not kept and number % processes != rank:
                continue
            if not kept:
                with deferring(), interruptible():
                    made = compute(keys[start : start + batch_size], bar.advance)
                write_json(file, made)
                if is_main_process():
                    run.note_seconds()
                longest = max(longest, limit.now() - started)
            check(f"{number + 1} batches of {title} are kept")
            (bar.skip_to if kept else bar.advance_to)(min(start + batch_size, len(keys)))
        if processes > 1:
            _wait(lambda: run.is_on_disk or all(file.exists() for file in files), f"the other processes' {title}")
            bar.advance_to(len(keys))
        if not is_main_process() and run.is_on_disk:
            raise SystemExit(0)  # the main process had all, and has finished the run
    return [result for file in files for result in json.loads(file.read_text())]


def _wait(until: Callable[[], bool], what: str) -> None:
    """Return once it is true. A process that fails ends the others, so that none waits for it."""
    while not until():
        time.sleep(0.1)
        check(f"waiting for {what}")


def clear_partial(run: Run) -> None:
    """Remove what `in_batches` kept; called once the run is finished."""
    shutil.rmtree(run.folder / "partial", ignore_errors=True)
