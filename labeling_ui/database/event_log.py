"""The event log, and the transactions that append to it.

Every change of a label store is one transaction: it appends to the hash-chained table `events` and updates the tables
derived from it. Statements of the hot path are compiled once and run by the driver: SQLAlchemy's execution takes
several times as long as the statement.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.exc import DBAPIError, OperationalError

from labeling_ui.database.schema import EVENTS, LOG_HEAD, SETTINGS

EventKind = Literal[
    "campaign_begun", "overlap_changed", "pairs_added", "batch_changed", "gold_set", "gold_removed",
    "pairs_moved", "pairs_withdrawn", "pairs_restored", "pair_corrected",
    "rater_added", "rater_disabled", "rater_enabled", "rater_moved", "password_reset", "role_changed", "invited",
    "invitation_revoked", "second_factor_set", "second_factor_removed",
    "published", "guidelines_accepted", "consent_given",
    "assigned", "reopened", "renewed", "lapsed", "shown", "draft",
    "submitted", "skipped", "flagged", "amended", "undone", "rejected", "unrejected", "adjudicated", "settlement_removed",
    "imported", "asked", "answered",
    "inspection_planned", "inspection_decided", "standing_changed", "review_sampled",
]  # fmt: skip


class PreparedStatement:
    """A statement, compiled once per dialect. Its rows are named tuples."""

    def __init__(self, statement: sa.ClauseElement) -> None:
        self._statement = statement
        self._compiled: dict[str, tuple[str, tuple[str, ...] | None, dict[str, Any]]] = {}
        self._row: Any = None

    def run(self, connection: Connection, values: dict[str, Any]) -> Any:
        """The driver's cursor, after execution.

        Raises:
            DBAPIError: as SQLAlchemy raises it.
        """
        dialect = connection.dialect
        if dialect.name not in self._compiled:
            self._compiled[dialect.name] = self._compile(dialect)
        sql, positions, defaults = self._compiled[dialect.name]
        parameters = defaults | values
        cursor = connection.connection.cursor()
        try:
            cursor.execute(sql, parameters if positions is None else tuple([parameters[name] for name in positions]))
        except dialect.loaded_dbapi.Error as error:
            raise DBAPIError.instance(sql, None, error, dialect.loaded_dbapi.Error, dialect=dialect) from error
        return cursor

    def one(self, connection: Connection, **values: Any) -> Any:
        """The first row, or None."""
        cursor = self.run(connection, values)
        row = cursor.fetchone()
        row_tuple = None if row is None else self._named(cursor)._make(row)
        cursor.close()
        return row_tuple

    def all(self, connection: Connection, **values: Any) -> list[Any]:
        """Every row."""
        cursor = self.run(connection, values)
        rows = [self._named(cursor)._make(row) for row in cursor.fetchall()]
        cursor.close()
        return rows

    def do(self, connection: Connection, **values: Any) -> int:
        """Execute; returns the number of rows changed."""
        cursor = self.run(connection, values)
        count: int = cursor.rowcount
        cursor.close()
        return count

    def _compile(self, dialect: Dialect) -> tuple[str, tuple[str, ...] | None, dict[str, Any]]:
        compiled: Any = self._statement.compile(dialect=dialect)
        return str(compiled), tuple(compiled.positiontup) if compiled.positional else None, compiled.params

    def _named(self, cursor: Any) -> Any:
        if self._row is None:
            self._row = namedtuple("Row", [column[0] for column in cursor.description], rename=True)  # type: ignore[misc]
        return self._row


_HEAD = PreparedStatement(sa.select(LOG_HEAD.c.seq, LOG_HEAD.c.hash).with_for_update())
_MOVE_HEAD = PreparedStatement(sa.update(LOG_HEAD).values(seq=sa.bindparam("to_seq"), hash=sa.bindparam("to_hash")))
_ADD_EVENT = PreparedStatement(sa.insert(EVENTS))
_SAVE = PreparedStatement(sa.text("SAVEPOINT part"))
_ROLL_BACK = PreparedStatement(sa.text("ROLLBACK TO SAVEPOINT part"))
_RELEASE = PreparedStatement(sa.text("RELEASE SAVEPOINT part"))
_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


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


def canonical_json(value: object) -> str:
    """The same text for the same value on every machine."""
    return _CANONICAL.encode(value)


def event_hash(
    previous: str, seq: int, at_ms: int, kind: str, rater_id: str | None, item_id: str | None, payload: str
) -> str:
    """sha256 over an event and the previous event's hash."""
    return hashlib.sha256(canonical_json([previous, seq, at_ms, kind, rater_id, item_id, payload]).encode()).hexdigest()
