"""A Hugging Face hub on this machine: repositories with their files, by the requests that huggingface_hub makes to push
and to look. It is not a hub: weights come through its LFS upload, and it refuses whatever it does not know."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlparse

TOKEN = "hf_" + "a" * 34


class HubServer:
    """Runs in a thread of this process while it is entered; `url` is its address."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        """name → files by their path"""
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        """uploaded weights by their SHA-256"""
        self.requests: list[str] = []
        handler = type("Bound", (_Handler,), {"hub": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: Any) -> None:
        """Nothing."""

    def _answer(self, value: Any, status: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _is_known(self) -> bool:
        self.hub.requests.append(f"{self.command} {self.path}")
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._body()
        self._answer({"error": "Invalid username or password."}, 401)
        return False

    def do_GET(self) -> None:
        if not self._is_known():
            return None
        path = unquote(urlparse(self.path).path)
        if path == "/api/whoami-v2":
            return self._answer({"type": "user", "name": "ada", "orgs": []})
        repo = "/".join(path.split("/")[3:5])
        if path.startswith("/api/models/") and repo not in self.hub.repositories:
            return self._answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        if path == f"/api/models/{repo}":
            return self._answer({"id": repo, "private": self.hub.private[repo], "sha": "0" * 40, "siblings": []})
        if path.startswith(f"/api/models/{repo}/tree/main"):
            files = self.hub.repositories[repo]
            return self._answer(
                [{"type": "file", "path": name, "size": len(one), "oid": "0" * 40} for name, one in files.items()]
            )
        return self._answer({"error": f"unknown: {path}"}, 404)

    def do_POST(self) -> None:
        path = unquote(urlparse(self.path).path)
        if not self._is_known():
            return None
        body = self._body()
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'ada'}/{asked['name']}"
            if repo in self.hub.repositories:
                return self._answer({"error": "exists", "url": f"{self.hub.url}/{repo}"}, 409)
            self.hub.repositories[repo], self.hub.private[repo] = (
                {".gitattributes": b""},
                asked.get("visibility") == "private",
            )
            return self._answer({"url": f"{self.hub.url}/{repo}"})
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            mode = {True: "lfs", False: "regular"}
            answers = [
                {
                    "path": one["path"],
                    "uploadMode": mode[one["path"].endswith((".safetensors", ".pt"))],
                    "shouldIgnore": False,
                }
                for one in files
            ]
            return self._answer({"files": answers})
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            upload = [{**one, "actions": {"upload": {"href": f"{self.hub.url}/blobs/{one['oid']}"}}} for one in objects]
            return self._answer({"transfer": "basic", "objects": upload})
        if path.endswith("/commit/main"):
            repo = "/".join(path.split("/")[3:5])
            self._commit(repo, body)
            return self._answer(
                {"commitUrl": f"{self.hub.url}/{repo}/commit/{'1' * 40}", "commitOid": "1" * 40, "success": True}
            )
        return self._answer({"error": f"unknown: {path}"}, 404)

    def do_PUT(self) -> None:
        self.hub.blobs[self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def _commit(self, repo: str, body: bytes) -> None:
        files = self.hub.repositories[repo]
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
