"""An outside look: what strangers can read, hold open, lock and fake."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from label_support import free_port, make_pair, open_store, serving
from support import seconds_here

from labeling_ui.configuration import LabelConfig
from labeling_ui.label import believed_proxies
from labeling_ui.pages import FILES, PageConfig, load_words
from labeling_ui.store.names import skeleton
from labeling_ui.store.raters import NameTakenError
from labeling_ui.store.store import Store
from labeling_ui.web import security
from labeling_ui.web.context import SESSION_COOKIE
from labeling_ui.web.error_pages import page_of_status
from labeling_ui.web.login import accounts
from labeling_ui.web.login.accounts import LoginLimit, accept_invitation, add_account, invite, log_in, reset_password
from labeling_ui.web.metrics import TOKEN
from labeling_ui.web.page_policy import inline_scripts
from labeling_ui.web.proxies import ProxyMiddleware
from labeling_ui.web.routes.api import DEVICE_COOKIE
from labeling_ui.web.security import MAX_BODY_BYTES, MAX_DISCARDED_BYTES, Guard
from labeling_ui.web.server import create_app
from labeling_ui.worker import ConverseConfig, start_worker
from tiebreak.errors import ConfigError

PASSWORD = "a long enough password"
SECRETS = ("the guidelines of the house", "what raters agree to")


@pytest.fixture
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labeling_ui.web.server.mount_pages", lambda _app, _page: None)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("site")
    store = Store.open(f"sqlite:///{folder}/label.sqlite", create=True)
    for name, role in (("lead", "lead"), ("anna", "rater")):
        add_account(store, name, role, PASSWORD)  # type: ignore[arg-type]
    store.close()
    words = ("--guidelines", SECRETS[0], "--consent", SECRETS[1], "--prefix", "/label", "--proxies", "127.0.0.1")
    with serving(folder, [make_pair(0)], *words) as (address, _):
        yield address, folder


def send(app: Any, method: str, path: str, body: object = None, **more: Any) -> httpx.Response:
    cookies = more.pop("cookies", {})

    async def request() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, client=more.pop("client", ("9.9.9.9", 1)))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", cookies=cookies) as client:
            return await client.request(method, path, json=body, **more)

    return asyncio.run(request())


# --- what strangers read ---


def test_texts_and_the_api_are_for_those_who_have_logged_in(site: tuple[str, Path]) -> None:
    address, _ = site
    with httpx.Client(base_url=address) as client:
        for path in (
            "/label/login/",
            "/login/config",
            "/label/rate/config",
            "/openapi.json",
            "/api/documents",
            "/label/lead/",
            "/rate/",
        ):
            reply = client.get(path)
            assert not any(secret in reply.text for secret in SECRETS), path
            assert reply.headers["cache-control"] == "no-store", path
        assert client.get("/openapi.json").status_code == 401
        assert client.get("/label/login/config").json()["connect_heartbeat"] is False, "the pages need no heartbeats"
        assert client.get("/login/gradio_api/heartbeat/x").status_code == 404
        token = client.post("/api/login", json={"username": "anna", "password": PASSWORD}).json()["csrf_token"]
        assert token
        assert all(secret in client.get("/label/api/documents").text for secret in SECRETS)
        assert "/api/next" in client.get("/label/openapi.json").json()["paths"]


def test_the_policy_names_the_scripts_of_a_page_and_nothing_else_makes_code_of_text(site: tuple[str, Path]) -> None:
    address, _ = site
    with httpx.Client(base_url=address) as client:
        assert "'unsafe-eval'" not in client.get("/api/documents").headers["content-security-policy"]
        assert "'unsafe-eval'" not in client.get("/nowhere").headers["content-security-policy"]
        page = client.get("/label/login/")
    assert page.headers["content-encoding"] == "gzip"
    (scripts,) = re.findall("script-src ([^;]*);", page.headers["content-security-policy"])
    assert "unsafe-inline" not in scripts
    assert scripts.split() == ["'self'", "'unsafe-eval'", *inline_scripts(page.content)]
    assert len(re.findall(r"<script(?![^>]* src=)", page.text)) == len(inline_scripts(page.content)) == 5
    made_of_text = re.compile(r"\beval\(|\bFunction\(|\b(setTimeout|setInterval)\(\s*['\"`]|document\.write")
    for file in FILES.glob("*.js"):
        assert not made_of_text.search(file.read_text()), file.name


def test_a_scripts_hash_is_that_of_the_standard() -> None:
    """The example of CSP level 2, 7.17.2."""
    page = b"<script>alert('Hello, world.');</script><script src='a.js'></script><SCRIPT type=module>\n</SCRIPT>"
    assert inline_scripts(page)[0] == "'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='"
    assert len(inline_scripts(page)) == 2


def test_a_prefix_is_in_every_address_and_cookie(site: tuple[str, Path]) -> None:
    address, _ = site
    for path in ("/label/rate/", "/rate/", "/label/rate"):  # the proxy cut the prefix off, or left it
        reply = httpx.get(address + path)
        assert (reply.status_code, reply.headers["location"].removeprefix(address)) in (
            (303, "/label/login/"), (307, "/label/rate/")
        ), path  # fmt: skip
    assert httpx.get(address + "/label/").headers["location"] == "/label/rate/"
    config = httpx.get(address + "/label/login/config").json()
    assert config["root"].endswith("/label/login")
    for path in ("/label/api/login", "/api/login"):
        reply = httpx.post(address + path, json={"username": "anna", "password": PASSWORD})
        assert {c.lower().split("path=")[1].split(";")[0] for c in reply.headers.get_list("set-cookie")} == {"/label/"}


def test_https_is_believed_from_a_named_proxy_and_then_kept(site: tuple[str, Path]) -> None:
    address, _ = site
    login = {"username": "anna", "password": PASSWORD}
    for proto, secure in (("https", True), ("http", False)):
        reply = httpx.post(f"{address}/api/login", json=login, headers={"X-Forwarded-Proto": proto})
        assert ("strict-transport-security" in reply.headers) is secure
        assert all(("secure" in cookie.lower()) is secure for cookie in reply.headers.get_list("set-cookie"))


@pytest.mark.parametrize(("proxies", "host", "client"), [
    ([], "mine.example", "7.7.7.7"),
    (["10.0.0.0/8"], "mine.example", "7.7.7.7"),
    (["7.7.7.7"], "theirs.example", "5.5.5.5"),
    (["*"], "theirs.example", "5.5.5.5"),
])  # fmt: skip
def test_forwarded_headers_count_from_named_proxies_alone(proxies: list[str], host: str, client: str) -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.update(scope, headers=dict(scope["headers"]))

    headers = {"host": "mine.example", "x-forwarded-host": "theirs.example", "x-forwarded-for": "5.5.5.5"}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "path": "/", "client": ("7.7.7.7", 1), "scheme": "http", "headers": raw}
    asyncio.run(ProxyMiddleware(app, proxies, "")(scope, None, None))  # type: ignore[arg-type]
    assert seen["headers"][b"host"].decode() == host
    assert b"x-forwarded-host" not in seen["headers"]
    assert seen["client"][0] == client


def test_no_proxy_is_believed_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    assert not believed_proxies(LabelConfig(output="x", pairs="p"))
    assert "127.0.0.1" in believed_proxies(LabelConfig(output="x", pairs="p", hosts=["labels.example.org"]))
    assert believed_proxies(LabelConfig(output="x", pairs="p", proxies=["10.1.1.1"])) == ["10.1.1.1"]
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "10.0.0.1, 10.0.0.2")
    assert believed_proxies(LabelConfig(output="x", pairs="p")) == ["10.0.0.1", "10.0.0.2"]


# --- what strangers send ---


def ask(
    app: Any, headers: dict[str, str], parts: list[tuple[float, bytes]], path: str = "/api/login"
) -> tuple[int, int]:
    """(status, bytes of the body that the application took)."""
    taken, statuses, left = [0], [], list(parts)

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.sleep(60)
        seconds, part = left.pop(0)
        await asyncio.sleep(seconds)
        taken[0] += len(part)
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    async def answer(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    raw = [(name.lower().encode(), value.encode()) for name, value in {"host": "localhost", **headers}.items()]
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": raw,
        "scheme": "http", "client": ("9.9.9.9", 1), "server": ("localhost", 80), "root_path": "", "http_version": "1.1",
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(app(scope, receive, answer), 10))
    return statuses[0], taken[0]


@pytest.mark.usefixtures("no_pages")
def test_bodies_are_bounded_in_bytes_and_time_whatever_the_headers_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(open_store(tmp_path, [make_pair(0)]), PageConfig("t"))
    kind = {"content-type": "application/json"}
    for encoding in ("chunked", "Chunked", "CHUNKED", "gzip, Chunked"):
        assert ask(app, {**kind, "transfer-encoding": encoding}, [(0, b"x" * 1_000_000)]) == (413, 1_000_000)
    assert ask(app, {**kind, "content-length": "9999999"}, [(0, b"x" * 1_000_000)] * 9) == (413, MAX_DISCARDED_BYTES)
    many = [(0.0, b"x" * 100_000)] * 100
    status, taken = ask(app, {**kind, "content-length": "10"}, many)
    assert (status, taken) == (413, MAX_BODY_BYTES + 100_000)
    monkeypatch.setattr(security, "MAX_BODY_SECONDS", 0.2)
    begun = time.monotonic()
    status, _ = ask(app, {**kind, "content-length": "10"}, [(0.1, b"{")] * 100)
    assert status == 408
    status, _ = ask(app, {**kind, "content-length": "9999999"}, [(0.1, b"{")] * 100)
    assert status == 413
    assert time.monotonic() - begun < seconds_here(2)


BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
REFUSALS: list[tuple[str, str, dict[str, str], int]] = [
    ("GET", "/nothing", {}, 404),
    ("GET", "/lead/%2e%2e/", {}, 404),
    ("GET", "/login/file=x", {}, 404),  # Gradio's
    ("GET", "/lead/", {}, 403),
    ("GET", "/api/judgments", {}, 405),
    ("GET", "/api/lead/status", {"cookie": ""}, 401),
    ("GET", "/rate/?a=%00", {}, 400),
    ("GET", "/api/lead/days.csv?rate=<b>", {}, 403),
    ("POST", "/rate/", {"content-length": "700000"}, 413),
    ("POST", "/api/consent/accept", {"origin": "http://elsewhere"}, 403),
    ("GET", "/rate/", {"host": "<img-src=x>"}, 421),
]


@pytest.mark.usefixtures("no_pages")
def test_a_person_gets_a_page_for_a_refusal_and_a_program_gets_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path, [make_pair(0)])
    add_account(store, "anna", "rater", PASSWORD)
    session = log_in(store, "anna", PASSWORD)
    assert session is not None
    app, words = create_app(store, PageConfig("t", prefix="/label")), load_words()
    mine = {"cookie": f"{SESSION_COOKIE}={session.token}"}

    def both(method: str, path: str, headers: dict[str, str]) -> tuple[httpx.Response, str]:
        """The reply to a program, and the page."""
        reply = send(app, method, path, headers=mine | headers)
        shown = send(app, method, path, headers=mine | headers | BROWSER)
        left_out = ("content-type", "content-length")
        pages = {name: value for name, value in shown.headers.items() if name not in left_out}
        assert pages == {name: value for name, value in reply.headers.items() if name not in left_out}
        assert (shown.status_code, shown.headers["content-type"]) == (reply.status_code, "text/html; charset=utf-8")
        assert "script-src 'self'; " in pages["content-security-policy"]
        assert int(shown.headers["content-length"]) == len(shown.content)
        assert re.search(r"<script|<img|<b>|\son\w+=", shown.text) is None
        assert '<html lang="en" dir="ltr">' in shown.text
        return reply, shown.text

    for method, path, headers, status in REFUSALS:
        reply, page = both(method, path, headers)
        assert (reply.status_code, list(reply.json())) == (status, ["detail"]), path
        assert words[f"error.{status}"] in page, path
        assert words[f"error.{status}.then"] in page, path
        assert ('href="/label/rate/"' in page) is (status != 421), "a server's other name leads to the same refusal"
    assert "&lt;img-src=x&gt;" in page
    assert "This page is for leads." in both("GET", "/lead/", {})[1]
    for failure, status in ((OSError("the disk is full"), 503), (RuntimeError("secret"), 500)):

        def fail(_request: Any, failure: Exception = failure) -> None:
            raise failure

        monkeypatch.setattr(security, "session_of", fail)
        for headers in ({}, BROWSER):
            reply = send_to_failing(app, "/rate/", headers)
            assert (reply.status_code, reply.headers["x-tiebreak"]) == (status, "1")
            assert "secret" not in reply.text
            assert (words[f"error.{status}"] in reply.text) is (headers == BROWSER)
    store.close()


def send_to_failing(app: Any, path: str, headers: dict[str, str]) -> httpx.Response:
    """The reply that a server sends before it reports its own error."""

    async def request() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(request())


def test_a_page_of_a_refusal_reads_from_right_to_left_and_has_the_colours_of_the_desk() -> None:
    arabic = PageConfig("t", words=load_words() | {"language": "ar", "error.404": "\u0644\u0627"})
    assert '<html lang="ar" dir="rtl">' in page_of_status(arabic, 404, "not found", "/rate/")
    page = page_of_status(PageConfig("t"), 418, "a <teapot>, \ud800", "/rate/")
    assert "A &lt;teapot&gt;, ?</p>" in page
    assert load_words()["error.other"] in page
    desk = (FILES / "desk.css").read_text(encoding="utf-8").split(".dark #desk .desk {")
    style = (FILES / "error.css").read_text(encoding="utf-8").split("@media (prefers-color-scheme: dark)")
    for own, of_desk in zip(style, desk, strict=True):
        colours = set(re.findall(r"--[\w-]+: [^;]+;", own))
        assert len(colours) == 8
        assert colours <= set(re.findall(r"--[\w-]+: [^;]+;", of_desk))


def test_the_raw_address_decides_who_may_enter() -> None:
    reached: list[str] = []

    async def app(scope: Any, _receive: Any, send_on: Callable[[Any], Awaitable[None]]) -> None:
        reached.append(scope["path"])
        await send_on({"type": "http.response.start", "status": 200, "headers": []})
        await send_on({"type": "http.response.body", "body": b""})

    guard = Guard(app, PageConfig("t"))
    for raw in (
        "/%6cead/", "/lead%2f", "//lead/", "/x/../lead/", "/login/..%2flead/", "/login/%2e%2e/lead/", "/./lead/", "/.lead/",
        "/login\\lead", "/lead;x/",
    ):  # fmt: skip
        scope = {
            "type": "http", "method": "GET", "path": "/elsewhere", "raw_path": raw.encode(), "query_string": b"",
            "headers": [(b"host", b"localhost")], "scheme": "http", "server": ("localhost", 80), "root_path": "",
        }  # fmt: skip
        statuses: list[int] = []

        async def take(message: Any, statuses: list[int] = statuses) -> None:
            statuses.extend([message["status"]] if "status" in message else [])

        asyncio.run(guard(scope, None, take))  # type: ignore[arg-type]
        assert statuses == [404], raw
    assert reached == []


# --- lockouts ---


def test_nobody_is_locked_out_by_others() -> None:
    limit = LoginLimit()
    for n in range(100):
        assert limit.attempt("1.1.1.1", f"made up {n}", exists=False)
    assert limit.is_crowded("1.1.1.1")
    assert [limit.attempt("1.1.1.1", "anna") for _ in range(3)] == [True, True, False], "still let in from there"
    limit.forgive("1.1.1.1", "anna")
    assert limit.attempt("1.1.1.1", "anna")
    for n in range(60):
        limit.attempt(f"2.2.2.{n}", "lead")
    assert not limit.attempt("3.3.3.3", "lead"), "guessed at from everywhere"
    assert limit.attempt("3.3.3.3", "lead", device="hers"), "but not in the browser that she always uses"
    assert [limit.attempt("3.3.3.3", "lead", device="hers") for _ in range(8)] == [True] * 7 + [False]


@pytest.mark.usefixtures("no_pages")
def test_a_browser_that_was_let_in_is_known_until_the_password_changes(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(0)], raters=0)
    for name in ("lead", "anna"):
        add_account(store, name, "lead", PASSWORD)
    app, right = create_app(store, PageConfig("t")), {"username": "lead", "password": PASSWORD}
    mark = send(app, "POST", "/api/login", right).cookies[DEVICE_COOKIE]
    limit = app.state.desk.limit
    for n in range(60):
        limit.attempt(f"2.2.2.{n}", "lead")
    assert send(app, "POST", "/api/login", right).status_code == 429
    for cookie, status in ((mark, 200), (mark[:-1] + "x", 429), ("x", 429), ("", 429)):
        assert send(app, "POST", "/api/login", right, cookies={DEVICE_COOKIE: cookie}).status_code == status
    other = {**right, "username": "anna"}
    limit.attempt("9.9.9.9", "anna")
    assert send(app, "POST", "/api/login", other, cookies={DEVICE_COOKIE: mark}).status_code == 200
    assert len(limit._failures[("9.9.9.9", "anna")]) == 1, "it is no mark of another name"
    reset_password(store, "lead", "another long password")
    right["password"] = "another long password"
    assert send(app, "POST", "/api/login", right, cookies={DEVICE_COOKIE: mark}).status_code == 429


def test_made_up_names_at_a_crowded_address_cost_no_processor_and_as_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path, [make_pair(0)], raters=0)
    add_account(store, "anna", "rater", PASSWORD)
    assert log_in(store, "anna", "wrong") is None
    hashed: list[str] = []
    monkeypatch.setattr(accounts, "_verify", lambda *_: hashed.append("x") is not None)
    monkeypatch.setattr(accounts._TYPICAL, "seconds", 0.2)
    begun = time.monotonic()
    assert log_in(store, "nobody", "x", crowded=True) is None
    assert 0.2 <= time.monotonic() - begun < seconds_here(1)
    assert hashed == []


# --- names and passwords ---


EASY = [
    "x", "1234567", "x7!kQ2mVb9L", "aaaaaaaaaaaa", "abababababab", "anna the rater", "ANNA THE RATER",
    "password1234", "iloveyou1234", "qwertyuiop12", "x7!kQ2mVb9Lp" * 11,
]  # fmt: skip
"""Short, of one pattern, the name, common ones, and 132 characters."""


@pytest.mark.parametrize("password", EASY)
def test_a_password_that_is_easy_to_guess_is_refused(tmp_path: Path, password: str) -> None:
    store = open_store(tmp_path, [], raters=0)
    with pytest.raises(ConfigError, match="password"):
        add_account(store, "anna the rater", "rater", password)
    token = invite(store, None)
    with pytest.raises(ConfigError, match="password"):
        accept_invitation(store, token, "anna the rater", password)
    add_account(store, "anna the rater", "rater", PASSWORD)
    with pytest.raises(ConfigError, match="password"):
        reset_password(store, "anna the rater", password)


@pytest.mark.usefixtures("no_pages")
def test_strength_is_for_the_invited_and_those_who_have_logged_in(tmp_path: Path) -> None:
    """zxcvbn's score, and the refusal that the account itself would meet."""
    store = open_store(tmp_path, [make_pair(0)], raters=0)
    add_account(store, "lead", "lead", PASSWORD)
    app, token = create_app(store, PageConfig("t")), invite(store, None)
    path, body = "/api/invitations/strength", {"token": token, "username": "Anna-Magdalena"}
    for password, score, refusal in (
        ("", 0, "at least 12"),
        ("correct horse", 3, ""),
        ("x7!kQz", 1, "at least 12"),
        ("password1234", 1, "easy to guess"),
        ("annamagdalena", 1, "easy to guess"),
        ("trestle violet anvil moss", 4, ""),
        ("p" * 129, 0, "at most 128"),
    ):
        reply = send(app, "POST", path, body | {"password": password}).json()
        assert (reply["score"], bool(reply["refusal"])) == (score, bool(refusal)), (password, reply)
        assert refusal in reply["refusal"]
    assert send(app, "POST", path, {"token": "guessed", "password": "a"}).status_code == 403
    assert send(app, "POST", "/api/password/strength", {"password": "a"}).status_code == 401
    account = {"username": "anna", "password": PASSWORD, "token": token}
    joined = send(app, "POST", "/api/invitations/accept", account)
    assert send(app, "POST", path, body | {"password": "a"}).status_code == 403, "the invitation is used"
    mine = {"cookies": dict(joined.cookies), "headers": {"X-CSRF-Token": joined.json()["csrf_token"]}}
    assert send(app, "POST", "/api/password/strength", {"password": "anna anna anna"}, **mine).json()["score"] < 3


