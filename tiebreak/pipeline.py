"""Run a whole recipe: a process for each stage, in order, each only if it is needed.

    tiebreak run --config configs/quickstart/pipeline.yaml [--seed 1] [--root runs/seed-1] [--replace]

A stage whose folder holds this very configuration and these very inputs is fresh and skipped; one that was cut off goes
on; one whose folder holds something else stops the recipe, unless `--replace` lets it move that folder aside. Where
raters are people, the recipe stops before labelling and says what to do.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from tiebreak.cli import COMMANDS
from tiebreak.cli import main as start_command
from tiebreak.config import Section, StageConfig, load_config, read_yaml
from tiebreak.errors import ConfigError, RunError, TiebreakError, exit_with_message
from tiebreak.forks import may_fork, run_forked
from tiebreak.launch import process_settings, quiet_upstream, while_importing
from tiebreak.runs import MANIFEST, RUN_FILE, read_manifest


class StageEntry(Section):
    """One stage of a recipe."""

    stage: str
    """prepare, sft, sample, label, reward, dpo, ppo, evaluate or compare"""
    config: str
    accelerate: str | None = None
    """start it through accelerate with this file of configs/accelerate"""
    overrides: dict[str, Any] = {}
    """keys (dotted) laid over the stage's file"""


class PipelineConfig(Section):
    """`tiebreak run`"""

    name: str
    """the recipe's name; W&B tags every run with it"""
    stages: list[StageEntry] = Field(min_length=1)
    root: str | None = None
    """write under this folder in place of the one that the stages' files name"""
    from_root: str = ""
    """the folder that the stages' files name, which `root` takes the place of"""
    seed: int | None = None
    """the seed of every stage; null: as their files say"""
    group: str | None = None
    """W&B's group; null: the recipe's name and the time of its first run"""
    replace: bool = False
    """move folders that hold other runs aside, and run their stages anew"""
    tracking_mode: str | None = None
    """tracking.mode of every stage; null: as their files say"""


def run_pipeline(config: PipelineConfig) -> None:
    """The recipe.

    Raises:
        RunError: a stage failed, or its folder holds another run.
    """
    group = config.group or _group(config)
    started = time.monotonic()
    for number, entry in enumerate(config.stages, start=1):
        if entry.stage not in COMMANDS or entry.stage in ("run", "inspect"):
            raise ConfigError(f"stages: no such stage {entry.stage!r}")
        words = stage_words(entry, config)
        _heading(f"[{number}/{len(config.stages)}] {entry.stage}")
        folder, state, why = stage_state(entry, words)
        if state == "fresh":
            print(f"fresh, skipped: {why}", file=sys.stderr, flush=True)
            continue
        if state == "other":
            if not config.replace:
                raise RunError(
                    f"{folder} holds another run ({why}), and nothing is overwritten: give --replace to move it aside and "
                    "run this stage anew, or --root for another folder"
                )
            _move_aside(folder)
        elif state == "cut off":
            print(f"going on with {folder}: {why}", file=sys.stderr, flush=True)
        if _waits_for_people(entry, words):
            return
        _start(entry, words, group, config)
    print(f"\nall {len(config.stages)} stages done in {(time.monotonic() - started) / 60:.1f} minutes", file=sys.stderr)


def stage_words(entry: StageEntry, config: PipelineConfig) -> list[str]:
    """The words after the stage's name on its command line."""
    words = ["--config", entry.config]
    for key, value in entry.overrides.items():
        words += [f"--{key}", *_flag_words(value)]
    values = read_yaml(Path(entry.config))
    if config.seed is not None:
        if isinstance(values.get("training"), dict) and "seed" in values["training"]:
            words += ["--training.seed", str(config.seed)]
        if "seed" in values:
            words += ["--seed", str(config.seed)]
    if config.root:
        words += _moved(values, config.from_root, config.root)
    if config.tracking_mode:
        words += ["--tracking.mode", config.tracking_mode]
    return words


def _flag_words(value: Any) -> list[str]:
    if value is None:
        return ["null"]
    if isinstance(value, bool):
        return [str(value).lower()]
    if isinstance(value, (list, dict)):
        import json

        return [json.dumps(value)]
    return [str(value)]


def _moved(values: dict[str, Any], from_root: str, root: str, prefix: str = "") -> list[str]:
    """Flags for every key whose path lies under `from_root`."""
    words: list[str] = []
    for key, value in values.items():
        if isinstance(value, dict):
            words += _moved(value, from_root, root, f"{prefix}{key}.")
        elif isinstance(value, str) and (value == from_root or value.startswith(from_root.rstrip("/") + "/")):
            words += [f"--{prefix}{key}", root.rstrip("/") + value[len(from_root.rstrip("/")) :]]
    return words


