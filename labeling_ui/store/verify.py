"""Checks a label store against its event log: the hash chain, and every table rebuilt from the log."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from labeling_ui.database.event_log import event_hash
from labeling_ui.database.schema import (
    ACCEPTANCES,
    ADJUDICATIONS,
    ASSIGNMENTS,
    BATCHES,
    CONSENT_WITHDRAWALS,
    DOCUMENTS,
    EVENTS,
    GOLD,
    HOUR_MS,
    IMPORTED_AT_MS,
    ITEMS,
    JUDGMENTS,
    LOG_HEAD,
    MEDIA_FILES,
    PAIRS,
    PUBLICATIONS,
    RATER_HOURS,
    RATERS,
    REJECTIONS,
    REVIEW_SAMPLE,
    TURNS,
    WITHDRAWALS,
    turn_of,
    vote_of,
)
from labeling_ui.store.contents import IMPORTED
from labeling_ui.store.leads.erasing import digest_of
from labeling_ui.store.pairs.campaign import Batch
from labeling_ui.store.pairs.inspection import Inspection, inspections
from labeling_ui.store.pairs.items import Item, items_of, pairs_digest
from labeling_ui.store.store import Store
from tiebreak.assessments import disagreement, is_single, read_judgment, read_pair
from tiebreak.hashing import canonical_json

Row = dict[str, Any]


@dataclass
class Verification:
    """Result of `verify`."""

    events: int
    head: str
    judgments: int
    redacted: int = 0
    """events that lost texts when personal data were erased"""
    faults: list[str] = field(default_factory=list)


@dataclass
class _RebuiltTables:
    """The tables as rebuilt from the log."""

    first_ids: dict[str, str]
    """the first completion of each item"""
    assignments: dict[str, Row] = field(default_factory=dict)
    judgments: dict[str, Row] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    """assignments whose current judgment is a skip"""
    rejected: dict[str, tuple[str, str, str | None]] = field(default_factory=dict)
    """rejected judgments: the assignment, the reason, and who rejected it"""
    aside: dict[str, tuple[Row, bool]] = field(default_factory=dict)
    """rejected judgments as they were, and whether they are skips"""
    emptied: set[str] = field(default_factory=set)
    """assignments whose judgment was rejected: they hold no place"""
    uncounted: set[str] = field(default_factory=set)
    """assignments of judges, which take no place and give no vote"""
    raters: dict[str, Row] = field(default_factory=dict)
    hours: dict[tuple[str, int], list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0, 0]))
    batches: dict[str, Batch] = field(default_factory=dict)
    inspections: dict[str, Inspection] = field(default_factory=dict)
    drawn: set[str] = field(default_factory=set)
    """items that were drawn to be reviewed"""
    gold: dict[str, tuple[str | None, int | str | None]] = field(default_factory=dict)
    adjudications: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    acceptances: dict[tuple[str, str], str] = field(default_factory=dict)
    documents: dict[tuple[str, str], str] = field(default_factory=dict)
    published: dict[int, tuple[str, str, str | None, bool]] = field(default_factory=dict)
    """publications by event: the document, the version, who, and whether by a configuration"""
    consents_withdrawn: dict[str, bool] = field(default_factory=dict)
    """raters who have withdrawn their consent, and whether for their judgments too"""
    imports: list[Row] = field(default_factory=list)
    turns: dict[str, Row] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    """the batch of pairs that were moved"""
    withdrawn: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """withdrawn pairs: the reason, and the corrected version"""


def verify(store: Store) -> Verification:
    """Every error found; none in an intact store.

    Reads the whole log and every table, whatever was verified before: a change of an old event is what it looks for.
    """
    with store.reading() as connection:
        result = _verify(connection)
    if store.lacks_log():
        result.faults.append(
            "this is a copy of a store that was in use, without its -wal file: the latest judgments are missing. "
            "Copy stores with 'tiebreak label backup'"
        )
    return result


def _verify(connection: Connection) -> Verification:
    head = connection.execute(sa.select(LOG_HEAD)).one()
    result = Verification(events=head.seq, head=head.hash, judgments=0)
    rebuilt = _RebuiltTables(
        {row.id: row.first_id for row in connection.execute(sa.select(ITEMS.c.id, ITEMS.c.first_id))}
    )
    previous, seq = "", 0
    redactions = _announced(connection)
    for event in connection.execute(sa.select(EVENTS).order_by(EVENTS.c.seq)):
        seq += 1
        expected = event_hash(previous, seq, event.at_ms, event.kind, event.rater_id, event.item_id, event.payload)
        redacted = event.hash != expected and redactions.get(seq) == digest_of(event.payload)
        result.redacted += redacted
        if event.seq != seq or event.previous != previous or (event.hash != expected and not redacted):
            result.faults.append(
                f"event {event.seq}: the chain is broken here: this event was changed, or an earlier one is missing"
            )
            return result
        previous = event.hash
        _apply(rebuilt, event, json.loads(event.payload))
    if (head.seq, head.hash) != (seq, previous):
        result.faults.append(f"the log ends at event {seq}, but its head is {head.seq}: events are missing at the end")
    result.judgments = len(rebuilt.judgments)
    for compare in (_compare_items, _compare_raters, _compare_work, _compare_assignments, _compare_judgments):
        result.faults += compare(connection, rebuilt)
    result.faults += [*_compare_lead(connection, rebuilt), *_compare_turns(connection, rebuilt)]
    result.faults += _changed_media(connection)
    return result


def _changed_media(connection: Connection) -> list[str]:
    """Images and recordings that are not what their hash says."""
    query = sa.select(MEDIA_FILES.c.sha256, MEDIA_FILES.c.content).execution_options(yield_per=1)
    files = connection.execute(query)
    return [
        f"the file {row.sha256[:16]} was changed"
        for row in files
        if hashlib.sha256(row.content).hexdigest() != row.sha256
    ]


def _announced(connection: Connection) -> dict[int, str]:
    """Events that erasures have redacted, with the hash of each one's latest payload as the erasures recorded it."""
    query = sa.select(EVENTS.c.payload).where(EVENTS.c.kind == "erased").order_by(EVENTS.c.seq)
    announced: dict[int, str] = {}
    for payload in connection.scalars(query):
        announced |= {int(seq): digest for seq, digest in json.loads(payload)["redacted"].items()}
    return announced


