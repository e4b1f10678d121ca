"""The statements of the hot path, compiled once and run by the driver (see `prepared`)."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import bindparam

from labeling_ui.database.prepared import PreparedStatement
from labeling_ui.database.schema import (
    ADJUDICATIONS,
    ANSWERS_INDEXED,
    ASSIGNMENTS,
    BATCHES,
    DRAFTS,
    EVENTS,
    GOLD,
    ITEMS,
    JUDGMENTS,
    PAIRS,
    RATER_HOURS,
    RATERS,
    REJECTIONS,
    SESSIONS,
    SKIPS_TO_LEAD,
    SUBMISSIONS,
)

# --- raters ---

RATER = PreparedStatement(sa.select(RATERS).where(RATERS.c.id == bindparam("rater")).with_for_update())
"""Locked on Postgres: one rater's actions in two windows run one after the other."""

SESSION = PreparedStatement(
    sa.select(RATERS, SESSIONS.c.csrf_token, SESSIONS.c.began_at_ms, SESSIONS.c.expires_at_ms)
    .join(SESSIONS, SESSIONS.c.rater_id == RATERS.c.id)
    .where(SESSIONS.c.token_hash == bindparam("token_hash"), SESSIONS.c.expires_at_ms > bindparam("now_ms"))
)
ANY_ACCOUNT = PreparedStatement(sa.select(RATERS.c.id).where(RATERS.c.password_hash.is_not(None)).limit(1))
MOVE_CURSOR = PreparedStatement(
    sa.update(RATERS).where(RATERS.c.id == bindparam("rater")).values(cursor=bindparam("to_cursor"))
)
COUNT_JUDGMENT = PreparedStatement(
    sa.update(RATERS).where(RATERS.c.id == bindparam("rater")).values(judged=RATERS.c.judged + bindparam("more"))
)

# --- contents ---

PAIR_RECORD = PreparedStatement(sa.select(PAIRS.c.record).where(PAIRS.c.id == bindparam("pair")))
ITEM = PreparedStatement(sa.select(ITEMS).where(ITEMS.c.id == bindparam("item")))
BATCH_PAUSED = PreparedStatement(sa.select(BATCHES.c.paused).where(BATCHES.c.name == bindparam("batch")))

# --- assignment ---

_FREE = ITEMS.c.taken < ITEMS.c.overlap
_ONE_MORE = ITEMS.c.taken + 1
TAKE_PLACE = PreparedStatement(
    sa.update(ITEMS)
    .where(ITEMS.c.id == bindparam("item"), _FREE)
    .values(taken=_ONE_MORE, freed=sa.case((ITEMS.c.overlap > _ONE_MORE, ITEMS.c.freed), else_=0))
)
"""Takes a place of the item, if one is free, in one atomic statement."""
MAKE_PLACE = PreparedStatement(
    sa.update(ITEMS)
    .where(ITEMS.c.id == bindparam("item"))
    .values(taken=_ONE_MORE, overlap=sa.case((ITEMS.c.overlap < _ONE_MORE, _ONE_MORE), else_=ITEMS.c.overlap))
)
"""Takes a place for an imported or gold judgment: the overlap grows if it must."""
FREE_PLACE = PreparedStatement(
    sa.update(ITEMS).where(ITEMS.c.id == bindparam("item")).values(taken=ITEMS.c.taken - 1, freed=ITEMS.c.offered)
)
SKIP_ITEM = PreparedStatement(
    sa.update(ITEMS)
    .where(ITEMS.c.id == bindparam("item"))
    .values(
        taken=ITEMS.c.taken - 1,
        skips=ITEMS.c.skips + 1,
        freed=sa.case((ITEMS.c.skips + 1 >= SKIPS_TO_LEAD, 0), (_FREE, ITEMS.c.freed), else_=ITEMS.c.offered),
    )
)
"""A skip: the rater's place is free for others, whose cursors may have passed the item if it was full."""
UNSKIP_ITEM = PreparedStatement(
    sa.update(ITEMS)
    .where(ITEMS.c.id == bindparam("item"), _FREE)
    .values(
        taken=_ONE_MORE,
        skips=ITEMS.c.skips - 1,
        freed=sa.case((ITEMS.c.overlap > _ONE_MORE, ITEMS.c.offered), else_=0),
    )
)
"""A skip taken back: the rater takes a place again, if one is free."""
DROP_SKIP = PreparedStatement(
    sa.update(ITEMS)
    .where(ITEMS.c.id == bindparam("item"))
    .values(skips=ITEMS.c.skips - 1, freed=sa.case((_FREE, ITEMS.c.offered), else_=ITEMS.c.freed))
)
"""A rejected skip: it no longer counts towards those after which the item waits for a lead."""
COUNT_SKIP = PreparedStatement(sa.update(ITEMS).where(ITEMS.c.id == bindparam("item")).values(skips=ITEMS.c.skips + 1))
"""A skip made elsewhere, which never had a place."""
LOCK_ITEM = PreparedStatement(
    sa.select(ITEMS.c.id).where(ITEMS.c.id == bindparam("item")).with_for_update(skip_locked=True)
)
"""Empty where another transaction has locked the item."""

