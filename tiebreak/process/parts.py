"""Work on parts of the data in processes of their own, with the results in the order of the parts.

The processes are forked, so the work may use whatever its parent has loaded. Each has one part at a time; nothing is read
ahead, so memory stays bounded.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, TypeVar

from tiebreak.process.children import follow_parent
from tiebreak.process.stopping import SIGNALS

T = TypeVar("T")
R = TypeVar("R")

if TYPE_CHECKING:
    Pipe = Connection[Any, Any]  # not generic at run time


def cores(most: int) -> int:
    """The number of processes to start: the cores that this process may use, up to `most`."""
    return max(1, min(most, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


def in_parts(work: Callable[[T], R], parts: Iterable[T], processes: int) -> Iterator[R]:
    """`work` of each part, in order. The processes start at once, before any thread that the caller starts later.

    Args:
        processes: 1: in this process.

    Raises:
        Exception: what the work raised; RuntimeError, with the traceback, if that cannot be sent between processes.
    """
    if processes == 1:
        return map(work, parts)
    stack = contextlib.ExitStack()
    return _results(_start(work, processes, stack), parts, stack)


def _results(workers: Sequence[Pipe], parts: Iterable[Any], stack: contextlib.ExitStack) -> Iterator[Any]:
    with stack:
        asked = answered = 0
        for part in parts:
            if asked - answered == len(workers):
                yield _result(workers[answered % len(workers)])
                answered += 1
            workers[asked % len(workers)].send((part,))
            asked += 1
        for number in range(answered, asked):
            yield _result(workers[number % len(workers)])


def _start(work: Callable[[T], R], processes: int, stack: contextlib.ExitStack) -> list[Pipe]:
    context = multiprocessing.get_context("fork")
    here: list[Pipe] = []
    for _ in range(processes):
        ours, theirs = context.Pipe()
        here.append(ours)
        process = context.Process(target=_serve, args=(work, theirs, tuple(here), os.getpid()), daemon=True)
        process.start()
        theirs.close()
        stack.callback(process.join)
        stack.callback(process.terminate)
        stack.callback(ours.close)
    return here


def _serve(work: Callable[[T], R], pipe: Pipe, others: tuple[Pipe, ...], parent: int) -> None:
    """A worker: one part after another, until its parent closes the pipe or ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    follow_parent(parent)
    for other in others:
        other.close()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            (part,) = pipe.recv()
            try:
                answer: tuple[bool, Any] = (True, work(part))
            except Exception as error:  # noqa: BLE001 whatever it is, the parent raises it
                answer = (False, error)
            _send(pipe, answer)


def _send(pipe: Pipe, answer: tuple[bool, Any]) -> None:
    try:
        pipe.send(answer)
    except (AttributeError, TypeError, ValueError):
        pipe.send((False, RuntimeError("".join(traceback.format_exception(answer[1])))))


def _result(worker: Pipe) -> Any:
    try:
        succeeded, result = worker.recv()
    except EOFError:
        raise RuntimeError("a worker process ended early: it was killed, or memory ran out") from None
    if not succeeded:
        raise result
    return result
