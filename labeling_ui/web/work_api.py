"""The leads' report of work and pay.

GET /api/lead/work?first=DAY&last=DAY           by rater, day and batch, with the difference of clocks
GET /api/lead/work.csv?first=&last=&rate=       the same for a spreadsheet; `rate`: pay per active hour
"""

from __future__ import annotations

import csv
import io
from datetime import date
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from labeling_ui.exchange.export import as_cell
from labeling_ui.store.figures import pay
from labeling_ui.web.context import Desk, DeskOf, LeadSession

router = APIRouter(prefix="/api/lead")
Day = Annotated[date, Query()]
_HEAD = ("rater", "name", "day", "batch", "judgments", "rejected", "active_hours", "idle_hours", "pay")


@router.get("/work")
def work(
    desk: DeskOf, _lead: LeadSession, first: Day = date(2000, 1, 1), last: Day = date(2999, 12, 31)
) -> dict[str, Any]:
    """Work by rater, day (UTC) and batch; seconds by which each rater's clock is ahead of the server's."""
    with desk.store.reading() as connection:
        rows, clocks = pay.worked(connection, first, last), pay.clocks(connection)
    return {"work": [vars(row) for row in rows], "clocks": clocks}


@router.get("/work.csv")
def work_csv(
    desk: DeskOf,
    _lead: LeadSession,
    first: Day = date(2000, 1, 1),
    last: Day = date(2999, 12, 31),
    rate: Annotated[float, Query(ge=0, le=1e6, allow_inf_nan=False)] = 0.0,
) -> Response:
    """The same as a table; rejected work is paid too."""
    return Response(
        _table(desk, first, last, rate),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": 'attachment; filename="work.csv"'},
    )


def _table(desk: Desk, first: date, last: date, rate: float) -> str:
    names = {rater.id: rater.name for rater in desk.store.raters()}
    with desk.store.reading() as connection:
        rows = pay.worked(connection, first, last)
    out = io.StringIO(newline="")
    table = csv.writer(out)
    table.writerow(_HEAD)
    for row in rows:
        hours = row.active_seconds / 3600
        batch = "changed or taken back" if row.batch is None else row.batch
        about = (row.rater_id, names.get(row.rater_id, ""), row.day, batch)
        counts = (row.judgments, row.rejected, f"{hours:.4f}", f"{row.idle_seconds / 3600:.4f}", f"{hours * rate:.2f}")
        table.writerow([*(as_cell(cell) for cell in about), *counts])
    return out.getvalue()
