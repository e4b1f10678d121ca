"""Numbered migrations that bring a label store to this version's schema, in one transaction."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from labeling_ui.database.errors import StoreError
from labeling_ui.database.schema import (
    ASSIGNMENTS,
    EVENTS,
    FIRST_TURN,
    HOUR_MS,
    ITEMS,
    JUDGMENTS,
    PAIRS,
    PUBLICATIONS,
    RATER_HOURS,
    SCHEMA_MIGRATIONS,
    TURNS,
    vote_of,
)
from labeling_ui.database.words import create_index, index_items, length_of, text_of
from tiebreak.assessments import SingleTask, disagreement
from tiebreak.records import Pair

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
  payload TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL);
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


def allow_redaction(connection: Connection) -> None:
    """Let this transaction change events, until `forbid_redaction`: for the erasure of personal data alone."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("DROP TRIGGER events_no_update")
    else:
        connection.exec_driver_sql("ALTER TABLE events DISABLE TRIGGER events_no_change")


def forbid_redaction(connection: Connection) -> None:
    """Make the log append-only again."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(_SQLITE_TRIGGERS[0])
    else:
        connection.exec_driver_sql("ALTER TABLE events ENABLE TRIGGER events_no_change")


def _run_all(connection: Connection, statements: str) -> None:
    for statement in statements.split(";\n"):
        if statement.strip():
            connection.exec_driver_sql(statement)


def _migrate_001_first_tables(connection: Connection) -> None:
    _run_all(connection, _FIRST_TABLES)
    triggers = _SQLITE_TRIGGERS if connection.dialect.name == "sqlite" else _POSTGRES_TRIGGERS
    for trigger in triggers:
        connection.exec_driver_sql(trigger)


def _migrate_002_repeats(connection: Connection) -> None:
    connection.exec_driver_sql("CREATE INDEX assignments_repeats ON assignments (rater_id) WHERE occasion > 0")


_CAMPAIGNS = """
ALTER TABLE items ADD COLUMN task TEXT NOT NULL DEFAULT 'pair' CHECK (task IN ('pair', 'ranking'));
ALTER TABLE items ADD COLUMN batch TEXT NOT NULL DEFAULT '';
ALTER TABLE items ADD COLUMN pool TEXT NOT NULL DEFAULT '';
ALTER TABLE items ADD COLUMN turn BIGINT NOT NULL DEFAULT 0;
ALTER TABLE items ADD COLUMN offered INTEGER NOT NULL DEFAULT 1;
ALTER TABLE items ADD COLUMN freed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE items ADD COLUMN for_first INTEGER NOT NULL DEFAULT 0;
ALTER TABLE items ADD COLUMN for_second INTEGER NOT NULL DEFAULT 0;
ALTER TABLE items ADD COLUMN for_neither INTEGER NOT NULL DEFAULT 0;
ALTER TABLE items ADD COLUMN disputed INTEGER NOT NULL DEFAULT 0;
DROP INDEX items_open;
CREATE INDEX items_open ON items (pool, turn) WHERE taken < overlap AND offered = 1;
CREATE INDEX items_freed ON items (turn) WHERE freed = 1;
CREATE INDEX items_disputed ON items (disputed DESC, turn) WHERE disputed > 0;
CREATE TABLE batches (
  name TEXT PRIMARY KEY, priority INTEGER NOT NULL, pool TEXT NOT NULL, overlap INTEGER NOT NULL,
  paused INTEGER NOT NULL DEFAULT 0);
CREATE TABLE gold (
  item_id TEXT PRIMARY KEY REFERENCES items (id), preferred_id TEXT, number INTEGER NOT NULL UNIQUE);
