"""The tables of the label store, and its engine.

SQLite by default (WAL, every writing transaction `BEGIN IMMEDIATE`), Postgres by URL. The SQL is common to both; ids are
ours, so no table has an automatic counter. The event log `events` is the source of truth: triggers forbid updates and
deletes, and every row carries the previous row's hash. All other tables can be rebuilt from it.
"""

from __future__ import annotations

import os
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import BigInteger, Column, Integer, LargeBinary, MetaData, String, Table, Text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import SQLAlchemyError

from labeling_ui.database.errors import StoreError

IMPORTED_AT_MS = -1
"""Judgments made elsewhere have no time: they count towards no day."""

BUSY_TIMEOUT_MS = 15_000
PAGES_TO_CHECKPOINT = 8_000
HOUR_MS = 3_600_000
MAX_PRIORITY = 100
SKIPS_TO_LEAD = 3
"""A pair that this many raters have skipped waits for a lead."""
READ_ONLY = {"tiebreak_read_only": True}
"""Execution options of a read-only connection: its transaction takes no write lock."""

ONE_STATEMENT = {"tiebreak_one_statement": True}
"""Execution options of a connection for one read: one statement sees one state without a transaction."""

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
    Column("task", String),
    Column("batch", String),
    Column("pool", String),
    Column("turn", BigInteger),
    Column("offered", Integer),
    Column("freed", Integer),
    Column("for_first", Integer),
    Column("for_second", Integer),
    Column("for_neither", Integer),
    Column("disputed", Integer),
    Column("skips", Integer),
    Column("withdrawn", Integer),
    Column("length", Integer),
)
WITHDRAWALS = Table(
    "withdrawals",
    METADATA,
    Column("pair_id", String, primary_key=True),
    Column("reason", Text),
    Column("replaced_by", String),
    Column("at_ms", BigInteger),
)
BATCHES = Table(
    "batches",
    METADATA,
    Column("name", String, primary_key=True),
    Column("priority", Integer),
    Column("pool", String),
    Column("overlap", Integer),
    Column("paused", Integer),
    Column("deadline", String),
    Column("goal", Integer),
)
GOLD = Table(
    "gold",
    METADATA,
    Column("item_id", String, primary_key=True),
    Column("preferred_id", String),
    Column("number", Integer),
    Column("value", Text),
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
    Column("cursor", BigInteger),
    Column("created_at_ms", BigInteger),
    Column("pool", String),
    Column("judged", Integer),
    Column("standing", String),
    Column("standing_seq", Integer),
    Column("standing_note", Text),
    Column("erased_at_ms", BigInteger),
)
INVITATIONS = Table(
    "invitations",
    METADATA,
    Column("token_hash", String, primary_key=True),
    Column("role", String),
    Column("pool", String),
    Column("expires_at_ms", BigInteger),
    Column("used_by", String),
    Column("name", String),
    Column("made_at_ms", BigInteger),
    Column("revoked", Integer),
    Column("email", String),
    Column("subject", String),
)
IDENTITIES = Table(
    "identities",
    METADATA,
    Column("issuer", String, primary_key=True),
    Column("subject", String, primary_key=True),
    Column("rater_id", String),
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
    Column("shown", Text),
    Column("shown_at_ms", BigInteger),
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
    Column("occasion", Integer),
    Column("vote", Integer),
    Column("at_ms", BigInteger),
    Column("active_ms", BigInteger),
    Column("idle_ms", BigInteger),
)
REJECTIONS = Table(
    "rejections",
    METADATA,
    Column("id", String, primary_key=True),
    Column("assignment_id", String),
    Column("item_id", String),
    Column("rater_id", String),
    Column("kind", String),
    Column("record", Text),
    Column("seq", Integer),
    Column("occasion", Integer),
    Column("vote", Integer),
    Column("at_ms", BigInteger),
    Column("active_ms", BigInteger),
    Column("idle_ms", BigInteger),
    Column("reason", Text),
    Column("by_id", String),
    Column("rejected_at_ms", BigInteger),
)
ERASED = "the rater's data were erased"
"""The reason of rejections that come with an erasure; none of them is taken back."""
REASON_REMOVED = "the lead's reason went with the rater's data"
"""The reason of a rejection from before an erasure."""
RATER_HOURS = Table(
    "rater_hours",
    METADATA,
    Column("rater_id", String, primary_key=True),
    Column("hour", Integer, primary_key=True),
    Column("judged", Integer),
    Column("active_ms", BigInteger),
    Column("idle_ms", BigInteger),
)
ADJUDICATIONS = Table(
    "adjudications",
    METADATA,
    Column("item_id", String, primary_key=True),
    Column("lead_id", String),
    Column("record", Text),
    Column("seq", Integer),
    Column("at_ms", BigInteger),
)
REVIEW_SAMPLE = Table(
    "review_sample",
    METADATA,
    Column("item_id", String, primary_key=True),
    Column("at_ms", BigInteger),
)
TURNS = Table(
    "turns",
    METADATA,
    Column("id", String, primary_key=True),
    Column("conversation_id", String),
    Column("rater_id", String),
    Column("number", Integer),
    Column("messages", Text),
    Column("state", String),
    Column("asked_at_ms", BigInteger),
    Column("taken_until_ms", BigInteger),
    Column("pair_id", String),
    Column("error", Text),
)
MEDIA_FILES = Table(
    "media_files",
    METADATA,
    Column("sha256", String, primary_key=True),
    Column("media_type", String),
    Column("width", Integer),
    Column("height", Integer),
    Column("content", LargeBinary),
)
MEDIA_NAMES = Table(
    "media_names",
    METADATA,
    Column("name", String, primary_key=True),
    Column("sha256", String),
    Column("source_sha256", String),
    Column("alt", String),
    # for pairs that refer to the file without a description of their own
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
    Column("began_at_ms", BigInteger),
)
MAIL_ADDRESSES = Table(
    "mail_addresses",
    METADATA,
    Column("rater_id", String, primary_key=True),
    Column("email", String),
    Column("code_hash", String),
    Column("code_until_ms", BigInteger),
    Column("tries", Integer),
    Column("confirmed_at_ms", BigInteger),  # NULL: nothing but the code is sent to it
    Column("waits", Integer),  # 1: had nothing left to judge, and gets a notice when there is work
    Column("sent_at_ms", BigInteger),
)
SECOND_FACTORS = Table(
    "second_factors",
    METADATA,
    Column("rater_id", String, primary_key=True),
    Column("secret", String),
    Column("confirmed_at_ms", BigInteger),
    Column("last_step", BigInteger),
)
ACCEPTANCES = Table(
    "acceptances",
    METADATA,
    Column("rater_id", String, primary_key=True),
    Column("document", String, primary_key=True),
    Column("version", String),
    Column("at_ms", BigInteger),
)
DOCUMENTS = Table(
    "documents",
    METADATA,
    Column("document", String, primary_key=True),
    Column("version", String, primary_key=True),
    Column("text", Text),
    Column("at_ms", BigInteger),
)
PUBLICATIONS = Table(
    "publications",
    METADATA,
    Column("seq", Integer, primary_key=True),
    Column("document", String),
    Column("version", String),
    Column("by_id", String),
    Column("configured", Integer),
    Column("at_ms", BigInteger),
)
CONSENT_WITHDRAWALS = Table(
    "consent_withdrawals",
    METADATA,
    Column("rater_id", String, primary_key=True),
    Column("judgments", Integer),
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
ANSWERS_INDEXED = "'submitted', 'skipped', 'amended', 'imported'"
"""Kinds of events that contain a judgment, in the words of an index: with parameters, SQLite would read the whole log."""
REASONS_INDEXED = "'adjudicated', 'rejected'"
"""Kinds of events with a lead's reason, likewise."""
LOG_HEAD = Table(
    "log_head",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("seq", Integer),
    Column("hash", String),
)


def build_engine(url: str) -> Engine:
    """An engine with the transactions that the store relies on.

    Raises:
        StoreError: the URL is invalid, or its driver is not installed.
    """
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return sa.create_engine(parsed, pool_size=20, pool_pre_ping=True)
        if not parsed.database or parsed.database == ":memory:":
            raise StoreError(
                f"{url}: a label store in memory would lose every judgment; name a file: sqlite:///labels.sqlite"
            )
        patience = {"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False}
        engine = sa.create_engine(parsed, connect_args=patience, pool_size=50)
    except ImportError as error:
        raise StoreError(
            f"the driver of the label store's database is not installed ({error.name}): "
            "for postgresql+psycopg://…, pip install 'tiebreak[postgres]'"
        ) from error
    except SQLAlchemyError as error:
        raise StoreError(
            f"invalid URL of a label store: {error}. Give sqlite:///FILE or postgresql+psycopg://…"
        ) from error
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: DBAPIConnection, _record: object) -> None:
    connection.isolation_level = None  # sqlite3 starts no transaction: _begin_sqlite does
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    row = cursor.fetchone()
    # NORMAL: the store itself flushes after the commit, when others may write again (`flush_to_disk`).
    # Where the file system does not support WAL, there is no log to flush.
    synchronous = "NORMAL" if row is not None and row[0] == "wal" else "FULL"
    settings = f"wal_autocheckpoint={PAGES_TO_CHECKPOINT}", f"busy_timeout={BUSY_TIMEOUT_MS}", "foreign_keys=ON"
    for pragma in (f"synchronous={synchronous}", *settings):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later would fail if another wrote in between: take the lock at once.
    options = connection.get_execution_options()
    if not options.get("tiebreak_one_statement"):
        connection.exec_driver_sql("BEGIN" if options.get("tiebreak_read_only") else "BEGIN IMMEDIATE")


def flush_to_disk(log: Path) -> None:
    """Return once every transaction committed so far to a SQLite file is on disk.

    SQLite's own `synchronous=FULL` waits for the disk while holding the write lock, one writer after another. Here, the
    commit writes the log and releases the lock before the wait; writers that wait at the same time share one flush. A log
    that no longer exists was checkpointed into the database, which is on disk by then.

    Args:
        log: the database's `-wal` file.

    Raises:
        OSError: the disk does not confirm the flush.
    """
    try:
        file = os.open(log, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fdatasync(file)
    finally:
        os.close(file)


# --- migrations ---


FIRST_TURN = MAX_PRIORITY << 32
"""The turn of the first item of priority 0. Higher priorities come before it, in steps of 2^32."""


def turn_of(priority: int, position: int) -> int:
    """An item's place in the order of assignment: by priority, then as added."""
    return (MAX_PRIORITY - priority << 32) + position


def vote_of(answer: int | None, *, skip: bool, left_is_first: bool) -> int | None:
    """An answer about the sides shown, as a vote on the item's completions: +3 first much better … −3 second.

    0 is a tie or both bad; None is a skip.
    """
    if skip:
        return None
    if answer is None:
        return 0
    return -answer if left_is_first else answer
