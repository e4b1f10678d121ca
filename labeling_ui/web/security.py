"""Checks of every request before any handler, and security headers on every reply.

Refused: cross-site requests, foreign host names, oversized bodies, Gradio's own routes that no page needs, and pages
requested without a login. The Content-Security-Policy keeps pages from calling other hosts.
"""

from __future__ import annotations

import asyncio
import re
import time
from urllib.parse import urlsplit

from fastapi import HTTPException, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as ASGIMessage

from labeling_ui.pages import PageConfig
from labeling_ui.web.context import VIEWERS, lacks_second_factor, session_of
from labeling_ui.web.error_pages import ErrorPages, takes_html
from labeling_ui.web.metrics import Metrics
from labeling_ui.web.page_policy import POLICY, WholePage, content_policy
from labeling_ui.web.refusals import failed, unavailable
from labeling_ui.web.security_log import SecurityLog

MAX_BODY_BYTES = 600_000
MAX_BODY_SECONDS = 30
MAX_UPLOAD_BYTES = 50_000_000
MAX_UPLOAD_SECONDS = 300
MAX_DISCARDED_BYTES = 4_000_000
"""of a body that is too large, read before the refusal"""
UPLOADS = ("/api/lead/pairs/upload", "/api/lead/media")
"""The addresses to which leads may send larger bodies."""
_TOO_LARGE = f"a request may have at most {MAX_BODY_BYTES:,} bytes, and must state its length"
CACHED = ("/api/media/", "/fonts/")
"""Images, recordings and a font, which have stricter headers of their own and may be kept by the browser."""
PAGES = ("/rate", "/lead", "/login")

_HEADERS = {
    POLICY: content_policy(),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Tiebreak": "1",  # the pages believe no reply of another program, such as a proxy's error page
}
_GRADIO_NEEDS = ("assets/", "static/", "config", "theme.css", "gradio_api/startup-events")
"""Gradio's routes that the pages need; the rest (uploads, files, proxy, tokens, its API) is closed, and so are its
heartbeats: streams that anybody could hold open."""
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
_STATIC = ("assets/", "static/", "theme.css")
_PLAIN_PATH = re.compile(rb"(/[\w@+~-][\w.@+~-]*)*/?")
"""Addresses outside the API: without escapes, empty parts and dots that two programs may read in two ways."""


class Guard:
    """The outermost layer: refuses requests that no handler should see, and adds the security headers."""

    def __init__(
        self, app: ASGIApp, page: PageConfig, metrics: Metrics | None = None, *, has_campaign: bool = True
    ) -> None:
        """`has_campaign`: false for the login page of several campaigns, which has no store and no other pages."""
        self.app = app
        self.page = page
        self.has_campaign = has_campaign
        self.metrics = metrics or Metrics()
        self.log = SecurityLog(page.security_log)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "websocket":  # unused here, and the checks below would not see it
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})
        request = Request(scope)
        path = route_path(scope)
        headers, begun, replying = _headers_of(request, path), time.monotonic(), False

        async def send_guarded(message: ASGIMessage) -> None:
            nonlocal replying
            if message["type"] == "http.response.start":
                replying = True
                self._record(request, path, message["status"], time.monotonic() - begun)
                reply_headers = MutableHeaders(scope=message)
                for name, value in headers.items():
                    if not (path.startswith(CACHED) and name in reply_headers):
                        reply_headers[name] = value
            await send(message)

        reply: Send = send_guarded
        left_out = {b"x-forwarded-host"}
        if request.method == "GET" and path.rstrip("/") in PAGES:
            reply = WholePage(send_guarded, headers, request.headers.get("accept-encoding", ""))
            left_out.add(b"accept-encoding")
        if takes_html(request):
            reply = ErrorPages(reply, send_guarded, self.page, "/rate/" if self.has_campaign else "/login/")
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name not in left_out]
        try:
            await self._answer(request, path, receive, reply)
        except Exception as error:
            if replying:
                raise
            store_failed = isinstance(error, (SQLAlchemyError, OSError))
            await (unavailable(request, error) if store_failed else failed())(scope, receive, reply)
            if not store_failed:
                raise  # for whoever reads the server's output

    async def _answer(self, request: Request, path: str, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        uploads = self.has_campaign and path in UPLOADS and await run_in_threadpool(_is_lead, request)
        limits = (MAX_UPLOAD_BYTES, MAX_UPLOAD_SECONDS) if uploads else (MAX_BODY_BYTES, MAX_BODY_SECONDS)
        refusal = _refusal(request, path, self.page, limits[0])
        if refusal is None and path.startswith(PAGES):
            refuse = _page_refusal if self.has_campaign else _door_refusal
            refusal = await run_in_threadpool(refuse, request, path)
        if refusal is not None and refusal.status_code == 413:
            await _discard(receive)
        await (refusal or self.app)(request.scope, _BoundedBody(receive, *limits), send)

    def _record(self, request: Request, path: str, status: int, seconds: float) -> None:
        """Count the request, and write it to the security log."""
        method = request.method if request.method in _METHODS else "OTHER"
        self.metrics.count(method, status, seconds)
        address = request.client.host if request.client else ""
        self.log.request(method, path, status, address, request.scope["state"].get("who", ""))


def _headers_of(request: Request, path: str) -> dict[str, str]:
    """The headers that a reply gets."""
    headers = dict(_HEADERS)
    if request.url.scheme == "https":
        headers["Strict-Transport-Security"] = "max-age=31536000"
    if not path.lstrip("/").partition("/")[2].startswith(_STATIC):
        headers["Cache-Control"] = "no-store"
    return headers


def route_path(scope: Scope) -> str:
    """The path that routes are matched with: without the prefix that the server is under."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"


class _BoundedBody:
    """A request's body, bounded in bytes and time whatever its headers say."""

    def __init__(self, receive: Receive, most_bytes: int, most_seconds: int) -> None:
        self._receive = receive
        self._bytes = 0
        self._most_bytes, self._most_seconds = most_bytes, most_seconds
        self._until = time.monotonic() + most_seconds
        self._complete = False

    async def __call__(self) -> ASGIMessage:
        """The next part.

        Raises:
            HTTPException: 408 or 413.
        """
        if self._complete:  # the end of the connection may come at any time
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._until - time.monotonic())
        except TimeoutError as error:
            raise HTTPException(408, f"a request must arrive within {self._most_seconds} seconds") from error
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._most_bytes:
            raise HTTPException(413, _TOO_LARGE)
        self._complete = not message.get("more_body", False)
        return message


