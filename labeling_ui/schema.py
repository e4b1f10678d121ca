"""The tables of the label store and the numbered migrations that make them.

SQLite by default (WAL, `synchronous=FULL`, every writing transaction `BEGIN IMMEDIATE`), Postgres by URL. The SQL
keeps to what both understand; ids are ours, so no table counts for itself. The event log `events` is the truth:
triggers forbid its update and delete, and every row carries the hash of the one before. All other tables can be made
again from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table, Text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import SQLAlchemyError

from tiebreak.errors import TiebreakError

BUSY_TIMEOUT_MS = 15_000
READ_ONLY = {"tiebreak_read_only": True}
"""Execution options of a connection that will not write: its transaction takes no write lock."""

NOT_DURABLE = {"tiebreak_durable": False}
"""Execution options of a transaction that a crash of the machine may undo (`synchronous=NORMAL`)."""

METADATA = MetaData()

SCHEMA_MIGRATIONS = Table(
    "schema_migrations",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("applied_at_ms", BigInteger),
)
SETTINGS = Table("settings", METADATA, Column("name", String, primary_key=True), Column("value", Text))
PAIRS = Table(
    "pairs",
    METADATA,
    Column("id", String, primary_key=True),
    Column("position", Integer),
    Column("record", Text),
)
ITEMS = Table(
    "items",
    METADATA,
    Column("id", String, primary_key=True),
    Column("pair_id", String),
    Column("position", Integer),
    Column("first_id", String),
    Column("second_id", String),
    Column("overlap", Integer),
    Column("taken", Integer),
)
RATERS = Table(
    "raters",
    METADATA,
    Column("id", String, primary_key=True),
    Column("name", String),
    Column("kind", String),
    Column("role", String),
    Column("password_hash", String),
    Column("disabled", Integer),
    Column("cursor", Integer),
    Column("created_at_ms", BigInteger),
)
ASSIGNMENTS = Table(
    "assignments",
    METADATA,
    Column("id", String, primary_key=True),
    Column("item_id", String),
    Column("rater_id", String),
    Column("occasion", Integer),
    Column("left_id", String),
    Column("right_id", String),
    Column("state", String),
    Column("lease_until_ms", BigInteger),
    Column("seq", Integer),
)
JUDGMENTS = Table(
    "judgments",
    METADATA,
    Column("id", String, primary_key=True),
    Column("assignment_id", String),
    Column("item_id", String),
    Column("rater_id", String),
    Column("kind", String),
    Column("record", Text),
    Column("seq", Integer),
)
SUBMISSIONS = Table(
    "submissions",
    METADATA,
    Column("rater_id", String, primary_key=True),
    Column("client_id", String, primary_key=True),
    Column("judgment_id", String),
    Column("body_hash", String),
)
DRAFTS = Table(
    "drafts",
    METADATA,
    Column("assignment_id", String, primary_key=True),
    Column("body", Text),
    Column("at_ms", BigInteger),
)
SESSIONS = Table(
    "sessions",
    METADATA,
    Column("token_hash", String, primary_key=True),
    Column("rater_id", String),
    Column("csrf_token", String),
    Column("expires_at_ms", BigInteger),
)
ACCEPTANCES = Table(
    "acceptances",
    METADATA,
    Column("rater_id", String, primary_key=True),
    Column("version", String),
    Column("at_ms", BigInteger),
)
EVENTS = Table(
    "events",
    METADATA,
    Column("seq", Integer, primary_key=True),
    Column("at_ms", BigInteger),
    Column("kind", String),
    Column("rater_id", String),
    Column("item_id", String),
    Column("payload", Text),
    Column("previous", String),
    Column("hash", String),
)
LOG_HEAD = Table(
    "log_head",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("seq", Integer),
    Column("hash", String),
)


class StoreError(TiebreakError):
    """The label store cannot be opened, is of another campaign or a newer version, or has been tampered with."""


def build_engine(url: str) -> Engine:
    """An engine whose transactions are what the store relies on.

    Raises:
        StoreError: the URL cannot be understood, or its driver is not installed.
    """
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return sa.create_engine(parsed)
        if not parsed.database or parsed.database == ":memory:":
            raise StoreError(
                f"{url}: a label store in memory would lose every judgment; name a file: sqlite:///labels.sqlite"
            )
        patience = {"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False}
        engine = sa.create_engine(parsed, connect_args=patience, pool_size=50)
    except (SQLAlchemyError, ImportError) as error:
        raise StoreError(
            f"cannot open the label store {url}: {error}. Give sqlite:///FILE or postgresql+psycopg://…"
        ) from error
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: DBAPIConnection, _record: object) -> None:
    connection.isolation_level = None  # sqlite3 begins nothing by itself: _begin_sqlite does
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_TIMEOUT_MS}", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    synchronous = "FULL" if options.get("tiebreak_durable", True) else "NORMAL"
    if connection.info.get("synchronous", "FULL") != synchronous:
        connection.exec_driver_sql(f"PRAGMA synchronous={synchronous}")
        connection.info["synchronous"] = synchronous
    # A transaction that reads first and writes later would fail when another wrote in between: take the lock at once.
    connection.exec_driver_sql("BEGIN" if options.get("tiebreak_read_only") else "BEGIN IMMEDIATE")


# --- migrations ---

_FIRST_TABLES = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE pairs (id TEXT PRIMARY KEY, position INTEGER NOT NULL UNIQUE, record TEXT NOT NULL);
CREATE TABLE items (
  id TEXT PRIMARY KEY, pair_id TEXT NOT NULL REFERENCES pairs (id), position INTEGER NOT NULL UNIQUE,
  first_id TEXT NOT NULL, second_id TEXT NOT NULL,
  overlap INTEGER NOT NULL CHECK (overlap >= 1),
  taken INTEGER NOT NULL DEFAULT 0 CHECK (taken >= 0 AND taken <= overlap));
CREATE INDEX items_open ON items (position) WHERE taken < overlap;
CREATE TABLE raters (
  id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL CHECK (kind IN ('human', 'simulated', 'model')),
  role TEXT NOT NULL CHECK (role IN ('rater', 'lead')), password_hash TEXT, disabled INTEGER NOT NULL DEFAULT 0,
  cursor INTEGER NOT NULL DEFAULT 0, created_at_ms BIGINT NOT NULL);
CREATE TABLE assignments (
  id TEXT PRIMARY KEY, item_id TEXT NOT NULL REFERENCES items (id), rater_id TEXT NOT NULL REFERENCES raters (id),
  occasion INTEGER NOT NULL DEFAULT 0, left_id TEXT NOT NULL, right_id TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('open', 'done', 'lapsed')),
  lease_until_ms BIGINT NOT NULL, seq INTEGER NOT NULL, UNIQUE (item_id, rater_id, occasion));
CREATE INDEX assignments_waiting ON assignments (rater_id, seq) WHERE state <> 'done';
CREATE INDEX assignments_leases ON assignments (lease_until_ms) WHERE state = 'open';
CREATE TABLE judgments (
  id TEXT PRIMARY KEY, assignment_id TEXT NOT NULL UNIQUE REFERENCES assignments (id), item_id TEXT NOT NULL,
  rater_id TEXT NOT NULL, kind TEXT NOT NULL CHECK (kind IN ('human', 'simulated', 'model')), record TEXT NOT NULL,
  seq INTEGER NOT NULL);
CREATE INDEX judgments_of_item ON judgments (item_id);
CREATE INDEX judgments_of_rater ON judgments (rater_id, seq);
CREATE TABLE submissions (
  rater_id TEXT NOT NULL, client_id TEXT NOT NULL, judgment_id TEXT NOT NULL, body_hash TEXT NOT NULL,
  PRIMARY KEY (rater_id, client_id));
CREATE TABLE drafts (assignment_id TEXT PRIMARY KEY REFERENCES assignments (id), body TEXT NOT NULL,
  at_ms BIGINT NOT NULL);
CREATE TABLE sessions (
  token_hash TEXT PRIMARY KEY, rater_id TEXT NOT NULL REFERENCES raters (id), csrf_token TEXT NOT NULL,
  expires_at_ms BIGINT NOT NULL);
CREATE TABLE acceptances (
  rater_id TEXT PRIMARY KEY REFERENCES raters (id), version TEXT NOT NULL, at_ms BIGINT NOT NULL);
CREATE TABLE events (
  seq INTEGER PRIMARY KEY, at_ms BIGINT NOT NULL, kind TEXT NOT NULL, rater_id TEXT, item_id TEXT,
  payload TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL UNIQUE);
CREATE TABLE log_head (id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL, hash TEXT NOT NULL);
INSERT INTO log_head (id, seq, hash) VALUES (1, 0, '');
"""

