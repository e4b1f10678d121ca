"""The label store: pairs, raters, who judges what, and the log of everything that happened.

Every change is one transaction that appends to the event log and updates the tables derived from it. What the store
promises, whatever the number of threads, processes and servers on it:

- an acknowledged judgment is on disk, and submitting it again changes nothing;
- no pair is held or judged by more raters than its overlap, and none is given to a rater twice;
- a judgment carries the sides as they were assigned, never as a client claims them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import Field, StrictBool, StrictInt, field_validator, model_validator
from sqlalchemy.engine import Connection, Engine

from labeling_ui import statements as st
from labeling_ui.schema import (
    ACCEPTANCES,
    ASSIGNMENTS,
    EVENTS,
    ITEMS,
    JUDGMENTS,
    LOG_HEAD,
    NOT_DURABLE,
    PAIRS,
    RATERS,
    READ_ONLY,
    SETTINGS,
    StoreError,
    build_engine,
    migrate,
)
from tiebreak.errors import TiebreakError
from tiebreak.records import Judgment, Pair, Record, content_id

LEASE_SECONDS = 20 * 60
DAY_MS = 86_400_000
PAIRS_IN_MEMORY = 5_000
REPEAT_AFTER = 20
"""A repeat comes after at least this many other judgments."""
MAX_HELD = 3
"""Pairs a rater may hold at once: the one on the screen, and those fetched ahead."""
FLAGS = ("unsafe", "personal_data", "broken_prompt", "wrong_language")
ASPECTS = ("helpful", "honest", "harmless")
MAX_RATIONALE_CHARACTERS = 4_000
MAX_EDITED_CHARACTERS = 100_000

RaterKind = Literal["human", "simulated", "model"]
Role = Literal["rater", "lead"]


class RefusedError(TiebreakError):
    """The store will not do what was asked: someone else's pair, a lease that ran out, a second answer."""


@dataclass(frozen=True)
class Rater:
    """Someone who judges. `id` is the pseudonym that exports carry; `name` stays in the store."""

    id: str
    name: str
    kind: RaterKind
    role: Role
    disabled: bool = False


@dataclass(frozen=True)
class Assignment:
    """One item given to one rater, with its sides. `item_id` is the pair's id, or one of the K(K−1)/2 within a larger
    pair."""

    id: str
    item_id: str
    rater_id: str
    left_id: str
    right_id: str
    pair: Pair
    draft: dict[str, Any] | None = None


