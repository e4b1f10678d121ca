"""Work, days and the log as tables for spreadsheets."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from datetime import date

from labeling_ui.exchange.export import as_cell
from labeling_ui.store.figures import pay
from labeling_ui.store.figures.audit import AuditEntry
from labeling_ui.store.figures.pay import Presence, WorkDay
from labeling_ui.store.store import Store, iso_time

WORK_HEAD = ("rater", "name", "day", "batch", "judgments", "rejected", "active_hours", "idle_hours", "pay")
DAYS_HEAD = (
    "rater", "name", "day", "begin", "end", "judgments", "rejected", "active_hours", "idle_hours",
    "hours_on_answers_changed_or_taken_back", "breaks", "break_hours", "pay", "clock_ahead_seconds",
)  # fmt: skip
AUDIT_HEAD = ("seq", "at", "event", "rater", "item", "details", "hash")
SECONDS = 3600


def work_table(store: Store, first: date, last: date, rate: float) -> str:
    """A row a rater, day and batch; rejected work is paid too. `rate`: pay per active hour."""
    names = {rater.id: rater.name for rater in store.raters()}
    with store.reading() as connection:
        rows = pay.worked(connection, first, last)
    table: list[tuple[str, ...]] = [WORK_HEAD]
    for row in rows:
        hours = row.active_seconds / SECONDS
        batch = "changed or taken back" if row.batch is None else row.batch
        about = (row.rater_id, names.get(row.rater_id, ""), row.day, batch)
        counts = (str(row.judgments), str(row.rejected), f"{hours:.4f}", f"{row.idle_seconds / SECONDS:.4f}")
        table.append((*map(as_cell, about), *counts, f"{hours * rate:.2f}"))
    return _as_csv(table)


def days_table(store: Store, first: date, last: date, rate: float) -> str:
    """A row a rater and day, for payroll: begin and end, hours, breaks, rework, pay, and the difference of clocks."""
    names = {rater.id: rater.name for rater in store.raters()}
    with store.reading() as connection:
        rows, ahead = pay.worked(connection, first, last), pay.clocks(connection)
        seen = {(one.rater_id, one.day): one for one in pay.presences(connection, first, last)}
    days: dict[tuple[str, str], list[WorkDay]] = {}
    for row in rows:
        days.setdefault((row.rater_id, row.day), []).append(row)
    table: list[tuple[str, ...]] = [DAYS_HEAD]
    for (rater_id, day), mine in days.items():
        about = (as_cell(rater_id), as_cell(names.get(rater_id, "")), day)
        clock = str(ahead.get(rater_id, ""))
        table.append((*about, *_day_cells(mine, seen.get((rater_id, day)), rate), clock))
    return _as_csv(table)


def _day_cells(mine: Sequence[WorkDay], seen: Presence | None, rate: float) -> tuple[str, ...]:
    hours = sum(row.active_seconds for row in mine) / SECONDS
    idle = sum(row.idle_seconds for row in mine) / SECONDS
    redone = sum(row.active_seconds for row in mine if row.batch is None) / SECONDS
    times = (iso_time(seen.first_ms), iso_time(seen.last_ms)) if seen else ("", "")
    breaks = (str(seen.breaks), f"{seen.break_seconds / SECONDS:.4f}") if seen else ("0", "0.0000")
    counts = (str(sum(row.judgments for row in mine)), str(sum(row.rejected for row in mine)))
    return (*times, *counts, f"{hours:.4f}", f"{idle:.4f}", f"{redone:.4f}", *breaks, f"{hours * rate:.2f}")


def audit_lines(store: Store, first: date, last: date) -> Iterator[str]:
    """The log of some days (UTC), line by line: who did what and when, without what anybody wrote.

    Raises:
        RefusedError: the first day comes after the last.
    """
    return itertools.chain([_as_csv([AUDIT_HEAD])], map(_audit_line, store.audit(first, last)))


def _audit_line(entry: AuditEntry) -> str:
    details = json.dumps(entry.details, ensure_ascii=False, sort_keys=True)
    about = map(as_cell, (entry.kind, entry.rater_id, entry.item_id, details))
    return _as_csv([(str(entry.seq), iso_time(entry.at_ms), *about, entry.hash)])


def _as_csv(rows: Sequence[Sequence[str]]) -> str:
    out = io.StringIO(newline="")
    csv.writer(out).writerows(rows)
    return out.getvalue()
