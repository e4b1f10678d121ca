"""Progress of one task, and the interface of displays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Bar:
    """One task: its total, and how much of it is done."""

    def __init__(self, total: int, what: str, done: int, display: Display, clock: Callable[[], float]) -> None:
        self.total, self.what, self.done = total, what, done
        self.figures = ""
        self._display, self._clock = display, clock
        self._began, self._skipped = clock(), done

    def advance(self, count: int = 1) -> None:
        """`count` more are done."""
        self.done += count
        self._display.changed(self)

    def advance_to(self, done: int) -> None:
        """`done` are done in total."""
        if done != self.done:
            self.advance(done - self.done)

    def skip_to(self, done: int) -> None:
        """Jump to `done`: the skipped part took no time and does not count for the time left."""
        self._skipped += done - self.done
        self.advance_to(done)

    def show(self, figures: str) -> None:
        """Figures beside the bar, such as the loss."""
        self.figures = figures
        self._display.changed(self)

    def end(self) -> None:
        """The task is finished."""
        self._display.ended(self)

    @property
    def seconds_passed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._began

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at the mean speed so far; None before the first advance."""
        made = self.done - self._skipped
        return self.seconds_passed / made * max(self.total - self.done, 0) if made > 0 else None


class Display(Protocol):
    """Where bars are shown."""

    def began(self, bar: Bar) -> None:
        """A task begins."""

    def changed(self, bar: Bar) -> None:
        """Its progress or figures changed."""

    def ended(self, bar: Bar) -> None:
        """A task is finished."""


def duration(seconds: float) -> str:
    """`0:45`, `1:16`, `2:05:33`.

    >>> duration(45.4), duration(7533)
    ('0:45', '2:05:33')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