_SQLITE_TRIGGERS = (
    "CREATE TRIGGER events_no_update BEFORE UPDATE ON events "
    "BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END",
    "CREATE TRIGGER events_no_delete BEFORE DELETE ON events "
    "BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END",
)
_POSTGRES_TRIGGERS = (
    "CREATE FUNCTION events_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'the event log is append-only'; END $$",
    "CREATE TRIGGER events_no_change BEFORE UPDATE OR DELETE ON events "
    "FOR EACH ROW EXECUTE FUNCTION events_append_only()",
    "CREATE TRIGGER events_no_truncate BEFORE TRUNCATE ON events EXECUTE FUNCTION events_append_only()",
)


def _migrate_001_first_tables(connection: Connection) -> None:
    for statement in _FIRST_TABLES.split(";\n"):
        if statement.strip():
            connection.exec_driver_sql(statement)
    triggers = _SQLITE_TRIGGERS if connection.dialect.name == "sqlite" else _POSTGRES_TRIGGERS
    for trigger in triggers:
        connection.exec_driver_sql(trigger)


def _migrate_002_repeats(connection: Connection) -> None:
    connection.exec_driver_sql("CREATE INDEX assignments_repeats ON assignments (rater_id) WHERE occasion > 0")


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (_migrate_001_first_tables, _migrate_002_repeats)


def migrate(engine: Engine, url: str) -> None:
    """Bring the store to this version's schema, all in one transaction.

    Raises:
        StoreError: it was made by a newer version, is not a label store, or cannot be opened.
    """
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "CREATE TABLE IF NOT EXISTS schema_migrations "
                "(number INTEGER PRIMARY KEY, applied_at_ms BIGINT NOT NULL)"
            )
            applied = connection.scalar(sa.select(sa.func.max(SCHEMA_MIGRATIONS.c.number))) or 0
            if applied > len(MIGRATIONS):
                raise StoreError(
                    f"the label store {url} is of schema {applied}, and this version knows {len(MIGRATIONS)}: "
                    "update Tiebreak"
                )
            for number, step in enumerate(MIGRATIONS[applied:], start=applied + 1):
                step(connection)
                row = {"number": number, "applied_at_ms": int(time.time() * 1000)}
                connection.execute(sa.insert(SCHEMA_MIGRATIONS).values(row))
    except SQLAlchemyError as error:
        raise StoreError(f"cannot open the label store {url}: {error.__cause__ or error}") from error
