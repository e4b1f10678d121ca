"""What leads do by mistake, and a server's clock that jumps: nothing becomes wrong silently."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from label_support import make_pair, open_store
from test_label_api import Campaign, no_pages, run  # noqa: F401
from test_label_single import make_single

from labeling_ui.database.errors import RefusedError
from labeling_ui.store.answers import Answer, Submission
from labeling_ui.store.verify import verify
from labeling_ui.store.work.asking import Questionnaire
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
    for path in ("work", "work.csv", "days.csv", "audit.csv"):
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


def test_whatever_creates_a_batch_or_a_pool_gives_it_one_name(campaign: Campaign) -> None:
    """Pairs that are moved, and invitations; a pool's name with a space or in another form would give nobody anything."""
    campaign.call("lead", "POST", "/api/lead/batches", {"name": "\u00c9t\u00e9"})
    for name in ("E\u0301te\u0301", " spaced ", "turned \u202e", "two\nlines", "conversations"):
        body = {"pair_ids": ["pair-0"], "batch": name}
        assert campaign.call("lead", "POST", "/api/lead/pairs/move", body).status_code == 409, name
        with pytest.raises(RefusedError, match=r"cannot be named|is a batch named|is the batch of conversations"):
            campaign.store.add_pairs([make_pair(9)], overlap=1, seed=0, source="s", source_id="s", batch=name)
    assert [one.name for one in campaign.store.batches()] == ["", "\u00c9t\u00e9"]
    campaign.call("lead", "PUT", "/api/lead/batches", {"pool": " E\u0301te\u0301"})
    campaign.call("lead", "PUT", f"/api/lead/raters/{pair_rater(campaign)}", {"pool": "\u00c9t\u00e9 "})
    assert campaign.call("one", "GET", "/api/next").json() is not None
    campaign.call("lead", "POST", "/api/lead/invitations", {"pool": " E\u0301te\u0301 ", "names": ["x"]})
    assert campaign.call("lead", "GET", "/api/lead/invitations").json()[0]["pool"] == "\u00c9t\u00e9"
    rater = campaign.store.add_rater("new", pool="E\u0301te\u0301 ")
    assert rater.pool == "\u00c9t\u00e9"
    campaign.store.move_rater(rater.id, " german ")
    assert next(one.pool for one in campaign.store.raters() if one.id == rater.id) == "german"


def test_a_corrected_pair_gets_a_free_id_and_one_text(campaign: Campaign) -> None:
    campaign.store.add_pairs(
        [make_pair(20).model_copy(update={"id": "pair-0@2"})], overlap=1, seed=0, source="s", source_id="s"
    )
    first, second = (make_pair(0, text).model_dump(mode="json") for text in ("first", "second"))
    both = campaign.call("lead", "POST", "/api/lead/pairs/correct", {"pairs": [first, second]})
    assert (both.status_code, "two versions of pair-0 at once" in both.text) == (409, True)
    one = campaign.call("lead", "POST", "/api/lead/pairs/correct", {"pairs": [first]})
    assert one.json()[0]["replaced_by"] == "pair-0@3"
    other = campaign.call("lead", "POST", "/api/lead/pairs/correct", {"pairs": [second]})
    assert other.json()[0]["replaced_by"] == "pair-0@4"


def test_a_pair_that_nobody_could_judge_is_refused(campaign: Campaign) -> None:
    row = make_pair(20).model_dump(mode="json")
    same = row | {"completions": [{**one, "id": "one"} for one in row["completions"]]}
    for rows, why in (
        ([same], "two completions with one id (one)"),
        ([row | {"id": "a\0b"}], "no control characters"),
        ([row | {"id": "a\nb"}], "no control characters"),
    ):
        reply = upload(campaign, rows)
        assert (reply.status_code, why in reply.text) == (409, True), reply.text
    corrected = campaign.call("lead", "POST", "/api/lead/pairs/correct", {"pairs": [same | {"id": "pair-0"}]})
    assert (corrected.status_code, "two completions with one id" in corrected.text) == (409, True)
    assert upload(campaign, [row | {"id": "\u540d \U0001f600/?#%"}]).json()["new"] == 1


def test_an_upload_names_the_columns_that_it_ignores(campaign: Campaign) -> None:
    reply = upload(campaign, [{"prompt": "p", "response_a": "x", "response_b": "y", "difficulty": 3}]).json()
    assert reply["new"] == 1
    assert reply["notes"] == [
        "rows.jsonl: 1 row read as pairs (response_a, response_b)", "rows.jsonl: ignored columns: difficulty",
    ]  # fmt: skip


def test_a_settlement_says_what_the_campaign_asks(campaign: Campaign) -> None:
    desk = campaign.app.state.desk
    campaign.app.state.desk = replace(desk, page=replace(desk.page, asked=Questionnaire(spans={"wrong": -1})))
    settle = {"client_id": "x", "pair_id": "pair-0", "answer": 1}
    span = {"completion": "0-0", "start": 0, "end": 5, "label": "wrong", "text": "lies", "value": 1}
    for more, status in (
        ({"flags": ["bogus"]}, 422), ({"criteria": {"zzz": 1}}, 422), ({"guideline_version": "hacked"}, 422),
        ({"spans": [span | {"end": 500}]}, 409), ({"spans": [span | {"label": "nope"}]}, 422),
    ):  # fmt: skip
        assert campaign.call("lead", "POST", "/api/lead/adjudications", settle | more).status_code == status, more
    settled = campaign.call("lead", "POST", "/api/lead/adjudications", settle | {"spans": [span]}).json()["judgment"]
    assert [(one["text"], one["value"]) for one in settled["spans"]] == [("first", -1)]