def test_a_password_is_any_text_and_none_of_it_is_cut_off(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(0)], raters=0)
    for n, password in enumerate(
        (
            "\u05e1\u05d9\u05e1\u05de\u05d4 \U0001f331 \u00e9t\u00e9 42",
            " only words of lower case ",
            "".join(chr(33 + (7 * n * n + 3 * n) % 90) for n in range(128)),
        )
    ):
        add_account(store, f"r{n}", "rater", password)
        assert log_in(store, f"r{n}", password) is not None
        assert log_in(store, f"r{n}", password[:-1]) is None
        assert log_in(store, f"r{n}", password.strip()) is None or password == password.strip()


def test_logins_and_refusals_are_logged_without_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labeling_ui.web.server.mount_pages", lambda _app, _page: None)
    store = open_store(tmp_path, [make_pair(0)], raters=0)
    rater_id = add_account(store, "anna", "rater", PASSWORD).id
    file = tmp_path / "security.jsonl"
    app = create_app(store, PageConfig("t", hosts=(), security_log=str(file)))

    async def use() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for name, password in (("anna", "a wrong word"), ("my secret word", "x"), ("anna", PASSWORD)):
                await client.post("/api/login", json={"username": name, "password": password})
            await client.get("/api/me")
            await client.get("/api/lead/status")

    asyncio.run(use())
    text = file.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["path"], line["status"]) for line in lines] == [
        ("/api/login", 401), ("/api/login", 401), ("/api/login", 200), ("/api/lead/status", 403),
    ]  # fmt: skip
    assert [line["account"] for line in lines[2:]] == [rater_id, rater_id]
    assert lines[0]["account"] != lines[1]["account"]
    assert not any(word in text for word in ("anna", "wrong", "secret", PASSWORD))
    assert file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("name", "alike"),
    [
        ("lead", "LEAD"),
        ("lead", "ｌｅａｄ"),
        ("Zoé", "ZOÉ"),
        ("popa", "рора"),
        ("anna", "annα"),
        ("lead 1", "lead l"),
        ("a b", "a  b"),
    ],
)
def test_names_that_look_alike_are_not_two_accounts(tmp_path: Path, name: str, alike: str) -> None:
    store = open_store(tmp_path, [], raters=0)
    add_account(store, name, "rater", PASSWORD)
    with pytest.raises((NameTakenError, ConfigError)):
        add_account(store, alike, "rater", PASSWORD)
    for other in ("bob", "Анна", "Σοφία", "甲", "Zoe", "rater 2", "rater 5", "rater s"):
        add_account(store, other, "rater", PASSWORD)
    store.add_rater("A", rater_id="A")  # raters of an import are names of other tools
    store.add_rater("a", rater_id="a")


