"""A W&B server on this machine: it keeps the history rows of each run as W&B does, by their place, artifacts by name with
their versions and aliases, and answers the rest. It is not W&B: it refuses requests that it does not know.

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
        self.artifacts: dict[str, list[dict[str, Any]]] = {}
        """name → versions, each with id, type, aliases, and the run that logged it"""
        self.used: list[tuple[str, str]] = []
        """(id of a run, id of an artifact that it used)"""
        self.views: list[dict[str, Any]] = []
        """saved workspaces and reports"""
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
        if operation == "GetProjects":
            made = {"createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False, "user": None}
            node = {"__typename": "Project", "id": "p", "name": "tiebreak", "entityName": "us"} | made
            pages = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            return {"models": {"pageInfo": pages, "edges": [{"node": node}]}}
        if operation == "ProjectInternalId":
            return {"project": {"id": "p", "internalId": "p"}}
        if operation == "GetDefaultEntity":
            return {"viewer": {"id": "v", "entity": "us"}}
        if operation in ("UpsertView2", "upsertView"):
            self.views.append(given)
            view = {"id": f"view{len(self.views)}", "name": "view", "displayName": given["displayName"], "type": "runs"}
            view |= {"description": "", "project": {"name": given["projectName"], "entityName": given["entityName"]}}
            return {"upsertView": {"view": view | {"spec": given["spec"]}, "inserted": True}}
        if operation == "Viewer":
            return {"viewer": {"id": "v", "entity": "us", "username": "us", "flags": "{}", "teams": {"edges": []}}}
        if operation == "CreateArtifact":
            return {"createArtifact": {"artifact": self._create_artifact(given["input"])}}
        if operation == "ArtifactMembershipByName":
            return {"project": {"artifactCollectionMembership": self._membership(given["name"])}}
        if operation == "UseArtifact":
            asked_for = given.get("input") or given
            self.used.append((asked_for["runName"], asked_for["artifactID"]))
            return {"useArtifact": {"artifact": {"id": asked_for["artifactID"]}}}
        if operation == "UpdateArtifact":
            return {"updateArtifact": {"artifact": self._fragment(*self._by_id(given["input"]["artifactID"]))}}
        if operation == "AddAliases":
            for one in given["input"]["aliases"]:
                self._by_id(given["input"]["artifactID"])[1]["aliases"].append(one["alias"])
            return {"addAliases": {"success": True}}
        if operation == "ArtifactType":
            return {"project": {"artifact": None, "artifactType": None}}
        return None

    def _create_artifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A version, complete at once: files are not asked for."""
        names = (asked.get("artifactCollectionName"), *(asked.get("artifactCollectionNames") or []))
        name = str(next(one for one in names if one))
        versions = self.artifacts.setdefault(name, [])
        aliases = [one["alias"] for one in asked.get("aliases") or []]
        for version in versions:
            version["aliases"] = [alias for alias in version["aliases"] if alias not in aliases]
        identity = f"{name}-{len(versions)}"
        own = {"id": identity, "type": asked["artifactTypeName"], "aliases": aliases, "run": asked["runName"]}
        versions.append(own)
        return {"id": identity, "state": "COMMITTED", "artifactSequence": {"id": name, "latestArtifact": None}}

    def _by_id(self, identity: str) -> tuple[str, dict[str, Any]]:
        each = ((name, one) for name, versions in self.artifacts.items() for one in versions)
        return next(found for found in each if found[1]["id"] == identity)

    def _membership(self, asked: str) -> dict[str, Any] | None:
        name, _, alias = asked.partition(":")
        found = next((one for one in self.artifacts.get(name, []) if alias in one["aliases"]), None)
        if found is None:
            return None
        collection = self._collection(name)
        aliases = [{"__typename": "ArtifactAlias", "id": alias, "alias": alias} for alias in found["aliases"]]
        number = self.artifacts[name].index(found)
        return {
            "__typename": "ArtifactCollectionMembership",
            "id": f"membership-{found['id']}",
            "versionIndex": number,
            "createdAt": "2026-01-01T00:00:00Z",
            "aliases": aliases,
            "artifactCollection": collection,
            "artifact": self._fragment(name, found),
        }

    def _collection(self, name: str) -> dict[str, Any]:
        project = {"id": "p", "internalId": "p", "name": "tiebreak", "entity": {"name": "us"}}
        return {"__typename": "ArtifactSequence", "name": name, "project": project}

    def _fragment(self, name: str, found: dict[str, Any]) -> dict[str, Any]:
        return {
            "__typename": "Artifact",
            "id": found["id"],
            "artifactSequence": self._collection(name),
            "versionIndex": self.artifacts[name].index(found),
            "artifactType": {"name": found["type"]},
            "description": None,
            "metadata": "{}",
            "ttlDurationSeconds": 0,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": "COMMITTED",
            "size": 0,
            "digest": "d",
            "digestAlgorithm": "MANIFEST_MD5",
            "commitHash": "c",
            "fileCount": 0,
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": "2026-01-01T00:00:00Z",
            "aliases": [],
        }

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
