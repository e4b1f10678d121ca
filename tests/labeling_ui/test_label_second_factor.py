"""Codes of authenticator apps beside passwords: RFC 6238's own vectors, one use each, and who must have one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import time

import pyotp
import pytest
from label_support import make_pair, needs_chromium, open_store
from test_label_api import PAGE, PASSWORD, Campaign
from test_label_browser import Site
from test_label_lead import site  # noqa: F401

from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from labeling_ui.web.login import second_factor
from labeling_ui.web.login.accounts import CodeNeededError, add_account, log_in, reset_password
from labeling_ui.web.login.second_factor import STEP_SECONDS, step_of

RFC_SECRET = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
RFC_CODES = {59: "287082", 1111111109: "081804", 1111111111: "050471", 1234567890: "005924", 2000000000: "279037"}
"""appendix B's values for SHA-1, their last six digits"""


@pytest.fixture(autouse=True)
def no_pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "site" not in request.fixturenames:  # Gradio leaves event loops open
        monkeypatch.setattr("labeling_ui.web.server.mount_pages", lambda _app, _page: None)


@pytest.fixture
def campaign(url: str) -> Iterator[Campaign]:
    store = open_store(url, [make_pair(n) for n in range(4)], raters=0)
    yield Campaign(store, replace(PAGE, second_factor_for_leads=True))
    assert verify(store).faults == []
    store.close()


def at_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    monkeypatch.setattr("time.time", lambda: step * STEP_SECONDS + 7.0)


def test_codes_are_those_of_the_rfc_within_a_step() -> None:
    for at, code in RFC_CODES.items():
        step = at // STEP_SECONDS
        assert step_of(RFC_SECRET, code, at) == step
        assert step_of(RFC_SECRET, f"{code[:3]} {code[3:]}", at + STEP_SECONDS) == step
        assert step_of(RFC_SECRET, code, at - STEP_SECONDS if at > 59 else at) == step
        assert step_of(RFC_SECRET, code, at + 2 * STEP_SECONDS) is None
    for nonsense in ("", "0", "1234567", "abcdef", "\u0662\u0668\u0667\u0660\u0668\u0662", "287082\0"):
        assert step_of(RFC_SECRET, nonsense, 59) is None


