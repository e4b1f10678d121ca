"""Accounts of an identity provider (OpenID Connect): Keycloak, Google, Azure and others, by their discovery document.

The authorization code flow with PKCE, state and nonce (OpenID Connect Core 1.0; RFC 7636; RFC 9700). An account is the
provider's subject. It begins with an invitation for that subject, or for an e-mail address that the provider has verified:
nobody else can log in. State, nonce and verifier are kept in the browser's cookie, so any server can finish a login.

GET /api/oidc/start         redirects to the provider
GET /api/oidc/callback      where the provider sends the browser back to
"""

from __future__ import annotations

import hmac
import os
import secrets
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import sqlalchemy as sa
from authlib.integrations.base_client import OAuthError  # type: ignore[import-untyped]
from authlib.integrations.httpx_client import OAuth2Client  # type: ignore[import-untyped]
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import IDENTITIES, INVITATIONS, RATERS
from labeling_ui.store.names import composed
from labeling_ui.store.raters import NameTakenError, Rater, insert_rater
from labeling_ui.store.store import Store, wall_clock_ms
from labeling_ui.web.context import Desk, DeskOf
from labeling_ui.web.error_pages import build_page
from labeling_ui.web.login.accounts import NO_PASSWORD, Session, begin_session, check_name
from labeling_ui.web.login.oidc_config import OidcConfig
from labeling_ui.web.routes.api import set_cookies
from tiebreak.errors import ConfigError

COOKIE = "tiebreak_oidc"
COOKIE_SECONDS = 600
"""Time to log in at the provider."""
PROVIDER_SECONDS = 10
KEYS_SECONDS = 3600
LEEWAY_SECONDS = 60
"""Allowed difference from the provider's clock."""
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures with the provider's own key: never `none`, and never a shared secret."""

router = APIRouter(prefix="/api/oidc")


class ProviderError(Exception):
    """The provider cannot be reached, refuses, or sends an invalid reply. The message is shown to whoever logs in."""


