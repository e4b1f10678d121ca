"""LaTeX in prompts and answers as MathML, which browsers render natively: no script, no font, no request.

Formulas are untrusted text. They are parsed within limits and serialised from an allowlist of elements and attributes;
a formula that cannot be shown whole is shown as source.
"""

from __future__ import annotations

import html
import re
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element, ParseError, fromstring

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from labeling_ui.pages.latex import UnsupportedFormulaError, prepare
from labeling_ui.pages.typesetting import typeset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from markdown_it.ruler import RuleOptionsType

MAX_FORMULA_CHARACTERS = 2_000
MAX_NESTING = 40
MAX_FORMULAS = 300
MAX_FORMULAS_CHARACTERS = 20_000
"""Limit for all formulas of a text together; formulas beyond it are shown as source."""

MAX_SOURCE_CHARACTERS = 20_000
"""Limit for a formula shown as source; a longer one is treated as Markdown."""

MAX_READ_CHARACTERS = 1_000_000
"""Limit on characters read to find closing delimiters in one text; beyond it, no further formula is recognised."""

DELIMITERS = (("$$", "$$", True), ("\\[", "\\]", True), ("\\(", "\\)", False), ("$", "$", False))
"""Opening and closing delimiter, and whether the formula is displayed on its own line."""

_ENVIRONMENT = re.compile(r"\\begin\{([A-Za-z]{1,30}\*?)\}")
_OPENING = re.compile(r"\$\$|\\\[|\\begin\{")
_CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)|\\[^\[\](b]", re.DOTALL)
_CLOSINGS = {end: re.compile(rf"{re.escape(end)}|\\.|[{{}}]", re.DOTALL) for end in ("$$", "\\]", "\\)", "$")}
MAX_MATHML_CHARACTERS = 200_000
_MACROS = re.compile(
    r"\\(?:[egx]def|futurelet|newenvironment|renewenvironment|csname|input|include|href|url|includegraphics)\b"
)
_ELEMENTS = """
math mrow mi mn mo ms mtext mspace mfrac msqrt mroot mstyle mpadded mphantom menclose msub msup msubsup munder mover
munderover mmultiscripts mprescripts none mtable mtr mtd
"""
_ATTRIBUTES = """
display displaystyle scriptlevel mathvariant mathcolor stretchy fence separator form lspace rspace accent accentunder
linethickness width height depth voffset minsize maxsize largeop movablelimits symmetric notation
"""
_CLASSES = """
tml-left tml-right tml-jot tml-small tml-tag tml-prime tml-vec tml-overline tml-underline tml-cancel upstrike downstrike
tml-xcancel tml-cancelto menclose sout tml-fbox tml-hat-1 tml-hat-2 tml-hat-3 tml-hat-4 tml-tilde-2 tml-tilde-3
tml-tilde-4 chr-sml chr-med chr-lrg chr-sml-vec chr-med-vec chr-lrg-vec mathcal mathscr longdiv-top longdiv-arc
circle-pad textcircle actuarial tml-shift-left phasor-bottom phasor-angle
"""
_PADDINGS = (0.0, 0.14, 0.25, 0.4, 0.6, 1.0, 2.0)
"""Paddings of cells, in em, that the style sheet has a class for: `left-0` to `left-6`, and likewise `right-`."""
_STYLES = {
    "padding:0": "bare",
    "width:100%": "wide",
    "width:50%": "half",
    "text-align:left": "tml-left",
    "text-align:right": "tml-right",
    "position:relative": "around",
    "position:absolute": "corner",
    "margin-left:-0.1667em": "back",
    "font-weight:bold": "bold",
}
_RULE = re.compile(r"border-(left|right|top|bottom):")
_ALLOWED_ELEMENTS = frozenset(_ELEMENTS.split())
_ALLOWED_ATTRIBUTES = frozenset(_ATTRIBUTES.split())
_ALLOWED_CLASSES = frozenset(_CLASSES.split())
_PLAIN_VALUE = re.compile(r"[\w .%#+-]{0,60}")
_PADDING = re.compile(r"padding-(left|right):(\d+(?:\.\d+)?)(em|pt)")
_COLOUR = re.compile(r"color:(#[0-9a-fA-F]{6})\b")


def add_mathematics(markdown: MarkdownIt) -> MarkdownIt:
    r"""Parse `$…$`, `$$…$$`, `\(…\)`, `\[…\]` and `\begin{…}…\end{…}` as formulas."""
    markdown.inline.ruler.before("escape", "formula", _formula_rule)
    interrupts: RuleOptionsType = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    markdown.block.ruler.before("fence", "formula", _formula_block_rule, interrupts)
    markdown.block.ruler.before("paragraph", "formula_paragraph", _formula_paragraph_rule, interrupts)
    return markdown


def render_formula(source: str, *, display: bool) -> str:
    """A formula as MathML, or its source where it cannot be shown whole or must not be parsed."""
    plain = show_source(source)
    if len(source) > MAX_FORMULA_CHARACTERS or _nesting(source) > MAX_NESTING or _MACROS.search(source):
        return plain
    try:
        element = fromstring(typeset(prepare(source), display=display))
        drawn = "".join(_write(element))
        if len(drawn) > MAX_MATHML_CHARACTERS:
            return plain
        return f"<span class='display'>{drawn}</span>" if display else drawn
    except (UnsupportedFormulaError, ParseError, RecursionError):
        return plain


def show_source(source: str) -> str:
    """A formula as it was written."""
    return f"<code class='formula'>{html.escape(source)}</code>"


def _write(element: Element) -> Iterator[str]:
    if element.tag not in _ALLOWED_ELEMENTS:
        raise UnsupportedFormulaError(f"element {element.tag}")
    yield f"<{element.tag}"
    for name, value in _attributes(element):
        if name in _ALLOWED_ATTRIBUTES and _PLAIN_VALUE.fullmatch(value):
            yield f' {name}="{html.escape(value)}"'
    if classes := _classes(element):
        yield f' class="{" ".join(classes)}"'
    yield ">"
    yield html.escape(element.text or "")
    for child in element:
        yield from _write(child)
        yield html.escape(child.tail or "")
    yield f"</{element.tag}>"


def _attributes(element: Element) -> Iterator[tuple[str, str]]:
    yield from element.attrib.items()
    colour = _COLOUR.search(element.get("style", ""))
    if colour and _is_legible(colour[1]):
        yield "mathcolor", colour[1]


def _is_legible(colour: str) -> bool:
    """Whether a colour is seen on a light and on a dark page, by its relative luminance (WCAG 2.1)."""
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.13 <= 0.2126 * red + 0.7152 * green + 0.0722 * blue <= 0.35


def _classes(element: Element) -> list[str]:
    """The classes of ours in place of Temml's classes and inline styles; those without one are left out."""
    found = [name for name in element.get("class", "").split() if name in _ALLOWED_CLASSES]
    if element.tag == "mspace" and element.get("mathbackground"):
        found.append("rule")
    style = element.get("style", "").replace(": ", ":")
    found += [name for part in style.split(";") if (name := _STYLES.get(part.strip()))]
    found += ["tml-fbox"] if "border:" in style else []
    found += [f"line-{side}" for side in _RULE.findall(style)]
    for side, size, unit in _PADDING.findall(style):
        em = float(size) / (1 if unit == "em" else 10)
        found.append(f"{side}-{min(range(len(_PADDINGS)), key=lambda n: abs(_PADDINGS[n] - em))}")
    return found


def _nesting(source: str) -> int:
    depth = deepest = 0
    for character in source:
        depth += (character == "{") - (character == "}")
        deepest = max(deepest, depth)
    return max(deepest, source.count("\\left"), source.count("\\begin"))


def _formula_rule(state: StateInline, silent: bool) -> bool:
    found = _find_formula(state.src, state.pos, state.posMax, state.env)
    if found is None:
        return False
    if not silent:
        token = state.push("formula", "math", 0)
        _fill(token, found, state.env)
    state.pos = found.end
    return True


def _formula_block_rule(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A display formula over several lines, in which `- b` is not a list and `= b` not a heading."""
    if state.is_code_block(start):
        return False
    first = state.bMarks[start] + state.tShift[start]
    found = (
        _find_formula(state.src, first, state.eMarks[end - 1], state.env) if _OPENING.match(state.src, first) else None
    )
    if found is None or not found.display:
        return False
    last = _last_line(state, start, end, found.end)
    if last < 0 or state.src[found.end : state.eMarks[last]].strip():
        return False
    if not silent:
        token = state.push("formula", "math", 0)
        lines = state.getLines(start, last + 1, state.blkIndent, False).strip()
        _fill(token, replace(found, source=lines[found.opening : len(lines) - found.closing].strip()), state.env)
        token.map = [start, last + 1]
    state.line = last + 1
    return True


def _formula_paragraph_rule(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Lines of a paragraph that share a display formula, which begins after other words."""
    if state.is_code_block(start):
        return False
    stop = _end_of_open_formula(state, state.bMarks[start] + state.tShift[start], start, end)
    last = _last_line(state, start, end, stop) if stop >= 0 else -1
    if last <= start or any(state.isEmpty(line) for line in range(start, last)):
        return False
    if not silent:
        state.push("paragraph_open", "p", 1).map = [start, last + 1]
        inline = state.push("inline", "", 0)
        inline.content = state.getLines(start, last + 1, state.blkIndent, False).strip()
        inline.map, inline.children = [start, last + 1], []
        state.push("paragraph_close", "p", -1)
    state.line = last + 1
    return True


def _end_of_open_formula(state: StateBlock, begin: int, start: int, end: int) -> int:
    """The end of the display formula that a line opens and does not close; −1 if there is none."""
    at, stop = begin, state.eMarks[start]
    if stop - begin > MAX_FORMULA_CHARACTERS or not _OPENING.search(state.src, begin, stop):
        return -1
    while at < stop:
        character = state.src[at]
        found = _find_formula(state.src, at, state.eMarks[end - 1], state.env) if character in "$\\" else None
        if found is not None and found.end > stop:
            return found.end if found.display else -1
        passed = _CODE.match(state.src, at, stop) if character in "`\\" else None
        at = found.end if found else passed.end() if passed else at + 1
    return -1


def _last_line(state: StateBlock, start: int, end: int, position: int) -> int:
    """The line of a position; −1 if it is not in the block."""
    last = bisect_left(state.eMarks, position, start)
    inside = (state.isEmpty(line) or state.sCount[line] >= state.blkIndent for line in range(start + 1, last + 1))
    return last if last < end and all(inside) else -1


@dataclass(frozen=True)
class _Formula:
    source: str
    display: bool
    end: int
    """position after the closing delimiter"""
    opening: int = 0
    closing: int = 0
    """lengths of the delimiters that are not part of the source"""


def _find_formula(source: str, begin: int, limit: int, env: Any) -> _Formula | None:
    """The formula that begins at a position, if one does."""
    if env.get("read", 0) > MAX_READ_CHARACTERS:
        return None
    if environment := _ENVIRONMENT.match(source, begin):
        stop = _find_ending(source, begin, environment[0], limit, env)
        return None if stop < 0 else _Formula(source[begin:stop], display=True, end=stop)
    for opening, closing, display in DELIMITERS:
        if source.startswith(opening, begin):
            inside = begin + len(opening)
            stop = _find_closing(source, inside, closing, limit, env)
            if stop >= 0 and source[inside:stop].strip():
                end = stop + len(closing)
                return _Formula(source[inside:stop].strip(), display, end, len(opening), len(closing))
    return None


def _fill(token: Token, formula: _Formula, env: Any) -> None:
    """A formula's token; those beyond the limits of a text are shown as source."""
    env["formulas"] = env.get("formulas", 0) + 1
    env["formula_characters"] = env.get("formula_characters", 0) + len(formula.source)
    token.content = formula.source
    whole = env["formulas"] <= MAX_FORMULAS and env["formula_characters"] <= MAX_FORMULAS_CHARACTERS
    token.meta = {"display": formula.display, "source": not whole}


def _find_ending(source: str, begin: int, opening: str, limit: int, env: Any) -> int:
    r"""Position after the `\end` of an environment; −1 if it has none."""
    ending, depth = opening.replace("begin", "end", 1), 0
    limit = min(limit, begin + MAX_SOURCE_CHARACTERS)
    for match in re.compile(f"{re.escape(opening)}|{re.escape(ending)}").finditer(source, begin, limit):
        depth += 1 if match[0] == opening else -1
        if depth == 0:
            return _count(match.end(), match.end() - begin, env)
    return _count(-1, limit - begin, env)


def _find_closing(source: str, begin: int, closing: str, limit: int, env: Any) -> int:
    """End of the formula, outside braces; −1 if unclosed.

    A single dollar follows Pandoc: no space inside, no digit after.
    """
    if closing == "$" and source[begin : begin + 1].isspace():
        return -1
    limit, depth = min(limit, begin + MAX_SOURCE_CHARACTERS), 0
    for match in _CLOSINGS[closing].finditer(source, begin, limit):
        depth += (match[0] == "{") - (match[0] == "}")
        if match[0] == closing and depth <= 0:
            end = match.start()
            price = closing == "$" and (source[end - 1].isspace() or source[end + 1 : end + 2].isdigit())
            return _count(-1 if price else end, end - begin, env)
    return _count(-1, limit - begin, env)


def _count(end: int, read: int, env: Any) -> int:
    """What a search found; the characters that it read are counted."""
    env["read"] = env.get("read", 0) + read
    return end
