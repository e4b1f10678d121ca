"""Untrusted text as inert HTML: no raw markup, no clickable links, no fetched images.

Prompts and answers are untrusted. They are rendered as Markdown, so that raters see lists, code and headings, but raw
HTML is escaped, links and images are written out as text, and characters that hide or reorder text are made visible.
The page's Content-Security-Policy is the second line of defence.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from labeling_ui.pages.mathematics import add_mathematics, render_formula, show_source

MAX_MARKDOWN_CHARACTERS = 60_000
"""Longer texts are shown unformatted: a megabyte of Markdown would make the rater wait."""

MAX_BRACKETS = 3_000
"""Texts with more are shown unformatted: for each `[`, the parser searches the rest of the text for a link's end."""

MAX_LEVELS = 100
"""Nesting of quotations and lists. The parser drops deeper levels, so such texts are shown unformatted."""

PLAIN_PIECE_CHARACTERS = 20_000
"""Unformatted text is split into pieces of this length, so that the browser lays out only those in view."""

_FLAG_OF_A_REGION = "\U0001f3f4[\U000e0020-\U000e007e]{1,6}\U000e007f"
_VARIATIONS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
_HIDDEN = re.compile(
    f"{_FLAG_OF_A_REGION}|"  # the only legitimate use of tag characters
    "(?P<hidden>"
    "[\u200b\u2060-\u206f\ufeff\u202a-\u202e\u061c"  # zero width, bidirectional embeddings, overrides and isolates
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180e\u3164\uffa0\ufff9-\ufffb"  # soft hyphen, fillers, annotations
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u0080-\u009f\ud800-\udfff"  # control characters, halves of surrogate pairs
    "\U000e0000-\U000e007f\U0001d173-\U0001d17a]"  # tags: an invisible alphabet
    f"|(?<=[A-Za-z{_VARIATIONS}])[{_VARIATIONS}]"  # variation selectors after Latin letters, and runs of them
    "|(?<=[\x00-\x7f])[\u200c\u200d])"  # joiners after ASCII; other scripts and emoji need them
)


@lru_cache(maxsize=4096)
def render(text: str) -> str:
    """`text` as safe HTML."""
    visible = show_hidden(text)
    if len(visible) <= MAX_MARKDOWN_CHARACTERS and visible.count("[") <= MAX_BRACKETS:
        env: dict[str, Any] = {}
        tokens = _MARKDOWN.parse(visible, env)
        if max((token.level for token in tokens), default=0) < MAX_LEVELS - 1:
            _set_directions(tokens)
            return str(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, env))
    return "".join(f"<pre class='plain'>{html.escape(piece)}</pre>" for piece in _PIECE.findall(visible))


def _set_directions(tokens: Sequence[Token]) -> None:
    """Lists and quotations run in the direction of their first letter, which puts their marks on the right side."""
    undecided: list[Token] = []
    for token in tokens:
        if token.type == "inline":
            if undecided and (direction := _direction_of(token.content)):
                for opened in undecided:
                    opened.attrSet("dir", direction)
                undecided.clear()
        elif token.nesting == 1 and token.type in _DIRECTED:
            undecided.append(token)
        elif token.nesting == -1 and undecided and undecided[-1].level == token.level:
            undecided.pop()


_DIRECTED = ("bullet_list_open", "ordered_list_open", "list_item_open", "blockquote_open", "table_open")
_LETTER = re.compile(r"[^\W\d_]")


def _direction_of(text: str) -> str:
    """`ltr` or `rtl` by the first letter; empty without one."""
    letter = _LETTER.search(text)
    if letter is None:
        return ""
    return "rtl" if unicodedata.bidirectional(letter[0]) in ("R", "AL") else "ltr"


_PIECE = re.compile(f".{{1,{PLAIN_PIECE_CHARACTERS}}}(?:\n|\\Z)|.{{1,{PLAIN_PIECE_CHARACTERS}}}", re.DOTALL)
"""As many whole lines as fit into a piece, or part of a longer line."""


def show_hidden(text: str) -> str:
    """Characters that hide or reorder text, written as ⟨U+202E⟩."""
    lines = re.sub("\r\n?|[\u2028\u2029]", "\n", text)
    return _HIDDEN.sub(_write_out, lines)


def _write_out(match: re.Match[str]) -> str:
    hidden = match["hidden"]
    return f"⟨U+{ord(hidden):04X}⟩" if hidden else match.group()


class _Inert(RendererHTML):
    """Renders links and images as text, each link followed by its target, so that it cannot mislead."""

    def link_open(self, tokens: Sequence[Token], index: int, _options: Any, _env: Any) -> str:
        return f"<span class='link' title='{html.escape(str(tokens[index].attrGet('href') or ''))}'>"

    def link_close(self, tokens: Sequence[Token], index: int, _options: Any, _env: Any) -> str:
        opened = max(n for n, token in enumerate(tokens[:index]) if token.type == "link_open")
        target = str(tokens[opened].attrGet("href") or "")
        label = "".join(token.content for token in tokens[opened:index])
        return "</span>" if target == label else f"</span> <span class='target'>({html.escape(target)})</span>"

    def image(self, tokens: Sequence[Token], index: int, _options: Any, _env: Any) -> str:
        token = tokens[index]
        target = html.escape(str(token.attrGet("src") or ""))
        return f"<span class='picture'>[picture: {html.escape(token.content)} {target}]</span>"

    def formula(self, tokens: Sequence[Token], index: int, _options: Any, _env: Any) -> str:
        token = tokens[index]
        if token.meta["source"]:
            return show_source(token.content)
        return render_formula(token.content, display=bool(token.meta["display"]))


def _build_markdown() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": MAX_LEVELS}, renderer_cls=_Inert)
    return add_mathematics(markdown.enable(["table", "strikethrough"]))


_MARKDOWN = _build_markdown()
