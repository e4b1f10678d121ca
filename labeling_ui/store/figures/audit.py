"""The log as an auditor reads it: who did what and when, under pseudonyms and without what anybody wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from labeling_ui.database.schema import EVENTS

AT_ONCE = 5_000
TEXTS = frozenset({"text", "messages", "name", "rationale", "edited_text", "spans", "links", "reason", "redacted"})
"""Parts of events that people wrote, or that only matter to `verify`."""


@dataclass(frozen=True)
class AuditEntry:
    """An event of the log."""

    seq: int
    at_ms: int
    kind: str
    rater_id: str
    """the pseudonym of whoever acted, or of the rater acted on; empty: the configuration or the command line"""
    item_id: str
    details: dict[str, Any]
    hash: str
    """of the event and all before it: as the export's manifest has it"""


def entries(connection: Connection, after: int, since: int, until: int) -> list[AuditEntry]:
    """The next `AT_ONCE` events after the number `after`, at `since` or later, and before `until` (milliseconds)."""
    query = sa.select(EVENTS).where(EVENTS.c.seq > after, EVENTS.c.at_ms >= since, EVENTS.c.at_ms < until)
    return [_as_entry(row) for row in connection.execute(query.order_by(EVENTS.c.seq).limit(AT_ONCE))]


def _as_entry(row: Any) -> AuditEntry:
    who, item = row.rater_id or "", row.item_id or ""
    payload = json.loads(row.payload)
    details = without_texts(payload)
    if row.kind == "batch_changed":
        details["name"] = payload["name"]  # a batch's, not a person's
    return AuditEntry(row.seq, row.at_ms, row.kind, who, item, details, row.hash)


def without_texts(payload: Mapping[str, Any]) -> dict[str, Any]:
    """An event's contents without what anybody wrote; the judgment's answer stays."""
    return {name: _plain(value) for name, value in payload.items() if name not in TEXTS}


def _plain(value: Any) -> Any:
    return without_texts(value) if isinstance(value, dict) else value
