"""What has changed in a store since its labels were last exported.

The mark of an export is not in the log: an export changes nothing, and the same log stays the same export.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import EVENTS, ITEMS, JUDGMENTS, SETTINGS
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
    """judgments that it does not have; those of restored pairs, and those whose rejection was taken back, too"""
    changed: int
    """judgments that it has with another answer"""
    gone: int
    """judgments that it has, and that were taken back, rejected, or withdrawn with their pairs since"""
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
    changes = _read_changes(connection, mark["seq"])
    withdrawn = set(connection.scalars(sa.select(ITEMS.c.id).where(ITEMS.c.withdrawn == sa.literal_column("1"))))
    counted = _items_of(connection, changes.pairs)
    touched = _judgments_of(connection, list(counted)) | changes.items
    there = _existing(connection, list(touched), mark["seq"])
    new = changed = gone = 0
    for judgment_id, item_id in touched.items():
        before = changes.first.get(judgment_id) not in _MADE and counted.get(item_id, item_id not in withdrawn)
        now = judgment_id in there and item_id not in withdrawn
        new += now and not before
        gone += before and not now
        changed += before and now and judgment_id in changes.amended
    return SinceExport(mark["at_ms"], mark["where"], new, changed, gone, len(changes.settled))


_MADE = ("submitted", "skipped", "imported", "unrejected")
"""Events before which there was no such judgment."""
_TOUCHED = ("amended", "undone", "rejected")
_SETTLED = ("adjudicated", "settlement_removed")
_OF_PAIRS = ("pairs_withdrawn", "pairs_restored", "pair_corrected")


@dataclass
class _Changes:
    """What the log says since an export."""

    first: dict[str, str] = field(default_factory=dict)
    """the kind of each judgment's first event"""
    items: dict[str, str] = field(default_factory=dict)
    """the items of these judgments"""
    amended: set[str] = field(default_factory=set)
    settled: set[str] = field(default_factory=set)
    """items"""
    pairs: dict[str, bool] = field(default_factory=dict)
    """pairs that were withdrawn, restored or corrected, and whether they counted before"""


def _read_changes(connection: Connection, after: int) -> _Changes:
    changes = _Changes()
    query = sa.select(EVENTS.c.kind, EVENTS.c.item_id, EVENTS.c.payload).where(EVENTS.c.seq > after)
    kinds = (*_MADE, *_TOUCHED, *_SETTLED, *_OF_PAIRS)
    for row in connection.execute(query.where(EVENTS.c.kind.in_(kinds)).order_by(EVENTS.c.seq)):
        payload = {} if row.kind in _SETTLED else json.loads(row.payload)
        if row.kind in _SETTLED:
            changes.settled.add(row.item_id)
        elif row.kind in _OF_PAIRS:
            counted = row.kind != "pairs_restored" and not payload.get("withdrawn")
            for pair_id in payload.get("pair_ids") or [payload["pair_id"]]:
                changes.pairs.setdefault(pair_id, counted)
        else:
            changes.first.setdefault(payload["judgment_id"], row.kind)
            changes.items[payload["judgment_id"]] = row.item_id
            changes.amended |= {payload["judgment_id"]} if row.kind == "amended" else set()
    return changes


def _in_parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[n : n + IDS_AT_ONCE] for n in range(0, len(ids), IDS_AT_ONCE))


def _items_of(connection: Connection, pairs: Mapping[str, bool]) -> dict[str, bool]:
    """The items of these pairs, with the pairs' values."""
    query = sa.select(ITEMS.c.id, ITEMS.c.pair_id)
    return {
        row.id: pairs[row.pair_id]
        for part in _in_parts(list(pairs))
        for row in connection.execute(query.where(ITEMS.c.pair_id.in_(part)))
    }


def _judgments_of(connection: Connection, item_ids: Sequence[str]) -> dict[str, str]:
    """The judgments of these items, with their items."""
    query = sa.select(JUDGMENTS.c.id, JUDGMENTS.c.item_id)
    return {
        row.id: row.item_id
        for part in _in_parts(item_ids)
        for row in connection.execute(query.where(JUDGMENTS.c.item_id.in_(part)))
    }


def _existing(connection: Connection, ids: Sequence[str], after: int) -> set[str]:
    """Those of these judgments that were not taken back or rejected."""
    there = set(connection.scalars(sa.select(JUDGMENTS.c.id).where(JUDGMENTS.c.seq > after)))
    for part in _in_parts([name for name in ids if name not in there]):
        there |= set(connection.scalars(sa.select(JUDGMENTS.c.id).where(JUDGMENTS.c.id.in_(part))))
    return there
