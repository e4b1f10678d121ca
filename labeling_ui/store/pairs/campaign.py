"""The campaign's contents: pairs in batches, and gold.

A batch is a set of pairs that a lead manages together: its priority, its overlap, its pool, and whether it is paused.
Pairs added without a batch are in the batch ''.
"""

from __future__ import annotations

import importlib.util
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import sqlalchemy as sa
from pydantic import Field, field_validator

from labeling_ui.database.errors import RefusedError, StoreError
from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import (
    BATCHES,
    EVENTS,
    GOLD,
    ITEMS,
    MAX_PRIORITY,
    PAIRS,
    RATERS,
    SETTINGS,
    WITHDRAWALS,
    turn_of,
)
from labeling_ui.database.words import index_items, length_of, text_of
from labeling_ui.store.answers import storable
from labeling_ui.store.names import composed, pool_name
from labeling_ui.store.pairs.items import items_of, pairs_digest
from labeling_ui.store.pairs.known import check_value
from tiebreak.assessments import is_single, read_pair
from tiebreak.errors import HandoffError, counted
from tiebreak.messages import Record
from tiebreak.records import Pair
from tiebreak.runs.requirements import Requirement, require
from tiebreak.runs.run import identify_input

IDS_AT_ONCE = 500
MAX_ID_CHARACTERS = 200
CONVERSATIONS = "conversations"
"""The batch of conversations, whose pairs are given to nobody else."""
CONFIGURED = "configured:"
"""Prefix of a batch's name in the setting that holds its latest values from a configuration."""


