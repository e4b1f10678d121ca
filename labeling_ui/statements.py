"""The statements of the hot path, built once: building one anew costs four times what running it does."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import bindparam

from labeling_ui.schema import (
    ASSIGNMENTS,
    DRAFTS,
    EVENTS,
    ITEMS,
    JUDGMENTS,
    LOG_HEAD,
    PAIRS,
    RATERS,
    SESSIONS,
    SETTINGS,
    SUBMISSIONS,
)

HEAD = sa.select(LOG_HEAD.c.seq, LOG_HEAD.c.hash)
HEAD_LOCKED = HEAD.with_for_update()
MOVE_HEAD = sa.update(LOG_HEAD).values(seq=bindparam("to_seq"), hash=bindparam("to_hash"))
ADD_EVENT = sa.insert(EVENTS)
SETTING_ROWS = sa.select(SETTINGS.c.name, SETTINGS.c.value)

RATER = sa.select(RATERS).where(RATERS.c.id == bindparam("rater"))
MOVE_CURSOR = sa.update(RATERS).where(RATERS.c.id == bindparam("rater")).values(cursor=bindparam("to_cursor"))
SESSION = (
    sa.select(RATERS, SESSIONS.c.csrf_token)
    .join(SESSIONS, SESSIONS.c.rater_id == RATERS.c.id)
    .where(SESSIONS.c.token_hash == bindparam("token_hash"), SESSIONS.c.expires_at_ms > bindparam("now_ms"))
)
ANY_ACCOUNT = sa.select(RATERS.c.id).where(RATERS.c.password_hash.is_not(None)).limit(1)

PAIR_RECORD = sa.select(PAIRS.c.record).where(PAIRS.c.id == bindparam("pair"))
PAIR_OF_ITEM = sa.select(ITEMS.c.pair_id).where(ITEMS.c.id == bindparam("item"))
TAKE_PLACE = (
    sa.update(ITEMS)
    .where(ITEMS.c.id == bindparam("item"), ITEMS.c.taken < ITEMS.c.overlap)
    .values(taken=ITEMS.c.taken + 1)
)
_ONE_MORE = ITEMS.c.taken + 1
RAISE_OVERLAP = (
    sa.update(ITEMS)
    .where(ITEMS.c.id == bindparam("item"))
    .values(taken=_ONE_MORE, overlap=sa.case((ITEMS.c.overlap < _ONE_MORE, _ONE_MORE), else_=ITEMS.c.overlap))
)
"""One judgment more, from elsewhere: the overlap grows where it must."""

_GIVEN = sa.select(ASSIGNMENTS.c.id).where(
    ASSIGNMENTS.c.item_id == ITEMS.c.id, ASSIGNMENTS.c.rater_id == bindparam("rater")
)
NEXT_ITEM = (
    sa.select(ITEMS)
    .where(ITEMS.c.taken < ITEMS.c.overlap, ITEMS.c.position >= bindparam("from_position"), ~_GIVEN.exists())
    .order_by(ITEMS.c.position)
    .limit(1)
)
"""Everything before the rater's cursor is full or was theirs already: a claim stays quick in a store of a million."""

WAITING = (
    sa.select(ASSIGNMENTS)
    .where(ASSIGNMENTS.c.rater_id == bindparam("rater"), ASSIGNMENTS.c.state != "done")
    .order_by(ASSIGNMENTS.c.seq)
)
EXPIRED = (
    sa.select(ASSIGNMENTS)
    .where(ASSIGNMENTS.c.state == "open", ASSIGNMENTS.c.lease_until_ms < bindparam("now_ms"))
    .order_by(ASSIGNMENTS.c.lease_until_ms)
    .limit(100)
)
ASSIGNMENTS_OF = (
    sa.select(ASSIGNMENTS)
    .where(ASSIGNMENTS.c.item_id == bindparam("item"), ASSIGNMENTS.c.rater_id == bindparam("rater"))
    .order_by(ASSIGNMENTS.c.occasion.desc())
)
COUNT_OF_RATER = sa.select(sa.func.count()).select_from(JUDGMENTS).where(JUDGMENTS.c.rater_id == bindparam("rater"))
JUDGED_AT = (
    sa.select(ASSIGNMENTS.c.item_id, ASSIGNMENTS.c.left_id, ASSIGNMENTS.c.right_id, ITEMS.c.pair_id)
    .join(JUDGMENTS, JUDGMENTS.c.assignment_id == ASSIGNMENTS.c.id)
    .join(ITEMS, ITEMS.c.id == ASSIGNMENTS.c.item_id)
    .where(JUDGMENTS.c.rater_id == bindparam("rater"))
    .order_by(JUDGMENTS.c.seq)
    .limit(1)
    .offset(bindparam("place"))
)
"""The rater's judgment number `place`, the oldest being 0."""

_REPEATS = sa.select(sa.func.count()).select_from(ASSIGNMENTS).where(ASSIGNMENTS.c.occasion > 0).scalar_subquery()
COUNT_WANTED = sa.select(sa.func.coalesce(sa.func.sum(ITEMS.c.overlap), 0) + _REPEATS)
ADD_ASSIGNMENT = sa.insert(ASSIGNMENTS)
FINISH_ASSIGNMENT = sa.update(ASSIGNMENTS).where(ASSIGNMENTS.c.id == bindparam("assignment")).values(state="done")
RENEW_LEASE = (
    sa.update(ASSIGNMENTS)
    .where(ASSIGNMENTS.c.id == bindparam("assignment"))
    .values(state="open", lease_until_ms=bindparam("until_ms"))
)

SUBMISSION = sa.select(SUBMISSIONS).where(
    SUBMISSIONS.c.rater_id == bindparam("rater"), SUBMISSIONS.c.client_id == bindparam("client")
)
ADD_SUBMISSION = sa.insert(SUBMISSIONS)
ADD_JUDGMENT = sa.insert(JUDGMENTS)
DRAFT = sa.select(DRAFTS.c.body).where(DRAFTS.c.assignment_id == bindparam("assignment"))
DROP_DRAFT = sa.delete(DRAFTS).where(DRAFTS.c.assignment_id == bindparam("assignment"))
ADD_DRAFT = sa.insert(DRAFTS)
