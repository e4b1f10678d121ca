"""Text files: JSON Lines, JSON arrays, CSV and TSV, each plain or compressed, with or without a byte-order mark.

Every row has the line where it begins; a line that cannot be read is an error with its number, so one broken line never
hides the next.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiebreak.data.compression import COMPRESSED_ENDINGS, LONGEST_LINE_BYTES, lines_of, open_bytes, read_bytes
from tiebreak.data.tickets import is_ticket, tickets_of
from tiebreak.errors import DataError
from tiebreak.records import RepeatedKeyError, once

Row = tuple[str, dict[str, Any]]
"""A row's place (`file:line`), and the row."""
JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
TABLE_ENDINGS = (".csv", ".tsv")


@dataclass(frozen=True)
class BadRow:
    """An unusable row: place and reason."""

    where: str
    reason: str


@dataclass
class Table:
    """Rows, and the lines that could not be read as one."""

    rows: list[Row] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    of_text: bool = False
    """whether every cell is text, as in CSV"""

    def extend(self, other: Table) -> None:
        """Append another table's rows."""
        self.rows += other.rows
        self.bad += other.bad
        self.of_text = self.of_text or other.of_text


def read_text_file(path: Path) -> Table:
    """A JSON, CSV or TSV file.

    Raises:
        DataError: the file as a whole cannot be read: wrong compression, not UTF-8, truncated.
    """
    if form_of(path) in TABLE_ENDINGS:
        return _read_table(path, read_bytes(path))
    if is_lines_of_json(path):
        return table_of(json_lines(path))
    return _read_json(path, read_bytes(path).removeprefix(b"\xef\xbb\xbf"))


def form_of(path: Path) -> str:
    """The suffix of a file's format: `.jsonl` for `rows.jsonl.gz`."""
    endings = [ending.lower() for ending in path.suffixes]
    if endings and endings[-1] in COMPRESSED_ENDINGS:
        endings.pop()
    return endings[-1] if endings else ""


# --- JSON --------------------------------------------------------------------------------------------------------------


def is_lines_of_json(path: Path) -> bool:
    """Whether the first line is a complete value: the file is then JSON Lines, if others follow or its name says so.

    Raises:
        DataError: it is UTF-16.
    """
    with open_bytes(path) as stream:
        begun = stream.peek(3)[:3]
        if begun.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(f"{path}: UTF-16, not UTF-8: save it as UTF-8")
        lines = (line for _, line in lines_of(stream) if line is None or line.strip(b"\xef\xbb\xbf \t\r\n"))
        first, follows = next(lines, b""), next(lines, b"") != b""
    if first is None:
        return form_of(path) != ".json"
    try:
        json.loads(first.removeprefix(b"\xef\xbb\xbf"))
    except (RecursionError, ValueError):
        return False
    return follows or (form_of(path) != ".json" and first.lstrip(b"\xef\xbb\xbf \t").startswith(b"{"))


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """The rows of a file of JSON Lines, one at a time, each with its place."""
    for lines in line_batches(path, 1):
        yield from rows_of_lines(path, lines)


Lines = Sequence[tuple[int, bytes | None]]
"""Lines of a file with their numbers; None in the place of one that is too long."""


def line_batches(path: Path, size: int) -> Iterator[Lines]:
    """The lines of a file, in batches."""
    with open_bytes(path) as stream:
        lines = lines_of(stream)
        while batch := list(itertools.islice(lines, size)):
            yield batch


def rows_of_lines(path: Path, lines: Lines) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """The rows of some lines of a file of JSON Lines, each with its place."""
    for number, line in lines:
        yield from _line(f"{path}:{number}", line.removeprefix(b"\xef\xbb\xbf") if line and number == 1 else line)


def table_of(rows: Iterable[tuple[str, dict[str, Any] | BadRow]]) -> Table:
    """Rows, and the lines that could not be read as one, as a table."""
    table = Table()
    for where, row in rows:
        if isinstance(row, BadRow):
            table.bad.append(row)
        else:
            table.rows.append((where, row))
    return table