_NOT_FOR_LEAD = ITEMS.c.skips < sa.literal_column(str(SKIPS_TO_LEAD))
_GIVEN = sa.select(ASSIGNMENTS.c.id).where(
    ASSIGNMENTS.c.item_id == ITEMS.c.id, ASSIGNMENTS.c.rater_id == bindparam("rater")
)
_IN_TURN = (
    sa.select(ITEMS)
    .where(ITEMS.c.pool == bindparam("pool"), ITEMS.c.turn >= bindparam("from_turn"))
    .where(_FREE, ITEMS.c.offered == sa.literal_column("1"), _NOT_FOR_LEAD, ~_GIVEN.exists())
    .order_by(ITEMS.c.turn)
    .limit(sa.literal_column("1"))
)
NEXT_IN_TURN = PreparedStatement(_IN_TURN)
NEXT_UNLOCKED = PreparedStatement(_IN_TURN.with_for_update(skip_locked=True))
NEXT_AFTER_OTHERS = PreparedStatement(_IN_TURN.with_for_update())
"""Before the rater's cursor, every item is full or was theirs already: claims stay fast in a store of a million."""
_FREED = (
    sa.select(ITEMS)
    .where(ITEMS.c.freed == sa.literal_column("1"), _FREE, _NOT_FOR_LEAD, ~_GIVEN.exists())
    .where(ITEMS.c.pool.in_(["", bindparam("pool")]))
    .order_by(ITEMS.c.turn)
    .limit(sa.literal_column("1"))
)
A_FREED_ITEM = PreparedStatement(_FREED)
NEXT_FREED = PreparedStatement(_FREED.with_for_update(skip_locked=True))
"""An item whose place a rater has left: it may be before the others' cursors. (Only offered items are ever freed, and
asking for that too would lead SQLite to the index of all open items.)"""
_HAD = sa.select(ASSIGNMENTS.c.id).where(
    ASSIGNMENTS.c.item_id == GOLD.c.item_id, ASSIGNMENTS.c.rater_id == bindparam("rater")
)
PAUSED = sa.select(BATCHES.c.name).where(BATCHES.c.name == ITEMS.c.batch, BATCHES.c.paused == sa.literal_column("1"))
"""The item's batch, if it is paused; where `offered` cannot say so, as for gold, which is 0 there anyway."""
_IN_POOL = sa.select(ITEMS.c.id).where(
    ITEMS.c.id == GOLD.c.item_id,
    ITEMS.c.pool.in_(["", bindparam("pool")]),
    ITEMS.c.withdrawn == sa.literal_column("0"),
    ~PAUSED.exists(),
)
COUNT_GOLD = PreparedStatement(sa.select(sa.func.count().label("n")).select_from(GOLD))
GOLD_LEFT = PreparedStatement(
    sa.select(GOLD.c.item_id)
    .where(~_HAD.exists(), _IN_POOL.exists())
    .order_by(sa.case((GOLD.c.number >= bindparam("start"), 0), else_=1), GOLD.c.number)
    .limit(sa.literal_column("1"))
)
"""The first gold item from `start` on, cyclically, that the rater has not had."""

