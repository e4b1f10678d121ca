"""Raters who log in: the command, the API's refusals, drafts, undo, and the page with a login."""

from __future__ import annotations

import http.client
import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from label_support import ROOT, environment, make_pair, serving, tiebreak

from labeling_ui.database.errors import RefusedError
from labeling_ui.store.answers import Draft
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from labeling_ui.web.login import accounts
from labeling_ui.web.login.accounts import (
    LoginLimit,
    add_account,
    disable,
    find_session,
    log_in,
    log_out,
    reset_password,
)
from tiebreak.errors import TiebreakError

LogIn = Callable[[str], httpx.Client]
PASSWORD = "a long enough password"


def raters(*words: str, password: str | None = None, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """`tiebreak raters …` with a password on its standard input."""
    command = [sys.executable, "-m", "tiebreak.command.cli", "raters", *words]
    result = subprocess.run(
        command, input=password, capture_output=True, text=True, timeout=600, cwd=ROOT, env=environment(), check=False
    )
    assert (result.returncode == 0) is ok, result.stderr
    assert "Traceback" not in result.stderr
    return result


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A served store with two raters, a lead and one who is disabled: its address and URL."""
    folder = tmp_path_factory.mktemp("campaign")
    url = f"sqlite:///{folder}/label.sqlite"
    raters("add", "first rater", "--role", "rater", "--password-stdin", "--store", url, password=PASSWORD + "\n")
    store = Store.open(url)
    for name, role in (("second rater", "rater"), ("editor", "rater"), ("the lead", "lead"), ("gone", "rater")):
        add_account(store, name, role, PASSWORD)  # type: ignore[arg-type]
    raters("disable", "gone", "--store", url)
    store.close()
    with serving(folder, [make_pair(n) for n in range(30)], "--guidelines", "Be **fair**.") as (address, _):
        yield address, url


@pytest.fixture
def logged_in(campaign: tuple[str, str]) -> Iterator[Callable[[str], httpx.Client]]:
    """Clients by name; closed at the end."""
    with ExitStack() as clients:

        def log_in_as(name: str) -> httpx.Client:
            client = clients.enter_context(httpx.Client(base_url=campaign[0]))
            reply = client.post("/api/login", json={"username": name, "password": PASSWORD}).raise_for_status().json()
            client.headers["X-CSRF-Token"] = reply["csrf_token"]
            if reply["role"] == "rater":
                version = client.get("/api/me").json()["guideline_version"]
                client.post("/api/guidelines/accept", json={"version": version}).raise_for_status()
            return client

        yield log_in_as


def body_for(pair: dict[str, object], client_id: str, **fields: object) -> dict[str, object]:
    return {"client_id": client_id, "pair_id": pair["pair_id"], **fields}


def test_raters_are_listed_by_pseudonym_and_passwords_are_hashed(campaign: tuple[str, str]) -> None:
    _, url = campaign
    listed = json.loads(raters("list", "--store", url, "--json").stdout)
    assert [(one["name"], one["role"], one["disabled"]) for one in listed] == [
        ("first rater", "rater", False), ("second rater", "rater", False), ("editor", "rater", False),
        ("the lead", "lead", False),
        ("gone", "rater", True),
    ]  # fmt: skip
    assert all(one["id"].startswith("rater-") and one["name"] not in one["id"] for one in listed)
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        hashes = [row[0] for row in connection.execute("SELECT password_hash FROM raters")]
        log = " ".join(row[0] for row in connection.execute("SELECT payload FROM events"))
    assert all(one.startswith("$argon2id$") for one in hashes)
    assert accounts._NOBODYS_HASH.startswith("$argon2id$v=19$m=19456,t=2,p=1$")  # OWASP's; the tests' own are cheaper
    assert len(set(hashes)) == 5
    assert "argon2" not in log
    assert "rater named 'nobody'" in raters("disable", "nobody", "--store", url, ok=False).stderr
    assert (
        "already"
        in raters("add", "the lead", "--password-stdin", "--store", url, password=f"{PASSWORD}\n", ok=False).stderr
    )
    assert (
        "password must have" in raters("add", "x", "--password-stdin", "--store", url, password="\n", ok=False).stderr
    )
    assert "raters add needs a name" in raters("add", "--store", url, ok=False).stderr


def test_nothing_is_open_without_a_session(campaign: tuple[str, str]) -> None:
    address, _ = campaign
    for method, path in (
        ("GET", "/api/me"), ("GET", "/api/next"), ("POST", "/api/judgments"), ("PUT", "/api/drafts/pair-0"),
        ("POST", "/api/judgments/x/undo"), ("GET", "/api/lead/status"), ("POST", "/api/logout"),
    ):  # fmt: skip
        for cookies in ({}, {"tiebreak_session": "forged"}):
            reply = httpx.request(method, address + path, json={} if method != "GET" else None, cookies=cookies)
            assert reply.status_code == 401, path
    for page in ("rate", "lead"):
        reply = httpx.get(f"{address}/{page}/")
        assert (reply.status_code, reply.headers["location"]) == (303, "/login/")
        assert httpx.get(f"{address}/{page}/config").status_code == 303
    assert httpx.get(f"{address}/login/").status_code == 200
    port = int(address.rpartition(":")[2])
    for path in (
        "/%6cead/",
        "//lead/config",
        "/lead/./config",
        "/rate/../lead/config",
        "/login/../lead/config",
        "/LEAD/",
    ):
        asked = http.client.HTTPConnection("127.0.0.1", port)  # a client that does not tidy the path up
        asked.request("GET", path)
        assert asked.getresponse().status in (303, 404), path
        asked.close()


def test_a_wrong_name_and_a_wrong_password_are_told_alike(campaign: tuple[str, str], logged_in: LogIn) -> None:
    address, _ = campaign
    tries = [("first rater", "wrong"), ("nobody at all", PASSWORD), ("gone", PASSWORD)]
    replies = [httpx.post(f"{address}/api/login", json={"username": n, "password": p}) for n, p in tries]
    assert {(reply.status_code, reply.text) for reply in replies} == {(401, replies[0].text)}
    for _ in range(8):
        last = httpx.post(f"{address}/api/login", json={"username": "guessed", "password": "x"})
    assert last.status_code in (401, 429)
    assert httpx.post(f"{address}/api/login", json={"username": "guessed", "password": "x"}).status_code == 429
    assert logged_in("second rater").get("/api/me").status_code == 200


def test_the_session_cookie_and_csrf(campaign: tuple[str, str], logged_in: LogIn) -> None:
    address, _ = campaign
    reply = httpx.post(f"{address}/api/login", json={"username": "first rater", "password": PASSWORD})
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    client = logged_in("first rater")
    pair = client.get("/api/next").json()
    token = client.headers.pop("X-CSRF-Token")
    for header in ({}, {"X-CSRF-Token": "wrong"}):
        refused = client.post("/api/judgments", json=body_for(pair, "csrf", answer=1), headers=header)
        assert refused.status_code == 403
    assert client.get("/api/me").json()["csrf_token"] == token
    assert client.get("/api/lead/status").status_code == 403
    assert client.get("/lead/").status_code == 403
    client.headers["X-CSRF-Token"] = token
    assert client.post("/api/logout").json() == {"ok": True}
    assert client.get("/api/me").status_code == 401


def test_the_rater_is_the_sessions_whatever_is_posted(campaign: tuple[str, str], logged_in: LogIn) -> None:
    _, url = campaign
    one, other = logged_in("first rater"), logged_in("second rater")
    mine, theirs = one.get("/api/next").json(), other.get("/api/next").json()
    assert mine["pair_id"] != theirs["pair_id"]
    assert other.post("/api/judgments", json=body_for(mine, "steal", answer=3)).status_code == 409
    forged = body_for(mine, "forged", answer=3, rater_id=other.get("/api/me").json()["rater_id"])
    assert one.post("/api/judgments", json=forged).status_code == 422
    reply = one.post("/api/judgments", json=body_for(mine, "honest", answer=3)).json()
    assert reply["judgment"]["rater_id"] == one.get("/api/me").json()["rater_id"]
    assert other.post(f"/api/judgments/{reply['judgment_id']}/undo").status_code == 409
    assert verify(Store.open(url)).faults == []


def test_a_draft_survives_and_undo_gives_the_pair_back_with_what_was_said(
    campaign: tuple[str, str], logged_in: LogIn
) -> None:
    _, url = campaign
    client = logged_in("second rater")
    pair = client.get("/api/next").json()
    draft = {"rationale": "because", "flags": ["unsafe"], "answer": -2}
    assert client.put(f"/api/drafts/{pair['pair_id']}", json=draft).json() == {"ok": True}
    again = logged_in("second rater").get("/api/next").json()
    assert again["pair_id"] == pair["pair_id"]
    assert {key: again["draft"][key] for key in draft} == draft
    assert client.put("/api/drafts/pair-29", json=draft).status_code == 409, "not given to this rater"
    assert client.put(f"/api/drafts/{pair['pair_id']}", json={"rationale": "x" * 4001}).status_code == 422

    body = body_for(pair, "with-reason", answer=-2, rationale="because", flags=["unsafe"], edited_text="better still")
    stored = client.post("/api/judgments", json=body).json()
    assert client.get("/api/me").json()["last_judgment"] == stored["judgment_id"]
    undone = client.post(f"/api/judgments/{stored['judgment_id']}/undo").json()
    assert (undone["pair"]["left"], undone["pair"]["right"]) == (pair["left"], pair["right"])
    assert undone["pair"]["draft"]["edited_text"] == "better still"
    assert undone["pair"]["draft"]["answer"] == -2
    assert client.post("/api/judgments", json=body).status_code == 409, (
        "the old submission must not come back by itself"
    )
    assert client.post("/api/judgments", json={**body, "client_id": "second-thought", "answer": 1}).status_code == 200
    assert client.post(f"/api/judgments/{stored['judgment_id']}/undo").status_code == 409
    store = Store.open(url)
    judgments = [j for j in store.judgments()[0] if j.pair_id == pair["pair_id"]]
    assert [j.answer for j in judgments] == [1]
    assert verify(store).faults == []


@pytest.mark.parametrize("opened", [("--host", "0.0.0.0"), ("--hosts", "labels.example")])
def test_no_login_no_network(tmp_path: Path, opened: tuple[str, str]) -> None:
    (tmp_path / "pairs.jsonl").write_text(make_pair(0).model_dump_json())
    words = ["--output", str(tmp_path / "label"), "--pairs", str(tmp_path / "pairs.jsonl"), *opened]
    result = tiebreak("label", *words, ok=False)
    assert "no account" in result.stderr
    assert "tiebreak raters add" in result.stderr


def test_sessions_end_with_the_password_and_the_part(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/labels.sqlite", create=True)
    store.add_pairs([make_pair(0)], overlap=1, seed=0, source="t", source_id="t")
    rater = add_account(store, "someone", "rater", PASSWORD)
    sessions = [log_in(store, "someone", PASSWORD) for _ in range(3)]
    assert all(sessions)
    tokens = [session.token for session in sessions if session]
    assert find_session(store, tokens[0]) is not None
    log_out(store, tokens[0])
    assert find_session(store, tokens[0]) is None
    assert find_session(store, tokens[1]) is not None
    reset_password(store, "someone", "another password")
    assert find_session(store, tokens[1]) is None
    assert log_in(store, "someone", PASSWORD) is None
    session = log_in(store, "someone", "another password")
    assert session is not None
    store.claim(rater.id)
    disable(store, "someone")
    assert find_session(store, session.token) is None
    assert log_in(store, "someone", "another password") is None
    for refused in (lambda: store.claim(rater.id), lambda: store.save_draft(rater.id, "pair-0", Draft(rationale="x"))):
        with pytest.raises(RefusedError, match="no longer"):
            refused()
    reset_password(store, "someone", PASSWORD)
    assert log_in(store, "someone", PASSWORD) is not None
    assert verify(store).faults == []
    with pytest.raises(TiebreakError):
        add_account(store, " space ", "rater", PASSWORD)
    file = (tmp_path / "labels.sqlite").read_bytes() + (tmp_path / "labels.sqlite-wal").read_bytes()
    assert session.token.encode() not in file, "a stolen copy of the store must not open anybody's session"


def test_guessing_is_limited() -> None:
    limit = LoginLimit()
    assert [limit.attempt("1.1.1.1", "a") for _ in range(9)] == [True] * 8 + [False]
    assert limit.attempt("2.2.2.2", "a"), "a stranger's guesses must not lock the rater out"
    limit.forgive("2.2.2.2", "a")
    assert [limit.attempt("1.1.1.1", "b") for _ in range(8)] == [True] * 8
    limit.forgive("1.1.1.1", "b")
    assert [limit.attempt("1.1.1.1", "b") for _ in range(2)] == [True, False], "one of them was right"
    assert [limit.attempt(f"3.3.3.{n}", "a") for n in range(33)] == [True] * 32 + [False], "guessed at from everywhere"
    for n in range(84):
        assert limit.attempt("1.1.1.1", f"name {n}")
    assert limit.is_crowded("1.1.1.1"), "all names, one address"
    assert [limit.attempt("1.1.1.1", "name 90") for _ in range(3)] == [True, True, False]
    assert not limit.attempt("1.1.1.1")


def test_the_leads_status(campaign: tuple[str, str], logged_in: LogIn) -> None:
    _, url = campaign
    one, other = logged_in("first rater"), logged_in("second rater")
    for n in range(2):
        for client in (one, other):
            pair = client.get("/api/next").json()
            body = body_for(pair, f"lead-{n}", answer=2, seconds_active=10.0)
            assert client.post("/api/judgments", json=body).status_code == 200
    status = logged_in("the lead").get("/api/lead/status").json()
    judged = len(Store.open(url).judgments()[0])
    assert judged >= 4
    assert status["judgments"] == {"human": judged}
    assert status["last_day"]["judgments"] >= judged
    assert sum(status["by_day"].values()) >= judged


def test_a_kept_connection_answers_without_waiting_for_an_acknowledgement(tmp_path: Path) -> None:
    """The kernel delays one by 40 ms at least, and a server that waits for it between head and body takes as long."""
    with serving(tmp_path, [make_pair(0)]) as (address, _), httpx.Client(base_url=address) as client:
        took = [client.get("/api/me").raise_for_status().elapsed.total_seconds() for _ in range(60)]
    assert sorted(took)[30] < 0.035


def test_a_connection_outlives_a_raters_thought(tmp_path: Path) -> None:
    with serving(tmp_path, [make_pair(0)]) as (address, _):
        connection = http.client.HTTPConnection(address.removeprefix("http://"))
        connection.auto_open = 0  # a closed connection is an error, not a new one
        connection.connect()
        for thought in (6, 0):
            connection.request("GET", "/api/me")
            reply = connection.getresponse()
            reply.read()
            assert reply.status == 200
            time.sleep(thought)
        connection.close()


def test_passwords_are_checked_on_two_threads_however_many_log_in(tmp_path: Path) -> None:
    """Threads keep the memory they hashed in; and the rest of the machine is free for raters at work."""
    store = Store.open(f"sqlite:///{tmp_path}/label.sqlite", create=True)
    for n in range(12):
        add_account(store, f"rater {n}", "rater", PASSWORD)
    with ThreadPoolExecutor(12) as together:
        sessions = list(together.map(lambda n: log_in(store, f"rater {n}", PASSWORD), range(12)))
    assert all(sessions)
    assert 1 <= sum(thread.name.startswith("argon2") for thread in threading.enumerate()) <= 2
    store.close()


def test_a_rater_changes_their_password_and_ends_their_other_sessions(campaign: tuple[str, str]) -> None:
    address, url = campaign
    store = Store.open(url)
    add_account(store, "changes", "rater", PASSWORD)
    here, there = (httpx.Client(base_url=address) for _ in "ab")
    for client in (here, there):
        reply = client.post("/api/login", json={"username": "changes", "password": PASSWORD}).json()
        client.headers["X-CSRF-Token"] = reply["csrf_token"]
    assert [one["current"] for one in here.get("/api/sessions").json()].count(True) == 1
    assert len(here.get("/api/sessions").json()) == 2
    new = "another long password"
    wrong = here.post("/api/password", json={"current": "not it", "new": new})
    assert (wrong.status_code, wrong.json()["detail"]) == (409, "The current password is wrong.")
    assert here.post("/api/password", json={"current": PASSWORD, "new": "short"}).status_code == 409
    token = here.headers.pop("X-CSRF-Token")
    assert here.post("/api/password", json={"current": PASSWORD, "new": new}).status_code == 403, "another site's page"
    here.headers["X-CSRF-Token"] = token
    assert here.post("/api/password", json={"current": PASSWORD, "new": new}).status_code == 200
    assert here.get("/api/me").status_code == 200
    assert there.get("/api/me").status_code == 401, "the other sessions have ended"
    assert there.post("/api/login", json={"username": "changes", "password": PASSWORD}).status_code == 401
    again = there.post("/api/login", json={"username": "changes", "password": new}).json()
    there.headers["X-CSRF-Token"] = again["csrf_token"]
    assert there.post("/api/sessions/end-others").status_code == 200
    assert (there.get("/api/me").status_code, here.get("/api/me").status_code) == (200, 401)
    assert verify(store).faults == []
    for client in (here, there):
        client.close()
    store.close()
