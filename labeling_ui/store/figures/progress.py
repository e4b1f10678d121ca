"""Progress of a campaign and its raters. Fast in a store of a million judgments: growing numbers are counted as they
change, by rater and hour."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from labeling_ui.database.schema import (
    ASSIGNMENTS,
    GOLD,
    HOUR_MS,
    ITEMS,
    JUDGMENTS,
    LOG_HEAD,
    PAIRS,
    RATER_HOURS,
    RATERS,
    WITHDRAWALS,
)
from labeling_ui.store.pairs.campaign import IDS_AT_ONCE
from labeling_ui.store.pairs.inspection import inspections
from labeling_ui.store.pairs.items import beginning_of
from labeling_ui.store.pairs.known import KNOWN, MAY_VOTE, outcome_of
from tiebreak.assessments import SINGLE_TASKS, read_judgment
from tiebreak.records import Judgment

_SINGLE = ITEMS.c.task.in_(SINGLE_TASKS)
_IN_CAMPAIGN = ITEMS.c.withdrawn == sa.literal_column("0")
_BY_BATCH = ITEMS.c.withdrawn < sa.literal_column("1")
"""The same, in the words of an index by batch: without it, SQLite would sort all items."""
_SKIPS = sa.and_(JUDGMENTS.c.vote.is_(None), JUDGMENTS.c.record.like('%"skip":true%'))
"""A key with its quotes occurs nowhere else in a record."""
_ASIDE = JUDGMENTS.c.item_id.in_(sa.select(ITEMS.c.id).where(ITEMS.c.withdrawn == sa.literal_column("1")))
"""Judgments of withdrawn pairs."""
_ASSESSED = sa.select(JUDGMENTS.c.item_id).where(JUDGMENTS.c.vote.is_(None), ~_SKIPS)
_MADE_HERE = ~JUDGMENTS.c.id.like("imported-%")
_IS_GOLD = ITEMS.c.id.in_(sa.select(GOLD.c.item_id))
HOURS_A_DAY = 24
DAY_SECONDS = 86_400


@dataclass(frozen=True)
class BatchProgress:
    """A batch's pairs and single answers, and the judgments it has and wants; without withdrawn ones, gold and repeats."""

    pairs: int = 0
    single_answers: int = 0
    judged: int = 0
    wanted: int = 0


@dataclass(frozen=True)
class Work:
    """A rater's judgments since some time, and their active and idle seconds."""

    judged: int
    active_seconds: float
    idle_seconds: float

    @property
    def pace_per_hour(self) -> float | None:
        """Judgments per hour of active time; None for less than a minute."""
        return round(3600 * self.judged / self.active_seconds, 1) if self.active_seconds >= 60 else None


@dataclass(frozen=True)
class PastJudgment:
    """A judgment in a rater's history."""

    judgment_id: str
    item_id: str
    at_ms: int
    seq: int
    judgment: Judgment
    prompt: str
    """beginning of the conversation's last message"""


def judged_by(connection: Connection, rater_id: str) -> int:
    """Number of a rater's current judgments."""
    return connection.scalar(sa.select(RATERS.c.judged).where(RATERS.c.id == rater_id)) or 0


def judged(connection: Connection) -> int:
    """Number of current judgments, without skips and those of withdrawn pairs; beside people, a judge's do not count."""
    kinds = judged_by_kind(connection)
    asked = sum(count for kind, count in kinds.items() if kind != "model")
    return asked or kinds.get("model", 0)


def judged_by_kind(connection: Connection) -> dict[str, int]:
    """Current judgments without skips and those of withdrawn pairs, by kind of rater."""
    kinds = sa.select(RATERS.c.kind, sa.func.sum(RATERS.c.judged)).group_by(RATERS.c.kind)
    counts = Counter({kind: int(count or 0) for kind, count in connection.execute(kinds).all()})
    counts.subtract(_not_counted(connection, JUDGMENTS.c.kind))
    return {kind: count for kind, count in counts.items() if count}


def _seen(connection: Connection) -> list[sa.ColumnElement[bool]]:
    """The condition that leaves out the rest of lots under inspection, if there are any."""
    unseen = [one.rest for one in inspections(connection).values() if one.passed is not False]
    return [ITEMS.c.batch.not_in(unseen)] if unseen else []


