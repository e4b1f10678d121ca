"""A second factor for accounts: six-digit codes of an authenticator app (TOTP, RFC 6238), each taken once.

An account without one logs in by its password alone, unless `second_factor_for_leads` asks those who see the lead's page
for one. A lost phone: another lead, or `tiebreak raters reset NAME`, gives a new password, which removes the factor.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyotp
import segno
import sqlalchemy as sa

from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import SECOND_FACTORS
from labeling_ui.store.clock import wall_clock_ms

if TYPE_CHECKING:
    from labeling_ui.store.raters import Rater
    from labeling_ui.store.store import Store

STEP_SECONDS = 30
WINDOW_STEPS = 1
"""steps by which a phone's clock may be off (RFC 6238, section 5.2)"""


@dataclass(frozen=True)
class Enrolment:
    """What an authenticator app needs."""

    secret: str
    """base32"""
    qr: str
    """the same as an SVG, for its camera"""


def begin(store: Store, rater: Rater, issuer: str) -> Enrolment | None:
    """A new secret, which counts once a code of it is confirmed; None if the account has a factor."""
    secret = pyotp.random_base32()

    def put(tx: Transaction) -> bool:
        row = _row(tx.connection, rater.id)
        if row is not None and row.confirmed_at_ms:
            return False
        tx.connection.execute(sa.delete(SECOND_FACTORS).where(SECOND_FACTORS.c.rater_id == rater.id))
        values = {"rater_id": rater.id, "secret": secret, "confirmed_at_ms": 0, "last_step": 0}
        tx.connection.execute(sa.insert(SECOND_FACTORS).values(**values))
        return True

    if not store.transact(put):
        return None
    address = pyotp.TOTP(secret).provisioning_uri(name=rater.name, issuer_name=issuer)
    return Enrolment(secret, segno.make_qr(address).svg_inline(scale=4, border=3, dark="#000", light="#fff"))


def confirm(store: Store, rater_id: str, code: str) -> bool:
    """Make the factor count from now on, if the code is right."""

    def put(tx: Transaction) -> bool:
        row = _row(tx.connection, rater_id)
        step = step_of(row.secret, code) if row is not None and not row.confirmed_at_ms else None
        if step is None:
            return False
        tx.event("second_factor_set", rater_id=rater_id, payload={})
        mine = sa.update(SECOND_FACTORS).where(SECOND_FACTORS.c.rater_id == rater_id)
        tx.connection.execute(mine.values(confirmed_at_ms=wall_clock_ms(), last_step=step))
        return True

    return store.transact(put)


def has_factor(store: Store, rater_id: str) -> bool:
    """Whether the account has a confirmed factor."""
    with store.reading() as connection:
        row = _row(connection, rater_id)
    return row is not None and bool(row.confirmed_at_ms)


def take_code(store: Store, rater_id: str, code: str) -> bool:
    """Whether the code is right. Each is taken once, so that one read over a shoulder is worth nothing (RFC 6238, 5.2)."""

    def take(tx: Transaction) -> bool:
        row = _row(tx.connection, rater_id)
        step = step_of(row.secret, code) if row is not None else None
        if step is None:
            return False
        unused = sa.and_(SECOND_FACTORS.c.rater_id == rater_id, SECOND_FACTORS.c.last_step < step)
        done = tx.connection.execute(sa.update(SECOND_FACTORS).where(unused).values(last_step=step))
        return done.rowcount == 1

    return store.transact(take)


def remove(tx: Transaction, rater_id: str) -> None:
    """Remove an account's factor, if it has one."""
    row = _row(tx.connection, rater_id)
    if row is None:
        return
    if row.confirmed_at_ms:
        tx.event("second_factor_removed", rater_id=rater_id, payload={})
    tx.connection.execute(sa.delete(SECOND_FACTORS).where(SECOND_FACTORS.c.rater_id == rater_id))


def step_of(secret: str, code: str, at: float | None = None) -> int | None:
    """The time step whose code this is, among those that a clock may be off by; None if it is of none.

    >>> rfc = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"  # RFC 6238, appendix B: at 59 s, the code is 94287082
    >>> step_of(rfc, "287082", at=59), step_of(rfc, "287082", at=149)
    (1, None)
    """
    digits = code.replace(" ", "")
    now = int((time.time() if at is None else at) // STEP_SECONDS)
    totp = pyotp.TOTP(secret)
    for step in range(now - WINDOW_STEPS, now + WINDOW_STEPS + 1):
        if pyotp.utils.strings_equal(totp.generate_otp(max(step, 0)), digits):
            return step
    return None


def _row(connection: sa.Connection, rater_id: str) -> sa.Row[tuple[object, ...]] | None:
    query = sa.select(SECOND_FACTORS).where(SECOND_FACTORS.c.rater_id == rater_id).with_for_update()
    return connection.execute(query).first()
