"""The votes of a store that is at work, kept as columns and brought up to date by what has happened since.

The lead's page asks again and again. Reading a million judgments takes seconds; reading those since the last time,
and those that were amended or undone, takes none.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from labeling_ui.schema import ASSIGNMENTS, EVENTS, ITEMS, JUDGMENTS, LOG_HEAD, PAIRS
from labeling_ui.store import Store
from labeling_ui.votes import KINDS, Floats, Votes, votes_of_columns
from tiebreak.records import Judgment, Kind

PARTS = 256
"""Numbers kept free for one item: a ranking of 20 completions has 190 comparisons."""
_KIND_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}
_ROWS = (
    sa.select(
        ITEMS.c.position,
        JUDGMENTS.c.rater_id,
        JUDGMENTS.c.kind,
        JUDGMENTS.c.vote,
        JUDGMENTS.c.record.like('%"both\\_bad":true%', escape="\\").label("both_bad"),
        (ASSIGNMENTS.c.left_id == ITEMS.c.first_id).label("left_first"),
        JUDGMENTS.c.active_ms,
        JUDGMENTS.c.seq,
    )
    .join(ITEMS, ITEMS.c.id == JUDGMENTS.c.item_id)
    .join(ASSIGNMENTS, ASSIGNMENTS.c.id == JUDGMENTS.c.assignment_id)
    .where(ITEMS.c.task == "pair")
)
_RANKINGS = (
    sa.select(ITEMS.c.position, JUDGMENTS.c.record, JUDGMENTS.c.active_ms, JUDGMENTS.c.seq)
    .join(ITEMS, ITEMS.c.id == JUDGMENTS.c.item_id)
    .where(ITEMS.c.task == "ranking")
)
_CHANGES = sa.select(EVENTS.c.item_id, EVENTS.c.rater_id).where(EVENTS.c.kind.in_(("amended", "undone")))


class LiveVotes:
    """The votes of one store, of each kind. Safe to share between threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._seq = 0
        self._raters: dict[str, int] = {}
        self._columns: Floats = np.empty((10, 0))
        """the columns of `votes_of_columns`, then the number of the kind, and the judgment's place in the log"""
        self._first_longer: Floats = np.empty(0)
        """by the item's position"""
        self._votes: Mapping[Kind, Votes] = {}

    def read(self) -> Mapping[Kind, Votes]:
        """The votes that stand now."""
        with self._lock, self._store.reading() as connection:
            head = connection.scalar(sa.select(LOG_HEAD.c.seq)) or 0
            if head != self._seq:
                self._catch_up(connection)
                self._votes = {
                    kind: votes_of_columns(tuple(self._raters), self._columns[:8, self._columns[8] == number])
                    for number, kind in enumerate(KINDS)
                }
                self._seq = head
            return self._votes

    def _catch_up(self, connection: Connection) -> None:
        self._measure_new_items(connection)
        changed = connection.execute(_CHANGES.where(EVENTS.c.seq > self._seq)).all() if self._seq else []
        after = JUDGMENTS.c.seq > self._seq
        parts = [self._read(connection, after)]
        for item_id, rater_id in {(row.item_id, row.rater_id) for row in changed}:
            self._forget(connection, item_id, rater_id)
            again = sa.and_(JUDGMENTS.c.item_id == item_id, JUDGMENTS.c.rater_id == rater_id, ~after)
            parts.append(self._read(connection, again))
        columns = np.concatenate([self._columns, *parts], axis=1)
        self._columns = columns[:, np.argsort(columns[9], kind="stable")]

    def _forget(self, connection: Connection, item_id: str, rater_id: str) -> None:
        position = connection.scalar(sa.select(ITEMS.c.position).where(ITEMS.c.id == item_id))
        theirs = (self._columns[0] // PARTS == position) & (self._columns[1] == self._raters.get(rater_id, -1))
        self._columns = self._columns[:, ~theirs]

    def _read(self, connection: Connection, which: sa.ColumnElement[bool]) -> Floats:
        rankings = [row for one in connection.execute(_RANKINGS.where(which)) for row in self._ranking_rows(one)]
        parts = [np.array(rankings, dtype=np.float64).reshape(-1, 10).T]
        if rows := connection.execute(_ROWS.where(which)).all():
            parts.append(self._columns_of(rows))
        return np.concatenate(parts, axis=1)

    def _columns_of(self, rows: Sequence[Any]) -> Floats:
        """Column by column: a million rows one by one would take three times as long."""
        positions, raters, kinds, votes, both_bad, left_first, active_ms, seq = zip(*rows, strict=True)
        position = np.array(positions)
        for rater_id in dict.fromkeys(raters):
            self._raters.setdefault(rater_id, len(self._raters))
        active = np.array(active_ms) / 1000
        vote = np.array(votes, dtype=np.float64)  # None becomes nan
        return np.array(
            [
                position * PARTS,
                [self._raters[rater_id] for rater_id in raters],
                np.nan_to_num(vote),
                both_bad,
                np.isnan(vote),
                left_first,
                self._first_longer[position],
                np.where(active > 0, active, np.nan),
                [_KIND_NUMBERS[kind] for kind in kinds],
                seq,
            ],
            dtype=np.float64,
        )

    def _ranking_rows(self, row: Any) -> Iterable[tuple[float, ...]]:
        """One row for every two completions."""
        judgment = Judgment.model_validate_json(row.record)
        rater = self._raters.setdefault(judgment.rater_id, len(self._raters))
        seconds = row.active_ms / 1000 if row.active_ms else np.nan
        number = _KIND_NUMBERS[judgment.kind]
        parts = {pair: n for n, pair in enumerate(_pairs_of(judgment.shown))}
        for one in judgment.pairwise():
            first, second = sorted((one.left, one.right))
            left_first = one.left == first
            answer = one.answer or 0
            item = row.position * PARTS + parts.get((first, second), 0)
            value = -answer if left_first else answer
            yield item, rater, value, one.both_bad, one.skip, left_first, 0, seconds, number, row.seq

    def _measure_new_items(self, connection: Connection) -> None:
        """Which completion of each new item is the longer one."""
        query = (
            sa.select(ITEMS.c.first_id, ITEMS.c.second_id, PAIRS.c.record)
            .join(PAIRS, PAIRS.c.id == ITEMS.c.pair_id)
            .where(ITEMS.c.position >= len(self._first_longer))
            .order_by(ITEMS.c.position)
        )
        new = []
        for first, second, record in connection.execute(query):
            lengths = {one["id"]: len(one["text"]) for one in json.loads(record)["completions"]}
            new.append(np.sign(lengths[first] - lengths[second]))
        self._first_longer = np.concatenate([self._first_longer, new])


def _pairs_of(shown: tuple[str, ...]) -> list[tuple[str, str]]:
    """Every two completions, in an order that does not depend on how they were shown."""
    ids = sorted(shown)
    return [(first, second) for n, first in enumerate(ids) for second in ids[n + 1 :]]