def _with_gold_and_repeats(connection: Connection, every: int) -> int:
    """Judgments that the campaign needs: every item's overlap, plus the repeats and gold given so far. Repeats that were
    skipped or rejected, or whose lease expired, are left out: nobody else is given them. The rest of a lot under inspection
    is needed once its sample has failed."""
    of_gold = sa.select(sa.func.sum(ITEMS.c.taken - ITEMS.c.overlap)).where(_IS_GOLD, _IN_CAMPAIGN)
    again = sa.select(ASSIGNMENTS.c.id).join(ITEMS, ITEMS.c.id == ASSIGNMENTS.c.item_id).where(_IN_CAMPAIGN)
    again = again.outerjoin(JUDGMENTS, JUDGMENTS.c.assignment_id == ASSIGNMENTS.c.id)
    stands = sa.or_(ASSIGNMENTS.c.state == "open", sa.and_(JUDGMENTS.c.id.is_not(None), ~_SKIPS))
    repeats = _count(connection, again.where(ASSIGNMENTS.c.occasion > sa.literal_column("0"), stands))
    return int(every + (connection.scalar(of_gold) or 0) + repeats)


def _of_people(connection: Connection, rater_id: Any) -> list[sa.ColumnElement[bool]]:
    """The condition that leaves judges out, where there are others: as `judged` does."""
    kinds = judged_by_kind(connection)
    if "model" not in kinds or len(kinds) == 1:
        return []
    return [rater_id.not_in(sa.select(RATERS.c.id).where(RATERS.c.kind == "model"))]


def batch_progress(connection: Connection) -> dict[str, BatchProgress]:
    """Each batch's progress. Rankings and single answers have no votes: their places count."""
    voted = ITEMS.c.for_first + ITEMS.c.for_second + ITEMS.c.for_neither
    judged = sa.case((ITEMS.c.task == "pair", voted), else_=ITEMS.c.taken)
    # A pair of two is one item with the same id; only larger ones are compared in several. Telling ids apart takes longer
    # than all the rest.
    alone = ITEMS.c.id == ITEMS.c.pair_id
    counted = (
        sa.func.count(sa.case((sa.and_(which, alone), 1)))
        + sa.func.count(sa.distinct(sa.case((sa.and_(which, ~alone), ITEMS.c.pair_id))))
        for which in (~_SINGLE, _SINGLE)
    )
    sums = *counted, sa.func.sum(judged), sa.func.sum(ITEMS.c.overlap)
    query = sa.select(ITEMS.c.batch, *sums).where(_BY_BATCH, ~_IS_GOLD).group_by(ITEMS.c.batch)
    return {row[0]: BatchProgress(*map(int, row[1:])) for row in connection.execute(query)}


def is_empty(connection: Connection, batch: str) -> bool:
    """Whether a batch has no pairs and no single answers, withdrawn ones left out."""
    query = sa.select(ITEMS.c.id).where(ITEMS.c.batch == batch, _BY_BATCH).limit(1)
    return connection.execute(query).first() is None


