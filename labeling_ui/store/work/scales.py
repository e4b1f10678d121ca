"""The scales that judgments were made on: a campaign cannot change them under its judgments.

A rating of 3 means another thing on a scale of three steps than on one of five. Such judgments would be averaged together,
and nobody would see it.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from labeling_ui.database.errors import StoreError
from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import ITEMS, JUDGMENTS, SETTINGS
from labeling_ui.store.work.asking import Criterion, Questionnaire

SCALES = "scales:"
"""Prefix of the setting that remembers the scales."""
_NAME = f"{SCALES}asked"


def keep_scales(tx: Transaction, asked: Questionnaire, url: str) -> None:
    """Remember the scales that are asked for.

    Raises:
        StoreError: ratings or a criterion have judgments on another scale.
    """
    value = tx.connection.scalar(sa.select(SETTINGS.c.value).where(SETTINGS.c.name == _NAME))
    before: dict[str, Any] = json.loads(value) if value else {"ratings": list(asked.ratings), "criteria": {}}
    now = {one.name: _scale_of(one) for one in asked.criteria}
    faults = []
    if _is_another(before["ratings"], asked.ratings) and _has_ratings(tx.connection):
        faults.append(f"ratings: the judgments are on {', '.join(before['ratings'])}")
    for name, scale in before["criteria"].items():
        if name in now and now[name] != scale and _has_criterion(tx.connection, name):
            faults.append(f"criteria: {name} has judgments on another scale: {', '.join(map(str, scale))}")
    if faults:
        raise StoreError(
            f"{url} has judgments on other scales, which would be mixed with new ones: set them back, give the criterion "
            "another name, or begin a new store\n" + "\n".join(f"  {fault}" for fault in faults)
        )
    kept = {"ratings": list(asked.ratings), "criteria": before["criteria"] | now}
    if not value or kept != before:
        tx.connection.execute(sa.delete(SETTINGS).where(SETTINGS.c.name == _NAME))
        tx.connection.execute(sa.insert(SETTINGS).values(name=_NAME, value=json.dumps(kept)))


def _scale_of(criterion: Criterion) -> list[Any]:
    """What a criterion's values mean, without the question."""
    return [criterion.scale, "of each answer" if criterion.is_of_each else "of the pair"]


def _is_another(before: list[str], now: tuple[str, ...]) -> bool:
    """Whether a scale has other steps, or the same in another order. Names alone may be changed, as by a translation."""
    return len(before) != len(now) or (set(before) == set(now) and before != list(now))


def _has_ratings(connection: Connection) -> bool:
    query = sa.select(JUDGMENTS.c.id).join(ITEMS, ITEMS.c.id == JUDGMENTS.c.item_id).where(ITEMS.c.task == "rate")
    return connection.scalar(query.limit(1)) is not None


def _has_criterion(connection: Connection, name: str) -> bool:
    """Whether a judgment answers a criterion: a key with its quotes occurs nowhere else in a record."""
    query = sa.select(JUDGMENTS.c.record).where(JUDGMENTS.c.record.contains(f'"{name}":', autoescape=True))
    return any(name in json.loads(record).get("criteria", {}) for record in connection.scalars(query))
