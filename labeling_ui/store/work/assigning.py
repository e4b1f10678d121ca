"""Assignment: an item goes to at most `overlap` raters, and to none of them twice except as a planned repeat.

Items are given out by priority, then in the order they were added, from the rater's own pool and from everybody's.
Gold items and repeats come in between, at random, and look like any other. A rater who leaves holds up nobody: after
the lease, their place is free again, and so is that of one who skips.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.engine import Connection

from labeling_ui.database import statements as st
from labeling_ui.database.errors import RefusedError
from labeling_ui.database.event_log import EventKind, Transaction
from labeling_ui.store.pairs.items import Task, assignment_id, shuffle_all, shuffle_sides
from labeling_ui.store.pairs.media import ShownMedia, media_of
from labeling_ui.store.work.standing import HELD, QualifyConfig, StopConfig, is_tested, next_question
from tiebreak.assessments import SingleAnswer, is_single, read_judgment, read_pair
from tiebreak.hashing import canonical_json
from tiebreak.messages import content_id
from tiebreak.records import Pair

LEASE_SECONDS = 20 * 60
REPEAT_AFTER = 20
"""A repeat comes at least this many judgments after the first."""
MAX_HELD = 3
"""Pairs a rater may hold at once: the one on the screen and the prefetched ones."""
PAIRS_IN_MEMORY = 5_000
SWEEP_EVERY_MS = 500
CLOCKS_DIFFER_MS = 60_000
"""The clocks of servers that share a store may differ by this much."""


@dataclass(frozen=True)
class Assignment:
    """One item given to one rater, with its sides. `item_id` is the pair's id, or that of one of the K(K−1)/2 items of a
    larger pair."""

    id: str
    item_id: str
    rater_id: str
    shown: tuple[str, ...]
    """completions in the order shown: left and right, all of a ranking, or the single one"""
    pair: Pair
    draft: dict[str, Any] | None = None
    media: Mapping[str, ShownMedia] = field(default_factory=dict)
    """the hashes of the files that the pair refers to"""

    @property
    def left_id(self) -> str:
        """The completion on the left, or the first of a ranking."""
        return self.shown[0]

    @property
    def right_id(self) -> str:
        """The completion on the right, or the second of a ranking."""
        return self.shown[1]

    @property
    def ranking(self) -> bool:
        """True where more than two completions are to be ranked."""
        return len(self.shown) > 2

    @property
    def task(self) -> Task:
        """What is asked about the completions."""
        return self.pair.task if isinstance(self.pair, SingleAnswer) else "ranking" if self.ranking else "pair"


@dataclass
class Rules:
    """The rules by which items are given out."""

    lease_ms: int
    repeat_share: float = 0.0
    """share of items given to a rater a second time, unannounced, to measure self-consistency"""
    gold_share: float = 0.0
    """share of gold items among a rater's items, until all gold items are used"""
    qualify: QualifyConfig | None = None
    """the test that raters pass first"""
    stop: StopConfig | None = None
    """when raters are stopped"""
    _seed: int | None = None
    _swept_ms: int = -SWEEP_EVERY_MS
    _pairs: dict[str, Pair] = field(default_factory=dict)

    def seed(self, tx: Transaction) -> int:
        """The campaign's seed; it never changes."""
        if self._seed is None:
            self._seed = int(tx.setting("seed"))
        return self._seed

    def time_to_sweep(self, now_ms: int) -> bool:
        """Whether to look for expired leases: occasionally is enough, since leases last for minutes."""
        due = abs(now_ms - self._swept_ms) >= SWEEP_EVERY_MS
        self._swept_ms = now_ms if due else self._swept_ms
        return due

    def load_pair(self, connection: Connection, pair_id: str) -> Pair:
        """The pair, cached: pairs never change."""
        pair = self._pairs.get(pair_id)
        if pair is None:
            pair = read_pair(st.PAIR_RECORD.one(connection, pair=pair_id).record)
            if len(self._pairs) >= PAIRS_IN_MEMORY:
                self._pairs.clear()
            self._pairs[pair_id] = pair
        return pair


def active_rater(connection: Connection, rater_id: str) -> Any:
    """The rater's row.

    Raises:
        RefusedError: there is no such rater, or they are disabled.
    """
    row = st.RATER.one(connection, rater=rater_id)
    if row is None or row.disabled:
        raise RefusedError("you are not, or no longer, a rater of this campaign: ask its lead")
    return row


def claim(tx: Transaction, rules: Rules, rater_id: str, holding: Sequence[str]) -> Assignment | None:
    """The rater's next item: an unanswered one, or a new one; None if nothing is left for them."""
    return claim_for(tx, rules, active_rater(tx.connection, rater_id), holding)


