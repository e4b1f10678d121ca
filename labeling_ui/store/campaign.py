"""The campaign's contents: pairs in batches, and gold.

A batch is a set of pairs that a lead manages together: its priority, its overlap, its pool, and whether it is paused.
Pairs added without a batch are in the batch ''.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from pydantic import Field, field_validator

from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import BATCHES, GOLD, ITEMS, MAX_PRIORITY, PAIRS, RATERS, SETTINGS, StoreError, turn_of
from labeling_ui.store.answers import storable
from labeling_ui.store.assigning import RefusedError
from labeling_ui.store.items import items_of, pairs_digest
from tiebreak.records import Pair, Record

IDS_AT_ONCE = 500


class BatchChange(Record):
    """Changes to a batch; None changes nothing."""

    priority: int | None = Field(default=None, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    pool: str | None = Field(default=None, max_length=100)
    overlap: int | None = Field(default=None, ge=1, le=100)
    paused: bool | None = None

    _storable = field_validator("pool")(storable)


@dataclass(frozen=True)
class Batch:
    """A set of pairs and its settings. Higher priorities come first; pool '' is everybody's."""

    name: str
    priority: int = 0
    pool: str = ""
    overlap: int = 1
    paused: bool = False


@dataclass(frozen=True)
class Gold:
    """An item with a known answer: the better completion, or None where neither is better."""

    item_id: str
    preferred_id: str | None


@dataclass(frozen=True)
class Source:
    """Where pairs came from, the identity of that input, and how larger pairs are judged."""

    name: str
    id: str
    ranking: bool = False
    """rank all completions of a pair at once, instead of judging them two by two"""


def add_pairs(tx: Transaction, pairs: Sequence[Pair], batch: Batch, *, seed: int, source: Source, url: str) -> int:
    """Add the pairs that are new; returns how many.

    Raises:
        StoreError: the store has another seed, or another pair with the same id.
    """
    _match_campaign(tx, overlap=batch.overlap, seed=seed, url=url)
    known = _known_records(tx.connection, [pair.id for pair in pairs])
    new: dict[str, Pair] = {}
    for pair in pairs:
        there = known.get(pair.id) or (new[pair.id].model_dump_json() if pair.id in new else None)
        if there is not None and there != pair.model_dump_json():
            raise StoreError(
                f"two different pairs have the id {pair.id} (in {source.name} and in {url}): fix {source.name}"
            )
        if there is None:
            new[pair.id] = pair
    _match_batch(tx, batch)
    if new:
        first = tx.connection.scalar(sa.select(sa.func.count()).select_from(PAIRS)) or 0
        _insert_pairs(tx, list(new.values()), batch, first=first, source=source)
    return len(new)


def _known_records(connection: sa.Connection, ids: Sequence[str]) -> dict[str, str]:
    """The stored records of these pairs, by id."""
    known: dict[str, str] = {}
    for n in range(0, len(ids), IDS_AT_ONCE):
        query = sa.select(PAIRS.c.id, PAIRS.c.record).where(PAIRS.c.id.in_(ids[n : n + IDS_AT_ONCE]))
        known |= {row.id: row.record for row in connection.execute(query)}
    return known


def add_new_pair(tx: Transaction, pair: Pair, batch: Batch, source: Source) -> None:
    """Add one pair that is certainly new to a running campaign."""
    _match_batch(tx, batch)
    first = tx.connection.scalar(sa.select(sa.func.count()).select_from(PAIRS)) or 0
    _insert_pairs(tx, [pair], batch, first=first, source=source)


def find_batch(connection: sa.Connection, name: str) -> Batch | None:
    """The batch with that name."""
    row = connection.execute(sa.select(BATCHES).where(BATCHES.c.name == name)).first()
    return None if row is None else Batch(row.name, row.priority, row.pool, row.overlap, bool(row.paused))


def change_batch(tx: Transaction, name: str, change: BatchChange) -> Batch:
    """Change a batch; pairs already leased stay with their raters.

    Raises:
        RefusedError: there is no such batch.
    """
    batch = find_batch(tx.connection, name)
    if batch is None:
        raise RefusedError(f"there is no batch named {name!r}")
    changed = Batch(**(vars(batch) | change.model_dump(exclude_none=True)))
    if changed != batch:
        _write_batch(tx, changed, known=True)
    return changed


def set_gold(tx: Transaction, item_id: str, preferred_id: str | None) -> Gold:
    """Make an item gold: every rater gets it once, and it does not count towards the overlap.

    Raises:
        RefusedError: there is no such item of two completions, or the completion is not one of them.
    """
    item = tx.connection.execute(sa.select(ITEMS).where(ITEMS.c.id == item_id)).first()
    if item is None or item.task != "pair" or preferred_id not in (None, item.first_id, item.second_id):
        raise RefusedError(f"{preferred_id} is not a completion of a pair of two completions with the id {item_id}")
    tx.event("gold_set", item_id=item_id, payload={"preferred_id": preferred_id})
    there = tx.connection.execute(sa.delete(GOLD).where(GOLD.c.item_id == item_id).returning(GOLD.c.number)).first()
    number = there.number if there else tx.connection.scalar(sa.select(sa.func.count()).select_from(GOLD))
    tx.connection.execute(sa.insert(GOLD).values(item_id=item_id, preferred_id=preferred_id, number=number))
    tx.connection.execute(sa.update(ITEMS).where(ITEMS.c.id == item_id).values(offered=0, freed=0))
    return Gold(item_id, preferred_id)


