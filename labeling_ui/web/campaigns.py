"""Several campaigns in one server: each with its own store, accounts and roles, under /c/NAME/, and one login page.

    GET  /login/            asks for a name and a password, whatever the campaign
    POST /api/login         a session in every campaign that has this account; the reply lists them
    /c/NAME/…               a campaign's pages and API, as of a server of its own

A session's cookie belongs to its campaign's path, and its token is in that campaign's store alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Receive, Scope, Send

from labeling_ui.pages import PageConfig, mount_login
from labeling_ui.store.names import composed
from labeling_ui.store.store import Store
from labeling_ui.web.context import Desk
from labeling_ui.web.login.accounts import (
    CodeNeededError,
    LoginLimit,
    Session,
    device_mark,
    has_account,
    knows_device,
    log_in,
)
from labeling_ui.web.proxies import ProxyMiddleware
from labeling_ui.web.refusals import malformed, unavailable
from labeling_ui.web.routes.api import DEVICE_DAYS, LoginWithCode, set_cookie, set_cookies
from labeling_ui.web.security import Guard

DOOR_COOKIE = "tiebreak_door"
"""The device cookie of the common login page: see `accounts.device_mark`."""


@dataclass(frozen=True)
class Campaign:
    """One of the campaigns of a server."""

    name: str
    """in addresses: /c/NAME/"""
    app: FastAPI

    @property
    def desk(self) -> Desk:
        """Its store and its pages' settings."""
        desk: Desk = self.app.state.desk
        return desk


@dataclass(frozen=True)
class Door:
    """The context of the common login page."""

    campaigns: Sequence[Campaign]
    page: PageConfig
    limit: LoginLimit


def path_of(name: str) -> str:
    """The path of a campaign, below the server's own."""
    return f"/c/{name}"


class CampaignServer:
    """The application of several campaigns: passes each request to its campaign, or to the common login page."""

    def __init__(self, campaigns: Sequence[Campaign], page: PageConfig, limit: LoginLimit) -> None:
        """`page`: the login page's settings; its prefix is the path that the server is under."""
        self._prefix = page.prefix
        self._door = build_door(campaigns, page, limit)
        self._apps = [campaign.app for campaign in campaigns]
        # The headers of trusted proxies are already applied: see `server.run_server`.
        self._campaigns: Mapping[str, ASGIApp] = {
            one.name: ProxyMiddleware(one.app, (), page.prefix + path_of(one.name)) for one in campaigns
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or the server's start and end."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        path: str = scope["path"].removeprefix(self._prefix)
        name, _, rest = path.removeprefix("/c/").partition("/")
        app = self._campaigns.get(name) if path.startswith("/c/") else None
        if app is None:
            await self._door(scope, receive, send)
            return
        below = f"{path_of(name)}/".encode()
        raw: bytes = (scope.get("raw_path") or scope["path"].encode()).removeprefix(self._prefix.encode())
        if not raw.startswith(below):  # /c/NAME, or a name with escapes, which nobody needs
            await RedirectResponse(f"{self._prefix}{path_of(name)}/", status_code=307)(scope, receive, send)
            return
        inner = {**scope, "path": f"/{rest}", "raw_path": b"/" + raw.removeprefix(below), "root_path": ""}
        await app(inner, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Start and end all campaigns with the server."""
        async with contextlib.AsyncExitStack() as stack:
            await receive()
            for app in (*self._apps, self._door):
                await stack.enter_async_context(app.router.lifespan_context(app))
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


def build_door(campaigns: Sequence[Campaign], page: PageConfig, limit: LoginLimit) -> FastAPI:
    """The application of everything outside the campaigns: the login page and the health checks."""
    app = FastAPI(title="Tiebreak", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.door = Door(campaigns, page, limit)
    app.add_middleware(Guard, page=page, has_campaign=False)
    app.include_router(router)
    app.add_exception_handler(RequestValidationError, malformed)
    for failure in (SQLAlchemyError, OSError):
        app.add_exception_handler(failure, unavailable)
    mount_login(app, page)
    return app


router = APIRouter()


@router.get("/")
def home(request: Request) -> RedirectResponse:
    """The login page."""
    return RedirectResponse(f"{_door(request).page.prefix}/login/")


@router.get("/healthz")
def alive() -> dict[str, bool]:
    """The process answers."""
    return {"ok": True}


@router.get("/readyz")
@router.get("/api/health")
def ready(request: Request) -> JSONResponse:
    """Whether every campaign's store answers."""
    answers = {campaign.name: _answers(campaign.desk.store) for campaign in _door(request).campaigns}
    fine = all(answers.values())
    return JSONResponse({"ok": fine}, status_code=200 if fine else 503)


def _answers(store: Store) -> bool:
    try:
        store.head()
    except Exception:  # noqa: BLE001 - whatever it is, the store does not answer
        return False
    return True


@router.post("/api/login")
def login(request: Request, response: Response, body: LoginWithCode) -> dict[str, list[dict[str, str]]]:
    """Start a session in every campaign with this account. Wrong names, passwords and codes get one reply."""
    door = _door(request)
    address, name = request.client.host if request.client else "", composed(body.username)
    stores = [campaign.desk.store for campaign in door.campaigns]
    mark = request.cookies.get(DOOR_COOKIE, "")
    device = mark if mark and any(knows_device(store, name, mark) for store in stores) else ""
    crowded = door.limit.is_crowded(address)
    if not door.limit.attempt(address, name, device=device, exists=any(has_account(one, name) for one in stores)):
        raise HTTPException(429, "too many attempts: wait five minutes")
    sessions, lacks_code = _log_in(door, name, body, crowded=crowded)
    if sessions or lacks_code:
        door.limit.forgive(address, name, device=device)
    if not sessions and lacks_code:
        raise HTTPException(428, "Enter the code that your authenticator app shows.")
    if not sessions:
        raise HTTPException(401, "Wrong name, password or code." if body.code else "Wrong name or password.")
    for campaign, session in sessions:
        set_cookies(campaign.desk, session, request, response)
    mark = device_mark(sessions[0][0].desk.store, name)
    set_cookie(request, response, DOOR_COOKIE, mark, seconds=DEVICE_DAYS * 86_400, prefix=door.page.prefix)
    return {"campaigns": [_as_listed(campaign, session) for campaign, session in sessions]}


def _log_in(
    door: Door, name: str, body: LoginWithCode, *, crowded: bool
) -> tuple[list[tuple[Campaign, Session]], bool]:
    """The sessions, and whether a campaign lacks a code. Every store checks the password, so that the
    response time reveals nothing."""
    sessions: list[tuple[Campaign, Session]] = []
    lacks_code = False
    for campaign in door.campaigns:
        try:
            session = log_in(campaign.desk.store, name, body.password, code=body.code, crowded=crowded)
        except CodeNeededError:
            lacks_code = True
            continue
        if session is not None:
            sessions.append((campaign, session))
    return sessions, lacks_code


def _as_listed(campaign: Campaign, session: Session) -> dict[str, str]:
    about = {"name": campaign.name, "title": campaign.desk.page.title, "role": session.rater.role}
    return {**about, "path": f"{path_of(campaign.name)}/rate/"}


def _door(request: Request) -> Door:
    door: Door = request.app.state.door
    return door
