"""Disagreements, settled by leads. A settled answer is stored beside the raters' own, never instead of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
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
    RATERS,
    REVIEW_SAMPLE,
    SETTINGS,
)
from labeling_ui.store.answers import Submission
from labeling_ui.store.pairs.inspection import look_at_lot
from labeling_ui.store.pairs.items import Task, beginning_of, shuffle_sides
from labeling_ui.store.pairs.media import media_of
from labeling_ui.store.work.assigning import Assignment, Rules, active_rater
from labeling_ui.store.work.judging import build_judgment
from tiebreak.assessments import Assessment, is_single, read_judgment
from tiebreak.records import Judgment


@dataclass(frozen=True)
class Dispute:
    """An item that waits for a lead, with the votes for each side as this lead sees the pair, and for neither; of a single
    answer, its raters' values."""

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
    task: Task = "pair"
    values: dict[str, int] = field(default_factory=dict)
    """of a single answer: how many raters gave each value"""


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
    settled_seq: int | None = None
    """the event that settled it"""


def disputes(
    connection: Connection, lead_id: str, *, limit: int, offset: int = 0, adjudicated: bool = False
) -> list[Dispute]:
    """The queue: opposite sides first, then ties against sides, then pairs skipped and those drawn to be reviewed; each in
    campaign order. Single answers whose raters disagree are among them.

    Gold is left out: its answer is known. `adjudicated` lists the settled ones.
    """
    settled = ADJUDICATIONS.c.item_id.is_not(None)
    is_gold = sa.select(GOLD.c.item_id).where(GOLD.c.item_id == ITEMS.c.id).exists()
    lacking = sa.and_(
        ITEMS.c.skips > sa.literal_column("0"), ITEMS.c.taken < ITEMS.c.overlap, ITEMS.c.task != "ranking"
    )
    drawn = sa.select(REVIEW_SAMPLE.c.item_id).where(REVIEW_SAMPLE.c.item_id == ITEMS.c.id).exists()
    disputed = ITEMS.c.disputed > sa.literal_column("0")
    query = (
        sa.select(ITEMS, PAIRS.c.record, ADJUDICATIONS.c.lead_id.label("settled_by"))
        .join(PAIRS, PAIRS.c.id == ITEMS.c.pair_id)
        .outerjoin(ADJUDICATIONS, ADJUDICATIONS.c.item_id == ITEMS.c.id)
        .where(ITEMS.c.withdrawn == sa.literal_column("0"))
        .where(settled if adjudicated else sa.and_(~settled, ~is_gold))
        .order_by(ITEMS.c.disputed.desc(), ITEMS.c.turn)
    )
    # One after the other: only for the first alone does SQLite follow the index, and stop where the page ends.
    parts = [query] if adjudicated else [query.where(disputed), query.where(~disputed, sa.or_(lacking, drawn))]
    seed = json.loads(connection.scalar(sa.select(SETTINGS.c.value).where(SETTINGS.c.name == "seed")) or "0")
    rows = _page(connection, parts, limit, offset)
    values = _values(connection, [row.id for row in rows if is_single(row.task)])
    return [_as_dispute(row, lead_id, seed, adjudicated, values.get(row.id, {})) for row in rows]


def _page(connection: Connection, parts: Sequence[sa.Select[Any]], limit: int, offset: int) -> list[Any]:
    """A page of what the parts select, one after the other."""
    rows: list[Any] = []
    for part in parts:
        found = connection.execute(part.limit(limit - len(rows)).offset(offset)).all()
        rows += found
        if len(rows) == limit:
            break
        if found:
            offset = 0
        elif offset:
            passed = connection.scalar(sa.select(sa.func.count()).select_from(part.order_by(None).subquery())) or 0
            offset = max(0, offset - passed)
    return rows


def _values(connection: Connection, item_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """How many raters gave each value of single answers; judges and repeats do not count."""
    query = sa.select(JUDGMENTS.c.item_id, JUDGMENTS.c.record)
    query = query.where(JUDGMENTS.c.item_id.in_(item_ids), JUDGMENTS.c.occasion == 0)
    given: dict[str, Counter[str]] = {}
    for row in connection.execute(query):
        judgment = read_judgment(row.record)
        if isinstance(judgment, Assessment) and judgment.value is not None and judgment.judge is None:
            given.setdefault(row.item_id, Counter())[str(judgment.value)] += 1
    return {item_id: dict(sorted(counts.items())) for item_id, counts in given.items()}


def _as_dispute(row: Any, lead_id: str, seed: int, adjudicated: bool, values: dict[str, int]) -> Dispute:
    left = _sides(row, lead_id, seed)[0]
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
        task=row.task,
        values=values,
    )


