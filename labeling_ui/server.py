"""The web application: a small HTTP API over the store, and the pages as Gradio Blocks on top of it.

    GET  /rate/  /lead/  /login/        the pages
    POST /api/login, /api/logout        username and password in, a session cookie and `csrf_token` out
    GET  /api/me                        who is rating, and how far they have come
    GET  /api/next?holding=ID,ID        the rater's next pair, or null
    PUT  /api/drafts/{pair_id}          what they have begun
    POST /api/judgments                 store a judgment; the reply has the next pair
    POST /api/judgments/{id}/undo       take it back; the reply is the pair, to be judged again
    GET  /api/lead/status, /api/lead/agreement, /api/lead/raters
    GET  /openapi.json

Nothing here calls another host, and the pages' Content-Security-Policy lets nothing through that would.
"""

from __future__ import annotations

import hmac
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import uvicorn
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Body, Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as ASGIMessage

from labeling_ui.accounts import LoginLimit, Session, find_session, log_in, log_out, needs_login
from labeling_ui.agreement import PUBLISHED, measure_agreement
from labeling_ui.answers import Draft, Submission, storable
from labeling_ui.assigning import Assignment, RefusedError
from labeling_ui.markup import render
from labeling_ui.pages import PageConfig, mount_pages
from labeling_ui.store import Rater, Store, wall_clock_ms
from tiebreak.errors import MachineError
from tiebreak.records import explain

LOCAL_RATER = "local"
SESSION_COOKIE = "tiebreak_session"
MAX_BODY_BYTES = 600_000
PAGES = ("/rate", "/lead", "/login")

_POLICY = "; ".join(
    (
        "default-src 'self'",
        # Gradio starts by inline scripts and builds a page's script by Function(); attributes (onerror) stay forbidden.
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
_GRADIO_NEEDS = ("assets/", "static/", "config", "theme.css", "gradio_api/startup-events", "gradio_api/heartbeat/")
"""What the pages take from Gradio; the rest (uploads, files, proxy, tokens, its own API) is closed."""


class LatestAgreement:
    """The agreement of a store, measured again when something has happened, and not more often than it can bear.

    In a store of a million judgments it takes long: leads who look then see figures that are up to ten times as old as
    they take to measure.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._head = "nothing measured"
        self._measured: dict[str, Any] = {}
        self._fresh_until = 0.0

    def __call__(self) -> dict[str, Any]:
        """The figures."""
        with self._lock:
            head = self._store.status()["head"]
            if head != self._head and time.monotonic() >= self._fresh_until:
                begun = time.monotonic()
                self._measured = measure_agreement(self._store.pairs(), self._store.judgments()[0])
                self._head, took = head, time.monotonic() - begun
                self._fresh_until = time.monotonic() + 10 * took
            return self._measured


@dataclass(frozen=True)
class Desk:
    """What the handlers work on; lies in the application's state."""

    store: Store
    page: PageConfig
    agreement: LatestAgreement
    limit: LoginLimit = field(default_factory=LoginLimit)
    turn: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))

    async def write(self, work: Callable[[], object]) -> JSONResponse:
        """Do `work`, which writes to the store, and reply with what it returns.

        One at a time and in the order of arrival: the store takes one writer anyway, and threads that wait for it would
        only take the interpreter from the one that has it.
        """
        return JSONResponse(await to_thread.run_sync(work, limiter=self.turn))


def create_app(store: Store, page: PageConfig) -> FastAPI:
    """The whole application."""
    app = FastAPI(title=f"Tiebreak: {page.title}", docs_url=None, redoc_url=None)
    app.state.desk = Desk(store, page, LatestAgreement(store))
    if not needs_login(store):
        store.add_rater(LOCAL_RATER, rater_id=LOCAL_RATER)
    app.add_middleware(Guard, page=page)
    app.include_router(api)
    app.include_router(lead_api)
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(SQLAlchemyError, _unavailable)
    mount_pages(app, page)
    return app


async def desk_of(request: Request) -> Desk:
    """The application's store and page."""
    return _desk(request)


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


# --- who is asking ---


def session_of(request: Request) -> Session | None:
    """The request's session, from its cookie alone; one person's store without accounts needs none."""
    desk = _desk(request)
    token = request.cookies.get(SESSION_COOKIE)
    session = find_session(desk.store, token) if token else None
    if session is None and not needs_login(desk.store):
        return Session(Rater(LOCAL_RATER, LOCAL_RATER, "human", "lead"), csrf_token="")
    return session


async def current_session(request: Request) -> Session:
    """Who is asking. Never taken from what the client posts. (One indexed read: quicker than a change of threads.)"""
    session = session_of(request)
    if session is None:
        raise HTTPException(401, "log in first")
    return session


async def writing_session(
    session: Annotated[Session, Depends(current_session)], x_csrf_token: Annotated[str, Header(max_length=200)] = ""
) -> Session:
    """Who is asking for a change: the request must carry the session's token, which no other site can read."""
    if not hmac.compare_digest(session.csrf_token.encode(), x_csrf_token.encode()) and session.csrf_token:
        raise HTTPException(403, "the header X-CSRF-Token is missing or wrong: log in again")
    return session


