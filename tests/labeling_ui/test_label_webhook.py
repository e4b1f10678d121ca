"""The webhook: what is sent, by whom it is signed, where it may go, and that nothing is lost."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from label_support import make_pair, open_store
from test_label_single import make_single

from labeling_ui.database.schema import EVENTS
from labeling_ui.store.answers import Submission
from labeling_ui.store.figures.news import Place, present_place, read_news
from labeling_ui.store.pairs.campaign import BatchChange
from labeling_ui.store.store import Store
from labeling_ui.store.work.standing import set_standing
from labeling_ui.web.webhook import SECRET, DeliveryError, Webhook, WebhookConfig, connect
from tiebreak.errors import ConfigError

KEY = "a secret of many characters"


class Receiver:
    """A server that keeps what it gets, and answers as the test says."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = receiver.answers.pop(0) if receiver.answers else 204
                if status < 300:
                    receiver.got.append((dict(self.headers), body))
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?team=1"

    @property
    def events(self) -> list[tuple[str, dict[str, Any]]]:
        messages = [json.loads(body) for _, body in self.got]
        return [(message["event"], message["data"]) for message in messages]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv(SECRET, KEY)
    one = Receiver()
    yield one
    one.server.shutdown()
    one.server.server_close()


def judge(store: Store, rater: str, answer: int) -> str:
    given = store.claim(rater)
    assert given is not None
    sided = answer if given.left_id.endswith("-0") else -answer
    store.submit(rater, Submission(client_id=f"{rater} {given.item_id}", pair_id=given.item_id, answer=sided))
    return given.item_id


def test_news_is_signed_and_sent_once(receiver: Receiver, tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(n) for n in range(2)], overlap=2, raters=2)
    hook = Webhook(store, WebhookConfig(url=receiver.url, every=2, allow_private=True), "A campaign")
    first = judge(store, "r0", -1)
    with hook:  # earlier events are not news
        pass
    assert not receiver.got
    judge(store, "r1", 1)  # the other side of the same pair
    judge(store, "r0", -1)
    judge(store, "r1", -1)
    store.transact(lambda tx: set_standing(tx, "r1", "stopped", {"reason": "pace"}))
    assert hook.send_waiting()
    assert receiver.events == [
        ("judgments", {"judgments": 2}),
        ("dispute", {"item_id": first}),
        ("judgments", {"judgments": 4}),
        ("rater_stopped", {"rater_id": "r1", "standing": "stopped"}),
        ("batch_finished", {"batch": ""}),
    ]
    headers, body = receiver.got[0]
    signed = f"{headers['X-Tiebreak-Timestamp']}.".encode() + body
    assert headers["X-Tiebreak-Signature"] == "sha256=" + hmac.new(KEY.encode(), signed, hashlib.sha256).hexdigest()
    assert (headers["X-Tiebreak-Event"], json.loads(body)["campaign"]) == ("judgments", "A campaign")
    assert not hook.send_waiting()
    assert len(receiver.got) == 5
    assert len({headers["X-Tiebreak-Delivery"] for headers, _ in receiver.got}) == 5


