"""Checks of every request before any handler, and security headers on every reply.

Refused: cross-site requests, foreign host names, oversized bodies, Gradio's own routes that no page needs, and pages
requested without a login. The Content-Security-Policy keeps pages from calling other hosts.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as ASGIMessage

from labeling_ui.pages import PageConfig
from labeling_ui.web.context import session_of

MAX_BODY_BYTES = 600_000
PAGES = ("/rate", "/lead", "/login")

_POLICY = "; ".join(
    (
        "default-src 'self'",
        # Gradio needs inline scripts and Function(); attributes (onerror) stay forbidden.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "script-src-attr 'none'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Tiebreak": "1",  # the pages believe no reply of another program, such as a proxy's error page
}
_GRADIO_NEEDS = ("assets/", "static/", "config", "theme.css", "gradio_api/startup-events", "gradio_api/heartbeat/")
"""Gradio's routes that the pages need; the rest (uploads, files, proxy, tokens, its API) is closed."""


class Guard:
    """The outermost layer: refuses requests that no handler should see, and adds the security headers."""

    def __init__(self, app: ASGIApp, page: PageConfig) -> None:
        self.app = app
        self.page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "websocket":  # unused here, and the checks below would not see it
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        headers = dict(_HEADERS)
        if request.url.path.startswith("/api/"):
            headers["Cache-Control"] = "no-store"

        async def send_guarded(message: ASGIMessage) -> None:
            if message["type"] == "http.response.start":
                reply_headers = MutableHeaders(scope=message)
                for name, value in headers.items():
                    reply_headers[name] = value
            await send(message)

        refusal = _refusal(request, self.page)
        if refusal is None and request.url.path.startswith(PAGES):
            refusal = await run_in_threadpool(_page_refusal, request)
        await (refusal or self.app)(scope, receive, send_guarded)


def _refusal(request: Request, page: PageConfig) -> Response | None:
    """Why a request is refused, or None."""
    if "\0" in request.url.path or "%00" in request.url.query:
        return JSONResponse({"detail": "the address must not contain NUL"}, status_code=400)
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    if page.hosts and host not in page.hosts:
        return JSONResponse({"detail": f"this server does not serve the host name {host!r}"}, status_code=421)
    origin = request.headers.get("origin")
    if request.method not in ("GET", "HEAD") and origin and urlsplit(origin).netloc != request.headers.get("host"):
        return JSONResponse({"detail": "cross-site requests are refused"}, status_code=403)
    length = request.headers.get("content-length", "0")
    if (
        not length.isdigit()
        or int(length) > MAX_BODY_BYTES
        or "chunked" in request.headers.get("transfer-encoding", "")
    ):
        return JSONResponse({"detail": f"a request may have at most {MAX_BODY_BYTES} bytes"}, status_code=413)
    return None


def _page_refusal(request: Request) -> Response | None:
    """Pages need a login, /lead/ a lead's; of Gradio's own routes, only those that pages need are open."""
    mount, _, rest = request.url.path.lstrip("/").partition("/")
    if rest and (request.method != "GET" or not rest.startswith(_GRADIO_NEEDS)):
        return JSONResponse({"detail": "not found"}, status_code=404)
    if mount == "login" or rest.startswith(("assets/", "static/", "theme.css")):
        return None
    session = session_of(request)
    if session is None:
        return RedirectResponse("/login/", status_code=303)
    if mount == "lead" and session.rater.role != "lead":
        return JSONResponse({"detail": "this page is for leads"}, status_code=403)
    return None
