"""Times of the label store: milliseconds since 1970, in UTC."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def wall_clock_ms() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def iso_time(at_ms: int) -> str:
    """A time in UTC, to the millisecond.

    >>> iso_time(1_777_887_000_250)
    '2026-05-04T09:30:00.250Z'
    """
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"
