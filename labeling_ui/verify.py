"""Whether a label store is what its event log says: the hash chain, and every label made again from the log alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from labeling_ui.items import items_of, pairs_digest
from labeling_ui.log import event_hash
from labeling_ui.schema import ASSIGNMENTS, EVENTS, ITEMS, JUDGMENTS, LOG_HEAD, PAIRS, RATERS
from labeling_ui.store import Store
from tiebreak.records import Judgment, Pair


@dataclass
class Verification:
    """What `verify` found."""

    events: int
    head: str
    judgments: int
    faults: list[str] = field(default_factory=list)


@dataclass
class _Rebuilt:
    """The tables as the log tells them."""

    assignments: dict[str, dict[str, str]] = field(default_factory=dict)
    judgments: dict[str, dict[str, Any]] = field(default_factory=dict)
    raters: dict[str, dict[str, Any]] = field(default_factory=dict)
    repeats: set[str] = field(default_factory=set)
    imports: list[dict[str, Any]] = field(default_factory=list)


def verify(store: Store) -> Verification:
    """Every fault found; none in a store that is whole."""
    with store.reading() as connection:
        return _verify(connection)


def _verify(connection: Connection) -> Verification:
    head = connection.execute(sa.select(LOG_HEAD)).one()
    result = Verification(events=head.seq, head=head.hash, judgments=0)
    rebuilt = _Rebuilt()
    previous, seq = "", 0
    for event in connection.execute(sa.select(EVENTS).order_by(EVENTS.c.seq)):
        seq += 1
        told = event_hash(previous, seq, event.at_ms, event.kind, event.rater_id, event.item_id, event.payload)
        if event.seq != seq or event.previous != previous or event.hash != told:
            result.faults.append(
                f"event {event.seq}: the chain is broken here: it was changed, or one before it is gone"
            )
            return result
        previous = event.hash
        _apply(rebuilt, event)
    if (head.seq, head.hash) != (seq, previous):
        result.faults.append(
            f"the log ends at event {seq}, and its head says {head.seq}: events are missing at the end"
        )
    result.judgments = len(rebuilt.judgments)
    result.faults += _compare_pairs(connection, rebuilt)
    result.faults += _compare_raters(connection, rebuilt)
    result.faults += _compare_assignments(connection, rebuilt)
    result.faults += _compare_judgments(connection, rebuilt)
    return result


def _apply(rebuilt: _Rebuilt, event: Any) -> None:
    payload = json.loads(event.payload)
    match event.kind:
        case "pairs_added":
            rebuilt.imports.append(payload)
        case "rater_added":
            rebuilt.raters[event.rater_id] = {"kind": payload["kind"], "role": payload["role"], "disabled": 0}
        case "rater_disabled" | "rater_enabled":
            rebuilt.raters[event.rater_id]["disabled"] = int(event.kind == "rater_disabled")
        case "assigned":
            sides = {"left": payload["left"], "right": payload["right"]}
            who = {"item": event.item_id, "rater": event.rater_id}
            rebuilt.assignments[payload["assignment"]] = {**who, **sides, "state": "open"}
            rebuilt.repeats |= {payload["assignment"]} if payload.get("occasion") else set()
        case "reopened" | "renewed":
            rebuilt.assignments[payload["assignment"]]["state"] = "open"
        case "lapsed":
            rebuilt.assignments[payload["assignment"]]["state"] = "lapsed"
        case "imported":
            sides = {"left": payload["judgment"]["left"], "right": payload["judgment"]["right"]}
            who = {"item": event.item_id, "rater": event.rater_id}
            rebuilt.assignments[payload["assignment"]] = {**who, **sides, "state": "done"}
            rebuilt.repeats |= {payload["assignment"]} if payload.get("occasion") else set()
            rebuilt.judgments[payload["judgment_id"]] = payload
        case "amended":
            rebuilt.judgments[payload["judgment_id"]] = payload
        case "submitted" | "skipped":
            rebuilt.assignments[payload["assignment"]]["state"] = "done"
            rebuilt.judgments[payload["judgment_id"]] = payload
        case "undone":
            rebuilt.assignments[payload["assignment"]]["state"] = "open"
            del rebuilt.judgments[payload["judgment_id"]]


def _compare_pairs(connection: Connection, rebuilt: _Rebuilt) -> list[str]:
    records = list(connection.scalars(sa.select(PAIRS.c.record).order_by(PAIRS.c.position)))
    told, faults = 0, []
    for one in rebuilt.imports:
        part = records[one["first"] : one["first"] + one["count"]]
        if pairs_digest(part) != one["digest"]:
            faults.append(f"pairs {one['first']} to {one['first'] + one['count'] - 1} are not those that were added")
        told += one["count"]
    if told != len(records):
        faults.append(f"the log tells of {told} pairs, and {len(records)} are there")
    ranked = [one.get("ranking", False) for one in rebuilt.imports for _ in range(one["count"])]
    wanted = [
        item
        for record, ranking in zip(records, ranked, strict=False)
        for item in items_of(Pair.model_validate_json(record), ranking=ranking)
    ]
    there = connection.execute(sa.select(ITEMS).order_by(ITEMS.c.position)).all()
    if [(i.id, i.pair_id, i.first_id, i.second_id) for i in wanted] != [
        (i.id, i.pair_id, i.first_id, i.second_id) for i in there
    ]:
        faults.append("the items are not those that the pairs give")
    return faults


def _compare_raters(connection: Connection, rebuilt: _Rebuilt) -> list[str]:
    rows = {
        row.id: {"kind": row.kind, "role": row.role, "disabled": row.disabled}
        for row in connection.execute(sa.select(RATERS))
    }
    return [f"rater {name}: not as the log tells" for name in _unequal(rows, rebuilt.raters)]


def _compare_assignments(connection: Connection, rebuilt: _Rebuilt) -> list[str]:
    rows = {
        row.id: {
            "item": row.item_id,
            "rater": row.rater_id,
            "left": row.left_id,
            "right": row.right_id,
            "state": row.state,
        }
        for row in connection.execute(sa.select(ASSIGNMENTS))
    }
    faults = [f"assignment {name}: not as the log tells" for name in _unequal(rows, rebuilt.assignments)]
    taken: dict[str, int] = {}
    for name, one in rebuilt.assignments.items():
        if name not in rebuilt.repeats:
            taken[one["item"]] = taken.get(one["item"], 0) + (one["state"] != "lapsed")
    for item in connection.execute(sa.select(ITEMS)):
        held = taken.get(item.id, 0)
        if held > item.overlap:
            faults.append(f"item {item.id}: held by {held} raters, and its overlap is {item.overlap}")
        if held != item.taken:
            faults.append(f"item {item.id}: its count of raters is {item.taken}, and the log tells {held}")
    return faults


def _compare_judgments(connection: Connection, rebuilt: _Rebuilt) -> list[str]:
    rows = {
        row.id: (row.assignment_id, row.kind, Judgment.model_validate_json(row.record))
        for row in connection.execute(sa.select(JUDGMENTS))
    }
    told = {
        name: (one["assignment"], one["judgment"]["kind"], Judgment.model_validate(one["judgment"]))
        for name, one in rebuilt.judgments.items()
    }
    return [f"judgment {name}: not as the log tells" for name in _unequal(rows, told)]


def _unequal(rows: dict[str, Any], told: dict[str, Any]) -> list[str]:
    return sorted(name for name in rows.keys() | told.keys() if rows.get(name) != told.get(name))
