"""Work on parts in processes: results in order, faults as they were raised, and no worker that outlives its parent."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tiebreak.errors import DataError
from tiebreak.process.parts import in_parts


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_come_in_the_order_of_the_parts(processes: int) -> None:
    def slow_if_even(number: int) -> tuple[int, int]:
        time.sleep(0.01 * (number % 2 == 0))
        return number, os.getpid()

    found = list(in_parts(slow_if_even, range(7), processes))
    assert [number for number, _ in found] == list(range(7))
    pids = {pid for _, pid in found}
    assert len(pids) == processes
    assert (os.getpid() in pids) == (processes == 1)
    assert list(in_parts(slow_if_even, [], processes)) == []


def test_a_fault_in_a_worker_is_raised_as_it_was() -> None:
    def refuse(number: int) -> int:
        if number == 3:
            raise DataError("broken", ["x:1: this", "x:2: that"])
        return number

    results = in_parts(refuse, range(6), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="broken") as caught:
        list(results)
    assert caught.value.faults == ["x:1: this", "x:2: that"]


def test_a_worker_that_is_killed_is_an_error_and_its_sibling_ends() -> None:
    def die(number: int) -> int:
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()

    results = in_parts(die, range(4), 2)
    sibling = next(results)
    with pytest.raises(RuntimeError, match="a worker process ended early"):
        list(results)
    with pytest.raises(ProcessLookupError):
        os.kill(sibling, 0)
