"""The lead's figures, measured in a process of their own: raters never wait for them.

    python -m labeling_ui.quality.measuring             (started by the server; reads its questions from standard input)

Among a million judgments agreement takes seconds to measure, and the models of raters take more. In the server's own
process that would hold up every request: Python runs one thread at a time, and each of the many short waits of a
request would end behind the one that counts. So the server asks, shows what it has, and is told when there is more. The
process ends with the server that started it, whatever ends that: its standard input is a pipe from there.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from labeling_ui.quality.agreement import measure_votes
from labeling_ui.quality.intervals import share
from labeling_ui.quality.reliability import describe_reliability
from labeling_ui.quality.vote_cache import LiveVotes
from labeling_ui.quality.votes import Votes
from labeling_ui.store.schema import StoreError
from labeling_ui.store.store import Store
from tiebreak.records import Kind

LARGE_STORE = 20_000
"""Judgments that take a while to measure: it begins as soon as the server starts, and a request waits for none of it."""
START_SECONDS = 15.0
"""In a smaller store a request waits for the figures: the most of that is the process's start."""
REST = 10
"""Figures are measured again when they are so many times older than they took to measure, and something has happened."""
MOST_VOTES = 20_000
"""The models of raters are fitted to so many votes; of more, to a random part of the items."""
NICE = 10
"""The process gives way to the server and to trainers beside it."""


class LatestFigures:
    """The figures of a store, measured anew when something has happened. Safe to share between threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changed = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._figures: dict[str, Any] = {}
        self._head = "nothing measured"
        self._measured_at = self._fresh_until = 0.0
        self._busy = False
        """something is being measured"""
        self._waiting = False
        """and agreement, which comes first, is not there yet"""

    def begin(self) -> None:
        """Where the first look would have to wait, measure at once."""
        with self._changed:
            if self._is_large():
                self._ask()

    def close(self) -> None:
        """End the process."""
        with self._changed:
            process = self._process
        if process is not None:
            process.terminate()
            process.wait()

    def __call__(self) -> dict[str, Any]:
        """The latest figures, whether newer ones are being measured, and how many seconds old these are (None: there
        are none yet).

        Raises:
            StoreError: they could not be measured.
        """
        head = self._store.head()
        with self._changed:
            if head != self._head and not self._busy and time.monotonic() >= self._fresh_until:
                self._ask()
            if not self._is_large():
                self._changed.wait_for(lambda: not self._waiting, START_SECONDS)
            if not self._busy and not self._figures:
                raise StoreError("the figures could not be measured: the server's output says why")
            age = round(time.monotonic() - self._measured_at, 1) if self._figures else None
            return {**self._figures, "measuring": self._busy, "age_seconds": age}

    def _is_large(self) -> bool:
        return self._store.judged() >= LARGE_STORE

    def _ask(self) -> None:
        if self._process is None:
            self._process = _start(self._store)
            threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
        self._busy = self._waiting = True
        _say(self._process, "measure")

    def _listen(self, process: subprocess.Popen[str]) -> None:
        """Take what the process tells, until it ends; the next question then starts another."""
        for line in process.stdout or ():
            with self._changed:
                self._take(**json.loads(line))
                self._changed.notify_all()
        with self._changed:
            process.communicate()
            self._process, self._busy, self._waiting = None, False, False
            self._changed.notify_all()

    def _take(self, figures: dict[str, Any], head: str, seconds: float, more: bool) -> None:
        if not self._waiting:
            self._figures |= figures
        else:
            self._figures = {"reliability": self._figures.get("reliability"), **figures}
            self._head, self._measured_at, self._waiting = head, time.monotonic(), False
            self._fresh_until = self._measured_at + REST * seconds
        self._busy = more


def _start(store: Store) -> subprocess.Popen[str]:
    command, pipe = [sys.executable, "-m", "labeling_ui.quality.measuring"], subprocess.PIPE
    # In a session of its own: Ctrl-C is the server's alone.
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, encoding="utf-8", start_new_session=True)
    # Not among the arguments, where everybody on the machine could read its password.
    _say(process, store.engine.url.render_as_string(hide_password=False))
    return process


def _say(process: subprocess.Popen[str], line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # it has ended: whoever listens to it is about to hear so
        print(line, file=process.stdin, flush=True)


# --- in the process ---


class Measuring:
    """The figures of one store, over and over."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._votes = LiveVotes(store)
        self._reliable_until = 0.0

    def measure(self) -> Iterator[dict[str, Any]]:
        """What there is to tell, in parts: agreement and gold, then reliability, which takes longest and rests longest."""
        begun, head = time.monotonic(), self._store.head()
        by_kind = self._votes.read()
        gold = {rater: share(right, n).as_json() for rater, (right, n) in self._store.gold_agreements().items()}
        figures, due = {**measure_votes(by_kind), "gold": gold}, time.monotonic() >= self._reliable_until
        agreed = time.monotonic()
        yield {"figures": figures, "head": head, "seconds": agreed - begun, "more": due}
        if due:
            figures, now = {"reliability": self._measure_reliability(by_kind)}, time.monotonic()
            self._reliable_until = now + REST * (now - agreed)
            yield {"figures": figures, "head": head, "seconds": now - agreed, "more": False}

    def _measure_reliability(self, by_kind: Mapping[Kind, Votes]) -> dict[str, Any]:
        voted = [kind for kind, votes in by_kind.items() if len(votes.cast)]
        return {kind: describe_reliability(self._votes.ballots(kind), most_votes=MOST_VOTES) for kind in voted}


def main() -> None:
    """`python -m labeling_ui.quality.measuring`: the store's URL, then a line for every time that something is to be
    measured."""
    os.nice(NICE)
    measuring = Measuring(Store.open(sys.stdin.readline().rstrip("\n")))
    for _question in sys.stdin:
        for part in measuring.measure():
            print(json.dumps(part), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the server has ended
        main()