def draw_sample(tx: Transaction, count: int, by: str | None) -> int:
    """Draw pairs and single answers at random, about which all raters agree, to be reviewed beside the disputes; returns
    how many."""
    votes = ITEMS.c.for_first + ITEMS.c.for_second + ITEMS.c.for_neither
    judgments = sa.select(sa.func.count()).where(JUDGMENTS.c.item_id == ITEMS.c.id, JUDGMENTS.c.occasion == 0)
    judged = sa.case((ITEMS.c.task == "pair", votes), else_=judgments.scalar_subquery() - ITEMS.c.skips)
    aside = (ADJUDICATIONS, GOLD, REVIEW_SAMPLE)
    query = sa.select(ITEMS.c.id).where(
        ITEMS.c.disputed == 0, ITEMS.c.withdrawn == 0, ITEMS.c.task != "ranking", judged > 1
    )
    query = query.where(*(~sa.select(table.c.item_id).where(table.c.item_id == ITEMS.c.id).exists() for table in aside))
    drawn = list(tx.connection.scalars(query.order_by(sa.func.random()).limit(count)))
    if drawn:
        now = tx.event("review_sampled", rater_id=by, payload={"item_ids": drawn})
        tx.connection.execute(sa.insert(REVIEW_SAMPLE), [{"item_id": one, "at_ms": now} for one in drawn])
    return len(drawn)


def feedback(connection: Connection, rater_id: str, *, limit: int) -> list[Feedback]:
    """The latest pairs and single answers that a lead settled against this rater's answer."""
    query = (
        sa.select(JUDGMENTS.c.record, ADJUDICATIONS.c.record.label("settled"), ADJUDICATIONS.c.at_ms, ITEMS.c.id)
        .add_columns(PAIRS.c.record.label("pair"))
        .join(ADJUDICATIONS, ADJUDICATIONS.c.item_id == JUDGMENTS.c.item_id)
        .join(ITEMS, ITEMS.c.id == JUDGMENTS.c.item_id)
        .join(PAIRS, PAIRS.c.id == ITEMS.c.pair_id)
        .where(JUDGMENTS.c.rater_id == rater_id, JUDGMENTS.c.occasion == 0)
        .where(sa.or_(JUDGMENTS.c.vote.is_not(None), ITEMS.c.second_id.is_(None)))
        .order_by(ADJUDICATIONS.c.seq.desc())
    )
    found: list[Feedback] = []
    for row in connection.execute(query):
        mine, theirs = (read_judgment(record) for record in (row.record, row.settled))
        seen = _as_sided(theirs, mine)
        if not mine.skip and _outcome(seen) != _outcome(mine):
            found.append(Feedback(row.id, beginning_of(row.pair), row.at_ms, mine, seen))
        if len(found) == limit:
            break
    return found


def _as_sided(settled: Judgment, mine: Judgment) -> Judgment:
    """A lead's answer with the sides as a rater saw them."""
    if isinstance(settled, Assessment):
        return settled
    turned = settled.left != mine.left
    answer = -settled.answer if turned and settled.answer is not None else settled.answer
    return settled.model_copy(update={"left": mine.left, "right": mine.right, "answer": answer})


def _outcome(judgment: Judgment) -> int | str | None:
    """The better side, or the value of a single answer."""
    if isinstance(judgment, Assessment):
        return judgment.value
    answer = judgment.answer or 0
    return (answer > 0) - (answer < 0)