ALTER TABLE raters ADD COLUMN pool TEXT NOT NULL DEFAULT '';
ALTER TABLE raters ADD COLUMN judged INTEGER NOT NULL DEFAULT 0;
CREATE TABLE invitations (
  token_hash TEXT PRIMARY KEY, role TEXT NOT NULL CHECK (role IN ('rater', 'lead')), pool TEXT NOT NULL,
  expires_at_ms BIGINT NOT NULL, used_by TEXT);
ALTER TABLE assignments ADD COLUMN shown TEXT NOT NULL DEFAULT '';
ALTER TABLE assignments ADD COLUMN shown_at_ms BIGINT;
ALTER TABLE judgments ADD COLUMN occasion INTEGER NOT NULL DEFAULT 0;
ALTER TABLE judgments ADD COLUMN vote INTEGER;
ALTER TABLE judgments ADD COLUMN at_ms BIGINT NOT NULL DEFAULT 0;
ALTER TABLE judgments ADD COLUMN active_ms BIGINT NOT NULL DEFAULT 0;
ALTER TABLE judgments ADD COLUMN idle_ms BIGINT NOT NULL DEFAULT 0;
CREATE TABLE rater_hours (
  rater_id TEXT NOT NULL, hour INTEGER NOT NULL, judged INTEGER NOT NULL DEFAULT 0, active_ms BIGINT NOT NULL DEFAULT 0,
  idle_ms BIGINT NOT NULL DEFAULT 0, PRIMARY KEY (rater_id, hour));
CREATE TABLE adjudications (
  item_id TEXT PRIMARY KEY REFERENCES items (id), lead_id TEXT NOT NULL, record TEXT NOT NULL, seq INTEGER NOT NULL,
  at_ms BIGINT NOT NULL);
ALTER TABLE acceptances RENAME TO acceptances_before;
CREATE TABLE acceptances (
  rater_id TEXT NOT NULL REFERENCES raters (id), document TEXT NOT NULL CHECK (document IN ('guidelines', 'consent')),
  version TEXT NOT NULL, at_ms BIGINT NOT NULL, PRIMARY KEY (rater_id, document));
INSERT INTO acceptances (rater_id, document, version, at_ms)
  SELECT rater_id, 'guidelines', version, at_ms FROM acceptances_before;
DROP TABLE acceptances_before;
"""


def _migrate_003_campaigns(connection: Connection) -> None:
    _run_all(connection, _CAMPAIGNS)
    if connection.dialect.name != "sqlite":
        connection.exec_driver_sql("ALTER TABLE raters ALTER COLUMN cursor TYPE BIGINT")
    connection.exec_driver_sql(f"UPDATE items SET turn = position + {FIRST_TURN}")
    connection.exec_driver_sql("UPDATE raters SET cursor = 0")
    _count_what_is_there(connection)


def _count_what_is_there(connection: Connection) -> None:
    """Fill this migration's new columns from the records and the log."""
    times = {row.seq: row.at_ms for row in connection.execute(sa.select(EVENTS.c.seq, EVENTS.c.at_ms))}
    query = sa.select(JUDGMENTS.c.id, JUDGMENTS.c.record, JUDGMENTS.c.seq, ASSIGNMENTS.c.occasion, ITEMS.c.first_id)
    query = query.join(ASSIGNMENTS, ASSIGNMENTS.c.id == JUDGMENTS.c.assignment_id)
    for row in connection.execute(query.join(ITEMS, ITEMS.c.id == JUDGMENTS.c.item_id)).all():
        record = json.loads(row.record)
        vote = vote_of(record["answer"], skip=record["skip"], left_is_first=record["left"] == row.first_id)
        counted = {"vote": vote, "at_ms": times[row.seq], "occasion": row.occasion}
        if not row.id.startswith("imported-"):
            counted["active_ms"] = round(1000 * (record.get("seconds_active") or 0))
        connection.execute(sa.update(JUDGMENTS).where(JUDGMENTS.c.id == row.id).values(**counted))
    _run_all(connection, _RECOUNT)
    _count_hours(connection)


