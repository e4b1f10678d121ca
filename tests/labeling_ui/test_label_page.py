"""The HTTP API on a real server, and how text that is not trusted is shown."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from label_support import make_pair, open_store, processes, serving

from labeling_ui.database.errors import StoreError
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify

EVIL = (
    "<script>window.pwned=1</script><img src=x onerror='window.pwned=1'> <svg onload=window.pwned=1> "
    "[press](javascript:window.pwned=1) ![picture](http://pictures.invalid/x.png) <http://links.invalid> "
    "${window.pwned=1} {{value}} \u202egnp.exe"
)


def judgments_in(folder: Path) -> list[tuple[str, str, int | None]]:
    store = Store.open(f"sqlite:///{folder}/label.sqlite")
    assert verify(store).faults == []
    return [(j.pair_id, j.left, j.answer) for j in store.judgments()[0]]


# --- the API ---


def test_kill_right_after_an_acknowledged_judgment_loses_nothing(tmp_path: Path) -> None:
    pairs = [make_pair(n) for n in range(3)]
    acknowledged = []
    with serving(tmp_path, pairs) as (address, process):
        pair = httpx.get(f"{address}/api/next").json()
        for answer in (3, -2):
            body = {"client_id": f"client-{pair['pair_id']}", "pair_id": pair["pair_id"], "answer": answer}
            reply = httpx.post(f"{address}/api/judgments", json=body).raise_for_status().json()
            number = pair["pair_id"].removeprefix("pair-")
            acknowledged.append((pair["pair_id"], f"{number}-{int(pair['left']['text'] == 'second answer')}", answer))
            assert reply["judgment"]["left"] == "A"
            pair = reply["next"]
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    assert judgments_in(tmp_path) == acknowledged
    with serving(tmp_path, pairs) as (address, process):
        replayed = httpx.post(f"{address}/api/judgments", json=body).json()
        assert replayed["replayed"] is True
        assert httpx.get(f"{address}/api/next").json() == pair, "what was held is given again, on the same sides"
        progress = httpx.get(f"{address}/api/me").json()["progress"]
        assert progress == {"done": 2, "goal_per_day": None}
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=600)
    assert f"tiebreak label export --store sqlite:///{tmp_path}/label.sqlite" in output
    assert judgments_in(tmp_path) == acknowledged


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, [make_pair(n) for n in range(4)]) as (address, _):
        yield address, folder


def test_bad_requests_are_refused_in_words(server: tuple[str, Path]) -> None:
    address, folder = server
    pair = httpx.get(f"{address}/api/next").json()
    assert "secret-model" not in httpx.get(f"{address}/api/next").text, "raters must not know which model is which"
    good = {"client_id": "client-01", "pair_id": pair["pair_id"], "answer": 1}
    refused = {
        422: [{**good, "answer": 7}, {**good, "rater_id": "someone"}, {**good, "holding": "x"}, {"pair_id": "x"}],
        409: [{**good, "pair_id": "pair-3"}, {**good, "pair_id": "no-such"}],
        413: [{**good, "rationale": "x" * 700_000}],
    }
    for status, bodies in refused.items():
        for body in bodies:
            reply = httpx.post(f"{address}/api/judgments", json=body)
            assert reply.status_code == status, reply.text
            assert reply.json()["detail"]
    elsewhere = httpx.post(f"{address}/api/judgments", json=good, headers={"Origin": "http://evil.invalid"})
    assert elsewhere.status_code == 403
    assert httpx.get(f"{address}/api/next", headers={"Host": "evil.invalid"}).status_code == 421
    assert judgments_in(folder) == []


CLOSED = (
    "gradio_api/upload gradio_api/token gradio_api/info gradio_api/file=/etc/passwd gradio_api/runs "
    "gradio_api/proxy=http://x.invalid monitoring"
)


RAW = [
    ("POST", "/api/judgments", b"\xff\xfe{"), ("POST", "/api/judgments", b"[1]"), ("POST", "/api/judgments", b"{" * 50_000),
    ("POST", "/api/judgments", b'{"client_id": "c", "pair_id": "\\ud800", "answer": 1}'),
    ("POST", "/api/judgments", b'{"client_id": "c", "pair_id": "p\\u0000", "answer": 1}'),
    ("POST", "/api/judgments", b'{"client_id": "c", "pair_id": "pair-0", "answer": 1, "flags": ["\\ud800"], "\\udc00": 1}'),
    ("POST", "/api/judgments", b'{"client_id": "c", "pair_id": "pair-0", "answer": 1e999}'),
    ("PUT", "/api/drafts/pair-0", b'{"rationale": "\\ud800"}'), ("PUT", "/api/drafts/%00", b'{"rationale": "x"}'),
    ("POST", "/api/login", b'{"username": "\\ud800", "password": "hidden-word"}'),
    ("POST", "/api/login", b'{"username": 1, "password": "hidden-word"}'),
    ("POST", "/api/guidelines/accept", b'{"version": "\\u0000"}'),
    ("GET", "/api/next?holding=%00", b""), ("GET", "/api/next?holding=" + "x" * 25_000, b""),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body"), RAW, ids=range(len(RAW)))
def test_malformed_requests_are_refused_and_break_nothing(
    server: tuple[str, Path], method: str, path: str, body: bytes
) -> None:
    address, _ = server
    reply = httpx.request(method, address + path, content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code in (400, 422), reply.text
    assert "hidden-word" not in reply.text
    assert httpx.get(f"{address}/api/me").status_code == 200


def post(app: FastAPI, body: dict[str, object]) -> httpx.Response:
    """One judgment, to the application itself."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/api/judgments", json=body)

    return asyncio.run(send())


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FastAPI]:
    """The application without its pages, which has conversations, over two pairs."""
    from labeling_ui.pages import PageConfig
    from labeling_ui.web.server import create_app

    monkeypatch.setattr("labeling_ui.web.server.mount_pages", lambda _app, _page: None)
    pairs = [pair.model_copy(update={"id": name}) for pair, name in ((make_pair(0), "a,b"), (make_pair(1), "c/../d"))]
    store = open_store(tmp_path, pairs, raters=0)
    yield create_app(store, PageConfig("t", hosts=(), policies=("one",)))
    store.close()


