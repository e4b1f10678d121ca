"""Terminal output: coloured lines where the terminal supports colours, plain text in a pipe, a file or a log.

A stage's messages go to standard error, from the main process only; results go to standard output.
Progress bars are in tiebreak.terminal.progress.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

_CODES = {"bold": "1", "dim": "2", "red": "1;31", "green": "32", "yellow": "33", "cyan": "36"}
_LABELS = {"error": "red", "warning": "yellow", "saved": "green", "report": "green", "next": "cyan"}
_TO_BE_READ = ("error", "report", "next")
"""labels whose paths are not dimmed"""
_CELLS = re.compile(r"\s*(?:\S+\s{2,})*")
_LABEL = re.compile(rf"^({'|'.join(_LABELS)}): ")
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_COLUMNS, _WIDEST_RULE = 80, 100


def process_count() -> int:
    """The processes of this launch, on all machines; 1 without a launch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """True on the process that writes: the only one, or rank 0 of a launch."""
    return int(os.environ.get("RANK", "0")) == 0


def has_colours(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colours. NO_COLOR (no-color.org) disables them."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def say(*lines: str) -> None:
    """Print lines to standard error, from the main process only: standard output is for results.

    In a terminal, a label (`saved:`, `next:`, `warning:`) is coloured, and paths are dimmed.
    """
    if is_main_process():
        _write(sys.stderr, lines)


def complain(message: str) -> None:
    """Print a message to standard error from any process."""
    _write(sys.stderr, [message])


def show(*lines: str) -> None:
    """Print lines of a result to standard output, coloured as by `say`."""
    _write(sys.stdout, lines)


def _write(stream: TextIO, lines: Sequence[str]) -> None:
    text = "\n".join(lines).split("\n")
    shown = (
        [coloured(part) for line in text for part in wrapped(line, columns(stream))]
        if has_colours(stream)
        else map(plain, text)
    )
    encoding = stream.encoding or "utf-8"
    print("\n".join(shown).encode(encoding, errors="replace").decode(encoding), file=stream, flush=True)


def rule(title: str) -> None:
    """A stage's heading: its title in a line across the terminal, on standard error."""
    if not has_colours(sys.stderr):
        say("", title)
        return
    line = max(4, min(columns(sys.stderr), _WIDEST_RULE) - len(title) - 4)
    say("", f"{paint('──', 'dim')} {paint(title, 'bold')} {paint('─' * line, 'dim')}")


def tick(text: str, detail: str = "") -> None:
    """A finished item, after a ✓ (or `done:` if that cannot be printed), on standard error."""
    mark = "✓" if prints(sys.stderr, "✓") else "done:"
    end = f"  {detail}" if detail else ""
    say(f"{paint(mark, 'green')} {text}{paint(end, 'dim')}" if has_colours(sys.stderr) else f"{mark} {text}{end}")


def paint(text: str, style: str) -> str:
    """Text in a style: `bold`, `dim`, `red`, `green`, `yellow` or `cyan`; for a stream that `has_colours`."""
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if text else ""


def plain(text: str) -> str:
    """Text without escape sequences and control characters except line breaks and tabs."""
    return _CONTROL.sub("", text)


def coloured(line: str) -> str:
    """A line with its label coloured and its paths dimmed; a line with colours is unchanged."""
    if "\x1b" in line:
        return line
    found = _LABEL.match(line)
    if found is None:
        return _dim_paths(line)
    label, rest = line[: found.end() - 1], line[found.end() - 1 :]
    return paint(label, _LABELS[found[1]]) + (rest if found[1] in _TO_BE_READ else _dim_paths(rest))


def wrapped(line: str, limit: int) -> list[str]:
    """A line wrapped between words at the terminal's width, below its own indent or, after columns, below the last of them.

    Commands are not wrapped, so that they can be copied; nor are coloured lines.
    """
    if len(line) <= limit or line.startswith("next: ") or "\x1b" in line:
        return [line]
    begin = _CELLS.match(line)
    indent = " " * (min(begin.end(), limit // 2) if begin else 0)
    return textwrap.wrap(line, limit, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _dim_paths(line: str) -> str:
    return re.sub(r"[^\s,;:()'\"]*/[^\s,;()'\"]*", lambda one: _dim_if_path(one[0]), line)


def _dim_if_path(word: str) -> str:
    path = word.rstrip(".:")
    try:
        found = Path(path).exists()
    except OSError:  # too long for a name
        found = False
    return paint(path, "dim") + word[len(path) :] if found else word


def columns(stream: TextIO) -> int:
    """The terminal's width; 80 if unknown."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or _COLUMNS
    except (OSError, ValueError):
        return _COLUMNS


def prints(stream: TextIO, text: str) -> bool:
    """Whether a stream's encoding supports all characters of a text."""
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Cell:
    """A table's cell in a style."""

    text: str
    style: str = ""


def table(rows: Sequence[Sequence[str | Cell]], *, left: Sequence[int] = (0,), colours: bool) -> list[str]:
    """Rows as lines with aligned columns.

    Args:
        left: left-aligned columns; numbers are right-aligned.
        colours: whether styles are shown.
    """
    cells = [[one if isinstance(one, Cell) else Cell(one) for one in row] for row in rows]
    widths = [max(width_of(row[at].text) for row in cells) for at in range(len(cells[0]))] if cells else []

    def filled(at: int, cell: Cell) -> str:
        text = paint(cell.text, cell.style) if colours and cell.style else cell.text
        padding = " " * (widths[at] - width_of(cell.text))
        return text + padding if at in left else padding + text

    return ["  ".join(filled(at, cell) for at, cell in enumerate(row)).rstrip() for row in cells]


def titled_table(
    head: Sequence[str], rows: Sequence[Sequence[str | Cell]], *, left: Sequence[int] = (0,), colours: bool
) -> list[str]:
    """A table under the dimmed names of its columns."""
    return table([[Cell(name, "dim") for name in head], *rows], left=left, colours=colours)


def width_of(text: str) -> int:
    """A text's width in terminal columns: two for a wide character, none for a combining one."""
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )
