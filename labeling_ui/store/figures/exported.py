"""What has changed in a store since its labels were last exported.

The mark of an export is not in the log: an export changes nothing, and the same log stays the same export.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import EVENTS, JUDGMENTS, SETTINGS
from labeling_ui.store.pairs.campaign import IDS_AT_ONCE

EXPORTED = "exported:last"
"""The setting that holds the mark of the latest export."""


@dataclass(frozen=True)
class SinceExport:
    """The latest export, and what has changed since."""

    at_ms: int
    where: str
    """the folder, or the file that a lead downloaded"""
    new: int
    """judgments that it does not have"""
    changed: int
    """judgments that it has with another answer"""
    gone: int
    """judgments that it has, and that were taken back or rejected since"""
    settled: int
    """pairs settled since, or whose settled answer was withdrawn"""

    def __str__(self) -> str:
        """
        >>> str(SinceExport(0, "runs/label", 412, 9, 0, 1))
        'since the last export (runs/label): +412 judgments, 9 changed, 1 settled'
        """
        counts = ((self.changed, "changed"), (self.gone, "gone"), (self.settled, "settled"))
        rest = "".join(f", {count} {name}" for count, name in counts if count)
        return f"since the last export ({self.where}): +{self.new} judgments{rest}"


def mark_export(tx: Transaction, head: str, where: str, at_ms: int) -> None:
    """Remember that the labels were exported as they were at this head of the log."""
    seq = tx.connection.scalar(sa.select(EVENTS.c.seq).where(EVENTS.c.hash == head)) or 0
    tx.connection.execute(sa.delete(SETTINGS).where(SETTINGS.c.name == EXPORTED))
    value = json.dumps({"seq": seq, "where": where, "at_ms": at_ms})
    tx.connection.execute(sa.insert(SETTINGS).values(name=EXPORTED, value=value))


def since_export(connection: Connection) -> SinceExport | None:
    """What has changed since the latest export; None: there was none."""
    value = connection.scalar(sa.select(SETTINGS.c.value).where(SETTINGS.c.name == EXPORTED))
    if value is None:
        return None
    mark: dict[str, Any] = json.loads(value)
    ids: dict[str, set[str]] = {}
    settled: set[str] = set()
    query = sa.select(EVENTS.c.kind, EVENTS.c.item_id, EVENTS.c.payload).where(EVENTS.c.seq > mark["seq"])
    settling = ("adjudicated", "settlement_removed")
    kinds = ("submitted", "skipped", "imported", "amended", "undone", "rejected", *settling)
    for row in connection.execute(query.where(EVENTS.c.kind.in_(kinds))):
        if row.kind in settling:
            settled.add(row.item_id)
        else:
            ids.setdefault(row.kind, set()).add(json.loads(row.payload)["judgment_id"])
    nothing: set[str] = set()
    made = set().union(*(ids.get(kind, nothing) for kind in ("submitted", "skipped", "imported")))
    there = set(connection.scalars(sa.select(JUDGMENTS.c.id).where(JUDGMENTS.c.seq > mark["seq"])))
    gone = (ids.get("undone", nothing) | ids.get("rejected", nothing)) - made
    candidates = sorted(gone)
    for n in range(0, len(candidates), IDS_AT_ONCE):  # some may count again: a rejection that was taken back
        part = candidates[n : n + IDS_AT_ONCE]
        gone -= set(connection.scalars(sa.select(JUDGMENTS.c.id).where(JUDGMENTS.c.id.in_(part))))
    changed = ids.get("amended", nothing) - made - gone
    return SinceExport(mark["at_ms"], mark["where"], len(there), len(changed), len(gone), len(settled))