def test_campaigns_of_one_server_are_told_apart(receiver: Receiver, tmp_path: Path) -> None:
    config, sent = WebhookConfig(url=receiver.url, every=1, allow_private=True, events=["judgments"]), {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        store = open_store(tmp_path / name, [make_pair(0)], raters=1)
        with Webhook(store, config, "Which is better?", name=name) as hook:
            judge(store, "r0", 1)
            hook.send_waiting()
        sent[name] = [(headers["X-Tiebreak-Delivery"], json.loads(body)) for headers, body in receiver.got]
        receiver.got.clear()
        store.close()
    (one, first), *_ = sent["one"]
    (two, second), *_ = sent["two"]
    assert (first["name"], second["name"]) == ("one", "two")
    assert (one, two) == (first["id"], second["id"])
    assert one.removeprefix("one-") == two.removeprefix("two-"), (
        "their logs are alike; with one id, one would be dropped"
    )


def test_gold_is_no_dispute_and_keeps_no_batch_from_its_end(url: str) -> None:
    store = open_store(url, [make_pair(n) for n in range(3)], overlap=2, raters=2)
    store.set_gold("pair-2", "2-0")  # given to nobody here
    assert judge(store, "r0", 1) == judge(store, "r1", -1) == "pair-0"
    store.set_gold("pair-0", "0-0")
    assert judge(store, "r0", 1) == judge(store, "r1", 1) == "pair-1"
    with store.reading() as connection:
        news = read_news(connection, Place(), 100)[0]
    assert [(one.kind, one.about) for one in news] == [("batch_finished", {"batch": ""})]
    store.close()


def test_what_is_not_accepted_is_sent_again(receiver: Receiver, tmp_path: Path) -> None:
    """Redirects are not followed; the same delivery has the same id."""
    store = open_store(tmp_path, [make_pair(n) for n in range(3)], raters=1)
    config = WebhookConfig(url=receiver.url, events=["judgments"], every=1, allow_private=True)
    with Webhook(store, config, "t"):
        pass
    judge(store, "r0", 1)
    judge(store, "r0", 1)
    receiver.answers = [204, 503, 302]
    for _ in range(2):
        with pytest.raises(DeliveryError, match="the receiver answered"):
            Webhook(store, config, "t").send_waiting()  # as after a crash
    assert Webhook(store, config, "t").send_waiting()
    ids = [headers["X-Tiebreak-Delivery"] for headers, _ in receiver.got]
    assert ids[0] == ids[1] != ids[2]
    assert [data["judgments"] for _, data in receiver.events] == [1, 1, 2]


def test_the_thread_tries_again_by_itself(receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labeling_ui.web.webhook.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("labeling_ui.web.webhook.FIRST_WAIT_SECONDS", 0.05)
    store = open_store(tmp_path, [make_pair(0)], raters=1)
    receiver.answers = [500, 500]
    arrived = threading.Event()
    with Webhook(store, WebhookConfig(url=receiver.url, events=["judgments"], every=1, allow_private=True), "t"):
        judge(store, "r0", 1)
        for _ in range(2_000):
            if receiver.got or arrived.wait(0.05):
                break
    assert [kind for kind, _ in receiver.events] == ["judgments"]


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/x", "https://10.0.0.1/x", "https://[::1]/x", "https://169.254.169.254/latest", "https://localhost/x",
        "https://192.168.0.1/x", "https://[::ffff:127.0.0.1]/x", "https://0.0.0.0/x", "https://[fe80::1]/x", "https://224.0.0.1/",
    ],
)  # fmt: skip
def test_private_addresses_need_a_key(url: str) -> None:
    with pytest.raises(DeliveryError, match="private network"):
        connect(WebhookConfig(url=url))


def test_a_webhook_without_secret_or_https_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path, [make_pair(0)])
    monkeypatch.setenv(SECRET, "short")
    with pytest.raises(ConfigError, match=SECRET):
        Webhook(store, WebhookConfig(url="https://example.org/x"), "t")
    monkeypatch.setenv(SECRET, KEY)
    with pytest.raises(ConfigError, match="https"):
        Webhook(store, WebhookConfig(url="http://example.org/x"), "t")
    for bad in ("ftp://example.org/x", "https://name:word@example.org/", "example.org", "file:///etc/passwd"):
        with pytest.raises(ValueError, match="must be an address"):
            WebhookConfig(url=bad)


def test_the_count_begins_with_the_judgments_that_the_campaign_has(url: str) -> None:
    """As its status counts them: without skips and withdrawn pairs. A batch without pairs is not finished; a single answer
    that a rater holds is not judged."""
    contents = [*(make_pair(n) for n in range(3)), make_single(0, "rate")]
    store = open_store(url, contents, raters=1)
    judge(store, "r0", 1)
    store.withdraw_pairs([judge(store, "r0", 1)])
    held = store.claim("r0")
    assert held is not None
    store.submit("r0", Submission(client_id="s", pair_id=held.item_id, skip=True))
    store.create_batch("empty", BatchChange())
    rated = store.claim("r0")
    assert rated is not None
    assert rated.task == "rate"
    store.withdraw_pairs([held.item_id])
    with store.reading() as connection:
        place = present_place(connection)
        assert (place.judgments, place.finished) == (1, ())
        assert place.seq == connection.scalar(sa.select(sa.func.max(EVENTS.c.seq)))
    store.submit("r0", Submission(client_id="r", pair_id=rated.item_id, value=3))
    with store.reading() as connection:
        news, following = read_news(connection, place, 2)
    assert [(one.kind, one.about) for one in news] == [
        ("judgments", {"judgments": 2}), ("batch_finished", {"batch": ""}),
    ]  # fmt: skip
    assert following.finished == ("",)
    store.close()
