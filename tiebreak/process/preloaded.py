"""Processes that start with their imports done: a recipe's stages, and a stage's check of its saved model.

torch, transformers, TRL and their dependencies take six seconds of one core to import: about a minute of the quickstart.
A forked process has them at once, and shares nothing else: it is forked before any model is loaded. Only on Linux without
an accelerator, whose driver does not survive a fork, and only while no thread runs, since a lock held by one would stay
locked forever. Elsewhere, processes start from scratch.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tiebreak.errors import TiebreakError
from tiebreak.process.children import follow_parent, passing_on
from tiebreak.process.stopping import INTERRUPTED, SIGNALS, as_a_new_process
from tiebreak.upstream import leave_inherited_endings, run_endings

FORK = multiprocessing.get_context("fork")
Answer = dict[str, Any]
SAFE_THREADS = {"jemalloc_bg_thd"}
"""names of threads that survive forks: PyArrow's allocator has one"""


def may_fork() -> bool:
    """Whether a fork of this process, in its current state, can compute."""
    if sys.platform != "linux" or _threads() > 1:
        return False
    if "LOCAL_RANK" in os.environ:  # one of several processes, which belong together
        return False
    import torch

    return not torch.accelerator.is_available()


def _threads() -> int:
    names: list[str] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has just ended
            names.append((task / "comm").read_text().strip())
    return sum(name not in SAFE_THREADS for name in names)


def run_forked(main: Callable[[], object], environment: Mapping[str, str]) -> int:
    """Call `main` in a fork of this process and wait for it. Signals are forwarded to it; it ends with this process.

    Returns:
        its exit status; minus the signal's number if a signal ended it.

    Raises:
        KeyboardInterrupt: after its end, if there was one.
    """
    unheld = signal.pthread_sigmask(signal.SIG_BLOCK, set(SIGNALS))  # until there is a process to forward them to
    process = FORK.Process(target=_as_its_own, args=(main, environment, unheld, os.getpid()))
    try:
        process.start()
        with passing_on(lambda number: os.kill(process.pid or 0, number)) as came:
            signal.pthread_sigmask(signal.SIG_SETMASK, unheld)
            process.join()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unheld)
    if signal.SIGINT in came:
        raise KeyboardInterrupt
    assert process.exitcode is not None
    return process.exitcode


def _as_its_own(
    main: Callable[[], object], environment: Mapping[str, str], unheld: set[signal.Signals], parent: int
) -> None:
    as_a_new_process()
    follow_parent(parent)
    os.environ.update(environment)
    leave_inherited_endings()  # W&B's temporary folder is removed once
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, unheld)
        main()
    except KeyboardInterrupt:  # before handlers were installed
        raise SystemExit(INTERRUPTED) from None
    finally:
        run_endings()


class PreforkedProcess:
    """A process forked early, for work at a time when this one can no longer fork.

    It waits for requests, and ends when it is closed, at the latest with this process.
    """

    def __init__(self, work: Callable[[Any], Answer]) -> None:
        self._pipe, theirs = FORK.Pipe()
        self._process = FORK.Process(target=_wait_and_work, args=(work, theirs, self._pipe), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, request: Any) -> Answer:
        """The answer of `work` to a request; both are JSON.

        Raises:
            RuntimeError: it failed; the message says why.
        """
        try:
            self._pipe.send_bytes(json.dumps(request).encode())
            answer: Answer = json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            self._process.join()
            raise RuntimeError(f"its process ended with status {self._process.exitcode}") from None
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        return dict(answer["done"])

    @property
    def is_alive(self) -> bool:
        """Whether it still accepts requests."""
        return self._process.is_alive()

    def close(self) -> None:
        """Send no further requests; wait for its end."""
        self._pipe.close()
        self._process.join()


def _wait_and_work(work: Callable[[Any], Answer], pipe: Connection, theirs: Connection) -> None:
    as_a_new_process()
    theirs.close()  # otherwise the end of that process would go unnoticed here
    quiet = os.open(os.devnull, os.O_WRONLY)
    while True:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            request = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for stream in (1, 2):
            os.dup2(quiet, stream)
        pipe.send_bytes(json.dumps(answered(work, request)).encode())


def answered(work: Callable[[Any], Answer], request: Any) -> Answer:
    """`{"done": answer}`, or `{"failed": reason}`: the caller decides what that means."""
    try:
        return {"done": work(request)}
    except Exception as error:  # noqa: BLE001
        return {"failed": str(error) if isinstance(error, TiebreakError) else f"{type(error).__name__}: {error}"}
