"""Distributions of the rows before the first step and after the last: length, symbols, repetition, compression.

Counts in fixed bins, so that parts of the data add up. Of large data every n-th row is counted, about MOST_ROWS of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft.steps.quality import compression_of, symbol_share
from tiebreak.messages import text_of
from tiebreak.records import Demonstration, Prompt

MOST_ROWS = 20_000
Counts = dict[str, dict[str, int]]
"""figure → bin's number → rows; JSON has no numbers as keys"""


@dataclass(frozen=True)
class Figure:
    """A figure of a row's text, and its bins."""

    name: str
    title: str
    unit: str
    edges: tuple[float, ...]
    """between the bins; the first is below the first edge, the last has no end"""
    of: Callable[[str], float]

    def bin(self, text: str) -> str:
        """The number of a text's bin."""
        return str(bisect_right(self.edges, self.of(text)))


def _repetition(text: str) -> float:
    """The share of words that stood in the text before."""
    words = text.lower().split()
    return 1 - len(set(words)) / len(words) if words else 0.0


_TENTHS = tuple(n / 10 for n in range(1, 10))
FIGURES = (
    Figure(
        "words", "Length", "words",
        (5, 10, 15, 20, 30, 40, 60, 80, 120, 160, 240, 320, 500, 1000), lambda text: len(text.split()),
    ),
    Figure(
        "symbols", "Symbols", "share of characters that are neither letters, digits nor spaces",
        (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5), symbol_share,
    ),
    Figure("repetition", "Repetition", "share of words that stood in the row before", _TENTHS, _repetition),
    Figure("compression", "Compression", "size after DEFLATE by size before", _TENTHS, compression_of),
)  # fmt: skip
FIGURE = {one.name: one for one in FIGURES}


def stride_of(rows: int) -> int:
    """Every how many rows one is counted."""
    return max(1, -(-rows // MOST_ROWS))


def counted_rows(records: Iterable[Prompt | Demonstration]) -> Counts:
    """The rows by figure and bin."""
    counts: dict[str, Counter[str]] = {one.name: Counter() for one in FIGURES}
    for record in records:
        text = _text(record)
        for one in FIGURES:
            counts[one.name][one.bin(text)] += 1
    return {name: dict(counter) for name, counter in counts.items()}


def _text(record: Prompt | Demonstration) -> str:
    if isinstance(record, Prompt):
        return text_of(record.messages)
    return f"{text_of(record.prompt.messages)}\n\n{record.text}"


def added(parts: Iterable[Counts]) -> dict[str, list[int]]:
    """Counts of all parts: figure → rows in each of its bins."""
    sums: dict[str, Counter[str]] = {one.name: Counter() for one in FIGURES}
    for part in parts:
        for name, counts in part.items():
            sums[name].update(counts)
    return {one.name: [sums[one.name][str(n)] for n in range(len(one.edges) + 1)] for one in FIGURES}


def distributions(before: Iterable[Counts], after: Iterable[Counts]) -> dict[str, Any]:
    """For distributions.json and the page."""
    then, now = added(before), added(after)
    return {one.name: {"edges": list(one.edges), "before": then[one.name], "after": now[one.name]} for one in FIGURES}


def label_of(edges: Sequence[float], number: int) -> str:
    """A bin in words.

    >>> label_of((5, 10), 0), label_of((5, 10), 1), label_of((0.1, 0.2), 2)
    ('under 5', '5 to 10', '0.2 and over')
    """
    if number == 0:
        return f"under {edges[0]:g}"
    return f"{edges[-1]:g} and over" if number == len(edges) else f"{edges[number - 1]:g} to {edges[number]:g}"


def shares(counts: Sequence[int]) -> list[float]:
    """Counts as shares of their sum."""
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def moved(one: Mapping[str, Sequence[int]]) -> float:
    """The share of rows that would have to change their bin to turn one distribution into the other (total variation)."""
    return sum(abs(a - b) for a, b in zip(shares(one["before"]), shares(one["after"]), strict=True)) / 2
