"""The overview of runs in progress, served on this machine alone.

The run folders are checked every few seconds. The page is made again when a record, a row of metrics or an evaluation
has been added, and an open page then loads it again.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from evaluation.configuration import OverviewArguments
from evaluation.overview.page import build_page
from evaluation.overview.reading import find_runs
from evaluation.overview.report import read_overview
from tiebreak.errors import TiebreakError
from tiebreak.runs import run as runs
from tiebreak.terminal import show

HOST = "127.0.0.1"
_WATCHED = (runs.MANIFEST, runs.RUN_FILE, runs.METRICS, "completions.jsonl")


class LivePage:
    """The page of the runs as they are now."""

    def __init__(self, folders: Sequence[str], given: OverviewArguments) -> None:
        self._folders, self._given = list(folders), given
        self._lock = threading.Lock()
        self._made, self._page = "", ""

    def version(self) -> str:
        """A hash of the sizes and times of what the page is made from."""
        digest = hashlib.sha256()
        for folder in find_runs(self._folders):
            for name in _WATCHED:
                path = Path(folder) / name
                if path.is_file():
                    status = path.stat()
                    digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]

    def page(self) -> str:
        """The newest page, made once for each version."""
        with self._lock:
            now = self.version()
            if now != self._made:
                self._page = build_page(read_overview(self._folders, self._given), now)
                self._made = now
            return self._page


def make_server(live: LivePage, port: int) -> ThreadingHTTPServer:
    """A server of the page and its version, on 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                if not self._is_ours():
                    self._answer(403, "text/plain", "this page is served to this machine alone")
                elif self.path == "/":
                    self._answer(200, "text/html", live.page())
                elif self.path == "/version":
                    self._answer(200, "text/plain", live.version())
                else:
                    self._answer(404, "text/plain", "not found")
            except TiebreakError as error:
                self._answer(503, "text/plain", str(error))

        def _is_ours(self) -> bool:
            """Whether a request's host name is this machine's own: another site's name that resolves here is refused."""
            host = self.headers.get("Host", "").rpartition(":")[0]
            return host in (HOST, "localhost")

        def _answer(self, status: int, kind: str, body: str) -> None:
            content = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not logged."""

    return ThreadingHTTPServer((HOST, port), Handler)


def serve(folders: Sequence[str], given: OverviewArguments) -> None:
    """Serve until Ctrl-C.

    Raises:
        RunError: there is no run.
    """
    live = LivePage(folders, given)
    live.page()
    with make_server(live, given.port) as server:
        show(f"http://{HOST}:{server.server_address[1]}/ (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
