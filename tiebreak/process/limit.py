"""The time that a command may take: it stops before, its work kept, with a status of its own, and the same command resumes.

    tiebreak run --config configs/quickstart/pipeline.yaml --max_time 8h

The limit is a point of this machine's monotonic clock, in the environment: a recipe's stages and the workers of a launch
have it too.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tiebreak.process.stopping import OUT_OF_TIME, Stopped

ENDS_AT = "TIEBREAK_ENDS_AT"
FACTOR = 1.5
"""of the longest step and checkpoint so far: the next may take longer"""
FIRST_SAVE_SECONDS = 60.0
"""assumed of a checkpoint before one was written: the time that it may take after a signal"""
_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([dhms])")


def seconds_of(duration: str) -> float:
    """Of `8h`, `90m`, `1h30m`, `45s` or `2d`.

    Raises:
        ValueError: it is not a duration.
    """
    parts = _DURATION.findall(duration)
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != duration or not seconds:
        raise ValueError("give a duration such as 8h, 90m or 1h30m")
    return seconds


def now() -> float:
    """The monotonic clock, in seconds."""
    return time.monotonic()


@contextmanager
def limited_to(max_time: str | None) -> Iterator[None]:
    """Within, and in processes started within, the time is limited; an earlier limit stays."""
    before = os.environ.get(ENDS_AT)
    if max_time is not None:
        os.environ[ENDS_AT] = repr(min(now() + seconds_of(max_time), float(before or math.inf)))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(ENDS_AT, None)
        else:
            os.environ[ENDS_AT] = before


def remaining() -> float:
    """Seconds until the limit; infinite without one."""
    ends_at = os.environ.get(ENDS_AT)
    return math.inf if ends_at is None else float(ends_at) - now()


def leave_in_time(seconds: float, kept: str) -> None:
    """Stop here if the next piece of work, which takes this many seconds, may not end in time.

    Raises:
        Stopped: it may not.
    """
    if remaining() <= FACTOR * seconds:
        raise Stopped(OUT_OF_TIME, kept)


class Margin:
    """The time that the next step of a training and its checkpoint may take."""

    def __init__(self) -> None:
        self._step = 0.0
        self._save: float | None = None
        self._last = now()

    def step_ended(self) -> None:
        """Measure it from the end of the last step, or of its checkpoint."""
        self._step, self._last = max(self._step, now() - self._last), now()

    def saved(self) -> None:
        """Measure a checkpoint, and an evaluation before it, from the end of its step."""
        self._save, self._last = max(self._save or 0.0, now() - self._last), now()

    @property
    def is_reached(self) -> bool:
        """Whether another step and its checkpoint may not end in time."""
        left = remaining()
        save = FIRST_SAVE_SECONDS if self._save is None else self._save
        return left < FACTOR * (self._step + save)
