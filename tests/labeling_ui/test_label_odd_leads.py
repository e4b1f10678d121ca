"""What leads do by mistake, and a server's clock that jumps: nothing becomes wrong silently."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from label_support import make_pair, open_store
from test_label_api import Campaign, no_pages, run  # noqa: F401
from test_label_single import make_single

from labeling_ui.database.errors import RefusedError
from labeling_ui.store.answers import Submission
from labeling_ui.store.verify import verify
from labeling_ui.web.context import SESSION_COOKIE

HOUR_MS = 3_600_000


class Clock:
    """The server's clock."""

    def __init__(self) -> None:
        self.now = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def campaign(tmp_path: Path, clock: Clock) -> Iterator[Campaign]:
    contents = [*(make_pair(n) for n in range(6)), make_single(0, "rate"), make_single(1, "review")]
    made = Campaign(open_store(tmp_path, contents, overlap=2, raters=0, clock=clock))
    yield made
    assert verify(made.store).faults == []
    made.store.close()


def upload(campaign: Campaign, rows: list[dict[str, Any]]) -> httpx.Response:
    async def send() -> httpx.Response:
        session = campaign.sessions["lead"]
        transport, cookies = httpx.ASGITransport(app=campaign.app), {SESSION_COOKIE: session.token}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", cookies=cookies) as client:
            content = "".join(json.dumps(row) + "\n" for row in rows)
            about = {"params": {"name": "rows.jsonl"}, "headers": {"X-CSRF-Token": session.csrf_token}}
            return await client.post("/api/lead/pairs/upload", content=content, **about)  # type: ignore[arg-type]

    reply: httpx.Response = run(send())
    return reply


def test_a_clock_that_is_set_back_takes_no_hours_and_no_pay(campaign: Campaign, clock: Clock) -> None:
    campaign.judge("one", "first", answer=1, seconds_active=10)
    pair = campaign.call("one", "GET", "/api/next").json()["pair_id"]
    clock.now -= 72 * HOUR_MS
    body = {"client_id": "second", "pair_id": pair, "answer": 1, "seconds_active": 50, "seconds_idle": 3}
    assert campaign.call("one", "POST", "/api/judgments", body).status_code == 200
    rows = list(csv.DictReader(io.StringIO(campaign.call("lead", "GET", "/api/lead/days.csv?rate=20").text)))
    assert len(rows) == 2
    assert all(float(row["active_hours"]) >= 0 <= float(row["pay"]) for row in rows)
    assert all(row["begin"] <= row["end"] for row in rows)


def pair_rater(campaign: Campaign) -> str:
    return next(one.id for one in campaign.store.raters() if one.name == "one")


def test_days_in_the_wrong_order_are_refused(campaign: Campaign) -> None:
    for path in ("work", "work.csv", "days.csv"):
        reply = campaign.call("lead", "GET", f"/api/lead/{path}?first=2026-12-02&last=2026-12-01")
        assert (reply.status_code, "comes after the last" in reply.text) == (409, True), path


def test_another_text_under_the_id_of_a_single_answer_is_refused(campaign: Campaign) -> None:
    row = make_single(0, "rate").model_dump(mode="json")
    assert upload(campaign, [row]).json()["new"] == 0
    for change in ({"task": "review"}, {"completions": [{**row["completions"][0], "text": "another"}]}):
        reply = upload(campaign, [row | change])
        assert (reply.status_code, "two different pairs have the id answer-0" in reply.text) == (409, True)
    reply = upload(campaign, [make_pair(0).model_dump(mode="json") | {"id": "answer-1"}])
    assert (reply.status_code, "two different pairs" in reply.text) == (409, True)


def test_an_edit_must_have_a_text(campaign: Campaign) -> None:
    settled = {"client_id": "x", "pair_id": "answer-1", "value": "edit", "edited_text": " \n"}
    reply = campaign.call("lead", "POST", "/api/lead/adjudications", settled)
    assert (reply.status_code, "the edited answer is empty" in reply.text) == (409, True)
    rater = campaign.store.add_rater("r0", rater_id="r0").id
    held: list[str] = []
    while (given := campaign.store.claim(rater, held)) is not None:
        held.append(given.item_id)
        if given.item_id == "answer-1":
            break
        campaign.store.submit(rater, Submission(client_id=given.id, pair_id=given.item_id, skip=True))
        held.clear()
    with pytest.raises(RefusedError, match="edited answer is empty"):
        campaign.store.submit(rater, Submission(client_id="x", pair_id="answer-1", value="edit", edited_text=""))


def test_names_that_look_the_same_are_one(campaign: Campaign) -> None:
    assert campaign.call("lead", "POST", "/api/lead/batches", {"name": "\u00c9t\u00e9"}).status_code == 200
    assert campaign.call("lead", "POST", "/api/lead/batches", {"name": "E\u0301te\u0301"}).status_code == 409
    put = campaign.call("lead", "PUT", "/api/lead/batches", {"pool": " german "})
    assert put.json()["pool"] == "german"
    listed = {one["name"]: one["without_raters"] for one in campaign.call("lead", "GET", "/api/lead/batches").json()}
    assert listed == {"": True, "\u00c9t\u00e9": False}
    campaign.call("lead", "PUT", f"/api/lead/raters/{pair_rater(campaign)}", {"pool": "german  "})
    assert not campaign.call("lead", "GET", "/api/lead/batches").json()[0]["without_raters"]
    assert campaign.call("one", "GET", "/api/next").json() is not None
    assert campaign.call("other", "GET", "/api/next").json() is None


def test_blank_guidelines_and_an_empty_export_are_refused_in_words(campaign: Campaign) -> None:
    published = campaign.call("lead", "POST", "/api/lead/documents/guidelines", {"version": "1", "text": "  \n"})
    assert (published.status_code, "no text" in published.text) == (409, True)
    exported = campaign.call("lead", "GET", "/api/lead/export.zip")
    assert (exported.status_code, "no judgments yet" in exported.text) == (409, True)
