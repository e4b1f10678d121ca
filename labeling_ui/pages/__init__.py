"""The pages: Gradio Blocks, each a gr.HTML with its own script over the HTTP API.

A page is `NAME.html`, `NAME.css` and the scripts that `SCRIPTS` lists for it, joined. Every word a reader sees is in
`words.json`: `[[key]]` in the HTML, `words[key]` in the scripts; a campaign in another language gives its own file.
"""

from __future__ import annotations

import html
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import gradio as gr
from fastapi import FastAPI

from labeling_ui.pages.safe_markup import render
from labeling_ui.store.answers import FLAGS, SKIP_REASONS
from tiebreak.errors import ConfigError

FILES = Path(__file__).parent
SCRIPTS = {
    "login": ("call.js", "login.js"),
    "rate": ("call.js", "outbox.js", "pair.js", "ranking.js", "work.js", "talk.js", "rate.js"),
    "lead": ("call.js", "disputes.js", "lead.js"),
}
_KEY = re.compile(r"\[\[([\w.-]+)\]\]")


def load_words(path: str | None = None) -> dict[str, str]:
    """The pages' words: English, and in their place those of a .json file.

    Raises:
        ConfigError: the file cannot be read, or names a key that no page has.
    """
    words: dict[str, str] = json.loads(_text("words.json"))
    if not path:
        return words
    try:
        given: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"words: cannot read {path}: {error}") from error
    unknown = sorted(set(given) - set(words)) if isinstance(given, dict) else ["no object of words"]
    if unknown or not all(isinstance(word, str) for word in given.values()):
        raise ConfigError(
            f"words: {path} must hold texts under the keys of {FILES / 'words.json'}: {', '.join(unknown[:5])}"
        )
    words.update(given)
    return words


@dataclass(frozen=True)
class PageConfig:
    """What the pages show beside the pairs."""

    title: str
    guidelines: str = ""
    """Markdown"""
    guideline_version: str = ""
    consent: str = ""
    """what raters agree to before they begin: Markdown"""
    consent_version: str = ""
    show_gold_agreement: bool = False
    """whether raters see how often they agree with pairs whose answer is known"""
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "::1")
    """names under which the server may be called: a page elsewhere that points its own name here is refused; () for
    any"""
    aspects: tuple[str, ...] = ()
    """asked beside the whole judgment, each on the same bar"""
    reason: bool = True
    """whether a reason is asked for"""
    policies: tuple[str, ...] = ()
    """with whom raters converse; () where they do not"""
    system: str = ""
    """the system prompt of those conversations"""
    words: dict[str, str] = field(default_factory=load_words)


def mount_pages(app: FastAPI, page: PageConfig) -> None:
    """/rate, /lead and /login: separate mounts, so that each can be closed by itself."""
    for name in SCRIPTS:
        gr.mount_gradio_app(
            app, build_page(name, page), path=f"/{name}", show_error=False, footer_links=[], run_history=False,
            ssr_mode=False, theme=build_theme(), css=_text("desk.css") + _text(f"{name}.css"),
        )  # fmt: skip


def build_page(name: str, page: PageConfig) -> gr.Blocks:
    """One gr.HTML that fills the window; its script finds what `describe_page` gives as `props.value`."""
    with gr.Blocks(title=page.title, analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(
            value=describe_page(page),
            html_template=fill_words(_text(f"{name}.html"), page.words),
            js_on_load="".join(_text(script) for script in SCRIPTS[name]),
            apply_default_css=False,
            elem_id="desk",
        )
    return blocks


def describe_page(page: PageConfig) -> dict[str, Any]:
    """What the scripts know of the campaign."""
    return {
        "title": page.title,
        "guidelines": render(page.guidelines) if page.guidelines else "",
        "guideline_version": page.guideline_version,
        "consent": render(page.consent) if page.consent else "",
        "aspects": list(page.aspects),
        "reason": page.reason,
        "converse": bool(page.policies),
        "flags": list(FLAGS),
        "skip_reasons": list(SKIP_REASONS),
        "words": page.words,
    }


def fill_words(template: str, words: dict[str, str]) -> str:
    """`[[key]]` in a page, replaced by its word."""
    return _KEY.sub(lambda match: html.escape(words[match.group(1)]), template)


def build_theme() -> gr.themes.Base:
    """Gradio's base theme with the system's own fonts: nothing is fetched."""
    return gr.themes.Base(
        font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["ui-monospace", "Consolas", "monospace"]
    )


def _text(name: str) -> str:
    return (FILES / name).read_text(encoding="utf-8")