async def lead_session(session: Annotated[Session, Depends(current_session)]) -> Session:
    """Only leads."""
    if session.rater.role != "lead":
        raise HTTPException(403, "this is for leads")
    return session


M = TypeVar("M", bound=BaseModel)
DeskOf = Annotated[Desk, Depends(desk_of)]
Reader = Annotated[Session, Depends(current_session)]
Writer = Annotated[Session, Depends(writing_session)]

# --- the raters' API ---

api = APIRouter()


class Login(BaseModel):
    """A name and a password."""

    model_config = ConfigDict(extra="forbid")

    username: str = Field(max_length=200)
    password: str = Field(max_length=2_000)

    _storable = field_validator("username", "password")(storable)


@api.get("/", include_in_schema=False)
def home() -> RedirectResponse:
    """The address people type."""
    return RedirectResponse("/rate/")


@api.get("/manifest.json", include_in_schema=False)
def web_manifest(desk: DeskOf) -> dict[str, str]:
    """Gradio's pages ask for one at the root."""
    return {"name": desk.page.title, "start_url": "/rate/", "display": "standalone"}


@api.get("/favicon.ico", include_in_schema=False)
def icon() -> Response:
    """None; browsers ask for one."""
    return Response(status_code=204)


@api.post("/api/login")
def login(desk: DeskOf, request: Request, response: Response, body: Login) -> dict[str, str]:
    """Begin a session. A wrong name and a wrong password are told alike."""
    keys = (f"name {body.username}", f"address {request.client.host if request.client else ''} {body.username}")
    if not desk.limit.allows(*keys):
        raise HTTPException(429, "too many attempts: wait five minutes")
    session = log_in(desk.store, body.username, body.password)
    if session is None:
        desk.limit.failed(*keys)
        raise HTTPException(401, "this name and password do not fit")
    secure = request.url.scheme == "https"
    response.set_cookie(
        SESSION_COOKIE, session.token, max_age=14 * 86_400, httponly=True, samesite="strict", secure=secure
    )
    return {"csrf_token": session.csrf_token, "rater_id": session.rater.id, "role": session.rater.role}


@api.post("/api/logout")
def logout(desk: DeskOf, _session: Writer, request: Request, response: Response) -> dict[str, bool]:
    """End the session."""
    log_out(desk.store, request.cookies.get(SESSION_COOKIE, ""))
    response.delete_cookie(SESSION_COOKIE)
    return {"ok": True}


@api.get("/api/me")
def who_am_i(desk: DeskOf, session: Reader) -> dict[str, Any]:
    """The rater, how far they have come, and what undo would take back."""
    rater = session.rater
    about = {"rater_id": rater.id, "name": rater.name, "role": rater.role, "csrf_token": session.csrf_token}
    return {
        **about,
        "guideline_version": desk.page.guideline_version,
        "progress": vars(desk.store.progress(rater.id)),
        "guidelines_accepted": desk.store.accepted(rater.id, desk.page.guideline_version),
        "last_judgment": desk.store.last_judgment(rater.id),
    }


class Acceptance(BaseModel):
    """A version of the guidelines."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(max_length=100)

    _storable = field_validator("version")(storable)


@api.post("/api/guidelines/accept")
def accept_guidelines(desk: DeskOf, session: Writer, body: Acceptance) -> dict[str, bool]:
    """The rater has read the guidelines."""
    desk.store.accept(session.rater.id, body.version)
    return {"ok": True}


@api.get("/api/next")
async def next_pair(
    desk: DeskOf, session: Reader, holding: Annotated[str, Query(max_length=2_000)] = ""
) -> JSONResponse:
    """The rater's next pair, or null. `holding` names the pairs that the client has already."""
    held = [one for one in holding.split(",") if one]
    return await desk.write(lambda: as_json(desk.store.claim(session.rater.id, held)))


@api.put("/api/drafts/{pair_id}")
async def save_draft(
    desk: DeskOf, session: Writer, pair_id: str, body: Annotated[dict[str, Any], Body()]
) -> JSONResponse:
    """Keep what the rater has begun, and their lease with it."""
    draft = _checked(Draft, body)

    def save() -> dict[str, bool]:
        desk.store.save_draft(session.rater.id, pair_id, draft)
        return {"ok": True}

    return await desk.write(save)


@api.post("/api/judgments")
async def judge(desk: DeskOf, session: Writer, body: Annotated[dict[str, Any], Body()]) -> JSONResponse:
    """Store a judgment. When the reply comes, it is on disk. `holding` may list the pairs the client has already."""
    holding = body.pop("holding", [])
    if not isinstance(holding, list) or len(holding) > 10 or not all(isinstance(one, str) for one in holding):
        raise HTTPException(422, "holding: must be a list of at most 10 pair ids")
    submission = _checked(Submission, body)

    def store() -> dict[str, Any]:
        stored, following = desk.store.submit_and_claim(session.rater.id, submission, holding)
        return {
            "judgment_id": stored.judgment_id,
            "judgment": stored.judgment.model_dump(mode="json"),
            "replayed": stored.replayed,
            "next": as_json(following),
        }

    return await desk.write(store)


