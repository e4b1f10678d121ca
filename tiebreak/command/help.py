"""Help: every key of a command as a flag, with its meaning, type, range and default, from the configuration's class.

    tiebreak dpo --help
    tiebreak dpo --config configs/quickstart/dpo.yaml --help      # with the file's values

Nothing here imports the command's own module.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from tiebreak.command.hardware import NUMBERS, PASSED_ON, PREFLIGHT
from tiebreak.command.table import find_command
from tiebreak.config import read_yaml, take_config_flag
from tiebreak.config.flags import as_flag
from tiebreak.config.keys import ENTRY, ITEM, REQUIRED, Key, keys_of, own_keys
from tiebreak.stages import Command
from tiebreak.terminal import has_colours, paint

WIDTH, WIDEST = 100, 130
"""columns without a terminal, and the maximum"""
FLAG_COLUMN, NARROW_COLUMN = 36, 6
"""where meanings begin, and in a narrow terminal"""
_UNBROKEN = "\xa0"
_TYPES = {int: "INT", float: "NUMBER", str: "TEXT", bool: "true|false"}


def wants_help(words: Sequence[str]) -> bool:
    """Whether the words ask for a help page."""
    return "--help" in words or "-h" in words


def print_help(words: Sequence[str]) -> None:
    """Print the help page of a command.

    Raises:
        ConfigError: `--config` names a file that cannot be read.
    """
    name, command, rest = find_command(words)
    path, _ = take_config_flag([word for word in rest if word not in ("--help", "-h")], name)
    values = read_yaml(path) if path else {}
    width = min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDEST)
    bold = has_colours(sys.stdout)
    print("\n".join(help_lines(name, command, values, width, bold)))


def help_lines(
    name: str, command: Command, values: Mapping[str, Any], width: int = WIDTH, bold: bool = False
) -> Iterator[str]:
    """The page, line by line.

    Args:
        values: a configuration file's, shown beside the defaults.
    """
    model = configuration_class(command) if command.configuration else None
    yield from textwrap.wrap(usage_of(name, command, model), width, subsequent_indent=" " * 7)
    yield ""
    about = about_of(model) if model else ""
    yield from textwrap.wrap(f"{command.summary[0].upper()}{command.summary[1:]}. {about}".strip(), width)
    if command.subcommands:
        yield from ["", _title("subcommands", bold)]
        for one in command.subcommands:
            yield from _row(f"tiebreak {name} {one.name}", one.summary, width)
        yield f"  'tiebreak {name} SUBCOMMAND --help' shows the keys of each."
    if model is None:
        return
    yield from ["", _title("options", bold)]
    for flag, meaning in _options(command):
        yield from _row(flag, meaning, width)
    yield from _keys(model, values, width, bold)


def configuration_class(command: Command) -> type[BaseModel]:
    """The class of a command's configuration, from a module that imports no model code."""
    module, _, name = command.configuration.partition(":")
    found: type[BaseModel] = getattr(importlib.import_module(module), name)
    return found


def usage_of(name: str, command: Command, model: type[BaseModel] | None) -> str:
    words = ["usage: tiebreak", name, *([command.positional] if command.positional else [])]
    if model is None:
        return " ".join([*words, *(["SUBCOMMAND …"] if command.subcommands else [])])
    if "config" in command.sources:
        words.append("--config FILE")
    if "label" in command.sources:
        words.append("(--store URL | --config FILE)")
    return " ".join([*words, "[--key value …]", *(["[--accelerate NAME]"] if command.launches else [])])


def _options(command: Command) -> Iterator[tuple[str, str]]:
    if "config" in command.sources:
        yield "--config FILE", "YAML file with the keys; flags override it"
    if "label" in command.sources:
        yield (
            "--config FILE",
            "a labelling configuration instead of --store; every key of 'tiebreak label --help' is then a flag",
        )
    if command.trains or command.name == "run":
        yield PREFLIGHT, "check data, model, memory and disk, print the page, and end before a model loads"
    if command.launches:
        yield (
            "--accelerate NAME",
            "start through 'accelerate launch', on several devices, with configs/accelerate/NAME.yaml or the file NAME",
        )
        yield from (
            (f"--{name} {'N' if name in NUMBERS else 'HOST'}", f"with --accelerate: {what}")
            for name, what in PASSED_ON.items()
        )
        yield "--dry-run", "print the full command of this launch, and start nothing"
    yield (
        "--help",
        "this page" + ("; with --config FILE, the file's values are shown" if "config" in command.sources else ""),
    )


def about_of(model: type[BaseModel]) -> str:
    """The class's docstring, without the command's own name."""
    lines = " ".join((model.__doc__ or "").split())
    _, closed, rest = lines.partition("`. ") if lines.startswith("`tiebreak") else ("", "", lines)
    return rest if closed or not lines.startswith("`tiebreak") else ""