def test_a_code_is_taken_once_and_only_with_the_password(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    lead, store = campaign.sessions["lead"].rater, campaign.store
    at_step(monkeypatch, 1_000)
    assert campaign.call("lead", "GET", "/api/second-factor").json() == {"set": False, "needed": True}
    totp = pyotp.TOTP(campaign.call("lead", "POST", "/api/second-factor", {}).json()["secret"])
    wrong = campaign.call("lead", "POST", "/api/second-factor/confirm", {"code": totp.generate_otp(900)})
    assert wrong.status_code == 409
    assert log_in(store, "lead", PASSWORD) is not None, "nothing counts before a code is confirmed"
    confirmed = campaign.call("lead", "POST", "/api/second-factor/confirm", {"code": totp.generate_otp(1_000)})
    assert confirmed.json() == {"ok": True}
    with pytest.raises(CodeNeededError):
        log_in(store, "lead", PASSWORD)
    assert log_in(store, "lead", "not the password", code=totp.generate_otp(1_001)) is None
    assert log_in(store, "lead", PASSWORD, code=totp.generate_otp(1_000)) is None, "it was used to confirm"
    assert log_in(store, "lead", PASSWORD, code=totp.generate_otp(1_001)) is not None, "a phone half a minute ahead"
    assert log_in(store, "lead", PASSWORD, code=totp.generate_otp(1_001)) is None
    assert log_in(store, "lead", PASSWORD, code=totp.generate_otp(1_000)) is None, "nor one before a used one"
    at_step(monkeypatch, 1_005)
    taken: list[bool] = []
    code = totp.generate_otp(1_005)
    threads = [
        threading.Thread(target=lambda: taken.append(second_factor.take_code(store, lead.id, code))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [False, False, False, True]


def test_a_missing_code_is_asked_for_and_a_wrong_one_counts_as_an_attempt(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 2_000)
    totp = pyotp.TOTP(campaign.call("lead", "POST", "/api/second-factor", {}).json()["secret"])
    campaign.call("lead", "POST", "/api/second-factor/confirm", {"code": totp.generate_otp(2_000)})
    body = {"username": "lead", "password": PASSWORD}
    assert campaign.call("nobody", "POST", "/api/login", {**body, "password": "wrong one"}).status_code == 401
    for _ in range(10):
        assert campaign.call("nobody", "POST", "/api/login", body).status_code == 428, "a right password is no attempt"
    replies = [campaign.call("nobody", "POST", "/api/login", {**body, "code": "000000"}).status_code for _ in range(9)]
    assert (set(replies[:7]), replies[-1]) == ({401}, 429)


def test_who_must_have_one_does_nothing_as_a_lead_without(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, 3_000)
    for who in ("lead", "reviewer", "observer"):
        refused = campaign.call(who, "GET", "/api/lead/status")
        assert refused.status_code == 403
        assert "second factor" in refused.json()["detail"]
    settle = {"client_id": "s", "pair_id": "pair-0", "answer": 1}
    assert campaign.call("reviewer", "POST", "/api/lead/adjudications", settle).status_code == 403
    assert campaign.call("one", "GET", "/api/next").status_code == 200, "raters need none"
    totp = pyotp.TOTP(campaign.call("lead", "POST", "/api/second-factor", {}).json()["secret"])
    campaign.call("lead", "POST", "/api/second-factor/confirm", {"code": totp.generate_otp(3_000)})
    assert campaign.call("lead", "GET", "/api/lead/status").status_code == 200
    again = campaign.call("lead", "POST", "/api/second-factor", {})
    assert again.status_code == 409, "an open window cannot replace it"
    remove = {"code": totp.generate_otp(3_001), "password": "not the password"}
    assert campaign.call("lead", "POST", "/api/second-factor/remove", remove).status_code == 409
    remove["password"] = PASSWORD
    assert campaign.call("lead", "POST", "/api/second-factor/remove", remove).json() == {"ok": True}
    assert campaign.call("lead", "GET", "/api/lead/status").status_code == 403


def test_a_new_password_removes_it_and_no_reply_has_the_secret(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/label.sqlite", create=True)
    rater = add_account(store, "Zoe", "lead", PASSWORD)
    made = second_factor.begin(store, rater, "a campaign")
    assert made is not None
    assert second_factor.confirm(store, rater.id, pyotp.TOTP(made.secret).now())
    assert second_factor.has_factor(store, rater.id)
    reset_password(store, "Zoe", "another long password")
    assert not second_factor.has_factor(store, rater.id)
    assert log_in(store, "Zoe", "another long password") is not None
    with store.reading() as connection:
        log = " ".join(f"{row}" for row in connection.exec_driver_sql("SELECT kind, payload FROM events"))
    assert "second_factor_set" in log
    assert "second_factor_removed" in log
    assert made.secret not in log
    store.close()


@needs_chromium
def test_a_lead_sets_it_up_on_the_page_and_logs_in_with_it(site: Site) -> None:  # noqa: F811
    page = site.page("Zoe", "/rate/#second-factor")
    page.wait_for_selector(".factor h3")
    page.click(".factor button")
    page.wait_for_selector(".factor .qr svg")
    totp = pyotp.TOTP(page.inner_text(".factor .secret").replace(" ", ""))
    page.fill(".factor [name=code]", "000000")
    page.keyboard.press("Enter")
    page.wait_for_selector(".factor .note >> text=wrong")
    page.fill(".factor [name=code]", totp.now())
    page.keyboard.press("Enter")
    page.wait_for_selector(".factor >> text=Remove the second factor")
    page.context.clear_cookies()
    page.goto(f"{site.address}/login/")
    page.fill("[name=username]", "Zoe")
    page.fill("[name=password]", PASSWORD.replace("long enough", "long"))
    page.keyboard.press("Enter")
    page.wait_for_selector("[name=code]:visible")
    page.fill("[name=code]", totp.generate_otp(int(time()) // STEP_SECONDS + 1))
    page.keyboard.press("Enter")
    page.wait_for_url("**/rate/")
    page.context.close()