class BatchChange(Record):
    """Changes to a batch; None changes nothing."""

    priority: int | None = Field(default=None, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    pool: str | None = Field(default=None, max_length=100)
    overlap: int | None = Field(default=None, ge=1, le=100)
    paused: bool | None = None
    deadline: str | None = Field(default=None, max_length=10)
    """the last day of its work, as 2026-12-24; empty: none"""
    goal: int | None = Field(default=None, ge=0, le=2**31 - 1)
    """judgments wanted by the deadline; 0: all of them"""

    @field_validator("pool")
    @classmethod
    def _pool(cls, name: str | None) -> str | None:
        return None if name is None else pool_name(storable(name) or "")

    @field_validator("deadline")
    @classmethod
    def _day(cls, day: str | None) -> str | None:
        if day:
            try:
                return date.fromisoformat(day).isoformat()
            except ValueError as error:
                raise ValueError("a deadline must be a day such as 2026-12-24") from error
        return day


@dataclass(frozen=True)
class Batch:
    """A set of pairs and its settings. Higher priorities come first; pool '' is everybody's."""

    name: str
    priority: int = 0
    pool: str = ""
    overlap: int = 1
    paused: bool = False
    deadline: str = ""
    """the last day of its work, UTC; empty: none"""
    goal: int = 0
    """judgments wanted by the deadline; 0: all of them"""

    @classmethod
    def of(cls, row: Any) -> Batch:
        """A row of `batches`."""
        return cls(row.name, row.priority, row.pool, row.overlap, bool(row.paused), row.deadline, row.goal)

    def logged(self) -> dict[str, Any]:
        """The settings as the log has them: a deadline and a goal only where there are any."""
        plan = {"deadline": self.deadline, "goal": self.goal}
        return {name: value for name, value in vars(self).items() if value or name not in plan}


REQUIRES = "requires"
"""The setting with the requirements on every source of pairs."""


@dataclass(frozen=True)
class Gold:
    """An item with a known answer: the better completion, or None where neither is better; a single answer's value."""

    item_id: str
    preferred_id: str | None = None
    value: int | str | None = None


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
        RefusedError: the batch cannot have its name.
    """
    if batch.name == CONVERSATIONS:
        raise RefusedError(f"batch: {CONVERSATIONS!r} is the batch of conversations: give the pairs another one")
    begin_campaign(tx, overlap=batch.overlap, seed=seed, url=url)
    new = new_pairs(tx, pairs, source, url)
    if new or not batch.name or find_batch(tx.connection, batch.name) is not None:
        _match_batch(tx, batch)
    if pairs:
        record_source(tx, source)
    if new:
        insert_pairs(tx, new, batch, source=source)
    return len(new)


def upload_pairs(
    tx: Transaction, pairs: Sequence[Pair], name: str, source: Source, url: str, *, preview: bool = False
) -> int:
    """Add the pairs that are new to a batch of a running campaign; returns how many. `preview`: only count them.

    Raises:
        RefusedError: there is no such batch, or it is that of conversations.
        StoreError: the store has another pair with the same id.
    """
    batch = find_batch(tx.connection, name)
    if batch is None or name == CONVERSATIONS:
        raise RefusedError(f"there is no batch named {name!r} to add pairs to")
    if _requirements(tx):
        raise RefusedError(
            "this campaign takes only pairs from anonymised runs (require), and nobody knows what is in a file: name the "
            "run with the key pairs"
        )
    new = new_pairs(tx, pairs, source, url)
    if new and not preview:
        record_source(tx, source)
        insert_pairs(tx, new, batch, source=source)
    return len(new)


def new_pairs(tx: Transaction, pairs: Sequence[Pair], source: Source, url: str) -> list[Pair]:
    """The pairs that the store does not have.

    Raises:
        StoreError: it has another pair with one of the ids.
    """
    versions = versions_of(tx.connection)
    records = known_records(tx.connection, [name for pair in pairs for name in versions.get(pair.id, [pair.id])])
    new: dict[str, Pair] = {}
    for pair in pairs:
        there = [records[name] for name in versions.get(pair.id, [pair.id]) if name in records]
        there += [new[pair.id].model_dump_json()] if pair.id in new else []
        # An earlier version is not an error: a file from before a correction can still be served.
        if there and not any(is_version(pair, record) for record in there):
            raise StoreError(
                f"two different pairs have the id {pair.id} (in {source.name} and in {url}): fix {source.name}, or, if "
                f"it is the right one, 'tiebreak label correct --pairs {source.name} --store {url}' replaces the other"
            )
        if not there:
            check_pair(pair, source)
            new[pair.id] = pair
    _refuse_shared_prompts(tx.connection, list(new.values()), source, url)
    return list(new.values())


EVALUATES = PAIRS.c.record.like('%"purpose":"evaluation"%')
"""Whether a pair compares policies; a key with its quotes occurs nowhere else in a record."""


def judgments_wanted(connection: sa.Connection) -> dict[str, int]:
    """Evaluation pair → the number of judgments that it needs."""
    query = sa.select(ITEMS.c.pair_id, sa.func.sum(ITEMS.c.overlap)).join(PAIRS, PAIRS.c.id == ITEMS.c.pair_id)
    query = query.where(EVALUATES, ITEMS.c.withdrawn == sa.literal_column("0")).group_by(ITEMS.c.pair_id)
    return {pair_id: int(number) for pair_id, number in connection.execute(query)}


def _refuse_shared_prompts(connection: sa.Connection, new: Sequence[Pair], source: Source, url: str) -> None:
    """No prompt may be both trained on and evaluated on.

    Raises:
        StoreError: one has training pairs and evaluation pairs.
    """
    evaluating = {pair.prompt_id for pair in new if pair.purpose == "evaluation"}
    training = {pair.prompt_id for pair in new if _is_learned(pair)}
    if evaluating:
        others = connection.scalars(sa.select(PAIRS.c.record).where(~EVALUATES))
        training |= {pair.prompt_id for pair in map(read_pair, others) if _is_learned(pair)}
    if training:
        others = connection.scalars(sa.select(PAIRS.c.record).where(EVALUATES))
        evaluating |= {pair.prompt_id for pair in map(read_pair, others)}
    if shared := evaluating & training:
        raise StoreError(
            f"{counted(len(shared), 'prompt')} would have training pairs and evaluation pairs in {url} (adding "
            f"{source.name}): the policies would be compared on what they learn from. Evaluate on held-out prompts"
        )


def _is_learned(pair: Pair) -> bool:
    """Whether a policy is trained on it; its held-out pairs are only measured on."""
    return pair.purpose == "training" and pair.split == "train"


def check_pair(pair: Pair, source: Source) -> None:
    """Refuse a pair that nobody could judge: its id is part of web addresses, in which `..` is another place, and the ids
    of its completions identify the answers.

    Raises:
        StoreError: the id cannot be used, or two completions have one.
    """
    name = pair.id
    if (
        not 0 < len(name) <= MAX_ID_CHARACTERS
        or name.strip(".") == ""
        or any(unicodedata.category(c) == "Cc" for c in name)
    ):
        raise StoreError(
            f"the pair id {name[:60]!r} in {source.name} cannot be used: it must have 1 to {MAX_ID_CHARACTERS} characters, "
            "no control characters, and not only dots. Change it, or leave the column out: then it is a hash of the pair"
        )
    if len({one.id for one in pair.completions}) < len(pair.completions):
        raise StoreError(
            f"pair {name} in {source.name} has two completions with one id ({pair.completions[0].id[:60]}): nobody could "
            "tell which was preferred. Give each its own"
        )


def is_version(pair: Pair, record: str) -> bool:
    """Whether a stored record is this pair, except for the id, which has the version's number."""
    if pair.model_dump_json() == record:
        return True
    stored = read_pair(record)
    return stored == pair.model_copy(update={"id": stored.id})


def present_ids(connection: sa.Connection) -> dict[str, str]:
    """The id of the present version of every pair that was corrected, by its earlier ids."""
    return {pair_id: names[-1] for pair_id, names in versions_of(connection).items()}


def versions_of(connection: sa.Connection) -> dict[str, list[str]]:
    """The ids of the versions of every pair that was corrected, from the given one to the present one."""
    query = sa.select(WITHDRAWALS.c.pair_id, WITHDRAWALS.c.replaced_by).where(WITHDRAWALS.c.replaced_by.is_not(None))
    following = {row.pair_id: row.replaced_by for row in connection.execute(query)}
    versions: dict[str, list[str]] = {}
    for pair_id in following:
        versions[pair_id] = [pair_id]
        while versions[pair_id][-1] in following:
            versions[pair_id].append(following[versions[pair_id][-1]])
    return versions


def known_records(connection: sa.Connection, ids: Sequence[str]) -> dict[str, str]:
    """The stored records of these pairs, by id."""
    records: dict[str, str] = {}
    for n in range(0, len(ids), IDS_AT_ONCE):
        query = sa.select(PAIRS.c.id, PAIRS.c.record).where(PAIRS.c.id.in_(ids[n : n + IDS_AT_ONCE]))
        records |= {row.id: row.record for row in connection.execute(query)}
    return records


def add_new_pair(tx: Transaction, pair: Pair, batch: Batch, source: Source) -> None:
    """Add one pair that is certainly new to a running campaign."""
    _match_batch(tx, batch)
    record_source(tx, source)
    insert_pairs(tx, [pair], batch, source=source)


def find_batch(connection: sa.Connection, name: str) -> Batch | None:
    """The batch with that name."""
    row = connection.execute(sa.select(BATCHES).where(BATCHES.c.name == name)).first()
    return None if row is None else Batch.of(row)


def create_batch(tx: Transaction, name: str, change: BatchChange) -> Batch:
    """Create an empty batch; settings that `change` leaves out are the campaign's.

    Raises:
        RefusedError: there is one, or it cannot have the name.
    """
    if not name or name == CONVERSATIONS:
        raise RefusedError(f"a batch cannot be named {name!r}: give it a name of printable characters")
    if find_batch(tx.connection, name) is not None:
        raise RefusedError(f"there is a batch named {name!r} already")
    batch = Batch(name, overlap=int(tx.setting("overlap")))
    batch = replace(batch, **change.model_dump(exclude_none=True))
    write_batch(tx, batch, exists=False)
    return batch


def change_batch(tx: Transaction, name: str, change: BatchChange) -> Batch:
    """Change a batch; pairs already leased stay with their raters.

    Raises:
        RefusedError: there is no such batch.
    """
    if name == CONVERSATIONS:
        raise RefusedError("pairs of conversations belong to their raters: they cannot be given out as a batch")
    batch = find_batch(tx.connection, name)
    if batch is None:
        raise RefusedError(f"there is no batch named {name!r}")
    changed = Batch(**(vars(batch) | change.model_dump(exclude_none=True)))
    if changed != batch:
        write_batch(tx, changed, exists=True)
    return changed


def set_gold(tx: Transaction, item_id: str, preferred_id: str | None, value: int | str | None = None) -> Gold:
    """Make an item gold: every rater gets it once, and it does not count towards the overlap.

    Raises:
        RefusedError: there is no such item of one or two completions, the completion is not one of them, or no judgment
            of a single answer can have the value.
    """
    item = tx.connection.execute(sa.select(ITEMS).where(ITEMS.c.id == item_id)).first()
    if item is not None and item.withdrawn:
        raise RefusedError(f"pair {item_id} is withdrawn: restore it first")
    single = item is not None and is_single(item.task)
    if item is not None and single:
        check_value(item.task, value)
        preferred_id = None
    elif item is None or item.task != "pair" or preferred_id not in (None, item.first_id, item.second_id):
        raise RefusedError(f"{preferred_id} is not a completion of a pair of two completions with the id {item_id}")
    elif value is not None:
        raise RefusedError(f"{item_id} is a pair: its known answer is a completion, not a value")
    answer = {"preferred_id": preferred_id}
    tx.event("gold_set", item_id=item_id, payload=answer | ({"value": value} if single else {}))
    there = tx.connection.execute(sa.delete(GOLD).where(GOLD.c.item_id == item_id).returning(GOLD.c.number)).first()
    latest = tx.connection.scalar(sa.select(sa.func.max(GOLD.c.number)))
    number = there.number if there else 0 if latest is None else latest + 1
    row = {"item_id": item_id, **answer, "number": number, "value": json.dumps(value) if single else None}
    tx.connection.execute(sa.insert(GOLD).values(**row))
    tx.connection.execute(sa.update(ITEMS).where(ITEMS.c.id == item_id).values(offered=0, freed=0))
    return Gold(item_id, preferred_id, value)


def remove_gold(tx: Transaction, item_id: str) -> None:
    """Make a gold item an ordinary one: it is given out as its batch's others, and its judgments are votes.

    Raises:
        RefusedError: it is not gold.
    """
    removed = tx.connection.execute(sa.delete(GOLD).where(GOLD.c.item_id == item_id).returning(GOLD.c.number)).first()
    if removed is None:
        raise RefusedError(f"pair {item_id} is not gold")
    tx.event("gold_removed", item_id=item_id, payload={})
    name = tx.connection.scalar(sa.select(ITEMS.c.batch).where(ITEMS.c.id == item_id)) or ""
    steer(tx, find_batch(tx.connection, name) or Batch(name), ITEMS.c.id == item_id)


def begin_campaign(tx: Transaction, *, overlap: int, seed: int, url: str) -> None:
    """Start the campaign or continue it: its seed stays."""
    rows = tx.connection.execute(sa.select(SETTINGS.c.name, SETTINGS.c.value)).all()
    settings = {row.name: json.loads(row.value) for row in rows}
    if "seed" not in settings:
        tx.event("campaign_begun", payload={"overlap": overlap, "seed": seed})
        for name, value in {"overlap": overlap, "seed": seed, "sources": []}.items():
            tx.connection.execute(sa.insert(SETTINGS).values(name=name, value=json.dumps(value)))
    elif settings["seed"] != seed:
        raise StoreError(
            f"{url} was created with seed {settings['seed']}, and the configuration has {seed}: "
            "set it back, or give another --store"
        )


def _match_batch(tx: Transaction, batch: Batch) -> None:
    """Create the batch, or update its overlap, priority and pool from the configuration. A pause stays.

    An unchanged configuration changes nothing, so that a lead's own settings stay.
    """
    existing = find_batch(tx.connection, batch.name)
    configured = [batch.overlap, batch.priority, batch.pool]
    if existing is not None and _configured(tx, batch.name) == configured:
        return
    _set_configured(tx, batch.name, configured)
    if existing is None or [existing.overlap, existing.priority, existing.pool] != configured:
        there = existing or batch
        merged = replace(there, overlap=batch.overlap, priority=batch.priority, pool=batch.pool)
        write_batch(tx, merged, exists=existing is not None)
    if not batch.name:
        value = json.dumps(batch.overlap)
        tx.connection.execute(sa.update(SETTINGS).where(SETTINGS.c.name == "overlap").values(value=value))


def _configured(tx: Transaction, name: str) -> list[Any] | None:
    """The settings that a configuration gave a batch last."""
    value = tx.connection.scalar(sa.select(SETTINGS.c.value).where(SETTINGS.c.name == CONFIGURED + name))
    return None if value is None else list(json.loads(value))


def _set_configured(tx: Transaction, name: str, configured: list[Any]) -> None:
    row = CONFIGURED + name
    tx.connection.execute(sa.delete(SETTINGS).where(SETTINGS.c.name == row))
    tx.connection.execute(sa.insert(SETTINGS).values(name=row, value=json.dumps(configured)))


def _check_new_name(connection: sa.Connection, name: str) -> None:
    """Whatever creates a batch: leads tell batches apart by their names.

    Raises:
        RefusedError: the name is not printable, or looks like another batch's.
    """
    if name != name.strip() or not name.isprintable():
        raise RefusedError(
            f"a batch cannot be named {name!r}: give it a name of printable characters, without spaces at the ends"
        )
    names = connection.scalars(sa.select(BATCHES.c.name))
    if same := next((one for one in names if composed(one) == composed(name)), None):
        raise RefusedError(f"there is a batch named {same!r} already, written in other characters: use its name")


def write_batch(tx: Transaction, batch: Batch, *, exists: bool) -> None:
    """Create or change a batch and its items.

    Raises:
        RefusedError: a new batch cannot have the name.
    """
    if not exists:
        _check_new_name(tx.connection, batch.name)
    tx.event("batch_changed", payload=batch.logged())
    values = {**vars(batch), "paused": int(batch.paused)}
    if exists:
        tx.connection.execute(sa.update(BATCHES).where(BATCHES.c.name == batch.name).values(**values))
    else:
        tx.connection.execute(sa.insert(BATCHES).values(**values))
    steer(tx, batch, ITEMS.c.batch == batch.name)


def steer(tx: Transaction, batch: Batch, which: sa.ColumnElement[bool]) -> None:
    """Give items the settings of a batch, which becomes theirs."""
    enough = sa.case((ITEMS.c.taken > batch.overlap, ITEMS.c.taken), else_=batch.overlap)
    is_gold = sa.select(GOLD.c.item_id).where(GOLD.c.item_id == ITEMS.c.id).exists()
    offered = sa.case((sa.or_(is_gold, ITEMS.c.withdrawn > 0), 0), else_=int(not batch.paused))
    turn = sa.cast(ITEMS.c.position, sa.BigInteger) + sa.literal(turn_of(batch.priority, 0), sa.BigInteger)
    steered = {"overlap": enough, "offered": offered, "freed": 0, "turn": turn, "pool": batch.pool}
    changed = tx.connection.execute(sa.update(ITEMS).where(which).values(**steered, batch=batch.name))
    if changed.rowcount:
        tx.connection.execute(sa.update(RATERS).values(cursor=0))


def insert_pairs(tx: Transaction, pairs: list[Pair], batch: Batch, *, source: Source) -> None:
    """Add new pairs to an existing batch."""
    first = tx.connection.scalar(sa.select(sa.func.count()).select_from(PAIRS)) or 0
    records = [pair.model_dump_json() for pair in pairs]
    rows = [
        {"id": p.id, "position": first + n, "record": r} for n, (p, r) in enumerate(zip(pairs, records, strict=True))
    ]
    tx.connection.execute(sa.insert(PAIRS), rows)
    position = tx.connection.scalar(sa.select(sa.func.count()).select_from(ITEMS)) or 0
    compared = [(item, pair) for pair in pairs for item in items_of(pair, ranking=source.ranking)]
    paused = find_batch(tx.connection, batch.name)
    same = {"overlap": batch.overlap, "taken": 0, "batch": batch.name, "pool": batch.pool, "freed": 0}
    same |= {"offered": int(paused is None or not paused.paused)}
    same |= {"for_first": 0, "for_second": 0, "for_neither": 0, "disputed": 0, "skips": 0, "withdrawn": 0}
    tx.connection.execute(
        sa.insert(ITEMS),
        [
            {
                **vars(item),
                **same,
                "position": n,
                "turn": turn_of(batch.priority, n),
                "length": length_of(pair, item.first_id, item.second_id, item.task),
            }
            for n, (item, pair) in enumerate(compared, start=position)
        ],
    )
    index_items(
        tx.connection,
        [
            (n, text_of(pair, item.first_id, item.second_id, item.task))
            for n, (item, pair) in enumerate(compared, start=position)
        ],
    )
    lowest = turn_of(batch.priority, position)
    tx.connection.execute(sa.update(RATERS).where(RATERS.c.cursor > lowest).values(cursor=lowest))
    facts = {"first": first, "count": len(pairs), "digest": pairs_digest(records), "overlap": batch.overlap}
    facts |= {"batch": batch.name, "ranking": source.ranking}
    # The path is not in the log: the same campaign has the same log in every folder.
    tx.event("pairs_added", payload={**facts, "source_id": source.id})


def additions(connection: sa.Connection) -> list[dict[str, Any]]:
    """What was added to the campaign when: the position of the first pair, how many there were, and their source's id."""
    # The words of the index's condition: a parameter would have SQLite read the whole log.
    added = sa.select(EVENTS.c.payload).where(EVENTS.c.kind == sa.literal_column("'pairs_added'"))
    return [json.loads(payload) for payload in connection.scalars(added.order_by(EVENTS.c.seq))]


def sources_of_single_answers(connection: sa.Connection) -> set[str]:
    """The ids of the sources whose rows are single answers."""
    firsts = {added["first"]: added["source_id"] for added in additions(connection)}
    query = sa.select(PAIRS.c.position).join(ITEMS, ITEMS.c.pair_id == PAIRS.c.id).where(ITEMS.c.second_id.is_(None))
    return {firsts[position] for position in connection.scalars(query) if position in firsts}


def set_requirements(tx: Transaction, requirements: Sequence[Requirement]) -> None:
    """Demand that the sources of all pairs, those there and those to come, meet requirements, from now on.

    Raises:
        HandoffError: a source that is there does not.
    """
    wanted: list[Requirement] = sorted({*requirements, *_requirements(tx)})
    if wanted == _requirements(tx):
        return
    recorded = tx.connection.scalar(sa.select(SETTINGS.c.value).where(SETTINGS.c.name == "sources"))
    for name, identity in json.loads(recorded or "[]"):
        _require(wanted, Source(name, identity))
    tx.connection.execute(sa.delete(SETTINGS).where(SETTINGS.c.name == REQUIRES))
    tx.connection.execute(sa.insert(SETTINGS).values(name=REQUIRES, value=json.dumps(wanted)))


def _requirements(tx: Transaction) -> list[Requirement]:
    value = tx.connection.scalar(sa.select(SETTINGS.c.value).where(SETTINGS.c.name == REQUIRES))
    return list(json.loads(value)) if value is not None else []


CORRECTIONS = "corrections"
"""The source of pairs that a lead corrected on the page."""


def refuse_personal_data(tx: Transaction, pairs: Sequence[Pair]) -> None:
    """Refuse texts that a lead typed, in a campaign of anonymised pairs, if personal data is found in them.

    Raises:
        RefusedError: names the pairs and the kinds.
    """
    if not _requirements(tx) or importlib.util.find_spec("presidio_analyzer") is None:
        return
    from tiebreak.pii.detector import Detector

    detector, found = Detector(), list[str]()
    for pair in pairs:
        texts = [*(message.text for message in pair.messages), *(one.text for one in pair.completions)]
        kinds = sorted({one.kind for text in texts for one in detector.find(text) if one.is_sure})
        found += [f"{pair.id}: {', '.join(kinds)}"] if kinds else []
    if found:
        raise RefusedError(f"this campaign takes only anonymised pairs (require), and these have {'; '.join(found)}")


def _require(requirements: Sequence[Requirement], source: Source) -> None:
    if not requirements or source.id in (CONVERSATIONS, CORRECTIONS):
        return  # what raters and leads type
    require(requirements, source.name)
    if identify_input(source.name).id != source.id:
        raise HandoffError(f"require: {source.name} is another run than the one that the pairs came from")


def record_source(tx: Transaction, source: Source) -> None:
    """Remember where pairs came from.

    Raises:
        HandoffError: it does not meet the campaign's requirements.
    """
    _require(_requirements(tx), source)
    if [source.name, source.id] not in tx.setting("sources"):
        sources = json.dumps([*tx.setting("sources"), [source.name, source.id]])
        tx.connection.execute(sa.update(SETTINGS).where(SETTINGS.c.name == "sources").values(value=sources))
