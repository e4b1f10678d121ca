"""The configuration reference of the documentation: a page for each command, from the classes that its help is made from.

    python -m tiebreak.command.reference      # writes docs/configuration/

`make docs` does so before it builds the site, and a test compares the committed pages with the classes.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tiebreak.command.help import about_of, configuration_class, shown, usage_of
from tiebreak.command.table import COMMANDS
from tiebreak.config.keys import ENTRY, ITEM, REQUIRED, Key, keys_of, own_keys
from tiebreak.stages import Command

FOLDER = Path("docs/configuration")
INDEX = "index.md"
_TYPES = {int: "integer", float: "number", str: "text", bool: "`true` or `false`", Any: "any value"}
_NAMES = re.compile(r"[\w-]+(, [\w-]+)*: ")  # "lora: …", "cpo, simpo: …"
_HEADINGS = ("| key | value | default | meaning |", "|---|---|---|---|")


def main() -> None:
    """Write the pages, and delete those of commands that are gone."""
    parser = argparse.ArgumentParser(description="Write the configuration reference.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help=f"where to write (default: {FOLDER})")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    pages = reference_pages()
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    for stale in {path.name for path in folder.glob("*.md")} - {*pages, INDEX}:
        (folder / stale).unlink()


def reference_pages() -> dict[str, str]:
    """File name → text: a page for each command that takes keys, with those of its subcommands."""
    pages = {}
    for command in COMMANDS.values():
        lines = list(_command(command.name, command, "#"))
        for one in command.subcommands:
            lines += ["", *_command(f"{command.name} {one.name}", one, "##")]
        if any(one.configuration for one in (command, *command.subcommands)):
            pages[f"{command.name}.md"] = "\n".join(lines) + "\n"
    return pages


def _command(name: str, command: Command, level: str) -> Iterator[str]:
    """The section of one command or subcommand, under a heading of `level`."""
    model = configuration_class(command) if command.configuration else None
    summary = f"{command.summary[0].upper()}{command.summary[1:]}."
    yield from [f"{level} tiebreak {name}", ""]
    yield _escaped(" ".join(filter(None, [summary, about_of(model) if model else ""])))
    if model is None:
        return
    yield from ["", "```text", usage_of(name, command, model).removeprefix("usage: "), "```"]
    own = sorted(own_keys(model), key=lambda key: key.path == "tracking")
    plain = [key for key in own if key.section is None and key.item_section is None]
    yield from _table(sorted(plain, key=lambda key: key.default is not REQUIRED))
    for key in own:
        section = key.section or key.item_section
        if section is not None:
            title = key.path if level == "#" else f"{name}: {key.path}"
            yield from ["", f"{level}# {title}", "", *_section(key, section)]


def _section(key: Key, section: type[BaseModel]) -> Iterator[str]:
    """The keys of one section, under the stage's own defaults."""
    yield _escaped(_sentence(key.meaning) or about_of(section))
    state = [_default(key)] if key.default is None or key.default is REQUIRED else []
    listed = [f"A list; `{ITEM}` counts from 0."] if key.item_section else []
    if state or listed:
        yield from ["", " ".join([*listed, *(f"Default: {one}." for one in state)])]
    prefix = f"{key.path}." if key.section else f"{key.path}.{ITEM}."
    inside = key.default if isinstance(key.default, BaseModel) else None
    yield from _table(keys_of(section, inside, prefix))


def _table(keys: Iterable[Key]) -> Iterator[str]:
    rows = [_row(key) for key in keys]
    if rows:
        yield from ["", *_HEADINGS, *rows]


def _row(key: Key) -> str:
    path = f"{key.path}.{ENTRY}" if key.entries is not None else key.path
    values = (*key.choices, str(key.default))
    return f"| `{path}` | {_value(key)} | {_default(key)} | {_escaped(_sentence(key.meaning, values))} |"


def _value(key: Key) -> str:
    """What a key takes, with its range."""
    if key.section is not None:
        forms = ["section"]
    elif key.item_section is not None:
        forms = ["list of sections"]
    elif key.entries is not None:
        forms = [_TYPES.get(key.entries, "text")]
    elif key.choices:
        forms = [", ".join(f"`{word}`" for word in key.choices) + (" (any of them)" if key.takes_list else "")]
    else:
        forms = [_TYPES.get(key.options[0], "text") if not key.takes_list else "list of text"]
    forms += [key.limits] if key.limits else []
    forms += ["or `null`"] if key.is_optional or key.has_optional_entries else []
    return " ".join(forms)


def _default(key: Key) -> str:
    if key.default is REQUIRED:
        return "required"
    if key.section is not None and key.default is not None:
        return "below"
    value = key.default
    if isinstance(value, list):
        value = [one.model_dump(exclude_unset=True) if isinstance(one, BaseModel) else one for one in value]
    text = shown(value)
    return "empty" if text == "empty" else f"`{text}`"


def _sentence(meaning: str, values: Sequence[str] = ()) -> str:
    """A key's meaning as a sentence; names of values and code keep their case."""
    if not meaning:
        return ""
    first = meaning.split(" ", 1)[0]
    named = first.strip(",;:") in values or any(sign in first for sign in "_{.`/=") or _NAMES.match(meaning)
    start = meaning if named or not meaning[0].isascii() else meaning[0].upper() + meaning[1:]
    return start if start[-1] in ".?!…" else f"{start}."


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is: no tags, emphasis or columns of a table."""
    replaced: Mapping[str, str] = {"<": "&lt;", "|": "&#124;", "*": "&#42;"}
    return "".join(replaced.get(sign, sign) for sign in text)


if __name__ == "__main__":
    main()
