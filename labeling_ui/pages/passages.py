"""Passages of an answer, from what a rater sees to the raw text and back.

Markdown drops and reorders characters, so a passage that a rater selects on the page has no offsets in the raw text. They
are found by trial: a character that no text uses is put before a place in the raw text, and the text is rendered again.
If nothing else on the page changes, the character shows where that place is on the page. A passage is accepted only if
both its ends are found in this way, at exactly one place each; otherwise the rater marks it in the source.

All offsets are in Unicode code points; those of the page count its text without tags, as browsers read it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import pairwise

from labeling_ui.pages.safe_markup import render_anew

FIRST_MARK = 0xF0000
"""Marks are from here on: private characters, which Markdown treats as letters."""
MOST_MARKS = 2_000
MAX_SECONDS = 2.0
"""Of the processor, for one passage."""
_WORD = re.compile(r"\w+")


def find_passage(raw: str, start: int, end: int, passage: str) -> tuple[int, int] | None:
    """The raw offsets of a passage of the rendered text; None where they are not certain.

    Args:
        passage: the selected text, which must be the rendered text from `start` to `end`.
    """
    if not passage or passage != passage.strip() or _is_marked(raw):
        return None
    plain = text_of(render_anew(raw))
    if plain[start:end] != passage:
        return None
    until = time.thread_time() + MAX_SECONDS
    first, last = _ends(passage)
    starts = [match.start() for match in re.finditer(re.escape(first), raw)]
    ends = [match.end() for match in re.finditer(re.escape(last), raw)]
    found = [
        [place for place, shown in _places(raw, plain, places, until).items() if shown == wanted]
        for places, wanted in ((starts, start), (ends, end))
    ]
    if [len(places) for places in found] != [1, 1] or found[0][0] >= found[1][0]:
        return None
    return found[0][0], found[1][0]


def show_passage(raw: str, start: int, end: int) -> tuple[int, int] | None:
    """The rendered offsets of a raw passage; None where it is not seen as a whole."""
    if _is_marked(raw) or not 0 <= start < end <= len(raw):
        return None
    places = _places(raw, text_of(render_anew(raw)), [start, end], time.thread_time() + MAX_SECONDS)
    return (places[start], places[end]) if len(places) == 2 else None


def _ends(passage: str) -> tuple[str, str]:
    """The passage's first and last words; where it begins or ends otherwise, that one character."""
    words = _WORD.findall(passage)
    first = words[0] if words and passage.startswith(words[0]) else passage[0]
    last = words[-1] if words and passage.endswith(words[-1]) else passage[-1]
    return first, last


def _is_marked(raw: str) -> bool:
    return any(FIRST_MARK <= ord(character) <= FIRST_MARK + MOST_MARKS for character in raw)


def _places(raw: str, plain: str, places: Sequence[int], until: float) -> dict[int, int]:
    """Where places of the raw text are in the rendered text; those that change it are left out.

    All are tried at once. If something changes, each half is tried by itself: most places are harmless.
    """
    if not places or len(places) > MOST_MARKS or time.thread_time() > until:
        return {}
    marks = {chr(FIRST_MARK + n): place for n, place in enumerate(places)}
    edges = [0, *places, len(raw)]
    pieces = [raw[one:other] for one, other in pairwise(edges)]
    marked = "".join(piece + mark for piece, mark in zip(pieces, [*marks, ""], strict=True))
    shown, found, kept = text_of(render_anew(marked)), dict[int, int](), list[str]()
    for character in shown:
        if character in marks:
            found[marks.pop(character)] = len(kept)
        else:
            kept.append(character)
    if not marks and "".join(kept) == plain:
        return found
    half = len(places) // 2
    return {} if half == 0 else _places(raw, plain, places[:half], until) | _places(raw, plain, places[half:], until)


def text_of(html: str) -> str:
    """The text of HTML without its tags, as a browser has it."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    return "".join(parser.pieces)


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._after_pre = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._after_pre = tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        self._after_pre = False

    def handle_data(self, data: str) -> None:
        # Browsers leave out a line break right after <pre>.
        self.pieces.append(data.removeprefix("\n") if self._after_pre else data)
        self._after_pre = False
