"""Accounts: passwords (argon2), sessions in the store, and a limit on failed logins.

A store without accounts belongs to one person: the page then works without a login, on this machine only.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from labeling_ui.database import statements as st
from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import INVITATIONS, RATERS, SESSIONS, StoreError
from labeling_ui.store.assigning import RefusedError
from labeling_ui.store.store import Rater, Role, Store, insert_rater, wall_clock_ms
from tiebreak.errors import ConfigError

SESSION_DAYS = 14
MAX_PASSWORD_CHARACTERS = 1_000
INVITATION_DAYS = 7
INVITATION_PATH = "/login/#invitation="
"""The token comes after a #: browsers neither send it to servers nor write it to logs."""
MAX_FAILURES = 8
MAX_FAILURES_OF_NAME = 40
MAX_FAILURES_OF_ADDRESS = 100
FAILURE_WINDOW_SECONDS = 300
MAX_NAMES_WATCHED = 10_000

# 19 MiB, two passes, one lane: OWASP's recommendation; twenty raters logging in at once still fit in memory.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
_HASHING = ThreadPoolExecutor(2, thread_name_prefix="argon2")
"""Each thread that has hashed keeps its 19 MiB, so there are only two: thirty would cost the server 450 MiB."""
_NOBODYS_HASH = _HASHER.hash(secrets.token_urlsafe())
"""Verified for unknown names, so that they take as long as a wrong password."""


@dataclass(frozen=True)
class Session:
    """A rater who has logged in. Only their browser has the `token`; the store has its hash."""

    rater: Rater
    csrf_token: str
    token: str = ""


def needs_login(store: Store) -> bool:
    """True where any account has a password: then everybody must log in."""
    with store.reading() as connection:
        return st.ANY_ACCOUNT.one(connection) is not None


def add_account(store: Store, name: str, role: Role, password: str, pool: str = "") -> Rater:
    """A rater who can log in.

    Raises:
        StoreError: the name is taken.
        ConfigError: the name or the password cannot be used.
    """
    check_name(name)
    return store.add_rater(name, role=role, password_hash=hash_password(password), pool=pool)


def reset_password(store: Store, name: str, password: str) -> None:
    """Set a new password, end the rater's sessions, and re-enable them if they were disabled."""
    hashed = hash_password(password)
    with store.writing() as tx:
        row = _find(tx.connection, name, store)
        tx.event("password_reset", rater_id=row.id, payload={})
        tx.connection.execute(sa.update(RATERS).where(RATERS.c.id == row.id).values(password_hash=hashed))
        tx.connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.rater_id == row.id))
        _set_disabled(tx, row, disabled=False)


def disable(store: Store, name: str) -> None:
    """Disable a rater: no login, no further pairs or judgments. Their judgments stay."""
    with store.writing() as tx:
        _set_disabled(tx, _find(tx.connection, name, store), disabled=True)


def enable_rater(store: Store, rater_id: str, *, enabled: bool) -> None:
    """Enable or disable a rater.

    Raises:
        RefusedError: there is no such rater.
    """

    def change(tx: Transaction) -> None:
        row = tx.connection.execute(sa.select(RATERS).where(RATERS.c.id == rater_id)).first()
        if row is None:
            raise RefusedError(f"there is no rater {rater_id}")
        _set_disabled(tx, row, disabled=not enabled)

    store.transact(change)


def _set_disabled(tx: Transaction, row: Any, *, disabled: bool) -> None:
    if bool(row.disabled) != disabled:
        tx.event("rater_disabled" if disabled else "rater_enabled", rater_id=row.id, payload={})
        tx.connection.execute(sa.update(RATERS).where(RATERS.c.id == row.id).values(disabled=int(disabled)))
    if disabled:
        tx.connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.rater_id == row.id))


def invite(store: Store, by: str | None, *, role: Role = "rater", pool: str = "", days: int = INVITATION_DAYS) -> str:
    """A token that creates one account within `days`. The store has only its hash."""
    token = secrets.token_urlsafe(24)

    def record(tx: Transaction) -> None:
        tx.event("invited", rater_id=by, payload={"role": role, "pool": pool, "days": days})
        about = {"role": role, "pool": pool, "expires_at_ms": wall_clock_ms() + days * 86_400_000, "used_by": None}
        tx.connection.execute(sa.insert(INVITATIONS).values(token_hash=_token_hash(token), **about))

    store.transact(record)
    return token


def accept_invitation(store: Store, token: str, name: str, password: str) -> Session | None:
    """The account of an invitation, with its first session; None if it was used or has expired.

    Raises:
        StoreError: the name is taken.
        ConfigError: the name or the password cannot be used.
    """
    check_name(name)
    hashed = hash_password(password)

    def take(tx: Transaction) -> Session | None:
        mine = INVITATIONS.c.token_hash == _token_hash(token)
        open_still = sa.and_(mine, INVITATIONS.c.used_by.is_(None), INVITATIONS.c.expires_at_ms > wall_clock_ms())
        row = tx.connection.execute(sa.select(INVITATIONS).where(open_still).with_for_update()).first()
        if row is None:
            return None
        rater = Rater(f"rater-{secrets.token_hex(4)}", name, "human", row.role, pool=row.pool)
        insert_rater(tx, rater, hashed, store.url)
        tx.connection.execute(sa.update(INVITATIONS).where(mine).values(used_by=rater.id))
        return _begin_session(tx, rater)

    return store.transact(take)


