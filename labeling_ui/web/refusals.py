"""Replies to requests that were refused."""

from __future__ import annotations

import sys

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse


def printable(text: str) -> str:
    """`text` as any reply can carry it: surrogate halves are replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")[:1_000]


def refused(_request: Request, error: Exception) -> JSONResponse:
    """The reply to a request that the store or a route refused, with the reason."""
    return JSONResponse({"detail": printable(str(error))}, status_code=409)


def malformed(_request: Request, error: Exception) -> JSONResponse:
    """FastAPI's validation errors, without the values: a password must not appear in a reply."""
    faults = error.errors() if isinstance(error, RequestValidationError) else []
    return JSONResponse(
        {"detail": [printable(f"{fault['loc'][-1]}: {fault['msg']}") for fault in faults]}, status_code=422
    )


def unavailable(_request: Request, error: Exception) -> JSONResponse:
    """A full disk or a locked store: nothing was stored, and the page keeps the judgment and retries."""
    cause = error.__cause__ or error
    print(f"error: cannot use the label store: {cause}", file=sys.stderr, flush=True)
    return JSONResponse({"detail": "the label store is not available: nothing was stored"}, status_code=503)


def failed() -> JSONResponse:
    """The reply to a request on which the server has failed, by an error of its own."""
    return JSONResponse({"detail": "the server has failed on this request"}, status_code=500)
