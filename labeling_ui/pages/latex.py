r"""LaTeX as Temml reads it: what Temml lacks of amsmath, written otherwise.

Equations are not numbered: a chat answer has no numbers to refer to, and Temml's would count on through the page. Line
breaks and columns outside an environment, which models write, become a table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOKEN = re.compile(r"\\[A-Za-z]+\*?|\\.|[{}&]|[^\\{}&]+|\\", re.DOTALL)
_ENVIRONMENT = re.compile(r"\\(begin|end)\s*\{([A-Za-z]+\*?)\}")
_UNNUMBERED = frozenset("align alignat gather multline equation eqnarray".split())
_RENAMED = {
    "flalign": "align*",
    "flalign*": "align*",
    "eqnarray": "align*",
    "eqnarray*": "align*",
    "xalignat": "alignat*",
}
_TRANSPARENT = frozenset("displaymath math subequations equation equation*".split())
_COLUMNS = re.compile(r"(\\begin\{(?:array|darray)\}(?:\[[tbc]\])?)\{((?:[^{}]|\{[^{}]*\})*)\}")
_SPACING = re.compile(r"[@!><]\s*\{(?:[^{}]|\{[^{}]*\})*\}")
_PARAGRAPH = re.compile(r"[pmb]\s*\{[^{}]*\}")
_POSITION = re.compile(r"(\\begin\{(?:aligned|gathered|alignedat|split)\})\s*\[[tbc]\]")
_LABEL = re.compile(r"\\label\s*\{[^{}]*\}")
_OPERATOR = re.compile(r"\\DeclareMathOperator(\*?)\s*\{?\s*(\\[A-Za-z]+)\s*\}?\s*\{([^{}]*)\}")
_ROOT = re.compile(r"\\root\s*(\{[^{}]*\}|[^\\{}]+?|\\[A-Za-z]+)\s*\\of\b")
_DOTS = re.compile(r"\\hdotsfor\s*(?:\[[^\]]*\])?\s*\{\s*([1-9])\s*\}")
_INTERTEXT = re.compile(r"(?<=\\\\)(\s*)\\(?:short)?intertext\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_STAR = re.compile(r"(?<!\\)((?:\\\\)+)\*")
_LETTERS_APART = re.compile(r"\\(?:textnormal|hbox)(?![A-Za-z])")
_BREAKS = frozenset((r"\\", r"\cr", r"\newline"))


class UnsupportedFormulaError(ValueError):
    """A formula that cannot be shown whole."""


def prepare(source: str) -> str:
    """A formula as Temml reads it."""
    source = _COLUMNS.sub(_plain_columns, _ENVIRONMENT.sub(_rename, source))
    for pattern, replacement in (
        (_POSITION, r"\1"),
        (_LABEL, ""),
        (_OPERATOR, r"\\newcommand{\2}{\\operatorname\1{\3}}"),
        (_ROOT, r"\\sqrt[\1]"),
        (_INTERTEXT, r"\1\\text{\2}\\\\ "),
        (_STAR, r"\1"),
        (_LETTERS_APART, r"\\text"),
    ):
        source = pattern.sub(replacement, source)
    source = _DOTS.sub(lambda match: " & ".join([r"\dots"] * int(match[1])), source)
    return _with_environment(source)


def _rename(match: re.Match[str]) -> str:
    name = match[2]
    if name in _TRANSPARENT:
        return ""
    return rf"\{match[1]}{{{_RENAMED.get(name, name + '*' if name in _UNNUMBERED else name)}}}"


def _plain_columns(match: re.Match[str]) -> str:
    """An array's columns without the spacing and paragraphs that LaTeX sets there."""
    columns = _PARAGRAPH.sub("l", _SPACING.sub("", match[2]))
    return f"{match[1]}{{{columns}}}"


def _with_environment(source: str) -> str:
    """Line breaks and columns outside an environment, in one."""
    outside = set(_breaks_outside(source))
    if not outside:
        return source
    name = "aligned" if "&" in outside else "gathered"
    return rf"\begin{{{name}}}{source}\end{{{name}}}"


def _breaks_outside(source: str) -> Iterator[str]:
    """Line breaks and columns that no environment has.

    Raises:
        UnsupportedFormulaError: a line ends within braces, where Temml would not break it.
    """
    opened: list[str] = []
    before = ""
    for match in _TOKEN.finditer(source):
        token = match.group()
        if token in ("{", r"\begin"):
            opened.append(before if before == r"\substack" else token)
        elif token in ("}", r"\end") and opened:
            opened.pop()
        elif token in _BREAKS and opened[-1:] == ["{"]:
            raise UnsupportedFormulaError("a line ends within braces")
        elif not opened and (token == "&" or token in _BREAKS):
            yield token
        before = token if token.strip() else before
