"""Untrusted text as HTML that does nothing: no markup of its own, no links to follow, no pictures to fetch.

Prompts and answers come from models and from strangers. They are shown as Markdown, because raters must read lists,
code and headings as their author meant them; but raw HTML is escaped, links and pictures are written out as text, and
characters that hide or reorder text are made visible. The page's Content-Security-Policy forbids what would slip
through.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from labeling_ui.mathematics import add_mathematics, render_formula

MAX_MARKDOWN_CHARACTERS = 60_000
"""Longer texts are shown as they are, unformatted: a megabyte of Markdown would make the rater wait."""

_HIDDEN = re.compile(
    "[\u200b\u2060-\u2064\ufeff\u202a-\u202e\u2066-\u2069\u061c\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u0080-\u009f\ud800-\udfff]"
)
"""Zero-width characters (not the joiners that scripts and emoji need), bidirectional overrides, control characters,
halves of surrogate pairs."""


@lru_cache(maxsize=4096)
def render(text: str) -> str:
    """`text` as safe HTML."""
    visible = show_hidden(text)
    if len(visible) > MAX_MARKDOWN_CHARACTERS:
        return f"<pre class='plain'>{html.escape(visible)}</pre>"
    return str(_MARKDOWN.render(visible))


def show_hidden(text: str) -> str:
    """Characters that hide or reorder text, written as ⟨U+202E⟩."""
    return _HIDDEN.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", text.replace("\r\n", "\n").replace("\r", "\n"))


class _Inert(RendererHTML):
    """Links and pictures as text. The target stands beside the words, so that a link cannot lie about it."""

    def link_open(self, tokens: Sequence[Token], index: int, _options: Any, _env: Any) -> str:
        return f"<span class='link' title='{html.escape(str(tokens[index].attrGet('href') or ''))}'>"

    def link_close(self, tokens: Sequence[Token], index: int, _options: Any, _env: Any) -> str:
        opened = max(n for n, token in enumerate(tokens[:index]) if token.type == "link_open")
        target = str(tokens[opened].attrGet("href") or "")
        said = "".join(token.content for token in tokens[opened:index])
        return "</span>" if target == said else f"</span> <span class='target'>({html.escape(target)})</span>"

    def image(self, tokens: Sequence[Token], index: int, _options: Any, _env: Any) -> str:
        token = tokens[index]
        target = html.escape(str(token.attrGet("src") or ""))
        return f"<span class='picture'>[picture: {html.escape(token.content)} {target}]</span>"

    def formula(self, tokens: Sequence[Token], index: int, _options: Any, _env: Any) -> str:
        return render_formula(tokens[index].content, display=bool(tokens[index].meta["display"]))


def _build_markdown() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False, "breaks": True}, renderer_cls=_Inert)
    return add_mathematics(markdown.enable(["table", "strikethrough"]))


_MARKDOWN = _build_markdown()
