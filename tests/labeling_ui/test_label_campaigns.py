"""Several campaigns in one server: nobody gets from one into another, and one login page opens all of one's own."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from label_support import (
    CHROMIUM,
    FLAGS,
    ROOT,
    environment,
    free_port,
    make_pair,
    needs_chromium,
    open_store,
    wait_until_up,
    write_pairs,
)
from test_label_api import PAGE, PASSWORD, Session, begin, no_pages, routes, run  # noqa: F401

from labeling_ui.label import main
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from labeling_ui.web.campaigns import Campaign, CampaignServer, path_of
from labeling_ui.web.context import SESSION_COOKIE
from labeling_ui.web.login.accounts import LoginLimit, add_account, log_in
from labeling_ui.web.proxies import ProxyMiddleware
from labeling_ui.web.server import create_app

ROLES = ("one", "lead")


class Server:
    """Two campaigns under a prefix, `red` and `blue`, each with a rater and a lead, as a proxy reaches them."""

    def __init__(self, folder: Path, prefix: str, new_url: Callable[[], str] | None = None) -> None:
        """`new_url`: of each campaign's store; None: a SQLite file."""
        self.prefix = prefix
        self.stores: dict[str, Store] = {}
        self.sessions: dict[tuple[str, str], Session] = {}
        campaigns, limit = [], LoginLimit()
        for name in ("red", "blue"):
            (folder / name).mkdir()
            where = new_url() if new_url else folder / name
            store = self.stores[name] = open_store(where, [make_pair(n) for n in range(3)], raters=0)
            for who in ROLES:
                self.sessions[name, who] = begin(store, who)
            page = replace(PAGE, title=f"The {name} one", prefix=prefix + path_of(name))
            campaigns.append(Campaign(name, create_app(store, page, limit=limit)))
        self.app = ProxyMiddleware(CampaignServer(campaigns, replace(PAGE, prefix=prefix), limit), (), prefix)

    async def send(
        self, method: str, path: str, body: object, session: Session | None, **cookies: str
    ) -> httpx.Response:
        headers = {"X-CSRF-Token": session.csrf_token} if session else {}
        sent = cookies | ({SESSION_COOKIE: session.token} if session else {})
        transport = httpx.ASGITransport(app=self.app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", cookies=sent) as client:
            return await client.request(method, self.prefix + path, json=body, headers=headers)

    def call(
        self, method: str, path: str, body: object = None, session: Session | None = None, **cookies: str
    ) -> httpx.Response:
        reply: httpx.Response = run(self.send(method, path, body, session, **cookies))
        return reply


@pytest.fixture(params=["", "/label"])
def server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("labeling_ui.web.campaigns.mount_login", lambda _app, _page: None)
    made = Server(tmp_path, request.param)
    yield made
    for store in made.stores.values():
        store.close()


def test_two_schemas_of_one_postgres_are_two_campaigns(
    tmp_path: Path, postgres: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labeling_ui.web.campaigns.mount_login", lambda _app, _page: None)
    server = Server(tmp_path, "", postgres)
    red, blue = (server.sessions[name, "one"] for name in ("red", "blue"))
    pair = server.call("GET", "/c/red/api/next", session=red).json()["pair_id"]
    judged = {"client_id": "x", "pair_id": pair, "answer": 1}
    assert server.call("POST", "/c/blue/api/judgments", judged, red).status_code == 401
    assert server.call("POST", "/c/red/api/judgments", judged, red).status_code == 200
    assert [store.judged() for store in server.stores.values()] == [1, 0]
    assert server.call("GET", "/c/blue/api/me", session=blue).json()["progress"]["done"] == 0
    for store in server.stores.values():
        assert verify(store).faults == []
        store.close()


def test_nobody_of_one_campaign_enters_another(server: Server) -> None:
    """Every route, with the cookie and the token of the other campaign's rater and lead, and with none."""
    open_to_all = {"/api/login", "/api/invitations/accept", "/api/invitations/strength"}
    for method, path in routes():
        if path in open_to_all:
            continue
        body = None if method == "GET" else {}
        for session in (None, *(server.sessions["blue", who] for who in ROLES)):
            reply = server.call(method, f"/c/red{path}", body, session)
            assert reply.status_code == 401, (method, path, session and session.rater.name, reply.text)
        outside = server.call(method, path, body, server.sessions["red", "lead"])
        assert outside.status_code in (404, 405), f"{path}: outside the campaigns there is no such route"
    assert server.call("GET", "/c/red/api/me", session=server.sessions["red", "one"]).status_code == 200
    assert server.call("GET", "/c/blue/api/me", session=server.sessions["blue", "one"]).status_code == 200
    assert server.call("GET", "/c/green/api/me", session=server.sessions["red", "one"]).status_code == 404
    for page in ("/c/red/rate/", "/c/red/lead/"):
        reply = server.call("GET", page, session=server.sessions["blue", "lead"])
        assert (reply.status_code, reply.headers["location"]) == (303, f"{server.prefix}/c/red/login/")
    for path in ("/c/%72ed/api/me", "/c/red"):
        assert server.call("GET", path).headers["location"] == f"{server.prefix}/c/red/"
    sideways = server.call("GET", "/c/red/..%2fblue/api/me", session=server.sessions["blue", "lead"])
    assert sideways.status_code == 404


def cookies_of(reply: httpx.Response) -> dict[tuple[str, str], str]:
    """Each cookie's value, by name and path."""
    found = {}
    for line in reply.headers.get_list("set-cookie"):
        value, *about = line.split("; ")
        name, _, text = value.partition("=")
        assert {"HttpOnly", "SameSite=strict"} <= set(about), line
        found[name, next(one[5:] for one in about if one.startswith("Path="))] = text
    return found


def test_one_login_page_opens_the_campaigns_of_an_account(server: Server) -> None:
    add_account(server.stores["blue"], "only blue", "lead", PASSWORD)
    login = {"username": "one", "password": PASSWORD}
    both = server.call("POST", "/api/login", login)
    assert [(one["name"], one["title"], one["path"]) for one in both.json()["campaigns"]] == [
        ("red", "The red one", "/c/red/rate/"), ("blue", "The blue one", "/c/blue/rate/")
    ]  # fmt: skip
    given = cookies_of(both)
    for name, other in (("red", "blue"), ("blue", "red")):
        token = given[SESSION_COOKIE, f"{server.prefix}/c/{name}/"]
        me = server.call("GET", f"/c/{name}/api/me", **{SESSION_COOKIE: token})
        assert me.json()["name"] == "one"
        assert server.call("GET", f"/c/{other}/api/me", **{SESSION_COOKIE: token}).status_code == 401
    (only,) = server.call("POST", "/api/login", {"username": "only blue", "password": PASSWORD}).json()["campaigns"]
    assert (only["name"], only["role"]) == ("blue", "lead")
    wrong = [server.call("POST", "/api/login", login | {"password": "wrong"}).status_code for _ in range(9)]
    assert wrong == [401] * 8 + [429]
    assert server.call("POST", "/c/red/api/login", login).status_code == 429, "the campaigns count together"
    known = {"tiebreak_door": given["tiebreak_door", f"{server.prefix}/"]}
    assert server.call("POST", "/api/login", login, **known).status_code == 200, "a browser that was let in before"
    assert server.call("POST", "/api/login", {"username": "one"}).status_code == 422
    assert server.call("GET", "/healthz").json() == {"ok": True}
    assert server.call("GET", "/readyz").json() == {"ok": True}
    assert server.call("GET", "/").headers["location"] == f"{server.prefix}/login/"


def configure(folder: Path, name: str, **more: Any) -> Path:
    """A campaign's configuration, whose store has a lead."""
    where = folder / name
    where.mkdir()
    config = {"output": str(where / "out"), "pairs": str(write_pairs(where, [make_pair(0)])), "title": name, **more}
    (where / "label.yaml").write_text(yaml.safe_dump(config))
    store = Store.open(f"sqlite:///{where}/out.sqlite", create=True)
    add_account(store, "Zoe", "lead", PASSWORD)
    store.close()
    return where / "label.yaml"


def test_campaigns_that_cannot_share_a_server_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = configure(tmp_path, "first")
    cases = {
        "two campaigns have first": configure(tmp_path, "a", campaign="first"),
        "port differ": configure(tmp_path, "b", port=7999),
        "two campaigns have sqlite": configure(tmp_path, "c", store=f"sqlite:///{tmp_path}/first/out.sqlite"),
        "simulate": configure(tmp_path, "d", simulate=True),
        "needs accounts": configure(tmp_path, "e", store=f"sqlite:///{tmp_path}/e/empty.sqlite"),
    }
    for message, other in cases.items():
        port = [] if "port" in message else ["--port", str(free_port())]
        with pytest.raises(SystemExit):
            main(["--config", str(first), "--config", str(other), *port])
        assert message in capsys.readouterr().err, message


@pytest.mark.slow
@needs_chromium
def test_a_lead_of_two_campaigns_logs_in_once(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    provider = {"issuer": "https://id.example", "client_id": "tiebreak"}
    files = [configure(tmp_path, "first", oidc=provider), configure(tmp_path, "second")]
    port = free_port()
    words = [word for file in files for word in ("--config", str(file))]
    command = [sys.executable, "-m", "tiebreak.command.cli", "label", *words, "--port", str(port), "--prefix", "/label"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    address = f"http://127.0.0.1:{port}/label"
    try:
        wait_until_up(f"http://127.0.0.1:{port}", process)
        with urllib.request.urlopen(f"{address}/readyz") as reply:
            assert reply.status == 200
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS.split())
            page = browser.new_page()
            page.goto(f"{address}/c/first/login/")
            assert page.get_attribute(".single-sign-on:visible", "href") == "/label/c/first/api/oidc/start"
            page.goto(address)
            page.fill("[name=username]", "Zoe")
            assert page.is_hidden(".single-sign-on"), "a provider belongs to its campaign"
            page.fill("[name=password]", PASSWORD)
            page.keyboard.press("Enter")
            page.click(".choosing a >> text=second")
            page.wait_for_selector(".desk[data-pair=pair-0]:not([data-fresh])")
            page.keyboard.press("1")
            page.wait_for_selector(".desk:not([data-pair=pair-0])")
            page.goto(f"{address}/c/first/lead/")
            page.wait_for_selector(".desk[aria-busy=false] .tile")
            assert page.inner_text(".title") == "first"
            browser.close()
    finally:
        process.terminate()
        process.communicate(timeout=600)
    stores = [Store.open(f"sqlite:///{tmp_path}/{name}/out.sqlite") for name in ("first", "second")]
    assert [store.judged() for store in stores] == [0, 1]
    assert log_in(stores[0], "Zoe", PASSWORD) is not None
    for store in stores:
        store.close()