def _apply(rebuilt: _RebuiltTables, event: Any, payload: Row) -> None:
    for apply in (_apply_to_pairs, _apply_to_raters, _apply_to_conversations, _apply_to_judgments):
        apply(rebuilt, event, payload)


def _apply_to_pairs(rebuilt: _RebuiltTables, event: Any, payload: Row) -> None:
    """Pairs, their batches, and what leads decide about them."""
    match event.kind:
        case "pairs_added":
            rebuilt.imports.append(payload)
        case "batch_changed":
            rebuilt.batches[payload["name"]] = Batch(**payload)
        case "pairs_moved":
            rebuilt.moved |= dict.fromkeys(payload["pair_ids"], payload["batch"])
        case "pairs_withdrawn":
            rebuilt.withdrawn |= dict.fromkeys(payload["pair_ids"], (payload["reason"], None))
        case "pairs_restored":
            for pair_id in payload["pair_ids"]:
                rebuilt.withdrawn.pop(pair_id, None)
        case "pair_corrected":
            rebuilt.withdrawn[payload["pair_id"]] = "corrected", payload["replaced_by"]
        case "inspection_planned" | "inspection_decided":
            rebuilt.inspections[payload["batch"]] = Inspection(**payload)
        case "review_sampled":
            rebuilt.drawn.update(payload["item_ids"])
        case "gold_set":
            rebuilt.gold[event.item_id] = payload["preferred_id"], payload.get("value")
        case "gold_removed":
            del rebuilt.gold[event.item_id]
        case "settlement_removed":
            del rebuilt.adjudications[event.item_id]
        case "adjudicated":
            rebuilt.adjudications[event.item_id] = event.rater_id, _digest(payload["judgment"])


