"""Judgments that a lead rejects, so that the work is done again.

    tiebreak label reject --rater NAME [--since DAY] [--until DAY] [--batch B] --reason TEXT --store URL [--preview true]

Nothing is deleted: a rejected judgment is in the log and in `rejections`, with its reason, and leads see it wherever
they see judgments. It counts nowhere: its place is free for other raters, and the pair is given out again. The time that
it took still counts as work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from pydantic import Field, field_validator
from sqlalchemy.engine import Connection

from labeling_ui.database import statements as st
from labeling_ui.database.errors import RefusedError
from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import (
    ADJUDICATIONS,
    ASSIGNMENTS,
    ERASED,
    GOLD,
    IMPORTED_AT_MS,
    ITEMS,
    JUDGMENTS,
    REJECTIONS,
)
from labeling_ui.store.answers import storable
from labeling_ui.store.pairs.inspection import look_at_lots
from labeling_ui.store.work.judging import count_vote, count_work
from tiebreak.assessments import read_judgment
from tiebreak.messages import Record

MOST_TOGETHER = 500
"""Judgments rejected in one transaction: raters do not wait for longer."""


class Selection(Record):
    """Judgments to reject: some by id, or all of a rater's, in a period or a batch."""

    judgment_ids: tuple[str, ...] = Field(default=(), max_length=1_000)
    rater_id: str = Field(default="", max_length=200)
    since_ms: int | None = Field(default=None, ge=0, le=2**52)
    until_ms: int | None = Field(default=None, ge=0, le=2**52)
    """exclusive"""
    batch: str | None = Field(default=None, max_length=100)

    @field_validator("rater_id", "batch")
    @classmethod
    def _storable(cls, text: str | None) -> str | None:
        return storable(text)

    @field_validator("judgment_ids")
    @classmethod
    def _storable_ids(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(storable(name) or "" for name in names)


@dataclass(frozen=True)
class Rejection:
    """The effects of rejecting a selection."""

    judgments: int
    repeats: int
    """of those, repeats: they have no place and no vote"""
    skips: int
    gold: int
    """of those, judgments of gold items"""
    items: int
    raters: int
    active_seconds: float
    """the work that they took, which still counts as such"""
    requeued: int
    """items that are given to further raters"""
    unjudged: int
    """items that have no vote left"""
    turned: int
    """items whose majority is another one without them"""
    settled: int
    """items that a lead has settled: their answer stays"""


def preview(connection: Connection, selection: Selection) -> Rejection:
    """The effects that rejecting a selection would have.

    Raises:
        RefusedError: it selects no judgment.
    """
    return _describe(connection, _select(connection, selection))


def select_ids(connection: Connection, selection: Selection) -> list[str]:
    """The ids of the selected judgments, each with its rater's repeats of the item.

    Raises:
        RefusedError: it selects none.
    """
    return [row.id for row in _select(connection, selection)]


def reject(tx: Transaction, judgment_ids: Sequence[str], reason: str, by: str | None, *, again: bool = False) -> int:
    """Reject judgments, which frees their places; returns how many. Those rejected or undone meanwhile are left out.

    Args:
        again: the same rater gets the pair again, if nobody else has taken the place by then.
    """
    query = sa.select(JUDGMENTS).where(JUDGMENTS.c.id.in_(judgment_ids)).order_by(JUDGMENTS.c.seq)
    items = sa.select(ITEMS.c.id).where(ITEMS.c.id.in_(query.with_only_columns(JUDGMENTS.c.item_id).order_by(None)))
    tx.connection.execute(items.order_by(ITEMS.c.id).with_for_update())  # before the log: see `Transaction`
    rows = tx.connection.execute(query).all()
    for row in rows:
        _reject_one(tx, row, reason, by, again)
    look_at_lots(tx)
    return len(rows)


def _reject_one(tx: Transaction, row: Any, reason: str, by: str | None, again: bool) -> None:
    judgment = read_judgment(row.record)
    counted = judgment.judge is None  # a judge has no vote and no place to free
    item = st.ITEM.one(tx.connection, item=row.item_id)
    count_vote(tx, item, row.occasion, before=judgment, now=None, counted=counted)
    if counted and row.occasion == 0 and judgment.skip:
        st.DROP_SKIP.do(tx.connection, item=row.item_id)
    elif counted and row.occasion == 0:
        st.FREE_PLACE.do(tx.connection, item=row.item_id)
    imported = row.id.startswith("imported-")
    count_work(tx, row.rater_id, IMPORTED_AT_MS if imported else row.at_ms, judged=-1)
    payload = {"judgment_id": row.id, "assignment": row.assignment_id, "reason": reason, "by": by, "again": again}
    now = tx.event("rejected", rater_id=row.rater_id, item_id=row.item_id, payload=payload)
    st.DROP_JUDGMENT.do(tx.connection, judgment=row.id)
    kept = {column.name: getattr(row, column.name) for column in REJECTIONS.columns if column.name in JUDGMENTS.c}
    st.ADD_REJECTION.do(tx.connection, **kept, reason=reason, by_id=by, rejected_at_ms=now)
    if again and row.occasion == 0:
        # Like an expired lease: the rater's next request takes the place, unless others were faster.
        st.SET_STATE.do(tx.connection, assignment=row.assignment_id, to_state="lapsed")


def take_back(tx: Transaction, judgment_ids: Sequence[str], by: str | None) -> tuple[int, int]:
    """Take rejections back: the judgments count again. An item without a free place gets one more.

    Returns (taken back, still rejected); a judgment stays rejected if its rater has judged the pair again since.

    Raises:
        RefusedError: some were rejected with the erasure of their rater's data.
    """
    query = sa.select(REJECTIONS).where(REJECTIONS.c.id.in_(judgment_ids)).order_by(REJECTIONS.c.seq)
    if any(row.reason == ERASED for row in tx.connection.execute(query)):
        raise RefusedError("the rater's data were erased, and their judgments with them")
    items = sa.select(ITEMS.c.id).where(ITEMS.c.id.in_(query.with_only_columns(REJECTIONS.c.item_id).order_by(None)))
    tx.connection.execute(items.order_by(ITEMS.c.id).with_for_update())  # before the log: see `Transaction`
    done = stay = 0
    for row in tx.connection.execute(query).all():
        again = sa.select(JUDGMENTS.c.id).where(JUDGMENTS.c.assignment_id == row.assignment_id)
        if tx.connection.scalar(again) is not None:
            stay += 1
        else:
            _take_back_one(tx, row, by)
            done += 1
    look_at_lots(tx)
    return done, stay


def _take_back_one(tx: Transaction, row: Any, by: str | None) -> None:
    judgment = read_judgment(row.record)
    item = st.ITEM.one(tx.connection, item=row.item_id)
    assignment = st.ASSIGNMENT.one(tx.connection, assignment=row.assignment_id)
    count_vote(tx, item, row.occasion, before=None, now=judgment, counted=judgment.judge is None)
    if judgment.judge is None and row.occasion == 0:
        # `again` gave the pair back to its rater, who may hold its place.
        if judgment.skip:
            if assignment.state == "open":
                st.FREE_PLACE.do(tx.connection, item=row.item_id)
            st.COUNT_SKIP.do(tx.connection, item=row.item_id)
        elif assignment.state != "open":
            st.MAKE_PLACE.do(tx.connection, item=row.item_id)
    at_ms = IMPORTED_AT_MS if row.id.startswith("imported-") else row.at_ms
    count_work(tx, row.rater_id, at_ms, judged=1)
    payload = {"judgment_id": row.id, "assignment": row.assignment_id, "by": by}
    tx.event("unrejected", rater_id=row.rater_id, item_id=row.item_id, payload=payload)
    tx.connection.execute(sa.delete(REJECTIONS).where(REJECTIONS.c.id == row.id))
    st.ADD_JUDGMENT.do(tx.connection, **{column.name: getattr(row, column.name) for column in JUDGMENTS.columns})
    st.SET_STATE.do(tx.connection, assignment=row.assignment_id, to_state="done")
    st.DROP_DRAFT.do(tx.connection, assignment=row.assignment_id)


def _select(connection: Connection, selection: Selection) -> list[Any]:
    if not selection.judgment_ids and not selection.rater_id:
        raise RefusedError("name judgments to reject, or a rater")
    which: list[sa.ColumnElement[bool]] = []
    if selection.judgment_ids:
        which.append(JUDGMENTS.c.id.in_(selection.judgment_ids))
    if selection.rater_id:
        which.append(JUDGMENTS.c.rater_id == selection.rater_id)
    if selection.since_ms is not None:
        which.append(JUDGMENTS.c.at_ms >= selection.since_ms)
    if selection.until_ms is not None:
        which.append(JUDGMENTS.c.at_ms < selection.until_ms)
    if selection.batch is not None:
        which.append(JUDGMENTS.c.item_id.in_(sa.select(ITEMS.c.id).where(ITEMS.c.batch == selection.batch)))
    chosen = sa.select(JUDGMENTS).where(*which)
    firsts = connection.execute(chosen).all()
    if not firsts:
        raise RefusedError("there are no such judgments, or they are rejected already")
    # Without the first judgment, a repeat of the item would count as the rater's vote.
    named = {row.id for row in firsts}
    again = [row for row in _repeats(connection, firsts) if row.id not in named]
    return sorted([*firsts, *again], key=lambda row: row.seq)


def _repeats(connection: Connection, firsts: Sequence[Any]) -> list[Any]:
    wanted = {(row.item_id, row.rater_id) for row in firsts if row.occasion == 0}
    repeats: list[Any] = []
    for rater_id in {rater for _, rater in wanted}:
        of_rater = sa.select(ASSIGNMENTS.c.id).where(ASSIGNMENTS.c.rater_id == rater_id, ASSIGNMENTS.c.occasion > 0)
        rows = connection.execute(sa.select(JUDGMENTS).where(JUDGMENTS.c.assignment_id.in_(of_rater)))
        repeats += [row for row in rows if (row.item_id, row.rater_id) in wanted]
    return repeats


def _describe(connection: Connection, rows: Sequence[Any]) -> Rejection:
    items = _items(connection, sorted({row.item_id for row in rows}))
    lost: dict[str, list[int]] = {}
    freed: dict[str, int] = {}
    skips = 0
    for row in rows:
        judgment = read_judgment(row.record) if row.vote is None or row.kind == "model" else None
        skipped = row.vote is None and judgment is not None and judgment.skip
        skips += skipped
        if row.occasion == 0 and (judgment is None or judgment.judge is None):
            freed[row.item_id] = freed.get(row.item_id, 0) + (not skipped)
            if row.vote is not None:
                counts = lost.setdefault(row.item_id, [0, 0, 0])
                counts[0 if row.vote > 0 else 1 if row.vote < 0 else 2] += 1
    unjudged = turned = 0
    for item_id, counts in lost.items():
        item = items[item_id]
        before = [item.for_first, item.for_second, item.for_neither]
        after = [n - gone for n, gone in zip(before, counts, strict=True)]
        unjudged += not any(after)
        turned += any(after) and _majority(after) != _majority(before)
    return Rejection(
        judgments=len(rows),
        repeats=sum(row.occasion > 0 for row in rows),
        skips=skips,
        gold=sum(items[row.item_id].gold is not None for row in rows),
        items=len(items),
        raters=len({row.rater_id for row in rows}),
        active_seconds=sum(row.active_ms for row in rows) / 1000,
        requeued=sum(items[name].offered and items[name].taken - n < items[name].overlap for name, n in freed.items()),
        unjudged=unjudged,
        turned=turned,
        settled=sum(item.settled is not None for item in items.values()),
    )


def _items(connection: Connection, ids: Sequence[str]) -> dict[str, Any]:
    query = (
        sa.select(ITEMS, GOLD.c.item_id.label("gold"), ADJUDICATIONS.c.item_id.label("settled"))
        .outerjoin(GOLD, GOLD.c.item_id == ITEMS.c.id)
        .outerjoin(ADJUDICATIONS, ADJUDICATIONS.c.item_id == ITEMS.c.id)
    )
    found: dict[str, Any] = {}
    for n in range(0, len(ids), MOST_TOGETHER):
        rows = connection.execute(query.where(ITEMS.c.id.in_(ids[n : n + MOST_TOGETHER])))
        found |= {row.id: row for row in rows}
    return found


def _majority(votes: Sequence[int]) -> int | None:
    """Which answer has the most votes; None for a draw."""
    most = max(votes)
    return votes.index(most) if votes.count(most) == 1 else None
