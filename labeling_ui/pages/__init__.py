"""The pages: Gradio Blocks, each one gr.HTML whose script calls the HTTP API.

A page is `NAME.html`, `NAME.css` and its scripts in `SCRIPTS`, joined. All visible text is in `words.json`: `[[key]]`
in the HTML, `words[key]` in the scripts. A campaign in another language supplies its own file.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import gradio as gr
from fastapi import FastAPI

from labeling_ui.quality.pull_reports import PullReports
from labeling_ui.store.answers import SKIP_REASONS
from labeling_ui.store.leads.documents import identify_text
from labeling_ui.store.work.asking import Questionnaire, describe_asked
from tiebreak.errors import ConfigError
from tiebreak.measures.sequential import SMALLEST_GAP

FILES = Path(__file__).parent
SCRIPTS = {
    "login": ("call.js", "strength.js", "login.js"),
    "rate": (
        "call.js",
        "outbox.js",
        "strength.js",
        "keys.js",
        "media.js",
        "reading.js",
        "asking.js",
        "marking.js",
        "pair.js",
        "ranking.js",
        "work.js",
        "notes.js",
        "mail.js",
        "own.js",
        "linking.js",
        "talk.js",
        "rate.js",
    ),
    "lead": (
        "call.js",
        "keeping.js",
        "media.js",
        "curves.js",
        "disputes.js",
        "batches.js",
        "files.js",
        "duels.js",
        "pulls.js",
        "items.js",
        "people.js",
        "documents.js",
        "erasing.js",
        "answering.js",
        "lead.js",
    ),
}
_KEY = re.compile(r"\[\[([\w.-]+)\]\]")


def load_words(path: str | None = None) -> dict[str, str]:
    """The pages' words in English, overridden by those of a .json file.

    Raises:
        ConfigError: the file cannot be read, or has an unknown key.
    """
    words: dict[str, str] = json.loads(_text("words.json"))
    if not path:
        return words
    try:
        overrides: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"words: cannot read {path}: {error}") from error
    if not isinstance(overrides, dict) or not all(isinstance(word, str) for word in overrides.values()):
        raise ConfigError(f"words: {path} must be a JSON object of strings, with keys of {FILES / 'words.json'}")
    if unknown := sorted(set(overrides) - set(words)):
        raise ConfigError(f"words: {path}: unknown keys {', '.join(unknown[:5])}; see {FILES / 'words.json'}")
    words.update(overrides)
    return words


@dataclass(frozen=True)
class PageConfig:
    """The pages' contents other than pairs."""

    title: str
    guidelines: str = ""
    """the configuration's guidelines, in Markdown; the current ones are in the store"""
    guideline_version: str = ""
    """the lead's name for this version"""
    consent: str = ""
    """consent text, accepted before the first judgment: Markdown"""
    consent_version: str = ""
    show_gold_agreement: bool = False
    """whether raters see their own gold accuracy"""
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "::1")
    """host names that requests may use, against DNS rebinding; (): any"""
    goal_per_day: int | None = None
    """a rater's goal of judgments per day"""
    unsent_in_browser: bool = True
    """whether the browser may store judgments and drafts that the server does not have yet"""
    break_after_minutes: int | None = None
    """minutes of work without a break after which the page suggests one"""
    security_log: str | None = None
    """file of logins and refusals"""
    second_factor_for_leads: bool = False
    """whether those who see the lead's page need a second factor"""
    asked: Questionnaire = field(default_factory=Questionnaire)
    """asked beside the vote"""
    reason: bool = True
    """whether to ask for a reason"""
    policies: tuple[str, ...] = ()
    """policies that raters converse with; (): no conversations"""
    system: str = ""
    """system prompt of the conversations"""
    oidc: str = ""
    """text of the button that logs in through an identity provider; empty: no button"""
    words: dict[str, str] = field(default_factory=load_words)
    no_difference: float = SMALLEST_GAP
    """a win rate of a duel within this distance of one half counts as no difference"""
    pulls: PullReports = field(default_factory=PullReports)
    """reports of reward models, for the lead's page"""
    prefix: str = ""
    """path of the pages behind a proxy, such as /label; empty: none"""

    @property
    def guidelines_id(self) -> str:
        """The version with a hash of the text: what raters accept and judgments carry."""
        return identify_text(self.guideline_version, self.guidelines)

    @property
    def consent_id(self) -> str:
        """The same of the consent."""
        return identify_text(self.consent_version, self.consent)


def mount_pages(app: FastAPI, page: PageConfig) -> None:
    """/rate, /lead and /login: separate mounts, so that each can be protected separately."""
    _mount(app, page, tuple(SCRIPTS))


def mount_login(app: FastAPI, page: PageConfig) -> None:
    """/login alone."""
    _mount(app, page, ("login",))


def _mount(app: FastAPI, page: PageConfig, names: Sequence[str]) -> None:
    for name in names:
        gr.mount_gradio_app(
            app, build_page(name, page), path=f"/{name}", show_error=False, footer_links=[], run_history=False,
            ssr_mode=False, theme=build_theme(), root_path=f"{page.prefix}/{name}" if page.prefix else None,
            css=_text("desk.css") + _text("formulas.css").replace("[[base]]", page.prefix) + _text(f"{name}.css"),
        )  # fmt: skip


def build_page(name: str, page: PageConfig) -> gr.Blocks:
    """One gr.HTML that fills the window; its script reads `describe_page`'s result as `props.value`."""
    with _Page(title=page.title, analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(
            value=describe_page(page) if name != "login" else describe_login(page),
            html_template=fill_words(_text(f"{name}.html"), page.words),
            js_on_load="".join(_text(script) for script in SCRIPTS[name]),
            apply_default_css=False,
            elem_id="desk",
        )
    return blocks


class _Page(gr.Blocks):
    """Blocks without Gradio's queue, which looks for events 1,000 times a second: these pages have none."""

    def run_startup_events(self) -> None:
        """Called when the server starts; does nothing."""
        self.is_running = True


def describe_login(page: PageConfig) -> dict[str, Any]:
    """The settings of the login page, which everybody may see."""
    return {"title": page.title, "words": page.words, "base": page.prefix, "oidc": page.oidc}


def describe_page(page: PageConfig) -> dict[str, Any]:
    """The scripts' settings, for those who have logged in."""
    return {
        **describe_login(page),
        **describe_asked(page.asked, page.words),
        "reason": page.reason,
        "break_after_minutes": page.break_after_minutes or 0,
        "unsent_in_browser": page.unsent_in_browser,
        "converse": bool(page.policies),
        "skip_reasons": list(SKIP_REASONS),
    }


def fill_words(template: str, words: dict[str, str]) -> str:
    """Replaces each `[[key]]` in a page with its word."""
    return _KEY.sub(lambda match: html.escape(words[match.group(1)]), template)


def build_theme() -> gr.themes.Base:
    """Gradio's base theme with system fonts: nothing is fetched."""
    return gr.themes.Base(
        font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["ui-monospace", "Consolas", "monospace"]
    )


def _text(name: str) -> str:
    return (FILES / name).read_text(encoding="utf-8")