def claim_for(tx: Transaction, rules: Rules, rater: Any, holding: Sequence[str]) -> Assignment | None:
    """`claim`, given the rater's row."""
    if rules.time_to_sweep(tx.now()):
        _lapse_expired(tx)
        _shorten_leases(tx, rules)
    if rater.standing in HELD:
        return None
    waiting = st.WAITING.all(tx.connection, rater=rater.id)
    for row in waiting:
        if row.item_id in holding or (row.state == "lapsed" and is_paused(tx.connection, row.item_id)):
            continue
        if resume(tx, rules, row):
            return load_assignment(tx.connection, rules, row)
    if sum(row.state == "open" for row in waiting) >= MAX_HELD:
        return None
    if rules.qualify is not None and rater.standing == "" and is_tested(rater):
        question = next_question(tx, rater, rules.qualify, rules.seed(tx))
        return None if question is None else _assign_known(tx, rules, rater, question)
    return _assign_planned(tx, rules, rater, len(waiting)) or _assign_in_turn(tx, rules, rater)


def resume(tx: Transaction, rules: Rules, row: Any) -> bool:
    """Resume an unanswered assignment; False if its lease expired and others have its place, or it was withdrawn."""
    if row.state == "lapsed" and row.occasion == 0:
        if st.LOCK_ITEM.one(tx.connection, item=row.item_id) is None or is_withdrawn(tx, row.item_id):
            return False
        if not st.TAKE_PLACE.do(tx.connection, item=row.item_id):
            return False
    elif row.state == "lapsed" and is_withdrawn(tx, row.item_id):
        return False
    if row.state == "lapsed" or row.lease_until_ms - tx.now() < rules.lease_ms / 2:
        kind: EventKind = "reopened" if row.state == "lapsed" else "renewed"
        tx.event(kind, rater_id=row.rater_id, item_id=row.item_id, payload={"assignment": row.id})
        renew(tx, rules, row.id)
    return True


def is_withdrawn(tx: Transaction, item_id: str) -> bool:
    """Whether a lead has withdrawn or corrected the item's pair. Nobody holds an item that was."""
    return bool(st.ITEM.one(tx.connection, item=item_id).withdrawn)


def is_paused(connection: Connection, item_id: str) -> bool:
    """Whether the item's batch is paused: it is given to nobody, and not again to those whose lease has expired."""
    batch = st.BATCH_PAUSED.one(connection, batch=st.ITEM.one(connection, item=item_id).batch)
    return batch is not None and bool(batch.paused)


def renew(tx: Transaction, rules: Rules, assignment: str) -> None:
    """Restart the lease."""
    st.RENEW_LEASE.do(tx.connection, assignment=assignment, until_ms=tx.now() + rules.lease_ms)


def load_assignment(connection: Connection, rules: Rules, row: Any) -> Assignment:
    """A row of `assignments`, with its pair and the rater's draft."""
    item = st.ITEM.one(connection, item=row.item_id)
    draft = st.DRAFT.one(connection, assignment=row.id)
    pair = rules.load_pair(connection, item.pair_id)
    written, media = json.loads(draft.body) if draft else None, media_of(connection, pair)
    return Assignment(row.id, row.item_id, row.rater_id, shown_of(row), pair, written, media)


def shown_of(row: Any) -> tuple[str, ...]:
    """The completions of an assignment's row, in the order shown."""
    if row.shown:
        return tuple(json.loads(row.shown))
    return (row.left_id,) if row.right_id is None else (row.left_id, row.right_id)


def _assign_in_turn(tx: Transaction, rules: Rules, rater: Any) -> Assignment | None:
    values = {"rater": rater.id, "pool": rater.pool}
    item = st.NEXT_FREED.one(tx.connection, **values)
    if item is None:
        item, cursor = _next_in_turn(tx.connection, rater)
        if item is not None:
            st.MOVE_CURSOR.do(tx.connection, rater=rater.id, to_cursor=cursor)
    if item is None or not st.TAKE_PLACE.do(tx.connection, item=item.id):
        return None
    return assign(tx, rules, item, rater.id, occasion=0)


def _next_in_turn(connection: Connection, rater: Any) -> tuple[Any, int]:
    """The rater's next item, and the cursor before which nothing is left for them.

    On Postgres, another transaction may have locked the first item. It is skipped, and the cursor stays before it.
    """
    candidates = []
    for pool in {"", rater.pool}:
        item, first = _next_of_pool(connection, {"rater": rater.id, "pool": pool, "from_turn": rater.cursor})
        candidates += [(item, first.turn)] if item is not None else []
    if not candidates:
        return None, rater.cursor
    item, _ = min(candidates, key=lambda pair: pair[0].turn)
    return item, min([item.turn + 1, *(first for other, first in candidates if first < other.turn)])


def _next_of_pool(connection: Connection, rater: dict[str, Any]) -> tuple[Any, Any]:
    """(the first unlocked item, the first item); they differ only on Postgres."""
    item = st.NEXT_UNLOCKED.one(connection, **rater)
    if connection.dialect.name == "sqlite":
        return item, item
    first = st.NEXT_IN_TURN.one(connection, **rater)
    while item is None and first is not None:  # the rest is locked by others: wait for it
        item = st.NEXT_AFTER_OTHERS.one(connection, **rater)
        first = st.NEXT_IN_TURN.one(connection, **rater)
    return item, first if first is not None else item


