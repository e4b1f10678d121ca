"""Logging in through an identity provider: a small one on this machine, which misbehaves on request."""

from __future__ import annotations

import base64
import hashlib
import html
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Form, HTTPException
from fastapi.responses import RedirectResponse
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey
from label_support import free_port, make_pair, open_store
from pydantic import ValidationError
from test_label_api import PAGE, PASSWORD, no_pages, run  # noqa: F401

from labeling_ui.database.errors import RefusedError
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from labeling_ui.web.context import SESSION_COOKIE
from labeling_ui.web.login.accounts import (
    Session,
    add_account,
    invite_all,
    log_in,
    needs_login,
    reset_password,
    unlink,
)
from labeling_ui.web.login.oidc_config import OidcConfig
from labeling_ui.web.routes.linking import link_identity
from labeling_ui.web.routes.oidc import enter, tls
from labeling_ui.web.server import create_app

SECRET = "the client's secret"


@dataclass
class StandIn:
    """An identity provider, as its specification has it: OpenID Connect Core 1.0, RFC 7636."""

    issuer: str
    claims: dict[str, Any] = field(default_factory=dict)
    """of whoever logs in; also overrides of the token's own"""
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "one"}))
    signing: Any = None
    """another key to sign with, and its algorithm"""
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    names_issuer: str = ""

    def app(self) -> FastAPI:
        app = FastAPI()
        app.get("/.well-known/openid-configuration")(self.discover)
        app.get("/authorize")(self.authorize)
        app.post("/token")(self.token)
        app.get("/keys")(lambda: {"keys": [self.key.as_dict(private=False)]})
        return app

    def discover(self) -> dict[str, str]:
        return {
            "issuer": self.names_issuer or self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
        }

    def authorize(
        self, client_id: str, redirect_uri: str, state: str, nonce: str, code_challenge: str,
        code_challenge_method: str, response_type: str, scope: str,
    ) -> RedirectResponse:  # fmt: skip
        assert (code_challenge_method, response_type, "openid" in scope.split()) == ("S256", "code", True)
        code = f"code-{len(self.codes)}"
        about = {"client": client_id, "redirect": redirect_uri, "nonce": nonce, "challenge": code_challenge}
        self.codes[code] = about
        return RedirectResponse(f"{redirect_uri}?state={state}&code={code}", status_code=303)

    def token(self, code: str = Form(), redirect_uri: str = Form(), code_verifier: str = Form()) -> dict[str, str]:
        about = self.codes.pop(code, None)
        digest = base64.urlsafe_b64encode(hashlib.sha256(code_verifier.encode()).digest()).rstrip(b"=").decode()
        if about is None or (about["redirect"], about["challenge"]) != (redirect_uri, digest):
            raise HTTPException(400, "invalid_grant")
        now = int(time.time())
        standard = {"iss": self.issuer, "aud": about["client"], "iat": now, "exp": now + 300, "nonce": about["nonce"]}
        key, algorithm = self.signing or (self.key, "RS256")
        signed = jwt.encode(
            {"alg": algorithm, "kid": self.key.kid}, standard | self.claims, key, algorithms=[algorithm]
        )
        return {"access_token": "x", "token_type": "Bearer", "id_token": signed}


