"""Processes that begin with their imports done: what a recipe starts nine times, and a stage once to check what it saved.

torch, transformers, TRL and what stands on them take six seconds of one core to import, so about a minute of the quickstart
went on that. A forked process has them at once, and shares nothing else: it is forked before any model is loaded. Only on
Linux without an accelerator, whose driver does not survive a fork, and only while no thread runs, as a lock that one holds
would stay locked for good. Elsewhere a process starts from nothing.
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
"""names of threads that see to forks themselves: PyArrow's allocator has one"""


def may_fork() -> bool:
    """Whether a fork of this process, as it stands, can compute."""
    if sys.platform != "linux" or _threads() > 1:
        return False
    if "LOCAL_RANK" in os.environ:  # one of several processes, which belong together
        return False
    import torch

    return not torch.accelerator.is_available()


def _threads() -> int:
    names: list[str] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            names.append((task / "comm").read_text().strip())
    return sum(name not in SAFE_THREADS for name in names)


def run_forked(main: Callable[[], object], environment: Mapping[str, str]) -> int:
    """Call `main` in a fork of this process, and wait for its end. Signals are passed on to it; it ends with this one.

    Returns:
        its exit status; minus the signal's number, if one ended it.

    Raises:
        KeyboardInterrupt: after its end, if one came.
    """
    unheld = signal.pthread_sigmask(signal.SIG_BLOCK, set(SIGNALS))  # till there is a process to pass them on to
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
    except KeyboardInterrupt:  # before it could be heeded
        raise SystemExit(INTERRUPTED) from None
    finally:
        run_endings()


class Ahead:
    """A process that is forked now, for work later, when this one can no longer be forked.

    It waits for requests, and ends when it is closed: with this process at the latest.
    """

    def __init__(self, work: Callable[[Any], Answer]) -> None:
        self._pipe, theirs = FORK.Pipe()
        self._process = FORK.Process(target=_wait_and_work, args=(work, theirs, self._pipe), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, request: Any) -> Answer:
        """What `work` answers to a request, both of them JSON.

        Raises:
            RuntimeError: it failed; says why.
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
        """Whether it can be asked."""
        return self._process.is_alive()

    def close(self) -> None:
        """No further request: wait for its end."""
        self._pipe.close()
        self._process.join()


def _wait_and_work(work: Callable[[Any], Answer], pipe: Connection, theirs: Connection) -> None:
    as_a_new_process()
    theirs.close()  # or the end of that process would not be seen here
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
    """`{"done": what work answers}`, or `{"failed": why}`: whoever asked decides what that means."""
    try:
        return {"done": work(request)}
    except Exception as error:  # noqa: BLE001
        return {"failed": str(error) if isinstance(error, TiebreakError) else f"{type(error).__name__}: {error}"}
