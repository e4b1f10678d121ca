"""Files of records: JSON that is read strictly, errors of rows in short lines, and files that are written atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError


class RepeatedKeyError(ValueError):
    """An object has a key twice. JSON allows that, but only one of the two values would be read."""


def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object from its pairs of key and value: the decoder's `object_pairs_hook`.

    Raises:
        RepeatedKeyError: it has a key twice.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise RepeatedKeyError(f"{next(name for name in names if names.count(name) > 1)!r} is in one object twice")
    return made


def strict_json(text: str) -> Any:
    """The JSON value in a part of a row.

    Raises:
        ValueError: the text is not JSON, or an object has a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None


def parse_json(text: str, what: str) -> Any:
    """The JSON text of a part of a row. Raises ValueError, which names the part."""
    try:
        return strict_json(text)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def explain(error: ValidationError) -> Iterator[str]:
    """A pydantic error as short lines: `key: what is wrong`."""
    for fault in error.errors(include_url=False):
        key = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        yield f"{key}: {message}" if key else message


def first_line(error: Exception) -> str:
    """The reason alone, without pydantic's frame."""
    if isinstance(error, ValidationError):
        return "; ".join(explain(error))
    return (str(error).splitlines() or [type(error).__name__])[0]


def write_text_atomically(path: Path, text: str | Iterable[str]) -> None:
    """Write to a temporary file, fsync, rename: readers see the old file or the complete new one.

    Args:
        text: as a whole, or in pieces.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_to_disk(path.parent)


def flush_to_disk(path: Path) -> None:
    """Return once a file's content, or a folder's list of files, survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: object) -> None:
    """Write one JSON document atomically."""
    write_text_atomically(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: Path, records: Iterable[BaseModel | dict[str, Any]]) -> None:
    """Write JSON Lines atomically."""
    rows = (r.model_dump(mode="json") if isinstance(r, BaseModel) else r for r in records)
    write_text_atomically(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that `write_jsonl` wrote. A line ends at a line feed alone: a text in it may hold U+2028, at
    which `str.splitlines` would cut the row."""
    with path.open("rb") as file:
        yield from map(json.loads, file)
