"""The report of work: every second that a rater worked is in it once, by day and batch."""

from __future__ import annotations

import csv
import io
import json
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import pytest
from label_support import answer, make_pair, open_store
from test_label_api import Campaign, no_pages  # noqa: F401

from labeling_ui.exchange.worksheets import days_table
from labeling_ui.label import main
from labeling_ui.store.answers import Answer, Submission
from labeling_ui.store.figures import pay
from labeling_ui.store.leads.rejecting import Selection
from labeling_ui.store.pairs.campaign import BatchChange
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from labeling_ui.store.work import judging
from labeling_ui.web.login.accounts import add_account

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


def test_a_correction_in_the_evening_does_not_read_the_day(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 8:00 to 14:00, an answer each 30 minutes, with 1,500 active seconds and 60 of a pause: the correction of the
    first one gets the 6 hours that have passed since it was given out, less those 12 times 1,500 seconds."""
    now = [(FIRST * 24 + 8) * 3_600_000]
    read: list[str] = []

    def counted(payload: str) -> Any:
        read.append(payload)
        return json.loads(payload)

    store = open_store(url, [make_pair(n) for n in range(13)], raters=1, clock=lambda: now[0])
    ids = []
    for _ in range(12):
        given = store.claim("r0")
        assert given is not None
        now[0] += 30 * 60_000
        sent = answer(given.item_id).model_copy(update={"seconds_active": 1_500.0, "seconds_idle": 60.0})
        ids.append(store.submit("r0", sent).judgment_id)
    monkeypatch.setattr(judging, "from_json", counted)
    amended = store.amend("r0", ids[0], "a", Answer(answer=2, seconds_active=28_800.0, seconds_idle=60.0))
    assert amended.judgment.seconds_active == 6 * 3600 - 12 * 1500
    assert 0 < len(read) <= 3, "answers"
    assert verify(store).faults == []


def test_work_that_began_before_a_pair_was_given_out_takes_no_time_from_it(url: str) -> None:
    """A pair of 8:00, answered at 10:40, took 9,000 seconds, of which 4,200 have passed since the second one, of 9:30. A
    third one takes 600. At 12:00, 9,000 have passed since 9:30: the second one has 9,000 - 4,200 - 600 left."""
    began = (FIRST * 24 + 8) * 3_600_000
    now = [began]
    store = open_store(url, [make_pair(n) for n in range(3)], raters=1, clock=lambda: now[0], lease_seconds=86_400)
    held: list[str] = []

    def claim(minutes: int) -> None:
        now[0] = began + minutes * 60_000
        given = store.claim("r0", held)
        assert given is not None
        held.append(given.item_id)

    def submit(minutes: int, which: int, seconds: float) -> float | None:
        now[0] = began + minutes * 60_000
        sent = Submission(client_id=held[which], pair_id=held[which], answer=1, seconds_active=seconds)
        return store.submit("r0", sent).judgment.seconds_active

    claim(0)
    claim(90)
    assert submit(160, 0, 9_000.0) == 9_000.0
    claim(170)
    assert submit(190, 2, 600.0) == 600.0
    assert submit(240, 1, 10_800.0) == 9_000 - 4_200 - 600


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


def test_a_day_has_its_breaks_and_the_time_on_changed_answers(url: str) -> None:
    """A minute each, until 10:00, 10:01, 10:20 (taken back), 10:21 and 10:26: a break from 10:01 to 10:20."""
    now = [FIRST * DAY_MS + 10 * 3_600_000 - 60_000]
    store = open_store(url, [make_pair(n) for n in range(8)], raters=1, clock=lambda: now[0])
    judge(store, now, 60.0)
    judge(store, now, 60.0)
    now[0] += 18 * 60_000
    store.undo("r0", judge(store, now, 60.0))
    judge(store, now, 60.0)
    now[0] += 4 * 60_000
    store.reject(Selection(judgment_ids=(judge(store, now, 60.0),)), "careless")
    head, row = csv.reader(days_table(store, date(2024, 10, 4), date(2024, 10, 4), 30.0).splitlines())
    store.close()
    day = dict(zip(head, row, strict=True))
    assert (day["begin"], day["end"]) == ("2024-10-04T09:59:00.000Z", "2024-10-04T10:26:00.000Z")
    assert (day["breaks"], day["break_hours"]) == ("1", f"{19 / 60:.4f}"), "four minutes are none"
    assert (day["judgments"], day["rejected"]) == ("3", "1")
    assert day["hours_on_answers_changed_or_taken_back"] == f"{60 / 3600:.4f}"
    assert (day["active_hours"], day["pay"]) == (f"{300 / 3600:.4f}", "2.50"), "30 an hour, five minutes"
    assert day["clock_ahead_seconds"] == "7.0"


def test_an_audit_has_every_event_and_no_word_that_anybody_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(tmp_path, [make_pair(n) for n in range(4)], overlap=2, raters=2)
    given = store.claim("r0")
    assert given is not None
    wrote = answer(given.item_id, 1, "a").model_dump() | {"rationale": "SECRET one", "edited_text": "SECRET two"}
    store.submit("r0", Submission.model_validate(wrote))
    store.publish("guidelines", "1", "SECRET three")
    store.set_standing("r1", "stopped", "SECRET four")
    at = ["--store", f"sqlite:///{tmp_path}/labels.sqlite"]
    main(["audit", "--output", str(tmp_path / "audit.csv"), *at])
    text = (tmp_path / "audit.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert [int(row["seq"]) for row in rows] == list(range(1, store.status()["events"] + 1))
    assert rows[-1]["hash"] == store.head()
    assert not any(word in text for word in ("SECRET", "rater 0")), "pseudonyms, and no texts"
    (judged,) = [row for row in rows if row["event"] == "submitted"]
    assert (judged["rater"], json.loads(judged["details"])["judgment"]["answer"]) == ("r0", 1)
    main(["audit", "--output", str(tmp_path / "none.csv"), "--until", "2020-01-01", *at])
    assert len((tmp_path / "none.csv").read_text().splitlines()) == 1
    with pytest.raises(SystemExit):
        main(["audit", "--output", str(tmp_path / "no.csv"), "--since", "2020-01-02", "--until", "2020-01-01", *at])
    assert "the first day, 2020-01-02, comes after the last, 2020-01-01" in capsys.readouterr().err
    assert not (tmp_path / "no.csv").exists()
    store.close()


def test_what_leads_do_on_the_page_the_commands_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(tmp_path, [make_pair(0)], overlap=2, raters=2)
    zoe = add_account(store, "Zoe", "lead", "a long enough password")
    at = ["--store", f"sqlite:///{tmp_path}/labels.sqlite"]
    main(["standing", "--rater", "rater 1", "--set", "stopped", "--reason", "careless", *at])
    assert store.standing("r1") == "stopped"
    main(["standing", "--rater", "r1", "--set", "qualified", *at])
    main(["standing", "--json", "true", *at])
    assert '"standing": "qualified"' in capsys.readouterr().out
    for rater in ("r0", "r1"):
        given = store.claim(rater)
        assert given is not None
        store.submit(rater, answer(given.item_id, 3 if given.left_id == "0-0" else -3, rater))
    main(["sample", "--count", "3", *at])
    assert "drew 1 pair" in capsys.readouterr().out
    seen = store.open_dispute(zoe.id, "pair-0").assignment
    store.adjudicate(zoe.id, answer("pair-0", -1, "z"))
    main(["settled", "--json", "true", *at])
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["pair"], row["answer"], row["by"]) == ("pair-0", seen.left_id, "Zoe")
    main(["work", "--output", str(tmp_path / "work.csv"), "--by", "batch", *at])
    assert "r0,rater 0," in (tmp_path / "work.csv").read_text()
    capsys.readouterr()
    main(["inspections", *at])
    assert capsys.readouterr().out == "none\n"
    with pytest.raises(SystemExit):
        main(["work", "--output", str(tmp_path / "no" / "folder.csv"), *at])
    assert "cannot write" in capsys.readouterr().err
    store.close()
