"""The guidelines and the consent: every text that was published, when and by whom, and which raters have accepted.

The latest publication is the one that counts. A configuration publishes its text when that has changed in the file; what a
lead has published meanwhile stays, as with the settings of batches.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from labeling_ui.database.errors import RefusedError
from labeling_ui.database.event_log import EventKind, Transaction
from labeling_ui.database.schema import ACCEPTANCES, CONSENT_WITHDRAWALS, DOCUMENTS, PUBLICATIONS

Document = Literal["guidelines", "consent"]
DOCUMENT_NAMES: tuple[Document, ...] = ("consent", "guidelines")
"""In the order in which raters accept them."""
MAX_VERSION_CHARACTERS = 40


@dataclass(frozen=True)
class Publication:
    """A text, as it was published once."""

    seq: int
    """the number of the event"""
    document: Document
    version: str
    """the version's name and a hash of the text, as 2#5f3a9c2e: what raters accept and judgments carry"""
    text: str
    """Markdown"""
    by_id: str | None
    """the lead; None: the configuration, or the command line"""
    configured: bool
    at_ms: int

    @property
    def name(self) -> str:
        """The version's name, without the hash."""
        return self.version.rpartition("#")[0] or self.version


def identify_text(version: str, text: str) -> str:
    """A version as `1#5f3a9c2e`: a text that changes is another one, whatever its version says."""
    return f"{version}#{hashlib.sha256(text.encode()).hexdigest()[:8]}" if text else version


def present(connection: Connection, document: Document) -> Publication | None:
    """The current text; None: none was published."""
    return next(iter(publications(connection, document, limit=1)), None)


def publications(connection: Connection, document: Document, limit: int = 200) -> list[Publication]:
    """All publications, the latest first."""
    same = sa.and_(DOCUMENTS.c.document == PUBLICATIONS.c.document, DOCUMENTS.c.version == PUBLICATIONS.c.version)
    query = sa.select(PUBLICATIONS, DOCUMENTS.c.text).join(DOCUMENTS, same)
    query = query.where(PUBLICATIONS.c.document == document).order_by(PUBLICATIONS.c.seq.desc()).limit(limit)
    return [_as_publication(row) for row in connection.execute(query)]


def _as_publication(row: Any) -> Publication:
    about = row.text, row.by_id, bool(row.configured), row.at_ms
    return Publication(row.seq, row.document, row.version, *about)


def accepted_by(connection: Connection, document: Document) -> dict[str, int]:
    """Number of raters by the version that they accepted last."""
    query = sa.select(ACCEPTANCES.c.version, sa.func.count().label("n")).where(ACCEPTANCES.c.document == document)
    return {row.version: row.n for row in connection.execute(query.group_by(ACCEPTANCES.c.version))}


def configure(tx: Transaction, document: Document, version: str, text: str) -> None:
    """Publish the configuration's text, unless a configuration published the same text last."""
    query = sa.select(PUBLICATIONS.c.version).where(PUBLICATIONS.c.document == document, PUBLICATIONS.c.configured == 1)
    last = tx.connection.scalar(query.order_by(PUBLICATIONS.c.seq.desc()).limit(1))
    named = identify_text(version, text)
    if (last is not None or text) and last != named:
        _publish(tx, document, named, text, by=None, configured=True)


def publish(tx: Transaction, document: Document, name: str, text: str, by: str | None) -> Publication:
    """Publish a lead's text: every rater must accept it before their next judgment.

    Raises:
        RefusedError: text and name are the current ones, or both the current and the new text are empty.
    """
    text = text if text.strip() else ""
    now, named = present(tx.connection, document), identify_text(name, text)
    if now is not None and now.version == named:
        raise RefusedError(f"this is already the current text of the {document}")
    if not text and (now is None or not now.text):
        raise RefusedError(f"there is no text of the {document} to publish")
    return _publish(tx, document, named, text, by=by, configured=False)


