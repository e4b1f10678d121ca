"""The web application: an HTTP API over the store, and the pages as Gradio Blocks.

GET  /rate/  /lead/  /login/        the pages
/api/…                              the raters' API (`api`, `talk_api`), /api/lead/… the leads' (`lead_api`)
GET  /healthz  /readyz  /api/health  whether the server answers, and its store does, for whatever watches over it
GET  /metrics                       figures for Prometheus, with a token (`metrics`)
GET  /openapi.json                  the API's description
"""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp

from labeling_ui.database.errors import RefusedError, StoreError
from labeling_ui.pages import FILES, PageConfig, mount_pages, typesetting
from labeling_ui.quality.aggregate import AggregationConfig
from labeling_ui.quality.duels import LiveDuels
from labeling_ui.quality.figures_process import LatestFigures
from labeling_ui.quality.pulls import LivePulls
from labeling_ui.store.store import Store
from labeling_ui.web.context import LOCAL_RATER, CurrentSession, Desk, DeskOf, Writer
from labeling_ui.web.login.accounts import LoginLimit, needs_login
from labeling_ui.web.mail.sending import Mailer
from labeling_ui.web.malloc_arenas import share_arenas
from labeling_ui.web.metrics import Metrics, may_read
from labeling_ui.web.proxies import ProxyMiddleware
from labeling_ui.web.refusals import malformed, refused, unavailable
from labeling_ui.web.routes import (
    api,
    documents_api,
    duels_api,
    export_api,
    items_api,
    lead_api,
    mail_api,
    media_api,
    notes_api,
    talk_api,
    upload_api,
    work_api,
)
from labeling_ui.web.security import Guard
from tiebreak.errors import ConfigError, DataError

ROUTERS = (
    api.router,
    talk_api.router,
    documents_api.router,
    lead_api.router,
    items_api.router,
    upload_api.router,
    work_api.router,
    export_api.router,
    media_api.router,
    notes_api.router,
    duels_api.router,
    mail_api.router,
)
MATH_FONT = FILES / "fonts" / "noto-sans-math.woff2"
KEEP_ALIVE_SECONDS = 75
"""Raters think longer than uvicorn's 5 seconds, and reconnecting costs two round trips, three with TLS."""


def create_app(
    store: Store,
    page: PageConfig,
    aggregation: AggregationConfig | None = None,
    limit: LoginLimit | None = None,
    oidc: Any = None,
    mail: Mailer | None = None,
) -> FastAPI:
    """The application of a campaign.

    Args:
        aggregation: how exports from the page aggregate votes; None: with defaults.
        limit: on wrong passwords, if several campaigns of a server share it.
        oidc: the identity provider (`OidcConfig`), if accounts may come from one.
        mail: sends e-mail to raters who asked for it.
    """
    figures = LatestFigures(store)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        figures.begin()
        typesetting.warm()
        yield
        figures.close()

    app = FastAPI(title=f"Tiebreak: {page.title}", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    measure = aggregation or AggregationConfig()
    app.state.desk = Desk(store, page, Writer(store), figures, measure, limit or LoginLimit(), mail)
    store.configure_document("guidelines", page.guideline_version, page.guidelines)
    store.configure_document("consent", page.consent_version, page.consent)
    if not needs_login(store):
        store.add_rater(LOCAL_RATER, rater_id=LOCAL_RATER)
    app.state.provider = None
    if oidc is not None:
        from labeling_ui.web.routes.linking import router as linking_router  # need the extra
        from labeling_ui.web.routes.oidc import Provider
        from labeling_ui.web.routes.oidc import router as oidc_router

        app.state.provider = Provider(oidc)
        app.include_router(oidc_router)
        app.include_router(linking_router)
    app.state.metrics = Metrics()
    app.state.duels = LiveDuels(store, page.no_difference)
    app.state.pulls = LivePulls(store, page.pulls)
    app.add_middleware(Guard, page=page, metrics=app.state.metrics)
    _add_routes(app)
    _add_refusals(app)
    mount_pages(app, page)
    return app


def _add_routes(app: FastAPI) -> None:
    for router in ROUTERS:
        app.include_router(router)
    for path, handler in (
        ("/", home),
        ("/manifest.json", web_manifest),
        ("/favicon.ico", icon),
        ("/healthz", alive),
        ("/readyz", health),
        ("/api/health", health),
        ("/metrics", metrics),
        ("/fonts/noto-sans-math.woff2", math_font),
        ("/openapi.json", describe_api),
    ):
        app.add_api_route(path, handler, include_in_schema=False)


def _add_refusals(app: FastAPI) -> None:
    for refusal in (RefusedError, StoreError, ConfigError, DataError):
        app.add_exception_handler(refusal, refused)
    app.add_exception_handler(RequestValidationError, malformed)
    for failure in (SQLAlchemyError, OSError):
        app.add_exception_handler(failure, unavailable)


def home(desk: DeskOf) -> RedirectResponse:
    """Redirects the bare address."""
    return RedirectResponse(f"{desk.page.prefix}/rate/")


def describe_api(request: Request, _session: CurrentSession) -> dict[str, Any]:
    """The API's description, for whoever has logged in."""
    app: FastAPI = request.app
    return app.openapi()


def web_manifest(desk: DeskOf) -> dict[str, str]:
    """Gradio's pages request one at the root."""
    return {"name": desk.page.title, "start_url": f"{desk.page.prefix}/rate/", "display": "standalone"}


def icon() -> Response:
    """None; browsers request one."""
    return Response(status_code=204)


def math_font() -> Response:
    """The font of formulas, for systems that have none; the pages ask for it, not their users."""
    return FileResponse(MATH_FONT, media_type="font/woff2", headers={"Cache-Control": "public, max-age=31536000"})


def health(desk: DeskOf) -> dict[str, bool]:
    """Reads one row of the store; a store that does not answer makes the reply 503."""
    desk.store.head()
    return {"ok": True}


def alive() -> dict[str, bool]:
    """The process answers. It does not read the store: a store that fails is no reason to restart the process."""
    return {"ok": True}


def metrics(request: Request, desk: DeskOf) -> Response:
    """Figures for Prometheus, for those who have the token."""
    allowed = may_read(request.headers.get("authorization", ""))
    if not allowed:
        return JSONResponse({"detail": "not found"}, status_code=404 if allowed is None else 401)
    try:
        status = desk.store.status()
    except (SQLAlchemyError, OSError):
        status = None
    counted: Metrics = request.app.state.metrics
    text = "\n".join([*counted.lines(status), ""])
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def run_server(app: ASGIApp, listening: socket.socket, proxies: Sequence[str] = (), prefix: str = "") -> None:
    """Serve until Ctrl-C, SIGTERM or SIGHUP.

    Args:
        proxies: addresses whose `X-Forwarded-*` headers are trusted.
        prefix: the path that the server is under, such as /label.
    """
    share_arenas()
    config = uvicorn.Config(
        ProxyMiddleware(app, proxies, prefix),
        proxy_headers=False,
        loop="asyncio",  # independent of what else is installed
        http="h11",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=3,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    server = uvicorn.Server(config)
    for number in (signal.SIGTERM, signal.SIGHUP):
        # uvicorn raises what it has caught once more when it has ended: here, that must not end the process, which
        # still closes the store
        signal.signal(number, server.handle_exit)
    server.run(sockets=[listening])
