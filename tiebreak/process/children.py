"""Processes that belong to the one that started them: signals are passed on to them, and none outlives it.

`tiebreak run` starts a process a stage, and `--accelerate` a launcher with a process a device. A signal to the first is
passed on to those that compute, which keep what they have done (tiebreak.process.stopping); where the first is killed,
the kernel sends SIGTERM to the others in its place (on Linux: PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tiebreak.process.stopping import SIGNALS, note

FOLLOWS = "TIEBREAK_FOLLOWS_PARENT"
"""environment of a process that ends with the one that started it"""
GRACE_SECONDS = 90
"""between a signal and SIGKILL"""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def follow_parent(parent: int | None = None) -> None:
    """Have this process sent SIGTERM when the one that started it ends.

    Args:
        parent: its id, where it is known: if it has ended already, so does this process.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if parent is not None and os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


def follow_parent_if_asked() -> None:
    """In a stage's process: as its starter asked, or as one of several that a launcher started."""
    if FOLLOWS in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        follow_parent()


@contextmanager
def passing_on(send: Callable[[int], object]) -> Iterator[list[int]]:
    """Within, signals go to other processes, through `send`; yields those that came."""
    came: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        note(number)
        send(number)

    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, on_signal) for number in heeded}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def run_following(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """A command that gets this process's signals, and ends with it; its exit status, as subprocess gives it."""
    process = subprocess.Popen(command, env={**environment, FOLLOWS: "1"})
    with passing_on(process.send_signal):
        return process.wait()


def run_launched(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """A launcher and its workers, which get this process's signals in the launcher's place, and end with it.

    Returns:
        the launcher's exit status, which is that of its workers.
    """
    parent = os.getpid()
    process = subprocess.Popen(
        command,
        env={**environment, FOLLOWS: "1"},
        start_new_session=True,  # Ctrl-C in a terminal reaches this process alone, which passes it on once
        preexec_fn=lambda: follow_parent(parent),
    )
    signalled: list[Any] = []

    def pass_on(number: int) -> None:
        signalled[:] = _children(process.pid)
        for worker in signalled:
            _send(worker, number)
        if not signalled:
            process.send_signal(number)

    with passing_on(pass_on) as came:
        status = _wait(process, came)
    for worker in signalled:
        _send(worker, signal.SIGKILL)
    return status if status >= 0 else 128 - status


def _wait(process: subprocess.Popen[bytes], came: Sequence[int]) -> int:
    """Its exit status; killed where it has not ended so long after a signal."""
    limit: float | None = None
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=1.0)
        if came and limit is None:
            limit = time.monotonic() + GRACE_SECONDS
        if limit is not None and time.monotonic() > limit:
            for worker in _children(process.pid):
                _send(worker, signal.SIGKILL)
            process.kill()


def _children(pid: int) -> list[Any]:
    """The processes that a process started and that run, as psutil knows them: by more than a number that may be reused."""
    import psutil

    try:
        return list(psutil.Process(pid).children())
    except psutil.NoSuchProcess:
        return []


def _send(process: Any, number: int) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
