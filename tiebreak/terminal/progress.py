"""Progress and time left of long work, on standard error, from the main process only.

In a terminal, a bar; in a pipe or a file, a line from time to time:

    training ━━━━━━━━━━━━╺━━━━━━━━━━━  7/14  0:45 left  loss 3.920, token accuracy 0.276
    training: 7 of 14, 0:45 passed, 0:45 left; loss 3.920, token accuracy 0.276
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tiebreak.terminal import has_colours, is_main_process, say
from tiebreak.terminal.bars import Bar, Display, duration

LINE_SECONDS, LONGEST_LINE_SECONDS, LINE_SHARE = 10.0, 300.0, 0.05
"""least time between two lines; in long work LINE_SHARE of the time passed, up to LONGEST_LINE_SECONDS"""


class Screen:
    """Bars on one display: a long task and shorter ones within it."""

    def __init__(self, display: Display, clock: Callable[[], float] = time.monotonic) -> None:
        self._display, self._clock = display, clock

    def begin(self, total: int, what: str, done: int = 0) -> Bar:
        """A new bar, which may be partly done."""
        bar = Bar(total, what, done, self._display, self._clock)
        self._display.began(bar)
        return bar


@contextmanager
def progress(total: int, what: str) -> Iterator[Bar]:
    """One bar for one task."""
    with screen() as shown:
        bar = shown.begin(total, what)
        yield bar
        bar.end()


@contextmanager
def screen() -> Iterator[Screen]:
    """The display for standard error: live bars or lines; nothing on other processes than the main one."""
    if not is_main_process():
        yield Screen(_NoProgress())
    elif not has_colours(sys.stderr):
        yield Screen(Lines())
    else:
        from tiebreak.terminal.live_bars import live_bars  # rich takes a tenth of a second to import

        with live_bars(sys.stderr) as live:
            yield Screen(live)


class _NoProgress:
    def began(self, bar: Bar) -> None: ...

    def changed(self, bar: Bar) -> None: ...

    def ended(self, bar: Bar) -> None: ...


class Lines:
    """A line from time to time and one at the end, except for short tasks within others."""

    def __init__(self) -> None:
        self._open: list[Bar] = []
        self._next: dict[int, float] = {}
        self._printed: set[int] = set()

    def began(self, bar: Bar) -> None:
        self._open.append(bar)
        self._next[id(bar)] = LINE_SECONDS

    def changed(self, bar: Bar) -> None:
        passed = bar.seconds_passed
        if passed >= self._next[id(bar)] and bar.done < bar.total:
            left = "" if bar.seconds_left is None else f", {duration(bar.seconds_left)} left"
            say(f"{bar.what}: {bar.done} of {bar.total}, {duration(passed)} passed{left}{_after(bar)}")
            self._next[id(bar)] = passed + min(max(LINE_SECONDS, LINE_SHARE * passed), LONGEST_LINE_SECONDS)
            self._printed.add(id(bar))

    def ended(self, bar: Bar) -> None:
        self._open.remove(bar)
        if not self._open or id(bar) in self._printed:
            say(f"{bar.what}: {bar.done} of {bar.total} in {duration(bar.seconds_passed)}{_after(bar)}")


def _after(bar: Bar) -> str:
    return f"; {bar.figures}" if bar.figures else ""