def stage_state(entry: StageEntry, words: Sequence[str]) -> tuple[Path, str, str]:
    """(folder, state, reason): state is `fresh`, `new`, `cut off` or `other`.

    Only the stage itself can tell its fingerprint (its inputs are hashed with it), so it is asked, in this process: the
    configuration's class and the names of its inputs are all that is needed.
    """
    output = _option(words, "output") or str(read_yaml(Path(entry.config)).get("output", ""))
    folder = Path(output)
    if not folder.exists() or not any(folder.iterdir()):
        return folder, "new", "nothing there yet"
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        stale = stale_input(manifest)
        if stale:
            return folder, "other", stale
        if not _same_config(entry, words, manifest["config"]):
            return folder, "other", "its configuration differs"
        return folder, "fresh", f"{folder} is finished with this configuration and these inputs"
    if (folder / RUN_FILE).exists():
        return folder, "cut off", "it was cut off before its end"
    return folder, "new", "nothing finished there"


def stale_input(manifest: dict[str, Any]) -> str:
    """Which input of a finished run has changed since; empty if none has."""
    from tiebreak.runs import identify_input

    for name, one in manifest["inputs"].items():
        try:
            now = identify_input(one["source"])
        except TiebreakError as error:
            return f"its input {name} is gone: {error}"
        if now.id != one["id"]:
            return f"its input {name} ({one['source']}) has changed since"
    return ""


def _same_config(entry: StageEntry, words: Sequence[str], saved: dict[str, Any]) -> bool:
    """Whether the stage's configuration now is the saved one, but for tracking."""
    model = config_class(entry.stage)
    now = load_config(model, list(words), entry.stage).model_dump(mode="json")
    return {k: v for k, v in now.items() if k != "tracking"} == {k: v for k, v in saved.items() if k != "tracking"}


def config_class(stage: str) -> type[StageConfig]:
    """The class of a stage's configuration, from a module that imports no model code."""
    module, _, name = COMMANDS[stage].configuration.partition(":")
    found: type[StageConfig] = getattr(importlib.import_module(module), name)
    return found


def _option(words: Sequence[str], key: str) -> str | None:
    flags = [i for i, word in enumerate(words) if word == f"--{key}"]
    return words[flags[-1] + 1] if flags else None


def _waits_for_people(entry: StageEntry, words: Sequence[str]) -> bool:
    """Stop before labelling when nobody simulates it, and say how it goes on."""
    if entry.stage != "label":
        return False
    model = config_class("label")
    config = load_config(model, list(words), "label")
    if getattr(config, "simulated", False):
        return False
    given = " ".join(words)
    print(
        f"\n{config.output} waits for raters. Serve the pairs with\n"
        f"  tiebreak label {given}\n"
        "when enough are judged, write the preferences with\n"
        f"  tiebreak label export {given}\n"
        "and give this same 'tiebreak run' command again: it goes on from there."
    )
    return True


def _start(entry: StageEntry, words: Sequence[str], group: str, config: PipelineConfig) -> None:
    words = [entry.stage, *words, "--tracking.tags", config.name]
    if entry.accelerate:
        words += ["--accelerate", entry.accelerate]
    begun = time.monotonic()
    status = _in_a_process(entry, words, {"TIEBREAK_GROUP": group})
    if status:
        raise RunError(
            f"stage {entry.stage} stopped with status {status}; what it printed is above. Mend it and give the "
            "same command again: finished stages are kept, and this one goes on from its last checkpoint"
        )
    print(f"{entry.stage} took {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)


def _in_a_process(entry: StageEntry, words: list[str], environment: dict[str, str]) -> int:
    """The exit status of a stage in a process of its own."""
    missing = process_settings()
    if not entry.accelerate and not missing:
        with while_importing():
            _import_stage(entry.stage)  # for the stages after it too
        if may_fork():
            return run_forked(lambda: start_command(words), environment)
    command = [sys.executable, "-m", "tiebreak.cli", *words]
    return subprocess.run(command, env={**os.environ, **missing, **environment}, check=False).returncode


def _import_stage(stage: str) -> None:
    """What the stage's process needs; PPO's own module imports its models only when it is called."""
    name = COMMANDS[stage].module
    importlib.import_module(name)
    if name == "preference.ppo":
        importlib.import_module("preference.ppo.train")


def _move_aside(folder: Path) -> None:
    number = 1
    while (target := folder.with_name(f"{folder.name}.replaced-{number}")).exists():
        number += 1
    folder.rename(target)
    print(f"moved {folder} aside, to {target}", file=sys.stderr, flush=True)


def _group(config: PipelineConfig) -> str:
    """One name for all runs of a recipe, kept beside them so that a resumed recipe goes on under it."""
    root = Path(config.root or config.from_root or ".")
    file = root / "group"
    if file.is_file():
        return file.read_text().strip()
    group = f"{config.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    root.mkdir(parents=True, exist_ok=True)
    file.write_text(group)
    return group


def _heading(text: str) -> None:
    print(f"\n\x1b[1m{text}\x1b[0m" if sys.stderr.isatty() else f"\n{text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak run`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--replace" in words and (
        words.index("--replace") + 1 == len(words) or words[words.index("--replace") + 1].startswith("--")
    ):
        words.insert(words.index("--replace") + 1, "true")
    quiet_upstream()  # asking a stage for its configuration imports what it imports
    exit_with_message(lambda: run_pipeline(load_config(PipelineConfig, words, "run")))


if __name__ == "__main__":
    main()