_RECOUNT = """
UPDATE raters SET judged = (SELECT count(*) FROM judgments WHERE judgments.rater_id = raters.id);
UPDATE items SET
  for_first = (SELECT count(*) FROM judgments WHERE item_id = items.id AND occasion = 0 AND vote > 0),
  for_second = (SELECT count(*) FROM judgments WHERE item_id = items.id AND occasion = 0 AND vote < 0),
  for_neither = (SELECT count(*) FROM judgments WHERE item_id = items.id AND occasion = 0 AND vote = 0);
UPDATE items SET disputed = CASE WHEN for_first > 0 AND for_second > 0 THEN 2
  WHEN for_first + for_second > 0 AND for_neither > 0 THEN 1 ELSE 0 END;
"""


def _count_hours(connection: Connection) -> None:
    """Each rater's work by hour, from the log: time spent on undone judgments counts too."""
    kinds = ("submitted", "skipped", "imported", "undone")
    hours: dict[tuple[str, int], list[int]] = {}
    judged_in: dict[str, int] = {}
    for event in connection.execute(sa.select(EVENTS).where(EVENTS.c.kind.in_(kinds)).order_by(EVENTS.c.seq)):
        payload = json.loads(event.payload)
        judgment, active_ms = payload["judgment_id"], 0
        if event.kind in ("submitted", "skipped"):
            active_ms = round(1000 * (payload["judgment"].get("seconds_active") or 0))
        if event.kind != "undone":
            judged_in[judgment] = -1 if event.kind == "imported" else event.at_ms // HOUR_MS
        counts = hours.setdefault((event.rater_id, judged_in[judgment]), [0, 0])
        counts[0] += -1 if event.kind == "undone" else 1
        counts[1] += active_ms
    for (rater_id, hour), (judged, active_ms) in hours.items():
        row = {"rater_id": rater_id, "hour": hour, "judged": judged, "active_ms": active_ms, "idle_ms": 0}
        connection.execute(sa.insert(RATER_HOURS).values(**row))


_CONVERSATIONS = """
CREATE TABLE turns (
  id TEXT PRIMARY KEY, conversation_id TEXT NOT NULL, rater_id TEXT NOT NULL REFERENCES raters (id),
  number INTEGER NOT NULL, messages TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('waiting', 'working', 'ready', 'failed')),
  asked_at_ms BIGINT NOT NULL, taken_until_ms BIGINT NOT NULL, pair_id TEXT REFERENCES pairs (id), error TEXT NOT NULL);
CREATE INDEX turns_waiting ON turns (asked_at_ms) WHERE state IN ('waiting', 'working');
CREATE INDEX turns_of_rater ON turns (rater_id, asked_at_ms);
"""


def _migrate_004_conversations(connection: Connection) -> None:
    """The queue between raters and the process that answers them; an answered turn is a pair."""
    _run_all(connection, _CONVERSATIONS)


def _migrate_005_latest_judgments(connection: Connection) -> None:
    """For the lead's page, which reads the judgments since its last look."""
    connection.exec_driver_sql("CREATE INDEX judgments_in_order ON judgments (seq)")


def _migrate_006_turns_in_the_log(connection: Connection) -> None:
    """Turns were not in the log before: adds events for the existing ones, at the time they were asked."""
    from labeling_ui.database.event_log import Transaction  # which imports this module

    for row in connection.execute(sa.select(TURNS).order_by(TURNS.c.asked_at_ms, TURNS.c.number)).all():
        tx = Transaction(connection, partial(int, row.asked_at_ms))
        about = {"turn": row.id, "conversation_id": row.conversation_id, "number": row.number}
        payload = {**about, "messages": json.loads(row.messages), "policies": []}
        tx.event("asked", rater_id=row.rater_id, payload=payload)
        if row.state in ("ready", "failed"):
            came = {"turn": row.id, "pair_id": row.pair_id, "error": row.error}
            tx.event("answered", rater_id=row.rater_id, item_id=row.pair_id, payload=came)
        tx.write_head()


