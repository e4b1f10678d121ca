"""Accounts: passwords (argon2), sessions in the store, and a limit on failed logins.

A store without accounts belongs to one person: the page then works without a login, on this machine only.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from labeling_ui.database import statements as st
from labeling_ui.database.errors import RefusedError, StoreError
from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import IDENTITIES, INVITATIONS, RATERS, SESSIONS
from labeling_ui.store.names import composed, mixes_scripts, pool_name
from labeling_ui.store.raters import Rater, Role, insert_rater, move_rater
from labeling_ui.store.store import SessionRules, Store, wall_clock_ms
from labeling_ui.web.login import second_factor
from tiebreak.errors import ConfigError

MIN_PASSWORD_CHARACTERS = 12
MAX_PASSWORD_CHARACTERS = 128
MOST_CHECKED_CHARACTERS = 1_000
"""Limit for passwords that are older than `MAX_PASSWORD_CHARACTERS`."""
LEAST_STRENGTH = 3
"""Of zxcvbn's 0 to 4: at least 10⁸ guesses, with the most common passwords first."""
ESTIMATED_CHARACTERS = 64
INVITATION_DAYS = 7
INVITATION_PATH = "/login/#invitation="
"""The token comes after a #: browsers neither send it to servers nor write it to logs."""
MAX_FAILURES = 8
MAX_FAILURES_OF_NAME = 40
MAX_FAILURES_OF_ADDRESS = 100
FAILURE_WINDOW_SECONDS = 300
ALWAYS_ALLOWED = 2
MAX_NAMES_WATCHED = 10_000

# 19 MiB, two passes, one lane: OWASP's recommendation; twenty raters logging in at once still fit in memory.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
_HASHING = ThreadPoolExecutor(2, thread_name_prefix="argon2")
"""Each thread that has hashed keeps its 19 MiB, so there are only two: thirty would cost the server 450 MiB."""
_NOBODYS_HASH = _HASHER.hash(secrets.token_urlsafe())
"""Verified for unknown names, so that they take as long as a wrong password."""


@dataclass
class _Duration:
    """How long the latest check of a password took."""

    seconds: float = 0.03


_TYPICAL = _Duration()


@dataclass(frozen=True)
class Session:
    """A rater who has logged in. Only their browser has the `token`; the store has its hash."""

    rater: Rater
    csrf_token: str
    token: str = ""
    began_at_ms: int = 0
    expires_at_ms: int = 0


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
    name = check_name(name)
    check_password(password, name)
    return store.add_rater(name, role=role, password_hash=hash_password(password), pool=pool)


def reset_password(store: Store, name: str, password: str) -> None:
    """Set a new password, end the rater's sessions, remove their second factor, and re-enable them if disabled. An account
    that had a password is unlinked: whoever had taken it over may have linked their own."""
    check_password(password, name)
    hashed = hash_password(password)
    with store.writing() as tx:
        row: Any = _find(tx.connection, name, store)
        if row.erased_at_ms is not None:
            raise StoreError(f"the data of {name} were erased: invite them anew")
        tx.event("password_reset", rater_id=row.id, payload={})
        tx.connection.execute(sa.update(RATERS).where(RATERS.c.id == row.id).values(password_hash=hashed))
        tx.connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.rater_id == row.id))
        second_factor.remove(tx, row.id)
        if not (row.password_hash or NO_PASSWORD).startswith(NO_PASSWORD):
            _unlink(tx, row.id, None)
        _set_disabled(tx, row, disabled=False)


def change_password(store: Store, name: str, current: str, new: str, *, keep: str) -> bool:
    """A rater's own new password; False if the current one is wrong. Their other sessions end.

    Args:
        keep: the token of the session that stays.

    Raises:
        ConfigError: the new password cannot be used.
    """
    check_password(new, name)
    row = _account(store, name)
    if row is None or row.password_hash is None or not _verify(row.password_hash, current):
        return False
    hashed = hash_password(new)
    with store.writing() as tx:
        tx.event("password_reset", rater_id=row.id, payload={})
        tx.connection.execute(sa.update(RATERS).where(RATERS.c.id == row.id).values(password_hash=hashed))
        _end_others(tx, row.id, keep)
    return True


