"""Changes to pairs of a running campaign: move them to another batch, withdraw, restore and correct them.

    tiebreak label move|withdraw|restore|correct … --store URL

Nothing is deleted. A withdrawn pair is given to nobody and counts nowhere; its judgments stay, and come back with it.
A corrected pair is withdrawn, and its new version is a pair of its own, with the id `ID@2`, judged from the start.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from labeling_ui.database import statements as st
from labeling_ui.database.errors import RefusedError
from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import ASSIGNMENTS, GOLD, ITEMS, PAIRS, SETTINGS, WITHDRAWALS
from labeling_ui.store.pairs.campaign import (
    CONVERSATIONS,
    CORRECTIONS,
    IDS_AT_ONCE,
    Batch,
    BatchChange,
    Source,
    additions,
    check_pair,
    find_batch,
    insert_pairs,
    is_version,
    known_records,
    present_ids,
    record_source,
    refuse_personal_data,
    steer,
    write_batch,
)
from labeling_ui.store.pairs.inspection import look_at_lots
from tiebreak.assessments import read_pair
from tiebreak.records import Pair

_VERSION = re.compile(r"@(\d+)$")


@dataclass(frozen=True)
class Withdrawal:
    """A pair that is given to nobody, why, and the id of its corrected version if it has one."""

    pair_id: str
    reason: str
    replaced_by: str | None
    at_ms: int


@dataclass(frozen=True)
class Correction:
    """A pair, and its new version's id; `gold`: the old version was gold; the new one is not."""

    pair_id: str
    replaced_by: str
    gold: bool


def move(tx: Transaction, pair_ids: Sequence[str], name: str, change: BatchChange) -> Batch:
    """Move pairs to a batch, which is created or changed as `change` says. Pairs already leased stay with their raters.

    Raises:
        RefusedError: there is no such pair, or it belongs to a conversation.
    """
    _check(tx.connection, pair_ids)
    if name == CONVERSATIONS or CONVERSATIONS in _batches_of(tx.connection, pair_ids):
        raise RefusedError("pairs of conversations belong to their raters: they have no other batch")
    existing = find_batch(tx.connection, name)
    batch = existing or Batch(name, overlap=int(tx.setting("overlap")))
    batch = Batch(**(vars(batch) | change.model_dump(exclude_none=True)))
    if batch != existing:
        write_batch(tx, batch, exists=existing is not None)
    tx.event("pairs_moved", payload={"pair_ids": list(pair_ids), "batch": name})
    for part in _in_parts(pair_ids):
        steer(tx, batch, ITEMS.c.pair_id.in_(part))
    return batch


def withdraw(tx: Transaction, pair_ids: Sequence[str], reason: str, by: str | None = None) -> int:
    """Withdraw pairs; those that are withdrawn already stay so. Returns how many are newly withdrawn.

    Raises:
        RefusedError: there is no such pair.
    """
    _check(tx.connection, pair_ids)
    gone = {one.pair_id for one in withdrawals(tx.connection)}
    new = [pair_id for pair_id in dict.fromkeys(pair_ids) if pair_id not in gone]
    if new:
        _lay_aside(tx, new)
        now = tx.event("pairs_withdrawn", rater_id=by, payload={"pair_ids": new, "reason": reason})
        rows = [{"pair_id": one, "reason": reason, "replaced_by": None, "at_ms": now} for one in new]
        tx.connection.execute(sa.insert(WITHDRAWALS), rows)
        look_at_lots(tx)
    return len(new)


def restore(tx: Transaction, pair_ids: Sequence[str], by: str | None = None) -> int:
    """Restore withdrawn pairs, with their judgments; returns how many.

    Raises:
        RefusedError: there is no such pair, or it has a corrected version.
    """
    _check(tx.connection, pair_ids)
    gone = {one.pair_id: one for one in withdrawals(tx.connection)}
    back = [pair_id for pair_id in dict.fromkeys(pair_ids) if pair_id in gone]
    for one in back:
        if (version := gone[one].replaced_by) is not None:
            raise RefusedError(
                f"pair {one} was corrected, to {version}: correct that one to have the earlier text again"
            )
    if back:
        tx.event("pairs_restored", rater_id=by, payload={"pair_ids": back})
        for part in _in_parts(back):
            tx.connection.execute(sa.delete(WITHDRAWALS).where(WITHDRAWALS.c.pair_id.in_(part)))
            tx.connection.execute(sa.update(ITEMS).where(ITEMS.c.pair_id.in_(part)).values(withdrawn=0))
        for name in sorted(_batches_of(tx.connection, back)):
            batch = find_batch(tx.connection, name) or Batch(name)
            for part in _in_parts(back):
                steer(tx, batch, sa.and_(ITEMS.c.pair_id.in_(part), ITEMS.c.batch == name))
        look_at_lots(tx)
    return len(back)