@pytest.fixture(scope="module")
def running() -> Iterator[StandIn]:
    port = free_port()
    provider = StandIn(f"http://127.0.0.1:{port}")
    server = uvicorn.Server(uvicorn.Config(provider.app(), port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield provider
    server.should_exit = True
    thread.join(timeout=10)


@pytest.fixture
def provider(running: StandIn) -> StandIn:
    running.claims, running.signing, running.names_issuer = {"sub": "248"}, None, ""
    return running


class Site:
    """A campaign that takes accounts of the provider, and a browser's way through the login."""

    def __init__(self, folder: Path, provider: StandIn) -> None:
        self.store = open_store(folder, [make_pair(n) for n in range(3)], raters=0)
        add_account(self.store, "Zoe", "lead", PASSWORD)
        self.app = create_app(self.store, PAGE, oidc=OidcConfig(issuer=provider.issuer, client_id="tiebreak"))

    def browser(self, cookies: dict[str, str] | None = None) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self.app)
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", cookies=cookies)

    def log_in(self, *, other_browser: bool = False, code: str = "", state: str = "") -> httpx.Response:
        """The reply at the end of the way."""

        async def go() -> httpx.Response:
            async with self.browser() as browser:
                begun = await browser.get("/api/oidc/start")
                if begun.status_code != 303:
                    return begun
                assert "samesite=lax" in begun.headers["set-cookie"].lower()
                sent = httpx.get(begun.headers["location"], verify=tls())
                returned = urlsplit(sent.headers["location"])
                query = {name: value[0] for name, value in parse_qs(returned.query).items()}
                query |= {"code": code} if code else {}
                query |= {"state": state} if state else {}
                if other_browser:
                    browser.cookies.clear()
                return await browser.get(returned.path, params=query)

        reply: httpx.Response = run(go())
        return reply

    def me(self, reply: httpx.Response) -> dict[str, Any]:
        async def ask() -> Any:
            async with self.browser({SESSION_COOKIE: reply.cookies[SESSION_COOKIE]}) as browser:
                return (await browser.get("/api/me")).json()

        found: dict[str, Any] = run(ask())
        return found


@pytest.fixture
def site(tmp_path: Path, provider: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("TIEBREAK_OIDC_SECRET", SECRET)
    made = Site(tmp_path, provider)
    yield made
    assert verify(made.store).faults == []
    made.store.close()


def test_an_invited_address_gets_one_account_and_keeps_it(site: Site, provider: StandIn) -> None:
    provider.claims = {"sub": "248", "name": "Zoe", "email": "Ada@Example.org", "email_verified": True}
    assert site.log_in().status_code == 403, "nobody has invited her"
    invite_all(site.store, None, ["Ada <ada@example.org>"], role="reviewer", pool="german")
    reply = site.log_in()
    assert (reply.status_code, 'url=/rate/"' in reply.text) == (200, True), reply.text
    me = site.me(reply)
    assert (me["role"], me["name"].startswith("Zoe ")) == ("reviewer", True), "another Zoe has the name"
    provider.claims = {"sub": "248", "name": "Ada Married", "email": "new@example.org", "email_verified": True}
    assert site.me(site.log_in())["rater_id"] == me["rater_id"], "the subject counts, whatever the address is"
    (rater,) = [one for one in site.store.raters() if one.id == me["rater_id"]]
    assert rater.pool == "german"
    provider.claims = {"sub": "other", "email": "ada@example.org", "email_verified": True}
    assert site.log_in().status_code == 403, "an invitation works once"
    assert log_in(site.store, rater.name, "") is None, "there is no password"
    assert log_in(site.store, rater.name, "oidc:") is None
    with site.store.reading() as connection:
        log = str(connection.exec_driver_sql("SELECT payload FROM events").all())
    assert not any(personal in log for personal in ("Ada", "ada@", "248", "Zoe")), "the log keeps no identities"
    site.store.erase_rater(rater.id, judgments=False)
    provider.claims = {"sub": "248"}
    assert site.log_in().status_code == 403


def test_a_subject_is_invited_and_a_disabled_account_stays_out(site: Site) -> None:
    invite_all(site.store, None, ["<sub:248>"])
    rater_id = site.me(site.log_in())["rater_id"]
    with site.store.writing() as tx:
        tx.event("rater_disabled", rater_id=rater_id, payload={})
        tx.connection.exec_driver_sql(f"UPDATE raters SET disabled = 1 WHERE id = '{rater_id}'")
    assert site.log_in().status_code == 403


NEW = "four unrelated words here"


class Member:
    """Somebody with a password, in a browser of their own."""

    def __init__(self, site: Site, name: str) -> None:
        self.site, session = site, log_in(site.store, name, PASSWORD)
        assert session is not None
        self.cookies, self.headers = {SESSION_COOKIE: session.token}, {"X-CSRF-Token": session.csrf_token}
        self.id = session.rater.id

    def send(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def go() -> httpx.Response:
            async with self.site.browser(self.cookies) as browser:
                return await browser.request(method, path, headers=self.headers, **more)

        reply: httpx.Response = run(go())
        return reply

    def link(self, *, password: str = PASSWORD, finisher: dict[str, str] | None = None) -> httpx.Response:
        """The reply after all redirects. The provider's redirect carries no session, since it comes from another site."""

        async def go() -> httpx.Response:
            async with self.site.browser(self.cookies) as browser:
                begun = await browser.post("/api/oidc/link", headers=self.headers, json={"password": password})
                if begun.status_code != 200:
                    return begun
                returned = urlsplit(httpx.get(begun.json()["address"], verify=tls()).headers["location"])
                browser.cookies.delete(SESSION_COOKIE)
                back = await browser.get(f"{returned.path}?{returned.query}")
                assert (back.status_code, SESSION_COOKIE in back.cookies) == (200, False), back.text
                target = html.unescape(back.text.partition("url=")[2].partition('"')[0])
                for name, value in (finisher or self.cookies).items():
                    browser.cookies.set(name, value)
                return await browser.get(target)

        reply: httpx.Response = run(go())
        return reply


def test_an_account_is_linked_used_and_unlinked(site: Site, provider: StandIn) -> None:
    ada = Member(site, add_account(site.store, "Ada", "rater", PASSWORD).name)
    assert ada.send("GET", "/api/oidc/identity").json() == {"linked": False, "password": True}
    assert ada.send("POST", "/api/oidc/unlink", json={"password": PASSWORD}).status_code == 409, "not linked"
    assert ada.link(password="wrong").status_code == 409
    assert site.log_in().status_code == 403, "nothing is linked yet"
    assert ada.link().status_code == 200
    assert ada.send("GET", "/api/oidc/identity").json() == {"linked": True, "password": True}
    assert site.me(site.log_in())["rater_id"] == ada.id
    provider.claims = {"sub": "another"}
    assert ada.link().status_code == 409, "one subject an account"
    assert ada.send("POST", "/api/oidc/unlink", json={"password": "wrong"}).status_code == 409
    assert ada.send("POST", "/api/oidc/unlink", json={"password": PASSWORD}).json() == {"ok": True}
    provider.claims = {"sub": "248"}
    assert site.log_in().status_code == 403
    assert log_in(site.store, "Ada", PASSWORD) is not None
    with site.store.reading() as connection:
        kinds = list(connection.exec_driver_sql("SELECT kind FROM events WHERE kind LIKE 'identity%'").scalars())
    assert kinds == ["identity_linked", "identity_unlinked"]


def test_the_last_way_in_is_never_removed(site: Site) -> None:
    invite_all(site.store, None, ["<sub:248>"])
    reply = site.log_in()
    rater_id = site.me(reply)["rater_id"]
    cookies = {SESSION_COOKIE: reply.cookies[SESSION_COOKIE]}
    member = Member(site, "Zoe")
    member.cookies, member.headers = cookies, {}

    async def token() -> Any:
        async with site.browser(cookies) as browser:
            return (await browser.get("/api/me")).json()["csrf_token"]

    member.headers = {"X-CSRF-Token": run(token())}
    for password in ("", PASSWORD):
        refused = member.send("POST", "/api/oidc/unlink", json={"password": password})
        assert (refused.status_code, "no password" in refused.text) == (409, True)
    with pytest.raises(RefusedError, match="only way in"):
        unlink(site.store, rater_id, None)
    (rater,) = [one for one in site.store.raters() if one.id == rater_id]
    reset_password(site.store, rater.name, NEW)
    assert site.log_in().status_code == 200, "an account of the provider stays linked when it gets a password"
    unlink(site.store, rater_id, None)
    assert site.log_in().status_code == 403
    assert log_in(site.store, rater.name, NEW) is not None


def test_no_other_session_and_no_other_account_is_linked(site: Site, provider: StandIn) -> None:
    ada, ben = (Member(site, add_account(site.store, name, "rater", PASSWORD).name) for name in ("Ada", "Ben"))
    assert ada.link(finisher=ben.cookies).status_code == 403, "the session that began is not the one that ends"
    assert ada.link(finisher={"other": "x"}).status_code == 403, "logged out meanwhile"
    ada.headers = {}
    assert ada.link().status_code == 403, "no CSRF token"
    assert ben.link().status_code == 200
    ada = Member(site, "Ada")
    refused = ada.link()
    assert (refused.status_code, "another account" in refused.text) == (403, True), "the subject is Ben's"
    provider.claims = {"sub": "248", "aud": "another program"}
    assert ada.link().status_code == 403
    provider.claims = {"sub": "249"}
    assert ada.link().status_code == 200
    assert site.me(site.log_in())["rater_id"] == ada.id
    reset_password(site.store, "Ada", NEW)
    assert site.log_in().status_code == 403, "a reset ends the access of whoever had taken the account over"


def test_a_linked_lead_needs_a_second_factor_for_the_password(tmp_path: Path, provider: StandIn) -> None:
    store = open_store(tmp_path, [make_pair(0)], raters=0)
    zoe = add_account(store, "Zoe", "lead", PASSWORD)
    page = replace(PAGE, second_factor_for_leads=True)
    app = create_app(store, page, oidc=OidcConfig(issuer=provider.issuer, client_id="tiebreak"))
    link_identity(store, provider.issuer, {"sub": "248"}, zoe.id)

    async def status(session: Session) -> int:
        cookies = {SESSION_COOKIE: session.token}
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", cookies=cookies) as browser:
            return (await browser.get("/api/lead/status")).status_code

    by_password = log_in(store, "Zoe", PASSWORD)
    assert by_password is not None
    assert run(status(by_password)) == 403
    invite_all(store, None, ["<sub:7>"], role="lead")
    by_provider = enter(store, provider.issuer, {"sub": "7"})
    assert by_provider is not None
    assert run(status(by_provider)) == 200, "the provider asks for its own factors"
    store.close()


FOREIGN: tuple[dict[str, Any], ...] = (
    {"email_verified": False},
    {"email_verified": "true"},
    {"email_verified": None},
    {"aud": "another program"},
    {"aud": ["tiebreak", "another"]},
    {"azp": "another program"},
    {"iss": "http://127.0.0.1:1"},
    {"nonce": "of another login"},
    {"exp": 1},
    {"exp": "soon"},
    {"sub": None},
)


def test_a_token_that_is_not_for_this_login_opens_nothing(site: Site, provider: StandIn) -> None:
    invite_all(site.store, None, ["ada@example.org"])
    good = {"sub": "248", "email": "ada@example.org", "email_verified": True}
    for claims in FOREIGN:
        provider.claims = {name: value for name, value in (good | claims).items() if value is not None}
        refused = site.log_in()
        assert (refused.status_code, SESSION_COOKIE in refused.cookies) == (403, False), (claims, refused.text)
    provider.claims = good
    assert site.log_in().status_code == 200


def test_keys_states_and_codes_of_others_are_refused(site: Site, provider: StandIn) -> None:
    invite_all(site.store, None, ["<sub:248>"])
    assert site.log_in(other_browser=True).status_code == 403, "a login that this browser did not begin"
    assert site.log_in(state="guessed").status_code == 403
    assert site.log_in(code="code-of-another").status_code == 403
    provider.signing = RSAKey.generate_key(2048, {"kid": "one"}), "RS256"
    assert site.log_in().status_code == 403, "another's key"
    provider.signing = OctKey.import_key(SECRET), "HS256"
    assert site.log_in().status_code == 403, "the secret is no signature"
    provider.signing = None
    provider.key = RSAKey.generate_key(2048, {"kid": "two"})
    assert site.log_in().status_code == 200, "the provider has a new key"
    assert needs_login(site.store)


def test_a_provider_that_is_away_or_another_issuer_is_reported(tmp_path: Path, provider: StandIn) -> None:
    store = open_store(tmp_path, [make_pair(0)], raters=0)
    add_account(store, "Zoe", "lead", PASSWORD)
    away = create_app(store, PAGE, oidc=OidcConfig(issuer=f"http://127.0.0.1:{free_port()}", client_id="tiebreak"))
    provider.names_issuer = "https://evil.example"
    mixed = create_app(store, PAGE, oidc=OidcConfig(issuer=provider.issuer, client_id="tiebreak"))
    for app, words in ((away, "not responding"), (mixed, "another issuer")):
        reply = run(_get(app, "/api/oidc/start"))
        assert (reply.status_code, words in reply.text) == (502, True), reply.text
    assert run(_get(create_app(store, PAGE), "/api/oidc/start")).status_code == 404
    store.close()
    with pytest.raises(ValidationError, match="https://"):
        OidcConfig(issuer="http://id.example", client_id="tiebreak")


async def _get(app: FastAPI, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost") as client:
        return await client.get(path)


def test_accounts_are_made_linked_and_unlinked_on_either_database(url: str) -> None:
    store = Store.open(url, create=True)
    issuer, ada = "https://id.example", add_account(store, "Ada", "rater", PASSWORD)
    invite_all(store, None, ["Ben <ben@example.org>"])
    claims = {"sub": "2", "name": "Ben", "email": "BEN@example.org", "email_verified": True}
    assert enter(store, issuer, {"sub": "1"}) is None
    entered = [enter(store, issuer, claims) for _ in range(2)]
    assert len({one.rater.id for one in entered if one is not None}) == 1
    link_identity(store, issuer, {"sub": "1"}, ada.id)
    for subject, rater in (("2", ada.id), ("1", ada.id), ("1", entered[0].rater.id if entered[0] else "")):
        with pytest.raises(RefusedError):
            link_identity(store, issuer, {"sub": subject}, rater)
    found = enter(store, issuer, {"sub": "1"})
    assert found is not None
    assert found.rater.id == ada.id
    unlink(store, ada.id, None)
    assert enter(store, issuer, {"sub": "1"}) is None
    assert verify(store).faults == []
    store.close()


def test_a_store_of_such_accounts_alone_needs_a_login(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/labels.sqlite", create=True)
    invite_all(store, None, ["<sub:1>"], role="lead")
    assert not needs_login(store)
    assert enter(store, "https://id.example", {"sub": "1"}) is not None
    assert needs_login(store)
    store.close()
