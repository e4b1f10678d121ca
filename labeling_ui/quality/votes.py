"""Judgments as columns of numbers, from which agreement and rater quality are computed.

A million judgments are read and measured while a page waits. A vote is about the two completions of an item in one
fixed order (first, second), so that sides do not matter.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tiebreak.records import Judgment, Kind, Pair

KINDS: tuple[Kind, ...] = ("human", "simulated", "model")

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Steps = NDArray[np.int8]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Votes:
    """One row per judgment of two completions, sorted by item; a rater's judgments of one item in order of time.

    All columns have shape (n,). Skips are rows too, so that they can be counted.
    """

    rater_ids: tuple[str, ...]
    """raters' ids, indexed by `rater`"""
    item: Integers
    """number of the item"""
    rater: Integers
    value: Steps
    """+3 first much better … −3 second much better; 0: a tie, both bad, or a skip"""
    both_bad: Flags
    skipped: Flags
    left_first: Flags
    """whether the first completion was on the left"""
    first_longer: Steps
    """1 where the first completion is longer, −1 where the second is, 0 where they are equally long"""
    seconds: Floats
    """active seconds; nan where they were not measured"""
    gold: Flags
    """whether the item's answer is known: such items go to every rater, and are easier than others"""
    at_ms: Floats
    """the server's time; below 0 or nan where there is none"""

    def __len__(self) -> int:
        return len(self.item)

    def where(self, rows: Flags | Integers) -> Votes:
        """Some of the rows; raters keep their numbers."""
        names = [field.name for field in fields(self) if field.name != "rater_ids"]
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def by_rater(self) -> dict[int, Votes]:
        """Each rater's rows, by the rater's number."""
        order = np.argsort(self.rater, kind="stable")
        numbers, starts = np.unique(self.rater[order], return_index=True)
        parts = np.split(order, starts[1:])
        return {int(number): self.where(part) for number, part in zip(numbers, parts, strict=bool(len(numbers)))}

    @cached_property
    def cast(self) -> Votes:
        """The votes without skips."""
        return self.where(~self.skipped)

    @cached_property
    def first_cast(self) -> Votes:
        """One vote per rater and item: the first. A repeat measures the rater, and would count them twice."""
        cast = self.cast
        _, first = np.unique(cast.item * max(len(self.rater_ids), 1) + cast.rater, return_index=True)
        return cast.where(np.sort(first))

    @cached_property
    def ordinary(self) -> Votes:
        """`first_cast` without gold: the votes that agreement is measured on."""
        firsts = self.first_cast
        return firsts.where(~firsts.gold)

    @cached_property
    def sign(self) -> Steps:
        """1 first, −1 second, 0 neither."""
        return np.sign(self.value)

    @cached_property
    def pairs(self) -> tuple[Integers, Integers]:
        """Row numbers of every two votes about one item, the earlier row first."""
        earlier, later = [], []
        for rows in _items_by_size(self.item):
            one, other = np.triu_indices(rows.shape[1], k=1)
            earlier.append(rows[:, one].ravel())
            later.append(rows[:, other].ravel())
        nothing = np.empty(0, dtype=np.int64)
        return np.concatenate([nothing, *earlier]), np.concatenate([nothing, *later])


Comparison = tuple[str, str, str]
"""a pair's id, and the ids of two of its completions in alphabetical order"""


def read_votes(
    pairs: Sequence[Pair], judgments: Sequence[Judgment], kind: Kind, gold: Container[Comparison] = ()
) -> Votes:
    """The judgments of one kind as columns; a ranking gives one row per two of its completions."""
    lengths = {(pair.id, completion.id): len(completion.text) for pair in pairs for completion in pair.completions}
    comparisons = [part for judgment in judgments if judgment.kind == kind for part in judgment.pairwise()]
    items: dict[tuple[str, str, str], int] = {}
    raters: dict[str, int] = {}
    rows = []
    for judgment in comparisons:
        first, second = sorted((judgment.left, judgment.right))
        left_first = judgment.left == first
        longer = lengths.get((judgment.pair_id, first), 0) - lengths.get((judgment.pair_id, second), 0)
        answer = judgment.answer or 0
        rows.append(
            (
                items.setdefault((judgment.pair_id, first, second), len(items)),
                raters.setdefault(judgment.rater_id, len(raters)),
                -answer if left_first else answer,
                judgment.both_bad,
                judgment.skip,
                left_first,
                (longer > 0) - (longer < 0),
                np.nan if judgment.seconds_active is None else judgment.seconds_active,
                (judgment.pair_id, first, second) in gold,
            )
        )
    return votes_of_columns(tuple(raters), np.array(rows, dtype=np.float64).reshape(-1, 9).T)


def votes_of_columns(rater_ids: tuple[str, ...], columns: Floats) -> Votes:
    """Votes from columns in the order of the fields, shape (10, n) or without times (9, n), rows in order of time.

    Items are renumbered without gaps.
    """
    columns = columns[:, np.argsort(columns[0], kind="stable")]
    columns[0] = np.cumsum(np.diff(columns[0], prepend=columns[0][:1]) > 0)
    item, rater = columns[:2].astype(np.int64)
    value, first_longer = columns[[2, 6]].astype(np.int8)
    both_bad, skipped, left_first = columns[3:6] != 0
    gold = columns[8] != 0
    return Votes(
        rater_ids=rater_ids,
        item=item,
        rater=rater,
        value=value,
        both_bad=both_bad,
        skipped=skipped,
        left_first=left_first,
        first_longer=first_longer,
        seconds=columns[7],
        gold=gold,
        at_ms=columns[9] if len(columns) > 9 else np.full(len(item), np.nan),
    )


def _items_by_size(item: Integers) -> Iterator[Integers]:
    """Row numbers of the items with m votes, shape (items, m), one array for each m of two or more.

    `item` is sorted.
    """
    starts = np.flatnonzero(np.diff(item, prepend=-1))
    sizes = np.diff(starts, append=len(item))
    for size in np.unique(sizes[sizes > 1]):
        yield starts[sizes == size][:, None] + np.arange(size)
