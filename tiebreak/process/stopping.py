"""Stopping on a signal: finished work is kept, and the exit status says that the same command resumes.

Handles SIGTERM and SIGUSR1, which job schedulers send before they reclaim a machine, SIGHUP of a terminal that was
closed, and Ctrl-C. A training stage writes a checkpoint at the end of the current step, *sample* and *evaluate* finish
the current batch, and everything else stops at once. The exit status is 75 (EX_TEMPFAIL of sysexits.h: try again
later), or 130 after Ctrl-C; a second Ctrl-C stops without waiting. Other signals change nothing about a stop that is
under way.

Signal handlers belong to the whole process, and so does this module's state: one request, and how it is handled now.
"""

from __future__ import annotations

import atexit
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Literal

STOPPED = 75
INTERRUPTED = 130
TIME_IS_UP = 80
"""exit status at a command's `max_time`, outside the numbers of sysexits.h and of shells"""
OUT_OF_TIME = 1000
"""in place of a signal's number: see tiebreak.process.limit"""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
PATIENCE_SECONDS = 30
"""longest duration of a step or batch after a signal; a checkpoint must be written within 60 s"""
ONE_PRESS_SECONDS = 1.0
"""Ctrl-C reaches every process of a terminal, and parents forward it too: within this time it counts once"""


_TERMINALS = (4, 5, *range(136, 144))
"""major numbers of Linux's terminals and pseudo-terminals"""


class Stopped(BaseException):
    """A signal requested the end. Not an Exception, which libraries catch."""

    def __init__(self, number: int, kept: str = "") -> None:
        self.number, self.kept = number, kept
        _request.raised_at = time.monotonic()
        super().__init__(number, kept)

    @property
    def exit_status(self) -> int:
        """Of a process that stops on it."""
        return {signal.SIGINT: INTERRUPTED, OUT_OF_TIME: TIME_IS_UP}.get(self.number, STOPPED)

    def __str__(self) -> str:
        kept = f"; {self.kept}" if self.kept else ""
        by = "before max_time" if self.number == OUT_OF_TIME else f"by {signal.Signals(self.number).name}"
        return f"stopped {by}{kept}: the same command resumes"


class StepStopped(Stopped):
    """Raised within an `interruptible` part of a training step, before anything has changed the weights."""


@dataclass
class _Request:
    """The signal received, if any, and how this process handles it now."""

    number: int = 0
    at: float = 0.0
    overdue: bool = False
    heeded: bool = False
    deferred: bool = False
    raised_at: float | None = None
    """when the last Stopped was made: the process leaves what it was doing"""
    ending: bool = False
    """only its last message is left to print"""
    number_at_end: int = 0
    """a signal received then"""
    leave: Callable[[int], None] | None = None
    cut_short: Literal["never", "late", "at once"] = "never"


_request = _Request()


@contextmanager
def heeding_signals() -> Iterator[None]:
    """Within, a signal raises Stopped, or waits under `deferring`. Nested or outside the main thread: does nothing."""
    if _request.heeded or threading.current_thread() is not threading.main_thread():
        yield
        return
    forget()
    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _on_signal) for number in heeded}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, _on_alarm)
    _request.heeded = True
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        forget()
        atexit.unregister(_ignore_signals)
        atexit.register(_ignore_signals)  # the last one registered is called first


def _ignore_signals() -> None:
    """While the interpreter is taken down: the work is done or kept, and its exit status must not become a signal's."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)


def end() -> None:
    """The process only prints its last message and exits: from now on signals are only noted."""
    _request.ending = True


def must_leave_within(seconds: float) -> bool:
    """After `end`: wait, unless a signal comes; whether one did."""
    limit = time.monotonic() + seconds
    while not _request.number_at_end and time.monotonic() < limit:
        time.sleep(0.05)
    return bool(_request.number_at_end)


def forget() -> None:
    """Reset to a process's initial state: no signal received, none handled."""
    global _request
    _request = _Request()


def as_a_new_process() -> None:
    """In a fork: default signal handling, until this process installs its own."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, _interrupt)
    forget()


@contextmanager
def deferring() -> Iterator[None]:
    """Within, a signal is only noted: code that can save its work polls for it and stops (`requested`, `check`)."""
    outer, _request.deferred = _request.deferred, _request.heeded
    try:
        yield
    finally:
        _request.deferred = outer


@contextmanager
def leaving_at_once(leave: Callable[[int], None]) -> Iterator[None]:
    """Within, a signal calls `leave`, which ends the process: imports swallow or convert exceptions."""
    outer, _request.leave = _request.leave, leave
    try:
        yield
    finally:
        _request.leave = outer


@contextmanager
def interruptible(*, at_once: bool = False) -> Iterator[None]:
    """Within `deferring`: work that has not changed the weights yet, and so may be interrupted.

    Args:
        at_once: on the signal; otherwise `PATIENCE_SECONDS` after it.

    Raises:
        StepStopped: it was interrupted.
    """
    outer = _request.cut_short
    _request.cut_short = "at once" if at_once else "late"
    try:
        if _request.deferred and _request.number and (at_once or _request.overdue):
            raise StepStopped(_request.number)
        yield
    finally:
        _request.cut_short = outer


def requested() -> int:
    """The signal that requested the end; 0 if none."""
    return _request.number


def note(number: int) -> None:
    """Note a signal that was forwarded to another process, or the end of the time: this one ends after that."""
    _request.number, _request.at = number, time.monotonic()


def check(kept: str = "") -> None:
    """Stop here if a signal requested it.

    Raises:
        Stopped: a signal requested it.
    """
    if _request.number:
        raise Stopped(_request.number, kept)


def leave_closed_terminal() -> None:
    """Redirect output to a terminal that is gone to nothing: writing to it would be an error, also of a progress bar."""
    for descriptor in (0, 1, 2):
        with suppress(OSError):
            status = os.fstat(descriptor)
            terminal = stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) in _TERMINALS
            if terminal and not os.isatty(descriptor):  # it answers no longer
                os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """KeyboardInterrupt, once per press."""
    now, earlier = time.monotonic(), _request.at
    _request.at = now
    if not earlier or now - earlier > ONE_PRESS_SECONDS:
        raise KeyboardInterrupt


def _on_signal(number: int, _frame: FrameType | None) -> None:
    now, earlier = time.monotonic(), _request.number
    if number == signal.SIGHUP:
        leave_closed_terminal()
    if _request.ending:
        _request.number_at_end = number
        return
    if _request.leave is not None:
        _request.leave(number)
    if earlier and now - _request.at <= ONE_PRESS_SECONDS:
        return
    if earlier and number == earlier == signal.SIGINT:
        raise KeyboardInterrupt
    if earlier and (_request.deferred or _is_leaving(now)):
        return
    _request.number, _request.at = number, now
    if not _request.deferred:
        raise Stopped(number)
    if _request.cut_short == "at once":
        raise StepStopped(number)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)


def _is_leaving(now: float) -> bool:
    """Whether Stopped is on its way up. If it has not arrived after a while, a library has swallowed it."""
    return _request.raised_at is not None and now - _request.raised_at <= PATIENCE_SECONDS


def _on_alarm(_number: int, _frame: FrameType | None) -> None:
    _request.overdue = True
    if _request.deferred and _request.cut_short != "never":
        raise StepStopped(_request.number)