def _migrate_007_skips(connection: Connection) -> None:
    """A skip used to take a place of the item's overlap for good: frees the places of existing skips."""
    connection.exec_driver_sql("ALTER TABLE items ADD COLUMN skips INTEGER NOT NULL DEFAULT 0")
    connection.exec_driver_sql("CREATE INDEX judgments_without_vote ON judgments (kind) WHERE vote IS NULL")
    query = sa.select(JUDGMENTS.c.item_id, JUDGMENTS.c.record).where(
        JUDGMENTS.c.vote.is_(None), JUDGMENTS.c.occasion == 0
    )
    skips = Counter(row.item_id for row in connection.execute(query).all() if json.loads(row.record)["skip"])
    for item_id, count in skips.items():
        freed = {"skips": count, "taken": ITEMS.c.taken - count, "freed": ITEMS.c.offered}
        connection.execute(sa.update(ITEMS).where(ITEMS.c.id == item_id).values(**freed))


def _migrate_008_documents(connection: Connection) -> None:
    """The texts of guidelines and consent, which were not in the store."""
    connection.exec_driver_sql(
        "CREATE TABLE documents (document TEXT NOT NULL CHECK (document IN ('guidelines', 'consent')), "
        "version TEXT NOT NULL, text TEXT NOT NULL, at_ms BIGINT NOT NULL, PRIMARY KEY (document, version))"
    )


def _migrate_009_withdrawals(connection: Connection) -> None:
    """Pairs that leads withdraw or correct are given to nobody any more; they and their judgments stay."""
    connection.exec_driver_sql("ALTER TABLE items ADD COLUMN withdrawn INTEGER NOT NULL DEFAULT 0")
    connection.exec_driver_sql("CREATE INDEX items_withdrawn ON items (id) WHERE withdrawn = 1")
    connection.exec_driver_sql(
        "CREATE TABLE withdrawals (pair_id TEXT PRIMARY KEY REFERENCES pairs (id), reason TEXT NOT NULL, "
        "replaced_by TEXT REFERENCES pairs (id), at_ms BIGINT NOT NULL)"
    )
    connection.exec_driver_sql("CREATE INDEX items_of_pair ON items (pair_id)")


def _migrate_010_deadlines(connection: Connection) -> None:
    """A batch's deadline, and how many of its judgments are wanted by then."""
    connection.exec_driver_sql("ALTER TABLE batches ADD COLUMN deadline TEXT NOT NULL DEFAULT ''")
    connection.exec_driver_sql("ALTER TABLE batches ADD COLUMN goal INTEGER NOT NULL DEFAULT 0")


_REJECTIONS = """
CREATE TABLE rejections (
  id TEXT PRIMARY KEY, assignment_id TEXT NOT NULL REFERENCES assignments (id), item_id TEXT NOT NULL,
  rater_id TEXT NOT NULL, kind TEXT NOT NULL, record TEXT NOT NULL, seq INTEGER NOT NULL, occasion INTEGER NOT NULL,
  vote INTEGER, at_ms BIGINT NOT NULL, active_ms BIGINT NOT NULL, idle_ms BIGINT NOT NULL, reason TEXT NOT NULL,
  by_id TEXT, rejected_at_ms BIGINT NOT NULL);
CREATE INDEX rejections_of_item ON rejections (item_id);
CREATE INDEX rejections_of_rater ON rejections (rater_id, seq);
"""


def _migrate_011_rejections(connection: Connection) -> None:
    """Judgments that leads reject count nowhere, and stay with their reasons."""
    _run_all(connection, _REJECTIONS)


