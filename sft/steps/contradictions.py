"""The step `contradictions`: flags demonstrations that answer one prompt in ways that cannot both be right.

Two answers to the same prompt clash if one begins with yes and the other with no, or if both state numbers and share
none. It drops nothing: people decide which answer is right.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from sft.steps.step import Ledger, Row, Step

_YES = re.compile(r"(yes|yeah|yep|correct|true|ja|richtig|stimmt)\b", re.IGNORECASE)
_NO = re.compile(r"(no|nope|not|incorrect|false|nein|falsch)\b", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class Contradictions(Step):
    """The step."""

    order = "all at once"

    def run(self, rows: Sequence[Row], ledger: Ledger) -> Sequence[Row]:
        counts = Counter(_key(row) for row in rows if row.answers)
        by_prompt: dict[int, list[Row]] = defaultdict(list)
        for row in rows:
            if row.answers and counts[key := _key(row)] > 1:
                by_prompt[key].append(row)
        for answered in by_prompt.values():
            for number, (why, other) in sorted(_clashes(answered).items()):
                ledger.flag(answered[number], f"{why}, against {answered[other].where}", why)
        return rows


def _clashes(answered: Sequence[Row]) -> dict[int, tuple[str, int]]:
    """Row → (why, the first row that it clashes with). Both are listed: nobody knows which is right."""
    found: dict[int, tuple[str, int]] = {}
    for number, row in enumerate(answered):
        for before, other in enumerate(answered[:number]):
            if number in found and before in found:
                continue
            if why := clash(other.answer_text, row.answer_text):
                found.setdefault(number, (why, before))
                found.setdefault(before, (why, number))
    return found


def _key(row: Row) -> int:
    """A number that rows of one prompt share."""
    text = " ".join(row.prompt_text.casefold().split())
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def clash(first: str, second: str) -> str:
    """Why two answers cannot both be right; empty if they may."""
    a, b = first.strip(), second.strip()
    if (_YES.match(a) and _NO.match(b)) or (_NO.match(a) and _YES.match(b)):
        return "yes and no"
    numbers, others = (
        {
            found.replace(",", ".").rstrip("0").rstrip(".") if "." in found or "," in found else found
            for found in _NUMBER.findall(t)
        }
        for t in (a, b)
    )
    return "other numbers" if numbers and others and not numbers & others else ""
