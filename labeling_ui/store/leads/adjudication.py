"""Disagreements, settled by leads. A settled answer is stored beside the raters' own, never instead of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from labeling_ui.database import statements as st
from labeling_ui.database.errors import RefusedError
from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import (
    ADJUDICATIONS,
    GOLD,
    IMPORTED_AT_MS,
    ITEMS,
    JUDGMENTS,
    PAIRS,
    REVIEW_SAMPLE,
    SETTINGS,
)
from labeling_ui.store.answers import Submission
from labeling_ui.store.pairs.items import beginning_of, shuffle_sides
from labeling_ui.store.pairs.media import media_of
from labeling_ui.store.work.assigning import Assignment, Rules, active_rater
from labeling_ui.store.work.judging import build_judgment
from tiebreak.records import Judgment


@dataclass(frozen=True)
class Dispute:
    """An item that waits for a lead, with the votes for each side as this lead sees the pair, and for neither."""

    item_id: str
    pair_id: str
    about: Literal["side", "tie", "skips", "sample"]
    """raters prefer opposite sides; some prefer a side and others neither; raters skipped it, and votes are missing; they
    agree, and it was drawn at random"""
    for_left: int
    for_right: int
    for_neither: int
    skips: int
    prompt: str
    """beginning of the conversation's last message"""
    adjudicated: bool
    settled_by: str | None = None
    """the lead who settled it"""


@dataclass(frozen=True)
class Feedback:
    """A lead's answer to a pair on which a rater gave another one."""

    item_id: str
    prompt: str
    at_ms: int
    judgment: Judgment
    """the rater's"""
    settled: Judgment
    """the lead's, with the sides as the rater saw them"""


@dataclass(frozen=True)
class DisputeOpened:
    """A dispute as a lead sees it: the pair, with sides drawn for the lead, and the raters' answers."""

    assignment: Assignment
    judgments: tuple[Judgment, ...]
    adjudicated: Judgment | None


def disputes(
    connection: Connection, lead_id: str, *, limit: int, offset: int = 0, adjudicated: bool = False
) -> list[Dispute]:
    """The queue: opposite sides first, then ties against sides, then pairs skipped and those drawn to be reviewed; each in
    campaign order.

    Gold is left out: its answer is known. `adjudicated` lists the settled ones.
    """
    settled = ADJUDICATIONS.c.item_id.is_not(None)
    is_gold = sa.select(GOLD.c.item_id).where(GOLD.c.item_id == ITEMS.c.id).exists()
    lacking = sa.and_(ITEMS.c.skips > sa.literal_column("0"), ITEMS.c.taken < ITEMS.c.overlap, ITEMS.c.task == "pair")
    drawn = sa.select(REVIEW_SAMPLE.c.item_id).where(REVIEW_SAMPLE.c.item_id == ITEMS.c.id).exists()
    waits = sa.or_(ITEMS.c.disputed > sa.literal_column("0"), lacking, drawn)
    query = (
        sa.select(ITEMS, PAIRS.c.record, ADJUDICATIONS.c.lead_id.label("settled_by"))
        .join(PAIRS, PAIRS.c.id == ITEMS.c.pair_id)
        .outerjoin(ADJUDICATIONS, ADJUDICATIONS.c.item_id == ITEMS.c.id)
        .where(ITEMS.c.withdrawn == sa.literal_column("0"))
        .where(settled if adjudicated else sa.and_(waits, ~settled, ~is_gold))
        .order_by(ITEMS.c.disputed.desc(), ITEMS.c.turn)
    )
    seed = json.loads(connection.scalar(sa.select(SETTINGS.c.value).where(SETTINGS.c.name == "seed")) or "0")
    rows = connection.execute(query.limit(limit).offset(offset))
    return [_as_dispute(row, lead_id, seed, adjudicated) for row in rows]