def remove_factor(store: Store, name: str, password: str, code: str) -> bool:
    """Remove one's second factor; False if the password or the code is wrong."""
    row = _account(store, name)
    if row is None or row.password_hash is None or not _verify(row.password_hash, password):
        return False
    if not second_factor.take_code(store, row.id, code):
        return False
    with store.writing() as tx:
        second_factor.remove(tx, row.id)
    return True


def end_other_sessions(store: Store, rater_id: str, *, keep: str) -> None:
    """End a rater's sessions but the one with this token."""
    with store.writing() as tx:
        _end_others(tx, rater_id, keep)


def _end_others(tx: Transaction, rater_id: str, keep: str) -> None:
    others = sa.and_(SESSIONS.c.rater_id == rater_id, SESSIONS.c.token_hash != _token_hash(keep))
    tx.connection.execute(sa.delete(SESSIONS).where(others))


def list_sessions(store: Store, rater_id: str, *, mine: str) -> list[dict[str, Any]]:
    """When each of a rater's sessions began, the latest first, and whether it is the one with this token."""
    query = sa.select(SESSIONS).where(SESSIONS.c.rater_id == rater_id, SESSIONS.c.expires_at_ms > wall_clock_ms())
    with store.reading() as connection:
        rows = connection.execute(query.order_by(SESSIONS.c.began_at_ms.desc())).all()
    return [{"began_at_ms": row.began_at_ms, "current": row.token_hash == _token_hash(mine)} for row in rows]


def disable(store: Store, name: str) -> None:
    """Disable a rater: no login, no further pairs or judgments. Their judgments stay."""
    with store.writing() as tx:
        _set_disabled(tx, _find(tx.connection, name, store), disabled=True)


def change_rater(
    store: Store, rater_id: str, by: str, *, disabled: bool | None, pool: str | None, role: Role | None = None
) -> None:
    """Enable or disable a rater, move them to a pool, change their role: all of it, or nothing. None changes nothing.

    Raises:
        RefusedError: there is no such rater; a lead would disable themselves or give up their role, so that a lead is left;
            the rater to move is disabled.
    """

    def change(tx: Transaction) -> None:
        # Leads who disable one another at the same moment wait here: one of them is left.
        leads = tx.connection.execute(sa.select(RATERS).where(RATERS.c.role == "lead").with_for_update()).all()
        row = tx.connection.execute(sa.select(RATERS).where(RATERS.c.id == rater_id)).first()
        if row is None:
            raise RefusedError(f"there is no rater {rater_id}")
        _require_allowed(row, by, leads, disabled=disabled, role=role)
        if role not in (None, row.role):
            tx.event("role_changed", rater_id=rater_id, payload={"role": role, "by": by})
            tx.connection.execute(sa.update(RATERS).where(RATERS.c.id == rater_id).values(role=role))
        if disabled is False:
            _set_disabled(tx, row, disabled=False)
        if pool is not None:
            move_rater(tx, rater_id, pool)
        if disabled:
            _set_disabled(tx, row, disabled=True)

    store.transact(change)


def _require_allowed(row: Any, by: str, leads: Sequence[Any], *, disabled: bool | None, role: Role | None) -> None:
    if row.erased_at_ms is not None:
        raise RefusedError("the data of this rater were erased: invite them anew")
    if disabled and row.id == by:
        raise RefusedError("you cannot disable yourself: another lead can")
    if role not in (None, row.role) and row.id == by:
        raise RefusedError("you cannot change your own role: another lead can")
    if (disabled or role) and any(lead.id == by and lead.disabled for lead in leads):
        raise RefusedError("you are no longer a lead of this campaign")


def _set_disabled(tx: Transaction, row: Any, *, disabled: bool) -> None:
    if bool(row.disabled) != disabled:
        tx.event("rater_disabled" if disabled else "rater_enabled", rater_id=row.id, payload={})
        tx.connection.execute(sa.update(RATERS).where(RATERS.c.id == row.id).values(disabled=int(disabled)))
    if disabled:
        tx.connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.rater_id == row.id))


def invite(store: Store, by: str | None, *, role: Role = "rater", pool: str = "", days: int = INVITATION_DAYS) -> str:
    """A token that creates one account within `days`. The store has only its hash."""
    return invite_all(store, by, [""], role=role, pool=pool, days=days)[0]


