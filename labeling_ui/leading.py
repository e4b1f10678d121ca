"""What a lead does on /lead/, from the command line.

tiebreak label documents [--document guidelines|consent] [--publish FILE --version V] --store URL
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from labeling_ui.configuration import read_store_arguments
from labeling_ui.store.leads.documents import MAX_VERSION_CHARACTERS, Document
from labeling_ui.store.store import Store, iso_time
from tiebreak.config import Section
from tiebreak.errors import ConfigError
from tiebreak.terminal import has_colours, show, titled_table


class DocumentArguments(Section):
    """`tiebreak label documents`"""

    store: str
    """URL of the label store, which may be in use"""
    document: Document = "guidelines"
    """the document to list or publish"""
    publish: str | None = None
    """a .md file to publish: all raters must accept it before their next judgment"""
    version: str = Field(default="", max_length=MAX_VERSION_CHARACTERS, pattern="^[^#]*$")
    """name of the new version"""
    as_json: bool = Field(default=False, alias="json")
    """print one JSON document"""


def documents(words: Sequence[str]) -> None:
    """`tiebreak label documents`"""
    arguments = read_store_arguments(DocumentArguments, words, "label documents")
    store, document = Store.open(arguments.store), arguments.document
    if arguments.publish is not None:
        if not arguments.version:
            raise ConfigError("label documents: name the new --version")
        made = store.publish(document, arguments.version, _read_text(arguments.publish))
        print(f"published the {document}, version {made.version}: raters must accept it before their next judgment")
        return
    accepted, names = store.acceptances(document), {one.id: one.name for one in store.raters()}
    rows = [
        {
            "version": one.version,
            "at": iso_time(one.at_ms),
            "by": names.get(one.by_id or "") or ("the configuration" if one.configured else "the command line"),
            "accepted": accepted.get(one.version, 0),
        }
        for one in store.publications(document)
    ]
    _print_rows(rows, arguments.as_json, left=(0, 1, 2))


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"label documents: cannot read {path}: {error}") from error


def _print_rows(rows: Sequence[dict[str, Any]], as_json: bool, left: Sequence[int]) -> None:
    if as_json:
        print(json.dumps(rows, indent=2))
    elif rows:
        cells = [[str(cell) if cell not in (None, "") else "-" for cell in row.values()] for row in rows]
        show(*titled_table(tuple(rows[0]), cells, left=left, colours=has_colours(sys.stdout)))
    else:
        print("none")


COMMANDS: dict[str, Callable[[list[str]], None]] = {"documents": documents}
