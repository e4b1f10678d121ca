"""The connection of a label store to its database: transactions, and the mark that a running server leaves in the file."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import ONE_STATEMENT, READ_ONLY, SETTINGS, flush_to_disk
from labeling_ui.store.turns import Turn

T = TypeVar("T")
ATTEMPTS = 5
SERVED = "served:"
"""Prefix of the setting by which a running server marks the store."""
_TRY_AGAIN = ("40001", "40P01")
"""Postgres: the two transactions could not be serialised, or deadlocked."""


class TransactionalStore:
    """A database with transactions that append to the event log. Thread-safe; each process opens its own."""

    def __init__(self, engine: Engine, url: str, *, clock: Callable[[], int] | None, had_log: bool = True) -> None:
        """See `Store`."""
        self.engine = engine
        self.url = url
        self._clock = clock
        self._had_log = had_log
        self._mark = ""
        database = engine.url.database if engine.dialect.name == "sqlite" else None
        self._turn = Turn(Path(database)) if database else None
        self._log = Path(f"{database}-wal").absolute() if database else None

    @contextlib.contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[Transaction]:
        """An exclusive writing transaction. Durable: on return it is on disk and survives a crash of the machine.

        Without `durable`, a crash of the machine (not of the process) may undo it: enough for assignments.
        """
        with self._turn or contextlib.nullcontext(), self.engine.begin() as connection:
            transaction = Transaction(connection, self._clock)
            yield transaction
            transaction.write_head()
        if durable and self._log is not None:
            flush_to_disk(self._log)  # Postgres's commit returns once it is on disk, and groups commits itself

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection with a consistent snapshot and no lock."""
        sqlite = self.engine.dialect.name == "sqlite"
        options: dict[str, Any] = READ_ONLY if sqlite else {"isolation_level": "REPEATABLE READ"}
        with self.engine.connect().execution_options(**options) as connection:
            yield connection

    @contextlib.contextmanager
    def reading_once(self) -> Iterator[Connection]:
        """A connection for a single reading statement: half the cost of `reading`."""
        with self.engine.connect().execution_options(**ONE_STATEMENT) as connection:
            yield connection

    def transact(self, work: Callable[[Transaction], T], *, durable: bool = True) -> T:
        """Do `work` in a transaction, retried if the database could not serialise it with others."""
        for attempt in range(ATTEMPTS):
            try:
                with self.writing(durable=durable) as tx:
                    return work(tx)
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in _TRY_AGAIN or attempt == ATTEMPTS - 1:
                    raise
        raise RuntimeError("unreachable")

    def transact_all(self, works: Sequence[Callable[[Transaction], Any]]) -> list[Any]:
        """Do all `works` in one durable transaction, each in a savepoint: one that fails undoes only itself.

        Many raters' judgments then share one flush to disk. Returns each result or exception.

        Raises:
            OperationalError: the database cannot continue (a full disk, a lock that is not released): nothing was stored.
        """

        def do(tx: Transaction) -> list[Any]:
            results: list[Any] = []
            for work in works:
                try:
                    with tx.savepoint():
                        results.append(work(tx))
                except OperationalError:
                    raise
                except Exception as error:  # noqa: BLE001 - returned to whoever asked for this work
                    results.append(error)
            return results

        return self.transact(do)

    # --- the mark of a running server ---

    def begin_serving(self) -> None:
        """Leave a mark in a SQLite file until `close`, by which `verify` recognises a copy that lacks its log."""
        if self._turn is None:
            return
        self._turn.share()
        mark = f"{SERVED}{secrets.token_hex(8)}"
        values = {"name": mark, "value": json.dumps(self._identity())}
        self.transact(lambda tx: tx.connection.execute(sa.insert(SETTINGS).values(**values)))
        self._mark = mark
        with self.reading_once() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")

    def lacks_log(self) -> bool:
        """Whether this is a copy of a file that a server was using, without that file's log."""
        if self._turn is None or self._had_log:
            return False
        return any(mark != self._identity() for mark in self._marks())

    def _marks(self) -> list[Any]:
        query = sa.select(SETTINGS.c.value).where(SETTINGS.c.name.like(f"{SERVED}%"))
        with self.reading_once() as connection:
            return [json.loads(value) for value in connection.scalars(query)]

    def _forget_killed_servers(self) -> None:
        """Remove the marks of servers that no longer run. A file with its log, or in its original place, is complete."""
        if self._turn is not None and self._marks() and not self.lacks_log() and self._turn.is_free():
            marks = sa.delete(SETTINGS).where(SETTINGS.c.name.like(f"{SERVED}%"))
            self.transact(lambda tx: tx.connection.execute(marks))

    def _identity(self) -> list[int]:
        """The file's identity; a copy's is different."""
        status = os.stat(str(self.engine.url.database))
        return [status.st_dev, status.st_ino]

    def close(self) -> None:
        """Close all connections; the last one of a SQLite file writes its log into it."""
        if self._mark:
            mine, self._mark = SETTINGS.c.name == self._mark, ""
            with contextlib.suppress(SQLAlchemyError):  # a full disk: the mark stays
                self.transact(lambda tx: tx.connection.execute(sa.delete(SETTINGS).where(mine)))
        self.engine.dispose()
        if self._turn:
            self._turn.close()
