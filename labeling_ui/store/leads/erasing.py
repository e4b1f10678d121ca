"""Personal data: what the store has about a person, and its erasure.

Erasure leaves the pseudonym. The name, the password, sessions, drafts, identities, what an invitation said of the person
and the reasons for which leads rejected judgments go. Judgments stay under the pseudonym, or are rejected and lose every
text that the rater wrote. A lead's or a reviewer's messages go too; the answers they settled stay, with their edits, and
lose reasons, links and comments where judgments go.

Some of it is in the log, whose events are never changed otherwise. A redacted event keeps its hash, to which the next event
is chained, and gets a payload without the texts; the event `erased`, at the end of the chain, has the hash of that payload.
So `verify` accepts just the redactions that the log itself announces, and heads of the log that are kept elsewhere still
match.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from labeling_ui.database.errors import RefusedError
from labeling_ui.database.event_log import Transaction
from labeling_ui.database.migrations import allow_redaction, forbid_redaction
from labeling_ui.database.schema import (
    ACCEPTANCES,
    ADJUDICATIONS,
    ANSWERS_INDEXED,
    ASSIGNMENTS,
    DRAFTS,
    ERASED,
    EVENTS,
    HOUR_MS,
    IDENTITIES,
    INVITATIONS,
    ITEMS,
    JUDGMENTS,
    MAIL_ADDRESSES,
    RATER_HOURS,
    RATERS,
    REASON_REMOVED,
    REASONS_INDEXED,
    REJECTIONS,
    SECOND_FACTORS,
    SESSIONS,
    TURNS,
)
from labeling_ui.store.leads.notes import IS_NOTE, threads_of_rater
from labeling_ui.store.work.assigning import shown_of
from labeling_ui.store.work.standing import lapse_open
from tiebreak.hashing import canonical_json

_WRITTEN: dict[str, Any] = {"rationale": "", "links": []}
_PERSONAL = (SESSIONS, SECOND_FACTORS, IDENTITIES, MAIL_ADDRESSES)
"""Tables that have nothing but personal data, by rater."""


@dataclass(frozen=True)
class Erasure:
    """What an erasure did, or would do."""

    rater_id: str
    judgments: int
    """judgments that are rejected"""
    kept: int
    """judgments that stay under the pseudonym"""
    conversations: int
    """pairs of the rater's conversations: they have what the rater wrote"""
    redacted: int = 0
    """events of the log that lost texts"""


def preview(connection: Connection, rater_id: str, *, judgments: bool) -> Erasure:
    """What an erasure would do.

    Raises:
        RefusedError: there is no such person.
    """
    _person(connection, rater_id)
    count = sa.select(sa.func.count()).select_from(JUDGMENTS).where(JUDGMENTS.c.rater_id == rater_id)
    there = connection.scalar(count) or 0
    pairs = len(conversation_pairs(connection, rater_id))
    return Erasure(rater_id, there if judgments else 0, 0 if judgments else there, pairs)


def judgment_ids(connection: Connection, rater_id: str) -> list[str]:
    """The ids of a rater's judgments that count."""
    query = sa.select(JUDGMENTS.c.id).where(JUDGMENTS.c.rater_id == rater_id).order_by(JUDGMENTS.c.seq)
    return list(connection.scalars(query))


def conversation_pairs(connection: Connection, rater_id: str) -> list[str]:
    """The pairs that come from a rater's conversations and are not withdrawn."""
    query = sa.select(TURNS.c.pair_id).join(ITEMS, ITEMS.c.pair_id == TURNS.c.pair_id)
    return list(connection.scalars(query.where(TURNS.c.rater_id == rater_id, ITEMS.c.withdrawn == 0).distinct()))


def events_to_redact(connection: Connection, rater_id: str, *, judgments: bool) -> dict[int, str]:
    """The events that have a person's texts, with the payloads that they get. Reads the events about people, and the
    person's own."""
    invited = sa.select(INVITATIONS.c.token_hash).where(INVITATIONS.c.used_by == rater_id)
    mine = {token[:16] for token in connection.scalars(invited)}
    found: dict[int, str] = {}
    for event in _events_about(connection, rater_id, judgments=judgments):
        payload = json.loads(event.payload)
        if event.kind == "invited":
            without = payload | {"name": ""} if payload.get("invitation") in mine and payload.get("name") else payload
        elif event.kind == "note":
            without = payload | {"text": ""} if rater_id in (event.rater_id, payload["by"]) else payload
        elif event.kind == "standing_changed":
            without = {name: value for name, value in payload.items() if name != "reason"}
        elif event.kind == "rejected":
            without = payload if payload["reason"] == ERASED else payload | {"reason": REASON_REMOVED}
        else:
            without = payload | {"judgment": without_texts(payload["judgment"], keep_edit=event.kind == "adjudicated")}
        if without != payload:
            found[event.seq] = canonical_json(without)
    return found


