"""Statements of the hot path, compiled once and run by the driver.

SQLAlchemy's execution takes several times as long as the statement.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.exc import DBAPIError


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