def _match_campaign(tx: Transaction, *, overlap: int, seed: int, url: str) -> None:
    """Start the campaign or continue it: its seed stays."""
    rows = tx.connection.execute(sa.select(SETTINGS.c.name, SETTINGS.c.value)).all()
    settings = {row.name: json.loads(row.value) for row in rows}
    if not settings:
        tx.event("campaign_begun", payload={"overlap": overlap, "seed": seed})
        for name, value in {"overlap": overlap, "seed": seed, "sources": []}.items():
            tx.connection.execute(sa.insert(SETTINGS).values(name=name, value=json.dumps(value)))
    elif settings["seed"] != seed:
        raise StoreError(
            f"{url} was created with seed {settings['seed']}, and the configuration has {seed}: "
            "set it back, or give another --store"
        )


def _match_batch(tx: Transaction, batch: Batch) -> None:
    """Create the batch, or update its overlap, priority and pool from the configuration. A pause stays."""
    existing = find_batch(tx.connection, batch.name)
    if existing is None or (existing.overlap, existing.priority, existing.pool) != (
        batch.overlap,
        batch.priority,
        batch.pool,
    ):
        paused = existing.paused if existing else batch.paused
        merged = Batch(batch.name, batch.priority, batch.pool, batch.overlap, paused)
        _write_batch(tx, merged, known=existing is not None)
    if not batch.name:
        value = json.dumps(batch.overlap)
        tx.connection.execute(sa.update(SETTINGS).where(SETTINGS.c.name == "overlap").values(value=value))


def _write_batch(tx: Transaction, batch: Batch, *, known: bool) -> None:
    tx.event("batch_changed", payload=vars(batch))
    values = {**vars(batch), "paused": int(batch.paused)}
    if known:
        tx.connection.execute(sa.update(BATCHES).where(BATCHES.c.name == batch.name).values(**values))
    else:
        tx.connection.execute(sa.insert(BATCHES).values(**values))
    enough = sa.case((ITEMS.c.taken > batch.overlap, ITEMS.c.taken), else_=batch.overlap)
    is_gold = sa.select(GOLD.c.item_id).where(GOLD.c.item_id == ITEMS.c.id).exists()
    offered = sa.case((is_gold, 0), else_=int(not batch.paused))
    turn = sa.cast(ITEMS.c.position, sa.BigInteger) + sa.literal(turn_of(batch.priority, 0), sa.BigInteger)
    steered = {"overlap": enough, "offered": offered, "freed": 0, "turn": turn, "pool": batch.pool}
    changed = tx.connection.execute(sa.update(ITEMS).where(ITEMS.c.batch == batch.name).values(**steered))
    if changed.rowcount:
        tx.connection.execute(sa.update(RATERS).values(cursor=0))


def _insert_pairs(tx: Transaction, pairs: list[Pair], batch: Batch, *, first: int, source: Source) -> None:
    records = [pair.model_dump_json() for pair in pairs]
    rows = [
        {"id": p.id, "position": first + n, "record": r} for n, (p, r) in enumerate(zip(pairs, records, strict=True))
    ]
    tx.connection.execute(sa.insert(PAIRS), rows)
    position = tx.connection.scalar(sa.select(sa.func.count()).select_from(ITEMS)) or 0
    items = [item for pair in pairs for item in items_of(pair, ranking=source.ranking)]
    paused = find_batch(tx.connection, batch.name)
    same = {"overlap": batch.overlap, "taken": 0, "batch": batch.name, "pool": batch.pool, "freed": 0}
    same |= {"offered": int(paused is None or not paused.paused)}
    same |= {"for_first": 0, "for_second": 0, "for_neither": 0, "disputed": 0, "skips": 0}
    tx.connection.execute(
        sa.insert(ITEMS),
        [
            {**vars(item), **same, "position": n, "turn": turn_of(batch.priority, n)}
            for n, item in enumerate(items, start=position)
        ],
    )
    lowest = turn_of(batch.priority, position)
    tx.connection.execute(sa.update(RATERS).where(RATERS.c.cursor > lowest).values(cursor=lowest))
    facts = {"first": first, "count": len(pairs), "digest": pairs_digest(records), "overlap": batch.overlap}
    facts |= {"batch": batch.name, "ranking": source.ranking}
    # The path is not in the log: the same campaign has the same log in every folder.
    tx.event("pairs_added", payload={**facts, "source_id": source.id})
    if [source.name, source.id] not in tx.setting("sources"):
        sources = json.dumps([*tx.setting("sources"), [source.name, source.id]])
        tx.connection.execute(sa.update(SETTINGS).where(SETTINGS.c.name == "sources").values(value=sources))
