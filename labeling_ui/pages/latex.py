r"""LaTeX as the MathML converter can show it whole, or the reason why it cannot.

The converter knows matrices, `cases`, `array` and `align*`. amsmath's other environments are rewritten into these, line
breaks outside an environment into a table. What would be shown with a part missing or in the wrong place is refused:
a rater would punish a correct answer for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = re.compile(r"\\[A-Za-z]+\*?|\\.|[{}&]|[^\\{}&]+", re.DOTALL)
_ALIGNED = frozenset("aligned align align* split alignat alignat* alignedat flalign flalign*".split())
_CENTRED = frozenset("gather gather* gathered multline multline*".split())
_TRANSPARENT = frozenset("equation equation* displaymath math".split())
_MATRICES = frozenset("cases matrix pmatrix bmatrix Bmatrix vmatrix Vmatrix smallmatrix".split())
_BRACED = {"dcases": (r"\left\{", r"\right."), "rcases": (r"\left.", r"\right\}"), "drcases": (r"\left.", r"\right\}")}
_TEXTS = frozenset(rf"\{name}" for name in "text textrm textbf textit textsf texttt textnormal mbox hbox".split())
_DROPPED = frozenset((r"\nonumber", r"\notag"))
_BREAKS = frozenset((r"\\", r"\cr", r"\newline"))
_AFTER_BREAK = re.compile(r"\*?[ \t]*(?:\[\s*-?[\d.]+\s*(?:pt|mm|cm|in|ex|em|bp|pc|sp|mu)\s*\])?")
_POSITION = re.compile(r"\s*\[[tbc]\]")
_COLUMNS = re.compile(r"[lcr|\s]*[lcr][lcr|\s]*")
_ESCAPED = re.compile(r"\\([%_&#{} ])")


class UnsupportedFormulaError(ValueError):
    """A formula that cannot be shown whole."""


@dataclass
class _Table:
    """Rows of cells."""

    rows: list[list[str]] = field(default_factory=lambda: [[""]])
    brackets: int = 0
    r"""open `\left` in the current cell"""

    def add(self, source: str) -> None:
        self.rows[-1][-1] += source

    def next_cell(self, *, row: bool) -> None:
        if self.brackets:
            raise UnsupportedFormulaError(r"a cell ends between \left and \right")
        if row:
            self.rows.append([""])
        else:
            self.rows[-1].append("")

    @property
    def source(self) -> str:
        return r" \\ ".join(" & ".join(row) for row in self.trimmed)

    @property
    def trimmed(self) -> list[list[str]]:
        """Without an empty last row, and without rules above the first row or below the last."""
        rows = [list(row) for row in self.rows]
        rows[0][0] = rows[0][0].lstrip().removeprefix(r"\hline")
        if len(rows) > 1 and len(rows[-1]) == 1 and rows[-1][0].strip() in ("", r"\hline"):
            rows.pop()
        return rows


def prepare(source: str) -> str:
    """A formula in the converter's LaTeX.

    Raises:
        UnsupportedFormulaError: the formula cannot be shown whole.
    """
    reader = _Reader(source)
    table = reader.read_table("")
    return _without_environment(table)


def _without_environment(table: _Table) -> str:
    rows = table.trimmed
    if len(rows) == 1 and len(rows[0]) == 1:
        return rows[0][0]
    return _aligned(table) if any(len(row) > 1 for row in rows) else _centred(table)


def _aligned(table: _Table) -> str:
    return rf"\begin{{align*}}{table.source}\end{{align*}}"


def _centred(table: _Table) -> str:
    rows = r" \\ ".join(rf"{{\displaystyle {' '.join(row)}}}" for row in table.trimmed)
    return rf"\begin{{array}}{{c}}{rows}\end{{array}}"


class _Reader:
    """A recursive-descent reader of LaTeX's tokens."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0

    def read_table(self, end: str, closing: str = "") -> _Table:
        r"""Cells up to `\end{end}`, to the brace `closing`, or to the end of the source."""
        table = _Table()
        while (token := self._next()) is not None:
            if token == "}" and closing:
                return table
            if token == r"\end":
                if not end or self._argument() != end:
                    raise UnsupportedFormulaError(r"\end without its \begin")
                return table
            self._read_token(token, table)
        if end or closing:
            raise UnsupportedFormulaError(f"no end of {end or closing}")
        return table

    def _read_token(self, token: str, table: _Table) -> None:
        if token in _BREAKS:
            self._skip(_AFTER_BREAK)
            table.next_cell(row=True)
        elif token == "&":
            table.next_cell(row=False)
        elif token == r"\begin":
            table.add(self._environment(self._argument()))
        elif token == "{":
            table.add("{" + self._group() + "}")
        elif token == r"\substack":
            self._open()
            table.add(rf"\substack{{{self.read_table('', closing='}').source}}}")
        elif token in _TEXTS:
            table.add(self._text(token))
        elif token == r"\label":
            self._argument()
        elif token in (r"\tag", r"\tag*"):
            table.add(rf"\qquad{token}{{{self._argument()}}}")
        elif token not in _DROPPED:
            table.brackets += (token == r"\left") - (token == r"\right")
            table.add(token)

    def _environment(self, name: str) -> str:
        if name in _ALIGNED:
            if name.startswith("alignat") or name == "alignedat":
                self._argument()
            self._skip(_POSITION)
            return _aligned(self.read_table(name))
        if name in _CENTRED:
            self._skip(_POSITION)
            return _centred(self.read_table(name))
        if name in _TRANSPARENT:
            return _without_environment(self.read_table(name))
        if name in _MATRICES:
            return rf"\begin{{{name}}}{self.read_table(name).source}\end{{{name}}}"
        if name in _BRACED:
            left, right = _BRACED[name]
            return rf"{left}\begin{{array}}{{ll}}{self.read_table(name).source}\end{{array}}{right}"
        return self._array(name)

    def _array(self, name: str) -> str:
        if name not in ("array", "subarray", "eqnarray", "eqnarray*"):
            raise UnsupportedFormulaError(f"the environment {name}")
        self._skip(_POSITION)
        columns = "rcl" if name.startswith("eqnarray") else self._argument()
        if not _COLUMNS.fullmatch(columns):
            raise UnsupportedFormulaError(f"the columns {columns}")
        columns = "".join(columns.split()).strip("|").replace("||", "|")
        return rf"\begin{{array}}{{{columns}}}{self.read_table(name).source}\end{{array}}"

    def _group(self) -> str:
        table = self.read_table("", closing="}")
        if len(table.rows) > 1 or len(table.rows[0]) > 1:
            raise UnsupportedFormulaError("a cell or row ends within braces")
        return table.rows[0][0]

    def _text(self, command: str) -> str:
        """Words within a formula; dollars among them enclose formulas again."""
        parts = self._argument().replace(r"\$", "\uff04").split("$")
        if len(parts) % 2 == 0:
            raise UnsupportedFormulaError("an unpaired dollar")
        words = [_ESCAPED.sub(r"\1", part).replace("~", " ").replace("\uff04", "$") for part in parts[::2]]
        formulas = [f"{{{prepare(part)}}}" for part in parts[1::2]]
        written = [f"{command}{{{word}}}" if word else "" for word in words]
        return "".join(one + other for one, other in zip(written, [*formulas, ""], strict=True))

    def _argument(self) -> str:
        """A group as it is written."""
        self._open()
        begin, depth = self._at, 1
        while (token := self._next()) is not None:
            depth += (token == "{") - (token == "}")
            if depth == 0:
                return self._source[begin : self._at - 1]
        raise UnsupportedFormulaError("an open brace")

    def _open(self) -> None:
        self._skip(re.compile(r"\s*"))
        if self._next() != "{":
            raise UnsupportedFormulaError("a missing argument")

    def _next(self) -> str | None:
        match = _TOKEN.match(self._source, self._at)
        if match is None:
            if self._at < len(self._source):
                raise UnsupportedFormulaError("a backslash at the end")
            return None
        self._at = match.end()
        return match.group()

    def _skip(self, pattern: re.Pattern[str]) -> None:
        if match := pattern.match(self._source, self._at):
            self._at = match.end()
