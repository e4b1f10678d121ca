"""The lead's figures, computed in a separate process, so that raters never wait for them.

    python -m labeling_ui.quality.figures_process             (started by the server; reads requests from standard input)

With a million judgments, agreement takes seconds to compute, and reliability longer. In the server's process, that
would delay every request, since Python runs one thread at a time. So the server requests figures, shows the latest ones,
and receives new ones when they are ready. The process ends with its server, however that ends: its standard input is a
pipe from there.
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
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from labeling_ui.database.errors import StoreError
from labeling_ui.database.schema import GOLD, ITEMS, JUDGMENTS, PAIRS
from labeling_ui.quality.agreement import measure_votes
from labeling_ui.quality.criteria import agreement_by_criterion
from labeling_ui.quality.curves import agreement_by_part, drift, learning_curves
from labeling_ui.quality.intervals import share
from labeling_ui.quality.judges import measure_judges
from labeling_ui.quality.reliability import describe_reliability
from labeling_ui.quality.single import measure_assessments
from labeling_ui.quality.vote_cache import LiveVotes
from labeling_ui.quality.votes import Votes
from labeling_ui.store.pairs.campaign import IDS_AT_ONCE
from labeling_ui.store.store import Store
from tiebreak.assessments import read_judgment, read_pair
from tiebreak.records import Kind, Pair

LARGE_STORE = 20_000
"""From this many judgments on, computing starts with the server, and no request waits for it."""
START_SECONDS = 15.0
"""In a smaller store, a request waits for the figures; most of that is the process's start."""
REST = 10
"""Figures are recomputed once they are this many times older than their computing took, if the log has grown."""
RETRY_SECONDS = 60.0
"""After a process that ended while it computed judges and reliability, they are tried again."""
MOST_VOTES = 20_000
"""Most votes that the reliability models are fitted to; from more, items are drawn at random."""
NICE = 10
"""The process yields to the server and to training beside it."""