WAITING = PreparedStatement(
    sa.select(ASSIGNMENTS)
    .where(ASSIGNMENTS.c.rater_id == bindparam("rater"), ASSIGNMENTS.c.state != sa.literal_column("'done'"))
    .order_by(ASSIGNMENTS.c.seq)
)
EXPIRED = PreparedStatement(
    sa.select(ASSIGNMENTS)
    .where(ASSIGNMENTS.c.state == sa.literal_column("'open'"), ASSIGNMENTS.c.lease_until_ms < bindparam("now_ms"))
    .order_by(ASSIGNMENTS.c.lease_until_ms)
    .limit(sa.literal_column("100"))
    .with_for_update(skip_locked=True)
)
TOO_LONG = PreparedStatement(
    sa.select(ASSIGNMENTS.c.id)
    .where(ASSIGNMENTS.c.state == sa.literal_column("'open'"), ASSIGNMENTS.c.lease_until_ms > bindparam("after_ms"))
    .limit(sa.literal_column("100"))
    .with_for_update(skip_locked=True)
)
"""Leases that end later than one that begins now would: they began before the clock was set back."""
ASSIGNMENTS_OF = PreparedStatement(
    sa.select(ASSIGNMENTS)
    .where(ASSIGNMENTS.c.item_id == bindparam("item"), ASSIGNMENTS.c.rater_id == bindparam("rater"))
    .order_by(ASSIGNMENTS.c.occasion.desc())
)
ASSIGNMENT = PreparedStatement(sa.select(ASSIGNMENTS).where(ASSIGNMENTS.c.id == bindparam("assignment")))
ADD_ASSIGNMENT = PreparedStatement(sa.insert(ASSIGNMENTS))
SET_STATE = PreparedStatement(
    sa.update(ASSIGNMENTS).where(ASSIGNMENTS.c.id == bindparam("assignment")).values(state=bindparam("to_state"))
)
RENEW_LEASE = PreparedStatement(
    sa.update(ASSIGNMENTS)
    .where(ASSIGNMENTS.c.id == bindparam("assignment"))
    .values(state="open", lease_until_ms=bindparam("until_ms"))
)
MARK_SHOWN = PreparedStatement(
    sa.update(ASSIGNMENTS)
    .where(ASSIGNMENTS.c.id == bindparam("assignment"))
    .values(shown_at_ms=bindparam("now_ms"), lease_until_ms=bindparam("until_ms"))
)
JUDGED_AT = PreparedStatement(
    sa.select(JUDGMENTS.c.assignment_id, JUDGMENTS.c.vote, JUDGMENTS.c.record)
    .where(JUDGMENTS.c.rater_id == bindparam("rater"))
    .order_by(JUDGMENTS.c.seq)
    .limit(sa.literal_column("1"))
    .offset(bindparam("place"))
)
"""The rater's judgment number `place`, counted from 0."""

EVENT_TIME = PreparedStatement(sa.select(EVENTS.c.at_ms).where(EVENTS.c.seq == bindparam("seq")))

# --- judging ---

ANSWERS_BETWEEN = PreparedStatement(
    sa.select(EVENTS.c.at_ms, EVENTS.c.payload)
    .where(EVENTS.c.rater_id == bindparam("rater"))
    .where(EVENTS.c.at_ms > bindparam("after_ms"), EVENTS.c.at_ms < bindparam("until_ms"))
    .where(sa.text(f"events.kind IN ({ANSWERS_INDEXED}) AND events.kind <> 'imported'"))
)
"""The events of the answers that a rater gave here after a time and before another, those that were taken back too."""
HOURS_SINCE = PreparedStatement(
    sa.select(RATER_HOURS.c.hour, RATER_HOURS.c.active_ms, RATER_HOURS.c.idle_ms).where(
        RATER_HOURS.c.rater_id == bindparam("rater"), RATER_HOURS.c.hour >= bindparam("at_hour")
    )
)
"""The time that a rater's answers took, by hour, since an hour."""

