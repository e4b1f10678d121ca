"""Logins and refusals, one JSON line each, for whoever watches over the server: no password, token, name or text."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path

REFUSED = (401, 403, 408, 413, 421, 429)
"""Statuses of requests that the server did not want."""
LOGINS = ("/api/login", "/api/invitations/accept", "/api/password", "/api/second-factor/remove")
"""Addresses that check a password or an invitation; successes are logged as well as failures."""


class SecurityLog:
    """Appends to a file; without one, writes nothing."""

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None
        self._lock = threading.Lock()

    def request(self, method: str, path: str, status: int, address: str, who: str) -> None:
        """A request that was refused, or that checked a password."""
        if self._path is None or not (status in REFUSED or path.endswith(LOGINS)):
            return
        about = {"method": method, "path": path[:300], "status": status, "address": address, "account": who}
        line = json.dumps({"at": datetime.now(UTC).isoformat(timespec="milliseconds"), **about}) + "\n"
        with self._lock:
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(file, line.encode())
            finally:
                os.close(file)


def hidden_name(name: str) -> str:
    """A hash of a name that somebody tried: it tells attempts from one another, and hides a password typed as a name."""
    return f"tried:{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:12]}"
