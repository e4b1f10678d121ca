"""What happened in a campaign since a place in its log, as a webhook reports it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from labeling_ui.database.schema import ASSIGNMENTS, BATCHES, EVENTS, GOLD, ITEMS, JUDGMENTS, LOG_HEAD
from labeling_ui.store.figures.progress import is_empty, judged
from tiebreak.assessments import SingleTask, disagreement, is_single

NewsKind = Literal["judgments", "batch_finished", "dispute", "rater_stopped"]
NEWS_KINDS: tuple[NewsKind, ...] = ("judgments", "batch_finished", "dispute", "rater_stopped")
EVENTS_AT_ONCE = 1_000
IDS_AT_ONCE = 500
_READ = ("submitted", "standing_changed")


@dataclass(frozen=True)
class News:
    """One thing that happened."""

    kind: NewsKind
    seq: int
    """its event in the log"""
    at_ms: int
    about: dict[str, Any]

    @property
    def id(self) -> str:
        """The same if it is sent again."""
        return f"{self.kind}-{self.about.get('batch', '')}{self.seq}"


@dataclass(frozen=True)
class Place:
    """How far the log has been read."""

    seq: int = 0
    judgments: int = 0
    """those of the campaign when its webhook began, as its status counts them, and those submitted since"""
    finished: tuple[str, ...] = field(default=())
    """batches that were finished then"""


def read_news(connection: Connection, place: Place, every: int) -> tuple[list[News], Place]:
    """What happened after a place, and the place after it: at most `EVENTS_AT_ONCE` events further.

    Args:
        every: the number of judgments after which they are news.
    """
    columns = (EVENTS.c.seq, EVENTS.c.at_ms, EVENTS.c.kind, EVENTS.c.rater_id, EVENTS.c.item_id, EVENTS.c.payload)
    query = sa.select(*columns).where(EVENTS.c.seq > place.seq, EVENTS.c.kind.in_(_READ)).order_by(EVENTS.c.seq)
    rows = connection.execute(query.limit(EVENTS_AT_ONCE)).all()
    if not rows:
        return [], place
    news, count = [], place.judgments
    for row in rows:
        if row.kind == "standing_changed":
            news += _stopped(row)
            continue
        count += 1
        if count % every == 0:
            news.append(News("judgments", row.seq, row.at_ms, {"judgments": count}))
        news += _disputed(connection, row)
    touched = _batches_of(connection, [row.item_id for row in rows if row.item_id])
    finished = {name for name in touched if _is_finished(connection, name)}
    last = rows[-1]
    news += [
        News("batch_finished", last.seq, last.at_ms, {"batch": name}) for name in sorted(finished - {*place.finished})
    ]
    return news, Place(last.seq, count, tuple(sorted({*place.finished} - touched | finished)))


def present_place(connection: Connection) -> Place:
    """The end of the log: earlier events are not news, and are not read."""
    seq = connection.scalar(sa.select(LOG_HEAD.c.seq)) or 0
    batches = connection.scalars(sa.select(BATCHES.c.name)).all()
    finished = [name for name in batches if not is_empty(connection, name) and _is_finished(connection, name)]
    return Place(seq, judged(connection), tuple(sorted(finished)))


def _stopped(row: Any) -> list[News]:
    payload = json.loads(row.payload)
    if payload.get("standing") not in ("stopped", "failed"):
        return []
    return [News("rater_stopped", row.seq, row.at_ms, {"rater_id": row.rater_id, "standing": payload["standing"]})]


def _disputed(connection: Connection, row: Any) -> list[News]:
    """Whether this judgment is the first against another one of its item: opposite sides, or outcomes of an answer. Gold
    is left out: its answer is known."""
    if connection.scalar(sa.select(GOLD.c.item_id).where(GOLD.c.item_id == row.item_id)) is not None:
        return []
    task = connection.scalar(sa.select(ITEMS.c.task).where(ITEMS.c.id == row.item_id)) or ""
    if is_single(task):
        return _disputed_answer(connection, row, task)
    votes = connection.execute(
        sa.select(JUDGMENTS.c.vote, JUDGMENTS.c.seq)
        .where(JUDGMENTS.c.item_id == row.item_id, JUDGMENTS.c.occasion == 0, JUDGMENTS.c.vote.is_not(None))
        .order_by(JUDGMENTS.c.seq)
    ).all()
    until = [one.vote for one in votes if one.seq <= row.seq]
    if not _opposed(until) or _opposed([one.vote for one in votes if one.seq < row.seq]):
        return []
    return [News("dispute", row.seq, row.at_ms, {"item_id": row.item_id})]


def _disputed_answer(connection: Connection, row: Any, task: SingleTask) -> list[News]:
    query = sa.select(JUDGMENTS.c.record, JUDGMENTS.c.seq).where(
        JUDGMENTS.c.item_id == row.item_id, JUDGMENTS.c.occasion == 0, JUDGMENTS.c.seq <= row.seq
    )
    given = [(one.seq, json.loads(one.record)) for one in connection.execute(query)]
    values = [(seq, one["value"]) for seq, one in given if one.get("value") is not None and one.get("judge") is None]
    if disagreement(task, [value for _, value in values]) < 2:
        return []
    if disagreement(task, [value for seq, value in values if seq < row.seq]) == 2:
        return []
    return [News("dispute", row.seq, row.at_ms, {"item_id": row.item_id})]


def _opposed(votes: Sequence[int]) -> bool:
    return any(vote > 0 for vote in votes) and any(vote < 0 for vote in votes)


def _batches_of(connection: Connection, item_ids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for begin in range(0, len(item_ids), IDS_AT_ONCE):
        some = ITEMS.c.id.in_(item_ids[begin : begin + IDS_AT_ONCE])
        found |= set(connection.scalars(sa.select(ITEMS.c.batch).where(some).distinct()))
    return found


UNFINISHED = sa.text(
    "items.withdrawn = 0 AND CASE WHEN items.task = 'pair' "
    "THEN items.for_first + items.for_second + items.for_neither < items.overlap ELSE items.taken < items.overlap END"
)
"""Items that lack judgments, in the words of the index's condition; rankings and single answers have no votes."""


def _is_finished(connection: Connection, batch: str) -> bool:
    """Whether all pairs and single answers of a batch have their judgments; reads those without, and what raters hold.
    Gold is left out, as it is from the batch's progress: it is given by chance. A batch of gold alone is never finished."""
    ordinary = sa.select(ITEMS.c.id).where(ITEMS.c.batch == batch, ITEMS.c.id.not_in(sa.select(GOLD.c.item_id)))
    if connection.execute(ordinary.where(UNFINISHED).limit(1)).first() is not None:
        return False
    if connection.execute(ordinary.where(ITEMS.c.withdrawn < sa.literal_column("1")).limit(1)).first() is None:
        return False
    # The place of a ranking or a single answer is taken before the judgment is there.
    held = sa.select(ITEMS.c.id).join(ASSIGNMENTS, ASSIGNMENTS.c.item_id == ITEMS.c.id)
    held = held.where(ASSIGNMENTS.c.state == sa.literal_column("'open'"), ASSIGNMENTS.c.lease_until_ms > 0)
    held = held.where(ITEMS.c.batch == batch, ITEMS.c.withdrawn == 0, ITEMS.c.task != "pair")
    held = held.where(ITEMS.c.id.not_in(sa.select(GOLD.c.item_id)))
    return connection.execute(held.limit(1)).first() is None