_SEARCH = """
ALTER TABLE items ADD COLUMN length INTEGER NOT NULL DEFAULT 0;
CREATE INDEX judgments_by_rater ON judgments (rater_id, item_id, vote);
CREATE INDEX events_of_item ON events (item_id) WHERE kind IN ('submitted', 'skipped', 'amended', 'undone', 'rejected',
  'imported', 'flagged', 'adjudicated', 'settlement_removed', 'gold_set', 'gold_removed');
"""


_FLAGGED_INDEX = "CREATE INDEX judgments_flagged ON judgments (item_id) WHERE record NOT LIKE '%\"flags\":[]%'"


def _migrate_012_search(connection: Connection) -> None:
    """Leads find items by their words, their length and their judgments."""
    _run_all(connection, _SEARCH)
    connection.execute(sa.text(_FLAGGED_INDEX))
    create_index(connection)
    query = sa.select(ITEMS.c.id, ITEMS.c.position, ITEMS.c.first_id, ITEMS.c.second_id, ITEMS.c.task, PAIRS.c.record)
    query = query.join(PAIRS, PAIRS.c.id == ITEMS.c.pair_id).order_by(ITEMS.c.position).limit(1_000)
    last = -1
    while rows := connection.execute(query.where(ITEMS.c.position > last)).all():
        whole = [(row, Pair.model_validate_json(row.record)) for row in rows]
        index_items(connection, [(row.position, text_of(pair, *_compared(row))) for row, pair in whole])
        update = sa.update(ITEMS).where(ITEMS.c.id == sa.bindparam("item")).values(length=sa.bindparam("characters"))
        connection.execute(update, [{"item": row.id, "characters": length_of(p, *_compared(row))} for row, p in whole])
        last = rows[-1].position


def _compared(row: Any) -> tuple[str, str, str]:
    return row.first_id, row.second_id, row.task


_ROLES = "CHECK (role IN ('rater', 'lead'))"
_MORE_ROLES = "CHECK (role IN ('rater', 'reviewer', 'observer', 'lead'))"
_INVITATIONS = """
ALTER TABLE invitations ADD COLUMN name TEXT NOT NULL DEFAULT '';
ALTER TABLE invitations ADD COLUMN made_at_ms BIGINT NOT NULL DEFAULT 0;
ALTER TABLE invitations ADD COLUMN revoked INTEGER NOT NULL DEFAULT 0;
"""


def _migrate_013_people(connection: Connection) -> None:
    """Invitations are listed and revoked; reviewers and observers."""
    _run_all(connection, _INVITATIONS)
    if connection.dialect.name != "sqlite":
        for table in ("raters", "invitations"):
            connection.exec_driver_sql(f"ALTER TABLE {table} DROP CONSTRAINT {table}_role_check, ADD {_MORE_ROLES}")
        return
    _change_constraints(connection, ("raters", "invitations"), {_ROLES: _MORE_ROLES})


def _change_constraints(connection: Connection, tables: Sequence[str], changes: Mapping[str, str]) -> None:
    """Loosen constraints of SQLite's tables.

    Follows SQLite's documentation of ALTER TABLE for a changed CHECK or NOT NULL: rows are not copied.
    """
    version = connection.scalar(sa.text("PRAGMA schema_version"))
    connection.exec_driver_sql("PRAGMA writable_schema=ON")
    change = sa.text(
        "UPDATE sqlite_master SET sql = replace(sql, :before, :after) WHERE type = 'table' AND name = :name"
    )
    for name in tables:
        for before, after in changes.items():
            connection.execute(change, {"before": before, "after": after, "name": name})
    connection.exec_driver_sql(f"PRAGMA schema_version={version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema=RESET")


_SINGLE = {
    "CHECK (task IN ('pair', 'ranking'))": "CHECK (task IN ('pair', 'ranking', 'rate', 'review', 'classify'))",
    "first_id TEXT NOT NULL, second_id TEXT NOT NULL": "first_id TEXT NOT NULL, second_id TEXT",
    "left_id TEXT NOT NULL, right_id TEXT NOT NULL": "left_id TEXT NOT NULL, right_id TEXT",
}
"""Constraints before, and as they are with single answers, which have no second one."""