def _events_about(connection: Connection, rater_id: str, *, judgments: bool) -> Iterator[Any]:
    """Events that may have a person's texts. The conditions are in the words of indices: see `ANSWERS_INDEXED`."""
    query = sa.select(EVENTS.c.seq, EVENTS.c.kind, EVENTS.c.payload, EVENTS.c.rater_id)
    theirs = EVENTS.c.rater_id == rater_id
    of_people = sa.text("events.kind IN ('invited', 'standing_changed')")
    yield from connection.execute(query.where(of_people, sa.or_(EVENTS.c.kind == "invited", theirs)))
    yield from connection.execute(query.where(IS_NOTE))  # also in others' threads: a lead answers there
    of_reasons = connection.execute(query.where(sa.text(f"events.kind IN ({REASONS_INDEXED})"), theirs)).all()
    yield from (event for event in of_reasons if judgments or event.kind == "rejected")
    if not judgments:
        return
    yield from connection.execute(query.where(sa.text(f"events.kind IN ({ANSWERS_INDEXED})"), theirs))


def without_texts(judgment: Mapping[str, Any], *, keep_edit: bool = False) -> dict[str, Any]:
    """A judgment's record without what its rater wrote: the reason, the edit, links, and comments on passages.
    `keep_edit`: of a settled answer, which the edit is."""
    emptied = {name: empty for name, empty in _WRITTEN.items() if judgment.get(name)}
    if judgment.get("edited_text") is not None and not keep_edit:
        emptied["edited_text"] = ""
    if judgment.get("spans"):
        emptied["spans"] = [{**span, "comment": ""} for span in judgment["spans"]]
    return {**judgment, **emptied}


def begin(tx: Transaction, rater_id: str, by: str | None) -> None:
    """End the person's sessions: from here on, nothing of theirs is added.

    Raises:
        RefusedError: there is no such person, they are the requester, or the campaign would be left without any account.
    """
    row = _person(tx.connection, rater_id)
    _refuse_the_last(tx.connection, row, by)
    if not row.disabled:
        tx.event("rater_disabled", rater_id=rater_id, payload={})
        tx.connection.execute(sa.update(RATERS).where(RATERS.c.id == rater_id).values(disabled=1))
    tx.connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.rater_id == rater_id))


def erase(tx: Transaction, rater_id: str, by: str | None, *, judgments: bool, redactions: Mapping[int, str]) -> Erasure:
    """Erase a person's data, after `begin`; their judgments have been rejected before, where those go too.

    Args:
        judgments: whether the texts of their judgments go too.
        redactions: from `events_to_redact`.
    """
    if tx.connection.dialect.name == "sqlite":
        tx.connection.exec_driver_sql("PRAGMA secure_delete=ON")  # what is freed is overwritten
    lapse_open(tx, rater_id)
    before = preview(tx.connection, rater_id, judgments=judgments)
    if judgments:
        _empty(tx.connection, REJECTIONS, REJECTIONS.c.id, REJECTIONS.c.rater_id == rater_id)
        _empty(tx.connection, ADJUDICATIONS, ADJUDICATIONS.c.item_id, ADJUDICATIONS.c.lead_id == rater_id)
    of_leads = sa.and_(REJECTIONS.c.rater_id == rater_id, REJECTIONS.c.reason != ERASED)
    tx.connection.execute(sa.update(REJECTIONS).where(of_leads).values(reason=REASON_REMOVED))
    _redact(tx.connection, redactions)
    digests = {str(seq): digest_of(payload) for seq, payload in sorted(redactions.items())}
    now = tx.event("erased", rater_id=rater_id, payload={"judgments": judgments, "by": by, "redacted": digests})
    mine = sa.select(ASSIGNMENTS.c.id).where(ASSIGNMENTS.c.rater_id == rater_id)
    tx.connection.execute(sa.delete(DRAFTS).where(DRAFTS.c.assignment_id.in_(mine)))
    for table in _PERSONAL:
        tx.connection.execute(sa.delete(table).where(table.c.rater_id == rater_id))
    nobody = {"name": "", "email": "", "subject": ""}
    tx.connection.execute(sa.update(INVITATIONS).where(INVITATIONS.c.used_by == rater_id).values(**nobody))
    gone = {"name": rater_id, "password_hash": None, "standing_note": "", "disabled": 1, "erased_at_ms": now}
    tx.connection.execute(sa.update(RATERS).where(RATERS.c.id == rater_id).values(**gone))
    return Erasure(rater_id, 0, before.kept, before.conversations, len(redactions))


def digest_of(payload: str) -> str:
    """The hash of a redacted payload."""
    return hashlib.sha256(payload.encode()).hexdigest()


def _person(connection: Connection, rater_id: str) -> Any:
    row = connection.execute(sa.select(RATERS).where(RATERS.c.id == rater_id).with_for_update()).first()
    if row is None or row.kind != "human":
        raise RefusedError(f"there is no person with the id {rater_id}")
    return row


def _refuse_the_last(connection: Connection, row: Any, by: str | None) -> None:
    if row.id == by:
        raise RefusedError("you cannot erase yourself: another lead can")
    others = sa.select(sa.func.count()).where(RATERS.c.id != row.id, RATERS.c.password_hash.is_not(None))
    if row.password_hash is not None and not connection.scalar(others.select_from(RATERS)):
        raise RefusedError("it is the only account: without any, the pages need no login. Add another account first")