async def _discard(receive: Receive) -> None:
    """Read a refused body, within bounds: with the connection closed on it, a proxy that still sends would report a bad
    gateway in place of the refusal."""
    left, until = MAX_DISCARDED_BYTES, time.monotonic() + MAX_BODY_SECONDS
    while left > 0:
        try:
            message = await asyncio.wait_for(receive(), until - time.monotonic())
        except TimeoutError:
            return
        left -= len(message.get("body", b""))
        if not message.get("more_body", False):
            return


def _is_lead(request: Request) -> bool:
    session = session_of(request)
    return session is not None and session.rater.role == "lead"


def _refusal(request: Request, path: str, page: PageConfig, most_bytes: int) -> Response | None:
    """Why a request is refused, or None."""
    if "\0" in path or "%00" in request.url.query:
        return JSONResponse({"detail": "the address must not contain NUL"}, status_code=400)
    raw = request.scope.get("raw_path") or path.encode()
    if not path.startswith("/api/") and not _PLAIN_PATH.fullmatch(raw.partition(b"?")[0]):
        return JSONResponse({"detail": "not found"}, status_code=404)
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    if page.hosts and host not in page.hosts:
        return JSONResponse({"detail": f"this server does not serve the host name {host!r}"}, status_code=421)
    origin = request.headers.get("origin")
    if request.method not in ("GET", "HEAD") and origin and urlsplit(origin).netloc != request.headers.get("host"):
        return JSONResponse(
            {"detail": "cross-site requests are refused (a proxy in front must pass the Host header on)"},
            status_code=403,
        )
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > most_bytes or request.headers.get("transfer-encoding"):
        return JSONResponse({"detail": _TOO_LARGE}, status_code=413)
    return None


def _door_refusal(request: Request, path: str) -> Response | None:
    """Of Gradio's own routes, only those that pages need are open."""
    _, _, rest = path.lstrip("/").partition("/")
    if rest and (request.method != "GET" or not rest.startswith(_GRADIO_NEEDS)):
        return JSONResponse({"detail": "not found"}, status_code=404)
    return None


def _page_refusal(request: Request, path: str) -> Response | None:
    """Pages need a login, /lead/ a lead's."""
    mount, _, rest = path.lstrip("/").partition("/")
    if closed := _door_refusal(request, path):
        return closed
    if mount == "login" or rest.startswith(_STATIC):
        return None
    session = session_of(request)
    if session is None:
        return RedirectResponse(f"{request.scope.get('root_path', '')}/login/", status_code=303)
    if mount == "lead" and session.rater.role not in VIEWERS:
        return JSONResponse({"detail": "this page is for leads"}, status_code=403)
    if mount == "lead" and lacks_second_factor(request, session):
        return RedirectResponse(f"{request.scope.get('root_path', '')}/rate/#second-factor", status_code=303)
    return None
