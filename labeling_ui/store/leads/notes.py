"""Messages between a rater and the leads about a pair: one thread for each rater and pair, kept in the log alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from labeling_ui.database import statements as st
from labeling_ui.database.errors import RefusedError
from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import EVENTS, ITEMS, PAIRS
from labeling_ui.store.pairs.items import beginning_of

MAX_NOTE_CHARACTERS = 4_000
MOST_NOTES = 200
"""In one thread."""
MOST_THREADS = 200
"""That one list shows, latest first."""


@dataclass(frozen=True)
class Note:
    """One message."""

    at_ms: int
    by_id: str
    text: str


@dataclass(frozen=True)
class Thread:
    """The messages of a rater and the leads about a pair."""

    item_id: str
    rater_id: str
    prompt: str
    """beginning of the pair's last message"""
    notes: tuple[Note, ...]

    @property
    def waits_for_lead(self) -> bool:
        """Whether the rater wrote last."""
        return self.notes[-1].by_id == self.rater_id


IS_NOTE = EVENTS.c.kind == sa.literal_column("'note'")
"""The words of the index's condition: a parameter would have SQLite read the whole log."""


def write(tx: Transaction, item_id: str, rater_id: str, by_id: str, text: str) -> None:
    """Add a message to a rater's thread.

    Raises:
        RefusedError: the rater never had the pair, the thread is full, or the text is empty.
    """
    if not text.strip():
        raise RefusedError("the message is empty")
    if not st.ASSIGNMENTS_OF.all(tx.connection, item=item_id, rater=rater_id):
        raise RefusedError("only raters who have had a pair can write about it")
    written = sa.select(sa.func.count()).where(IS_NOTE, _thread(item_id, rater_id))
    if (tx.connection.scalar(written) or 0) >= MOST_NOTES:
        raise RefusedError(f"a pair's thread has at most {MOST_NOTES} messages")
    tx.event("note", rater_id=rater_id, item_id=item_id, payload={"by": by_id, "text": text})


def threads_of_rater(connection: Connection, rater_id: str) -> list[Thread]:
    """A rater's threads, the latest first."""
    return _threads(connection, EVENTS.c.rater_id == rater_id)


def threads_of_item(connection: Connection, item_id: str) -> list[Thread]:
    """All threads about a pair."""
    return _threads(connection, EVENTS.c.item_id == item_id)


def waiting_threads(connection: Connection) -> list[Thread]:
    """Threads that wait for a lead's answer, the latest first."""
    return [thread for thread in _threads(connection, sa.true()) if thread.waits_for_lead]


def _thread(item_id: str, rater_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(EVENTS.c.item_id == item_id, EVENTS.c.rater_id == rater_id)


def _threads(connection: Connection, chosen: sa.ColumnElement[bool]) -> list[Thread]:
    query = (
        sa.select(EVENTS.c.item_id, EVENTS.c.rater_id, EVENTS.c.at_ms, EVENTS.c.payload)
        .where(IS_NOTE, chosen)
        .order_by(EVENTS.c.seq)
    )
    notes: dict[tuple[str, str], list[Note]] = {}
    for row in connection.execute(query):
        payload: dict[str, Any] = json.loads(row.payload)
        if payload["text"]:  # not erased
            written = notes.pop((row.item_id, row.rater_id), [])
            notes[row.item_id, row.rater_id] = [*written, Note(row.at_ms, payload["by"], payload["text"])]
    latest = list(reversed(notes))[:MOST_THREADS]
    prompts = _prompts(connection, [item_id for item_id, _ in latest])
    return [Thread(item, rater, prompts.get(item, ""), tuple(notes[item, rater])) for item, rater in latest]


def _prompts(connection: Connection, item_ids: Sequence[str]) -> dict[str, str]:
    query = sa.select(ITEMS.c.id, PAIRS.c.record).join(PAIRS, PAIRS.c.id == ITEMS.c.pair_id)
    rows = connection.execute(query.where(ITEMS.c.id.in_(item_ids)))
    return {row.id: beginning_of(row.record) for row in rows}