# --- keys


def _keys(model: type[BaseModel], values: Mapping[str, Any], width: int, bold: bool) -> Iterator[str]:
    """The stage's own keys, required ones first, then each section; W&B's, common to all stages, last."""
    own = sorted(own_keys(model), key=lambda key: key.path == "tracking")
    plain = sorted(
        (key for key in own if key.section is None and key.item_section is None),
        key=lambda key: key.default is not REQUIRED,
    )
    if plain:
        yield from ["", _title("keys", bold)]
    for key in plain:
        yield from _key_row(key, values, width)
    for key in own:
        section = key.section or key.item_section
        if section is not None:
            yield from _section(key, section, values, width, bold)


def _section(key: Key, section: type[BaseModel], values: Mapping[str, Any], width: int, bold: bool) -> Iterator[str]:
    prefix = f"{key.path}." if key.section else f"{key.path}.{ITEM}."
    yield from ["", _title(key.path, bold)]
    about = f"{key.meaning[0].upper()}{key.meaning[1:]}." if key.meaning else about_of(section)
    yield from textwrap.wrap(about, width, initial_indent="  ", subsequent_indent="  ")
    whole = "the whole section, as a YAML mapping" if key.section else f"the whole list, as YAML; {ITEM} counts from 0"
    yield from _row(flag_of(key), f"{whole} {_state(key, values)}", width)
    inside = key.default if isinstance(key.default, BaseModel) else None
    for one in keys_of(section, inside, prefix):
        yield from _key_row(one, values, width)


def _key_row(key: Key, values: Mapping[str, Any], width: int) -> Iterator[str]:
    return _row(flag_of(key), f"{key.meaning} {_state(key, values)}", width)


def flag_of(key: Key) -> str:
    """A key as shown in help: `--training.epochs NUMBER`."""
    if key.entries is not None:
        form = _TYPES.get(key.entries, "VALUE")
        return f"{as_flag(key.path)}.{ENTRY} {form}{'|null' if key.has_optional_entries else ''}"
    return f"{as_flag(key.path)} {value_of(key)}"


def value_of(key: Key) -> str:
    """A key's value, in a usage line's terms."""
    if key.section is not None:
        form = "{…}|true|false" if getattr(key.section, "switch", None) else "{…}"
    elif key.item_section is not None:
        form = "[{…}, …]"
    elif key.choices:
        form = "|".join(key.choices) + (" …" if key.takes_list else "")
    elif key.is_switch:
        return "[true|false]"  # true without a value
    else:
        form = _TYPES.get(key.options[0], "TEXT") + (" …" if key.takes_list else "")
    return f"{form}|null" if key.is_optional else form


def _state(key: Key, values: Mapping[str, Any]) -> str:
    """In brackets: range, the file's value, default."""
    parts = [key.limits] if key.limits else []
    found, value = _look_up(values, key.path)
    if found and key.section is None and key.item_section is None:
        parts.append(f"file: {shown(value)}")
    if key.default is REQUIRED:
        parts += [] if found else ["required in this section" if "." in key.path else "required"]
    elif key.section is None and key.item_section is None:
        parts.append(f"default: {shown(key.default)}")
    elif key.default is None:
        parts.append("default: null")
    return f"[{'; '.join(parts)}]".replace(" ", _UNBROKEN) if parts else ""


def _look_up(values: Any, path: str) -> tuple[bool, Any]:
    for part in path.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False, None
        values = values[part]
    return True, values


def shown(value: Any) -> str:
    if isinstance(value, str):
        return " ".join(value.split())[:60] or "empty"
    if isinstance(value, float) and not isinstance(value, bool):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False, default=str)[:60]


def _row(flag: str, meaning: str, width: int) -> Iterator[str]:
    """A flag beside its meaning; a long flag gets its own line."""
    column = FLAG_COLUMN if width >= 2 * FLAG_COLUMN else NARROW_COLUMN
    wrapped = textwrap.wrap(meaning.strip(), max(24, width - column), break_on_hyphens=False) or [""]
    lines = [line.replace(_UNBROKEN, " ") for line in wrapped]
    if len(flag) + 4 > column:
        yield from _flag_lines(flag, width)
        yield from (f"{'':<{column}}{line}" for line in lines)
    else:
        yield f"  {flag:<{FLAG_COLUMN - 2}}{lines[0]}".rstrip()
        yield from (f"{'':<{FLAG_COLUMN}}{line}" for line in lines[1:])


def _flag_lines(flag: str, width: int) -> Iterator[str]:
    """A flag with the form of its value, broken between choices if it is wider than the page."""
    line = f"  {flag}"
    while len(line) > width and (cut := line.rfind("|", 0, width) + 1):
        yield line[:cut]
        line = f"      {line[cut:]}"
    yield line


def _title(text: str, bold: bool) -> str:
    return paint(text, "bold") if bold else text