def _apply_to_raters(rebuilt: _RebuiltTables, event: Any, payload: Row) -> None:
    """Raters, and the documents that they accept."""
    match event.kind:
        case "published":
            about = payload["document"], payload["version"]
            rebuilt.documents[about] = payload["text"]
            rebuilt.published[event.seq] = *about, payload.get("by"), payload.get("configured", True)
        case "guidelines_accepted" | "consent_given":
            document = "guidelines" if event.kind == "guidelines_accepted" else "consent"
            rebuilt.acceptances[event.rater_id, document] = payload["version"]
            if document == "consent":
                rebuilt.consents_withdrawn.pop(event.rater_id, None)
        case "consent_withdrawn":
            rebuilt.acceptances.pop((event.rater_id, "consent"), None)
            rebuilt.consents_withdrawn[event.rater_id] = payload["judgments"]
        case "rater_added":
            fields = {"kind": payload["kind"], "role": payload["role"], "pool": payload.get("pool", "")}
            rebuilt.raters[event.rater_id] = {**fields, "disabled": 0, "judged": 0, "standing": "", "standing_seq": 0}
        case "standing_changed":
            rebuilt.raters[event.rater_id] |= {"standing": payload["standing"], "standing_seq": event.seq}
        case "rater_disabled" | "rater_enabled":
            rebuilt.raters[event.rater_id]["disabled"] = int(event.kind == "rater_disabled")
        case "erased":
            rebuilt.raters[event.rater_id]["disabled"] = 1
        case "role_changed":
            rebuilt.raters[event.rater_id]["role"] = payload["role"]
        case "rater_moved":
            rebuilt.raters[event.rater_id]["pool"] = payload["pool"]


def _apply_to_conversations(rebuilt: _RebuiltTables, event: Any, payload: Row) -> None:
    match event.kind:
        case "asked":
            rebuilt.turns[payload["turn"]] = {
                "conversation": payload["conversation_id"],
                "rater": event.rater_id,
                "number": payload["number"],
                "messages": canonical_json(payload["messages"]),
                "asked_at_ms": event.at_ms,
                "state": "asked",
                "pair_id": None,
                "error": "",
            }
        case "answered":
            came = {"pair_id": payload["pair_id"], "error": payload["error"]}
            rebuilt.turns[payload["turn"]] |= {**came, "state": "failed" if payload["pair_id"] is None else "ready"}


def _apply_to_judgments(rebuilt: _RebuiltTables, event: Any, payload: Row) -> None:
    """Assignments and judgments; an imported judgment is both."""
    match event.kind:
        case "assigned" | "imported":
            _assign(rebuilt, event, payload)
        case "reopened" | "renewed" | "lapsed":
            rebuilt.assignments[payload["assignment"]]["state"] = "lapsed" if event.kind == "lapsed" else "open"
    if event.kind == "rejected":
        _reject(rebuilt, event, payload)
    if event.kind == "unrejected":
        _take_back(rebuilt, event, payload)
    if event.kind in ("submitted", "skipped", "imported", "amended", "undone"):
        _judge(rebuilt, event, payload)


def _assign(rebuilt: _RebuiltTables, event: Any, payload: Row) -> None:
    sides = payload["judgment"] if event.kind == "imported" else payload
    rebuilt.assignments[payload["assignment"]] = {
        "item": event.item_id,
        "rater": event.rater_id,
        "left": sides["left"],
        "right": sides.get("right"),
        "shown": canonical_json(payload["shown"]) if "shown" in payload else "",
        "occasion": payload.get("occasion", 0),
        "state": "open",
    }
    if event.kind == "imported" and payload["judgment"].get("judge") is not None:
        rebuilt.uncounted.add(payload["assignment"])


def _judge(rebuilt: _RebuiltTables, event: Any, payload: Row) -> None:
    identity, assignment = payload["judgment_id"], rebuilt.assignments[payload["assignment"]]
    if event.kind == "undone":
        assignment["state"] = "open"
        rebuilt.skipped.discard(payload["assignment"])
        _count(rebuilt, event.rater_id, rebuilt.judgments.pop(identity)["at_ms"], -1, 0, 0)
        return
    judgment = payload["judgment"]
    active, idle = (
        round(1000 * (seconds or 0)) for seconds in (judgment.get("seconds_active"), payload.get("seconds_idle"))
    )
    left_is_first = judgment["left"] == rebuilt.first_ids.get(assignment["item"])
    without_vote = judgment.get("ranking") is not None or "task" in judgment
    vote = None if without_vote else vote_of(judgment["answer"], skip=judgment["skip"], left_is_first=left_is_first)
    now = {"digest": _digest(judgment), "vote": vote, "value": judgment.get("value")}
    (rebuilt.skipped.add if judgment["skip"] else rebuilt.skipped.discard)(payload["assignment"])
    if event.kind == "amended":
        rebuilt.judgments[identity] |= now
        _count(rebuilt, event.rater_id, event.at_ms, 0, active, idle)
        return
    assignment["state"] = "done"
    if event.kind == "imported":
        active = idle = 0
    work = {"at_ms": event.at_ms, "active_ms": active, "idle_ms": idle}
    rebuilt.judgments[identity] = {
        "assignment": payload["assignment"], "occasion": assignment["occasion"], "kind": judgment["kind"], **now, **work
    }  # fmt: skip
    _count(rebuilt, event.rater_id, IMPORTED_AT_MS if event.kind == "imported" else event.at_ms, 1, active, idle)