def invite_all(
    store: Store,
    by: str | None,
    names: Sequence[str],
    *,
    role: Role = "rater",
    pool: str = "",
    days: int = INVITATION_DAYS,
) -> list[str]:
    """A token for each name, by which leads tell invitations apart; the invited choose the names of their accounts.

    A name with an e-mail address or a subject (`parse_invited`) also invites that account of the identity provider.
    """
    tokens, pool = [secrets.token_urlsafe(24) for _ in names], pool_name(pool)

    def record(tx: Transaction) -> None:
        now = wall_clock_ms()
        about = {"role": role, "pool": pool, "expires_at_ms": now + days * 86_400_000, "used_by": None}
        for name, token in zip(names, tokens, strict=True):
            # The name is a person's: it stays out of the log, in which nothing is deleted.
            named = {"invitation": _token_hash(token)[:16]}
            tx.event("invited", rater_id=by, payload={"role": role, "pool": pool, "days": days, **named})
            shown, email, subject = parse_invited(name)
            whose = {"name": shown, "email": email, "subject": subject}
            row = {"token_hash": _token_hash(token), **whose, "made_at_ms": now, "revoked": 0}
            tx.connection.execute(sa.insert(INVITATIONS).values(**row, **about))

    store.transact(record)
    return tokens


def parse_invited(line: str) -> tuple[str, str, str]:
    """(name, e-mail address, subject) of a line such as `Ada <ada@example.org>`, `ada@example.org` or `Ada <sub:248>`.

    >>> parse_invited("Ada <Ada@Example.org>"), parse_invited("Ada <sub:248>"), parse_invited("Ada")
    (('Ada', 'ada@example.org', ''), ('Ada', '', '248'), ('Ada', '', ''))
    """
    name, bracket, rest = line.rpartition("<")
    inside = rest.removesuffix(">").strip() if bracket and rest.endswith(">") else ""
    if inside.startswith("sub:"):
        return name.strip(), "", inside.removeprefix("sub:").strip()
    if "@" in inside:
        return name.strip(), inside.casefold(), ""
    if "@" in line and " " not in line.strip():
        return line.strip(), line.strip().casefold(), ""
    return line, "", ""


@dataclass(frozen=True)
class Invitation:
    """An invitation, as leads see it: without its token, which nobody has but the invited."""

    id: str
    name: str
    role: Role
    pool: str
    made_at_ms: int
    expires_at_ms: int
    state: Literal["open", "used", "expired", "revoked"]
    used_by: str | None
    """the account's id"""
    email: str = ""
    subject: str = ""
    """of the identity provider's account"""


def invitations(store: Store) -> list[Invitation]:
    """All invitations, the latest first."""
    with store.reading() as connection:
        query = sa.select(INVITATIONS).order_by(INVITATIONS.c.made_at_ms.desc(), INVITATIONS.c.name)
        return [_as_invitation(row) for row in connection.execute(query)]


def _as_invitation(row: Any) -> Invitation:
    late = row.expires_at_ms <= wall_clock_ms()
    state: Literal["open", "used", "expired", "revoked"] = (
        "used" if row.used_by else "revoked" if row.revoked else "expired" if late else "open"
    )
    times = row.made_at_ms, row.expires_at_ms
    return Invitation(
        row.token_hash[:16], row.name, row.role, row.pool, *times, state, row.used_by, row.email, row.subject
    )


def revoke_invitation(store: Store, by: str | None, invitation_id: str) -> None:
    """End an invitation before it is used.

    Raises:
        RefusedError: there is no such invitation that is still open.
    """

    def revoke(tx: Transaction) -> None:
        open_still = sa.and_(INVITATIONS.c.used_by.is_(None), INVITATIONS.c.revoked == 0)
        mine = sa.func.substr(INVITATIONS.c.token_hash, 1, 16) == invitation_id
        if not tx.connection.execute(sa.update(INVITATIONS).where(mine, open_still).values(revoked=1)).rowcount:
            raise RefusedError("this invitation has been used or revoked, or there is none")
        tx.event("invitation_revoked", rater_id=by, payload={"invitation": invitation_id})

    store.transact(revoke)


