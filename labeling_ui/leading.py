"""What a lead does on /lead/, from the command line.

tiebreak label documents [--document guidelines|consent] [--publish FILE --version V] --store URL
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from labeling_ui.configuration import read_store_arguments
from labeling_ui.exchange.worksheets import audit_lines, days_table, work_table
from labeling_ui.store.leads.documents import MAX_VERSION_CHARACTERS, Document
from labeling_ui.store.raters import find_rater
from labeling_ui.store.store import Store, iso_time
from labeling_ui.store.work.standing import Standing
from tiebreak.assessments import ExportedAssessment
from tiebreak.config import Section
from tiebreak.errors import ConfigError, counted
from tiebreak.records import ExportedJudgment
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


class StandingArguments(Section):
    """`tiebreak label standing`"""

    store: str
    """URL of the label store, which may be in use"""
    rater: str = ""
    """name or id of a rater; empty: list all"""
    to: Literal["qualified", "stopped", "untested"] | None = Field(default=None, alias="set")
    """qualified: let the rater continue; stopped: give them nothing more; untested: test them again; null: only list"""
    reason: str = Field(default="", max_length=500)
    """the reason, shown on /lead/"""
    as_json: bool = Field(default=False, alias="json")
    """print one JSON document"""


class SampleArguments(Section):
    """`tiebreak label sample`"""

    store: str
    """URL of the label store, which may be in use"""
    count: int = Field(ge=1, le=1_000)
    """number of pairs to draw from those that all raters agree on"""


class ListArguments(Section):
    """`tiebreak label settled` and `inspections`"""

    store: str
    """URL of the label store, which may be in use"""
    as_json: bool = Field(default=False, alias="json")
    """print one JSON document"""


class PeriodArguments(Section):
    """`tiebreak label audit`"""

    store: str
    """URL of the label store, which may be in use"""
    output: str
    """the .csv file to write"""
    since: date = date(2000, 1, 1)
    """the first day (UTC)"""
    until: date = date(2999, 12, 31)
    """the last day"""


class WorkArguments(PeriodArguments):
    """`tiebreak label work`"""

    rate: float = Field(default=0.0, ge=0, le=1e6)
    """pay per active hour"""
    by: Literal["day", "batch"] = "day"
    """rows: one a rater and day, or one a rater, day and batch"""


def standing(words: Sequence[str]) -> None:
    """`tiebreak label standing`"""
    arguments = read_store_arguments(StandingArguments, words, "label standing")
    store = Store.open(arguments.store)
    chosen = find_rater(store.raters(), arguments.rater)
    found = store.raters() if arguments.rater == "" else [chosen] if chosen else []
    if not found:
        raise ConfigError(f"label standing: no rater {arguments.rater!r}; 'tiebreak raters list' lists them")
    if arguments.to is None:
        rows = [
            {"rater": one.id, "name": one.name, "standing": one.standing, "note": one.standing_note} for one in found
        ]
        _print_rows(rows, arguments.as_json, left=range(4))
        return
    if not arguments.rater:
        raise ConfigError("label standing: name the --rater to change")
    changed: Standing = "" if arguments.to == "untested" else arguments.to
    store.set_standing(found[0].id, changed, arguments.reason)
    print(f"{found[0].name}: {arguments.to}")


def sample(words: Sequence[str]) -> None:
    """`tiebreak label sample`"""
    arguments = read_store_arguments(SampleArguments, words, "label sample")
    drawn = Store.open(arguments.store).draw_review_sample(arguments.count)
    print(f"drew {counted(drawn, 'pair')}: they wait on /lead/, under Disagreements")


def settled(words: Sequence[str]) -> None:
    """`tiebreak label settled`"""
    arguments = read_store_arguments(ListArguments, words, "label settled")
    store = Store.open(arguments.store)
    names = {one.id: one.name for one in store.raters()}
    rows = [
        {"pair": one.pair_id, "answer": _answer_of(one), "by": names.get(one.rater_id, one.rater_id), "at": one.at}
        for one in store.exported_adjudications()
    ]
    _print_rows(rows, arguments.as_json, left=(0, 1, 2, 3))


def _answer_of(judgment: ExportedJudgment) -> str:
    if isinstance(judgment, ExportedAssessment):
        return str(judgment.value)
    if judgment.both_bad:
        return "both bad"
    answer = judgment.answer or 0
    return "tie" if not answer else judgment.left if answer < 0 else judgment.right


def inspections(words: Sequence[str]) -> None:
    """`tiebreak label inspections`"""
    arguments = read_store_arguments(ListArguments, words, "label inspections")
    found = Store.open(arguments.store).inspections().values()
    outcomes = {None: "open", True: "accepted", False: "all reviewed"}
    rows = [{**one, "passed": one["passed"] if arguments.as_json else outcomes[one["passed"]]} for one in found]
    _print_rows(rows, arguments.as_json, left=(0,))


def work(words: Sequence[str]) -> None:
    """`tiebreak label work`"""
    arguments = read_store_arguments(WorkArguments, words, "label work")
    make = days_table if arguments.by == "day" else work_table
    table = make(Store.open(arguments.store), arguments.since, arguments.until, arguments.rate)
    _write(arguments.output, [table], "label work")


def audit(words: Sequence[str]) -> None:
    """`tiebreak label audit`"""
    arguments = read_store_arguments(PeriodArguments, words, "label audit")
    lines = audit_lines(Store.open(arguments.store), arguments.since, arguments.until)
    _write(arguments.output, lines, "label audit")


def _write(path: str, parts: Iterable[str], command: str) -> None:
    try:
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            file.writelines(parts)
    except OSError as error:
        raise ConfigError(f"{command}: cannot write {path}: {error.strerror}") from error
    print(f"saved: {path}")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "documents": documents,
    "standing": standing,
    "sample": sample,
    "settled": settled,
    "inspections": inspections,
    "work": work,
    "audit": audit,
}