def _empty(connection: Connection, table: sa.Table, key: sa.Column[str], whose: sa.ColumnElement[bool]) -> None:
    """Remove the texts from a person's records in a table."""
    for identity, record in connection.execute(sa.select(key, table.c.record).where(whose)).all():
        without = without_texts(json.loads(record), keep_edit=table is ADJUDICATIONS)
        emptied = json.dumps(without, ensure_ascii=False, separators=(",", ":"))
        connection.execute(sa.update(table).where(key == identity).values(record=emptied))


def _redact(connection: Connection, redactions: Mapping[int, str]) -> None:
    if not redactions:
        return
    allow_redaction(connection)
    change = sa.update(EVENTS).where(EVENTS.c.seq == sa.bindparam("event")).values(payload=sa.bindparam("redacted"))
    connection.execute(change, [{"event": seq, "redacted": payload} for seq, payload in redactions.items()])
    forbid_redaction(connection)


def inactive(connection: Connection, before_ms: int) -> list[str]:
    """Ids of people, except leads and erased people, whose accounts are older than a time and who have not worked
    since."""
    worked = sa.select(RATER_HOURS.c.rater_id).where(RATER_HOURS.c.hour >= before_ms // HOUR_MS)
    worked = worked.where(RATER_HOURS.c.rater_id == RATERS.c.id)
    query = sa.select(RATERS.c.id).where(RATERS.c.kind == "human", RATERS.c.role != "lead", ~worked.exists())
    query = query.where(RATERS.c.password_hash.is_not(None), RATERS.c.created_at_ms < before_ms)
    return list(connection.scalars(query.order_by(RATERS.c.created_at_ms, RATERS.c.id)))


# --- what the store has about a person ---


def own_data(connection: Connection, rater_id: str) -> dict[str, Any]:
    """Everything in the store about a person, except the hash of their password and the key of their second factor.
    Completions are named by their ids, which raters must not see."""
    row = connection.execute(sa.select(RATERS).where(RATERS.c.id == rater_id)).one()
    account = {name: getattr(row, name) for name in ("id", "name", "kind", "role", "pool", "standing", "standing_note")}
    return {
        "account": account | {"created_at_ms": row.created_at_ms, "disabled": bool(row.disabled)},
        "acceptances": _rows(connection, ACCEPTANCES, rater_id, ("document", "version", "at_ms")),
        "identities": _rows(connection, IDENTITIES, rater_id, ("issuer", "subject")),
        "sessions": _rows(connection, SESSIONS, rater_id, ("expires_at_ms",)),
        "email": [
            row
            for row in _rows(connection, MAIL_ADDRESSES, rater_id, ("email", "confirmed_at_ms", "sent_at_ms"))
            if row["email"]
        ],
        "hours": _rows(connection, RATER_HOURS, rater_id, ("hour", "judged", "active_ms", "idle_ms")),
        "judgments": [_as_own(row) for row in _of(connection, JUDGMENTS, rater_id)],
        "rejected": [_as_own(row) | {"reason": row.reason} for row in _of(connection, REJECTIONS, rater_id)],
        "drafts": _drafts(connection, rater_id),
        "messages": [
            {"item_id": thread.item_id, "at_ms": note.at_ms, "mine": note.by_id == rater_id, "text": note.text}
            for thread in threads_of_rater(connection, rater_id)
            for note in thread.notes
        ],
        "conversations": [
            {"conversation_id": row.conversation_id, "number": row.number, "messages": json.loads(row.messages)}
            for row in connection.execute(sa.select(TURNS).where(TURNS.c.rater_id == rater_id))
        ],
    }


def _rows(connection: Connection, table: sa.Table, rater_id: str, names: Sequence[str]) -> list[dict[str, Any]]:
    rows = connection.execute(sa.select(table).where(table.c.rater_id == rater_id)).all()
    return [{name: getattr(row, name) for name in names} for row in rows]


def _of(connection: Connection, table: sa.Table, rater_id: str) -> Sequence[Any]:
    return connection.execute(sa.select(table).where(table.c.rater_id == rater_id).order_by(table.c.seq)).all()


def _as_own(row: Any) -> dict[str, Any]:
    return {"judgment_id": row.id, "item_id": row.item_id, "at_ms": row.at_ms, "judgment": json.loads(row.record)}


def _drafts(connection: Connection, rater_id: str) -> list[dict[str, Any]]:
    query = sa.select(DRAFTS.c.body, DRAFTS.c.at_ms.label("drafted_at_ms"), ASSIGNMENTS)
    query = query.join(ASSIGNMENTS, ASSIGNMENTS.c.id == DRAFTS.c.assignment_id)
    rows = connection.execute(query.where(ASSIGNMENTS.c.rater_id == rater_id)).all()
    return [
        {"item_id": row.item_id, "at_ms": row.drafted_at_ms, "shown": shown_of(row), "draft": json.loads(row.body)}
        for row in rows
    ]
