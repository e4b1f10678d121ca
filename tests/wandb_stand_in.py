"""A W&B server on this machine: it keeps the history rows of each run as W&B does, by their place, and answers the rest.

Kinds: `whole`; `refuses` every key (401); `silent`: takes a request and never answers.
"""

from __future__ import annotations

import http.server
import json
import re
import threading
from types import TracebackType
from typing import Any

KEY = "a" * 40


class WandbServer:
    """Runs in threads of this process while it is entered; `url` is its address."""

    def __init__(self, kind: str = "whole") -> None:
        self.kind = kind
        self.history: dict[str, dict[int, dict[str, Any]]] = {}
        """run id → place → row"""
        self.summary: dict[str, dict[str, Any]] = {}
        """run id → its final figures"""
        self.upserts: list[dict[str, Any]] = []
        """variables of every request that opened or changed a run"""
        self.requests: list[str] = []
        self._closed = threading.Event()
        handler = type("Bound", (_Handler,), {"wandb": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def environment(self) -> dict[str, str]:
        """What a user of this server has set."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}

    def rows(self, run_id: str) -> list[dict[str, Any]]:
        """A run's history, in order."""
        kept = self.history.get(run_id, {})
        return [kept[place] for place in sorted(kept)]

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and JSON."""
        if self.kind == "refuses":
            return 401, {"errors": [{"message": "permission denied"}]}
        if self.kind == "silent":
            self._closed.wait(60)
            return 503, {}
        if path.endswith("/file_stream"):
            run_id = path.split("/")[-2]
            files = json.loads(body).get("files") or {}
            if "wandb-summary.json" in files:
                self.summary[run_id] = json.loads(files["wandb-summary.json"]["content"][-1])
            chunk = files.get("wandb-history.jsonl")
            for place, line in enumerate(chunk["content"], chunk["offset"]) if chunk else ():
                self.history.setdefault(run_id, {})[place] = json.loads(line)
            return 200, {"limits": {}}
        if path != "/graphql":
            return 200, {}
        data = self._graphql(json.loads(body))
        return 200, {"data": data} if data is not None else {
            "data": None,
            "errors": [{"message": "not on this server"}],
        }

    def _graphql(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        operation, given = (found.group(1) if found else ""), asked.get("variables") or {}
        self.requests.append(operation)
        if operation == "RunResumeStatus":
            return {
                "model": {
                    "id": "m",
                    "name": given["project"],
                    "entity": {"id": "e", "name": "us"},
                    "bucket": self._bucket(given["name"]),
                }
            }
        if operation == "UpsertBucket":
            self.upserts.append(given)
            project = {"id": "p", "name": given.get("project") or "p", "entity": {"id": "e", "name": "us"}}
            name = given.get("name") or ""
            bucket = {
                "id": "b",
                "name": name,
                "displayName": name,
                "project": project,
                "historyLineCount": len(self.history.get(name, {})),
            }
            return {"upsertBucket": {"bucket": bucket, "inserted": name not in self.history}}
        if operation == "Viewer":
            return {"viewer": {"id": "v", "entity": "us", "username": "us", "flags": "{}", "teams": {"edges": []}}}
        if operation == "ArtifactType":
            return {"project": {"artifact": None, "artifactType": None}}
        return None

    def _bucket(self, run_id: str) -> dict[str, Any] | None:
        rows = self.rows(run_id)
        if not rows:
            return None
        tail = json.dumps([json.dumps(rows[-1])])
        return {
            "id": "b",
            "name": run_id,
            "displayName": run_id,
            "summaryMetrics": json.dumps(rows[-1]),
            "config": "{}",
            "tags": [],
            "historyLineCount": len(rows),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "historyTail": tail,
            "eventsTail": "[]",
            "wandbConfig": '{"t": 1}',
        }


class _Handler(http.server.BaseHTTPRequestHandler):
    wandb: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        status, answer = self.wandb.answer(self.path, body)
        out = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)

    do_GET = do_PUT = do_POST  # noqa: N815

    def log_message(self, *words: Any) -> None:
        """Nothing."""
