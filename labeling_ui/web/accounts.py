"""Raters who log in: passwords (argon2), sessions in the store, and a limit on guessing.

A store with no account is one person's: the page then works without a login, on this machine alone.
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

from labeling_ui.store import statements as st
from labeling_ui.store.assigning import RefusedError
from labeling_ui.store.event_log import Transaction
from labeling_ui.store.schema import INVITATIONS, RATERS, SESSIONS, StoreError
from labeling_ui.store.store import Rater, Role, Store, insert_rater, wall_clock_ms
from tiebreak.errors import ConfigError

SESSION_DAYS = 14
MAX_PASSWORD_CHARACTERS = 1_000
INVITATION_DAYS = 7
INVITATION_PATH = "/login/#invitation="
"""The token is behind a #: browsers send it to no server and write it to no log."""
MAX_FAILURES = 8
MAX_FAILURES_OF_NAME = 40
MAX_FAILURES_OF_ADDRESS = 100
FAILURE_WINDOW_SECONDS = 300
MAX_NAMES_WATCHED = 10_000

# 19 MiB, two passes, one lane: OWASP's recommendation, and twenty raters who log in at once fit in memory.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
_HASHING = ThreadPoolExecutor(2, thread_name_prefix="argon2")
"""Each thread that has hashed keeps its 19 MiB, so few of them do: thirty raters at once would cost the server 450 MiB."""
_NOBODYS_HASH = _HASHER.hash(secrets.token_urlsafe())
"""Checked where there is no such rater, so that an unknown name takes as long as a wrong password."""


@dataclass(frozen=True)
class Session:
    """A rater who has logged in. `token` is known to their browser alone; the store has its hash."""

    rater: Rater
    csrf_token: str
    token: str = ""


def needs_login(store: Store) -> bool:
    """True where somebody has a password: then everybody logs in."""
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
    """Set a new password, end the rater's sessions, and let them in again if they were disabled."""
    hashed = hash_password(password)
    with store.writing() as tx:
        row = _find(tx.connection, name, store)
        tx.event("password_reset", rater_id=row.id, payload={})
        tx.connection.execute(sa.update(RATERS).where(RATERS.c.id == row.id).values(password_hash=hashed))
        tx.connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.rater_id == row.id))
        _set_disabled(tx, row, disabled=False)


def disable(store: Store, name: str) -> None:
    """End a rater's part: no login, no pair, no judgment more. What they judged stays."""
    with store.writing() as tx:
        _set_disabled(tx, _find(tx.connection, name, store), disabled=True)


def enable_rater(store: Store, rater_id: str, *, enabled: bool) -> None:
    """End a rater's part, or let them in again.

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
    """A token that gives an account, once, within `days`. The store has its hash alone."""
    token = secrets.token_urlsafe(24)

    def record(tx: Transaction) -> None:
        tx.event("invited", rater_id=by, payload={"role": role, "pool": pool, "days": days})
        about = {"role": role, "pool": pool, "expires_at_ms": wall_clock_ms() + days * 86_400_000, "used_by": None}
        tx.connection.execute(sa.insert(INVITATIONS).values(token_hash=_token_hash(token), **about))

    store.transact(record)
    return token


def accept_invitation(store: Store, token: str, name: str, password: str) -> Session | None:
    """The account that an invitation gives, and its first session; None for one that was used or has run out.

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
    """A new session, or None: no such rater, a wrong password, or disabled – which of them is not told."""
    with store.reading() as connection:
        row = connection.execute(sa.select(RATERS).where(RATERS.c.name == name)).first()
    known = row is not None and row.password_hash is not None
    right = _verify(row.password_hash if row is not None and known else _NOBODYS_HASH, password)
    if row is None or not known or not right or row.disabled:
        return None
    rater = Rater(row.id, row.name, row.kind, row.role, pool=row.pool)
    return store.transact(lambda tx: _begin_session(tx, rater))


def _begin_session(tx: Transaction, rater: Rater) -> Session:
    session = Session(rater, csrf_token=secrets.token_urlsafe(24), token=secrets.token_urlsafe(32))
    now = wall_clock_ms()
    tx.connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.expires_at_ms < now))
    known = {"token_hash": _token_hash(session.token), "rater_id": rater.id, "csrf_token": session.csrf_token}
    expires = now + SESSION_DAYS * 86_400_000
    tx.connection.execute(sa.insert(SESSIONS).values(**known, expires_at_ms=expires))
    return session


def find_session(store: Store, token: str) -> Session | None:
    """The session of a browser's token, if it lives and its rater is not disabled."""
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
    """argon2id. Raises ConfigError for a password that is empty or absurdly long."""
    if not password.strip() or len(password) > MAX_PASSWORD_CHARACTERS:
        raise ConfigError(f"a password has 1 to {MAX_PASSWORD_CHARACTERS} characters")
    return _HASHER.hash(password)


def check_name(name: str) -> None:
    """Raises ConfigError for a name that cannot be typed into a login."""
    if not 0 < len(name) <= 100 or not name.isprintable() or name != name.strip():
        raise ConfigError(
            f"{name[:100]!r} cannot be a rater's name: 1 to 100 printable characters, no space at the ends"
        )


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
        raise StoreError(f"no rater named {name!r} in {store.url}: 'tiebreak raters list --store URL' names them")
    return row


class LoginLimit:
    """At most so many wrong passwords in `FAILURE_WINDOW_SECONDS`: by a name from one address, by a name, by an address.

    A room of raters behind one address may mistype, and nobody can lock a colleague out for long.
    """

    def __init__(self) -> None:
        self._failures: OrderedDict[tuple[str, str], list[float]] = OrderedDict()
        self._lock = threading.Lock()

    def attempt(self, address: str, name: str = "") -> bool:
        """Whether one more may be tried; it counts as a failure until it is `forgiven`, so that many at once are many.

        Without a name the address alone is asked.
        """
        limits = {(address, name): MAX_FAILURES, ("", name): MAX_FAILURES_OF_NAME}
        asked = (limits if name else {}) | {(address, ""): MAX_FAILURES_OF_ADDRESS}
        with self._lock:
            if any(len(self._recent(key)) >= limit for key, limit in asked.items()):
                return False
            for key in asked:
                self._failures[key] = [*self._recent(key), time.monotonic()]
                self._failures.move_to_end(key)
            while len(self._failures) > MAX_NAMES_WATCHED:
                self._failures.popitem(last=False)
            return True

    def forgive(self, address: str, name: str = "") -> None:
        """The latest attempt was right."""
        with self._lock:
            for key in {(address, name), ("", name), (address, "")}:
                if self._failures.get(key):
                    self._failures[key].pop()

    def _recent(self, key: tuple[str, str]) -> list[float]:
        since = time.monotonic() - FAILURE_WINDOW_SECONDS
        return [at for at in self._failures.get(key, []) if at > since]
