"""Reads a label store's pairs and judgments, as its records and as an export writes them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from pydantic_core import from_json
from sqlalchemy.engine import Connection

from labeling_ui.database.schema import ADJUDICATIONS, GOLD, ITEMS, JUDGMENTS, LOG_HEAD, PAIRS, WITHDRAWALS
from labeling_ui.store.clock import iso_time
from tiebreak.assessments import Assessment, ExportedAssessment, read_judgment, read_pair
from tiebreak.records import ExportedJudgment, Judgment, Pair

IMPORTED = "imported"
"""Prefix of the ids of judgments made elsewhere."""


def records(connection: Connection, *, withdrawn: bool) -> list[Pair]:
    """All pairs and single answers, in the order they were added; `withdrawn`: with those withdrawn."""
    query = sa.select(PAIRS.c.record).order_by(PAIRS.c.position)
    if not withdrawn:
        query = query.where(PAIRS.c.id.not_in(sa.select(WITHDRAWALS.c.pair_id)))
    return [read_pair(row.record) for row in connection.execute(query)]


def judgments(connection: Connection) -> tuple[list[Judgment], str]:
    """See `Store.judgments`."""
    query = sa.select(JUDGMENTS.c.record).join(ITEMS, ITEMS.c.id == JUDGMENTS.c.item_id)
    query = query.where(ITEMS.c.withdrawn == sa.literal_column("0"))
    rows = connection.execute(query.order_by(ITEMS.c.position, JUDGMENTS.c.rater_id, JUDGMENTS.c.seq)).all()
    found = [read_judgment(row.record) for row in rows]
    return [one for one in found if not isinstance(one, Assessment)], head(connection)


def head(connection: Connection) -> str:
    """The hash of the log's last event; empty if the log is."""
    return connection.scalar(sa.select(LOG_HEAD.c.hash)) or ""


def judgments_with_criteria(connection: Connection, limit: int) -> list[Judgment]:
    """See `Store.judgments_with_criteria`."""
    record = JUDGMENTS.c.record
    answers = sa.or_(record.like('%"criteria":{"%'), record.like('%"aspects":{"%'))
    query = sa.select(record).join(ITEMS, ITEMS.c.id == JUDGMENTS.c.item_id)
    query = query.where(answers, JUDGMENTS.c.occasion == 0, ITEMS.c.withdrawn == sa.literal_column("0"))
    query = query.where(ITEMS.c.id.not_in(sa.select(GOLD.c.item_id)))
    rows = connection.scalars(query.order_by(JUDGMENTS.c.seq.desc()).limit(limit)).all()
    return [read_judgment(one) for one in reversed(rows)]


def exported(connection: Connection) -> tuple[list[ExportedJudgment], list[ExportedAssessment], str]:
    """See `Store.exported`."""
    query = (
        sa.select(JUDGMENTS, ITEMS.c.batch, GOLD.c.item_id.label("gold"))
        .join(ITEMS, ITEMS.c.id == JUDGMENTS.c.item_id)
        .outerjoin(GOLD, GOLD.c.item_id == JUDGMENTS.c.item_id)
        .where(ITEMS.c.withdrawn == sa.literal_column("0"))
        .order_by(ITEMS.c.position, JUDGMENTS.c.rater_id, JUDGMENTS.c.seq)
    )
    every = [_as_exported(row) for row in connection.execute(query).all()]
    assessments = [one for one in every if isinstance(one, ExportedAssessment)]
    return [one for one in every if not isinstance(one, ExportedAssessment)], assessments, head(connection)


def has_labels(connection: Connection) -> bool:
    """See `Store.has_labels`."""
    queries = (
        sa.select(table.c.item_id)
        .join(ITEMS, ITEMS.c.id == table.c.item_id)
        .where(ITEMS.c.withdrawn == sa.literal_column("0"))
        for table in (JUDGMENTS, ADJUDICATIONS)
    )
    return any(connection.execute(query.limit(1)).first() is not None for query in queries)


def _as_exported(row: Any) -> ExportedJudgment:
    fields = from_json(row.record)
    timed = row.kind != "simulated" and not row.id.startswith(IMPORTED)
    fields["at"] = iso_time(row.at_ms) if timed else None
    fields["seconds_idle"] = row.idle_ms / 1000 if row.idle_ms else None
    fields |= {"batch": row.batch, "gold": row.gold is not None, "repeat": row.occasion > 0}
    return (ExportedAssessment if "task" in fields else ExportedJudgment).model_validate(fields)


def as_settled(row: Any) -> ExportedJudgment:
    """A row of `adjudication_rows` as an export writes it."""
    fields = from_json(row.record) | {"batch": row.batch, "gold": row.gold is not None, "settled": True}
    fields["at"] = None if row.at_ms < 0 else iso_time(row.at_ms)
    return (ExportedAssessment if "task" in fields else ExportedJudgment).model_validate(fields)