def reset_password_of(store: Store, rater_id: str, by: str) -> str:
    """A new password for another rater, shown once; their sessions end.

    Raises:
        RefusedError: there is no such rater, or it is oneself.
    """
    name = next((one.name for one in store.raters() if one.id == rater_id), None)
    if name is None or rater_id == by:
        raise RefusedError("there is no such rater" if name is None else "your own password is under My work")
    password = secrets.token_urlsafe(9)
    reset_password(store, name, password)
    return password


def accept_invitation(store: Store, token: str, name: str, password: str) -> Session | None:
    """The account of an invitation, with its first session; None if it was used or has expired.

    Raises:
        NameTakenError: the name is taken, or looks like another one.
        ConfigError: the name or the password cannot be used.
    """
    name = check_name(name)
    check_password(password, name)
    hashed = hash_password(password)

    def take(tx: Transaction) -> Session | None:
        mine = INVITATIONS.c.token_hash == _token_hash(token)
        row = tx.connection.execute(sa.select(INVITATIONS).where(*_open_still(token)).with_for_update()).first()
        if row is None:
            return None
        rater = Rater(f"rater-{secrets.token_hex(4)}", name, "human", row.role, pool=row.pool)
        insert_rater(tx, rater, hashed, store.url)
        tx.connection.execute(sa.update(INVITATIONS).where(mine).values(used_by=rater.id))
        return begin_session(tx, rater, store.sessions)

    return store.transact(take)


def is_invitation(store: Store, token: str) -> bool:
    """Whether an invitation with this token can still be accepted."""
    with store.reading() as connection:
        return connection.execute(sa.select(INVITATIONS.c.token_hash).where(*_open_still(token))).first() is not None


def _open_still(token: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        INVITATIONS.c.token_hash == _token_hash(token),
        INVITATIONS.c.used_by.is_(None),
        INVITATIONS.c.expires_at_ms > wall_clock_ms(),
        INVITATIONS.c.revoked == 0,
    )


class CodeNeededError(Exception):
    """The password is right, and the account has a second factor."""


def log_in(store: Store, name: str, password: str, *, code: str = "", crowded: bool = False) -> Session | None:
    """A new session, or None: unknown name, wrong password or code, or disabled; the caller cannot tell which.

    Args:
        code: of the second factor, if the account has one.
        crowded: an unknown name takes the time of a wrong password, but none of the processor's.

    Raises:
        CodeNeededError: all is right, but the code is missing.
    """
    row = _account(store, name)
    has_password = row is not None and row.password_hash is not None
    begun = time.monotonic()
    if crowded and not has_password:
        time.sleep(_TYPICAL.seconds)
        return None
    right = _verify(row.password_hash if has_password else _NOBODYS_HASH, password)
    _TYPICAL.seconds = time.monotonic() - begun
    if row is None or not has_password or not right or row.disabled:
        return None
    rater = Rater(row.id, row.name, row.kind, row.role, pool=row.pool)
    if second_factor.has_factor(store, rater.id):
        if not code:
            raise CodeNeededError
        if not second_factor.take_code(store, rater.id, code):
            return None
    return store.transact(lambda tx: begin_session(tx, rater, store.sessions))


def _account(store: Store, name: str) -> Any:
    with store.reading() as connection:
        return connection.execute(sa.select(RATERS).where(RATERS.c.name.in_((name, composed(name))))).first()


def has_account(store: Store, name: str) -> bool:
    """Whether there is an account of this name."""
    row = _account(store, name)
    return row is not None and row.password_hash is not None


NO_PASSWORD = "oidc:"
"""Prefix of the text that an identity provider's accounts have in place of a password hash."""


def has_password(store: Store, rater_id: str) -> bool:
    """Whether the account can log in with a password."""
    with store.reading_once() as connection:
        hashed = connection.scalar(sa.select(RATERS.c.password_hash).where(RATERS.c.id == rater_id))
    return hashed is not None and not hashed.startswith(NO_PASSWORD)


def confirm_password(store: Store, name: str, password: str) -> bool:
    """Whether this is the account's password."""
    row = _account(store, name)
    return row is not None and row.password_hash is not None and _verify(row.password_hash, password)


