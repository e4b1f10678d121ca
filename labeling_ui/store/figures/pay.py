"""Raters' work, by rater, day and batch, for their pay: times within the server's limits, rejected work included."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from labeling_ui.database.schema import EVENTS, HOUR_MS, ITEMS, JUDGMENTS, RATER_HOURS, RATERS, REJECTIONS
from labeling_ui.store.clock import period_ms

DAY_MS = 24 * HOUR_MS
LATEST = 20
"""Judgments of a rater by which their clock is compared with the server's."""


@dataclass(frozen=True)
class WorkDay:
    """A rater's work on a day (UTC) in a batch; `batch` None: time on answers that were changed or taken back."""

    rater_id: str
    day: str
    batch: str | None
    judgments: int
    """those that stand, skips and repeats included"""
    rejected: int
    active_seconds: float
    idle_seconds: float


def worked(connection: Connection, first: date, last: date) -> list[WorkDay]:
    """All work from the first to the last day. Judgments made elsewhere have no time and are left out.

    Raises:
        RefusedError: the first day comes after the last.
    """
    since, until = period_ms(first, last)
    sums: dict[tuple[str, int, str | None], list[int]] = {}
    for place, table in enumerate((JUDGMENTS, REJECTIONS)):
        day = table.c.at_ms // sa.literal_column(str(DAY_MS), sa.BigInteger)
        query = (
            sa.select(table.c.rater_id, day.label("day"), ITEMS.c.batch, sa.func.count().label("n"))
            .add_columns(sa.func.sum(table.c.active_ms).label("active"), sa.func.sum(table.c.idle_ms).label("idle"))
            .join(ITEMS, ITEMS.c.id == table.c.item_id)
            .where(table.c.at_ms >= since, table.c.at_ms < until, ~table.c.id.like("imported-%"))
            .group_by(table.c.rater_id, day, ITEMS.c.batch)
        )
        for row in connection.execute(query):
            counts = sums.setdefault((row.rater_id, int(row.day), row.batch), [0, 0, 0, 0])
            counts[place] += row.n
            counts[2] += int(row.active)
            counts[3] += int(row.idle)
    for (rater_id, number), (active, idle) in _rest(connection, since, until, sums).items():
        sums[rater_id, number, None] = [0, 0, active, idle]
    rows = sorted(sums.items(), key=lambda one: (one[0][1], one[0][0], one[0][2] is None, one[0][2] or ""))
    return [
        WorkDay(rater_id, _day(number), batch, n, rejected, active / 1000, idle / 1000)
        for (rater_id, number, batch), (n, rejected, active, idle) in rows
    ]


def _rest(
    connection: Connection, since: int, until: int, sums: dict[tuple[str, int, str | None], list[int]]
) -> dict[tuple[str, int], tuple[int, int]]:
    """Time of each rater and day that is in no judgment: answers changed or taken back."""
    query = sa.select(RATER_HOURS).where(RATER_HOURS.c.hour >= since // HOUR_MS, RATER_HOURS.c.hour < until // HOUR_MS)
    rest: dict[tuple[str, int], list[int]] = {}
    for row in connection.execute(query):
        left = rest.setdefault((row.rater_id, row.hour // 24), [0, 0])
        left[0] += row.active_ms
        left[1] += row.idle_ms
    for (rater_id, number, _), counts in sums.items():
        left = rest.get((rater_id, number), [0, 0])
        left[0] -= counts[2]
        left[1] -= counts[3]
    return {key: (max(0, active), max(0, idle)) for key, (active, idle) in rest.items() if active > 0 or idle > 0}


BREAK_MS = 5 * 60_000
"""A pause between two judgments that counts as a break."""


@dataclass(frozen=True)
class Presence:
    """A rater's day (UTC): when they began and ended, and how long they paused between."""

    rater_id: str
    day: str
    first_ms: int
    """the beginning of the first judgment"""
    last_ms: int
    breaks: int
    break_seconds: float


def presences(connection: Connection, first: date, last: date) -> list[Presence]:
    """Each rater's days, by day and rater. A break is a pause of five minutes or more before a judgment begins."""
    since, until = period_ms(first, last)
    parts = []
    for table in (JUDGMENTS, REJECTIONS):
        spent = (table.c.active_ms + table.c.idle_ms).label("spent")
        within = sa.and_(table.c.at_ms >= since, table.c.at_ms < until, ~table.c.id.like("imported-%"))
        parts.append(sa.select(table.c.rater_id, table.c.at_ms.label("at_ms"), spent).where(within))
    days: dict[tuple[int, str], Presence] = {}
    for row in connection.execute(sa.union_all(*parts).order_by(sa.text("at_ms"))):
        number = row.at_ms // DAY_MS
        begun = min(row.at_ms, max(row.at_ms - int(row.spent), number * DAY_MS))
        seen = days.get((number, row.rater_id))
        if seen is None:
            days[number, row.rater_id] = Presence(row.rater_id, _day(number), begun, row.at_ms, 0, 0.0)
            continue
        pause = begun - seen.last_ms
        paused = pause >= BREAK_MS
        breaks, seconds = seen.breaks + paused, seen.break_seconds + (pause / 1000 if paused else 0.0)
        days[number, row.rater_id] = replace(seen, last_ms=row.at_ms, breaks=breaks, break_seconds=seconds)
    return [days[key] for key in sorted(days)]


def clocks(connection: Connection) -> dict[str, float]:
    """Seconds by which each rater's clock is ahead of the server's: the median over their latest judgments."""
    ahead: dict[str, float] = {}
    for rater_id in connection.scalars(sa.select(RATERS.c.id).where(RATERS.c.judged > 0)).all():
        query = sa.select(EVENTS.c.payload, EVENTS.c.at_ms).join(JUDGMENTS, JUDGMENTS.c.seq == EVENTS.c.seq)
        query = query.where(JUDGMENTS.c.rater_id == rater_id).order_by(JUDGMENTS.c.seq.desc()).limit(LATEST)
        times = [(json.loads(row.payload).get("client_at_ms"), row.at_ms) for row in connection.execute(query)]
        if differences := [(client - server) / 1000 for client, server in times if client is not None]:
            ahead[rater_id] = round(statistics.median(differences), 1)
    return ahead


def _day(number: int) -> str:
    return f"{datetime.fromtimestamp(number * DAY_MS / 1000, UTC):%Y-%m-%d}"