def _as_dispute(row: Any, lead_id: str, seed: int, adjudicated: bool) -> Dispute:
    left, _ = _sides(row, lead_id, seed)
    votes = {row.first_id: row.for_first, row.second_id: row.for_second}
    for_left = votes.pop(left)
    (for_right,) = votes.values()
    return Dispute(
        item_id=row.id,
        pair_id=row.pair_id,
        about="side"
        if row.disputed == 2
        else "tie"
        if row.disputed
        else "skips"
        if row.skips and row.taken < row.overlap
        else "sample",
        for_left=for_left,
        for_right=for_right,
        for_neither=row.for_neither,
        skips=row.skips,
        prompt=beginning_of(row.record),
        adjudicated=adjudicated,
        settled_by=row.settled_by,
    )


def draw_sample(tx: Transaction, count: int, by: str | None) -> int:
    """Draw pairs at random, about which all raters agree, to be reviewed beside the disputes; returns how many."""
    votes = ITEMS.c.for_first + ITEMS.c.for_second + ITEMS.c.for_neither
    aside = (ADJUDICATIONS, GOLD, REVIEW_SAMPLE)
    query = sa.select(ITEMS.c.id).where(
        ITEMS.c.disputed == 0, votes > 1, ITEMS.c.withdrawn == 0, ITEMS.c.task == "pair"
    )
    query = query.where(*(~sa.select(table.c.item_id).where(table.c.item_id == ITEMS.c.id).exists() for table in aside))
    drawn = list(tx.connection.scalars(query.order_by(sa.func.random()).limit(count)))
    if drawn:
        now = tx.event("review_sampled", rater_id=by, payload={"item_ids": drawn})
        tx.connection.execute(sa.insert(REVIEW_SAMPLE), [{"item_id": one, "at_ms": now} for one in drawn])
    return len(drawn)


def feedback(connection: Connection, rater_id: str, *, limit: int) -> list[Feedback]:
    """The latest pairs that a lead settled against this rater's answer."""
    query = (
        sa.select(JUDGMENTS.c.record, ADJUDICATIONS.c.record.label("settled"), ADJUDICATIONS.c.at_ms, ITEMS.c.id)
        .add_columns(PAIRS.c.record.label("pair"))
        .join(ADJUDICATIONS, ADJUDICATIONS.c.item_id == JUDGMENTS.c.item_id)
        .join(ITEMS, ITEMS.c.id == JUDGMENTS.c.item_id)
        .join(PAIRS, PAIRS.c.id == ITEMS.c.pair_id)
        .where(JUDGMENTS.c.rater_id == rater_id, JUDGMENTS.c.occasion == 0, JUDGMENTS.c.vote.is_not(None))
        .order_by(ADJUDICATIONS.c.seq.desc())
    )
    found: list[Feedback] = []
    for row in connection.execute(query):
        mine, theirs = (Judgment.model_validate_json(record) for record in (row.record, row.settled))
        seen = _as_sided(theirs, mine)
        if _side(seen) != _side(mine):
            found.append(Feedback(row.id, beginning_of(row.pair), row.at_ms, mine, seen))
        if len(found) == limit:
            break
    return found


def _as_sided(settled: Judgment, mine: Judgment) -> Judgment:
    """A lead's answer with the sides as a rater saw them."""
    turned = settled.left != mine.left
    answer = -settled.answer if turned and settled.answer is not None else settled.answer
    return settled.model_copy(update={"left": mine.left, "right": mine.right, "answer": answer})


def _side(judgment: Judgment) -> int:
    answer = judgment.answer or 0
    return (answer > 0) - (answer < 0)


def open_dispute(tx: Transaction, rules: Rules, lead_id: str, item_id: str) -> DisputeOpened:
    """An item for a lead to settle, disputed or not.

    Raises:
        RefusedError: there is no such item, or it is a ranking.
    """
    assignment = _as_seen_by(tx, rules, lead_id, item_id)
    query = sa.select(JUDGMENTS.c.record).where(JUDGMENTS.c.item_id == item_id).order_by(JUDGMENTS.c.seq)
    votes = tuple(Judgment.model_validate_json(record) for record in tx.connection.scalars(query))
    settled = sa.select(ADJUDICATIONS.c.record).where(ADJUDICATIONS.c.item_id == item_id)
    record = tx.connection.scalar(settled)
    return DisputeOpened(assignment, votes, Judgment.model_validate_json(record) if record else None)


