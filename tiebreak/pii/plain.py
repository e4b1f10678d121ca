"""The plain form of a text, in which patterns search.

Full-width and other digits become ASCII, characters of no width are removed, unusual spaces become spaces, and HTML
entities, `%40` and `[.]` become the characters they encode. Findings are mapped back to the original text.
"""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass

from tiebreak.pii.finding import Finding

_UNSEEN = "\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff"
_SPACES = "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
_WIDE = "\uff01-\uff5e"
_DIGITS = "\u0660-\u0669\u06f0-\u06f9\u0966-\u096f\u09e6-\u09ef\U0001d7ce-\U0001d7ff"
_HYPHENS = "\u2010-\u2015\u2212\ufe63"
_ODD = re.compile(
    rf"[{_UNSEEN}{_SPACES}{_WIDE}{_DIGITS}{_HYPHENS}]|&(?:#\d{{1,7}}|#x[0-9a-f]{{1,6}}|commat|period|nbsp|colon|sol|lowbar|hyphen|amp);"
    r"|%40|[\[({]\.[\])}]",
    re.IGNORECASE,
)
_IS_UNSEEN, _IS_SPACE, _IS_HYPHEN = (re.compile(f"[{one}]") for one in (_UNSEEN, _SPACES, _HYPHENS))


@dataclass(frozen=True)
class Plain:
    """A text's plain form, and the position of each of its characters in the text."""

    text: str
    starts: list[int]
    ends: list[int]

    def in_original(self, finding: Finding) -> Finding:
        """The finding, in the text as it is."""
        start, end = self.starts[finding.start], self.ends[finding.end - 1]
        return Finding(start, end, finding.kind, finding.score)


def plain(text: str) -> Plain | None:
    """The plain form; None of a text that is plain already."""
    if _ODD.search(text) is None:
        return None
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    at = 0
    for found in _ODD.finditer(text):
        start, end = found.span()
        pieces += [text[at:start], put := _put(found.group())]
        starts += [*range(at, start), *([start] * len(put))]
        ends += [*range(at + 1, start + 1), *([end] * len(put))]
        at = end
    pieces.append(text[at:])
    starts += range(at, len(text))
    ends += range(at + 1, len(text) + 1)
    return Plain("".join(pieces), starts, ends)


def _put(odd: str) -> str:
    """The plain form of an odd spelling."""
    if odd[0] == "&":
        return _put_all(html.unescape(odd))
    if odd == "%40":
        return "@"
    if len(odd) == 3:  # a dot in brackets
        return "."
    if _IS_UNSEEN.match(odd):
        return ""
    if _IS_SPACE.match(odd):
        return " "
    if _IS_HYPHEN.match(odd):
        return "-"
    digit = unicodedata.decimal(odd, None)
    return str(digit) if digit is not None else unicodedata.normalize("NFKC", odd)


def _put_all(text: str) -> str:
    """An entity's character, which may be odd itself."""
    return _put(text) if len(text) == 1 and _ODD.match(text) else text
