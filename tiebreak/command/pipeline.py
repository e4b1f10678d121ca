"""Run a whole recipe: one process per stage, in order, each only if it is needed.

    tiebreak run --config configs/quickstart/pipeline.yaml [--seed 1] [--root runs/seed-1] [--replace]

A stage whose folder holds this very configuration and these very inputs is up to date and skipped; an interrupted one is
resumed; one whose folder holds something else stops the recipe, unless `--replace` lets it move that folder aside. Where
raters are people, the recipe stops before labelling and says what to do.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic_core import to_jsonable_python

from tiebreak.command.cli import main as start_command
from tiebreak.command.closing import say_recipe_end
from tiebreak.command.hardware import PREFLIGHT, take_preflight
from tiebreak.command.help import print_help, wants_help
from tiebreak.command.launch import accelerate_file
from tiebreak.config import Section, StageConfig, Tracker, check_duration, load_config
from tiebreak.errors import ConfigError, GateError, RunError
from tiebreak.extras import require_training_packages
from tiebreak.process.children import run_following
from tiebreak.process.ending import exit_with_message
from tiebreak.process.limit import leave_in_time, limited_to
from tiebreak.process.preloaded import may_fork, run_forked
from tiebreak.process.settings import process_settings, quiet_upstream, while_importing
from tiebreak.process.stopping import (
    INTERRUPTED,
    OUT_OF_TIME,
    STOPPED,
    TIME_IS_UP,
    Stopped,
    heeding_signals,
    requested,
)
from tiebreak.runs.audit import record_move
from tiebreak.runs.placement import Placement, of_file
from tiebreak.runs.reports import read_reports
from tiebreak.runs.run import MANIFEST, RUN_FILE, folder_state, identify, is_locked, output_folder
from tiebreak.stages import STAGES
from tiebreak.terminal import rule, say, show, tick
from tiebreak.terminal.bars import duration


class StageEntry(Section):
    """One stage of a recipe."""

    stage: str
    """name of the stage, such as sft"""
    config: str
    """the stage's configuration file"""
    accelerate: str | None = None
    """start the stage through accelerate with this file of configs/accelerate"""
    num_processes: int | None = Field(default=None, ge=1)
    """number of processes, one per GPU; null: as in the accelerate file"""
    overrides: dict[str, Any] = {}
    """dotted keys that override the stage's file, seed and root; root changes no path in them"""


class PipelineConfig(Section):
    """`tiebreak run`"""

    name: str
    """the recipe's name; W&B tags every run with it"""
    stages: list[StageEntry] = Field(min_length=1)
    """the stages, in the order to run them"""
    root: str | None = None
    """folder to write to, instead of from_root"""
    from_root: str = ""
    """the folder in the stages' files that root replaces"""
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    """the seed of every stage; null: as in the files. split.seed of prepare stays as it is: runs of different seeds
    hold out the same prompts and can be compared"""
    group: str | None = None
    """W&B group; null: the recipe's name and the time of its first run"""
    replace: bool = False
    """move the folders of different runs aside, and run those stages again"""
    tracking_mode: str | None = None
    """tracking.mode of every stage; null: as in the files"""
    report_to: list[Tracker] | None = None
    """tracking.report_to of every stage; null: as in the files"""
    max_time: str | None = None
    """time limit for the command, such as 8h, 90m or 1h30m: it stops in time, keeps the stage's work and ends with exit
    status 80, and the same command resumes; null: no limit"""

    _is_duration = field_validator("max_time")(check_duration)

    @model_validator(mode="after")
    def _root_replaces_something(self) -> PipelineConfig:
        if self.root and not self.from_root:
            raise ValueError(
                "from_root: missing: the folder that the stages' files name, which root takes the place of"
            )
        return self


def run_pipeline(config: PipelineConfig) -> None:
    """The recipe.

    Raises:
        RunError: a stage failed, or its folder holds another run.
    """
    with limited_to(config.max_time):
        _run_stages(config)


def _run_stages(config: PipelineConfig) -> None:
    for entry in config.stages:
        check_entry(entry)
    group = config.group or group_of(config)
    started = time.monotonic()
    for number, entry in enumerate(config.stages, start=1):
        words = stage_words(entry, config)
        rule(f"[{number}/{len(config.stages)}] {entry.stage}")
        if not run_stage(entry, words, group, config):
            return
    say("")
    tick(f"all {len(config.stages)} stages done", duration(time.monotonic() - started))
    last = config.stages[-1]
    words = stage_words(last, config)
    say_recipe_end(last.stage, load_config(config_class(last.stage), words, last.stage), words)


