"""Text files: JSON Lines, JSON arrays, CSV and TSV, each plain or compressed, with or without a byte-order mark.

Every row has the line where it begins; a line that cannot be read is an error with its number, so one broken line never
hides the next.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tiebreak.data.compression import COMPRESSED_ENDINGS, LONGEST_LINE_BYTES, lines_of, open_bytes, read_bytes
from tiebreak.data.tickets import is_ticket, tickets_of
from tiebreak.errors import DataError
from tiebreak.files import RepeatedKeyError, once

Row = tuple[str, dict[str, Any]]
"""A row's place (`file:line`), and the row."""
JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
TABLE_ENDINGS = (".csv", ".tsv")
BLOCK = 1024**2
"""bytes of an array that are read at a time"""


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
    batches = text_batches(path, sys.maxsize)
    if batches is not None:
        return next(batches)
    if is_lines_of_json(path):
        return table_of(json_lines(path))
    return _read_json(path, read_bytes(path).removeprefix(b"\xef\xbb\xbf"))


def text_batches(path: Path, size: int) -> Iterator[Table] | None:
    """The rows of a table or of a JSON array, in batches; None of other forms."""
    if form_of(path) in TABLE_ENDINGS:
        return table_batches(path, size)
    return array_batches(path, size) if not is_lines_of_json(path) and _is_array(path) else None


def _is_array(path: Path) -> bool:
    with open_bytes(path) as stream:
        while block := stream.read(BLOCK):
            if begun := block.lstrip(b"\xef\xbb\xbf \t\r\n"):
                return begun.startswith(b"[")
    return False


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
"""Lines of a file with their numbers; None in place of one that is too long."""


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
    """One object with an array of rows, one array per split, or lines, the first of which is broken."""
    table = _read_object(path, content) if content.lstrip().startswith(b"{") else None
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
        table.bad.append(BadRow(where, f"not JSON ({error.msg.removesuffix(' at')} at column {error.colno})"))
    except RepeatedKeyError as error:
        table.bad.append(BadRow(where, str(error)))
    except RecursionError:
        table.bad.append(BadRow(where, TOO_DEEP))
    except ValueError as error:
        table.bad.append(BadRow(where, f"not JSON ({error})"))


MOST_LEVELS = 100
"""Deeper JSON is not data: it would only break its readers."""
TOO_DEEP = f"nested more than {MOST_LEVELS} levels deep"


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


def array_batches(path: Path, size: int) -> Iterator[Table]:
    """The elements of a file that is one JSON array, in batches, each with the line where it begins.

    Raises:
        DataError: it is not JSON, not UTF-8, or an element is too large.
    """
    with open_bytes(path) as stream:
        window = _Window(path, stream)
        window.skip_space()
        window.at += 1  # the bracket
        table, count = Table(), 0
        window.skip_space()
        while window.character != "]":
            _add_element(table, window)
            if len(table.rows) + len(table.bad) == size:
                yield table
                table, count = Table(), count + 1
        window.at += 1
        window.skip_space()
        if window.character:
            raise DataError(f"{window.where}: not JSON (there is more after the array that begins the file)")
    if table.rows or table.bad or not count:
        yield table


def _add_element(table: Table, window: _Window) -> None:
    where = window.where
    try:
        value, escaped = window.value()
        _add(table, where, value, escaped)
    except RepeatedKeyError as error:
        table.bad.append(BadRow(where, str(error)))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON ({error.msg.removesuffix(' starting at')}): is the file cut off?"
        ) from error
    except RecursionError as error:
        raise DataError(f"{where}: {TOO_DEEP}: remove what is nested, or this element") from error
    window.skip_space()
    if window.character == ",":
        window.at += 1
        window.skip_space()
    elif window.character != "]":
        raise DataError(f"{window.path}: not JSON (the array that begins it does not end): is the file cut off?")