def test_time_is_paid_once_however_often_an_answer_is_changed(campaign: Campaign, clock: Clock) -> None:
    """All answers to a pair together have no more active seconds than have passed since it was given out."""
    pair = campaign.call("one", "GET", "/api/next").json()["pair_id"]
    clock.now += 60_000
    body = {"client_id": "a", "pair_id": pair, "answer": 1, "seconds_active": 60}
    judged = campaign.call("one", "POST", "/api/judgments", body).json()["judgment_id"]
    clock.now += 3 * HOUR_MS
    change = {"answer": 2, "seconds_active": 120, "seconds_idle": 30}
    assert campaign.call("one", "PUT", f"/api/judgments/{judged}", {"client_id": "b", **change}).status_code == 200
    assert hours(campaign) == (0.05, 0.0083), "60 and 120 seconds of work, and 30 of a pause, are counted in full"
    for n in range(3):
        more = {"client_id": f"c{n}", "answer": n, "seconds_active": 86_400}
        assert campaign.call("one", "PUT", f"/api/judgments/{judged}", more).status_code == 200
    campaign.call("one", "POST", f"/api/judgments/{judged}/undo")
    campaign.call("one", "POST", "/api/judgments", body | {"client_id": "d", "seconds_active": 9_000})
    active, idle = hours(campaign)
    assert (active, idle) == (pytest.approx(3 + 1 / 60, abs=0.002), 0.0083), "active time, which is paid"


def test_an_hour_is_paid_once_whatever_was_open_or_changed_in_it(campaign: Campaign, clock: Clock) -> None:
    """Honest work counts in full, late answers and changes too; no rater has more active time than has passed."""
    store = campaign.store
    for name in ("r0", "r1"):
        store.add_rater(name, rater_id=name)

    def claim(rater: str, count: int) -> list[str]:
        held: list[str] = []
        while len(held) < count:
            held.append(store.claim(rater, held).item_id)  # type: ignore[union-attr]
        return held

    def judge(rater: str, pair: str, seconds: float, *, idle: float = 0.0) -> str:
        about: dict[str, Any] = {"client_id": f"{rater} {pair} {clock.now}", "pair_id": pair, "seconds_active": seconds}
        about |= {"value": 3} if pair.startswith("answer") else {"answer": 1}
        return store.submit(rater, Submission.model_validate(about | {"seconds_idle": idle})).judgment_id

    began = clock.now
    first, second, third = claim("r0", 3)
    clock.now = began + 60_000
    changed = judge("r0", first, 60)
    (fourth, *_) = (one for one in claim("r0", 3) if one not in (second, third))
    clock.now = began + 180_000  # without a connection, two minutes' answers arrive together
    ids = [changed, judge("r0", second, 60), judge("r0", third, 60)]
    clock.now = began + 230_000
    store.amend("r0", changed, "a", Answer(answer=2, seconds_active=30))
    clock.now = began + 270_000
    ids.append(judge("r0", fourth, 40))
    assert hours(campaign)[0] == pytest.approx((60 + 60 + 60 + 30 + 40) / 3600, abs=1e-4)
    clock.now += 8 * HOUR_MS
    for n, judgment_id in enumerate(ids):
        store.amend("r0", judgment_id, f"b{n}", Answer(answer=-1, seconds_active=8 * 3600))
    for judgment_id in ids:
        judge("r0", store.undo("r0", judgment_id).item_id, 8 * 3600)
    assert sum(hours(campaign)) == pytest.approx(8 + 270 / 3600, abs=0.01)
    before, held = hours(campaign), claim("r1", 3)
    clock.now += 2 * HOUR_MS
    for pair in held:
        judge("r1", pair, 1_800, idle=5_400)
    after = hours(campaign)
    assert after[0] - before[0] == pytest.approx(1.5, abs=0.01), "half an hour at each of three pairs"
    assert after[1] - before[1] == pytest.approx(1.5, abs=0.01), "the pauses of the first: the others' are the same"


def hours(campaign: Campaign) -> tuple[float, float]:
    rows = list(csv.DictReader(io.StringIO(campaign.call("lead", "GET", "/api/lead/days.csv?rate=20").text)))
    return sum(float(row["active_hours"]) for row in rows), sum(float(row["idle_hours"]) for row in rows)


def test_a_rejection_has_a_reason(campaign: Campaign) -> None:
    campaign.judge("one", "first", answer=1)
    reject = {"selection": {"rater_id": pair_rater(campaign)}, "reason": " \n"}
    assert campaign.call("lead", "POST", "/api/lead/rejections", reject).status_code == 422
    assert campaign.call("lead", "POST", "/api/lead/rejections", reject | {"reason": " hasty "}).status_code == 200
    assert campaign.call("one", "GET", "/api/rejections").json()[0]["reason"] == "hasty"


def test_the_audit_names_batches_and_nobody(campaign: Campaign) -> None:
    campaign.call("lead", "POST", "/api/lead/batches", {"name": "legal"})
    campaign.call("lead", "POST", "/api/lead/invitations", {"names": ["Ada <ada@example.org>"]})
    rows = list(csv.DictReader(io.StringIO(campaign.call("lead", "GET", "/api/lead/audit.csv").text)))
    batches = [json.loads(row["details"])["name"] for row in rows if row["event"] == "batch_changed"]
    assert batches == ["", "legal"]
    assert not any("Ada" in row["details"] or "example.org" in row["details"] for row in rows)


def test_blank_guidelines_and_an_empty_export_are_refused_in_words(campaign: Campaign) -> None:
    published = campaign.call("lead", "POST", "/api/lead/documents/guidelines", {"version": "1", "text": "  \n"})
    assert (published.status_code, "no text" in published.text) == (409, True)
    exported = campaign.call("lead", "GET", "/api/lead/export.zip")
    assert (exported.status_code, "no judgments yet" in exported.text) == (409, True)