def _assign_planned(tx: Transaction, rules: Rules, rater: Any, waiting: int) -> Assignment | None:
    """Occasionally a gold item, or a repeat; neither takes a place of the item's overlap."""
    if not rules.repeat_share and not rules.gold_share:
        return None
    chance = random.Random(content_id("planned", rules.seed(tx), rater.id, rater.judged, waiting))
    drawn = chance.random()
    if drawn < rules.gold_share:
        return _assign_gold(tx, rules, rater, chance)
    if rater.judged > REPEAT_AFTER and drawn < rules.gold_share + rules.repeat_share:
        return _assign_repeat(tx, rules, rater, chance)
    return None


def _assign_gold(tx: Transaction, rules: Rules, rater: Any, chance: random.Random) -> Assignment | None:
    # Each rater starts at a place of their own: two who sit side by side do not meet the same pair at once.
    start = chance.randrange(max(1, st.COUNT_GOLD.one(tx.connection).n))
    gold = st.GOLD_LEFT.one(tx.connection, rater=rater.id, pool=rater.pool, start=start)
    return None if gold is None else _assign_known(tx, rules, rater, gold.item_id)


def _assign_known(tx: Transaction, rules: Rules, rater: Any, item_id: str) -> Assignment | None:
    """Give a gold item, for which the overlap grows."""
    if st.LOCK_ITEM.one(tx.connection, item=item_id) is None:
        return None
    st.MAKE_PLACE.do(tx.connection, item=item_id)
    return assign(tx, rules, st.ITEM.one(tx.connection, item=item_id), rater.id, occasion=0)


def _assign_repeat(tx: Transaction, rules: Rules, rater: Any, chance: random.Random) -> Assignment | None:
    place = chance.randrange(rater.judged - REPEAT_AFTER)
    first = st.JUDGED_AT.one(tx.connection, rater=rater.id, place=place)
    if first is None:
        return None
    row = st.ASSIGNMENT.one(tx.connection, assignment=first.assignment_id)
    item = st.ITEM.one(tx.connection, item=row.item_id)
    assignments = st.ASSIGNMENTS_OF.all(tx.connection, item=row.item_id, rater=rater.id)
    if first.vote is None and not (
        is_single(item.task) and not read_judgment(first.record).skip
    ):  # a skip, or a ranking
        return None
    if len(assignments) > 1 or item.task == "ranking" or item.withdrawn or is_paused(tx.connection, item.id):
        return None
    return assign(tx, rules, item, rater.id, occasion=1)


def assign(tx: Transaction, rules: Rules, item: Any, rater_id: str, *, occasion: int) -> Assignment:
    """Give an item to a rater, with sides of their own; its place is already taken."""
    identity = assignment_id(item.id, rater_id, occasion)
    pair = rules.load_pair(tx.connection, item.pair_id)
    # Repeats are shuffled again, so that the side does not give the old answer away.
    seed, drawn_for = rules.seed(tx), f"{item.id} again" if occasion else item.id
    shown: tuple[str, ...]
    if item.task == "ranking":
        ids = [completion.id for completion in pair.completions]
        shown = shuffle_all(ids, seed=seed, rater_id=rater_id, item_id=drawn_for)
    elif is_single(item.task):
        shown = (item.first_id,)
    else:
        shown = shuffle_sides(item.first_id, item.second_id, seed=seed, rater_id=rater_id, item_id=drawn_for)
    right = shown[1] if len(shown) > 1 else None
    payload: dict[str, Any] = {"assignment": identity, "left": shown[0], "right": right, "occasion": occasion}
    if item.task == "ranking":
        payload["shown"] = shown
    now = tx.event("assigned", rater_id=rater_id, item_id=item.id, payload=payload)
    st.ADD_ASSIGNMENT.do(
        tx.connection,
        id=identity,
        item_id=item.id,
        rater_id=rater_id,
        occasion=occasion,
        left_id=shown[0],
        right_id=right,
        shown=canonical_json(shown) if item.task == "ranking" else "",
        shown_at_ms=None,
        state="open",
        lease_until_ms=now + rules.lease_ms,
        seq=tx.seq,
    )
    return Assignment(identity, item.id, rater_id, shown, pair, media=media_of(tx.connection, pair))


def _lapse_expired(tx: Transaction) -> None:
    for row in st.EXPIRED.all(tx.connection, now_ms=tx.now()):
        if not row.occasion and st.LOCK_ITEM.one(tx.connection, item=row.item_id) is None:
            continue  # locked by another transaction: the next claim handles it
        tx.event("lapsed", rater_id=row.rater_id, item_id=row.item_id, payload={"assignment": row.id})
        st.SET_STATE.do(tx.connection, assignment=row.id, to_state="lapsed")
        if not row.occasion:
            st.FREE_PLACE.do(tx.connection, item=row.item_id)


def _shorten_leases(tx: Transaction, rules: Rules) -> None:
    """After the clock was set back, a lease would hold its item for longer than others do: end it when theirs end."""
    for row in st.TOO_LONG.all(tx.connection, after_ms=tx.now() + rules.lease_ms + CLOCKS_DIFFER_MS):
        renew(tx, rules, row.id)