def correct(tx: Transaction, pairs: Sequence[Pair], source: Source, by: str | None = None) -> list[Correction]:
    """Replace pairs by the new versions with the same ids; equal ones stay as they are.

    A new version is in the batch of the old one. Old judgments stay with the old one.

    Raises:
        RefusedError: there is no pair with that id, it belongs to a conversation, or it is there twice.
    """
    counts = Counter(pair.id for pair in pairs)
    if twice := [pair_id for pair_id, count in counts.items() if count > 1]:
        raise RefusedError(f"two versions of {', '.join(twice[:5])} at once: give one. Nothing was changed")
    present = present_ids(tx.connection)
    current = {pair.id: present.get(pair.id, pair.id) for pair in pairs}
    _check(tx.connection, list(current.values()))
    records = known_records(tx.connection, list(current.values()))
    changed = [
        pair
        for pair in pairs
        if pair.model_copy(update={"id": current[pair.id]}).model_dump_json() != records[current[pair.id]]
    ]
    record_source(tx, source)
    if source.id == CORRECTIONS:
        refuse_personal_data(tx, changed)
    corrections = [_replace(tx, pair, current[pair.id], source, by) for pair in changed]
    look_at_lots(tx)
    return corrections


def _replace(tx: Transaction, pair: Pair, old: str, source: Source, by: str | None) -> Correction:
    items = tx.connection.execute(sa.select(ITEMS).where(ITEMS.c.pair_id == old)).all()
    if items[0].batch == CONVERSATIONS:
        raise RefusedError(f"pair {old} belongs to a conversation: withdraw it instead")
    purpose = read_pair(known_records(tx.connection, [old])[old]).purpose
    new = pair.model_copy(update={"id": _free_version(tx.connection, old), "purpose": purpose})
    check_pair(new, source)
    ranking = items[0].task == "ranking"
    batch = find_batch(tx.connection, items[0].batch) or Batch(items[0].batch, overlap=int(tx.setting("overlap")))
    insert_pairs(tx, [new], batch, source=Source(source.name, source.id, ranking))
    withdrawn = any(item.withdrawn for item in items)
    if not withdrawn:
        _lay_aside(tx, [old])
    payload = {"pair_id": old, "replaced_by": new.id} | ({"withdrawn": True} if withdrawn else {})
    now = tx.event("pair_corrected", rater_id=by, payload=payload)
    tx.connection.execute(sa.delete(WITHDRAWALS).where(WITHDRAWALS.c.pair_id == old))
    row = {"pair_id": old, "reason": "corrected", "replaced_by": new.id, "at_ms": now}
    tx.connection.execute(sa.insert(WITHDRAWALS).values(**row))
    with_gold = sa.select(GOLD.c.item_id).where(GOLD.c.item_id.in_([item.id for item in items])).limit(1)
    return Correction(old, new.id, tx.connection.scalar(with_gold) is not None)


def next_version(pair_id: str) -> str:
    """The id of a pair's next version.

    >>> next_version("pair-7"), next_version("pair-7@2")
    ('pair-7@2', 'pair-7@3')
    """
    found = _VERSION.search(pair_id)
    return f"{pair_id[: found.start()]}@{int(found.group(1)) + 1}" if found else f"{pair_id}@2"


def _free_version(connection: sa.Connection, old: str) -> str:
    """The id of a pair's next version that no pair of its own has."""
    name = next_version(old)
    while known_records(connection, [name]):
        name = next_version(name)
    return name


def _lay_aside(tx: Transaction, pair_ids: Sequence[str]) -> None:
    """Nobody gets or holds the pairs any more."""
    for part in _in_parts(pair_ids):
        which = ITEMS.c.pair_id.in_(part)
        tx.connection.execute(sa.update(ITEMS).where(which).values(withdrawn=1, offered=0, freed=0))
        held = sa.select(ASSIGNMENTS).join(ITEMS, ITEMS.c.id == ASSIGNMENTS.c.item_id)
        for row in tx.connection.execute(held.where(which, ASSIGNMENTS.c.state == "open")).all():
            tx.event("lapsed", rater_id=row.rater_id, item_id=row.item_id, payload={"assignment": row.id})
            st.SET_STATE.do(tx.connection, assignment=row.id, to_state="lapsed")
            if not row.occasion:
                st.FREE_PLACE.do(tx.connection, item=row.item_id)