def _line(where: str, line: bytes | None) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    if line is None:
        yield where, BadRow(where, f"a line of more than {LONGEST_LINE_BYTES // 1024**2} MB")
    elif line.strip():
        table = Table()
        _read_line(table, where, line)
        yield from table.rows
        yield from ((where, bad) for bad in table.bad)


def _read_json(path: Path, content: bytes) -> Table:
    """An array, one object with an array of rows, one array per split, or lines of which the first is broken."""
    begun = content.lstrip()
    if begun.startswith(b"["):
        return _read_array(path, _decoded(path, content))
    table = _read_object(path, content) if begun.startswith(b"{") else None
    if table is None:
        table = Table()
        for number, line in enumerate(content.splitlines(), start=1):
            if line.strip():
                _read_line(table, f"{path}:{number}", line)
    return table


def _read_line(table: Table, where: str, line: bytes) -> None:
    try:
        _add(table, where, _value_of(line.decode("utf-8").rstrip("\r\n")), b"\\u" in line, _may_be_deep(line))
    except UnicodeDecodeError as error:
        table.bad.append(BadRow(where, f"not UTF-8 ({error.reason} at byte {error.start})"))
    except json.JSONDecodeError as error:
        table.bad.append(BadRow(where, f"not JSON ({error.msg} at column {error.colno})"))
    except RepeatedKeyError as error:
        table.bad.append(BadRow(where, str(error)))
    except (RecursionError, ValueError) as error:
        table.bad.append(BadRow(where, f"not JSON ({error})"))


MOST_LEVELS = 100
"""Deeper JSON is not data: it would only break its readers."""


def _may_be_deep(line: bytes) -> bool:
    return line.count(b"[") + line.count(b"{") > MOST_LEVELS


def levels_of(value: object) -> int:
    """The levels of a JSON value, counted without recursion."""
    level, layer = 0, [value]
    while layer := [inner for one in layer for inner in _inside(one)]:
        level += 1
    return level