def _reject(rebuilt: _RebuiltTables, event: Any, payload: Row) -> None:
    identity, assignment = payload["judgment_id"], payload["assignment"]
    row = rebuilt.judgments.pop(identity)
    judged_at = row["at_ms"]
    rebuilt.aside[identity] = row, assignment in rebuilt.skipped
    rebuilt.rejected[identity] = assignment, payload["reason"], payload["by"]
    rebuilt.skipped.discard(assignment)
    if payload["again"] and rebuilt.assignments[assignment]["occasion"] == 0:
        rebuilt.assignments[assignment]["state"] = "lapsed"
    else:
        rebuilt.emptied.add(assignment)
    _count(rebuilt, event.rater_id, IMPORTED_AT_MS if identity.startswith(IMPORTED) else judged_at, -1, 0, 0)


def _take_back(rebuilt: _RebuiltTables, event: Any, payload: Row) -> None:
    identity, assignment = payload["judgment_id"], payload["assignment"]
    row, is_skip = rebuilt.aside.pop(identity)
    rebuilt.judgments[identity] = row
    del rebuilt.rejected[identity]
    rebuilt.emptied.discard(assignment)
    rebuilt.assignments[assignment]["state"] = "done"
    if is_skip:
        rebuilt.skipped.add(assignment)
    _count(rebuilt, event.rater_id, IMPORTED_AT_MS if identity.startswith(IMPORTED) else row["at_ms"], 1, 0, 0)