def check_pipeline(config: PipelineConfig) -> None:
    """The preflight of every training stage whose inputs are there; the others are named with what they wait for.

    Raises:
        RunError: a preflight failed; all of them have run.
    """
    for entry in config.stages:
        check_entry(entry)
    made: list[str] = []
    failed: list[str] = []
    for entry in config.stages:
        words = stage_words(entry, config)
        stage = load_config(config_class(entry.stage), words, entry.stage)
        waits = [path for path in made if path in _folders(STAGES[entry.stage].inputs_of(stage).values())]
        if not (Path(stage.output) / MANIFEST).is_file():
            made.append(os.path.normpath(stage.output))
        if not STAGES[entry.stage].trains:
            continue
        rule(entry.stage)
        if waits:
            say(f"{entry.stage}: checked once {listed(waits)} {'is' if len(waits) == 1 else 'are'} finished")
        elif _in_a_process(entry, [entry.stage, *words, *_launch_words(entry), PREFLIGHT], {}):
            failed.append(entry.stage)
    if failed:
        raise RunError(f"the preflight of {listed(failed)} failed; see above")


def listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    >>> listed(["runs/sft"]), listed(["runs/prepare", "runs/sft", "runs/reward"])
    ('runs/sft', 'runs/prepare, runs/sft and runs/reward')
    """
    return " and ".join([*filter(None, [", ".join(names[:-1])]), names[-1]])


def _folders(sources: Iterable[str]) -> set[str]:
    return {os.path.normpath(source) for source in sources}


def run_stage(
    entry: StageEntry, words: Sequence[str], group: str, config: PipelineConfig, again: str = "tiebreak run"
) -> bool:
    """Run a stage if needed; whether the next one may follow, or people must label first.

    Args:
        again: the command that continues once they have.

    Raises:
        RunError: it failed, or its folder holds another run.
    """
    folder, state, why = stage_state(entry, words)
    if state == "finished":
        lacking = [name for name, report in read_reports(folder).items() if report.state != "done"]
        if not lacking and not load_config(config_class(entry.stage), list(words), entry.stage).checks_when_finished:
            tick(entry.stage, f"up to date, skipped: {folder}: {why}")
            return True
        if lacking:
            say(f"{folder} is finished, and lacks {', '.join(lacking)}")
    if state == "other":
        make_room(folder, why, config.replace)
    elif state == "cut off":
        say(f"resuming {folder}: {why}")
    if _waits_for_people(entry, words, again):
        return False
    _start(entry, words, group, config)
    return True


def make_room(folder: Path, why: str, replace: bool) -> None:
    """Move another run's folder aside, where that is allowed.

    Raises:
        RunError: it is not allowed, it is not a run, or another process writes it.
    """
    if not replace:
        raise RunError(
            f"{folder} holds another run, and nothing is overwritten; {why}. Give --replace to move it aside and "
            "run this stage again, or --root for another folder"
        )
    _move_aside(folder)


def check_entry(entry: StageEntry) -> None:
    if entry.stage not in STAGES:
        near = difflib.get_close_matches(entry.stage, STAGES, n=1)
        raise ConfigError(
            f"stages: no such stage: {entry.stage}; "
            + (f"did you mean {near[0]}?" if near else f"there are {', '.join(STAGES)}")
        )
    if entry.accelerate and not STAGES[entry.stage].launches:
        raise ConfigError(f"stages: '{entry.stage}' runs in one process: leave its accelerate out")
    if entry.num_processes and not entry.accelerate:
        raise ConfigError(
            f"stages: '{entry.stage}' has num_processes without accelerate: name a file of configs/accelerate"
        )


def stage_words(entry: StageEntry, config: PipelineConfig) -> list[str]:
    """The arguments of a stage: its file, the recipe's overrides for all stages (seed, root, tracking), and the stage's own
    overrides, which have precedence."""
    overrides = list(_override_words(entry))
    stage = _stage_config(entry)
    words = ["--config", entry.config]
    if config.seed is not None:
        for key in seed_keys(stage):
            words += [f"--{key}", str(config.seed)]
    if config.root:
        words += moved_words(stage, config.from_root, config.root)
    if config.tracking_mode:
        words += ["--tracking.mode", config.tracking_mode]
    if config.report_to is not None:
        words += ["--tracking.report_to", json.dumps(config.report_to)]
    words += evaluated_words(stage, config)
    return [*words, *overrides]


def _stage_config(entry: StageEntry) -> Any:
    words = ["--config", entry.config, *_override_words(entry)]
    return load_config(config_class(entry.stage), words, entry.stage)


def evaluated_words(stage: Any, config: PipelineConfig) -> list[str]:
    """For a stage with the step contamination: its data may not contain the prompts that the recipe evaluates on either,
    unless they are its own or come from it: a test split is left out without this."""
    if "contamination" not in getattr(stage, "steps", ()):
        return []
    stages = [(entry.stage, _stage_config(entry)) for entry in config.stages]
    own = [Path(one.output).resolve() for _, one in stages]
    read = {Path(source).resolve() for key in ("prompts", "demonstrations") for source in getattr(stage, key)}
    named = list(stage.contamination.against)
    for name, one in stages:
        if name != "evaluate" or one.prompts in named:
            continue
        place = Path(one.prompts).resolve()
        if place not in read and not any(place.is_relative_to(folder) for folder in own):
            named.append(one.prompts)
    return [] if named == stage.contamination.against else ["--contamination.against", json.dumps(named)]


def _override_words(entry: StageEntry) -> Iterator[str]:
    def words(key: str, value: Any) -> Iterator[str]:
        if isinstance(value, dict) and _is_section(config_class(entry.stage), key):
            for inner, one in value.items():
                yield from words(f"{key}.{inner}", one)
        else:
            yield from (f"--{key}", flag_word(value))

    for key, value in entry.overrides.items():
        yield from words(key, value)


def _is_section(model: type[BaseModel], key: str) -> bool:
    """Whether a dotted key is a section of a configuration, whose other keys an override does not change."""
    section: type[BaseModel] | None = model
    for name in key.replace("-", "_").split("."):
        field = section.model_fields.get(name) if section else None
        options = (field.annotation, *get_args(field.annotation)) if field else ()
        section = next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)
    return section is not None


def flag_word(value: Any) -> str:
    """A value in command-line form."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def seed_keys(config: StageConfig) -> list[str]:
    """The keys that `tiebreak run --seed` sets: all named `seed`, except those that the stage keeps (`kept_seeds`), and
    that of `training` if nothing is trained."""

    def walk(section: BaseModel, prefix: str) -> Iterator[str]:
        for name in type(section).model_fields:
            value = getattr(section, name)
            if isinstance(value, BaseModel):
                if name != "training" or config.trains:
                    yield from walk(value, f"{prefix}{name}.")
            elif name == "seed":
                yield f"{prefix}{name}"

    return [key for key in walk(config, "") if key not in config.kept_seeds]