def open_dispute(tx: Transaction, rules: Rules, lead_id: str, item_id: str) -> DisputeOpened:
    """An item for a lead to settle, disputed or not.

    Raises:
        RefusedError: there is no such item, or it is a ranking.
    """
    assignment = _as_seen_by(tx, rules, lead_id, item_id)
    query = sa.select(JUDGMENTS.c.record).where(JUDGMENTS.c.item_id == item_id).order_by(JUDGMENTS.c.seq)
    votes = tuple(read_judgment(record) for record in tx.connection.scalars(query))
    row = tx.connection.execute(sa.select(ADJUDICATIONS).where(ADJUDICATIONS.c.item_id == item_id)).first()
    if row is None:
        return DisputeOpened(assignment, votes, None)
    return DisputeOpened(assignment, votes, read_judgment(row.record), row.seq)


ANY_EARLIER = -1
"""instead of the event of an earlier settlement: whichever there is"""


def adjudicate(
    tx: Transaction, rules: Rules, lead_id: str, submission: Submission, replaces: int | None = ANY_EARLIER
) -> Judgment:
    """Settle an item; a later settlement replaces an earlier one, and the log keeps both.

    Args:
        replaces: the event of the earlier settlement that the lead has seen; None: there was none.

    Raises:
        RefusedError: the rater is not a lead, there is no such item, the answer settles nothing, or another lead has
            settled it since.
    """
    lead = active_rater(tx.connection, lead_id)
    if lead.role not in ("lead", "reviewer"):
        raise RefusedError("only leads and reviewers can settle disagreements")
    if submission.skip:
        raise RefusedError("a skip settles nothing: open the next disagreement instead")
    assignment = _as_seen_by(tx, rules, lead_id, submission.pair_id)
    if replaces != ANY_EARLIER:
        _refuse_overtaken(tx, submission.pair_id, replaces)
    if submission.edited_text is not None and any(one.content is not None for one in assignment.pair.completions):
        raise RefusedError("answers with images or recordings cannot be edited")
    judgment = build_judgment(submission, lead, assignment.pair.id, assignment.shown, assignment.task)
    settle(tx, submission.pair_id, judgment, client_at_ms=submission.client_at_ms)
    if assignment.task == "review":
        look_at_lot(tx, st.ITEM.one(tx.connection, item=submission.pair_id).batch)
    return judgment


def _refuse_overtaken(tx: Transaction, item_id: str, replaces: int | None) -> None:
    query = sa.select(ADJUDICATIONS.c.seq, RATERS.c.name).join(RATERS, RATERS.c.id == ADJUDICATIONS.c.lead_id)
    there = tx.connection.execute(query.where(ADJUDICATIONS.c.item_id == item_id)).first()
    if there is not None and there.seq != replaces:
        raise RefusedError(f"{there.name} has settled this meanwhile: open it again to see how")


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
    """All settled answers, in campaign order, except those of withdrawn pairs."""
    return [read_judgment(row.record) for row in adjudication_rows(connection)]


def adjudication_rows(connection: Connection) -> Sequence[Any]:
    """The rows of `adjudications`, with their batch and gold, in campaign order."""
    query = sa.select(ADJUDICATIONS, ITEMS.c.batch, GOLD.c.item_id.label("gold"))
    query = query.join(ITEMS, ITEMS.c.id == ADJUDICATIONS.c.item_id)
    query = query.outerjoin(GOLD, GOLD.c.item_id == ADJUDICATIONS.c.item_id)
    shown = query.where(ITEMS.c.withdrawn == sa.literal_column("0"))
    return connection.execute(shown.order_by(ITEMS.c.position)).all()


def _as_seen_by(tx: Transaction, rules: Rules, lead_id: str, item_id: str) -> Assignment:
    item = st.ITEM.one(tx.connection, item=item_id)
    if item is None or item.task == "ranking":
        raise RefusedError(f"there is no pair of two completions, and no single answer, with the id {item_id}")
    if item.withdrawn:
        raise RefusedError(f"pair {item_id} is withdrawn: restore it first")
    sides = _sides(item, lead_id, rules.seed(tx))
    pair = rules.load_pair(tx.connection, item.pair_id)
    return Assignment(f"dispute-{item_id}", item_id, lead_id, sides, pair, media=media_of(tx.connection, pair))


def _sides(item: Any, lead_id: str, seed: int) -> tuple[str, ...]:
    """(left, right) as this lead sees the item; a single answer is alone."""
    if is_single(item.task):
        return (item.first_id,)
    return shuffle_sides(item.first_id, item.second_id, seed=seed, rater_id=lead_id, item_id=f"{item.id} settled")
