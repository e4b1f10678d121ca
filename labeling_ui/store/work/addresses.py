"""Raters' e-mail addresses: confirmation by a code, and who gets a notice of new work.

Addresses are stored in their table alone, never in the log, so that they can be deleted.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from labeling_ui.database import statements as st
from labeling_ui.database.errors import RefusedError
from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import CONSENT_WITHDRAWALS, MAIL_ADDRESSES, RATER_HOURS, RATERS
from labeling_ui.store.work.assigning import is_paused
from labeling_ui.store.work.standing import HELD

CODE_MINUTES = 30
MOST_TRIES = 5
"""Attempts to enter a code, which has a million values."""
WAIT_SECONDS = 60
"""Shortest time between two codes."""
HOUR_MS = 3_600_000
_MINUTE_MS = 60_000


@dataclass(frozen=True)
class MailAddress:
    """A rater's address."""

    email: str
    confirmed: bool


@dataclass(frozen=True)
class Recipient:
    """A rater who gets a notice of new work."""

    rater_id: str
    email: str
    sent_at_ms: int | None
    """time of the last notice; None: there was none"""


def address_of(connection: Connection, rater_id: str) -> MailAddress | None:
    """A rater's address; None without one."""
    row = connection.execute(sa.select(MAIL_ADDRESSES).where(MAIL_ADDRESSES.c.rater_id == rater_id)).first()
    return MailAddress(row.email, row.confirmed_at_ms is not None) if row is not None and row.email else None


def begin(tx: Transaction, rater_id: str, email: str) -> str:
    """Keep an address that is not confirmed yet; returns the code to send to it.

    Raises:
        RefusedError: the last code was sent a moment ago.
    """
    mine = MAIL_ADDRESSES.c.rater_id == rater_id
    now = tx.now()
    row = tx.connection.execute(sa.select(MAIL_ADDRESSES).where(mine).with_for_update()).first()
    if row is not None and now - (row.code_until_ms - CODE_MINUTES * _MINUTE_MS) < WAIT_SECONDS * 1_000:
        raise RefusedError("a code was sent a moment ago: wait a minute before asking for another")
    code = f"{secrets.randbelow(1_000_000):06}"
    until = now + CODE_MINUTES * _MINUTE_MS
    about = {"email": email, "code_hash": _hash(rater_id, code), "code_until_ms": until, "tries": 0}
    tx.connection.execute(sa.delete(MAIL_ADDRESSES).where(mine))
    rest = {"confirmed_at_ms": None, "waits": 0, "sent_at_ms": None}
    tx.connection.execute(sa.insert(MAIL_ADDRESSES).values(rater_id=rater_id, **about, **rest))
    return code


def confirm(tx: Transaction, rater_id: str, code: str) -> bool:
    """Confirm an address by its code; False if the code is wrong, has expired, or was tried too often."""
    mine = MAIL_ADDRESSES.c.rater_id == rater_id
    row = tx.connection.execute(sa.select(MAIL_ADDRESSES).where(mine).with_for_update()).first()
    if row is None or row.confirmed_at_ms is not None or row.tries >= MOST_TRIES or row.code_until_ms < tx.now():
        return False
    right = hmac.compare_digest(row.code_hash, _hash(rater_id, code.replace(" ", "")))
    after = {"confirmed_at_ms": tx.now()} if right else {"tries": row.tries + 1}
    tx.connection.execute(sa.update(MAIL_ADDRESSES).where(mine).values(**after))
    return right


def forget(tx: Transaction, rater_id: str) -> None:
    """Delete a rater's address. The time of the last code stays: otherwise codes could be sent without a wait."""
    gone = {"email": "", "code_hash": "", "tries": MOST_TRIES, "confirmed_at_ms": None, "waits": 0, "sent_at_ms": None}
    tx.connection.execute(sa.update(MAIL_ADDRESSES).where(MAIL_ADDRESSES.c.rater_id == rater_id).values(**gone))


def _hash(rater_id: str, code: str) -> str:
    return hashlib.sha256(f"{rater_id} {code}".encode()).hexdigest()


# --- who is to be written to ---


def has_work(connection: Connection, rater_id: str) -> bool:
    """Whether a rater would get a pair now."""
    rater = connection.execute(sa.select(RATERS).where(RATERS.c.id == rater_id)).one()
    if rater.disabled or rater.standing in HELD:
        return False
    if any(_is_theirs_still(connection, row) for row in st.WAITING.all(connection, rater=rater_id)):
        return True
    about = {"rater": rater_id, "from_turn": rater.cursor}
    in_turn = any(st.NEXT_IN_TURN.one(connection, pool=pool, **about) is not None for pool in {"", rater.pool})
    return in_turn or st.A_FREED_ITEM.one(connection, rater=rater_id, pool=rater.pool) is not None


def _is_theirs_still(connection: Connection, row: Any) -> bool:
    """Whether an unanswered assignment can be answered: its lease may have passed to others since."""
    item = st.ITEM.one(connection, item=row.item_id)
    if item.withdrawn or row.state == "open":
        return not item.withdrawn
    return not is_paused(connection, item.id) and (row.occasion > 0 or item.taken < item.overlap)


def recipients(connection: Connection) -> list[tuple[Recipient, bool]]:
    """Raters with a confirmed address who may work, and whether they ran out of pairs."""
    withdrew = sa.select(CONSENT_WITHDRAWALS.c.rater_id).where(CONSENT_WITHDRAWALS.c.rater_id == RATERS.c.id)
    query = (
        sa.select(MAIL_ADDRESSES)
        .join(RATERS, RATERS.c.id == MAIL_ADDRESSES.c.rater_id)
        .where(MAIL_ADDRESSES.c.confirmed_at_ms.is_not(None), RATERS.c.disabled == 0, ~withdrew.exists())
        .order_by(MAIL_ADDRESSES.c.rater_id)
    )
    rows = connection.execute(query).all()
    return [(Recipient(row.rater_id, row.email, row.sent_at_ms), bool(row.waits)) for row in rows]


def await_work(tx: Transaction, rater_id: str) -> None:
    """Record that nothing is left for a rater, so that they get a notice when there is work again."""
    tx.connection.execute(sa.update(MAIL_ADDRESSES).where(MAIL_ADDRESSES.c.rater_id == rater_id).values(waits=1))


def take(tx: Transaction, rater_id: str) -> bool:
    """Whether this server is to send the notice: of several servers that share a store, one does."""
    waiting = sa.and_(MAIL_ADDRESSES.c.rater_id == rater_id, MAIL_ADDRESSES.c.waits == 1)
    taken = sa.update(MAIL_ADDRESSES).where(waiting).values(waits=0, sent_at_ms=tx.now())
    return bool(tx.connection.execute(taken).rowcount)


def is_working(connection: Connection, rater_id: str, now_ms: int) -> bool:
    """Whether a rater judged in this hour or the last, and so is probably still at the page."""
    since = now_ms // HOUR_MS - 1
    query = sa.select(RATER_HOURS.c.rater_id).where(RATER_HOURS.c.rater_id == rater_id, RATER_HOURS.c.hour >= since)
    return connection.scalar(query.limit(1)) is not None