def moved_words(config: BaseModel, from_root: str, root: str, prefix: str = "") -> list[str]:
    """Flags for every key with a path under `from_root`, in lists and mappings too."""
    words: list[str] = []
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            words += moved_words(value, from_root, root, f"{prefix}{name}.")
            continue
        plain = to_jsonable_python(value)
        moved = _moved(plain, from_root, root)
        if moved != plain:
            words += [f"--{prefix}{name}", flag_word(moved)]
    return words


def _moved(value: Any, from_root: str, root: str) -> Any:
    if isinstance(value, dict):
        return {key: _moved(inner, from_root, root) for key, inner in value.items()}
    if isinstance(value, list):
        return [_moved(inner, from_root, root) for inner in value]
    if not isinstance(value, str):
        return value
    scheme = next((start for start in _URLS_OF_FILES if value.startswith(start)), "")
    path, base = Path(os.path.normpath(value.removeprefix(scheme))), Path(os.path.normpath(from_root))
    if path.is_absolute() != base.is_absolute():
        path, base = Path.cwd() / path, Path.cwd() / base
    return f"{scheme}{root / path.relative_to(base)}" if path.is_relative_to(base) else value


_URLS_OF_FILES = ("sqlite:///",)
"""beginning of a path in URL form, as a label store's"""


def stage_state(entry: StageEntry, words: Sequence[str]) -> tuple[Path, str, str]:
    """(folder, state, why): the state that the stage itself would find."""
    config = load_config(config_class(entry.stage), list(words), entry.stage)
    placement = placement_of(entry)
    identity = identify(config, entry.stage, placement=placement)
    folder = output_folder(identity)
    return folder, *folder_state(folder, identity)


def placement_of(entry: StageEntry) -> Placement:
    """The placement of a stage, by its accelerate file."""
    if not entry.accelerate:
        return Placement()
    return of_file(accelerate_file(entry.accelerate, entry.num_processes), entry.num_processes)


def config_class(stage: str) -> type[StageConfig]:
    """The class of a stage's configuration, from a module that imports no model code."""
    module, _, name = STAGES[stage].configuration.partition(":")
    found: type[StageConfig] = getattr(importlib.import_module(module), name)
    return found


