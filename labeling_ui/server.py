"""The web application: a small HTTP API over the store, and the raters' page as Gradio Blocks on top of it.

    GET  /                          to /rate/
    GET  /rate/                     the page
    GET  /api/next?holding=ID,ID    the rater's next pair, or null
    POST /api/judgments             store a judgment; the reply has the next pair
    GET  /api/me                    who is rating, and how far they have come

Nothing here calls another host, and the page's Content-Security-Policy lets nothing through that would.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import uvicorn
from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import ValidationError

from labeling_ui.markup import render
from labeling_ui.store import Assignment, Rater, RefusedError, Store, Submission
from tiebreak.errors import MachineError
from tiebreak.records import explain

PAGES = Path(__file__).parent / "pages"
LOCAL_RATER = "local"
MAX_BODY_BYTES = 600_000

_POLICY = "; ".join(
    (
        "default-src 'self'",
        # Gradio starts by inline scripts and builds the page's script by Function(); attributes such as onerror stay
        # forbidden.
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
}
_GRADIO_NEEDS = (
    "/assets/",
    "/static/",
    "/config",
    "/theme.css",
    "/favicon.ico",
    "/gradio_api/startup-events",
    "/gradio_api/heartbeat/",
)
"""What the page takes from Gradio; the rest (uploads, files, proxy, tokens, its own API) is closed."""


@dataclass(frozen=True)
class PageConfig:
    """What the raters' page shows beside the pairs."""

    title: str
    guidelines: str = ""
    """Markdown"""
    guideline_version: str = ""
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "::1")
    """names under which the server may be called: a page elsewhere that points its own name here is refused"""


@dataclass(frozen=True)
class Desk:
    """What the handlers work on; lies in the application's state."""

    store: Store
    page: PageConfig
    local: Rater


def create_app(store: Store, page: PageConfig) -> FastAPI:
    """The whole application."""
    app = FastAPI(title=f"Tiebreak: {page.title}", docs_url=None, redoc_url=None)
    app.state.desk = Desk(store, page, store.add_rater(LOCAL_RATER, kind="human", rater_id=LOCAL_RATER))
    _guard(app, page)
    app.include_router(api)
    app.add_exception_handler(RefusedError, _refused)
    gr.mount_gradio_app(
        app, build_rate_page(page), path="/rate", show_error=False, footer_links=[], run_history=False, ssr_mode=False,
        theme=build_theme(), css=(PAGES / "page.css").read_text(encoding="utf-8"),
    )  # fmt: skip
    return app


# --- the API ---

api = APIRouter()


def desk_of(request: Request) -> Desk:
    """The application's store and page."""
    desk: Desk = request.app.state.desk
    return desk


def current_rater(request: Request) -> Rater:
    """Who is asking. Never taken from what the client posts."""
    return desk_of(request).local


DeskOf = Annotated[Desk, Depends(desk_of)]
Me = Annotated[Rater, Depends(current_rater)]


@api.get("/", include_in_schema=False)
def home() -> RedirectResponse:
    """The address people type."""
    return RedirectResponse("/rate/")


@api.get("/manifest.json", include_in_schema=False)
def web_manifest(desk: DeskOf) -> dict[str, str]:
    """Gradio's page asks for one at the root."""
    return {"name": desk.page.title, "start_url": "/rate/", "display": "standalone"}


@api.get("/favicon.ico", include_in_schema=False)
def icon() -> Response:
    """None; browsers ask for one."""
    return Response(status_code=204)


@api.get("/api/me")
def who_am_i(desk: DeskOf, rater: Me) -> dict[str, Any]:
    """The rater, and how far they have come."""
    progress = vars(desk.store.progress(rater.id))
    about = {"rater_id": rater.id, "role": rater.role, "guideline_version": desk.page.guideline_version}
    return {**about, "progress": progress}


@api.get("/api/next")
def next_pair(desk: DeskOf, rater: Me, holding: Annotated[str, Query(max_length=2_000)] = "") -> dict[str, Any] | None:
    """The rater's next pair, or null. `holding` names the pairs that the client has already."""
    return as_json(desk.store.claim(rater.id, [one for one in holding.split(",") if one]))


