"""A session with a label server: logging in, requests with its token, and errors in the server's words."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from tiebreak.errors import TiebreakError

TIMEOUT_SECONDS = 60.0


class ClientError(TiebreakError):
    """The server refused a request; `status` is HTTP's."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status


class Connection:
    """Requests in one session.

    Args:
        address: of the server, with its prefix: https://labels.example.org/label
        username: of the account; empty: log in with `login`, or use a server without accounts.
        code: of the authenticator app, if the account has a second factor.

    Raises:
        ClientError: the login is refused.
    """

    def __init__(self, address: str, username: str = "", password: str = "", *, code: str = "") -> None:
        self._http = httpx.Client(base_url=address.rstrip("/"), timeout=TIMEOUT_SECONDS)
        if username:
            about = {"username": username, "password": password} | ({"code": code} if code else {})
            try:
                self._keep_token(self.request("POST", "/api/login", body=about))
            except BaseException:
                self._http.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if "X-CSRF-Token" in self._http.headers and error is None:
            self.request("POST", "/api/logout")
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: object = None,
        content: bytes | None = None,
    ) -> Any:
        """Any request: the JSON of its reply, or its bytes.

        Raises:
            ClientError: with the server's reason.
        """
        asked = {name: value for name, value in (query or {}).items() if value is not None}
        sent: dict[str, Any] = {"content": content} if content is not None else {} if body is None else {"json": body}
        reply = self._http.request(method, path, params=asked, **sent)
        is_json = reply.headers.get("content-type", "").startswith("application/json")
        if reply.is_success:
            return reply.json() if is_json else reply.content
        detail = reply.json().get("detail", "") if is_json else reply.text[:200]
        raise ClientError(reply.status_code, "; ".join(detail) if isinstance(detail, list) else str(detail))

    def _keep_token(self, reply: Mapping[str, Any]) -> None:
        if reply.get("csrf_token"):
            self._http.headers["X-CSRF-Token"] = reply["csrf_token"]
