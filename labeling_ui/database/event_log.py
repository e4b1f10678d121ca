"""The event log, and the transactions that append to it.

Every change of a label store is one transaction: it appends to the hash-chained table `events` and updates the tables
derived from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError

from labeling_ui.database.prepared import PreparedStatement
from labeling_ui.database.schema import EVENTS, LOG_HEAD, SETTINGS
from tiebreak.hashing import canonical_json

EventKind = Literal[
    "campaign_begun", "overlap_changed", "pairs_added", "batch_changed", "gold_set", "gold_removed",
    "pairs_moved", "pairs_withdrawn", "pairs_restored", "pair_corrected",
    "rater_added", "rater_disabled", "rater_enabled", "rater_moved", "password_reset", "role_changed", "invited",
    "invitation_revoked", "second_factor_set", "second_factor_removed",
    "published", "guidelines_accepted", "consent_given", "consent_withdrawn", "erased",
    "identity_linked", "identity_unlinked",
    "assigned", "reopened", "renewed", "lapsed", "shown", "draft",
    "submitted", "skipped", "flagged", "amended", "undone", "rejected", "unrejected", "adjudicated", "settlement_removed",
    "imported", "asked", "answered",
    "inspection_planned", "inspection_decided", "standing_changed", "review_sampled", "note",
]  # fmt: skip

_HEAD = PreparedStatement(sa.select(LOG_HEAD.c.seq, LOG_HEAD.c.hash).with_for_update())
_MOVE_HEAD = PreparedStatement(sa.update(LOG_HEAD).values(seq=sa.bindparam("to_seq"), hash=sa.bindparam("to_hash")))
_ADD_EVENT = PreparedStatement(sa.insert(EVENTS))
_SAVE = PreparedStatement(sa.text("SAVEPOINT part"))
_ROLL_BACK = PreparedStatement(sa.text("ROLLBACK TO SAVEPOINT part"))
_RELEASE = PreparedStatement(sa.text("RELEASE SAVEPOINT part"))


class Transaction:
    """A writing transaction: its connection, and the log it appends to.

    On Postgres, the first event locks the log's head, so that there is one chain. Items are locked before it, or skipped
    where another transaction holds them (`SKIP LOCKED`), so that two transactions seldom wait for each other; where they
    do, for the last items of a campaign, Postgres aborts one and `Store.transact` retries it.
    """

    def __init__(self, connection: Connection, clock: Callable[[], int] | None) -> None:
        self.connection = connection
        self._clock = clock
        self._head: tuple[int, str] | None = None
        self._written: tuple[int, str] | None = None
        self._settings: dict[str, Any] = {}

    @property
    def seq(self) -> int:
        """The number of the latest event."""
        return self._locked_head()[0]

    def now(self) -> int:
        """Milliseconds since 1970, or the next event's number where the log is the clock."""
        return self._clock() if self._clock else self.seq + 1

    def seconds_since(self, at_ms: int) -> float | None:
        """Seconds since a time in the log; None where the log is the clock."""
        return (self.now() - at_ms) / 1000 if self._clock else None

    def event(
        self, kind: EventKind, *, payload: dict[str, Any], rater_id: str | None = None, item_id: str | None = None
    ) -> int:
        """Append to the log; returns the event's time in milliseconds."""
        seq, previous = self._locked_head()
        at_ms = self.now()
        text = canonical_json(payload)
        digest = event_hash(previous, seq + 1, at_ms, kind, rater_id, item_id, text)
        row = {"at_ms": at_ms, "kind": kind, "rater_id": rater_id, "item_id": item_id, "payload": text}
        _ADD_EVENT.do(self.connection, seq=seq + 1, previous=previous, hash=digest, **row)
        self._head = seq + 1, digest
        return at_ms

    @contextlib.contextmanager
    def savepoint(self) -> Iterator[None]:
        """Rolls back only this part on an error, including the end of the log."""
        head, written = self._head, self._written
        _SAVE.do(self.connection)
        try:
            yield
        except OperationalError:
            raise  # a full disk, a deadlock: the database has aborted the whole transaction
        except BaseException:
            _ROLL_BACK.do(self.connection)
            _RELEASE.do(self.connection)
            self._head, self._written = head, written
            raise
        _RELEASE.do(self.connection)

    def write_head(self) -> None:
        """Write the log's head."""
        if self._head is not None and self._head != self._written:
            _MOVE_HEAD.do(self.connection, to_seq=self._head[0], to_hash=self._head[1])

    def setting(self, name: str) -> Any:
        """One of the campaign's settings."""
        if not self._settings:
            rows = self.connection.execute(sa.select(SETTINGS.c.name, SETTINGS.c.value)).all()
            self._settings = {row.name: json.loads(row.value) for row in rows}
        return self._settings[name]

    def _locked_head(self) -> tuple[int, str]:
        if self._head is None:
            row = _HEAD.one(self.connection)
            self._head = self._written = row.seq, row.hash
        return self._head


def event_hash(
    previous: str, seq: int, at_ms: int, kind: str, rater_id: str | None, item_id: str | None, payload: str
) -> str:
    """sha256 over an event and the previous event's hash."""
    return hashlib.sha256(canonical_json([previous, seq, at_ms, kind, rater_id, item_id, payload]).encode()).hexdigest()