SUBMISSION = PreparedStatement(
    sa.select(SUBMISSIONS).where(
        SUBMISSIONS.c.rater_id == bindparam("rater"), SUBMISSIONS.c.client_id == bindparam("client")
    )
)
ADD_SUBMISSION = PreparedStatement(sa.insert(SUBMISSIONS))
JUDGMENT = PreparedStatement(
    sa.select(JUDGMENTS).where(JUDGMENTS.c.id == bindparam("judgment"), JUDGMENTS.c.rater_id == bindparam("rater"))
)
ADD_JUDGMENT = PreparedStatement(sa.insert(JUDGMENTS))
AMEND_JUDGMENT = PreparedStatement(
    sa.update(JUDGMENTS)
    .where(JUDGMENTS.c.id == bindparam("judgment"))
    .values(record=bindparam("to_record"), vote=bindparam("to_vote"))
)
SETTLED = PreparedStatement(sa.select(ADJUDICATIONS.c.item_id).where(ADJUDICATIONS.c.item_id == bindparam("item")))
DROP_JUDGMENT = PreparedStatement(sa.delete(JUDGMENTS).where(JUDGMENTS.c.id == bindparam("judgment")))
ADD_REJECTION = PreparedStatement(sa.insert(REJECTIONS))
LAST_JUDGMENT = PreparedStatement(
    sa.select(JUDGMENTS.c.id)
    .where(JUDGMENTS.c.rater_id == bindparam("rater"))
    .order_by(JUDGMENTS.c.seq.desc())
    .limit(sa.literal_column("1"))
)
_FIRST, _SECOND, _NEITHER = (
    getattr(ITEMS.c, name) + bindparam(f"more_{name}") for name in ("for_first", "for_second", "for_neither")
)
COUNT_VOTE = PreparedStatement(
    sa.update(ITEMS)
    .where(ITEMS.c.id == bindparam("item"))
    .values(
        for_first=_FIRST,
        for_second=_SECOND,
        for_neither=_NEITHER,
        disputed=sa.case(
            (sa.and_(_FIRST > 0, _SECOND > 0), 2), (sa.and_(_FIRST + _SECOND > 0, _NEITHER > 0), 1), else_=0
        ),
    )
)
"""The item's votes, and whether raters disagree: 2 about the side, 1 about whether either is better."""
VALUES_OF = PreparedStatement(
    sa.select(JUDGMENTS.c.rater_id, JUDGMENTS.c.record).where(
        JUDGMENTS.c.item_id == bindparam("item"), JUDGMENTS.c.occasion == sa.literal_column("0")
    )
)
"""The judgments of a single answer, without repeats."""
SET_DISPUTED = PreparedStatement(
    sa.update(ITEMS).where(ITEMS.c.id == bindparam("item")).values(disputed=bindparam("to_disputed"))
)
_HOUR = sa.and_(RATER_HOURS.c.rater_id == bindparam("rater"), RATER_HOURS.c.hour == bindparam("at_hour"))
COUNT_HOUR = PreparedStatement(
    sa.update(RATER_HOURS)
    .where(_HOUR)
    .values(
        judged=RATER_HOURS.c.judged + bindparam("more"),
        active_ms=RATER_HOURS.c.active_ms + bindparam("more_active"),
        idle_ms=RATER_HOURS.c.idle_ms + bindparam("more_idle"),
    )
)
ADD_HOUR = PreparedStatement(sa.insert(RATER_HOURS))
DRAFT = PreparedStatement(sa.select(DRAFTS.c.body).where(DRAFTS.c.assignment_id == bindparam("assignment")))
DROP_DRAFT = PreparedStatement(sa.delete(DRAFTS).where(DRAFTS.c.assignment_id == bindparam("assignment")))
ADD_DRAFT = PreparedStatement(sa.insert(DRAFTS))