class LatestFigures:
    """The figures of a store, recomputed as its log grows. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changed = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._figures: dict[str, Any] = {}
        self._head = "nothing measured"
        self._measured_at = self._fresh_until = 0.0
        self._slow_due: float | None = None
        """when judges and reliability, which are older than agreement, may be computed; None: they are as new"""
        self._busy = False
        """a request is being computed"""
        self._waiting = False
        """and agreement, which comes first, has not arrived yet"""

    def begin(self) -> None:
        """Start computing now if the first request would have to wait."""
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
        """The latest figures, whether newer ones are being computed, and their age in seconds (None: there are none yet).

        Raises:
            StoreError: they could not be computed.
        """
        head = self._store.head()
        with self._changed:
            if not self._busy and self._is_due(head):
                self._ask()
            if not self._is_large():
                self._changed.wait_for(lambda: not self._waiting, START_SECONDS)
            if not self._busy and not self._figures:
                raise StoreError("the figures could not be computed: see the server's output")
            age = round(time.monotonic() - self._measured_at, 1) if self._figures else None
            return {**self._figures, "measuring": self._busy, "age_seconds": age}

    def _is_due(self, head: str) -> bool:
        now = time.monotonic()
        grown = head != self._head and now >= self._fresh_until
        return grown or (self._slow_due is not None and now >= self._slow_due)

    def _is_large(self) -> bool:
        return self._store.judged() >= LARGE_STORE

    def _ask(self) -> None:
        if self._process is None:
            self._process = _start(self._store)
            threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
        self._busy = self._waiting = True
        _say(self._process, "measure")

    def _listen(self, process: subprocess.Popen[str]) -> None:
        """Receive figures until the process ends; the next request then starts another process."""
        for line in process.stdout or ():
            with self._changed:
                self._take(**json.loads(line))
                self._changed.notify_all()
        with self._changed:
            process.communicate()
            if self._busy and not self._waiting:
                self._slow_due = time.monotonic() + RETRY_SECONDS
            self._process, self._busy, self._waiting = None, False, False
            self._changed.notify_all()

    def _take(
        self, figures: dict[str, Any], head: str, seconds: float, more: bool, slow_in: float | None = None
    ) -> None:
        if not self._waiting:
            self._figures |= figures
        else:
            self._figures = {**{name: self._figures.get(name) for name in ("reliability", "judges")}, **figures}
            self._head, self._measured_at, self._waiting = head, time.monotonic(), False
            self._fresh_until = self._measured_at + REST * seconds
        self._slow_due = None if slow_in is None else time.monotonic() + slow_in
        self._busy = more


def _start(store: Store) -> subprocess.Popen[str]:
    command, pipe = [sys.executable, "-m", "labeling_ui.quality.figures_process"], subprocess.PIPE
    # A separate session: Ctrl-C reaches only the server.
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, encoding="utf-8", start_new_session=True)
    # Not an argument, where every user of the machine could read its password.
    _say(process, store.engine.url.render_as_string(hide_password=False))
    return process


def _say(process: subprocess.Popen[str], line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # it has ended: the listener will notice
        print(line, file=process.stdin, flush=True)


# --- in the process ---

_RECORDS = (
    sa.select(JUDGMENTS.c.record, ITEMS.c.pair_id)
    .join(ITEMS, ITEMS.c.id == JUDGMENTS.c.item_id)
    .where(JUDGMENTS.c.occasion == 0, ITEMS.c.withdrawn == sa.literal_column("0"))
)
_NOT_GOLD = ITEMS.c.id.not_in(sa.select(GOLD.c.item_id))


class StoreFigures:
    """Computes the figures of one store, repeatedly."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._votes = LiveVotes(store)
        self._reliable_until = 0.0

    def measure(self) -> Iterator[dict[str, Any]]:
        """The figures in parts: agreement and gold, then judges and reliability, which take longest and are recomputed less
        often. `slow_in`: seconds until those may be computed again, if they are left out; otherwise None."""
        started, head = time.monotonic(), self._store.head()
        by_kind = self._votes.read()
        gold = {rater: share(right, n).as_json() for rater, (right, n) in self._store.gold_agreements().items()}
        single = measure_assessments(self._store.assessments()) if self._store.has_single_answers() else {}
        measured = {**measure_votes(by_kind), "gold": gold, "single_answers": single}
        measured["criteria"] = self._measure_criteria(measured["kind"])
        if (kind := measured["kind"]) is not None:
            measured["batches"] = agreement_by_part(self._votes.by_batch(kind))
            if kind != "simulated":  # whose times are numbers of events
                measured["drift"], measured["curves"] = drift(by_kind[kind]), learning_curves(by_kind[kind])
        figures, due = measured, time.monotonic() >= self._reliable_until
        agreed = time.monotonic()
        slow_in = None if due else self._reliable_until - agreed
        yield {"figures": figures, "head": head, "seconds": agreed - started, "more": due, "slow_in": slow_in}
        if due:
            figures = {"judges": self._measure_judges(), "reliability": self._measure_reliability(by_kind)}
            now = time.monotonic()
            self._reliable_until = now + REST * (now - agreed)
            yield {"figures": figures, "head": head, "seconds": now - agreed, "more": False}

    def _measure_criteria(self, kind: Kind | None) -> dict[str, Any]:
        """Agreement by aspect and criterion, of the latest votes of the kind that the other figures are of."""
        latest = self._store.judgments_with_criteria(MOST_VOTES)
        return agreement_by_criterion([one for one in latest if one.kind == (kind or "human")])

    def _measure_judges(self) -> list[dict[str, Any]]:
        """Each model judge beside people, by its latest verdicts."""
        with self._store.reading() as connection:
            latest = _RECORDS.where(JUDGMENTS.c.kind == "model").order_by(JUDGMENTS.c.seq.desc()).limit(MOST_VOTES)
            rows = list(connection.execute(latest))
            ids = sorted({row.pair_id for row in rows})
            pairs: list[Pair] = []
            for n in range(0, len(ids), IDS_AT_ONCE):
                some = ids[n : n + IDS_AT_ONCE]
                of_people = _RECORDS.where(JUDGMENTS.c.kind != "model", ITEMS.c.pair_id.in_(some), _NOT_GOLD)
                rows += connection.execute(of_people.order_by(JUDGMENTS.c.seq))
                records = connection.scalars(sa.select(PAIRS.c.record).where(PAIRS.c.id.in_(some)))
                pairs += map(read_pair, records)
        return measure_judges(pairs, [read_judgment(row.record) for row in rows])

    def _measure_reliability(self, by_kind: Mapping[Kind, Votes]) -> dict[str, Any]:
        voted = [kind for kind, votes in by_kind.items() if len(votes.cast)]
        return {kind: describe_reliability(self._votes.ballots(kind), most_votes=MOST_VOTES) for kind in voted}


def main() -> None:
    """`python -m labeling_ui.quality.figures_process`: reads the store's URL, then one line per request."""
    os.nice(NICE)
    with contextlib.suppress(
        OSError
    ):  # where Linux shares the processor among sessions, nice alone counts within this one
        Path("/proc/self/autogroup").write_text(str(NICE), encoding="ascii")
    measuring = StoreFigures(Store.open(sys.stdin.readline().rstrip("\n")))
    for _question in sys.stdin:
        for part in measuring.measure():
            print(json.dumps(part), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the server has ended
        main()
