"""The pages: Gradio Blocks, each a gr.HTML with its own script over the HTTP API."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import gradio as gr
from fastapi import FastAPI

from labeling_ui.markup import render

FILES = Path(__file__).parent


@dataclass(frozen=True)
class PageConfig:
    """What the pages show beside the pairs."""

    title: str
    guidelines: str = ""
    """Markdown"""
    guideline_version: str = ""
    consent: str = ""
    """Markdown"""
    consent_version: str = ""
    show_gold_agreement: bool = False
    """raters see how far they agree with gold"""
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "::1")
    """names under which the server may be called: a page elsewhere that points its own name here is refused; () for
    any"""


def mount_pages(app: FastAPI, page: PageConfig) -> None:
    """/rate, /lead and /login: separate mounts, so that each can be closed by itself."""
    shown = {
        "title": page.title,
        "guidelines": render(page.guidelines) if page.guidelines else "",
        "guideline_version": page.guideline_version,
    }
    for name in ("rate", "lead", "login"):
        gr.mount_gradio_app(
            app, build_page(name, shown), path=f"/{name}", show_error=False, footer_links=[], run_history=False,
            ssr_mode=False, theme=build_theme(), css=_text("desk.css") + _text(f"{name}.css"),
        )  # fmt: skip


def build_page(name: str, shown: dict[str, str]) -> gr.Blocks:
    """One gr.HTML that fills the window; its script finds `shown` as `props.value`."""
    with gr.Blocks(title=shown["title"], analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(
            value=shown,
            html_template=_text(f"{name}.html"),
            js_on_load=_text("call.js") + _text(f"{name}.js"),
            apply_default_css=False,
            elem_id="desk",
        )
    return blocks


def build_theme() -> gr.themes.Base:
    """Gradio's base theme with the system's own fonts: nothing is fetched."""
    return gr.themes.Base(
        font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["ui-monospace", "Consolas", "monospace"]
    )


def _text(name: str) -> str:
    return (FILES / name).read_text(encoding="utf-8")
