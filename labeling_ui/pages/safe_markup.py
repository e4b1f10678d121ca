"""Untrusted text as inert HTML: no raw markup, no clickable links, no fetched images.

Prompts and answers are untrusted. They are rendered as Markdown, so that raters see lists, code and headings, but raw
HTML is escaped, links and images are written out as text, and characters that hide or reorder text are made visible.
The page's Content-Security-Policy is the second line of defence.
"""

from __future__ import annotations

import html
import re
import threading
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from labeling_ui.pages.highlighting import mark_code
from labeling_ui.pages.mathematics import add_mathematics, render_formula, show_source

if TYPE_CHECKING:
    from markdown_it.ruler import RuleOptionsType

MAX_MARKDOWN_CHARACTERS = 60_000
"""Longer texts are shown unformatted: a megabyte of Markdown would make the rater wait."""

MAX_BRACKETS = 3_000
"""Texts with more are shown unformatted: for each `[`, the parser searches the rest of the text for a link's end."""

MAX_LEVELS = 100
"""Nesting of quotations and lists. The parser drops deeper levels, so such texts are shown unformatted."""

MAX_PARSE_SECONDS = 1.0
"""Processor time. Texts that take longer are shown unformatted: nobody could read such nesting or tables anyway."""

MAX_TOKENS = 60_000
"""Parts of a text: items, cells, words in bold. Texts with more are shown unformatted."""

MAX_TARGET_CHARACTERS = 200_000
"""Limit for all link and image targets of a text, which references can repeat; beyond it, it is shown unformatted."""

MAX_CODE_CHARACTERS = 24_000
"""Limit for the highlighted code of a text; the rest is shown without colours."""

CACHE_CHARACTERS = 16_000_000
"""Limit for the cached texts and their HTML; the least recently used are dropped first."""

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


def render(text: str) -> str:
    """`text` as safe HTML."""
    if (kept := _CACHE.get(text)) is not None:
        return kept
    rendered = _render(show_hidden(text))
    _CACHE.keep(text, rendered)
    return rendered


def render_anew(text: str) -> str:
    """`render`, for texts that nobody will ask for again."""
    kept = _CACHE.get(text)
    return _render(show_hidden(text)) if kept is None else kept


def _render(visible: str) -> str:
    if len(visible) <= MAX_MARKDOWN_CHARACTERS and visible.count("[") <= MAX_BRACKETS:
        env: dict[str, Any] = {"until": time.thread_time() + MAX_PARSE_SECONDS, "targets": 0, "code": 0, "links": []}
        try:
            tokens = _MARKDOWN.parse(visible, env)
            _refuse_too_large(tokens)
            _set_directions(tokens)
            return str(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, env))
        except _TooLargeError:
            pass
    return "".join(f"<pre class='plain'>{html.escape(piece)}</pre>" for piece in _PIECE.findall(visible))


class _TooLargeError(Exception):
    """A text that is not worth its formatting."""


class _Cache:
    """Texts and their HTML, up to a number of characters; used by several threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, str] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, text: str) -> str | None:
        with self._lock:
            if text in self._kept:
                self._kept.move_to_end(text)
            return self._kept.get(text)

    def keep(self, text: str, rendered: str) -> None:
        with self._lock:
            if text not in self._kept:
                self._kept[text] = rendered
                self._size += len(text) + len(rendered)
            while self._size > CACHE_CHARACTERS:
                old, old_html = self._kept.popitem(last=False)
                self._size -= len(old) + len(old_html)


_CACHE = _Cache()


def _watch_time(state: StateBlock | StateInline, *_where: Any) -> bool:
    """A rule that matches nothing; the parser asks it at every line and every mark."""
    if time.thread_time() > state.env["until"]:
        raise _TooLargeError
    return False


def _refuse_too_large(tokens: Sequence[Token]) -> None:
    if max((token.level for token in tokens), default=0) >= MAX_LEVELS - 1:
        raise _TooLargeError
    if len(tokens) + sum(len(token.children or ()) for token in tokens) > MAX_TOKENS:
        raise _TooLargeError


def _count_target(target: str, env: Any) -> str:
    env["targets"] += len(target)
    if env["targets"] > MAX_TARGET_CHARACTERS:
        raise _TooLargeError
    return target


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


class _InertRenderer(RendererHTML):
    """Renders links and images as text, each link followed by its target, so that it cannot mislead."""

    def link_open(self, tokens: Sequence[Token], index: int, _options: Any, env: Any) -> str:
        env["links"].append(index)
        target = _count_target(str(tokens[index].attrGet("href") or ""), env)
        return f"<span class='link' title='{html.escape(target)}'>"

    def link_close(self, tokens: Sequence[Token], index: int, _options: Any, env: Any) -> str:
        opened = env["links"].pop()
        target = str(tokens[opened].attrGet("href") or "")
        label = "".join(token.content for token in tokens[opened:index])
        return "</span>" if target == label else f"</span> <span class='target'>({html.escape(target)})</span>"

    def image(self, tokens: Sequence[Token], index: int, _options: Any, env: Any) -> str:
        token = tokens[index]
        target = html.escape(_count_target(str(token.attrGet("src") or ""), env))
        return f"<span class='picture'>[picture: {html.escape(token.content)} {target}]</span>"

    def fence(self, tokens: Sequence[Token], index: int, _options: Any, env: Any) -> str:
        code, language = tokens[index].content, (tokens[index].info.split() or [""])[0]
        env["code"] += len(code)
        marked = mark_code(code, language) if env["code"] <= MAX_CODE_CHARACTERS else html.escape(code)
        return f"<pre><code>{marked}</code></pre>\n"

    def formula(self, tokens: Sequence[Token], index: int, _options: Any, _env: Any) -> str:
        token = tokens[index]
        if token.meta["source"]:
            return show_source(token.content)
        return render_formula(token.content, display=bool(token.meta["display"]))


def _build_markdown() -> MarkdownIt:
    markdown = MarkdownIt(
        "commonmark", {"html": False, "breaks": True, "maxNesting": MAX_LEVELS}, renderer_cls=_InertRenderer
    )
    add_mathematics(markdown.enable(["table", "strikethrough"]))
    everywhere: RuleOptionsType = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    markdown.block.ruler.before("table", "time", _watch_time, everywhere)
    markdown.inline.ruler.before("text", "time", _watch_time)
    return markdown


_MARKDOWN = _build_markdown()
