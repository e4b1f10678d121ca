"""Child processes: signals are forwarded to them, and none outlives its parent.

`tiebreak run` starts one process per stage, and `--accelerate` a launcher with one process per device. A signal to the
parent is forwarded to the computing processes, which save their work (tiebreak.process.stopping); if the parent is
killed, the kernel sends them SIGTERM instead (on Linux: PR_SET_PDEATHSIG).
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

from tiebreak.process.stopping import SIGNALS, leave_closed_terminal, note

FOLLOWS = "TIEBREAK_FOLLOWS_PARENT"
"""environment variable of a process that ends with its parent"""
GRACE_SECONDS = 90
"""time between a signal and SIGKILL"""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def follow_parent(parent: int | None = None) -> None:
    """Send this process SIGTERM when its parent ends.

    Args:
        parent: the parent's id, if known: if it has already ended, so does this process.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if parent is not None and os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


def follow_parent_if_asked() -> None:
    """In a stage's process: as its parent requested, or as one of a launcher's."""
    if FOLLOWS in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        follow_parent()


@contextmanager
def passing_on(send: Callable[[int], object]) -> Iterator[list[int]]:
    """Within, signals go to other processes through `send`; yields the signals received."""
    came: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if number == signal.SIGHUP:
            leave_closed_terminal()
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
    """Run a command that gets this process's signals and ends with it; its exit status, as subprocess returns it."""
    process = subprocess.Popen(command, env={**environment, FOLLOWS: "1"})
    with passing_on(process.send_signal):
        return process.wait()


def run_launched(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a launcher and its workers; the workers get this process's signals instead of the launcher, and end with it.

    Returns:
        the launcher's exit status, which is its workers'.
    """
    parent = os.getpid()
    process = subprocess.Popen(
        command,
        env={**environment, FOLLOWS: "1"},
        start_new_session=True,  # Ctrl-C in a terminal reaches only this process, which forwards it once
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
    """Its exit status; it is killed if it has not ended in time after a signal."""
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


def signal_children(number: int) -> None:
    """Send a signal to this process's children."""
    for child in _children(os.getpid()):
        _send(child, number)


def end_after_grace() -> None:
    """Kill this process's children unless they, and so this process, have ended in time."""
    signal.signal(signal.SIGALRM, lambda *_: signal_children(signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)


def _children(pid: int) -> list[Any]:
    """The running children of a process, as psutil objects: pids may be reused."""
    import psutil

    try:
        return list(psutil.Process(pid).children())
    except psutil.NoSuchProcess:
        return []


def _send(process: Any, number: int) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