def _check(connection: sa.Connection, pair_ids: Sequence[str]) -> None:
    there: set[str] = set()
    for part in _in_parts(pair_ids):
        there |= set(connection.scalars(sa.select(PAIRS.c.id).where(PAIRS.c.id.in_(part))))
    if missing := [pair_id for pair_id in pair_ids if pair_id not in there]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise RefusedError(f"there is no pair {', '.join(missing[:5])}{more} in the store: nothing was changed")


def _in_parts(pair_ids: Sequence[str]) -> list[Sequence[str]]:
    return [pair_ids[n : n + IDS_AT_ONCE] for n in range(0, len(pair_ids), IDS_AT_ONCE)]


def _batches_of(connection: sa.Connection, pair_ids: Sequence[str]) -> set[str]:
    names: set[str] = set()
    for part in _in_parts(pair_ids):
        names |= set(connection.scalars(sa.select(ITEMS.c.batch).where(ITEMS.c.pair_id.in_(part)).distinct()))
    return names


# --- reading ---


def withdrawals(connection: sa.Connection) -> list[Withdrawal]:
    """Withdrawn and corrected pairs, in campaign order."""
    query = sa.select(WITHDRAWALS).join(PAIRS, PAIRS.c.id == WITHDRAWALS.c.pair_id).order_by(PAIRS.c.position)
    return [Withdrawal(row.pair_id, row.reason, row.replaced_by, row.at_ms) for row in connection.execute(query)]


def pairs_in_batch(connection: sa.Connection, name: str) -> list[str]:
    """The ids of a batch's pairs, in campaign order; withdrawn ones too."""
    query = sa.select(ITEMS.c.pair_id, sa.func.min(ITEMS.c.position)).where(ITEMS.c.batch == name)
    return [row.pair_id for row in connection.execute(query.group_by(ITEMS.c.pair_id).order_by(sa.text("2")))]


def pairs_elsewhere(connection: sa.Connection, pair_ids: Sequence[str], batch: str) -> dict[Batch, int]:
    """How many of these pairs are in other batches, by batch."""
    present = present_ids(connection)
    counts: dict[str, int] = {}
    for part in _in_parts([present.get(pair_id, pair_id) for pair_id in pair_ids]):
        which = sa.and_(ITEMS.c.pair_id.in_(part), ITEMS.c.batch != batch)
        query = sa.select(ITEMS.c.batch, sa.func.count(sa.distinct(ITEMS.c.pair_id)).label("n"))
        for row in connection.execute(query.where(which).group_by(ITEMS.c.batch)):
            counts[row.batch] = counts.get(row.batch, 0) + row.n
    return {find_batch(connection, name) or Batch(name): count for name, count in sorted(counts.items())}


def pairs_outdated(connection: sa.Connection, pairs: Sequence[Pair]) -> list[str]:
    """The ids of those pairs that the store has in a later, corrected version."""
    present = present_ids(connection)
    corrected = [pair for pair in pairs if pair.id in present]
    records = known_records(connection, [present[pair.id] for pair in corrected])
    return [pair.id for pair in corrected if not is_version(pair, records[present[pair.id]])]


def pairs_absent(connection: sa.Connection, source: str, pair_ids: Collection[str]) -> list[str]:
    """The ids of pairs that came from this file earlier and are still given out, but are not in it any more."""
    sources = json.loads(connection.scalar(sa.select(SETTINGS.c.value).where(SETTINGS.c.name == "sources")) or "[]")
    identities = {identity for name, identity in sources if name == source}
    gone = {one.pair_id for one in withdrawals(connection)}
    kept = {present_ids(connection).get(pair_id, pair_id) for pair_id in pair_ids}
    absent: list[str] = []
    for added in additions(connection):
        if added["source_id"] in identities:
            between = PAIRS.c.position.between(added["first"], added["first"] + added["count"] - 1)
            ids = connection.scalars(sa.select(PAIRS.c.id).where(between).order_by(PAIRS.c.position))
            absent += [pair_id for pair_id in ids if pair_id not in gone and pair_id not in kept]
    return absent
