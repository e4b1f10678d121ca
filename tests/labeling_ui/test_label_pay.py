"""The report of work: every second that a rater worked is in it once, by day and batch."""

from __future__ import annotations

import csv
import io
from datetime import date
from pathlib import Path

import httpx
import pytest
from label_support import answer, make_pair, open_store
from test_label_api import Campaign, no_pages  # noqa: F401

from labeling_ui.store.answers import Submission
from labeling_ui.store.figures import pay
from labeling_ui.store.leads.rejecting import Selection
from labeling_ui.store.pairs.campaign import BatchChange
from labeling_ui.store.store import Store

DAY_MS = 86_400_000
FIRST = 20_000  # days since 1970: 2024-10-04


def judge(store: Store, now: list[int], seconds: float, idle: float = 0.0) -> str:
    given = store.claim("r0")
    assert given is not None
    now[0] += 60_000
    about = {"seconds_active": seconds, "seconds_idle": idle, "client_at_ms": now[0] + 7_000}
    sent = answer(given.item_id, 1, f"c{now[0]}").model_dump() | about
    return store.submit("r0", Submission.model_validate(sent)).judgment_id


def test_every_second_is_reported_once(url: str) -> None:
    now = [FIRST * DAY_MS + 3_600_000]
    store = open_store(url, [make_pair(n) for n in range(8)], raters=1, clock=lambda: now[0])
    store.move_pairs(["pair-0"], "urgent", BatchChange(priority=1))
    judge(store, now, 10.0)
    judge(store, now, 20.0, 5.0)
    store.undo("r0", judge(store, now, 7.0))
    now[0] += DAY_MS
    rejected = judge(store, now, 30.0)
    store.reject(Selection(judgment_ids=(rejected,)), "careless")
    with store.reading() as connection:
        rows = pay.worked(connection, date(2024, 10, 4), date(2024, 10, 5))
        one_day = pay.worked(connection, date(2024, 10, 5), date(2024, 10, 5))
        ahead = pay.clocks(connection)
    assert [tuple(vars(row).values()) for row in rows] == [
        ("r0", "2024-10-04", "", 1, 0, 20.0, 5.0),
        ("r0", "2024-10-04", "urgent", 1, 0, 10.0, 0.0),
        ("r0", "2024-10-04", None, 0, 0, 7.0, 0.0),
        ("r0", "2024-10-05", "", 0, 1, 30.0, 0.0),
    ]
    assert one_day == rows[3:]
    assert sum(row.active_seconds for row in rows) == store.work_since("r0", 0).active_seconds
    assert ahead == {"r0": 7.0}


def test_the_table_for_spreadsheets_has_the_pay_and_no_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path, [make_pair(n) for n in range(3)], raters=0)
    campaign = Campaign(store)
    store.create_batch("=1+1", BatchChange(priority=1))
    store.move_pairs(["pair-0"], "=1+1")
    pair = campaign.call("one", "GET", "/api/next").json()
    monkeypatch.setattr("labeling_ui.store.work.judging.CLOCK_SLACK_SECONDS", 10_000)
    body = {"client_id": "c", "pair_id": pair["pair_id"], "answer": 1, "seconds_active": 1800}
    campaign.call("one", "POST", "/api/judgments", body).raise_for_status()
    reply: httpx.Response = campaign.call("lead", "GET", "/api/lead/work.csv?rate=20")
    (row,) = csv.DictReader(io.StringIO(reply.text))
    assert (row["name"], row["batch"], row["active_hours"], row["pay"]) == ("one", "'=1+1", "0.5000", "10.00")
    assert campaign.call("lead", "GET", "/api/lead/work?first=x").status_code == 422
    assert campaign.call("lead", "GET", "/api/lead/work").json()["work"][0]["judgments"] == 1
    store.close()