def _inside(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


_DECODER = json.JSONDecoder(object_pairs_hook=once)


def _value_of(line: str) -> object:
    """A line's JSON. A comma after an object is left over from the list that it was in."""
    try:
        return _DECODER.decode(line)
    except json.JSONDecodeError:
        if line.rstrip().endswith(","):
            return _DECODER.decode(line.rstrip()[:-1])
        raise


def _read_array(path: Path, text: str) -> Table:
    """Every element, with the line where it begins."""
    table = Table()
    at, line, counted, escaped = _past(text, text.index("[") + 1), 1, 0, "\\u" in text
    while not text.startswith("]", at):
        line, counted = line + text.count("\n", counted, at), at
        where = f"{path}:{line}"
        try:
            value, end = _DECODER.raw_decode(text, at)
            _add(table, where, value, escaped)
        except RepeatedKeyError as error:
            _, end = json.JSONDecoder().raw_decode(text, at)
            table.bad.append(BadRow(where, str(error)))
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(
                f"{where}: not JSON ({getattr(error, 'msg', 'nested too deeply')}): is the file cut off?"
            ) from error
        at = _past(text, end)
        if text.startswith(",", at):
            at = _past(text, at + 1)
        elif not text.startswith("]", at):
            raise DataError(f"{path}: not JSON (the array that begins it does not end): is the file cut off?")
    if text[at + 1 :].strip():
        line += text.count("\n", counted, _past(text, at + 1))
        raise DataError(f"{path}:{line}: not JSON (there is more after the array that begins the file)")
    return table


def _past(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _read_object(path: Path, content: bytes) -> Table | None:
    """The rows inside one object: its only list of objects, or one list per split. None if it is not a single object.

    Raises:
        DataError: an object in it has a key twice.
    """
    from tiebreak.data.splits import split_of

    try:
        value = json.loads(content, object_pairs_hook=once)
    except RepeatedKeyError as error:
        raise DataError(f"{path}: {error}") from None
    except (RecursionError, ValueError):
        return None
    if (tickets := tickets_of(value)) is not None:
        value = {"tickets": tickets}
    lists = {} if is_ticket(value) else {key: rows for key, rows in value.items() if _is_rows(rows)}
    table = Table()
    if lists and all(split_of(key) for key in lists):
        for key, rows in lists.items():
            for number, row in enumerate(rows, start=1):
                _add(table, f"{path}:{key} {number}", {"split": key, **row}, escaped=True)
    elif len(lists) == 1 and not any(name in value and name not in lists for name in _OF_A_ROW):
        ((key, rows),) = lists.items()
        for number, row in enumerate(rows, start=1):
            _add(table, f"{path}:{key} {number}", row, escaped=True)
    else:
        _add(table, f"{path}:1", value, escaped=True)
    return table


_OF_A_ROW = (
    *("prompt", "question", "instruction", "query", "problem", "context", "input"),
    *("messages", "conversations", "conversation", "chosen", "conversation_a"),
)
"""An object with one of these is a row, whatever lists it has; but one of them can be the list of rows."""


def _is_rows(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(row, dict) for row in value)
        and not any({"role", "content"} <= row.keys() or {"from", "value"} <= row.keys() for row in value)
    )


def _add(table: Table, where: str, value: object, escaped: bool, deep: bool = True) -> None:
    """Add a value as a row.

    Args:
        escaped: it has escapes, the only way to write text that no file can hold.
        deep: it may be nested too deeply.
    """
    if not isinstance(value, dict):
        table.bad.append(BadRow(where, f"a {type(value).__name__}, not an object"))
    elif deep and levels_of(value) > MOST_LEVELS:
        table.bad.append(BadRow(where, f"nested more than {MOST_LEVELS} levels deep"))
    elif escaped and (column := _unwritable(value)):
        table.bad.append(BadRow(where, f"{column}: holds an unpaired surrogate, which is no character: remove it"))
    else:
        table.rows.append((where, value))


_SURROGATE = re.compile("[\ud800-\udfff]")


def _unwritable(row: dict[str, Any]) -> str:
    """The first column with an unpaired surrogate."""
    return next((str(name) for name, value in row.items() if any(map(_SURROGATE.search, _texts_in([name, value])))), "")


def _texts_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts_in(inner)


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 ({error.reason}): save the file as UTF-8") from error


# --- CSV and TSV -------------------------------------------------------------------------------------------------------


def _read_table(path: Path, content: bytes) -> Table:
    """A table with a header. Cells are text; empty cells are absent."""
    text = _decoded(path, content.removeprefix(b"\xef\xbb\xbf"))
    csv.field_size_limit(sys.maxsize)
    excel = re.match(r"sep=(.)\r?\n", text)  # the first line of Excel's own tables
    first = int(excel is not None)
    table, before = Table(of_text=True), first
    text, delimiter = (text[excel.end() :], excel[1]) if excel else (text, _delimiter(path, text))
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    try:
        for cells in lines:
            where, before = f"{path}:{before + 1}", first + lines.line_num
            cells = [cell.replace("\r\n", "\n") for cell in cells]  # the file's own line ends, inside quotes too
            if not any(cells):
                continue
            if not header:
                header = _header(path, cells)
            elif len(cells) != len(header):
                table.bad.append(BadRow(where, f"{len(cells)} cells, but the header has {len(header)}"))
            else:
                table.rows.append((where, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise DataError(f"{path}:{first + lines.line_num}: not CSV ({error})") from error
    return table


def _delimiter(path: Path, text: str) -> str:
    header = re.sub(r'"[^"]*"', "", text.lstrip().partition("\n")[0])
    if form_of(path) == ".tsv":
        return "\t"
    return max(",;\t|", key=header.count)


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: the header names {', '.join(map(repr, twice))} twice")
    return names