@dataclass
class Provider:
    """An identity provider. Thread-safe."""

    config: OidcConfig
    _documents: dict[str, tuple[float, dict[str, Any]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def client(self, redirect_uri: str) -> OAuth2Client:
        """The OAuth client, for one exchange."""
        secret = os.environ.get(self.config.client_secret_env) if self.config.client_secret_env else None
        method = {} if secret else {"token_endpoint_auth_method": "none"}
        return OAuth2Client(
            self.config.client_id,
            secret,
            scope=" ".join(self.config.scopes),
            redirect_uri=redirect_uri,
            code_challenge_method="S256",
            timeout=PROVIDER_SECONDS,
            verify=tls(),
            **method,
        )

    def discovery(self) -> dict[str, Any]:
        """The discovery document.

        Raises:
            ProviderError: it is missing, belongs to another issuer, or names unencrypted addresses.
        """
        issuer = self.config.issuer.rstrip("/")
        found = self._fetch(f"{issuer}/.well-known/openid-configuration")
        if str(found.get("issuer", "")).rstrip("/") != issuer:
            raise ProviderError("The identity provider names another issuer.")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            if not is_safe_address(str(found.get(name, ""))):
                raise ProviderError(f"The identity provider has no encrypted {name}.")
        return found

    def claims(self, token: str, nonce: str) -> dict[str, Any]:
        """The claims of an ID token that this provider has signed for this client and this login.

        Raises:
            ProviderError: signature, client or login do not match, or the token has expired.
        """
        found = self.discovery()
        try:
            decoded = self._decode(token, found["jwks_uri"])
            jwt.JWTClaimsRegistry(
                leeway=LEEWAY_SECONDS,
                iss={"essential": True, "value": found["issuer"]},
                sub={"essential": True},
                exp={"essential": True},
                iat={"essential": True},
            ).validate(decoded.claims)
        except (JoseError, ValueError) as error:
            raise ProviderError("The identity provider's token is not valid, or has expired.") from error
        claims: dict[str, Any] = decoded.claims
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if self.config.client_id not in audiences or claims.get("azp", self.config.client_id) != self.config.client_id:
            raise ProviderError("The identity provider's token is for another program.")
        if len(audiences) > 1 and "azp" not in claims:
            raise ProviderError("The identity provider's token is for several programs.")
        if not hmac.compare_digest(str(claims.get("nonce", "")).encode(), nonce.encode()):
            raise ProviderError("The identity provider's token is of another login.")
        return claims

    def _decode(self, token: str, address: str) -> jwt.Token:
        try:
            return jwt.decode(token, KeySet.import_key_set(self._fetch(address)), algorithms=ALGORITHMS)  # type: ignore[arg-type]
        except (JoseError, ValueError):  # signed by a new key?
            self._documents.pop(address, None)
            return jwt.decode(token, KeySet.import_key_set(self._fetch(address)), algorithms=ALGORITHMS)  # type: ignore[arg-type]

    def _fetch(self, address: str) -> dict[str, Any]:
        with self._lock:
            at, document = self._documents.get(address, (0.0, {}))
            if document and time.monotonic() - at < KEYS_SECONDS:
                return document
        try:
            reply = httpx.get(address, timeout=PROVIDER_SECONDS, verify=tls())
            reply.raise_for_status()
            fetched = reply.json()
        except (httpx.HTTPError, ValueError) as error:
            raise ProviderError("The identity provider is not responding. Try again.") from error
        if not isinstance(fetched, dict):
            raise ProviderError("The identity provider's reply cannot be read.")
        with self._lock:
            self._documents[address] = time.monotonic(), fetched
        return fetched


@cache
def tls() -> ssl.SSLContext:
    """The trusted certificates, read once: reading them takes longer than a request."""
    return ssl.create_default_context()


def is_safe_address(address: str) -> bool:
    """Whether an address is encrypted, or on this machine.

    >>> is_safe_address("https://id.example"), is_safe_address("http://127.0.0.1:80"), is_safe_address("http://id.example")
    (True, True, False)
    """
    parts = urlsplit(address)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1"))


def provider_of(request: Request) -> Provider:
    """The campaign's provider.

    Raises:
        HTTPException: 404: there is none.
    """
    provider: Provider | None = request.app.state.provider
    if provider is None:
        raise HTTPException(404, "this campaign has no identity provider")
    return provider


@router.get("/start")
def start(request: Request, desk: DeskOf) -> Response:
    """Send the browser to the provider."""
    try:
        address, cookie = begin_at_provider(request, desk, provider_of(request))
    except ProviderError as error:
        return plain_page(desk, str(error), 502)
    reply = RedirectResponse(address, status_code=303)
    set_oidc_cookie(request, reply, desk, cookie)
    return reply


@dataclass(frozen=True)
class Begun:
    """The login that a browser began, as its cookie records it."""

    state: str
    nonce: str
    verifier: str
    proof: str
    """proof of the session that links its account; empty: a login, which links nothing"""

    @property
    def whole(self) -> str:
        """The cookie without the proof."""
        return f"{self.state}.{self.nonce}.{self.verifier}"

    def fits(self, state: str) -> bool:
        """Whether the provider's reply belongs to the login that this browser began."""
        return bool(state) and hmac.compare_digest(state.encode(), self.state.encode())


def begin_at_provider(request: Request, desk: Desk, provider: Provider) -> tuple[str, str]:
    """The provider's address to send the browser to, and the cookie's text.

    Raises:
        ProviderError: the provider is not there, or is another one.
    """
    found = provider.discovery()
    state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
    with provider.client(_callback_of(request, desk)) as client:
        address, _ = client.create_authorization_url(
            found["authorization_endpoint"], state=state, nonce=nonce, code_verifier=verifier
        )
    return address, f"{state}.{nonce}.{verifier}"


def set_oidc_cookie(request: Request, reply: Response, desk: Desk, text: str) -> None:
    """Set the cookie of a browser that begins a login."""
    reply.set_cookie(
        COOKIE,
        text,
        max_age=COOKIE_SECONDS,
        path=f"{desk.page.prefix}/api/oidc",
        httponly=True,
        samesite="lax",  # the provider's redirect comes from another site
        secure=request.url.scheme == "https",
    )


def read_cookie(request: Request) -> Begun:
    """The login that this browser began; empty if it has no cookie."""
    return Begun(*[*request.cookies.get(COOKIE, "").split("."), "", "", "", ""][:4])


@router.get("/callback")
def callback(request: Request, desk: DeskOf, state: str = "", code: str = "", error: str = "") -> Response:
    """The browser's return from the provider: starts a session if the account exists or is invited."""
    provider, began = provider_of(request), read_cookie(request)
    if not began.fits(state):
        return plain_page(desk, "This login was begun in another window, or took too long. Log in again.", 403)
    if error or not code:
        return plain_page(desk, "The identity provider refused the login.", 403)
    if began.proof:  # an account is linked: by the session that began, which this request from another site lacks
        return plain_page(desk, "", 200, f"api/oidc/finish?{urlencode({'state': state, 'code': code})}")
    try:
        claims = fetch_claims(request, desk, provider, code, began)
    except ProviderError as failure:
        return plain_page(desk, str(failure), 403)
    session = enter(desk.store, provider.config.issuer, claims)
    if session is None:
        return plain_page(
            desk, "You have no account here. Ask your lead for an invitation to your e-mail address.", 403
        )
    # Not a redirect: a browser that comes from another site would not send the new cookie on.
    reply = plain_page(desk, "", 200)
    set_cookies(desk, session, request, reply)
    reply.delete_cookie(COOKIE, path=f"{desk.page.prefix}/api/oidc")
    return reply


def fetch_claims(request: Request, desk: Desk, provider: Provider, code: str, began: Begun) -> dict[str, Any]:
    """The claims of whoever has logged in at the provider.

    Raises:
        ProviderError: it does not confirm the login.
    """
    found = provider.discovery()
    try:
        with provider.client(_callback_of(request, desk)) as client:
            token = client.fetch_token(found["token_endpoint"], code=code, code_verifier=began.verifier)
    except (OAuthError, httpx.HTTPError, ValueError) as error:
        raise ProviderError("The identity provider did not confirm this login. Log in again.") from error
    return provider.claims(str(token.get("id_token", "")), began.nonce)


def _callback_of(request: Request, desk: Desk) -> str:
    """The redirect address to register at the provider. The guard has checked the host name."""
    return f"{request.url.scheme}://{request.url.netloc}{desk.page.prefix}/api/oidc/callback"


def plain_page(desk: Desk, message: str, status: int, path: str = "rate/") -> HTMLResponse:
    """A page that leads on to a path, or, with a message, back to the login page."""
    words, prefix = desk.page.words, desk.page.prefix
    if message:
        page = build_page(words, message, link=f"{prefix}/login/", link_text=words["login"])
    else:
        link, text = f"{prefix}/{path}", words["error.continue"]
        page = build_page(words, desk.page.title, link=link, link_text=text, at_once=True)
    return HTMLResponse(page, status_code=status)


# --- whose account it is ---


def enter(store: Store, issuer: str, claims: Mapping[str, Any]) -> Session | None:
    """A session of the subject's account, or of a new one that an invitation is for; None: there is neither."""
    return store.transact(lambda tx: _enter(tx, store, issuer, claims))


def _enter(tx: Transaction, store: Store, issuer: str, claims: Mapping[str, Any]) -> Session | None:
    linked = sa.select(RATERS).join(IDENTITIES, IDENTITIES.c.rater_id == RATERS.c.id)
    row = tx.connection.execute(
        linked.where(IDENTITIES.c.issuer == issuer, IDENTITIES.c.subject == str(claims["sub"]))
    ).first()
    if row is not None:
        return (
            None
            if row.disabled
            else begin_session(tx, Rater(row.id, row.name, row.kind, row.role, pool=row.pool), store.sessions)
        )
    invitation = _invitation_for(tx, claims)
    if invitation is None:
        return None
    wanted = Rater(f"rater-{secrets.token_hex(4)}", "", "human", invitation.role, pool=invitation.pool)
    rater = _insert(tx, store, wanted, claims)
    used = sa.update(INVITATIONS).where(INVITATIONS.c.token_hash == invitation.token_hash)
    tx.connection.execute(used.values(used_by=rater.id))
    tx.event("identity_linked", rater_id=rater.id, payload={})  # the subject is personal data: not for the log
    identity = {"issuer": issuer, "subject": str(claims["sub"]), "rater_id": rater.id}
    tx.connection.execute(sa.insert(IDENTITIES).values(**identity))
    return begin_session(tx, rater, store.sessions)


def _invitation_for(tx: Transaction, claims: Mapping[str, Any]) -> Any:
    """The open invitation of a subject, or of a verified e-mail address."""
    usable = sa.and_(
        INVITATIONS.c.used_by.is_(None), INVITATIONS.c.revoked == 0, INVITATIONS.c.expires_at_ms > wall_clock_ms()
    )
    mine = INVITATIONS.c.subject == str(claims["sub"])
    email = str(claims.get("email", "")).casefold()
    if email and claims.get("email_verified") is True:
        mine = sa.or_(mine, INVITATIONS.c.email == email)
    query = sa.select(INVITATIONS).where(usable, mine).order_by(INVITATIONS.c.made_at_ms).with_for_update()
    return tx.connection.execute(query).first()


def _insert(tx: Transaction, store: Store, wanted: Rater, claims: Mapping[str, Any]) -> Rater:
    """The account, under the name that the provider gives, or one made from it."""
    for name in _names(claims, wanted.id):
        try:
            named = Rater(wanted.id, check_name(name), wanted.kind, wanted.role, pool=wanted.pool)
            # Not a hash, so no password matches it.
            return insert_rater(tx, named, f"{NO_PASSWORD}{secrets.token_urlsafe(24)}", store.url)
        except (NameTakenError, ConfigError):
            continue
    raise RuntimeError("unreachable: the id is a name that nobody has")


def _names(claims: Mapping[str, Any], rater_id: str) -> list[str]:
    given = [claims.get(key) for key in ("name", "preferred_username", "nickname")]
    names = [composed(name).strip()[:90] for name in given if isinstance(name, str) and name.strip()]
    return [*names, *(f"{name} {rater_id[-4:]}" for name in names), rater_id]