class Draft(Record):
    """What a rater may say beside and before the answer. The sides are not in it: the store knows which were shown."""

    answer: StrictInt | None = Field(default=None, ge=-3, le=3)
    both_bad: StrictBool = False
    skip: StrictBool = False
    aspects: dict[str, StrictInt] = Field(default_factory=dict)
    rationale: str = Field(default="", max_length=MAX_RATIONALE_CHARACTERS)
    edited_text: str | None = Field(default=None, max_length=MAX_EDITED_CHARACTERS)
    flags: tuple[str, ...] = ()

    @field_validator("rationale", "edited_text")
    @classmethod
    def _storable(cls, text: str | None) -> str | None:
        return storable(text)

    @field_validator("flags")
    @classmethod
    def _known_flags(cls, flags: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [flag for flag in flags if flag not in FLAGS]:
            raise ValueError(f"unknown flag {unknown[0][:40]!r}: one of {', '.join(FLAGS)}")
        return tuple(sorted(set(flags)))

    @field_validator("aspects")
    @classmethod
    def _known_aspects(cls, aspects: dict[str, int]) -> dict[str, int]:
        for name, answer in aspects.items():
            if name not in ASPECTS or not -3 <= answer <= 3:
                raise ValueError(f"{name[:40]!r}: an aspect is one of {', '.join(ASPECTS)}, answered from -3 to 3")
        return aspects


class Submission(Draft):
    """A whole judgment, as a rater sends it."""

    client_id: str = Field(min_length=1, max_length=64)
    """made by the client, once a judgment: sending it again is harmless"""
    pair_id: str = Field(max_length=200)
    guideline_version: str = Field(default="", max_length=100)
    seconds_active: float | None = Field(default=None, ge=0, le=86_400, allow_inf_nan=False)
    client_at_ms: StrictInt | None = Field(default=None, ge=0, le=2**52)
    """the client's clock; the server's stands beside it in the log"""

    @field_validator("client_id", "pair_id", "guideline_version")
    @classmethod
    def _storable_too(cls, text: str | None) -> str | None:
        return storable(text)

    @model_validator(mode="after")
    def _answered_once(self) -> Submission:
        if (self.answer is not None) + self.both_bad + self.skip != 1:
            raise ValueError("exactly one of answer, both_bad and skip must be given")
        if self.edited_text is not None and not self.answer:
            raise ValueError("edited_text mends the better answer: it needs an answer that prefers a side")
        return self


def storable(text: str | None) -> str | None:
    """`text`, if every store can hold it. Raises ValueError for NUL and halves of surrogate pairs."""
    if text is not None and ("\0" in text or any("\ud800" <= c <= "\udfff" for c in text)):
        raise ValueError("holds NUL or broken Unicode")
    return text


@dataclass(frozen=True)
class Stored:
    """The reply to a submission; `replayed` if it was in the store already."""

    judgment_id: str
    judgment: Judgment
    replayed: bool = False


@dataclass(frozen=True)
class Progress:
    """How far one rater, and the whole campaign, has come."""

    done: int
    judged: int
    wanted: int
    available: int
    """items this rater could still be given"""


def wall_clock_ms() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def default_store_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{path}"


class Store:
    """One label store. Safe to share between threads, and between processes by opening it in each."""

    def __init__(
        self,
        engine: Engine,
        url: str,
        *,
        clock: Callable[[], int] | None = wall_clock_ms,
        lease_seconds: int = LEASE_SECONDS,
    ) -> None:
        """`clock` None: time is the number of the event, so that simulated campaigns leave the same log every time."""
        self.engine = engine
        self.url = url
        self.lease_ms = lease_seconds * 1000
        self.repeat_share = 0.0
        """the share of pairs given to a rater a second time, unannounced, to measure their consistency"""
        self._clock = clock
        self._hasty = engine.execution_options(**NOT_DURABLE)
        self._pairs: dict[str, Pair] = {}
        self._campaign_seed: int | None = None
        self._turn = (
            _Turn(Path(engine.url.database)) if engine.dialect.name == "sqlite" and engine.url.database else None
        )

    @classmethod
    def open(
        cls,
        url: str,
        *,
        create: bool = False,
        clock: Callable[[], int] | None = wall_clock_ms,
        lease_seconds: int = LEASE_SECONDS,
    ) -> Store:
        """Open a store and bring it to the present schema.

        Raises:
            StoreError: there is none and `create` is false, or it cannot be opened.
        """
        engine = build_engine(url)
        if engine.dialect.name == "sqlite" and engine.url.database:
            file = Path(engine.url.database)
            if create:
                file.parent.mkdir(parents=True, exist_ok=True)
            elif not file.is_file():
                raise StoreError(f"no label store at {url}: 'tiebreak label --config FILE' makes one from pairs")
        migrate(engine, url)
        return cls(engine, url, clock=clock, lease_seconds=lease_seconds)

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()
        if self._turn:
            self._turn.close()

    # --- transactions and the log -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[Transaction]:
        """A transaction that alone writes. Durable: when this returns, it is on disk, whatever happens to the machine.

        Without that a crash of the machine (not of the process) may undo it: enough for who is given what.
        """
        engine = self.engine if durable else self._hasty
        with self._turn or contextlib.nullcontext(), engine.begin() as connection:
            # The log is one chain: on Postgres its head is the lock that BEGIN IMMEDIATE is on SQLite.
            head = st.HEAD if connection.dialect.name == "sqlite" else st.HEAD_LOCKED
            seq, digest = connection.execute(head).one()
            transaction = Transaction(connection, seq, digest, self._clock)
            yield transaction
            transaction.write_head()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees one state of the store and takes no lock."""
        with self.engine.connect().execution_options(**READ_ONLY) as connection:
            yield connection

    # --- what there is to judge ---------------------------------------------------------------------------------------

    def add_pairs(self, pairs: Sequence[Pair], *, overlap: int, seed: int, source: str, source_id: str) -> int:
        """Add the pairs that are not there yet; returns how many were new. Pairs of K completions become K(K−1)/2
        items.

        Raises:
            StoreError: the store was begun with another seed, or holds another pair under the same id.
        """
        with self.writing() as tx:
            _match_campaign(tx, overlap=overlap, seed=seed, url=self.url)
            known = {row.id: row.record for row in tx.connection.execute(sa.select(PAIRS.c.id, PAIRS.c.record))}
            new: dict[str, Pair] = {}
            for pair in pairs:
                there = known.get(pair.id) or (new[pair.id].model_dump_json() if pair.id in new else None)
                if there is not None and there != pair.model_dump_json():
                    raise StoreError(
                        f"two different pairs have the id {pair.id} (in {source} and in {self.url}): mend {source}"
                    )
                if there is None:
                    new[pair.id] = pair
            if new:
                _insert_pairs(
                    tx, list(new.values()), first=len(known), overlap=overlap, source=source, source_id=source_id
                )
            return len(new)

    def campaign(self) -> dict[str, Any]:
        """The settings the store was begun with: overlap, seed, and `sources`, [source, id] of the pairs."""
        with self.reading() as connection:
            rows = connection.execute(sa.select(SETTINGS.c.name, SETTINGS.c.value)).all()
        return {row.name: json.loads(row.value) for row in rows}

    # --- raters -------------------------------------------------------------------------------------------------------

    def add_rater(
        self,
        name: str,
        *,
        kind: RaterKind = "human",
        role: Role = "rater",
        rater_id: str | None = None,
        password_hash: str | None = None,
    ) -> Rater:
        """Add a rater, or return the one of that name if it is of the same kind and neither has a password.

        Raises:
            StoreError: the name is taken, or people and simulated raters would share the store.
        """
        rater = Rater(rater_id or f"rater-{secrets.token_hex(4)}", name, kind, role)
        with self.writing() as tx:
            rows = tx.connection.execute(sa.select(RATERS)).all()
            for row in rows:
                if row.name == name:
                    if row.kind == kind and password_hash is None and row.password_hash is None:
                        return _as_rater(row)
                    raise StoreError(f"there is a rater named {name!r} in {self.url} already")
            if any((row.kind == "simulated") != (kind == "simulated") for row in rows):
                held = "simulated raters" if kind != "simulated" else "people"
                raise StoreError(
                    f"{self.url} is the store of {held}, and {kind} judgments must never mix with theirs: "
                    "give another --store"
                )
            now = tx.event("rater_added", rater_id=rater.id, payload={"kind": kind, "role": role})
            values = {"password_hash": password_hash, "disabled": 0, "cursor": 0, "created_at_ms": now}
            tx.connection.execute(sa.insert(RATERS).values(id=rater.id, name=name, kind=kind, role=role, **values))
        return rater

    def raters(self) -> list[Rater]:
        """Everyone, in the order they were added."""
        with self.reading() as connection:
            query = sa.select(RATERS).order_by(RATERS.c.created_at_ms, RATERS.c.id)
            return [_as_rater(row) for row in connection.execute(query)]

    def accept(self, rater_id: str, version: str) -> None:
        """Record that a rater has read a version of the guidelines."""
        if self.accepted(rater_id, version):
            return
        with self.writing() as tx:
            now = tx.event("guidelines_accepted", rater_id=rater_id, payload={"version": version})
            tx.connection.execute(sa.delete(ACCEPTANCES).where(ACCEPTANCES.c.rater_id == rater_id))
            tx.connection.execute(sa.insert(ACCEPTANCES).values(rater_id=rater_id, version=version, at_ms=now))

    def accepted(self, rater_id: str, version: str) -> bool:
        """Whether a rater has read this version."""
        with self.reading() as connection:
            query = sa.select(ACCEPTANCES.c.version).where(ACCEPTANCES.c.rater_id == rater_id)
            return connection.scalar(query) == version

    # --- the work -----------------------------------------------------------------------------------------------------

    def claim(self, rater_id: str, holding: Sequence[str] = ()) -> Assignment | None:
        """The rater's next item: one given before and not answered, or a new one; None if there is nothing for them.

        Args:
            holding: items the client has already, which are passed over.

        Raises:
            RefusedError: there is no such rater, or they are disabled.
        """
        with self.writing(durable=False) as tx:
            return self._claim(tx, rater_id, holding)

    def submit(self, rater_id: str, submission: Submission) -> Stored:
        """Store a judgment. When this returns, it is on disk.

        Raises:
            RefusedError: the item is not this rater's, was judged already, or its lease ran out and others took its
            place.
        """
        with self.writing() as tx:
            return self._submit(tx, rater_id, submission)

    def submit_and_claim(
        self, rater_id: str, submission: Submission, holding: Sequence[str] = ()
    ) -> tuple[Stored, Assignment | None]:
        """`submit`, then `claim`, in one transaction."""
        with self.writing() as tx:
            stored = self._submit(tx, rater_id, submission)
            return stored, self._claim(tx, rater_id, holding)

    def undo(self, rater_id: str, judgment_id: str) -> Assignment:
        """Take a judgment back: the pair is the rater's again, on the same sides, with what they had said as its draft.

        Raises:
            RefusedError: it is not theirs, or was undone already.
        """
        with self.writing() as tx:
            _active_rater(tx.connection, rater_id)
            query = sa.select(JUDGMENTS).where(JUDGMENTS.c.id == judgment_id, JUDGMENTS.c.rater_id == rater_id)
            judgment = tx.connection.execute(query).first()
            if judgment is None:
                raise RefusedError("there is no such judgment of yours to undo")
            payload = {"assignment": judgment.assignment_id, "judgment_id": judgment_id}
            tx.event("undone", rater_id=rater_id, item_id=judgment.item_id, payload=payload)
            tx.connection.execute(sa.delete(JUDGMENTS).where(JUDGMENTS.c.id == judgment_id))
            self._renew(tx, judgment.assignment_id)
            said = Judgment.model_validate_json(judgment.record).model_dump(
                mode="json", include=set(Draft.model_fields)
            )
            _write_draft(tx, judgment.assignment_id, canonical_json(said))
            row = tx.connection.execute(sa.select(ASSIGNMENTS).where(ASSIGNMENTS.c.id == judgment.assignment_id)).one()
            return self._load_assignment(tx.connection, row)

    def save_draft(self, rater_id: str, item_id: str, draft: Draft) -> None:
        """Keep what a rater has begun, and their lease with it.

        Raises:
            RefusedError: the item is not theirs to judge.
        """
        with self.writing() as tx:
            _active_rater(tx.connection, rater_id)
            assignment = self._assignment_to_answer(tx, rater_id, item_id)
            body = draft.model_dump_json()
            digest = hashlib.sha256(body.encode()).hexdigest()
            tx.event(
                "draft", rater_id=rater_id, item_id=item_id, payload={"assignment": assignment.id, "sha256": digest}
            )
            _write_draft(tx, assignment.id, body)
            self._renew(tx, assignment.id)

    def last_judgment(self, rater_id: str) -> str | None:
        """The id of the rater's latest judgment that stands."""
        with self.reading() as connection:
            query = sa.select(JUDGMENTS.c.id).where(JUDGMENTS.c.rater_id == rater_id)
            return connection.scalar(query.order_by(JUDGMENTS.c.seq.desc()).limit(1))

    def _claim(self, tx: Transaction, rater_id: str, holding: Sequence[str]) -> Assignment | None:
        rater = _active_rater(tx.connection, rater_id)
        self._lapse_expired(tx)
        waiting = tx.connection.execute(st.WAITING, {"rater": rater_id}).all()
        for row in waiting:
            if row.item_id not in holding and self._resume(tx, row):
                return self._load_assignment(tx.connection, row)
        if sum(row.state == "open" for row in waiting) >= MAX_HELD:
            return None
        return self._assign_repeat(tx, rater_id, len(waiting)) or self._assign_new(tx, rater_id, rater.cursor)

    def _resume(self, tx: Transaction, row: Any) -> bool:
        """Take up an unanswered assignment again; False if it lapsed and others have its place."""
        now = tx.now()
        if row.state == "lapsed" and row.occasion == 0 and not _take_place(tx.connection, row.item_id):
            return False
        if row.state == "lapsed" or row.lease_until_ms - now < self.lease_ms / 2:
            kind = "reopened" if row.state == "lapsed" else "renewed"
            tx.event(kind, rater_id=row.rater_id, item_id=row.item_id, payload={"assignment": row.id})
            self._renew(tx, row.id)
        return True

    def _renew(self, tx: Transaction, assignment: str) -> None:
        tx.connection.execute(st.RENEW_LEASE, {"assignment": assignment, "until_ms": tx.now() + self.lease_ms})

    def _assign_new(self, tx: Transaction, rater_id: str, cursor: int) -> Assignment | None:
        item = tx.connection.execute(st.NEXT_ITEM, {"rater": rater_id, "from_position": cursor}).first()
        if item is None or not _take_place(tx.connection, item.id):
            return None
        sides = shuffle_sides(item.first_id, item.second_id, seed=self._seed(tx), rater_id=rater_id, item_id=item.id)
        tx.connection.execute(st.MOVE_CURSOR, {"rater": rater_id, "to_cursor": item.position + 1})
        return self._assign(tx, item.id, item.pair_id, rater_id, sides, occasion=0)

    def _assign_repeat(self, tx: Transaction, rater_id: str, waiting: int) -> Assignment | None:
        """Now and then, unannounced, a pair that the rater judged a while ago; it takes nobody's place."""
        if not self.repeat_share:
            return None
        judged = tx.connection.scalar(st.COUNT_OF_RATER, {"rater": rater_id}) or 0
        chance = random.Random(content_id("repeat", self._seed(tx), rater_id, judged, waiting))
        if judged <= REPEAT_AFTER or chance.random() >= self.repeat_share:
            return None
        place = {"rater": rater_id, "place": chance.randrange(judged - REPEAT_AFTER)}
        first = tx.connection.execute(st.JUDGED_AT, place).one()
        given = tx.connection.execute(st.ASSIGNMENTS_OF, {"item": first.item_id, "rater": rater_id}).all()
        if len(given) > 1:
            return None
        again = f"{first.item_id} again"  # shuffled anew: the side alone must not bring the same answer back
        sides = shuffle_sides(first.left_id, first.right_id, seed=self._seed(tx), rater_id=rater_id, item_id=again)
        return self._assign(tx, first.item_id, first.pair_id, rater_id, sides, occasion=1)

    def _assign(
        self, tx: Transaction, item_id: str, pair_id: str, rater_id: str, sides: tuple[str, str], *, occasion: int
    ) -> Assignment:
        identity = assignment_id(item_id, rater_id, occasion)
        payload = {"assignment": identity, "left": sides[0], "right": sides[1], "occasion": occasion}
        now = tx.event("assigned", rater_id=rater_id, item_id=item_id, payload=payload)
        who = {"id": identity, "item_id": item_id, "rater_id": rater_id, "occasion": occasion}
        lease = {"state": "open", "lease_until_ms": now + self.lease_ms, "seq": tx.seq}
        tx.connection.execute(st.ADD_ASSIGNMENT, {**who, "left_id": sides[0], "right_id": sides[1], **lease})
        return Assignment(identity, item_id, rater_id, *sides, self._load_pair(tx.connection, pair_id))

    def _lapse_expired(self, tx: Transaction) -> None:
        for row in tx.connection.execute(st.EXPIRED, {"now_ms": tx.now()}).all():
            tx.event("lapsed", rater_id=row.rater_id, item_id=row.item_id, payload={"assignment": row.id})
            tx.connection.execute(sa.update(ASSIGNMENTS).where(ASSIGNMENTS.c.id == row.id).values(state="lapsed"))
            if row.occasion:
                continue
            free = sa.update(ITEMS).where(ITEMS.c.id == row.item_id).values(taken=ITEMS.c.taken - 1)
            position = tx.connection.scalar(free.returning(ITEMS.c.position))
            tx.connection.execute(sa.update(RATERS).where(RATERS.c.cursor > position).values(cursor=position))

    def _submit(self, tx: Transaction, rater_id: str, submission: Submission) -> Stored:
        rater = _active_rater(tx.connection, rater_id)
        body_hash = hashlib.sha256(submission.model_dump_json().encode()).hexdigest()
        replayed = _find_replay(tx.connection, rater_id, submission.client_id, body_hash)
        if replayed is not None:
            return replayed
        assignment = self._assignment_to_answer(tx, rater_id, submission.pair_id)
        judgment = _as_judgment(tx.connection, assignment, submission, rater)
        identity = content_id("judgment", rater_id, submission.client_id)
        payload = {
            "judgment_id": identity,
            "assignment": assignment.id,
            "client_id": submission.client_id,
            "judgment": judgment.model_dump(mode="json"),
        }
        tx.event(
            "skipped" if judgment.skip else "submitted", rater_id=rater_id, item_id=assignment.item_id, payload=payload
        )
        values = {"id": identity, "assignment_id": assignment.id, "item_id": assignment.item_id, "rater_id": rater_id}
        record = {"kind": judgment.kind, "record": judgment.model_dump_json(), "seq": tx.seq}
        tx.connection.execute(st.ADD_JUDGMENT, {**values, **record})
        remembered = {
            "rater_id": rater_id,
            "client_id": submission.client_id,
            "judgment_id": identity,
            "body_hash": body_hash,
        }
        tx.connection.execute(st.ADD_SUBMISSION, remembered)
        tx.connection.execute(st.FINISH_ASSIGNMENT, {"assignment": assignment.id})
        tx.connection.execute(st.DROP_DRAFT, {"assignment": assignment.id})
        return Stored(identity, judgment)

    def _assignment_to_answer(self, tx: Transaction, rater_id: str, item_id: str) -> Any:
        rows = tx.connection.execute(st.ASSIGNMENTS_OF, {"item": item_id, "rater": rater_id}).all()
        if not rows:
            raise RefusedError(f"pair {item_id} was not given to you: reload the page for the next one")
        row = next((row for row in rows if row.state != "done"), rows[0])
        if row.state == "done":
            raise RefusedError(f"pair {item_id} has your judgment already: undo that one to change it")
        # A lease that ran out costs nothing while the place is free; work done late is taken if it can be.
        if row.state == "lapsed" and not self._resume(tx, row):
            raise RefusedError(
                f"your time for pair {item_id} ran out and other raters have judged it: go on with the next"
            )
        return row

    def _load_assignment(self, connection: Connection, row: Any) -> Assignment:
        pair_id = connection.scalar(st.PAIR_OF_ITEM, {"item": row.item_id}) or ""
        draft = connection.scalar(st.DRAFT, {"assignment": row.id})
        pair = self._load_pair(connection, pair_id)
        said = json.loads(draft) if draft else None
        return Assignment(row.id, row.item_id, row.rater_id, row.left_id, row.right_id, pair, said)

    def _load_pair(self, connection: Connection, pair_id: str) -> Pair:
        """From memory where it can be: pairs never change."""
        pair = self._pairs.get(pair_id)
        if pair is None:
            pair = Pair.model_validate_json(connection.scalar(st.PAIR_RECORD, {"pair": pair_id}) or "")
            if len(self._pairs) >= PAIRS_IN_MEMORY:
                self._pairs.clear()
            self._pairs[pair_id] = pair
        return pair

    def _seed(self, tx: Transaction) -> Any:
        if self._campaign_seed is None:
            self._campaign_seed = tx.setting("seed")
        return self._campaign_seed

    # --- counts -------------------------------------------------------------------------------------------------------

    def progress(self, rater_id: str) -> Progress:
        """How far the rater and the campaign have come."""
        with self.reading() as connection:
            done = _count(connection, sa.select(JUDGMENTS.c.id).where(JUDGMENTS.c.rater_id == rater_id))
            judged = _count(connection, sa.select(JUDGMENTS.c.id))
            wanted = connection.scalar(st.COUNT_WANTED) or 0
            given = sa.select(ASSIGNMENTS.c.id).where(
                ASSIGNMENTS.c.item_id == ITEMS.c.id, ASSIGNMENTS.c.rater_id == rater_id, ASSIGNMENTS.c.state == "done"
            )
            mine = sa.select(ASSIGNMENTS.c.id).where(
                ASSIGNMENTS.c.item_id == ITEMS.c.id, ASSIGNMENTS.c.rater_id == rater_id, ASSIGNMENTS.c.state == "open"
            )
            free = sa.or_(ITEMS.c.taken < ITEMS.c.overlap, mine.exists())
            available = _count(connection, sa.select(ITEMS.c.id).where(free, ~given.exists()))
        return Progress(done, judged, int(wanted), available)

    def status(self) -> dict[str, Any]:
        """Counts of everything, and the head of the log."""
        with self.reading() as connection:
            kinds = connection.execute(sa.select(JUDGMENTS.c.kind, sa.func.count()).group_by(JUDGMENTS.c.kind)).all()
            states = connection.execute(
                sa.select(ASSIGNMENTS.c.state, sa.func.count()).group_by(ASSIGNMENTS.c.state)
            ).all()
            head = connection.execute(sa.select(LOG_HEAD)).one()
            wanted = connection.scalar(st.COUNT_WANTED) or 0
            judged_by = sa.select(sa.func.count().label("n")).select_from(JUDGMENTS).group_by(JUDGMENTS.c.item_id)
            return {
                "store": self.engine.url.render_as_string(hide_password=True),
                "pairs": _count(connection, sa.select(PAIRS.c.id)),
                "items": _count(connection, sa.select(ITEMS.c.id)),
                "items_judged": _count(connection, judged_by),
                "judgments": {row[0]: row[1] for row in kinds},
                "judgments_wanted": int(wanted),
                "assignments": {row[0]: row[1] for row in states},
                "raters": _count(connection, sa.select(RATERS.c.id)),
                "events": head.seq,
                "head": head.hash,
            }

    def judged_by_day(self) -> dict[str, int]:
        """Judgments by UTC day, undone ones among them; days without any are left out."""
        day = EVENTS.c.at_ms.op("/")(
            sa.literal_column(str(DAY_MS))
        )  # whole numbers divide whole on SQLite and Postgres
        query = sa.select(day.label("day"), sa.func.count()).where(EVENTS.c.kind.in_(("submitted", "skipped")))
        with self.reading() as connection:
            rows = connection.execute(query.group_by("day").order_by("day")).all()
        return {time.strftime("%Y-%m-%d", time.gmtime(int(row[0]) * DAY_MS // 1000)): row[1] for row in rows}

    def judged_since(self, at_ms: int) -> tuple[int, int]:
        """Judgments after a time, and the raters who made them."""
        query = sa.select(sa.func.count(), sa.func.count(sa.distinct(EVENTS.c.rater_id)))
        query = query.where(EVENTS.c.kind.in_(("submitted", "skipped")), EVENTS.c.at_ms > at_ms)
        with self.reading() as connection:
            count, raters = connection.execute(query).one()
        return count, raters

    # --- reading out --------------------------------------------------------------------------------------------------

    def pairs(self) -> list[Pair]:
        """All pairs, in the order they were added."""
        with self.reading() as connection:
            rows = connection.execute(sa.select(PAIRS.c.record).order_by(PAIRS.c.position))
            return [Pair.model_validate_json(row.record) for row in rows]

    def judgments(self) -> tuple[list[Judgment], str]:
        """The current judgments, by pair and rater, and the log's head hash they are the state of."""
        with self.reading() as connection:
            query = sa.select(JUDGMENTS.c.record).join(ITEMS, ITEMS.c.id == JUDGMENTS.c.item_id)
            rows = connection.execute(query.order_by(ITEMS.c.position, JUDGMENTS.c.rater_id, JUDGMENTS.c.seq)).all()
            head = connection.scalar(sa.select(LOG_HEAD.c.hash)) or ""
        return [Judgment.model_validate_json(row.record) for row in rows], head


class _Turn:
    """Whose turn it is to write to a SQLite file, among threads and processes.

    SQLite waits for its write lock by polling, up to 0.1 s a time, so that of several busy processes one may starve.
    A lock that the kernel hands on costs nothing, and ends with the process that holds it. It only orders the
    writers: what keeps them apart is still SQLite's own lock.
    """

    def __init__(self, database: Path) -> None:
        self._threads = threading.Lock()
        self._file = os.open(database.with_name(f"{database.name}.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)

    def __enter__(self) -> None:
        self._threads.acquire()
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._threads.release()

    def close(self) -> None:
        with self._threads:
            os.close(self._file)
            self._file = -1


class Transaction:
    """A writing transaction: its connection, and the log it appends to."""

    def __init__(self, connection: Connection, seq: int, digest: str, clock: Callable[[], int] | None) -> None:
        self.connection = connection
        self.seq = seq
        self._hash = digest
        self._clock = clock
        self._first_seq = seq
        self._settings: dict[str, Any] = {}

    def now(self) -> int:
        """Milliseconds since 1970, or the number of the event to come where the clock is the log."""
        return self._clock() if self._clock else self.seq + 1

    def event(
        self, kind: str, *, payload: dict[str, Any], rater_id: str | None = None, item_id: str | None = None
    ) -> int:
        """Append to the log; returns the event's time in milliseconds."""
        at_ms = self.now()
        text = canonical_json(payload)
        digest = event_hash(self._hash, self.seq + 1, at_ms, kind, rater_id, item_id, text)
        row = {"at_ms": at_ms, "kind": kind, "rater_id": rater_id, "item_id": item_id, "payload": text}
        self.connection.execute(st.ADD_EVENT, {"seq": self.seq + 1, "previous": self._hash, "hash": digest, **row})
        self.seq, self._hash = self.seq + 1, digest
        return at_ms

    def write_head(self) -> None:
        """Record where the log now ends."""
        if self.seq != self._first_seq:
            self.connection.execute(st.MOVE_HEAD, {"to_seq": self.seq, "to_hash": self._hash})

    def setting(self, name: str) -> Any:
        """One of the campaign's settings."""
        if not self._settings:
            rows = self.connection.execute(st.SETTING_ROWS).all()
            self._settings = {row.name: json.loads(row.value) for row in rows}
        return self._settings[name]


def canonical_json(value: object) -> str:
    """One text for one value, whatever the machine."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def event_hash(
    previous: str, seq: int, at_ms: int, kind: str, rater_id: str | None, item_id: str | None, payload: str
) -> str:
    """sha256 over an event and the hash of the one before."""
    return hashlib.sha256(canonical_json([previous, seq, at_ms, kind, rater_id, item_id, payload]).encode()).hexdigest()


def shuffle_sides(first: str, second: str, *, seed: int, rater_id: str, item_id: str) -> tuple[str, str]:
    """(left, right): half of all raters see one order and half the other, each always the same one."""
    digest = hashlib.sha256(canonical_json([seed, rater_id, item_id]).encode()).digest()
    return (first, second) if digest[0] % 2 == 0 else (second, first)


def assignment_id(item_id: str, rater_id: str, occasion: int = 0) -> str:
    """The id of an assignment. Occasions after the first are repeats."""
    return content_id("assignment", item_id, rater_id, occasion)


@dataclass(frozen=True)
class Item:
    """Two completions of a pair, to be judged against each other."""

    id: str
    pair_id: str
    first_id: str
    second_id: str


def items_of(pair: Pair) -> list[Item]:
    """A pair of two is one item with the pair's own id; a larger one gives every two of its completions."""
    if len(pair.completions) == 2:
        return [Item(pair.id, pair.id, pair.completions[0].id, pair.completions[1].id)]
    return [
        Item(f"{pair.id}:{i}-{j}", pair.id, pair.completions[i].id, pair.completions[j].id)
        for i, j in itertools.combinations(range(len(pair.completions)), 2)
    ]


def pairs_digest(records: Iterable[str]) -> str:
    """A hash of pair records, in order."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(hashlib.sha256(record.encode()).digest())
    return digest.hexdigest()


def _match_campaign(tx: Transaction, *, overlap: int, seed: int, url: str) -> None:
    """Begin the campaign, or go on with it: its seed stays, its overlap may change."""
    rows = tx.connection.execute(sa.select(SETTINGS.c.name, SETTINGS.c.value)).all()
    known = {row.name: json.loads(row.value) for row in rows}
    if not known:
        tx.event("campaign_begun", payload={"overlap": overlap, "seed": seed})
        for name, value in {"overlap": overlap, "seed": seed, "sources": []}.items():
            tx.connection.execute(sa.insert(SETTINGS).values(name=name, value=json.dumps(value)))
    elif known["seed"] != seed:
        raise StoreError(
            f"{url} was begun with seed {known['seed']}, and the configuration says {seed}: "
            "set it back, or give another --store"
        )
    elif known["overlap"] != overlap:
        tx.event("overlap_changed", payload={"overlap": overlap})
        tx.connection.execute(sa.update(SETTINGS).where(SETTINGS.c.name == "overlap").values(value=json.dumps(overlap)))
        enough = sa.case((ITEMS.c.taken > overlap, ITEMS.c.taken), else_=overlap)
        tx.connection.execute(sa.update(ITEMS).values(overlap=enough))
        tx.connection.execute(sa.update(RATERS).values(cursor=0))


def _insert_pairs(tx: Transaction, pairs: list[Pair], *, first: int, overlap: int, source: str, source_id: str) -> None:
    records = [pair.model_dump_json() for pair in pairs]
    rows = [
        {"id": p.id, "position": first + n, "record": r} for n, (p, r) in enumerate(zip(pairs, records, strict=True))
    ]
    tx.connection.execute(sa.insert(PAIRS), rows)
    position = tx.connection.scalar(sa.select(sa.func.count()).select_from(ITEMS)) or 0
    items = [item for pair in pairs for item in items_of(pair)]
    tx.connection.execute(
        sa.insert(ITEMS),
        [vars(item) | {"position": position + n, "overlap": overlap, "taken": 0} for n, item in enumerate(items)],
    )
    facts = {"first": first, "count": len(pairs), "digest": pairs_digest(records), "overlap": overlap}
    # The path is not in the log: the same campaign has the same log wherever it lies.
    tx.event("pairs_added", payload={**facts, "source_id": source_id})
    sources = json.dumps([*tx.setting("sources"), [source, source_id]])
    tx.connection.execute(sa.update(SETTINGS).where(SETTINGS.c.name == "sources").values(value=sources))


def _take_place(connection: Connection, item_id: str) -> bool:
    """One atomic statement: a place of the item, if one is free."""
    return connection.execute(st.TAKE_PLACE, {"item": item_id}).rowcount == 1


def _active_rater(connection: Connection, rater_id: str) -> Any:
    row = connection.execute(st.RATER, {"rater": rater_id}).first()
    if row is None or row.disabled:
        raise RefusedError("this rater is not, or no longer, part of the campaign: ask its lead")
    return row


def _as_rater(row: Any) -> Rater:
    return Rater(row.id, row.name, row.kind, row.role, bool(row.disabled))


def _find_replay(connection: Connection, rater_id: str, client_id: str, body_hash: str) -> Stored | None:
    row = connection.execute(st.SUBMISSION, {"rater": rater_id, "client": client_id}).first()
    if row is None:
        return None
    if row.body_hash != body_hash:
        raise RefusedError(f"client_id {client_id} was used for another judgment: make a new one for each")
    record = connection.scalar(sa.select(JUDGMENTS.c.record).where(JUDGMENTS.c.id == row.judgment_id))
    if record is None:
        raise RefusedError("that judgment was undone since: answer the pair again")
    return Stored(row.judgment_id, Judgment.model_validate_json(record), replayed=True)


def _write_draft(tx: Transaction, assignment_id: str, body: str) -> None:
    tx.connection.execute(st.DROP_DRAFT, {"assignment": assignment_id})
    tx.connection.execute(st.ADD_DRAFT, {"assignment_id": assignment_id, "body": body, "at_ms": tx.now()})


def _as_judgment(connection: Connection, assignment: Any, submission: Submission, rater: Any) -> Judgment:
    pair_id = connection.scalar(st.PAIR_OF_ITEM, {"item": assignment.item_id}) or ""
    said = submission.model_dump(exclude={"client_id", "pair_id", "client_at_ms"})
    sides = {"left": assignment.left_id, "right": assignment.right_id}
    return Judgment(pair_id=pair_id, rater_id=rater.id, kind=rater.kind, **sides, **said)


def _count(connection: Connection, query: sa.Select[Any]) -> int:
    return connection.scalar(sa.select(sa.func.count()).select_from(query.subquery())) or 0


def count_kinds(judgments: Sequence[Judgment]) -> dict[str, int]:
    """How many judgments are of which kind."""
    return dict(sorted(Counter(judgment.kind for judgment in judgments).items()))