def unlink(store: Store, rater_id: str, by: str | None) -> None:
    """Unlink an account from the identity provider.

    Raises:
        RefusedError: it is not linked, or has no password: the provider is its only way in.
    """

    def remove(tx: Transaction) -> None:
        hashed = tx.connection.scalar(
            sa.select(RATERS.c.password_hash).where(RATERS.c.id == rater_id).with_for_update()
        )
        if hashed is None or hashed.startswith(NO_PASSWORD):
            raise RefusedError("the identity provider is the only way into this account: give it a password first")
        if not _unlink(tx, rater_id, by):
            raise RefusedError("this account is not linked")

    store.transact(remove)


def _unlink(tx: Transaction, rater_id: str, by: str | None) -> bool:
    removed = tx.connection.execute(sa.delete(IDENTITIES).where(IDENTITIES.c.rater_id == rater_id)).rowcount
    if removed:
        tx.event("identity_unlinked", rater_id=rater_id, payload={"by": by})
    return bool(removed)


def device_mark(store: Store, name: str, nonce: str = "") -> str:
    """The mark that a browser keeps after a login under this name. A new password invalidates it."""
    row = _account(store, name)
    if row is None or row.password_hash is None:
        return ""
    nonce = nonce or secrets.token_urlsafe(9)
    signature = hmac.new(row.password_hash.encode(), f"{row.id} {nonce}".encode(), hashlib.sha256).hexdigest()
    return f"{nonce}.{signature}"


def knows_device(store: Store, name: str, mark: str) -> bool:
    """Whether a browser's mark is from a login under this name."""
    nonce, dot, _ = mark.partition(".")
    return bool(dot) and hmac.compare_digest(device_mark(store, name, nonce).encode(), mark.encode())


def begin_session(tx: Transaction, rater: Rater, rules: SessionRules) -> Session:
    """A new session, within a transaction."""
    now = wall_clock_ms()
    about = {"began_at_ms": now, "expires_at_ms": rules.expires_at_ms(now, now)}
    session = Session(rater, csrf_token=secrets.token_urlsafe(24), token=secrets.token_urlsafe(32), **about)
    tx.connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.expires_at_ms < now))
    columns = {"token_hash": _token_hash(session.token), "rater_id": rater.id, "csrf_token": session.csrf_token}
    tx.connection.execute(sa.insert(SESSIONS).values(**columns, **about))
    return session


def find_session(store: Store, token: str) -> Session | None:
    """The session of a browser's token, unless it has expired or its rater is disabled."""
    with store.reading_once() as connection:
        now = wall_clock_ms()
        row = st.SESSION.one(connection, token_hash=_token_hash(token), now_ms=now)
    if row is None or row.disabled or now >= row.began_at_ms + store.sessions.most_ms:
        return None
    rater = Rater(row.id, row.name, row.kind, row.role, pool=row.pool)
    return Session(rater, row.csrf_token, token, row.began_at_ms, row.expires_at_ms)


def extend_session(tx: Transaction, session: Session, expires_at_ms: int) -> None:
    """Let a session last longer: its rater is active."""
    mine = SESSIONS.c.token_hash == _token_hash(session.token)
    tx.connection.execute(sa.update(SESSIONS).where(mine).values(expires_at_ms=expires_at_ms))


def log_out(store: Store, token: str) -> None:
    """End a session."""
    with store.writing() as tx:
        tx.connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.token_hash == _token_hash(token)))


@dataclass(frozen=True)
class Strength:
    """How hard a password is to guess."""

    score: int
    """zxcvbn's, from 0 to 4"""
    refusal: str
    """why an account cannot have it; empty: it can"""


def password_strength(password: str, name: str) -> Strength:
    """How hard a new password is to guess, and whether an account can have it."""
    from zxcvbn import zxcvbn  # its lists of passwords take a moment to load

    score = int(zxcvbn(password[:ESTIMATED_CHARACTERS], [name])["score"]) if password else 0
    refusal = ""
    if len(password) < MIN_PASSWORD_CHARACTERS:
        refusal = f"a password must have at least {MIN_PASSWORD_CHARACTERS} characters"
    elif len(password) > MAX_PASSWORD_CHARACTERS:
        refusal = f"a password must have at most {MAX_PASSWORD_CHARACTERS} characters"
    elif score < LEAST_STRENGTH:
        refusal = "this password is too easy to guess: choose another one, such as four unrelated words"
    return Strength(score, refusal)