class _Window:
    """A part of a file's text. More is read as needed, and used text is dropped, so that memory stays bounded."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self.path, self.text, self.at, self.ended = path, "", 0, False
        self._stream, self._decoder = stream, codecs.getincrementaldecoder("utf-8-sig")()
        self._line, self._counted, self._lines_read = 1, 0, 0

    @property
    def character(self) -> str:
        """The character at `at`; empty at the file's end."""
        return self.text[self.at : self.at + 1]

    @property
    def where(self) -> str:
        """The place of `at`."""
        self._count()
        return f"{self.path}:{self._line}"

    def skip_space(self) -> None:
        """Go to the next character that is not a space, or to the file's end."""
        while True:
            while self.at < len(self.text) and self.text[self.at].isspace():
                self.at += 1
            if self.at < len(self.text) or self.ended:
                return
            self._read_on()

    def value(self) -> tuple[object, bool]:
        """(the JSON value at `at`, whether it has escapes).

        Raises:
            RepeatedKeyError: an object in it has a key twice; `at` is behind the value all the same.
            json.JSONDecodeError, RecursionError: it is not JSON, or nested too deeply.
            DataError: it is too large.
        """
        start, repeated = self.at, None
        while True:
            try:
                value, end = self._decoded(start)
                if isinstance(value, RepeatedKeyError):
                    repeated = value
                if end < len(self.text) or self.ended:
                    break
            except json.JSONDecodeError:
                if self.ended:
                    raise
            if len(self.text) - self.at > LONGEST_LINE_BYTES:
                raise DataError(f"{self.where}: an element of more than {LONGEST_LINE_BYTES // 1024**2} MB")
            self._read_on()
            start = self.at
        escaped, self.at = "\\u" in self.text[start:end], end
        if repeated is not None:
            raise repeated
        return value, escaped

    def _decoded(self, start: int) -> tuple[object, int]:
        try:
            return _DECODER.raw_decode(self.text, start)
        except RepeatedKeyError as error:
            return error, json.JSONDecoder().raw_decode(self.text, start)[1]

    def _count(self) -> None:
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at

    def _read_on(self) -> None:
        """Read as much as is held already, at least a block."""
        self._count()
        self.text, self.at, self._counted = self.text[self.at :], 0, 0
        content = self._stream.read(max(BLOCK, len(self.text)))
        self.ended = not content
        try:
            added = self._decoder.decode(content, self.ended)
        except UnicodeDecodeError as error:
            line = self._lines_read + error.object.count(b"\n", 0, error.start) + 1
            raise DataError(_not_utf_8(self.path, line, error)) from error
        self._lines_read += added.count("\n")
        self.text += added


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
        if broken := [key for key, rows in value.items() if split_of(key) and rows and key not in lists]:
            raise DataError(f"{path}: {', '.join(broken)}: not a list of objects, as {next(iter(lists))} is")
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
        table.bad.append(BadRow(where, TOO_DEEP))
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


def _not_utf_8(path: Path, line: int, error: UnicodeDecodeError) -> str:
    return f"{path}:{line}: not UTF-8 ({error.reason}): save the file as UTF-8"


# --- CSV and TSV -------------------------------------------------------------------------------------------------------


def table_batches(path: Path, size: int) -> Iterator[Table]:
    """The rows of a table with a header, in batches. Cells are text; empty cells are absent.

    Raises:
        DataError: it is not UTF-8 or not CSV, or a line or a cell is too long.
    """
    csv.field_size_limit(LONGEST_LINE_BYTES)
    with open_bytes(path) as stream:
        lines, first, delimiter = _after_delimiter(path, _text_lines(path, stream))
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        table, count, before, header = Table(of_text=True), 0, first, list[str]()
        try:
            for cells in reader:
                where, before = f"{path}:{before + 1}", first + reader.line_num
                cells = [cell.replace("\r\n", "\n") for cell in cells]  # the file's own line ends, inside quotes too
                if not any(cells):
                    continue
                if not header:
                    header = _header(path, cells)
                elif len(cells) != len(header):
                    table.bad.append(BadRow(where, f"{len(cells)} cells, but the header has {len(header)}"))
                else:
                    table.rows.append((where, dict(zip(header, cells, strict=True))))
                if len(table.rows) + len(table.bad) == size:
                    yield table
                    table, count = Table(of_text=True), count + 1
        except csv.Error as error:
            raise DataError(f"{path}:{first + reader.line_num}: not CSV ({error})") from error
    if table.rows or table.bad or not count:
        yield table


def _text_lines(path: Path, stream: io.BufferedReader) -> Iterator[str]:
    """The lines of a text, with their ends."""
    number = 0
    while piece := stream.readline(LONGEST_LINE_BYTES + 1):
        if len(piece) > LONGEST_LINE_BYTES and not piece.endswith(b"\n"):
            raise DataError(f"{path}:{number + 1}: a line of more than {LONGEST_LINE_BYTES // 1024**2} MB")
        try:
            text = (piece.removeprefix(b"\xef\xbb\xbf") if number == 0 else piece).decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(_not_utf_8(path, number + 1, error)) from error
        number += 1
        yield from io.StringIO(text, newline="")  # at carriage returns, too


def _after_delimiter(path: Path, lines: Iterator[str]) -> tuple[Iterator[str], int, str]:
    """(the table's lines, the number of lines before it, its delimiter)."""
    begun: list[str] = []
    for line in lines:
        if not begun and (excel := re.fullmatch(r"sep=(.)\r?\n", line)):  # the first line of Excel's own tables
            return lines, 1, excel[1]
        begun.append(line)
        if line.strip():
            break
    return itertools.chain(begun, lines), 0, _delimiter(path, begun[-1] if begun else "")


def _delimiter(path: Path, header: str) -> str:
    return "\t" if form_of(path) == ".tsv" else max(",;\t|", key=re.sub(r'"[^"]*"', "", header).count)


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    counts = Counter(names)
    if counts[""] > 1:
        raise DataError(f"{path}: {counts['']} columns have no name: name them in the header, or remove them")
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise DataError(f"{path}: the header names {', '.join(map(repr, twice))} twice")
    return names
