"""LaTeX in prompts and answers as MathML, which browsers render natively: no script, no font, no request.

Formulas are untrusted text. They are parsed within limits and serialised from an allowlist of elements and attributes;
a formula that cannot be parsed is shown as source.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from markdown_it.ruler import RuleOptionsType

MAX_FORMULA_CHARACTERS = 2_000
MAX_NESTING = 40
MAX_FORMULAS = 300
DELIMITERS = (("$$", "$$", True), ("\\[", "\\]", True), ("\\(", "\\)", False), ("$", "$", False))
"""Opening and closing delimiter, and whether the formula is displayed on its own line."""

_MACROS = re.compile(
    r"\\(?:def|edef|gdef|xdef|let|futurelet|newcommand|renewcommand|providecommand|csname|input|include)\b"
)
_ELEMENTS = """
math mrow mi mn mo ms mtext mspace mfrac msqrt mroot mstyle merror mpadded mphantom mfenced menclose msub msup msubsup
munder mover munderover mmultiscripts mprescripts none mtable mtr mtd maligngroup malignmark
"""
_ATTRIBUTES = """
display displaystyle scriptlevel mathvariant mathcolor mathsize stretchy fence separator form lspace rspace accent
accentunder linethickness numalign denomalign columnalign rowalign columnspacing rowspacing columnlines rowlines frame
width height depth minsize maxsize largeop movablelimits symmetric notation linebreak
"""
_ROWS = frozenset(("math", "mrow", "mstyle", "msqrt", "mtd"))
_SCRIPTS = frozenset(("msub", "msup", "msubsup", "munder", "mover", "munderover"))
_ALLOWED_ELEMENTS = frozenset(_ELEMENTS.split())
_ALLOWED_ATTRIBUTES = frozenset(_ATTRIBUTES.split())
_PLAIN_VALUE = re.compile(r"[\w .%#+-]{0,60}")


def add_mathematics(markdown: MarkdownIt) -> MarkdownIt:
    r"""Parse `$…$`, `$$…$$`, `\(…\)` and `\[…\]` as formulas."""
    markdown.inline.ruler.before("escape", "formula", _formula_rule)
    interrupts: RuleOptionsType = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    markdown.block.ruler.before("fence", "formula", _formula_block_rule, interrupts)
    return markdown


def render_formula(source: str, *, display: bool) -> str:
    """A formula as MathML, or its source where it cannot or must not be parsed."""
    plain = f"<code class='formula'>{html.escape(source)}</code>"
    if len(source) > MAX_FORMULA_CHARACTERS or _nesting(source) > MAX_NESTING or _MACROS.search(source):
        return plain
    try:
        element = convert_to_element(source, display="block" if display else "inline")
        return "".join(_write(element))
    except Exception:  # noqa: BLE001  invalid LaTeX raises a dozen kinds of error, RecursionError among them
        return plain


def _write(element: Element) -> Iterator[str]:
    if element.tag not in _ALLOWED_ELEMENTS:
        raise ValueError(f"element {element.tag}")
    yield f"<{element.tag}"
    for name, value in element.attrib.items():
        if name in _ALLOWED_ATTRIBUTES and _PLAIN_VALUE.fullmatch(value):
            yield f' {name}="{html.escape(value)}"'
    yield ">"
    # The parser leaves entities in text nodes and copies markup from \text{…}: unescape, then escape.
    yield html.escape(html.unescape(element.text or ""))
    before = None
    for child in element:
        if element.tag in _ROWS and before is not None and _needs_thin_space(before, child):
            yield '<mspace width="0.167em"></mspace>'
        yield from _write(child)
        before = child
    yield f"</{element.tag}>"


def _needs_thin_space(before: Element, after: Element) -> bool:
    """Whether TeX sets a thin space between two neighbours: one is a function's name, and neither is an operator."""
    return "mo" not in (before.tag, after.tag) and (_is_name(before) or _is_name(after))


def _is_name(element: Element) -> bool:
    """Whether an element is a name of several letters, like `log`, with or without an index (`log₂`)."""
    base = element[0] if element.tag in _SCRIPTS and len(element) else element
    text = html.unescape(base.text or "")
    return base.tag == "mi" and len(text) > 1 and text.isalpha()


def _nesting(source: str) -> int:
    depth = deepest = 0
    for character in source:
        depth += (character == "{") - (character == "}")
        deepest = max(deepest, depth)
    return max(deepest, source.count("\\left"), source.count("\\begin"))


def _formula_rule(state: StateInline, silent: bool) -> bool:
    for opening, closing, display in DELIMITERS:
        if not state.src.startswith(opening, state.pos):
            continue
        begin = state.pos + len(opening)
        end = _find_closing(state.src, begin, closing, state.posMax)
        if end < 0 or not state.src[begin:end].strip():
            continue
        if state.env.setdefault("formulas", 0) >= MAX_FORMULAS:
            return False
        if not silent:
            state.env["formulas"] += 1
            token = state.push("formula", "math", 0)
            token.content = state.src[begin:end].strip()
            token.meta = {"display": display}
        state.pos = end + len(closing)
        return True
    return False


def _formula_block_rule(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A display formula over several lines, in which `- b` is no list and `= b` no heading."""
    if state.is_code_block(start):
        return False
    first = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]]
    for opening, closing, display in DELIMITERS:
        if not display or not first.startswith(opening):
            continue
        last = _last_line(state, start, end, opening, closing)
        if last < 0 or state.env.setdefault("formulas", 0) >= MAX_FORMULAS:
            return False
        if not silent:
            state.env["formulas"] += 1
            token = state.push("formula", "math", 0)
            source = state.getLines(start, last + 1, state.blkIndent, False).strip()
            token.content = source[len(opening) : -len(closing)].strip()
            token.meta = {"display": True}
            token.map = [start, last + 1]
        state.line = last + 1
        return True
    return False


def _last_line(state: StateBlock, start: int, end: int, opening: str, closing: str) -> int:
    """The line that ends with `closing`; −1 if the block ends or the formula gets too long before it."""
    length = 0
    for line in range(start, end):
        if line > start and not state.isEmpty(line) and state.sCount[line] < state.blkIndent:
            return -1
        text = state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].rstrip()
        rest = text[len(opening) :] if line == start else text
        length += len(text)
        if length > MAX_FORMULA_CHARACTERS:
            return -1
        if closing in rest:
            alone = rest.find(closing) == len(rest) - len(closing) and (line > start or len(rest) > len(closing))
            return line if alone else -1
    return -1


def _find_closing(source: str, begin: int, closing: str, limit: int) -> int:
    """End of the formula; −1 if unclosed. A single dollar follows Pandoc: no space inside, no digit after."""
    limit = min(limit, begin + MAX_FORMULA_CHARACTERS + 1)
    if closing == "$" and source[begin : begin + 1].isspace():
        return -1
    end = source.find(closing, begin, limit)
    while end >= 0:
        escaped = source[end - 1] == "\\" and closing[0] == "$"
        if not escaped:
            price = closing == "$" and (source[end - 1].isspace() or source[end + 1 : end + 2].isdigit())
            return -1 if price else end
        end = source.find(closing, end + 1, limit)
    return -1
