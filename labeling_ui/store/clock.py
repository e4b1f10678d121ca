"""Times of the label store: milliseconds since 1970, in UTC."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime

from labeling_ui.database.errors import RefusedError
from labeling_ui.database.schema import HOUR_MS

DAY_MS = 24 * HOUR_MS


def wall_clock_ms() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def iso_time(at_ms: int) -> str:
    """A time in UTC, to the millisecond.

    >>> iso_time(1_777_887_000_250)
    '2026-05-04T09:30:00.250Z'
    """
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"


def period_ms(first: date, last: date) -> tuple[int, int]:
    """When the first of some days (UTC) begins, and when the last has ended.

    Raises:
        RefusedError: the first day comes after the last.
    """
    if first > last:
        raise RefusedError(f"the first day, {first}, comes after the last, {last}")
    return _midnight_ms(first), _midnight_ms(last) + DAY_MS


def _midnight_ms(day: date) -> int:
    return round(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