def _publish(
    tx: Transaction, document: Document, version: str, text: str, *, by: str | None, configured: bool
) -> Publication:
    there = sa.select(DOCUMENTS.c.text).where(DOCUMENTS.c.document == document, DOCUMENTS.c.version == version)
    stored = tx.connection.scalar(there)
    if stored not in (None, text):
        raise RefusedError(f"another text of the {document} has the version {version}: give it another name")
    about = {"document": document, "version": version}
    payload = {**about, "text": text, "by": by, "configured": configured}
    now = tx.event("published", rater_id=by, payload=payload)
    if stored is None:
        tx.connection.execute(sa.insert(DOCUMENTS).values(**about, text=text, at_ms=now))
    row = {**about, "by_id": by, "configured": int(configured), "at_ms": now}
    tx.connection.execute(sa.insert(PUBLICATIONS).values(seq=tx.seq, **row))
    return Publication(tx.seq, document, version, text, by, configured, now)


def versions(connection: Connection, document: Document) -> list[str]:
    """All versions so far, in order."""
    query = sa.select(DOCUMENTS.c.version).where(DOCUMENTS.c.document == document)
    return list(connection.scalars(query.order_by(DOCUMENTS.c.at_ms)))


# --- what raters accept ---


def accepted(connection: Connection, rater_id: str, version: str, document: Document) -> bool:
    """Whether a rater has accepted this version last."""
    query = sa.select(ACCEPTANCES.c.version).where(ACCEPTANCES.c.rater_id == rater_id)
    return connection.scalar(query.where(ACCEPTANCES.c.document == document)) == version


def accept(tx: Transaction, rater_id: str, version: str, document: Document) -> None:
    """Record that a rater has accepted a version. Consent given again ends its withdrawal."""
    kind: EventKind = "guidelines_accepted" if document == "guidelines" else "consent_given"
    now = tx.event(kind, rater_id=rater_id, payload={"version": version})
    mine = sa.and_(ACCEPTANCES.c.rater_id == rater_id, ACCEPTANCES.c.document == document)
    tx.connection.execute(sa.delete(ACCEPTANCES).where(mine))
    values = {"rater_id": rater_id, "document": document, "version": version, "at_ms": now}
    tx.connection.execute(sa.insert(ACCEPTANCES).values(**values))
    if document == "consent":
        tx.connection.execute(sa.delete(CONSENT_WITHDRAWALS).where(CONSENT_WITHDRAWALS.c.rater_id == rater_id))


@dataclass(frozen=True)
class ConsentWithdrawn:
    """A rater's withdrawal of consent."""

    rater_id: str
    judgments: bool
    """whether they ask for their judgments not to be used either"""
    at_ms: int


def withdraw_consent(tx: Transaction, rater_id: str, *, judgments: bool) -> None:
    """Record a withdrawal of consent: the rater gets no more work. `judgments`: they also object to the use of theirs."""
    now = tx.event("consent_withdrawn", rater_id=rater_id, payload={"judgments": judgments})
    mine = sa.and_(ACCEPTANCES.c.rater_id == rater_id, ACCEPTANCES.c.document == "consent")
    tx.connection.execute(sa.delete(ACCEPTANCES).where(mine))
    tx.connection.execute(sa.delete(CONSENT_WITHDRAWALS).where(CONSENT_WITHDRAWALS.c.rater_id == rater_id))
    values = {"rater_id": rater_id, "judgments": int(judgments), "at_ms": now}
    tx.connection.execute(sa.insert(CONSENT_WITHDRAWALS).values(**values))


def consents_withdrawn(connection: Connection) -> list[ConsentWithdrawn]:
    """Those who have withdrawn their consent, in order."""
    query = sa.select(CONSENT_WITHDRAWALS).order_by(CONSENT_WITHDRAWALS.c.at_ms)
    return [ConsentWithdrawn(row.rater_id, bool(row.judgments), row.at_ms) for row in connection.execute(query)]


def has_withdrawn(connection: Connection, rater_id: str) -> bool:
    """Whether a rater has withdrawn their consent."""
    query = sa.select(CONSENT_WITHDRAWALS.c.rater_id).where(CONSENT_WITHDRAWALS.c.rater_id == rater_id)
    return connection.scalar(query) is not None
