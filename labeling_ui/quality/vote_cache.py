"""The votes of a running store, cached as columns and updated with new judgments.

The lead's page polls. Reading a million judgments takes seconds; reading the new, amended and undone ones takes almost
no time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from pydantic_core import from_json
from sqlalchemy.engine import Connection

from labeling_ui.database.schema import ADJUDICATIONS, EVENTS, GOLD, ITEMS, JUDGMENTS, LOG_HEAD, PAIRS, vote_of
from labeling_ui.quality.reliability import UNKNOWN, Ballots, share_of_order
from labeling_ui.quality.votes import KINDS, Flags, Floats, Integers, Votes, votes_of_columns
from labeling_ui.store.store import Store
from tiebreak.records import Judgment, Kind

PARTS = 256
"""Numbers reserved for one item: a ranking of 20 completions has 190 comparisons."""
_SKIPPED = 9
MOST_BATCHES = 20
"""Batches whose agreement is shown one by one."""
_KIND_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}

# Read from the judgment's row alone: joining its assignment and item takes longer than all the rest. A key with its
# quotes occurs nowhere else in a record: quotes within texts are escaped.
_BOTH_BAD = sa.case((JUDGMENTS.c.vote == 0, JUDGMENTS.c.record.like('%"both\\_bad":true%', escape="\\")), else_=False)
_TURNED = sa.literal('%"answer":') + sa.cast(-JUDGMENTS.c.vote, sa.String) + sa.literal(",%")
_LEFT_FIRST = sa.case((JUDGMENTS.c.vote != 0, JUDGMENTS.c.record.like(_TURNED)), else_=False)
"""A vote is the answer with its sign flipped where the first completion was on the left (`schema.vote_of`). Votes for
neither are not needed here."""
_ROWS = sa.select(
    JUDGMENTS.c.item_id,
    JUDGMENTS.c.rater_id,
    JUDGMENTS.c.kind,
    sa.func.coalesce(JUDGMENTS.c.vote, _SKIPPED),
    _BOTH_BAD.label("both_bad"),
    _LEFT_FIRST.label("left_first"),
    JUDGMENTS.c.active_ms,
    JUDGMENTS.c.seq,
    JUDGMENTS.c.at_ms,
)
_RANKINGS = (
    sa.select(JUDGMENTS.c.item_id, JUDGMENTS.c.record, JUDGMENTS.c.active_ms, JUDGMENTS.c.seq, JUDGMENTS.c.at_ms)
    .join(ITEMS, ITEMS.c.id == JUDGMENTS.c.item_id)
    .where(ITEMS.c.task == "ranking")
)
_CHANGES = sa.select(EVENTS.c.item_id, EVENTS.c.rater_id).where(EVENTS.c.kind.in_(("amended", "undone", "rejected")))


class LiveVotes:
    """The votes of one store by kind, and its items' comparisons."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seq = 0
        self._raters: dict[str, int] = {}
        self._columns: Floats = np.empty((11, 0))
        """the columns of `votes_of_columns` but gold and the time, then the number of the kind, the judgment's position in
        the log, and its time"""
        self._positions: dict[str, int] = {}
        """of the items, by id; the attributes below are by position"""
        self._rankings: set[str] = set()
        """ranking items"""
        self._only_pairs = True
        """no item is a ranking or a single answer"""
        self._pairs: dict[str, int] = {}
        self._compared: Integers = np.empty((4, 0), dtype=np.int64)
        """number of the item's pair, indices of its two completions, and how many are judged at once: one
        is a single answer, which has no votes"""
        self._first_longer: Floats = np.empty(0)
        self._votes: Mapping[Kind, Votes] = {}
        self._withdrawn: list[int] = []
        """positions of the items of withdrawn pairs"""

    def read(self) -> Mapping[Kind, Votes]:
        """The current votes."""
        with self._store.reading() as connection:
            head = connection.scalar(sa.select(LOG_HEAD.c.seq)) or 0
            if head != self._seq:
                self._catch_up(connection)
                aside = sa.select(ITEMS.c.position).where(ITEMS.c.withdrawn == sa.literal_column("1"))
                self._withdrawn = list(connection.scalars(aside))
                gold = [self._positions[item_id] for item_id in connection.scalars(sa.select(GOLD.c.item_id))]
                self._votes = {kind: self._votes_of(kind, gold) for kind in KINDS}
                self._seq = head
            return self._votes

    def _votes_of(self, kind: Kind, gold: Sequence[int]) -> Votes:
        columns = self._of_kind(kind)
        is_gold = np.isin(columns[0] // PARTS, gold)
        return self._as_votes(columns, is_gold)

    def _as_votes(self, columns: Floats, is_gold: Flags) -> Votes:
        return votes_of_columns(tuple(self._raters), np.concatenate([columns[:8], is_gold[None], columns[10:]]))

    def by_batch(self, kind: Kind) -> dict[str, Votes]:
        """The votes of one kind at the last `read`, by batch, without gold; empty where there is one batch, or too many to
        show."""
        with self._store.reading() as connection:
            names = sorted(connection.scalars(sa.select(ITEMS.c.batch).distinct().limit(MOST_BATCHES + 1)))
            if not 1 < len(names) <= MOST_BATCHES:
                return {}
            query = sa.select(ITEMS.c.position, ITEMS.c.batch).where(ITEMS.c.id.not_in(sa.select(GOLD.c.item_id)))
            batch_of = np.full(len(self._positions), -1)
            for position, batch in connection.execute(query):
                if position < len(batch_of):
                    batch_of[position] = names.index(batch)
        columns = self._of_kind(kind)
        batch = batch_of[(columns[0] // PARTS).astype(np.int64)]
        nowhere = np.zeros(columns.shape[1], dtype=np.bool_)
        return {name: self._as_votes(columns[:, batch == n], nowhere[batch == n]) for n, name in enumerate(names)}

    def ballots(self, kind: Kind) -> Ballots:
        """The votes of one kind at the last `read`, for the reliability models; gold and settled answers are known."""
        cast = self._votes[kind].first_cast
        position, part = np.divmod(np.unique(self._of_kind(kind)[0]).astype(np.int64), PARTS)
        pair, first, second, together = self._compared[:, position]
        ranked = together > 2
        first[ranked], second[ranked] = _COMPARISONS[:, part[ranked]]
        shares = np.array([1.0, 1.0, *(share_of_order(n) for n in range(2, int(together.max(initial=2)) + 1))])
        return Ballots(
            rater_ids=cast.rater_ids,
            item=cast.item,
            rater=cast.rater,
            sign=cast.sign.astype(np.int64),
            share=shares[together][cast.item],
            prompt=pair,
            first=first,
            second=second,
            known_class=self._known()[position],
        )

    def _of_kind(self, kind: Kind) -> Floats:
        rows = self._columns[8] == _KIND_NUMBERS[kind]
        if self._withdrawn:
            rows &= ~np.isin(self._columns[0] // PARTS, self._withdrawn)
        return self._columns[:, rows]

    def _known(self) -> Integers:
        """By position: the class of an item with a known answer."""
        known_class = np.full(len(self._positions), UNKNOWN)
        golden = sa.select(GOLD.c.item_id, GOLD.c.preferred_id, ITEMS.c.first_id).join(
            ITEMS, ITEMS.c.id == GOLD.c.item_id
        )
        golden = golden.where(GOLD.c.value.is_(None))  # single answers have no sides
        settled = sa.select(ADJUDICATIONS.c.item_id, ADJUDICATIONS.c.record, ITEMS.c.first_id)
        settled = settled.join(ITEMS, ITEMS.c.id == ADJUDICATIONS.c.item_id).where(ITEMS.c.second_id.is_not(None))
        with self._store.reading() as connection:
            for item_id, record, first in connection.execute(settled):
                judgment = Judgment.model_validate_json(record)
                vote = vote_of(judgment.answer, skip=judgment.skip, left_is_first=judgment.left == first)
                known_class[self._positions[item_id]] = np.sign(vote or 0)
            for item_id, preferred, first in connection.execute(golden):
                known_class[self._positions[item_id]] = 0 if preferred is None else 1 if preferred == first else -1
        return known_class

    def _catch_up(self, connection: Connection) -> None:
        self._learn_new_items(connection)
        changed = connection.execute(_CHANGES.where(EVENTS.c.seq > self._seq)).all() if self._seq else []
        after = JUDGMENTS.c.seq > self._seq
        parts = [self._read(connection, after)]
        for item_id, rater_id in {(row.item_id, row.rater_id) for row in changed}:
            self._forget(item_id, rater_id)
            again = sa.and_(JUDGMENTS.c.item_id == item_id, JUDGMENTS.c.rater_id == rater_id, ~after)
            parts.append(self._read(connection, again))
        columns = np.concatenate([self._columns, *parts], axis=1)
        self._columns = columns[:, np.argsort(columns[9], kind="stable")]

    def _forget(self, item_id: str, rater_id: str) -> None:
        theirs = self._columns[0] // PARTS == self._positions[item_id]
        self._columns = self._columns[:, ~(theirs & (self._columns[1] == self._raters.get(rater_id, -1)))]

    def _read(self, connection: Connection, which: sa.ColumnElement[bool]) -> Floats:
        parts = [np.empty((11, 0))]
        if rows := connection.execute(_ROWS.where(which)).all():
            parts.append(self._columns_of(rows))
        if self._rankings:
            rankings = [row for one in connection.execute(_RANKINGS.where(which)) for row in self._ranking_rows(one)]
            parts.append(np.array(rankings, dtype=np.float64).reshape(-1, 11).T)
        return np.concatenate(parts, axis=1)

    def _columns_of(self, rows: Sequence[Any]) -> Floats:
        """Column by column: a million rows one by one would take three times as long. Without rankings and
        single answers."""
        items, raters, kinds, votes, both_bad, left_first, active_ms, seq, at_ms = zip(*rows, strict=True)
        position = np.array([self._positions[item] for item in items])
        for rater_id in dict.fromkeys(raters):
            self._raters.setdefault(rater_id, len(self._raters))
        active = np.array(active_ms) / 1000
        vote = np.array(votes)
        columns = np.array(
            [
                position * PARTS,
                [self._raters[rater_id] for rater_id in raters],
                np.where(vote == _SKIPPED, 0, vote),
                both_bad,
                vote == _SKIPPED,
                left_first,
                self._first_longer[position],
                np.where(active > 0, active, np.nan),
                [_KIND_NUMBERS[kind] for kind in kinds],
                seq,
                at_ms,
            ],
            dtype=np.float64,
        )
        return columns[:, self._compared[3, position] == 2] if not self._only_pairs else columns

    def _ranking_rows(self, row: Any) -> Iterable[tuple[float, ...]]:
        """One row per two completions."""
        judgment = Judgment.model_validate_json(row.record)
        rater = self._raters.setdefault(judgment.rater_id, len(self._raters))
        seconds = row.active_ms / 1000 if row.active_ms else np.nan
        number = _KIND_NUMBERS[judgment.kind]
        place = {identity: n for n, identity in enumerate(sorted(judgment.shown))}
        for one in judgment.pairwise():
            first, second = sorted((one.left, one.right))
            left_first = one.left == first
            answer = one.answer or 0
            item = self._positions[row.item_id] * PARTS + (0 if one.skip else _part(place[first], place[second]))
            value = -answer if left_first else answer
            yield item, rater, value, one.both_bad, one.skip, left_first, 0, seconds, number, row.seq, row.at_ms

    def _learn_new_items(self, connection: Connection) -> None:
        """Each new item's comparison, and which of its completions is longer."""
        query = (
            sa.select(ITEMS.c.id, ITEMS.c.position, ITEMS.c.task, ITEMS.c.pair_id, ITEMS.c.first_id, ITEMS.c.second_id)
            .add_columns(PAIRS.c.record)
            .join(PAIRS, PAIRS.c.id == ITEMS.c.pair_id)
            .where(ITEMS.c.position >= len(self._first_longer))
            .order_by(ITEMS.c.position)
        )
        compared, longer = [], []
        for item_id, position, task, pair_id, first, second, record in connection.execute(query):
            completions = from_json(record)["completions"]
            lengths = {one["id"]: len(one["text"]) for one in completions}
            places = {one["id"]: n for n, one in enumerate(completions)}
            self._positions[item_id] = position
            if task == "ranking":
                self._rankings.add(item_id)
            together = len(completions) if task == "ranking" else 1 if second is None else 2
            self._only_pairs &= together == 2
            pair = self._pairs.setdefault(pair_id, len(self._pairs))
            other = second or first
            compared.append((pair, places[first], places[other], together))
            longer.append((lengths[first] > lengths[other]) - (lengths[first] < lengths[other]))
        self._compared = np.concatenate([self._compared, np.array(compared, dtype=np.int64).reshape(-1, 4).T], axis=1)
        self._first_longer = np.concatenate([self._first_longer, longer])


def _part(first: int, second: int) -> int:
    """The number of a comparison within a ranking, from the indices of its completions: independent of the order shown
    and of their number."""
    return second * (second - 1) // 2 + first


_COMPARISONS: Integers = np.array([(first, second) for second in range(23) for first in range(second)]).T
"""By `_part`."""
