"""A self-contained HTML page: style and script are inline, and its content policy allows no request.

Text from prompts and models is shown as plain text, never as HTML or Markdown; see tiebreak.page.markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources

from tiebreak.page.markup import Markup, el

Section = tuple[str, str, Markup | None]
"""A section's id, title and content; None leaves it out."""


def build_document(
    title: str,
    header: Markup,
    sections: Sequence[Section],
    data: object,
    script: str = "",
    *,
    style: str = "",
    version: str = "",
) -> str:
    """A page: header, a list of its sections, the sections, and `data` as JSON for programs.

    Args:
        header: the page's top; links to the sections follow it.
        script: optional: the page must read well without it.
        style: after that of all pages.
        version: of a page that a server keeps up to date: its script may ask that server for the newest one.
    """
    kept = [(key, name, body) for key, name, body in sections if body]
    links = el("nav", [el("a", name, href=f"#{key}") for key, name, _ in kept], aria_label="Sections")
    style = Markup(resources.files("tiebreak.page").joinpath("page.css").read_text(encoding="utf-8") + style)
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=_content_policy(style, script, live=bool(version))),
        el("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name_="referrer", content="no-referrer"),
        el("link", rel="icon", href="data:,"),
        el("title", title),
        el("style", style),
    )
    body = el(
        "body",
        el("main", el("header", header), links, [el("section", el("h2", t), b, id=k) for k, t, b in kept]),
        el("script", embedded_json(data), type="application/json", id="report"),
        el("script", Markup(script)) if script else None,
    )
    return f"<!doctype html>\n{el('html', head, body, lang='en', data_live=version or None)}\n"


def _content_policy(style: str, script: str, *, live: bool) -> str:
    """Our own style and script by their hashes, and nothing else; if live, requests to its own server."""
    own = "connect-src 'self'; " if live else ""
    style_hash, script_hash = (base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in (style, script))
    return (
        f"default-src 'none'; style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'; img-src data:; "
        f"{own}base-uri 'none'; form-action 'none'"
    )


def embedded_json(value: object) -> Markup:
    """JSON that is safe inside a script element: no `<`, `>` or `&`, so nothing in it can close the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