def work_since(connection: Connection, rater_id: str, since_ms: int) -> Work:
    """A rater's work since a time. Only the time of answers that were changed, undone or rejected counts by whole hours.

    A day begins within an hour in time zones such as India's: of that hour, the judgments before it are taken off.
    """
    sums = [sa.func.coalesce(sa.func.sum(column), 0) for column in _HOUR_COLUMNS]
    query = sa.select(*sums).where(RATER_HOURS.c.rater_id == rater_id, RATER_HOURS.c.hour >= since_ms // HOUR_MS)
    count, active, idle = map(int, connection.execute(query).one())
    if begun := since_ms % HOUR_MS:
        before = [
            sa.func.count(),
            *(sa.func.coalesce(sa.func.sum(JUDGMENTS.c[name]), 0) for name in ("active_ms", "idle_ms")),
        ]
        query = sa.select(*before).where(JUDGMENTS.c.rater_id == rater_id, _MADE_HERE)
        query = query.where(JUDGMENTS.c.at_ms >= since_ms - begun, JUDGMENTS.c.at_ms < since_ms)
        earlier, earlier_active, earlier_idle = map(int, connection.execute(query).one())
        count, active, idle = count - earlier, max(0, active - earlier_active), max(0, idle - earlier_idle)
    return Work(count, active / 1000, idle / 1000)


def hours_since(connection: Connection, rater_id: str, since_ms: int) -> dict[int, Work]:
    """A rater's work by hour since the one that contains `since_ms`, by the hour's start in milliseconds."""
    query = sa.select(RATER_HOURS.c.hour, *_HOUR_COLUMNS).order_by(RATER_HOURS.c.hour)
    query = query.where(RATER_HOURS.c.rater_id == rater_id, RATER_HOURS.c.hour >= since_ms // HOUR_MS)
    return {
        hour * HOUR_MS: Work(count, active / 1000, idle / 1000)
        for hour, count, active, idle in connection.execute(query)
    }


_HOUR_COLUMNS = (RATER_HOURS.c.judged, RATER_HOURS.c.active_ms, RATER_HOURS.c.idle_ms)


def gold_agreement(connection: Connection, rater_id: str, before_ms: int | None = None) -> tuple[int, int]:
    """(right, n) of a rater's judgments of gold items, all or those before a time. Skips do not count."""
    which = [JUDGMENTS.c.rater_id == rater_id] + ([] if before_ms is None else [JUDGMENTS.c.at_ms < before_ms])
    return gold_agreements(connection, *which).get(rater_id, (0, 0))


def gold_agreements(connection: Connection, *which: sa.ColumnElement[bool]) -> dict[str, tuple[int, int]]:
    """The same for every rater who has judged gold items, or for some."""
    gold = connection.scalars(sa.select(GOLD.c.item_id)).all()
    query = (
        sa.select(JUDGMENTS.c.rater_id, *KNOWN)
        .join(GOLD, GOLD.c.item_id == JUDGMENTS.c.item_id)
        .join(ITEMS, ITEMS.c.id == JUDGMENTS.c.item_id)
        .where(JUDGMENTS.c.occasion == 0, MAY_VOTE, _IN_CAMPAIGN, *which)
    )
    counted: dict[str, tuple[int, int]] = {}
    # By their ids: SQLite would read every judgment, and look each one up among the few that are gold.
    for begin in range(0, len(gold), IDS_AT_ONCE):
        for row in connection.execute(query.where(JUDGMENTS.c.item_id.in_(gold[begin : begin + IDS_AT_ONCE]))):
            if (outcome := outcome_of(row)) is not None:
                right, n = counted.get(row.rater_id, (0, 0))
                counted[row.rater_id] = right + outcome, n + 1
    return counted


def history(connection: Connection, rater_id: str, before: int | None, limit: int) -> list[PastJudgment]:
    """A rater's current judgments, latest first; `before`: the `seq` of the previous page's last one."""
    query = (
        sa.select(JUDGMENTS, PAIRS.c.record.label("pair"))
        .join(ITEMS, ITEMS.c.id == JUDGMENTS.c.item_id)
        .join(PAIRS, PAIRS.c.id == ITEMS.c.pair_id)
        .where(JUDGMENTS.c.rater_id == rater_id)
        .order_by(JUDGMENTS.c.seq.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(JUDGMENTS.c.seq < before)
    return [
        PastJudgment(row.id, row.item_id, row.at_ms, row.seq, read_judgment(row.record), beginning_of(row.pair))
        for row in connection.execute(query)
    ]


def status(connection: Connection) -> dict[str, Any]:
    """Counts of everything, and the head of the log."""
    waiting = sa.select(ASSIGNMENTS.c.state, sa.func.count()).where(ASSIGNMENTS.c.state != sa.literal_column("'done'"))
    states = {row[0]: row[1] for row in connection.execute(waiting.group_by(ASSIGNMENTS.c.state)).all()}
    skipped = connection.scalar(sa.select(sa.func.count()).select_from(JUDGMENTS).where(_SKIPS, ~_ASIDE)) or 0
    finished = int(connection.scalar(sa.select(sa.func.sum(RATERS.c.judged))) or 0)
    aside = sa.select(WITHDRAWALS.c.pair_id)
    withdrawn = _count(connection, aside)
    head = connection.execute(sa.select(LOG_HEAD)).one()
    items = _count_items(connection)
    without_votes = sa.select(ITEMS.c.id).where(_IN_CAMPAIGN, ITEMS.c.id.in_(_ASSESSED))
    ranked = _count(connection, without_votes.where(ITEMS.c.task == "ranking")) if items["rankings"] else 0
    return {
        "pairs": _count(connection, sa.select(PAIRS.c.id)) - withdrawn - items["single"],
        "items": items["every"] - items["single"],
        "items_judged": items["voted"] + ranked,
        "single_answers": items["single"],
        "single_answers_judged": _count(connection, without_votes.where(_SINGLE)) if items["single"] else 0,
        "withdrawn": withdrawn,
        "judgments": judged_by_kind(connection),
        "judged": judged(connection),
        "judgments_wanted": _with_gold_and_repeats(connection, items["overlap"]),
        "assignments": states | ({"done": finished} if finished else {}),
        "raters": _count(connection, sa.select(RATERS.c.id)),
        "skipped": skipped,
        "disputed": items["disputed"],
        "events": head.seq,
        "head": head.hash,
    }


def _count_items(connection: Connection) -> dict[str, int]:
    """Counts over all items, in one pass: reading them takes most of the dashboard's time in a large store."""

    def number(*which: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
        return sa.func.count(sa.case((sa.and_(*which), 1)))

    seen = _seen(connection)
    overlap = sa.case((sa.and_(*seen), ITEMS.c.overlap), else_=0) if seen else ITEMS.c.overlap
    query = sa.select(
        sa.func.count().label("every"),
        number(_SINGLE).label("single"),
        number(ITEMS.c.task == "ranking").label("rankings"),
        number(ITEMS.c.for_first + ITEMS.c.for_second + ITEMS.c.for_neither > 0).label("voted"),
        number(ITEMS.c.disputed > 0, ~_IS_GOLD).label("disputed"),
        sa.func.coalesce(sa.func.sum(overlap), 0).label("overlap"),
    ).where(_IN_CAMPAIGN)
    return {name: int(count) for name, count in connection.execute(query).one()._mapping.items()}


def judged_by_day(connection: Connection) -> dict[str, int]:
    """The judgments that `judged` counts, by the UTC day on which they were made; days without any are left out."""
    query = sa.select(RATER_HOURS.c.hour, sa.func.sum(RATER_HOURS.c.judged)).group_by(RATER_HOURS.c.hour)
    of_people = _of_people(connection, JUDGMENTS.c.rater_id)
    query = query.where(*_of_people(connection, RATER_HOURS.c.rater_id))
    days: Counter[int] = Counter()
    for hour, count in connection.execute(query.where(RATER_HOURS.c.hour >= 0)):
        days[hour // HOURS_A_DAY] += int(count)
    for hour, count in _not_counted(connection, _HOUR, _MADE_HERE, *of_people).items():
        days[hour // HOURS_A_DAY] -= count
    return {
        time.strftime("%Y-%m-%d", time.gmtime(day * DAY_SECONDS)): count for day, count in sorted(days.items()) if count
    }


def judged_since(connection: Connection, at_ms: int) -> tuple[int, int]:
    """The judgments that `judged` counts, since the hour that contains `at_ms`, and the number of raters who made them."""
    hour = at_ms // HOUR_MS
    query = sa.select(RATER_HOURS.c.rater_id, sa.func.sum(RATER_HOURS.c.judged)).where(RATER_HOURS.c.hour >= hour)
    query = query.where(*_of_people(connection, RATER_HOURS.c.rater_id))
    counts = Counter({row[0]: int(row[1]) for row in connection.execute(query.group_by(RATER_HOURS.c.rater_id))})
    since = JUDGMENTS.c.at_ms >= hour * HOUR_MS
    of_people = _of_people(connection, JUDGMENTS.c.rater_id)
    # The text that is added is empty: grouped by the bare column, SQLite would read every judgment in the order of raters.
    rater = JUDGMENTS.c.rater_id + sa.literal_column("''", sa.String)
    counts.subtract(_not_counted(connection, rater, _MADE_HERE, since, *of_people))
    return sum(counts.values()), sum(count > 0 for count in counts.values())


_HOUR = JUDGMENTS.c.at_ms // sa.literal_column(str(HOUR_MS), sa.BigInteger)


def _not_counted(connection: Connection, column: Any, *which: sa.ColumnElement[bool]) -> Counter[Any]:
    """Skips and judgments of withdrawn pairs, by a column."""
    counts: Counter[Any] = Counter()
    for left_out in (sa.and_(_SKIPS, ~_ASIDE), _ASIDE):
        query = sa.select(column, sa.func.count()).where(left_out, *which).group_by(column)
        counts.update({row[0]: row[1] for row in connection.execute(query)})
    return counts


def _count(connection: Connection, query: sa.Select[Any]) -> int:
    return connection.scalar(sa.select(sa.func.count()).select_from(query.subquery())) or 0