def test_a_name_is_the_same_however_it_is_typed(tmp_path: Path) -> None:
    store = open_store(tmp_path, [], raters=0)
    add_account(store, "Zoe\u0301", "rater", PASSWORD)
    assert [rater.name for rater in store.raters()] == ["Zo\u00e9"]
    for typed in ("Zo\u00e9", "Zoe\u0301"):
        assert log_in(store, typed, PASSWORD) is not None
    with pytest.raises(NameTakenError):
        add_account(store, "Zo\u00e9", "rater", PASSWORD)
    assert skeleton("Zoe") != skeleton("Zo\u00e9")


@pytest.mark.usefixtures("no_pages")
def test_an_invitee_hears_that_a_name_is_taken_and_not_where_the_store_is(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(0)], raters=0)
    add_account(store, "lead", "lead", PASSWORD)
    app = create_app(store, PageConfig("t"))
    for name in ("lead", "LEAD"):
        body = {"username": name, "password": PASSWORD, "token": invite(store, None)}
        reply = send(app, "POST", "/api/invitations/accept", body)
        assert (reply.status_code, "taken" in reply.text, "sqlite" in reply.text) == (409, True, False)
        body["username"] = f"{name}-2" if name == "lead" else "another"
        assert send(app, "POST", "/api/invitations/accept", body).status_code == 200, "the invitation is still good"