@api.post("/api/judgments/{judgment_id}/undo")
async def undo(desk: DeskOf, session: Writer, judgment_id: str) -> JSONResponse:
    """Take a judgment back: `pair` is to be judged again, with what was said as its draft."""

    def take_back() -> dict[str, Any]:
        pair = desk.store.undo(session.rater.id, judgment_id)
        return {"pair": as_json(pair), "last_judgment": desk.store.last_judgment(session.rater.id)}

    return await desk.write(take_back)


def _checked(model: type[M], body: dict[str, Any]) -> M:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise HTTPException(422, [_printable(fault) for fault in explain(error)]) from error


def _refused(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": _printable(str(error))}, status_code=409)


def _malformed(_request: Request, error: Exception) -> JSONResponse:
    """What FastAPI found wrong, without the values: a password must not come back in a reply."""
    faults = error.errors() if isinstance(error, RequestValidationError) else []
    return JSONResponse(
        {"detail": [_printable(f"{fault['loc'][-1]}: {fault['msg']}") for fault in faults]}, status_code=422
    )


def _unavailable(_request: Request, error: Exception) -> JSONResponse:
    """A full disk, a locked store: nothing was stored, and the page keeps the judgment and tries again."""
    cause = error.__cause__ or error
    print(f"error: the label store cannot be used: {cause}", file=sys.stderr, flush=True)
    return JSONResponse({"detail": "the label store cannot be used just now: nothing was stored"}, status_code=503)


def _printable(text: str) -> str:
    """`text` as every reply can carry it: halves of surrogate pairs are replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")[:1_000]


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


# --- the leads' API ---

lead_api = APIRouter(prefix="/api/lead", dependencies=[Depends(lead_session)])


@lead_api.get("/status")
def lead_status(desk: DeskOf) -> dict[str, Any]:
    """Counts of everything, the pace of the last day, and when all will be judged if it holds."""
    status = desk.store.status()
    judged = sum(status["judgments"].values())
    last_day, raters = desk.store.judged_since(wall_clock_ms() - 86_400_000)
    left = max(0, status["judgments_wanted"] - judged)
    return {
        **status,
        "last_day": {"judgments": last_day, "raters": raters},
        "days_left": round(left / last_day, 1) if last_day else None if left else 0.0,
        "by_day": desk.store.judged_by_day(),
    }


@lead_api.get("/agreement")
def lead_agreement(desk: DeskOf) -> dict[str, Any]:
    """How far the raters agree, now, beside the published figures."""
    return {**desk.agreement(), "published": [{"what": what, "figure": figure} for what, figure in PUBLISHED]}


@lead_api.get("/raters")
def lead_raters(desk: DeskOf) -> list[dict[str, Any]]:
    """Everyone who may judge."""
    return [vars(rater) for rater in desk.store.raters()]


# --- what every request passes ---


class Guard:
    """The outermost layer: refuses what no handler should see, and puts the security headers on every reply."""

    def __init__(self, app: ASGIApp, page: PageConfig) -> None:
        self.app = app
        self.page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        headers = dict(_HEADERS)
        if request.url.path.startswith("/api/"):
            headers["Cache-Control"] = "no-store"

        async def send_guarded(message: ASGIMessage) -> None:
            if message["type"] == "http.response.start":
                kept = MutableHeaders(scope=message)
                for name, value in headers.items():
                    kept[name] = value
            await send(message)

        refusal = _refusal(request, self.page)
        if refusal is None and request.url.path.startswith(PAGES):
            refusal = await run_in_threadpool(_page_refusal, request)
        await (refusal or self.app)(scope, receive, send_guarded)


def _refusal(request: Request, page: PageConfig) -> Response | None:
    """Why a request goes no further, or None."""
    if "\0" in request.url.path or "%00" in request.url.query:
        return JSONResponse({"detail": "NUL has no place in an address"}, status_code=400)
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    if page.hosts and host not in page.hosts:
        return JSONResponse({"detail": f"this server does not answer to the name {host!r}"}, status_code=421)
    origin = request.headers.get("origin")
    if request.method not in ("GET", "HEAD") and origin and urlsplit(origin).netloc != request.headers.get("host"):
        return JSONResponse({"detail": "requests from other sites are refused"}, status_code=403)
    length = request.headers.get("content-length", "0")
    if (
        not length.isdigit()
        or int(length) > MAX_BODY_BYTES
        or "chunked" in request.headers.get("transfer-encoding", "")
    ):
        return JSONResponse({"detail": f"a request holds at most {MAX_BODY_BYTES} bytes"}, status_code=413)
    return None


def _page_refusal(request: Request) -> Response | None:
    """Pages are for those who have logged in, /lead/ for leads; of Gradio's own routes only what pages need is open."""
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