def _migrate_014_single_answers(connection: Connection) -> None:
    """Items of one completion: to rate, to review, to classify."""
    if connection.dialect.name == "sqlite":
        _change_constraints(connection, ("items", "assignments"), _SINGLE)
        return
    _, tasks = next(iter(_SINGLE.items()))
    connection.exec_driver_sql(f"ALTER TABLE items DROP CONSTRAINT items_task_check, ADD {tasks}")
    connection.exec_driver_sql("ALTER TABLE items ALTER COLUMN second_id DROP NOT NULL")
    connection.exec_driver_sql("ALTER TABLE assignments ALTER COLUMN right_id DROP NOT NULL")


_SECOND_FACTORS = """
CREATE TABLE second_factors (
  rater_id TEXT PRIMARY KEY REFERENCES raters (id),
  secret TEXT NOT NULL,
  confirmed_at_ms BIGINT NOT NULL,
  last_step BIGINT NOT NULL
);
"""


def _migrate_015_second_factors(connection: Connection) -> None:
    """Codes of authenticator apps."""
    _run_all(connection, _SECOND_FACTORS)


_STANDING = """
ALTER TABLE raters ADD COLUMN standing TEXT NOT NULL DEFAULT ''
  CHECK (standing IN ('', 'qualified', 'failed', 'stopped'));
ALTER TABLE raters ADD COLUMN standing_seq INTEGER NOT NULL DEFAULT 0;
ALTER TABLE raters ADD COLUMN standing_note TEXT NOT NULL DEFAULT '';
"""


def _migrate_016_standing(connection: Connection) -> None:
    """Whether raters have passed the test, or were stopped."""
    _run_all(connection, _STANDING)


def _migrate_017_rejections_taken_back(connection: Connection) -> None:
    """They belong to an item's history."""
    connection.exec_driver_sql("DROP INDEX events_of_item")
    connection.exec_driver_sql(
        "CREATE INDEX events_of_item ON events (item_id) WHERE kind IN ('submitted', 'skipped', 'amended', 'undone', "
        "'rejected', 'imported', 'flagged', 'adjudicated', 'settlement_removed', 'gold_set', 'gold_removed', 'unrejected')"
    )


def _migrate_018_review_sample(connection: Connection) -> None:
    """Pairs that raters agree on and leads review nevertheless."""
    connection.exec_driver_sql(
        "CREATE TABLE review_sample (item_id TEXT PRIMARY KEY REFERENCES items (id), at_ms BIGINT NOT NULL)"
    )


_ROOM = """
CREATE TABLE publications (
  seq INTEGER PRIMARY KEY, document TEXT NOT NULL, version TEXT NOT NULL, by_id TEXT, configured INTEGER NOT NULL,
  at_ms BIGINT NOT NULL);
CREATE INDEX publications_of ON publications (document, seq);
CREATE TABLE consent_withdrawals (
  rater_id TEXT PRIMARY KEY REFERENCES raters (id), judgments INTEGER NOT NULL, at_ms BIGINT NOT NULL);
CREATE TABLE identities (
  issuer TEXT NOT NULL, subject TEXT NOT NULL, rater_id TEXT NOT NULL REFERENCES raters (id),
  PRIMARY KEY (issuer, subject));
CREATE INDEX identities_of_rater ON identities (rater_id);
ALTER TABLE raters ADD COLUMN erased_at_ms BIGINT;
ALTER TABLE invitations ADD COLUMN email TEXT NOT NULL DEFAULT '';
ALTER TABLE invitations ADD COLUMN subject TEXT NOT NULL DEFAULT '';
"""