@pytest.mark.usefixtures("no_pages")
def test_no_lead_locks_out_all_leads_and_a_change_is_whole_or_none(url: str) -> None:
    store = open_store(url, [make_pair(0)], raters=0)
    sessions = {}
    for name, role in (("one", "lead"), ("two", "lead"), ("anna", "rater")):
        add_account(store, name, role, PASSWORD)  # type: ignore[arg-type]
        sessions[name] = log_in(store, name, PASSWORD)
    app = create_app(store, PageConfig("t"))

    def put(who: str, whom: str, **body: object) -> int:
        session = sessions[who]
        assert session is not None
        rater = sessions[whom].rater.id  # type: ignore[union-attr]
        headers, cookies = {"X-CSRF-Token": session.csrf_token}, {SESSION_COOKIE: session.token}
        return send(app, "PUT", f"/api/lead/raters/{rater}", body, headers=headers, cookies=cookies).status_code

    def state(name: str) -> tuple[bool, str]:
        (found,) = [rater for rater in store.raters() if rater.name == name]
        return found.disabled, found.pool

    assert put("one", "one", disabled=True) == 409
    assert put("one", "anna", disabled=True, pool="german") == 200
    assert state("anna") == (True, "german")
    assert put("one", "anna", disabled=True, pool="french") == 409
    assert state("anna") == (True, "german"), "nothing of it was done"
    assert put("one", "anna", disabled=False, pool="french") == 200
    assert state("anna") == (False, "french")
    assert put("one", "two", disabled=True) == 200
    assert put("two", "one", disabled=True) == 401
    assert not state("one")[0]
    store.close()


