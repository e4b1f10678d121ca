"""The pages of the configuration reference, and checks that MkDocs leaves out: the links of the Markdown files beside
docs/, and requests to other hosts.

`mkdocs build --strict` turns each warning into a failure.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tiebreak.command.table import COMMANDS

INDEX = "configuration/index.md"
ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_LOADED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//[^\">\s]+[^>]*>")
_log = logging.getLogger("mkdocs.hooks.tiebreak")


def on_config(config: Any) -> Any:
    """Lists the configuration reference's pages, one for each command, in the order of `tiebreak --help`."""
    for pages in _lists_in(config.nav):
        if INDEX in pages:
            named = {name: f"configuration/{name}.md" for name in COMMANDS}
            pages += [{name: page} for name, page in named.items() if (ROOT / "docs" / page).is_file()]
    return config


def _lists_in(pages: Any) -> Iterator[list[Any]]:
    if isinstance(pages, list):
        yield pages
        for page in pages:
            yield from _lists_in(page)
    elif isinstance(pages, dict):
        for inner in pages.values():
            yield from _lists_in(inner)


def on_pre_build(**_: Any) -> None:
    """Before pages are read: check the links of Markdown files that are not pages."""
    for name in OUTSIDE:
        for target in broken_links(ROOT / name):
            _log.warning("%s: no such file or heading: %s", name, target)


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Check that a finished page loads nothing from another host."""
    for tag in _LOADED.findall(output):
        if 'rel="canonical"' not in tag:
            _log.warning("%s loads from another host: %s", page.file.src_path, tag)
    return output


def broken_links(file: Path) -> Iterator[str]:
    """The relative links of a Markdown file that lead nowhere."""
    for target in _LINK.findall(_without_code(file.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        found = file.parent / path if path else file
        if not found.exists() or (anchor and anchor not in headings(found)):
            yield target


def headings(file: Path) -> set[str]:
    """The anchors of a Markdown file's headings, as GitHub and MkDocs make them."""
    titles = re.findall(r"^#+ +(.+)$", _without_code(file.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
