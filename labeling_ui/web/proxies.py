"""Headers of reverse proxies, trusted from named ones only, and the path prefix of the server."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware


class ProxyMiddleware:
    """The outermost layer on a real server.

    From a named proxy, `X-Forwarded-For`, `-Proto` and `-Host` are the request's address, scheme and host. From anybody
    else, they are ignored. Paths are taken with the prefix and without it, as proxies pass them on either way.
    """

    def __init__(self, app: ASGIApp, proxies: Sequence[str], prefix: str) -> None:
        self._app = ProxyHeadersMiddleware(app, list(proxies))  # type: ignore[arg-type]  # uvicorn's types of the same
        self._proxies = proxies
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] in ("http", "websocket"):
            scope = {**scope, "headers": self._headers(scope), **self._paths(scope)}
        await self._app(scope, receive, send)  # type: ignore[arg-type]

    def _headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """The headers, with the host that a named proxy forwards."""
        rest = [(name, value) for name, value in scope["headers"] if name != b"x-forwarded-host"]
        hosts = [value for name, value in scope["headers"] if name == b"x-forwarded-host"]
        peer = scope["client"][0] if scope.get("client") else ""
        if not hosts or not is_trusted(peer, self._proxies):
            return rest
        host = hosts[-1].rpartition(b",")[2].strip()
        return [(b"host", host), *((name, value) for name, value in rest if name != b"host")]

    def _paths(self, scope: Scope) -> dict[str, object]:
        path, raw = scope["path"], scope.get("raw_path") or scope["path"].encode()
        if not self._prefix:
            return {}
        if path != self._prefix and not path.startswith(f"{self._prefix}/"):
            path, raw = self._prefix + path, self._prefix.encode() + raw
        return {"root_path": self._prefix, "path": path, "raw_path": raw}


def is_trusted(address: str, proxies: Sequence[str]) -> bool:
    """Whether an address is among the proxies: addresses, networks, or *.

    >>> is_trusted("10.0.0.7", ["10.0.0.0/8"]), is_trusted("11.0.0.7", ["10.0.0.0/8"])
    (True, False)
    """
    if "*" in proxies:
        return True
    try:
        found = ipaddress.ip_address(address)
        return any(found in ipaddress.ip_network(proxy, strict=False) for proxy in proxies)
    except ValueError:
        return False
