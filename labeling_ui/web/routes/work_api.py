"""The leads' report of work and pay.

GET /api/lead/work?first=DAY&last=DAY           by rater, day and batch, with the difference of clocks
GET /api/lead/work.csv?first=&last=&rate=       the same for a spreadsheet; `rate`: pay per active hour
GET /api/lead/days.csv?first=&last=&rate=       a row a rater and day: hours, breaks, rework, pay, and the clocks
GET /api/lead/audit.csv?first=&last=            the log, under pseudonyms and without what anybody wrote
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from labeling_ui.exchange.worksheets import audit_lines, days_table, work_table
from labeling_ui.store.figures import pay
from labeling_ui.web.context import DeskOf, LeadSession
from labeling_ui.web.lead_replies import WorkReport
from labeling_ui.web.replies import replies

router = APIRouter(prefix="/api/lead")
Day = Annotated[date, Query()]
CSV = "text/csv; charset=utf-8"


@router.get("/work", **replies(WorkReport))
def work(
    desk: DeskOf, _lead: LeadSession, first: Day = date(2000, 1, 1), last: Day = date(2999, 12, 31)
) -> dict[str, Any]:
    """Work by rater, day (UTC) and batch; seconds by which each rater's clock is ahead of the server's."""
    with desk.store.reading() as connection:
        rows, clocks = pay.worked(connection, first, last), pay.clocks(connection)
        days = pay.presences(connection, first, last)
    return {"work": [vars(row) for row in rows], "days": [vars(day) for day in days], "clocks": clocks}


Rate = Annotated[float, Query(ge=0, le=1e6, allow_inf_nan=False)]


@router.get("/work.csv")
def work_csv(
    desk: DeskOf, _lead: LeadSession, first: Day = date(2000, 1, 1), last: Day = date(2999, 12, 31), rate: Rate = 0.0
) -> Response:
    """The same as a table; rejected work is paid too."""
    return _as_file(work_table(desk.store, first, last, rate), "work.csv")


@router.get("/days.csv")
def days_csv(
    desk: DeskOf, _lead: LeadSession, first: Day = date(2000, 1, 1), last: Day = date(2999, 12, 31), rate: Rate = 0.0
) -> Response:
    """A row a rater and day, for payroll: begin and end, hours, breaks, rework, pay, and the difference of clocks."""
    return _as_file(days_table(desk.store, first, last, rate), "days.csv")


@router.get("/audit.csv")
def audit_csv(
    desk: DeskOf, _lead: LeadSession, first: Day = date(2000, 1, 1), last: Day = date(2999, 12, 31)
) -> StreamingResponse:
    """The log: who did what and when, under pseudonyms and without what anybody wrote."""
    headers = {"Content-Disposition": 'attachment; filename="audit.csv"'}
    return StreamingResponse(audit_lines(desk.store, first, last), media_type=CSV, headers=headers)


def _as_file(text: str, name: str) -> Response:
    return Response(text, media_type=CSV, headers={"Content-Disposition": f'attachment; filename="{name}"'})
