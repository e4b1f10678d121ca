"""The end of a stage: where it saved, and the usual next command."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiebreak.command.help import configuration_class
from tiebreak.command.table import COMMANDS
from tiebreak.config import StageConfig, read_yaml, take_config_flag
from tiebreak.config.flags import as_flag
from tiebreak.config.keys import REQUIRED, own_keys
from tiebreak.errors import TiebreakError
from tiebreak.runs.run import MANIFEST, RESOLVED_CONFIG, TRIAL, identify, output_folder, read_manifest
from tiebreak.shipped import find_shipped
from tiebreak.stages import Next, find_stage
from tiebreak.terminal import say

METRICS_SHOWN = 4


def say_end(
    stage: str, config: StageConfig, words: Sequence[str], others: Sequence[str] = (), *, usual: bool = True
) -> None:
    """Print a finished stage's last lines; in a recipe, where the next stage follows anyway, only the first.

    Args:
        others: further commands that can follow.
        usual: whether the stage's usual next command can follow.
    """
    folder, steps = _folder_of(stage, config), _steps_after(stage, config)
    if not steps or not (folder / MANIFEST).is_file():
        return
    say(saved_line(folder))
    if "TIEBREAK_GROUP" not in os.environ:
        commands = [*([next_command(steps, config, folder, words)] if usual else []), *others]
        say(*(f"next: {command}" for command in commands))


def say_recipe_end(stage: str, config: StageConfig, words: Sequence[str]) -> None:
    """Print a finished recipe's last lines, those of its last stage."""
    folder, steps = _folder_of(stage, config), _steps_after(stage, config)
    recorded = read_manifest(folder).get("next") or shlex.join(["tiebreak", "inspect", str(folder), "--chain"])
    say(saved_line(folder), f"next: {next_command(steps, config, folder, words) if steps else recorded}")


def _folder_of(stage: str, config: StageConfig) -> Path:
    return output_folder(identify(config, stage)) if TRIAL in config.output else Path(config.output)


def _steps_after(stage: str, config: StageConfig) -> list[Next]:
    return [step for step in find_stage(stage).next if not step.when or getattr(config, step.when)]


def saved_line(folder: Path) -> str:
    """`saved: FOLDER/final (files, size; metrics)`, from the manifest; of a last stage, its page."""
    manifest = read_manifest(folder)
    if not find_stage(str(manifest["stage"])).next and (folder / "report.html").is_file():
        return f"saved: {folder / 'report.html'}"
    sizes = [(folder / name).stat().st_size for name in manifest["outputs"] if (folder / name).is_file()]
    metrics = manifest.get("metrics") or {}
    names = {**dict.fromkeys(metrics, ""), **find_stage(str(manifest["stage"])).metrics}
    figures = [f"{names[key] or key} {metrics[key]:.3f}" for key in names if isinstance(metrics.get(key), float)]
    files = f"{len(sizes)} file{'s' if len(sizes) != 1 else ''}, {_size(sum(sizes))}"
    return f"saved: {folder / 'final'} ({'; '.join([files, ', '.join(figures[:METRICS_SHOWN])]).removesuffix('; ')})"


def next_command(steps: Sequence[Next], config: StageConfig, folder: Path, words: Sequence[str]) -> str:
    """The next stage, with its file beside this one's if there is one; otherwise with the flags that it needs."""
    path, _ = take_config_flag(words, "")
    beside = [(step, path.parent / f"{step.stage}.yaml") for step in steps] if path else []
    found = next(((step, file) for step, file in beside if find_shipped(file).is_file()), None)
    if found is None:
        step = steps[0]
        given = {key: _filled(value, config, folder) for key, value in step.keys}
        return " ".join(["tiebreak", step.stage, *_flags(given), *_needed(step, given)])
    step, file = found
    stated = read_yaml(file)
    given = {
        key: str(folder) for key, value in step.keys if value == "{output}" and _look_up(stated, key) != str(folder)
    }
    output = {"output": str(_free_folder(folder, step.stage))} if given else {}
    return " ".join(["tiebreak", step.stage, "--config", shlex.quote(str(file)), *_flags(given | output)])


def _free_folder(made: Path, stage: str) -> Path:
    """A folder for the next stage, beside this one's. Another run's folder is passed over; one made from this run is
    used."""
    for number in itertools.count(1):
        folder = made.parent / (stage if number == 1 else f"{stage}-{number}")
        if not folder.exists() or _reads(folder, made):
            return folder
    raise AssertionError


def _reads(folder: Path, made: Path) -> bool:
    """Whether a run, finished or not, has a folder among its inputs."""
    try:
        values = read_yaml(folder / RESOLVED_CONFIG)
    except (TiebreakError, OSError):
        return False
    return any(Path(text).absolute() == made.absolute() for text in _texts_in(values))


def _texts_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts_in(inner)


def _filled(value: str, config: StageConfig, folder: Path) -> str:
    """`{output}` is the folder, any other word in braces a key of the configuration."""
    return str(folder) if value == "{output}" else str(getattr(config, value.strip("{}")))


def _flags(given: Mapping[str, str]) -> Iterator[str]:
    for key, value in given.items():
        yield from ((as_flag(key) if "." not in key else f"--{key}"), shlex.quote(value))


def _needed(step: Next, given: Mapping[str, str]) -> Iterator[str]:
    """Placeholders of the next stage's other required keys."""
    named = {key.partition(".")[0] for key in given}
    keys = own_keys(configuration_class(COMMANDS[step.stage]))
    for key in sorted(keys, key=lambda key: key.path == "output"):
        if key.default is REQUIRED and key.path not in named:
            yield from (as_flag(key.path), "FOLDER" if key.path == "output" else key.path.upper())


def _look_up(values: Mapping[str, Any], path: str) -> Any:
    here: Any = values
    for part in path.split("."):
        here = here.get(part) if isinstance(here, Mapping) else None
    return here


def _size(count: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
