"""The run folder: what a stage writes, and what the next one may read.

    runs/quickstart/dpo/
        run.json                what this folder is for, written first: stage, fingerprint, inputs
        config.resolved.yaml    every key of the configuration
        metrics.jsonl           a row a logged step
        checkpoints/            complete ones carry a file named COMPLETE
        final/                  the model or the data
        manifest.json           written last, by one atomic rename: without it the folder is an input to nothing

A folder is never overwritten by another configuration or other inputs. The same command after a crash goes on; after
the finish it does nothing. A manifest's `id` is a hash of what was done (stage, configuration, inputs, outputs) and not
of when or where, so two runs that made the same thing have the same id.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from tiebreak import __version__
from tiebreak.config import StageConfig, dump_config, read_yaml
from tiebreak.errors import RunError
from tiebreak.records import write_json, write_text_atomically

MANIFEST = "manifest.json"
RUN_FILE = "run.json"
RESOLVED_CONFIG = "config.resolved.yaml"
METRICS = "metrics.jsonl"
CHECKPOINT_MARKER = "COMPLETE"
_NOT_IDENTITY = ("output", "tracking")
_PINNED_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "bitsandbytes")


@dataclass(frozen=True)
class Input:
    """One thing a stage reads. `id` is a manifest id, a file's hash, or the name of a model."""

    source: str
    kind: str
    id: str