def adjudicate(tx: Transaction, rules: Rules, lead_id: str, submission: Submission) -> Judgment:
    """Settle an item; a later settlement replaces an earlier one, and the log keeps both.

    Raises:
        RefusedError: the rater is no lead, there is no such item, or the answer settles nothing.
    """
    lead = active_rater(tx.connection, lead_id)
    if lead.role not in ("lead", "reviewer"):
        raise RefusedError("only leads and reviewers can settle disagreements")
    if submission.skip:
        raise RefusedError("a skip settles nothing: open the next disagreement instead")
    assignment = _as_seen_by(tx, rules, lead_id, submission.pair_id)
    judgment = build_judgment(submission, lead, assignment.pair.id, assignment.shown)
    settle(tx, submission.pair_id, judgment, client_at_ms=submission.client_at_ms)
    return judgment


def settle(tx: Transaction, item_id: str, judgment: Judgment, *, imported: bool = False, **about: int | None) -> None:
    """Record an item's settled answer in place of an earlier one. An imported answer has no time."""
    payload = {"judgment": judgment.model_dump(mode="json"), **about, **({"imported": True} if imported else {})}
    now = tx.event("adjudicated", rater_id=judgment.rater_id, item_id=item_id, payload=payload)
    tx.connection.execute(sa.delete(ADJUDICATIONS).where(ADJUDICATIONS.c.item_id == item_id))
    row = {"item_id": item_id, "lead_id": judgment.rater_id, "record": judgment.model_dump_json()}
    at_ms = IMPORTED_AT_MS if imported else now
    tx.connection.execute(sa.insert(ADJUDICATIONS).values(**row, seq=tx.seq, at_ms=at_ms))


def remove_settlement(tx: Transaction, lead_id: str, item_id: str) -> None:
    """Withdraw an item's settled answer: the votes decide again, and raters may change them.

    Raises:
        RefusedError: it is not settled.
    """
    removed = tx.connection.execute(sa.delete(ADJUDICATIONS).where(ADJUDICATIONS.c.item_id == item_id))
    if not removed.rowcount:
        raise RefusedError(f"pair {item_id} is not settled")
    tx.event("settlement_removed", rater_id=lead_id, item_id=item_id, payload={})


def adjudications(connection: Connection) -> Sequence[Judgment]:
    """All settled answers, in campaign order, but those of withdrawn pairs."""
    return [Judgment.model_validate_json(row.record) for row in adjudication_rows(connection)]


def adjudication_rows(connection: Connection) -> Sequence[Any]:
    """The rows of `adjudications`, with their batch and gold, in campaign order."""
    query = sa.select(ADJUDICATIONS, ITEMS.c.batch, GOLD.c.item_id.label("gold"))
    query = query.join(ITEMS, ITEMS.c.id == ADJUDICATIONS.c.item_id)
    query = query.outerjoin(GOLD, GOLD.c.item_id == ADJUDICATIONS.c.item_id)
    shown = query.where(ITEMS.c.withdrawn == sa.literal_column("0"))
    return connection.execute(shown.order_by(ITEMS.c.position)).all()


def _as_seen_by(tx: Transaction, rules: Rules, lead_id: str, item_id: str) -> Assignment:
    item = st.ITEM.one(tx.connection, item=item_id)
    if item is None or item.task != "pair":
        raise RefusedError(f"there is no pair of two completions with the id {item_id}")
    if item.withdrawn:
        raise RefusedError(f"pair {item_id} is withdrawn: restore it first")
    sides = _sides(item, lead_id, rules.seed(tx))
    pair = rules.load_pair(tx.connection, item.pair_id)
    return Assignment(f"dispute-{item_id}", item_id, lead_id, sides, pair, media=media_of(tx.connection, pair))


def _sides(item: Any, lead_id: str, seed: int) -> tuple[str, str]:
    """(left, right) as this lead sees the item."""
    return shuffle_sides(item.first_id, item.second_id, seed=seed, rater_id=lead_id, item_id=f"{item.id} settled")