# --- for whatever watches over the server ---


@pytest.mark.usefixtures("no_pages")
def test_watchers_learn_whether_it_lives_is_ready_and_what_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path, [make_pair(n) for n in range(3)], overlap=2, raters=0)
    add_account(store, "lead", "lead", PASSWORD)
    app = create_app(store, PageConfig("t"))
    assert send(app, "GET", "/metrics").status_code == 404
    monkeypatch.setenv(TOKEN, "a secret")
    for word in ("", "Bearer wrong", "a secret", "Bearer a secret "):
        assert send(app, "GET", "/metrics", headers={"Authorization": word}).status_code == 401

    def figures() -> dict[str, float]:
        reply = send(app, "GET", "/metrics", headers={"Authorization": "Bearer a secret"})
        rows = [line.rsplit(" ", 1) for line in reply.text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in rows}

    first = figures()
    assert (first["tiebreak_pairs"], first["tiebreak_judgments_wanted"], first["tiebreak_store_up"]) == (3, 6, 1)
    for _ in range(5):
        assert send(app, "GET", "/healthz").json() == send(app, "GET", "/readyz").json() == {"ok": True}
    send(app, "POST", "/api/login", {"username": "x", "password": "y"})
    second = figures()
    got = 'tiebreak_requests_total{method="GET",status="200"}'
    assert second[got] - first.get(got, 0) == 11, "the ten, and the reading before"
    assert second['tiebreak_requests_total{method="POST",status="401"}'] == 1
    assert second['tiebreak_request_seconds_bucket{le="+Inf"}'] == second["tiebreak_request_seconds_count"]
    edges = [value for name, value in second.items() if "_bucket" in name]
    assert edges == sorted(edges), "buckets are cumulative"

    def fail(_self: Store) -> None:
        raise sa.exc.OperationalError("SELECT 1", {}, Exception("the database is away"))

    monkeypatch.setattr(Store, "head", fail)
    monkeypatch.setattr(Store, "status", fail)
    assert send(app, "GET", "/healthz").status_code == 200
    assert send(app, "GET", "/readyz").status_code == 503
    assert figures()["tiebreak_store_up"] == 0


# --- the worker ---


def test_a_password_is_in_no_argument_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    port, secret = free_port(), "very-secret"
    started: list[list[str]] = []
    real = subprocess.Popen

    def start(command: list[str], **more: Any) -> Any:
        started.append(command)
        read = "import sys; print(sys.stdin.readline(), end='', flush=True)"
        return real([sys.executable, "-c", read], stdout=subprocess.PIPE, **more)

    monkeypatch.setattr("labeling_ui.worker.subprocess.Popen", start)
    url = f"postgresql+psycopg://someone:{secret}@127.0.0.1:{port}/db"
    process = start_worker(ConverseConfig(policies=["x"]), url)
    line, _ = process.communicate(timeout=600)
    assert line.decode() == f"{url}\n"
    assert not any(secret in word for word in started[0])
    assert any("someone:***@" in word for word in started[0])
