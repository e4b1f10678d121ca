"""Links an account that has a password to one of the identity provider, and unlinks it.

Linking begins with the password, so that a session left open does not give the account away, and ends in the session that
began it. The provider's redirect comes from another site and brings no session, so the callback's page calls `finish`.

GET  /api/oidc/identity     whether the account is linked, and whether it has a password
POST /api/oidc/link         begin: the provider's address
GET  /api/oidc/finish       where the callback sends the browser to
POST /api/oidc/unlink       log in with the password alone again
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from labeling_ui.database.errors import RefusedError
from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import IDENTITIES, RATERS
from labeling_ui.store.store import Store
from labeling_ui.web.context import CurrentSession, Desk, DeskOf, WritingSession, session_of
from labeling_ui.web.login.accounts import Session, confirm_password, has_password, unlink
from labeling_ui.web.routes.oidc import (
    COOKIE,
    ProviderError,
    begin_at_provider,
    fetch_claims,
    plain_page,
    provider_of,
    read_cookie,
    set_oidc_cookie,
)

router = APIRouter(prefix="/api/oidc")


class Password(BaseModel):
    """One's own password, once more."""

    model_config = ConfigDict(extra="forbid")

    password: str = Field(max_length=1_000)


@router.get("/identity")
def identity(request: Request, desk: DeskOf, session: CurrentSession) -> dict[str, bool]:
    """Whether the account is linked to one of the provider, and whether it has a password."""
    issuer, rater_id = provider_of(request).config.issuer, session.rater.id
    return {"linked": is_linked(desk.store, issuer, rater_id), "password": has_password(desk.store, rater_id)}


@router.post("/link")
def link(request: Request, response: Response, desk: DeskOf, session: WritingSession, body: Password) -> dict[str, str]:
    """Begin to link the account: the address at the provider to go to."""
    provider = provider_of(request)
    _confirm(request, desk, session, body)
    if is_linked(desk.store, provider.config.issuer, session.rater.id):
        raise HTTPException(409, "This account is linked already: unlink it first.")
    try:
        address, cookie = begin_at_provider(request, desk, provider)
    except ProviderError as error:
        raise HTTPException(502, str(error)) from error
    set_oidc_cookie(request, response, desk, f"{cookie}.{proof_of(session, cookie)}")
    return {"address": address}


@router.get("/finish")
def finish(request: Request, desk: DeskOf, state: str = "", code: str = "") -> Response:
    """Link the account of the session that began."""
    provider, session = provider_of(request), session_of(request)
    began = read_cookie(request)
    expected = "" if session is None else proof_of(session, began.whole)
    if session is None or not began.fits(state) or not hmac.compare_digest(began.proof.encode(), expected.encode()):
        return plain_page(desk, "This was begun in another window, or took too long. Link the account again.", 403)
    try:
        claims = fetch_claims(request, desk, provider, code, began)
        link_identity(desk.store, provider.config.issuer, claims, session.rater.id)
    except (ProviderError, RefusedError) as error:
        return plain_page(desk, str(error), 403)
    reply = plain_page(desk, "", 200)
    reply.delete_cookie(COOKIE, path=f"{desk.page.prefix}/api/oidc")
    return reply


@router.post("/unlink")
def unlink_own(request: Request, desk: DeskOf, session: WritingSession, body: Password) -> dict[str, bool]:
    """Unlink the account. It must have a password, so that one way to log in is left."""
    provider_of(request)
    _confirm(request, desk, session, body)
    unlink(desk.store, session.rater.id, session.rater.id)
    return {"ok": True}


def _confirm(request: Request, desk: Desk, session: Session, body: Password) -> None:
    """Refuse a request that the account's password does not confirm.

    Raises:
        HTTPException: 409: it is wrong, or there is none; 429: too many attempts.
    """
    if not has_password(desk.store, session.rater.id):
        raise HTTPException(409, "This account has no password: ask a lead for one first.")
    address, name = request.client.host if request.client else "", session.rater.name
    if not desk.limit.attempt(address, name, exists=True):
        raise HTTPException(429, "too many attempts: wait five minutes")
    if not confirm_password(desk.store, name, body.password):
        raise HTTPException(409, "The current password is wrong.")
    desk.limit.forgive(address, name)


def proof_of(session: Session, cookie: str) -> str:
    """A mark on the cookie by which the session that began is recognised: no other browser knows the session's token."""
    return hmac.new(session.csrf_token.encode(), f"link {cookie}".encode(), hashlib.sha256).hexdigest()


def is_linked(store: Store, issuer: str, rater_id: str) -> bool:
    """Whether an account is linked to one of this provider."""
    mine = sa.and_(IDENTITIES.c.issuer == issuer, IDENTITIES.c.rater_id == rater_id)
    with store.reading_once() as connection:
        return connection.scalar(sa.select(IDENTITIES.c.subject).where(mine).limit(1)) is not None


def link_identity(store: Store, issuer: str, claims: Mapping[str, Any], rater_id: str) -> None:
    """Link an account to the provider's subject.

    Raises:
        RefusedError: the subject is another account's, or the account is disabled, or linked already.
    """
    subject = str(claims["sub"])

    def record(tx: Transaction) -> None:
        rater = tx.connection.execute(sa.select(RATERS).where(RATERS.c.id == rater_id).with_for_update()).first()
        if rater is None or rater.disabled:
            raise RefusedError("this account is disabled")
        rows = sa.select(IDENTITIES).where(IDENTITIES.c.issuer == issuer)
        owner = tx.connection.execute(rows.where(IDENTITIES.c.subject == subject)).first()
        if owner is not None and owner.rater_id != rater_id:
            raise RefusedError("You already have another account here through your organisation: ask a lead.")
        if tx.connection.execute(rows.where(IDENTITIES.c.rater_id == rater_id)).first() is not None:
            raise RefusedError("This account is linked already: unlink it first.")
        tx.event("identity_linked", rater_id=rater_id, payload={})  # the subject is personal data: not for the log
        tx.connection.execute(sa.insert(IDENTITIES).values(issuer=issuer, subject=subject, rater_id=rater_id))

    store.transact(record)