def _count(rebuilt: _RebuiltTables, rater_id: str, at_ms: int, judged: int, active_ms: int, idle_ms: int) -> None:
    hour = rebuilt.hours[rater_id, at_ms // HOUR_MS]
    for n, more in enumerate((judged, active_ms, idle_ms)):
        hour[n] += more
    rebuilt.raters[rater_id]["judged"] += judged


def _digest(record: Row) -> bytes:
    """A hash of a judgment's record, independent of the version that wrote it."""
    whole = read_judgment(canonical_json(record)).model_dump(mode="json")
    return hashlib.sha256(canonical_json(whole).encode()).digest()


# --- comparing ---


def _compare_items(connection: Connection, rebuilt: _RebuiltTables) -> list[str]:
    records = list(connection.scalars(sa.select(PAIRS.c.record).order_by(PAIRS.c.position)))
    wanted: list[tuple[Item, str]] = []
    logged, faults = 0, []
    for added in rebuilt.imports:
        part = records[added["first"] : added["first"] + added["count"]]
        if pairs_digest(part) != added["digest"]:
            faults.append(
                f"pairs {added['first']} to {added['first'] + added['count'] - 1} differ from those that were added"
            )
        logged += added["count"]
        pairs = [read_pair(record) for record in part]
        items = [item for pair in pairs for item in items_of(pair, ranking=added.get("ranking", False))]
        wanted += [(item, rebuilt.moved.get(item.pair_id, str(added.get("batch", "")))) for item in items]
    if logged != len(records):
        faults.append(f"the log records {logged} pairs, the store has {len(records)}")
    there = connection.execute(sa.select(ITEMS).order_by(ITEMS.c.position)).all()
    if [(item, batch) for item, batch in wanted] != [
        (Item(row.id, row.pair_id, row.first_id, row.second_id, row.task), row.batch) for row in there
    ]:
        return [*faults, "the items do not match the pairs"]
    votes, values = _votes(rebuilt), _values(rebuilt)
    return faults + [
        f"item {row.id}: {fault}"
        for row in there
        for fault in _item_faults(row, rebuilt, votes[row.id], values[row.id])
    ]


def _item_faults(row: Any, rebuilt: _RebuiltTables, votes: list[int], values: list[int | str]) -> Iterator[str]:
    """What differs between an item's row and the log."""
    batch = rebuilt.batches.get(row.batch, Batch(row.batch))
    withdrawn = row.pair_id in rebuilt.withdrawn
    if bool(row.withdrawn) != withdrawn:
        yield "whether it is withdrawn does not match the log"
    offered = int(not batch.paused and row.id not in rebuilt.gold and not withdrawn)
    if (row.turn, row.pool, row.offered) != (turn_of(batch.priority, row.position), batch.pool, offered):
        yield "its settings do not match its batch"
    if [row.for_first, row.for_second, row.for_neither] != votes:
        yield "its votes do not match the log"
    if row.disputed != _disputed(row.task, votes, values):
        yield "whether raters disagree does not match the log"


def _disputed(task: str, votes: list[int], values: list[int | str]) -> int:
    if is_single(task):
        return disagreement(task, values)
    first, second, neither = votes
    return 2 if first and second else 1 if first + second and neither else 0


def _values(rebuilt: _RebuiltTables) -> dict[str, list[int | str]]:
    """The raters' values of single answers."""
    values: dict[str, list[int | str]] = defaultdict(list)
    for judgment in rebuilt.judgments.values():
        counts = judgment["occasion"] == 0 and judgment["assignment"] not in rebuilt.uncounted
        if counts and judgment["value"] is not None:
            values[rebuilt.assignments[judgment["assignment"]]["item"]].append(judgment["value"])
    return values


def _votes(rebuilt: _RebuiltTables) -> dict[str, list[int]]:
    votes: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for judgment in rebuilt.judgments.values():
        counts = judgment["occasion"] == 0 and judgment["assignment"] not in rebuilt.uncounted
        if counts and judgment["vote"] is not None:
            vote = judgment["vote"]
            votes[rebuilt.assignments[judgment["assignment"]]["item"]][0 if vote > 0 else 1 if vote < 0 else 2] += 1
    return votes


def _compare_raters(connection: Connection, rebuilt: _RebuiltTables) -> list[str]:
    columns = ("kind", "role", "pool", "disabled", "judged", "standing", "standing_seq")
    rows = {row.id: {name: getattr(row, name) for name in columns} for row in connection.execute(sa.select(RATERS))}
    return [f"rater {name}: does not match the log" for name in _unequal(rows, rebuilt.raters)]


def _compare_work(connection: Connection, rebuilt: _RebuiltTables) -> list[str]:
    rows = {
        f"{row.rater_id} in hour {row.hour}": [row.judged, row.active_ms, row.idle_ms]
        for row in connection.execute(sa.select(RATER_HOURS))
    }
    logged = {f"{rater} in hour {hour}": counts for (rater, hour), counts in rebuilt.hours.items()}
    return [f"the work of {name}: does not match the log" for name in _unequal(rows, logged)]


def _compare_assignments(connection: Connection, rebuilt: _RebuiltTables) -> list[str]:
    rows = {
        row.id: {
            "item": row.item_id,
            "rater": row.rater_id,
            "left": row.left_id,
            "right": row.right_id,
            "shown": row.shown,
            "occasion": row.occasion,
            "state": row.state,
        }
        for row in connection.execute(sa.select(ASSIGNMENTS))
    }
    faults = [f"assignment {name}: does not match the log" for name in _unequal(rows, rebuilt.assignments)]
    taken: dict[str, int] = defaultdict(int)
    skips: dict[str, int] = defaultdict(int)
    for name, assignment in rebuilt.assignments.items():
        if assignment["occasion"] == 0 and name not in rebuilt.uncounted:
            skips[assignment["item"]] += name in rebuilt.skipped
            empty = assignment["state"] == "lapsed" or name in rebuilt.skipped or name in rebuilt.emptied
            taken[assignment["item"]] += not empty
    for item in connection.execute(sa.select(ITEMS)):
        held = taken[item.id]
        if held > item.overlap:
            faults.append(f"item {item.id}: has {held} raters, but its overlap is {item.overlap}")
        if skips[item.id] != item.skips:
            faults.append(f"item {item.id}: its count of skips is {item.skips}, but {skips[item.id]} in the log")
        if held != item.taken:
            faults.append(f"item {item.id}: its count of raters is {item.taken}, but {held} in the log")
    return faults


def _compare_judgments(connection: Connection, rebuilt: _RebuiltTables) -> list[str]:
    rows = {
        row.id: {
            "assignment": row.assignment_id,
            "occasion": row.occasion,
            "kind": row.kind,
            "digest": _digest(json.loads(row.record)),
            "vote": row.vote,
            "value": json.loads(row.record).get("value"),
            "at_ms": row.at_ms,
            "active_ms": row.active_ms,
            "idle_ms": row.idle_ms,
        }
        for row in connection.execute(sa.select(JUDGMENTS))
    }
    aside = {row.id: (row.assignment_id, row.reason, row.by_id) for row in connection.execute(sa.select(REJECTIONS))}
    return [
        *(f"judgment {name}: does not match the log" for name in _unequal(rows, rebuilt.judgments)),
        *(f"rejected judgment {name}: does not match the log" for name in _unequal(aside, rebuilt.rejected)),
    ]


def _compare_lead(connection: Connection, rebuilt: _RebuiltTables) -> list[str]:
    """Leads' decisions and raters' acceptances."""
    settled = {
        row.item_id: (row.lead_id, _digest(json.loads(row.record)))
        for row in connection.execute(sa.select(ADJUDICATIONS))
    }
    gold = {
        row.item_id: (row.preferred_id, None if row.value is None else json.loads(row.value))
        for row in connection.execute(sa.select(GOLD))
    }
    agreed = {(row.rater_id, row.document): row.version for row in connection.execute(sa.select(ACCEPTANCES))}
    gone = {row.pair_id: (row.reason, row.replaced_by) for row in connection.execute(sa.select(WITHDRAWALS))}
    texts = {(row.document, row.version): row.text for row in connection.execute(sa.select(DOCUMENTS))}
    batches = {row.name: Batch.of(row) for row in connection.execute(sa.select(BATCHES))}
    published = {
        row.seq: (row.document, row.version, row.by_id, bool(row.configured))
        for row in connection.execute(sa.select(PUBLICATIONS))
    }
    withdrawn = {row.rater_id: bool(row.judgments) for row in connection.execute(sa.select(CONSENT_WITHDRAWALS))}
    return [
        *(f"publication {seq}: does not match the log" for seq in _unequal(published, rebuilt.published)),
        *(
            f"rater {rater}: the withdrawn consent does not match the log"
            for rater in _unequal(withdrawn, rebuilt.consents_withdrawn)
        ),
        *(
            f"item {name}: its settled answer does not match the log"
            for name in _unequal(settled, rebuilt.adjudications)
        ),
        *(f"item {name}: its gold answer does not match the log" for name in _unequal(gold, rebuilt.gold)),
        *(f"pair {name}: its withdrawal does not match the log" for name in _unequal(gone, rebuilt.withdrawn)),
        *(
            f"item {name}: whether it was drawn for review does not match the log"
            for name in sorted(rebuilt.drawn ^ set(connection.scalars(sa.select(REVIEW_SAMPLE.c.item_id))))
        ),
        *(f"batch {name!r}: does not match the log" for name in _unequal(batches, rebuilt.batches)),
        *(
            f"batch {name!r}: its inspection does not match the log"
            for name in _unequal(inspections(connection), rebuilt.inspections)
        ),
        *(
            f"the {document} of version {version}: their text does not match the log"
            for document, version in _unequal(texts, rebuilt.documents)
        ),
        *(
            f"rater {rater}: the accepted {document} does not match the log"
            for rater, document in _unequal(agreed, rebuilt.acceptances)
        ),
    ]


def _compare_turns(connection: Connection, rebuilt: _RebuiltTables) -> list[str]:
    """Turns of conversations and their outcomes. Which worker holds a turn is not in the log."""
    rows = {
        row.id: {
            "conversation": row.conversation_id,
            "rater": row.rater_id,
            "number": row.number,
            "messages": row.messages,
            "asked_at_ms": row.asked_at_ms,
            "state": "asked" if row.state in ("waiting", "working") else row.state,
            "pair_id": row.pair_id,
            "error": row.error,
        }
        for row in connection.execute(sa.select(TURNS))
    }
    return [f"turn {name}: does not match the log" for name in _unequal(rows, rebuilt.turns)]


def _unequal(rows: dict[Any, Any], expected: dict[Any, Any]) -> list[Any]:
    nothing = object()
    return sorted(
        name for name in rows.keys() | expected.keys() if rows.get(name, nothing) != expected.get(name, nothing)
    )