def log_in(store: Store, name: str, password: str) -> Session | None:
    """A new session, or None: unknown name, wrong password, or disabled; the caller cannot tell which."""
    with store.reading() as connection:
        row = connection.execute(sa.select(RATERS).where(RATERS.c.name == name)).first()
    has_account = row is not None and row.password_hash is not None
    right = _verify(row.password_hash if row is not None and has_account else _NOBODYS_HASH, password)
    if row is None or not has_account or not right or row.disabled:
        return None
    rater = Rater(row.id, row.name, row.kind, row.role, pool=row.pool)
    return store.transact(lambda tx: _begin_session(tx, rater))


def _begin_session(tx: Transaction, rater: Rater) -> Session:
    session = Session(rater, csrf_token=secrets.token_urlsafe(24), token=secrets.token_urlsafe(32))
    now = wall_clock_ms()
    tx.connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.expires_at_ms < now))
    columns = {"token_hash": _token_hash(session.token), "rater_id": rater.id, "csrf_token": session.csrf_token}
    expires = now + SESSION_DAYS * 86_400_000
    tx.connection.execute(sa.insert(SESSIONS).values(**columns, expires_at_ms=expires))
    return session


def find_session(store: Store, token: str) -> Session | None:
    """The session of a browser's token, unless it has expired or its rater is disabled."""
    with store.glancing() as connection:
        row = st.SESSION.one(connection, token_hash=_token_hash(token), now_ms=wall_clock_ms())
    if row is None or row.disabled:
        return None
    return Session(Rater(row.id, row.name, row.kind, row.role, pool=row.pool), row.csrf_token)


def log_out(store: Store, token: str) -> None:
    """End a session."""
    with store.writing() as tx:
        tx.connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.token_hash == _token_hash(token)))


def hash_password(password: str) -> str:
    """argon2id. Raises ConfigError for a password that is empty or too long."""
    if not password.strip() or len(password) > MAX_PASSWORD_CHARACTERS:
        raise ConfigError(f"a password must have 1 to {MAX_PASSWORD_CHARACTERS} characters")
    return _HASHER.hash(password)


def check_name(name: str) -> None:
    """Raises ConfigError for an invalid rater's name."""
    if not 0 < len(name) <= 100 or not name.isprintable() or name != name.strip():
        raise ConfigError(f"{name[:100]!r} is not a valid name: 1 to 100 printable characters, no spaces at the ends")


def _verify(hashed: str, password: str) -> bool:
    if len(password) > MAX_PASSWORD_CHARACTERS:
        return False
    try:
        return _HASHING.submit(_HASHER.verify, hashed, password).result()
    except (VerificationError, InvalidHashError):
        return False


def _token_hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def find_rater(store: Store, name: str) -> Rater:
    """The rater of that name. Raises StoreError if there is none."""
    with store.reading() as connection:
        row: Any = _find(connection, name, store)
    return Rater(row.id, row.name, row.kind, row.role, bool(row.disabled), row.pool)


def _find(connection: sa.Connection, name: str, store: Store) -> sa.Row[tuple[object, ...]]:
    row = connection.execute(sa.select(RATERS).where(RATERS.c.name == name)).first()
    if row is None:
        raise StoreError(f"no rater named {name!r} in {store.url}: list them with 'tiebreak raters list --store URL'")
    return row


class LoginLimit:
    """Limits wrong passwords within `FAILURE_WINDOW_SECONDS`: by name and address, by name, and by address.

    Many raters behind one address may mistype, and nobody can lock out a colleague for long.
    """

    def __init__(self) -> None:
        self._failures: OrderedDict[tuple[str, str], list[float]] = OrderedDict()
        self._lock = threading.Lock()

    def attempt(self, address: str, name: str = "") -> bool:
        """Whether another attempt is allowed. It counts as a failure until `forgive`, so that parallel attempts all count.

        Without a name, only the address is checked.
        """
        limits = {(address, name): MAX_FAILURES, ("", name): MAX_FAILURES_OF_NAME}
        checked = (limits if name else {}) | {(address, ""): MAX_FAILURES_OF_ADDRESS}
        with self._lock:
            if any(len(self._recent(key)) >= limit for key, limit in checked.items()):
                return False
            for key in checked:
                self._failures[key] = [*self._recent(key), time.monotonic()]
                self._failures.move_to_end(key)
            while len(self._failures) > MAX_NAMES_WATCHED:
                self._failures.popitem(last=False)
            return True

    def forgive(self, address: str, name: str = "") -> None:
        """Remove the latest attempt: it was right."""
        with self._lock:
            for key in {(address, name), ("", name), (address, "")}:
                if self._failures.get(key):
                    self._failures[key].pop()

    def _recent(self, key: tuple[str, str]) -> list[float]:
        since = time.monotonic() - FAILURE_WINDOW_SECONDS
        return [at for at in self._failures.get(key, []) if at > since]