def _migrate_019_documents_and_identities(connection: Connection) -> None:
    """Who published which text when; consent withdrawn; accounts of identity providers; erased raters."""
    _run_all(connection, _ROOM)
    query = sa.select(EVENTS.c.seq, EVENTS.c.at_ms, EVENTS.c.payload).where(EVENTS.c.kind == "published")
    for row in connection.execute(query.order_by(EVENTS.c.seq)).all():
        payload = json.loads(row.payload)
        about = {"document": payload["document"], "version": payload["version"], "by_id": None, "configured": 1}
        connection.execute(sa.insert(PUBLICATIONS).values(seq=row.seq, at_ms=row.at_ms, **about))


def _migrate_020_media(connection: Connection) -> None:
    """Images and recordings of pairs."""
    content = "BLOB" if connection.dialect.name == "sqlite" else "BYTEA"
    _run_all(
        connection,
        "CREATE TABLE media_files (sha256 TEXT PRIMARY KEY, media_type TEXT NOT NULL, width INTEGER, height INTEGER, "
        f"content {content} NOT NULL);\n"
        "CREATE TABLE media_names (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL REFERENCES media_files (sha256), "
        "source_sha256 TEXT NOT NULL);\n",
    )


def _migrate_021_notes(connection: Connection) -> None:
    """Messages about pairs, which are in the log alone."""
    connection.exec_driver_sql("CREATE INDEX events_notes ON events (seq) WHERE kind = 'note'")


def _migrate_022_gold_values(connection: Connection) -> None:
    """Known answers of single answers: a value instead of a side."""
    connection.exec_driver_sql("ALTER TABLE gold ADD COLUMN value TEXT")


_MAIL_AND_SESSIONS = """
CREATE TABLE mail_addresses (
  rater_id TEXT PRIMARY KEY REFERENCES raters (id), email TEXT NOT NULL, code_hash TEXT NOT NULL,
  code_until_ms BIGINT NOT NULL, tries INTEGER NOT NULL, confirmed_at_ms BIGINT, waits INTEGER NOT NULL,
  sent_at_ms BIGINT);
ALTER TABLE sessions ADD COLUMN began_at_ms BIGINT NOT NULL DEFAULT 0;
ALTER TABLE media_names ADD COLUMN alt TEXT NOT NULL DEFAULT '';
"""


def _migrate_023_mail_and_sessions(connection: Connection) -> None:
    """Addresses for notices by e-mail; when a session began; descriptions of files that leads upload."""
    _run_all(connection, _MAIL_AND_SESSIONS)
    connection.exec_driver_sql(f"UPDATE sessions SET began_at_ms = expires_at_ms - {14 * 86_400_000}")


def _migrate_024_disputed_single_answers(connection: Connection) -> None:
    """Whether raters disagree on single answers, which only pairs had."""
    query = sa.select(JUDGMENTS.c.item_id, JUDGMENTS.c.record, ITEMS.c.task)
    query = query.join(ITEMS, ITEMS.c.id == JUDGMENTS.c.item_id)
    values: dict[str, list[int | str]] = {}
    task_of: dict[str, SingleTask] = {}
    for row in connection.execute(query.where(JUDGMENTS.c.occasion == 0, ITEMS.c.second_id.is_(None))):
        record = json.loads(row.record)
        if record.get("value") is not None and record.get("judge") is None:
            values.setdefault(row.item_id, []).append(record["value"])
            task_of[row.item_id] = row.task
    for item_id, given in values.items():
        if disputed := disagreement(task_of[item_id], given):
            connection.execute(sa.update(ITEMS).where(ITEMS.c.id == item_id).values(disputed=disputed))


# The last condition differs from those of all statements but the search for a part of an id, for which it is.
_LARGE_STORES = """
CREATE INDEX events_pairs_added ON events (seq) WHERE kind = 'pairs_added';
CREATE INDEX items_disputed_in_order ON items (disputed, position) WHERE disputed > 0;
CREATE INDEX items_untouched ON items (position) WHERE taken = 0;
CREATE INDEX items_ids ON items (position, id) WHERE withdrawn < 1;
"""


