"""Duels while they are judged: what people's judgments of evaluation pairs show so far, for the lead.

The verdict may be looked at after every judgment (`tiebreak.measures.sequential`). A pair counts once it has all its
judgments, with their mean: votes on one pair are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import sqlalchemy as sa

from labeling_ui.database.schema import ITEMS, JUDGMENTS, PAIRS, WITHDRAWALS
from labeling_ui.store.pairs.campaign import EVALUATES, IDS_AT_ONCE
from labeling_ui.store.store import Store
from tiebreak.assessments import read_judgment
from tiebreak.measures.duels import by_prompt, in_order, policies_of, votes_of
from tiebreak.measures.sequential import LEVEL, SMALLEST_GAP, look
from tiebreak.records import Judgment, Pair

_VOTES = (
    sa.select(JUDGMENTS.c.record, JUDGMENTS.c.seq, ITEMS.c.pair_id, ITEMS.c.overlap)
    .join(ITEMS, ITEMS.c.id == JUDGMENTS.c.item_id)
    .where(
        JUDGMENTS.c.occasion == 0,
        JUDGMENTS.c.vote.is_not(None),
        JUDGMENTS.c.kind != "model",
        ITEMS.c.withdrawn == sa.literal_column("0"),
    )
)


@dataclass
class LiveDuels:
    """The duels of one store. Pairs are read once, as they are added.

    Two evaluations may give different policies the same name, so each has comparisons of its own.
    """

    store: Store
    no_difference: float = SMALLEST_GAP
    """a win rate within this distance of one half counts as no difference"""
    _pairs: dict[str, Pair] = field(default_factory=dict)
    _position: int = -1
    """of the last pair that was read"""

    def __call__(self) -> list[dict[str, Any]]:
        """Each comparison of two policies: names, evaluation, judged and all pairs, and the look of the sequence."""
        self._read_new()
        if not self._pairs:
            return []
        complete = self._complete()
        rows = [row for source, pairs in self._by_evaluation().items() for row in _contests(source, pairs, complete)]
        return [
            {**about, **look(outcomes, LEVEL / len(rows), self.no_difference).as_json()} for about, outcomes in rows
        ]

    def _by_evaluation(self) -> dict[str, list[Pair]]:
        found: dict[str, list[Pair]] = {}
        for pair in self._given_out():
            found.setdefault(pair.source, []).append(pair)
        return found

    def _given_out(self) -> list[Pair]:
        """Without withdrawn pairs, and earlier versions of corrected ones."""
        with self.store.reading() as connection:
            gone = set(connection.scalars(sa.select(WITHDRAWALS.c.pair_id)))
        return [pair for name, pair in self._pairs.items() if name not in gone]

    def _read_new(self) -> None:
        with self.store.reading() as connection:
            last = connection.scalar(sa.select(sa.func.max(PAIRS.c.position)))
            if last is None or last == self._position:
                return
            query = sa.select(PAIRS.c.record).where(PAIRS.c.position > self._position, EVALUATES)
            for record in connection.scalars(query):
                pair = Pair.model_validate_json(record)
                self._pairs[pair.id] = pair
            self._position = last

    def _complete(self) -> list[Judgment]:
        """The judgments of pairs that have as many as they need, in the order in which the pairs were completed."""
        ids = list(self._pairs)
        rows: list[Any] = []
        with self.store.reading() as connection:
            for n in range(0, len(ids), IDS_AT_ONCE):
                rows += connection.execute(_VOTES.where(ITEMS.c.pair_id.in_(ids[n : n + IDS_AT_ONCE]))).all()
        by_pair: dict[str, list[Any]] = {}
        for row in sorted(rows, key=lambda row: row.seq):
            of_pair = by_pair.setdefault(row.pair_id, [])
            if len(of_pair) < row.overlap:
                of_pair.append(row)
        done = [of_pair for of_pair in by_pair.values() if len(of_pair) == of_pair[0].overlap]
        done.sort(key=lambda of_pair: of_pair[-1].seq)
        judgments = [read_judgment(row.record) for of_pair in done for row in of_pair]
        return [one for one in judgments if one.kind == "human"] or judgments


def _contests(
    source: str, pairs: Sequence[Pair], judgments: Sequence[Judgment]
) -> Iterator[tuple[dict[str, Any], list[float]]]:
    """The comparisons of one evaluation, and their outcomes in the order in which prompts were first completed."""
    names = sorted({name for pair in pairs for name in _policies_in(pair)})
    votes = in_order(votes_of(pairs, judgments, names), names)
    for contest in combinations(names, 2):
        if count := _meetings(pairs, contest):
            about = {"policies": list(contest), "evaluation": source, "pairs": count}
            yield about, list(by_prompt(votes[contest]).values())


def _policies_in(pair: Pair) -> list[str]:
    return [name for completion in pair.completions for name in policies_of(completion)]


def _meetings(pairs: Sequence[Pair], contest: tuple[str, str]) -> int:
    """The pairs that compare two policies."""
    return sum(set(contest) <= set(_policies_in(pair)) and not _share(pair, contest) for pair in pairs)


def _share(pair: Pair, contest: tuple[str, str]) -> bool:
    """Whether both gave the same answer."""
    return any(set(contest) <= set(policies_of(completion)) for completion in pair.completions)
