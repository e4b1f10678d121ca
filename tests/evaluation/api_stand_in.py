"""A stand-in for an OpenAI-compatible API on the loopback: it judges by length, and fails in the ways that a test sets."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FENCED = re.compile(r"Answer ([AB]):\n([0-9a-f]{12})\n(.*?)\n\2\n?", re.DOTALL)


def longer(prompt: str) -> str:
    """A verdict for the longer answer."""
    sides = {letter: text for letter, _, text in FENCED.findall(prompt)}
    better = "A" if len(sides["A"]) > len(sides["B"]) else "B"
    return json.dumps({"reason": "longer", "answer": better, "strength": 2, "confidence": 0.8})


@dataclass
class Api:
    """What the server does, and what it was asked."""

    url: str = ""
    answer: Callable[[str], str] = longer
    faults: Callable[[str, int], str] = lambda prompt, number: ""
    """the n-th request of a prompt, from 1 → 429, 500, slow, broken, nonsense, empty, refusal, dropped, 401, 404, 400"""
    asked: Counter[str] = field(default_factory=Counter)
    paid: Counter[str] = field(default_factory=Counter)
    """prompts that got an answer, which costs money"""
    keys: set[str] = field(default_factory=set)
    unsupported: Sequence[str] = ()
    """keys of a request that are refused, as OpenAI's reasoning models refuse some"""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    times: list[float] = field(default_factory=list)
    seconds: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Handler(BaseHTTPRequestHandler):
    api: Api

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        api = self.api
        with api.lock:
            api.asked[prompt] += 1
            number = api.asked[prompt]
            api.keys.add(self.headers.get("Authorization", ""))
            api.bodies.append(body)
            api.times.append(time.monotonic())
            api.at_once += 1
            api.most_at_once = max(api.most_at_once, api.at_once)
        try:
            time.sleep(api.seconds)
            refused = next((key for key in api.unsupported if key in body), None)
            if refused is None:
                self._reply(api, prompt, api.faults(prompt, number))
            else:
                error = {"message": f"Unsupported: '{refused}'", "code": "unsupported_parameter", "param": refused}
                self._send(400, json.dumps({"error": error}).encode())
        finally:
            with api.lock:
                api.at_once -= 1

    def _reply(self, api: Api, prompt: str, fault: str) -> None:
        if fault == "dropped":
            self.close_connection = True
            self.connection.close()
        elif fault == "slow":
            time.sleep(1.5)
            self._send(200, b"{}")
        elif fault == "broken":
            self._send(200, b'{"choices": [{"mess')
        elif fault == "nonsense":
            self._send(200, b"<html>welcome</html>", "text/html")
        elif fault.isdigit():
            error = json.dumps({"error": {"message": f"no, {self.headers['Authorization']}"}}).encode()
            self._send(int(fault), error, headers={"Retry-After": "0.05"} if fault == "429" else {})
        else:
            with api.lock:
                api.paid[prompt] += 1
            message = {"role": "assistant", "content": "" if fault == "empty" else api.answer(prompt)}
            if fault == "refusal":
                message |= {"content": None, "refusal": "I would rather not"}
            usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            head = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
            self._send(200, json.dumps({**head, "choices": [choice], "usage": usage}).encode())

    def _send(
        self, status: int, body: bytes, kind: str = "application/json", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving() -> Iterator[Api]:
    """The server, while the test runs."""
    api = Api()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": api}))
    server.daemon_threads = True
    api.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
