"""The Content-Security-Policy of replies: of a page's scripts, only those that the server wrote run.

Gradio's template has inline scripts. The policy of a page names the hashes of those in that very reply, so that a script
that gets into the page later, whatever field it came through, does not run. `unsafe-eval` stays on the pages: gr.HTML makes
functions of the page's template and script. Our own scripts never evaluate text as code.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections.abc import Iterable
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

POLICY = "Content-Security-Policy"
_INLINE = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE)
_COMPRESSED_FROM_BYTES = 1_000


def content_policy(scripts: Iterable[str] = ()) -> str:
    """The policy of a reply; `scripts`: further sources of scripts, which only pages have."""
    return "; ".join(
        (
            "default-src 'self'",
            " ".join(("script-src 'self'", *scripts)),
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


def inline_scripts(page: bytes) -> list[str]:
    """The hashes of a page's inline scripts, as a policy names them (CSP level 2)."""
    digests = (hashlib.sha256(script).digest() for script in _INLINE.findall(page))
    return [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]


class WholePage:
    """Holds a page's reply until it is complete, then sends it with its policy. It is compressed here if the browser
    takes gzip; its input must be uncompressed.
    """

    def __init__(self, send: Send, headers: dict[str, str], accepts: str) -> None:
        """`headers`: those that are added to the reply."""
        self._send, self._headers, self._accepts = send, headers, accepts
        self._start: dict[str, Any] = {}
        self._body = bytearray()

    async def __call__(self, message: Message) -> None:
        """Take a part of the reply."""
        if message["type"] == "http.response.start":
            self._start = dict(message)
            return
        self._body += message.get("body", b"")
        if not message.get("more_body", False):
            await self._finish()

    async def _finish(self) -> None:
        body, reply_headers = bytes(self._body), MutableHeaders(raw=list(self._start["headers"]))
        if reply_headers.get("content-type", "").startswith("text/html"):
            self._headers[POLICY] = content_policy(["'unsafe-eval'", *inline_scripts(body)])
        if "gzip" in self._accepts and len(body) >= _COMPRESSED_FROM_BYTES:
            body = gzip.compress(body, compresslevel=5)
            reply_headers["Content-Encoding"] = "gzip"
            reply_headers.add_vary_header("Accept-Encoding")
        if body:
            reply_headers["Content-Length"] = str(len(body))
        await self._send({**self._start, "headers": reply_headers.raw})
        await self._send({"type": "http.response.body", "body": body})