def _migrate_025_large_stores(connection: Connection) -> None:
    """Where pairs came from, which every start of a server reads, and what leads search for, without reading everything."""
    _run_all(connection, _LARGE_STORES)


# The conditions differ from those of all statements but the ones that they are for: `progress.batch_progress`, and
# `news.UNFINISHED`, whose words the second one has (SQLite compares expressions, not their meaning).
_BATCHES_AND_PEOPLE = """
CREATE INDEX items_of_batch ON items (batch) WHERE withdrawn < 1;
CREATE INDEX items_unfinished ON items (batch) WHERE withdrawn = 0 AND
  CASE WHEN task = 'pair' THEN for_first + for_second + for_neither < overlap ELSE taken < overlap END;
CREATE INDEX events_of_people ON events (seq) WHERE kind IN ('invited', 'standing_changed');
CREATE INDEX events_of_answers ON events (rater_id, at_ms) WHERE kind IN ('submitted', 'skipped', 'amended', 'imported');
"""


def _migrate_026_batches_and_people(connection: Connection) -> None:
    """Batches are counted without sorting all items; whether one is finished, what the log says of a person, and what they
    answered since a time, is read without reading everything."""
    _run_all(connection, _BATCHES_AND_PEOPLE)


def _migrate_027_reasons(connection: Connection) -> None:
    """Of settled answers by who settled them, and of rejections by whose judgments they rejected: see `REASONS_INDEXED`."""
    connection.exec_driver_sql(
        "CREATE INDEX events_of_reasons ON events (rater_id) WHERE kind IN ('adjudicated', 'rejected')"
    )


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (
    _migrate_001_first_tables,
    _migrate_002_repeats,
    _migrate_003_campaigns,
    _migrate_004_conversations,
    _migrate_005_latest_judgments,
    _migrate_006_turns_in_the_log,
    _migrate_007_skips,
    _migrate_008_documents,
    _migrate_009_withdrawals,
    _migrate_010_deadlines,
    _migrate_011_rejections,
    _migrate_012_search,
    _migrate_013_people,
    _migrate_014_single_answers,
    _migrate_015_second_factors,
    _migrate_016_standing,
    _migrate_017_rejections_taken_back,
    _migrate_018_review_sample,
    _migrate_019_documents_and_identities,
    _migrate_020_media,
    _migrate_021_notes,
    _migrate_022_gold_values,
    _migrate_023_mail_and_sessions,
    _migrate_024_disputed_single_answers,
    _migrate_025_large_stores,
    _migrate_026_batches_and_people,
    _migrate_027_reasons,
)


def migrate(engine: Engine, url: str) -> None:
    """Bring the store to this version's schema, all in one transaction.

    Raises:
        StoreError: it was written by a newer version, is not a label store, or cannot be opened.
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
                    f"the label store {url} has schema {applied}, but this version supports {len(MIGRATIONS)}: "
                    "update Tiebreak"
                )
            for number, step in enumerate(MIGRATIONS[applied:], start=applied + 1):
                step(connection)
                row = {"number": number, "applied_at_ms": int(time.time() * 1000)}
                connection.execute(sa.insert(SCHEMA_MIGRATIONS).values(row))
    except SQLAlchemyError as error:
        raise StoreError(f"cannot open the label store {url}: {_reason(engine, error)}") from error


def _reason(engine: Engine, error: SQLAlchemyError) -> str:
    """Why a store cannot be opened: SQLite's own message does not name the folder."""
    if engine.dialect.name == "sqlite" and engine.url.database:
        folder = Path(engine.url.database).absolute().parent
        if folder.is_dir() and not os.access(folder, os.W_OK):
            return f"{folder} is not writable, which SQLite needs even for reading: copy the store to another folder"
    return str(error.__cause__ or error)