def requests(app: FastAPI, *wanted: tuple[str, str, object]) -> list[httpx.Response]:
    """Method, path and body of requests to the application itself: its replies."""

    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [await client.request(method, path, json=body) for method, path, body in wanted]

    return asyncio.run(send())


def test_nothing_is_rendered_on_the_event_loop(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def watched(text: str) -> str:
        threads.append(threading.current_thread())
        return text

    for name in ("render_answer", "render_message"):
        monkeypatch.setattr(f"labeling_ui.web.context.{name}", lambda part, _: watched(part.text))
    monkeypatch.setattr("labeling_ui.web.routes.talk_api.render", watched)
    turn = {"conversation_id": "conversation-1", "number": 0, "text": "hello"}
    first, asked = requests(app, ("GET", "/api/next", None), ("POST", "/api/turns", turn))
    assert first.json()["messages"][0]["html"] == first.json()["messages"][0]["content"]
    assert asked.json()["messages"][0]["html"] == "hello"
    assert len(threads) == 4
    assert threading.main_thread() not in threads


def test_ids_with_commas_and_slashes_are_judged(app: FastAPI) -> None:
    held: list[str] = []
    for n in range(2):
        (reply,) = requests(app, ("GET", f"/api/next?holding={quote(json.dumps(held), safe='')}", None))
        held.append(reply.json()["pair_id"])
        draft = ("PUT", f"/api/drafts/{quote(held[-1], safe='')}", {"rationale": "x"})
        judgment = ("POST", "/api/judgments", {"client_id": f"client-{n}", "pair_id": held[-1], "answer": 1})
        assert [reply.status_code for reply in requests(app, draft, judgment if n else draft)] == [200, 200]
    assert sorted(held) == ["a,b", "c/../d"]
    for holding in ("[1]", "[", '[["a"]]'):
        assert requests(app, ("GET", f"/api/next?holding={quote(holding)}", None))[0].status_code == 422


@pytest.mark.parametrize("name", ["..", ".", "", "x" * 201])
def test_ids_that_no_address_can_have_are_refused_where_pairs_come_in(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="cannot be used"):
        open_store(tmp_path, [make_pair(0).model_copy(update={"id": name})])


def test_an_idle_server_sleeps(server: tuple[str, Path]) -> None:
    _, folder = server
    (process,) = processes("tiebreak.command.cli", str(folder))

    def ticks() -> int:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(3)
    assert (ticks() - before) / (3 * os.sysconf("SC_CLK_TCK")) < 0.015, "a share of a core; half a percent at rest"


@pytest.mark.parametrize("fault", ["locked", "full"])
def test_a_locked_or_full_store_is_told_and_nothing_is_half_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    from labeling_ui.pages import PageConfig  # imports Gradio: slow, and no other test needs it here
    from labeling_ui.web.server import create_app

    monkeypatch.setattr("labeling_ui.database.schema.BUSY_TIMEOUT_MS", 100)
    monkeypatch.setattr(
        "labeling_ui.web.server.mount_pages", lambda _app, _page: None
    )  # Gradio leaves event loops open
    store = open_store(tmp_path, [make_pair(0)], raters=0)
    app = create_app(store, PageConfig("t", hosts=()))
    store.claim("local")
    body = {"client_id": "c", "pair_id": "pair-0", "answer": 1, "edited_text": "x" * 90_000}
    other = sqlite3.connect(tmp_path / "labels.sqlite", isolation_level=None)
    pages = other.execute("PRAGMA page_count").fetchone()[0]

    def limit(connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    if fault == "locked":
        other.execute("BEGIN IMMEDIATE")
    else:
        sa.event.listen(store.engine, "begin", limit)
    reply = post(app, body)
    assert reply.status_code == 503
    assert "nothing was stored" in reply.json()["detail"]
    assert fault in capsys.readouterr().err
    assert store.status()["judgments"] == {}
    if fault == "locked":
        other.execute("ROLLBACK")
    else:
        pages = 1_000_000
    other.close()
    assert post(app, body).json()["replayed"] is False
    assert verify(store).faults == []
    store.close()


@pytest.mark.parametrize("path", CLOSED.split())
def test_what_gradio_offers_beside_the_page_is_closed(server: tuple[str, Path], path: str) -> None:
    address, _ = server
    assert httpx.get(f"{address}/rate/{path}").status_code == 404
    policy = httpx.get(f"{address}/rate/").headers["content-security-policy"]
    assert "img-src 'self' data:" in policy
    assert "connect-src 'self'" in policy
