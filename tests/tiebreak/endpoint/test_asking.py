"""Endpoints that are broken or hostile: the error for each, what is kept, and that texts go to no other host."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tiebreak.config import SamplingConfig
from tiebreak.endpoint import asking
from tiebreak.endpoint.asking import AnswerFile, Endpoint, Request
from tiebreak.endpoint.configuration import AskingConfig, EndpointConfig
from tiebreak.errors import ConfigError, RunError

KEY = "sk-of-this-test"
Reply = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """A server on the loopback that replies to everything in one way."""

    def __init__(self, reply: Reply) -> None:
        self.reply, self.asked = reply, 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                server.asked += 1
                self.rfile.read(int(self.headers["Content-Length"]))
                with contextlib.suppress(OSError):  # the client hung up
                    server.reply(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Reply], Server]]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    servers: list[Server] = []

    def begin(reply: Reply) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()


def sends(body: object, status: int = 200, kind: str = "application/json", **headers: str) -> Reply:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    return reply


def never_ends(handler: BaseHTTPRequestHandler) -> None:
    """A space every 20 ms: no read waits long."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    for _ in range(500):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        threading.Event().wait(0.02)


def says(content: object, **usage: int) -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "message": content, "finish_reason": "stop"}],
        **({"usage": usage} if usage else {}),
    }


def ask(server: Server, folder: Path, questions: int = 1, **limits: Any) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    config = AskingConfig(**{"retries": 0, "parallel": 2, **limits})
    endpoint = Endpoint(
        EndpointConfig(url=server.url, model="m"),
        config,
        SamplingConfig(max_new_tokens=16),
        0,
        needed_by=("a test", "judge"),
        read_cut=lambda _: "",
    )
    return endpoint.ask(folder, [Request(f"key-{n}", f"question {n}") for n in range(questions)], "questions")


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (
            sends(b"<html>Welcome</html>", kind="text/html"),
            "a page or a text in the place of JSON: is",
        ),
        (sends({"error": {"message": f"no room for {KEY}"}}), "a response without choices: no room for …"),
        (sends({"choices": ["x"]}), "a response without choices"),
        (sends(b'{"choices": [{"mess'), "JSONDecodeError"),
        (sends(b"[" * 200_000), "RecursionError"),
        (sends(b""), "JSONDecodeError"),
        (sends({}, status=500), "status 500"),
        (never_ends, r"a response that did not end within 0.2 seconds \(asking.timeout_seconds\)"),
        (sends(b" " * 5000), "a response of more than 0 MB"),
        (lambda handler: handler.connection.close(), "APIConnectionError"),
    ],
)
def test_what_is_no_answer_is_named(
    start: Callable[[Reply], Server], tmp_path: Path, reply: Reply, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "MOST_BYTES", 300_000 if "Recursion" in reason else 2000)
    with pytest.raises(RunError, match=rf"left 1 question of 1 without an answer \({reason}") as caught:
        ask(start(reply), tmp_path, timeout_seconds=0.2 if reply is never_ends else 20)
    assert KEY not in str(caught.value)


def test_half_a_character_and_a_message_of_another_type_are_kept(
    start: Callable[[Reply], Server], tmp_path: Path
) -> None:
    """JSON may escape one half of a surrogate pair, which UTF-8 cannot hold: that ended the run after it was paid."""
    content = b'{"choices": [{"message": {"role": "assistant", "content": "a \\ud83d\\ude00 b \\ud800"}}]}'
    (row,) = ask(start(sends(content)), tmp_path / "a")
    assert row["text"] == "a \N{GRINNING FACE} b \ufffd"
    assert AnswerFile(tmp_path / "a" / "answers.jsonl").rows["key-0"]["text"] == row["text"]
    assert ask(start(sends(says("hi"))), tmp_path / "b")[0]["text"] == ""
    refusal = b'{"choices": [{"message": {"role": "assistant", "content": null, "refusal": "no \\ud800"}}]}'
    assert ask(start(sends(refusal)), tmp_path / "c")[0]["fault"] == "a refusal: no \ufffd"


def test_tokens_that_an_endpoint_does_not_count_are_estimated(start: Callable[[Reply], Server], tmp_path: Path) -> None:
    """Three bytes a token: `question 0` has 10 bytes, and the answer 7. Zero tokens would never reach a limit."""
    message = {"role": "assistant", "content": "abcdefg"}
    for number, usage in enumerate(({}, {"prompt_tokens": 0, "completion_tokens": 0}, {"prompt_tokens": -9})):
        (row,) = ask(start(sends(says(message, **usage))), tmp_path / str(number))
        assert (row["prompt_tokens"], row["completion_tokens"]) == (4, 3)
    (row,) = ask(start(sends(says({**message, "content": ""}, completion_tokens=-9))), tmp_path / "empty")
    assert row["completion_tokens"] == 0


def test_texts_are_not_sent_where_an_endpoint_redirects(start: Callable[[Reply], Server], tmp_path: Path) -> None:
    other = start(sends(says({"role": "assistant", "content": "yes"})))
    first = start(sends({}, status=307, Location=f"{other.url}/chat/completions?secret=1"))
    with pytest.raises(
        ConfigError, match=rf"redirects to {other.url}/chat/completions \(status 307\), and texts are sent"
    ):
        ask(first, tmp_path)
    assert (first.asked, other.asked) == (1, 0)
    with pytest.raises(ConfigError, match=r"has no such model or path \(status 405"):
        ask(start(sends({}, status=405)), tmp_path)


@pytest.mark.parametrize(("parallel", "most"), [(2, 16), (10, 20)])
def test_an_endpoint_that_is_down_is_not_asked_everything(
    start: Callable[[Reply], Server], tmp_path: Path, parallel: int, most: int
) -> None:
    """Requests that are on their way end together, so that up to `parallel` - 1 more may fail."""
    server = start(sends({}, status=500))
    with pytest.raises(RunError, match=r"in a row \(status 500, after 1 tries\): the other") as caught:
        ask(server, tmp_path, 60, parallel=parallel)
    failed = int(str(caught.value).split("answered none of ")[1].split()[0])
    assert most <= failed < most + parallel
    assert failed <= server.asked <= failed + parallel


def test_an_endpoint_that_asks_for_no_wait_is_not_asked_at_once_again(
    start: Callable[[Reply], Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retry-After: 0, as some proxies send it: all retries were used up within milliseconds."""
    waits: list[float] = []
    monkeypatch.setattr(asking._RequestPool, "_sleep", lambda _, seconds: waits.append(seconds))
    server = start(sends({}, 429, **{"Retry-After": "0"}))
    with pytest.raises(RunError, match="status 429, after 4 tries"):
        ask(server, tmp_path, parallel=1, retries=3)
    backoffs = [seconds for seconds in waits if seconds > 0]
    assert [0.5 * 2**n <= wait <= 2**n for n, wait in enumerate(backoffs)] == [True] * 3


def test_failures_between_answers_do_not_end_the_run(start: Callable[[Reply], Server], tmp_path: Path) -> None:
    """Every tenth question is answered: no 16 fail in a row, and 40 are asked."""
    answer, failure = sends(says({"role": "assistant", "content": "yes"})), sends({}, status=500)
    server = start(lambda handler: (failure if server.asked % 10 else answer)(handler))
    with pytest.raises(RunError, match="left 36 questions of 40 without an answer"):
        ask(server, tmp_path, 40, parallel=1)