def _waits_for_people(entry: StageEntry, words: Sequence[str], again: str) -> bool:
    """Stop before labelling if the raters are people, and print the next steps."""
    stage = STAGES[entry.stage]
    if not stage.by_people_unless:
        return False
    config = load_config(config_class(entry.stage), list(words), entry.stage)
    if getattr(config, stage.by_people_unless):
        return False
    given = shlex.join(words)
    show(
        f"{config.output} waits for raters.",
        f"next: serve the pairs        tiebreak {entry.stage} {given}",
        f"      write the preferences  tiebreak {entry.stage} export {given}",
        f"      and give this '{again}' command again: it continues from there",
    )
    return True


def _start(entry: StageEntry, words: Sequence[str], group: str, config: PipelineConfig) -> None:
    if STAGES[entry.stage].heavy:
        require_training_packages(f"stage {entry.stage}")
    own = load_config(config_class(entry.stage), words, entry.stage).tracking.tags
    words = [entry.stage, *words, "--tracking.tags", flag_word(list(dict.fromkeys([*own, config.name])))]
    words += _launch_words(entry)
    started = time.monotonic()
    leave_in_time(0.0, f"before stage {entry.stage}; finished stages are kept")
    status = _in_a_process(entry, words, {"TIEBREAK_GROUP": group})
    if requested() or status in (STOPPED, INTERRUPTED, TIME_IS_UP):
        number = requested() or {INTERRUPTED: signal.SIGINT, TIME_IS_UP: OUT_OF_TIME}.get(status, signal.SIGTERM)
        raise Stopped(number, f"in stage {entry.stage}; finished stages are kept")
    if status == GateError.exit_status:
        raise GateError(f"stage {entry.stage}: the gate is not met; see its output above. The run itself is finished")
    if status:
        raise RunError(
            f"stage {entry.stage} failed with status {status}; see its output above. Fix it and run the "
            "same command again: finished stages are kept, and this one resumes from its last checkpoint"
        )
    tick(entry.stage, duration(time.monotonic() - started))


def _launch_words(entry: StageEntry) -> list[str]:
    """The flags of a stage's launch."""
    if not entry.accelerate:
        return []
    count = ["--num_processes", str(entry.num_processes)] if entry.num_processes else []
    return ["--accelerate", entry.accelerate, *count]


def _in_a_process(entry: StageEntry, words: list[str], environment: dict[str, str]) -> int:
    """The exit status of a stage in a separate process."""
    missing = process_settings()
    if not entry.accelerate and not missing:
        with while_importing():
            importlib.import_module(STAGES[entry.stage].module)  # for later stages too
        if may_fork():
            return run_forked(lambda: start_command(words), environment)
    command = [sys.executable, "-m", "tiebreak.command.cli", *words]
    return run_following(command, {**os.environ, **missing, **environment})


def _move_aside(folder: Path) -> None:
    if not (folder / MANIFEST).exists() and not (folder / RUN_FILE).exists():
        raise RunError(f"{folder} is no run folder, and --replace moves runs alone: move it away, or give --root")
    if is_locked(folder):
        raise RunError(f"another process is writing {folder}: wait for it, or stop it")
    number = 1
    while (target := folder.with_name(f"{folder.name}.replaced-{number}")).exists():
        number += 1
    record_move(folder, target)
    folder.rename(target)
    say(f"moved {folder} aside, to {target}")


def group_of(config: PipelineConfig) -> str:
    """The group of a recipe's runs."""
    return group_in(Path(config.root or config.from_root or _common_folder(config)), config.name)


def group_in(root: Path, name: str) -> str:
    """One name for all runs of a recipe, stored in their folder so that a resumed recipe uses it again."""
    file = root / "group"
    if file.is_file():
        return file.read_text().strip()
    group = f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    root.mkdir(parents=True, exist_ok=True)
    file.write_text(group)
    return group


def _common_folder(config: PipelineConfig) -> Path:
    """The innermost folder that every stage writes below."""
    outputs = [
        Path(load_config(config_class(entry.stage), stage_words(entry, config), entry.stage).output).absolute().parent
        for entry in config.stages
    ]
    return Path(os.path.commonpath(outputs))


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak run`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if wants_help(words):
        exit_with_message(lambda: print_help(["run", *words]))
        return
    quiet_upstream()  # importing a stage's configuration class imports its dependencies
    with heeding_signals():
        only, words = take_preflight(words)
        start = check_pipeline if only else run_pipeline
        exit_with_message(lambda: start(load_config(PipelineConfig, words, "run")), resumes=True)


if __name__ == "__main__":
    main()