@api.post("/api/judgments")
def judge(desk: DeskOf, rater: Me, body: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
    """Store a judgment. When the reply comes, it is on disk."""
    submission, holding = parse_submission(body)
    stored, following = desk.store.submit_and_claim(rater.id, submission, holding)
    return {
        "judgment_id": stored.judgment_id,
        "judgment": stored.judgment.model_dump(mode="json"),
        "replayed": stored.replayed,
        "next": as_json(following),
    }


def _refused(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=409)


def parse_submission(body: dict[str, Any]) -> tuple[Submission, list[str]]:
    """The judgment in a request's body, and the items the client holds already.

    Raises:
        HTTPException: 422 with every fault.
    """
    body = dict(body)
    holding = body.pop("holding", [])
    if not isinstance(holding, list) or len(holding) > 10 or not all(isinstance(one, str) for one in holding):
        raise HTTPException(422, "holding: must be a list of at most 10 pair ids")
    try:
        return Submission.model_validate(body), holding
    except ValidationError as error:
        raise HTTPException(422, list(explain(error))) from error


def as_json(assignment: Assignment | None) -> dict[str, Any] | None:
    """A pair as the page gets it: the texts and their safe HTML, and nothing that says which model wrote them."""
    if assignment is None:
        return None
    texts = {completion.id: completion.text for completion in assignment.pair.completions}
    sides = {
        side: {"id": identity, "text": texts[identity], "html": render(texts[identity])}
        for side, identity in (("left", assignment.left_id), ("right", assignment.right_id))
    }
    messages = [{"role": m.role, "content": m.content, "html": render(m.content)} for m in assignment.pair.messages]
    return {"pair_id": assignment.item_id, "messages": messages, **sides, "draft": assignment.draft}


# --- what every request passes ---


def _guard(app: FastAPI, page: PageConfig) -> None:
    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        refusal = _refusal(request, page)
        response = refusal or await call_next(request)
        for name, value in _HEADERS.items():
            response.headers[name] = value
        if request.url.path.startswith("/api/"):
            response.headers["Cache-Control"] = "no-store"
        return response


def _refusal(request: Request, page: PageConfig) -> Response | None:
    """Why a request goes no further, or None."""
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    if page.hosts and host not in page.hosts:
        return JSONResponse({"detail": f"this server does not answer to the name {host!r}"}, status_code=421)
    origin = request.headers.get("origin")
    if request.method not in ("GET", "HEAD") and origin and urlsplit(origin).netloc != request.headers.get("host"):
        return JSONResponse({"detail": "requests from other sites are refused"}, status_code=403)
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MAX_BODY_BYTES:
        return JSONResponse({"detail": f"a request holds at most {MAX_BODY_BYTES} bytes"}, status_code=413)
    mount, _, rest = request.url.path.lstrip("/").partition("/")
    if mount == "rate" and rest and not f"/{rest}".startswith(_GRADIO_NEEDS):
        return JSONResponse({"detail": "not found"}, status_code=404)
    return None


# --- the page ---


def build_theme() -> gr.themes.Base:
    """Gradio's base theme with the system's own fonts: nothing is fetched."""
    return gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )


def build_rate_page(page: PageConfig) -> gr.Blocks:
    """The raters' page: one gr.HTML with its own script, which talks to the API."""
    with gr.Blocks(title=page.title, analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(
            value={
                "title": page.title,
                "guidelines": render(page.guidelines),
                "guideline_version": page.guideline_version,
            },
            html_template=(PAGES / "rate.html").read_text(encoding="utf-8"),
            js_on_load=(PAGES / "rate.js").read_text(encoding="utf-8"),
            apply_default_css=False,
            elem_id="rate",
        )
    return blocks


def run_server(app: FastAPI, host: str, port: int) -> None:
    """Serve until Ctrl-C.

    Raises:
        MachineError: the port is taken, or the address is not this machine's.
    """
    try:
        listening = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=256
        )
    except OSError as error:
        raise MachineError(
            f"cannot listen on {host}:{port}: {error.strerror}. Give another --port, or stop what runs there"
        ) from error
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3)
    uvicorn.Server(config).run(sockets=[listening])
