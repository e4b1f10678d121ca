"""Raters of a store: the record, and how they are added and moved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import sqlalchemy as sa

from labeling_ui.database.errors import StoreError
from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import RATERS
from labeling_ui.store.names import pool_name, skeleton
from labeling_ui.store.work import assigning
from labeling_ui.store.work.standing import Standing

RaterKind = Literal["human", "simulated", "model"]


Role = Literal["rater", "reviewer", "observer", "lead"]
"""Raters judge; reviewers also see the leads' page and settle disagreements; observers only see it; leads steer."""


@dataclass(frozen=True)
class Rater:
    """A rater. Exports carry the pseudonym `id`; `name` stays in the store."""

    id: str
    name: str
    kind: RaterKind
    role: Role
    disabled: bool = False
    pool: str = ""
    """the rater's pool, whose pairs they get besides everybody's"""
    standing: Standing = ""
    """whether they have passed the test, or were stopped"""
    standing_note: str = ""
    """the figures behind it"""
    erased: bool = False
    """their personal data were erased: the name is the pseudonym"""


class NameTakenError(StoreError):
    """Another rater has the name, or one that looks like it."""


def find_rater(raters: Iterable[Rater], name: str) -> Rater | None:
    """The rater who has this id; if nobody has, the one with this name."""
    ranked = sorted((one for one in raters if name in (one.id, one.name)), key=lambda one: one.id != name)
    return ranked[0] if ranked else None


def as_rater(row: Any) -> Rater:
    standing = row.standing, row.standing_note
    return Rater(row.id, row.name, row.kind, row.role, bool(row.disabled), row.pool, *standing, bool(row.erased_at_ms))


def move_rater(tx: Transaction, rater_id: str, pool: str) -> None:
    """Move a rater to another pool in an existing transaction; see `Store.move_rater`."""
    assigning.active_rater(tx.connection, rater_id)
    pool = pool_name(pool)
    tx.event("rater_moved", rater_id=rater_id, payload={"pool": pool})
    tx.connection.execute(sa.update(RATERS).where(RATERS.c.id == rater_id).values(pool=pool, cursor=0))


def insert_rater(tx: Transaction, rater: Rater, password_hash: str | None, url: str) -> Rater:
    """Add a rater in an existing transaction; see `Store.add_rater`."""
    rater = replace(rater, pool=pool_name(rater.pool))
    rows = tx.connection.execute(sa.select(RATERS)).all()
    for row in rows:
        if row.id == rater.name and row.id != rater.id:
            raise NameTakenError(f"{rater.name!r} is the pseudonym of a rater of {url}: choose another name")
        if row.name == rater.name:
            if row.kind == rater.kind and password_hash is None and row.password_hash is None:
                return as_rater(row)
            raise NameTakenError(f"{url} already has a rater named {rater.name!r}")
        if password_hash and row.password_hash and skeleton(row.name) == skeleton(rater.name):
            raise NameTakenError(f"{url} already has a rater named {row.name!r}, which looks like {rater.name!r}")
    if rater.kind != "model" and any(row.kind not in ("model", rater.kind) for row in rows):
        others = "simulated raters" if rater.kind != "simulated" else "people"
        raise StoreError(
            f"{url} is a store of {others}, and {rater.kind} judgments must not mix with theirs: give another --store"
        )
    payload = {"kind": rater.kind, "role": rater.role, "pool": rater.pool}
    now = tx.event("rater_added", rater_id=rater.id, payload=payload)
    values = {"id": rater.id, "name": rater.name, **payload, "password_hash": password_hash, "created_at_ms": now}
    tx.connection.execute(
        sa.insert(RATERS).values(
            **values, disabled=0, cursor=0, judged=0, standing="", standing_seq=0, standing_note=""
        )
    )
    return rater
