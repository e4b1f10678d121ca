"""Leads review pairs that raters agree on, without seeing the votes first; raters see where a lead decided otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from label_support import CHROMIUM, make_pair, needs_chromium, open_store, serving
from test_label_browser import axe, faults_of_both  # noqa: F401

from labeling_ui.store.answers import Submission
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from labeling_ui.web.login.accounts import add_account

PASSWORD = "a long password"


def vote(store: Store, rater: str, sides: list[int]) -> None:
    """Judge the next pairs: positive for their first completion."""
    for side in sides:
        given = store.claim(rater)
        assert given is not None
        answer = -side if given.left_id.endswith("-0") else side
        store.submit(rater, Submission(client_id=given.id, pair_id=given.item_id, answer=answer))


def test_agreed_pairs_are_drawn_at_random_and_feedback_goes_to_those_concerned(url: str) -> None:
    store = open_store(url, [make_pair(n) for n in range(30)], overlap=2, raters=2)
    lead = store.add_rater("lead", role="lead", rater_id="lead")
    vote(store, "r0", [1] * 28)
    vote(store, "r1", [1] * 26 + [-1] * 2)
    assert [one.about for one in store.disputes("lead")] == ["side", "side"]
    assert store.draw_review_sample(10, "lead") == 10
    queue = store.disputes("lead")
    assert [one.about for one in queue] == ["side"] * 2 + ["sample"] * 10
    drawn = {one.item_id for one in queue[2:]}
    assert len(drawn) == 10
    assert drawn <= {f"pair-{n}" for n in range(26)}, "agreed and judged by both"
    assert drawn != {f"pair-{n}" for n in range(10)}, "at random: one order of 5.3 million is this one"
    assert store.draw_review_sample(100, "lead") == 16, "each once"

    one = queue[-1].item_id
    shown = store.open_dispute("lead", one).assignment
    second_is_better = -2 if shown.left_id.endswith("-1") else 2
    body = {"client_id": "x", "pair_id": one, "answer": second_is_better, "rationale": "It is <b>false</b>."}
    store.adjudicate("lead", Submission(**body))  # type: ignore[arg-type]
    other = queue[-2].item_id
    shown = store.open_dispute("lead", other).assignment
    store.adjudicate("lead", Submission(client_id="y", pair_id=other, answer=-1 if shown.left_id.endswith("-0") else 1))
    for rater in ("r0", "r1"):
        [feedback] = store.feedback(rater)
        assert (feedback.item_id, feedback.settled.rationale) == (one, "It is <b>false</b>.")
        assert (feedback.settled.left, feedback.settled.right) == (feedback.judgment.left, feedback.judgment.right)
        better = feedback.settled.left if (feedback.settled.answer or 0) < 0 else feedback.settled.right
        assert better.endswith("-1"), "in the sides as the rater saw them"
        assert (feedback.settled.answer or 0) * (feedback.judgment.answer or 0) < 0
    assert {row.item_id: row.settled_by for row in store.disputes("lead", adjudicated=True)} == {
        one: lead.id,
        other: lead.id,
    }
    assert store.feedback("lead") == []
    assert verify(store).faults == []


@needs_chromium
def test_votes_are_hidden_until_the_lead_has_answered(tmp_path: Path, axe: str) -> None:  # noqa: F811
    from playwright.sync_api import sync_playwright

    with (
        serving(tmp_path, [make_pair(n) for n in range(3)], "--overlap", "2") as (address, _),
        sync_playwright() as playwright,
    ):
        store = Store.open(f"sqlite:///{tmp_path}/label.sqlite")
        names = {name: add_account(store, name, "rater", PASSWORD).id for name in ("anna", "ben")}
        add_account(store, "lead", "lead", PASSWORD)
        for rater in names.values():
            vote(store, rater, [3, 3, 3])
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        errors: list[str] = []

        def log_in(name: str, path: str) -> Any:
            page = browser.new_context(viewport={"width": 1366, "height": 768}).new_page()
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(f"{address}/login/")
            page.fill("[name=username]", name)
            page.fill("[name=password]", PASSWORD)
            page.keyboard.press("Enter")
            page.wait_for_url("**/rate/")
            page.goto(f"{address}{path}")
            return page

        page = log_in("lead", "/lead/#view=disputes")
        page.wait_for_selector("[data-form=sample]")
        page.check("[data-blind]")
        page.fill("[data-form=sample] [name=count]", "2")
        page.click("[data-form=sample] button")
        page.wait_for_selector(".disputes li:nth-child(2)")
        page.wait_for_selector(".case .answering")
        assert "once you have answered" in page.inner_text(".case")
        assert page.locator(".case .said").count() == 0
        assert page.locator(".disputes .votes").count() == 0
        assert "agree" not in page.inner_text(".disputes"), "nor does the list say that they agree"
        first = page.inner_text(".case .side-left .text").startswith("first")
        page.fill(".case [name=rationale]", "<i>The second one is right.</i>")
        page.wait_for_selector(".desk:not([data-fresh])")
        page.click(f".case [data-answer='{3 if first else -3}']")
        page.wait_for_selector(".case .said tr")
        assert "anna" in page.inner_text(".case .said")
        assert ", by lead." in page.inner_text(".case")
        page.keyboard.press("n")
        page.wait_for_function("!document.querySelector('.case .said')")
        rater = log_in("anna", "/rate/")
        rater.wait_for_selector(".desk[aria-busy=false]")
        rater.keyboard.press("w")
        rater.wait_for_selector(".feedback tr")
        said = rater.inner_text(".feedback")
        assert "<i>The second one is right.</i>" in said
        assert "is much better. Your lead:" in said
        assert faults_of_both(rater, axe) == []
        assert errors == []
        browser.close()
        assert verify(store).faults == []
        store.close()