@dataclass
class Run:
    """A run folder being written. Only the main process writes."""

    folder: Path
    stage: str
    config: StageConfig
    inputs: dict[str, Input]
    fingerprint: str
    finished: bool = False
    """True if the folder held this very run, finished, already."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the manifest should say beside the usual: base weights, adapter, tokenizer, template, metrics."""
    _started: float = field(default_factory=time.time)
    _lock: int | None = None

    @property
    def final(self) -> Path:
        return self.folder / "final"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.folder / METRICS

    @property
    def checkpoint(self) -> str | None:
        """The newest complete checkpoint, or None. What a crash left half-written is not one."""
        complete = sorted(
            (int(marker.parent.name.rpartition("-")[2]), marker.parent)
            for marker in self.checkpoints.glob(f"checkpoint-*/{CHECKPOINT_MARKER}")
        )
        return str(complete[-1][1]) if complete else None

    def finish(self) -> dict[str, Any]:
        """Write the manifest: hash everything in `final/`, rename it into place, and return it."""
        outputs = {
            str(path.relative_to(self.folder)): hash_file(path)
            for path in sorted(self.final.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        }
        if not outputs:
            raise RunError(f"{self.folder}: nothing was written to final/: refusing to finish an empty run")
        configuration = self.config.model_dump(mode="json")
        identity = {
            "stage": self.stage,
            "config": _comparable_config(self.config, self.inputs),
            "inputs": {name: one.id for name, one in self.inputs.items()},
            "outputs": outputs,
        }
        manifest = {
            "id": _hash_json(identity),
            "stage": self.stage,
            "fingerprint": self.fingerprint,
            "config": configuration,
            "inputs": {name: vars(one) for name, one in self.inputs.items()},
            "outputs": outputs,
            **self.facts,
            "tiebreak": __version__,
            "git_commit": git_commit(),
            "packages": installed_versions(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(time.time() - self._started, 1),
            "peak_memory_bytes": peak_memory_bytes(),
        }
        write_json(self.folder / MANIFEST, manifest)
        self.finished = True
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        return manifest


def start_run(config: StageConfig, stage: str, inputs: Mapping[str, str], revisable: Sequence[str] = ()) -> Run:
    """Open the output folder of a stage: a new one, the cut-off one to go on with, or the finished one as it is.

    Args:
        inputs: what the stage reads, by the name of the configuration's key.
        revisable: keys and inputs that may change while the run is unfinished, as nothing that it keeps rests on them.

    Raises:
        RunError: an input is not finished, or the folder holds another run, or another process is writing it.
    """
    resolved = {name: identify_input(source) for name, source in inputs.items()}
    fingerprint = fingerprint_of(config, stage, resolved)
    run = Run(folder=Path(config.output), stage=stage, config=config, inputs=resolved, fingerprint=fingerprint)
    lasting = fingerprint_of(config, stage, resolved, leave_out=revisable)
    state = folder_state(run.folder, fingerprint, lasting)
    if state == "other":
        raise RunError(_conflict_message(run))
    if state == "finished":
        run.finished = True
        return run
    if not is_main_process():
        return run
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
    except (NotADirectoryError, FileExistsError, PermissionError) as error:
        raise RunError(f"output: {run.folder} cannot be made ({error.strerror}): give another --output") from error
    run._lock = _lock_folder(run.folder)
    for leftover in run.checkpoints.glob("checkpoint-*"):
        if not (leftover / CHECKPOINT_MARKER).exists():
            shutil.rmtree(leftover)
    shutil.rmtree(run.final, ignore_errors=True)
    run.final.mkdir()
    write_text_atomically(run.folder / RESOLVED_CONFIG, dump_config(config))
    write_json(
        run.folder / RUN_FILE,
        {
            "stage": stage,
            "fingerprint": fingerprint,
            "lasting": lasting,
            "inputs": {name: vars(one) for name, one in resolved.items()},
        },
    )
    return run


def fingerprint_of(config: StageConfig, stage: str, inputs: Mapping[str, Input], leave_out: Sequence[str] = ()) -> str:
    """A hash of all that decides what a stage will make: its name, configuration and inputs, but for those left out."""
    configuration = {k: v for k, v in _comparable_config(config, inputs).items() if k not in leave_out}
    ids = {name: one.id for name, one in inputs.items() if name not in leave_out}
    return _hash_json({"stage": stage, "config": configuration, "inputs": ids})


def _comparable_config(config: StageConfig, inputs: Mapping[str, Input]) -> Any:
    """The configuration less what says where things lie: output, tracking, and the paths of its inputs."""
    configuration = {k: v for k, v in config.model_dump(mode="json").items() if k not in _NOT_IDENTITY}
    return _replace_sources(configuration, {one.source: "input" for one in inputs.values()})


def _replace_sources(value: Any, names: Mapping[str, str]) -> Any:
    """Inputs count by what they hold, not by where they lie: their paths are taken out of the fingerprint."""
    if isinstance(value, dict):
        return {key: _replace_sources(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replace_sources(inner, names) for inner in value]
    return names.get(value, value) if isinstance(value, str) else value


def folder_state(folder: Path, fingerprint: str, lasting: str | None = None) -> str:
    """`new`, `cut off`, `finished` (this very run), or `other`: something else, which must not be overwritten.

    Args:
        lasting: the fingerprint without what may change while a run is unfinished.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"output: {folder} is a file, and nothing is overwritten: give another --output")
    if not folder.exists() or not any(folder.iterdir()):
        return "new"
    if (folder / MANIFEST).exists():
        return "finished" if read_manifest(folder).get("fingerprint") == fingerprint else "other"
    run_file = folder / RUN_FILE
    if run_file.exists():
        begun = json.loads(run_file.read_text())
        if begun["fingerprint"] == fingerprint or (lasting is not None and begun.get("lasting") == lasting):
            return "cut off"
    return "new" if _holds_nothing(folder) else "other"


def _holds_nothing(folder: Path) -> bool:
    """Whether a folder is what a start that came to nothing leaves behind: no checkpoint, no label, no file of others."""
    entries = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    ours = {RESOLVED_CONFIG, RUN_FILE, "run.lock", "final", "checkpoints", "wandb"}
    return entries <= ours and not any(folder.glob(f"checkpoints/checkpoint-*/{CHECKPOINT_MARKER}"))


def identify_input(source: str) -> Input:
    """What an input is and what it holds, by hash.

    Raises:
        RunError: a run folder that is not finished.
    """
    path = Path(source)
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return Input(source, "run", read_manifest(path)["id"])
        if (path / RUN_FILE).is_file():
            stage = json.loads((path / RUN_FILE).read_text())["stage"]
            raise RunError(
                f"{path} is not finished (it has no {MANIFEST}): run 'tiebreak {stage} --config "
                f"{path / RESOLVED_CONFIG}' to the end first"
            )
        if (path / "config.json").is_file():
            return Input(
                source, "model", _hash_json({p.name: hash_file(p) for p in sorted(path.glob("*")) if p.is_file()})
            )
        raise RunError(f"{path} is neither a run folder nor a model: it has no {MANIFEST} and no config.json")
    if path.is_file():
        return Input(source, "file", hash_file(path))
    if source.startswith("runs/") or source.endswith((".jsonl", ".parquet", ".json")):
        raise RunError(f"no such input: {source}; run the stage that writes it first, or mend the path")
    return Input(source, "name", source)


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """The manifest of a finished run.

    Raises:
        RunError: the folder has none, or it is broken.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"no finished run in {folder}: it has no {MANIFEST}") from None
    except json.JSONDecodeError as error:
        raise RunError(f"{path} is broken ({error}): remove {folder} and run its stage again") from error
    if not isinstance(manifest, dict) or "id" not in manifest or "stage" not in manifest:
        raise RunError(f"{path} is not a Tiebreak manifest: it has no id or stage")
    return manifest


def read_metrics(folder: Path | str) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, oldest first; [] where there is none. A torn last line is left out."""
    path = Path(folder) / METRICS
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
    return rows


def manifest_chain(folder: Path | str) -> list[tuple[str, dict[str, Any]]]:
    """(folder, manifest) of a run and of everything it was made from, inputs first, each once."""
    chain: dict[str, tuple[str, dict[str, Any]]] = {}

    def walk(where: str) -> None:
        manifest = read_manifest(where)
        for one in manifest["inputs"].values():
            if one["kind"] == "run" and Path(one["source"]).is_dir():
                walk(one["source"])
        chain.setdefault(manifest["id"], (where, manifest))

    walk(str(folder))
    return list(chain.values())


def _conflict_message(run: Run) -> str:
    difference = ""
    saved, made_by = run.folder / RESOLVED_CONFIG, run.folder / RUN_FILE
    stage = json.loads(made_by.read_text())["stage"] if made_by.is_file() else run.stage
    if stage != run.stage:
        difference = f"; it was made by '{stage}', not '{run.stage}'"
    elif saved.exists():
        before, now = _flat(read_yaml(saved)), _flat(run.config.model_dump(mode="json"))
        keys = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k)]
        keys = [k for k in keys if k.partition(".")[0] not in _NOT_IDENTITY]
        if keys:
            difference = "; it differs in " + ", ".join(
                f"{k} ({before.get(k)!r} there, {now.get(k)!r} now)" for k in keys[:5]
            )
        else:
            difference = "; its configuration is the same, its inputs are not"
    return (
        f"{run.folder} holds another run, and nothing is overwritten{difference}. Give another --output, or move the "
        f"folder away; 'tiebreak run --replace' moves it aside for you"
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _lock_folder(folder: Path) -> int:
    descriptor = os.open(folder / "run.lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunError(f"another process is writing {folder}: wait for it, or stop it") from None
    return descriptor


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_text(text: str) -> str:
    """sha256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_json(value: object) -> str:
    return hash_text(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str))[:24]


def is_main_process() -> bool:
    """True on the process that writes: the only one, or rank 0 of a launch."""
    return int(os.environ.get("RANK", "0")) == 0


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


@contextlib.contextmanager
def progress(total: int, what: str) -> Iterator[Any]:
    """A progress bar with the time left, on standard error, from the main process alone."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, disable=not is_main_process(), mininterval=1.0, dynamic_ncols=True) as bar:
        yield bar


def in_batches(run: Run, keys: list[Any], batch_size: int, compute: Any, what: str) -> list[Any]:
    """`compute(keys of one batch, advance)` for every batch, each kept on disk as soon as it is done.

    A stage that was cut off computes only the batches that are missing, in the same batches as before, so it ends in the
    same result. `compute` returns a JSON value for each key, and may call `advance(count)` as keys get done.
    """
    partial = run.folder / "partial" / what.replace(" ", "-")
    partial.mkdir(parents=True, exist_ok=True)
    results: list[Any] = []
    with progress(len(keys), what) as bar:
        for number, start in enumerate(range(0, len(keys), batch_size)):
            file = partial / f"{number:05d}.json"
            if not file.exists():
                write_json(file, compute(keys[start : start + batch_size], bar.update))
            results += json.loads(file.read_text())
            bar.update(len(results) - bar.n)
    return results


def clear_partial(run: Run) -> None:
    """Remove what `in_batches` kept; called once the run is finished."""
    shutil.rmtree(run.folder / "partial", ignore_errors=True)


def say(*lines: str) -> None:
    """Print to standard error, from the main process alone: standard output is for results."""
    if is_main_process():
        import sys

        print(*lines, sep="\n", file=sys.stderr, flush=True)
