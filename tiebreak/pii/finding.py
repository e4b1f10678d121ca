"""Findings of personal data in a text, and the choice among those that overlap."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SURE = 0.5
"""Findings of at least this score are hidden; those below are flagged for people."""
REACH = 48
"""A context word makes a finding sure within this many characters before it, or three quarters as many after it."""


@dataclass(frozen=True)
class Finding:
    """Personal data at `start` to `end` of a text, in code points."""

    start: int
    end: int
    kind: str
    """EMAIL, PHONE, …"""
    score: float
    """from 0 to 1; 1 where a checksum holds"""

    @property
    def is_sure(self) -> bool:
        return self.score >= SURE


def with_context(text: str, finding: Finding, words: Sequence[str]) -> Finding:
    """The finding, sure if a word that announces it is near."""
    if finding.is_sure or not words:
        return finding
    near = text[max(0, finding.start - REACH) : finding.start] + "\n" + text[finding.end : finding.end + REACH * 3 // 4]
    context = near.casefold()
    if any(re.search(rf"(?<!\w){re.escape(word.casefold().strip())}", context) for word in words):
        return Finding(finding.start, finding.end, finding.kind, SURE)
    return finding


def settle(findings: Iterable[Finding], words: Iterable[Finding] = ()) -> list[Finding]:
    """Findings that do not overlap, in order: of two that do, the surer one, then the longer one.

    Args:
        words: further findings, of names and of the user's own. One inside a longer sure finding comes last, however sure
            it is: a name taken out of an e-mail address would leave the rest of the address.
    """
    found, further = list(findings), list(words)
    sure = [one for one in found if one.is_sure]
    inside = {one for one in further if any(_is_inside(one, other) for other in sure)}
    taken: list[Finding] = []
    for one in sorted([*found, *further], key=lambda f: (f in inside, -f.score, f.start - f.end, f.start, f.kind)):
        if one.start < one.end and all(one.end <= other.start or other.end <= one.start for other in taken):
            taken.append(one)
    return sorted(taken, key=lambda f: f.start)


def _is_inside(one: Finding, other: Finding) -> bool:
    return other.start <= one.start and one.end <= other.end and one.end - one.start < other.end - other.start
