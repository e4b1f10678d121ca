"""Refusals as a person sees them whose browser goes to an address: a small page instead of JSON.

Whatever answers, the router, Gradio or the guard, `ErrorPages` replaces an error's reply if the request takes HTML, which
browsers send for addresses that people open and the pages' own requests never do. Programs get the JSON. A page has no
scripts, so it has the strict Content-Security-Policy of every other reply; its theme is the browser's.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

from labeling_ui.pages import FILES, PageConfig
from labeling_ui.web.refusals import printable

STYLE = (FILES / "error.css").read_text(encoding="utf-8")
_WITHOUT_DETAIL = (401, 404, 405, 429, 500, 503)
"""Statuses whose pages say as much as their replies' details."""
_WRONG_HOST = 421
"""Misdirected Request: the link back would lead to the same refusal."""
_RIGHT_TO_LEFT = re.compile(r"(ar|arc|ckb|dv|fa|he|ks|ps|sd|ug|ur|yi)(-|$)")
_BODY_HEADERS = ("content-type", "content-length", "content-encoding")


def takes_html(request: Request) -> bool:
    """Whether a browser asks for something to show to a person."""
    return "text/html" in request.headers.get("accept", "")


class ErrorPages:
    """Passes a reply on, an error's as a page. An error that is a page already stays as it is."""

    def __init__(self, send: Send, send_page: Send, page: PageConfig, home: str) -> None:
        """`send_page`: how the page is sent on; `home`: the address, below the prefix, that it leads back to."""
        self._send, self._send_page, self._page, self._home = send, send_page, page, home
        self._start: dict[str, Any] = {}
        self._body = bytearray()

    async def __call__(self, message: Message) -> None:
        """Take a part of the reply."""
        if message["type"] == "http.response.start" and _is_error(message):
            self._start = dict(message)
        elif self._start and message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._finish()
        else:
            await self._send(message)

    async def _finish(self) -> None:
        status = self._start["status"]
        body = page_of_status(self._page, status, _detail(self._body), self._home).encode()
        headers = MutableHeaders(
            raw=[one for one in self._start["headers"] if one[0].decode("latin-1") not in _BODY_HEADERS]
        )
        headers["Content-Type"] = "text/html; charset=utf-8"
        headers["Content-Length"] = str(len(body))
        await self._send_page({**self._start, "headers": headers.raw})
        await self._send_page({"type": "http.response.body", "body": body})


def _is_error(start: Message) -> bool:
    kind = MutableHeaders(raw=list(start["headers"])).get("content-type", "")
    return bool(start["status"] >= 400 and not kind.startswith("text/html"))


def _detail(body: bytes | bytearray) -> str:
    """The reason that a reply gives; empty if it gives none."""
    try:
        reply = json.loads(body)
    except ValueError:
        return ""
    found = reply.get("detail", "") if isinstance(reply, dict) else ""
    return "; ".join(map(str, found)) if isinstance(found, list) else str(found)


def page_of_status(page: PageConfig, status: int, detail: str, home: str) -> str:
    """The page of an error.

    Args:
        detail: the reason; left out where the status says as much.
        home: the address, below the prefix, that the page leads back to.
    """
    words = page.words
    key = f"error.{status}" if f"error.{status}" in words else "error.500" if status > 500 else "error.other"
    return build_page(
        words,
        words[key],
        detail="" if status in _WITHOUT_DETAIL else detail,
        then=words[f"{key}.then"],
        link="" if status == _WRONG_HOST else f"{page.prefix}{home}",
        link_text=words["error.home"],
        number=str(status),
    )


def build_page(
    words: Mapping[str, str],
    title: str,
    *,
    detail: str = "",
    then: str = "",
    link: str = "",
    link_text: str = "",
    number: str = "",
    at_once: bool = False,
) -> str:
    """A page of a few sentences, as HTML.

    Args:
        title: the heading.
        then: what to do next.
        number: the error's status.
        at_once: whether the browser follows the link by itself.
    """
    heading, to = html.escape(printable(title)), html.escape(link)
    direction = "rtl" if _RIGHT_TO_LEFT.match(words["language"]) else "ltr"
    parts = (
        f'<p class="number" dir="ltr">{html.escape(number)}</p>' if number else "",
        f'<h1 dir="auto">{heading}</h1>',
        f'<p dir="auto">{html.escape(_as_sentence(printable(detail)))}</p>' if detail else "",
        f"<p>{html.escape(then)}</p>" if then else "",
        f'<p><a href="{to}">{html.escape(link_text)}</a></p>' if link else "",
    )
    refresh = f'<meta http-equiv="refresh" content="0;url={to}">' if at_once else ""
    return (
        f'<!doctype html>\n<html lang="{html.escape(words["language"])}" dir="{direction}">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"{refresh}<title>{heading}</title><style>\n{STYLE}</style></head>\n"
        f"<body><main>{''.join(parts)}</main></body>\n</html>\n"
    )


def _as_sentence(text: str) -> str:
    """
    >>> _as_sentence("this page is for leads")
    'This page is for leads.'
    """
    return f"{text[0].upper()}{text[1:]}{'' if text[-1] in '.!?' else '.'}" if text else ""