def check_password(password: str, name: str) -> None:
    """Raises ConfigError for a new password that is short, common, or easy to guess."""
    if refusal := password_strength(password, name).refusal:
        raise ConfigError(refusal)


def hash_password(password: str) -> str:
    """argon2id. Raises ConfigError for a password that is empty or too long."""
    if not password.strip() or len(password) > MAX_PASSWORD_CHARACTERS:
        raise ConfigError(f"a password must have 1 to {MAX_PASSWORD_CHARACTERS} characters")
    return _HASHING.submit(_HASHER.hash, password).result()


def check_name(name: str) -> str:
    """The name as it is stored. Raises ConfigError for an invalid one."""
    name = composed(name)
    if not 0 < len(name) <= 100 or not name.isprintable() or name != name.strip():
        raise ConfigError(f"{name[:100]!r} is not a valid name: 1 to 100 printable characters, no spaces at the ends")
    if mixes_scripts(name):
        raise ConfigError(f"{name!r} mixes letters of several alphabets that look alike: use one of them")
    return name


def _verify(hashed: str, password: str) -> bool:
    if len(password) > MOST_CHECKED_CHARACTERS:
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
    row = connection.execute(sa.select(RATERS).where(RATERS.c.name.in_((name, composed(name))))).first()
    if row is None:
        raise StoreError(f"no rater named {name!r} in {store.url}: list them with 'tiebreak raters list --store URL'")
    return row


class LoginLimit:
    """Limits wrong passwords within `FAILURE_WINDOW_SECONDS`: by name and address, by name, and by address.

    Nobody can lock out a colleague: a browser that has logged in under a name before (`device_mark`) has a limit of its
    own (OWASP's device cookies), and a crowded address still has `ALWAYS_ALLOWED` attempts for every account.
    """

    def __init__(self) -> None:
        self._failures: OrderedDict[tuple[str, str], list[float]] = OrderedDict()
        self._lock = threading.Lock()

    def attempt(self, address: str, name: str = "", *, device: str = "", exists: bool = True) -> bool:
        """Whether another attempt is allowed. It counts as a failure until `forgive`, so that parallel attempts all count.

        Without a name, only the address is checked.

        Args:
            device: the mark of a browser that has logged in under this name; its attempts have a limit of their own.
            exists: whether there is such an account; made-up names at a crowded address are not counted by name.
        """
        checked = self._limits(address, name, device)
        with self._lock:
            full = {key for key, limit in checked.items() if len(self._recent(key)) >= limit}
            crowded = {(address, "")}
            if full - crowded or (full and (not name or len(self._recent((address, name))) >= ALWAYS_ALLOWED)):
                return False
            for key in checked.keys() - full if exists or not full else ():
                self._failures[key] = [*self._recent(key), time.monotonic()]
                self._failures.move_to_end(key)
            while len(self._failures) > MAX_NAMES_WATCHED:
                self._failures.popitem(last=False)
            return True

    def is_crowded(self, address: str) -> bool:
        """Whether an address has used up its attempts for names that are not accounts."""
        with self._lock:
            return len(self._recent((address, ""))) >= MAX_FAILURES_OF_ADDRESS

    @staticmethod
    def _limits(address: str, name: str, device: str) -> dict[tuple[str, str], int]:
        if device:
            return {(device, name): MAX_FAILURES}
        limits = {(address, name): MAX_FAILURES, ("", name): MAX_FAILURES_OF_NAME}
        return (limits if name else {}) | {(address, ""): MAX_FAILURES_OF_ADDRESS}

    def forgive(self, address: str, name: str = "", *, device: str = "") -> None:
        """Remove the latest attempt: it was right."""
        with self._lock:
            for key in self._limits(address, name, device):
                if self._failures.get(key):
                    self._failures[key].pop()

    def _recent(self, key: tuple[str, str]) -> list[float]:
        since = time.monotonic() - FAILURE_WINDOW_SECONDS
        return [at for at in self._failures.get(key, []) if at > since]
