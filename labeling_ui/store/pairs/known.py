"""Whether a judgment of a gold item is right: the known answer is a side, or a single answer's value."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from labeling_ui.database.errors import RefusedError
from labeling_ui.database.schema import GOLD, ITEMS, JUDGMENTS
from tiebreak.assessments import VERDICTS

KNOWN = (
    JUDGMENTS.c.vote,
    GOLD.c.preferred_id,
    GOLD.c.value,
    ITEMS.c.first_id,
    sa.case((GOLD.c.value.is_not(None), JUDGMENTS.c.record), else_=sa.null()).label("record"),
)
"""The columns by which `outcome_of` decides."""
MAY_VOTE = sa.or_(JUDGMENTS.c.vote.is_not(None), GOLD.c.value.is_not(None))
"""Leaves out rows that are certainly skips."""


def outcome_of(row: Any) -> bool | None:
    """Whether a judgment of a gold item is right; None: it is a skip. A rating is right within one step.

    Args:
        row: with the columns `KNOWN`.
    """
    if row.value is None:
        known = 0 if row.preferred_id is None else 1 if row.preferred_id == row.first_id else -1
        return None if row.vote is None else (row.vote > 0) - (row.vote < 0) == known
    given, known_value = json.loads(row.record).get("value"), json.loads(row.value)
    if given is None:
        return None
    return abs(given - known_value) <= 1 if isinstance(known_value, int) else bool(given == known_value)


def check_value(task: str, value: int | str | None) -> None:
    """Refuse a value that no judgment of the task can have.

    Raises:
        RefusedError: no judgment of the task can have it.
    """
    if task == "rate" and not (isinstance(value, int) and value >= 1):
        raise RefusedError("the known answer of a rating is a step of the scale, from 1")
    if task == "review" and value not in VERDICTS:
        raise RefusedError(f"the known answer of a review is one of {', '.join(VERDICTS)}")
    if task == "classify" and not (isinstance(value, str) and value):
        raise RefusedError("the known answer of a classification is a class")
