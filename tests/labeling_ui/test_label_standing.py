"""Raters pass a test before they begin, and are stopped by sequential tests: error rates, what they see, what leads do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from label_support import CHROMIUM, make_pair, needs_chromium, open_store, serving
from test_label_browser import axe, faults_of_both  # noqa: F401

from labeling_ui.database.errors import RefusedError
from labeling_ui.store.answers import Answer, Submission
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from labeling_ui.store.work.assigning import Assignment
from labeling_ui.store.work.standing import Bounds, QualifyConfig, StopConfig, one_test, sequential_test
from labeling_ui.web.login.accounts import add_account

QUALIFY = QualifyConfig(batch="test", questions=4, pass_mark=0.7, by="accuracy", attempts=2)
PASSWORD = "a long password"


def begin(url: str, *, test_pairs: int = 8, pairs: int = 40) -> Store:
    """A campaign of ordinary pairs, and a test; the first completion of every pair is the better one."""
    store = open_store(url, [make_pair(n) for n in range(pairs)], raters=2)
    store.add_pairs(
        [make_pair(n) for n in range(100, 100 + test_pairs)], overlap=1, seed=0, source="t", source_id="t", batch="test"
    )
    for n in range(100, 100 + test_pairs):
        store.set_gold(f"pair-{n}", f"{n}-0")
    return store


def judge(store: Store, rater: str, right: bool, **fields: Any) -> Assignment:
    given = store.claim(rater)
    assert given is not None
    better = -2 if given.left_id.endswith("-0") else 2
    body = {"seconds_active": 4.0, "answer": better if right else -better, **fields}
    store.submit(rater, Submission(client_id=f"{given.id}{len(store.judgments()[0])}", pair_id=given.item_id, **body))
    return given


def standing_of(store: Store, rater: str) -> tuple[str, str]:
    return next((one.standing, one.standing_note) for one in store.raters() if one.id == rater)


# --- the sequential test ---


@pytest.mark.parametrize(("good", "bad", "alpha", "beta"), [(0.85, 0.6, 0.01, 0.05), (0.9, 0.5, 0.05, 0.1)])
def test_its_error_rates_are_walds(good: float, bad: float, alpha: float, beta: float) -> None:
    """10,000 simulated raters of either kind; the mean length is Wald's formula, without what a test overshoots."""
    bounds, chance = Bounds(good=good, bad=bad), np.random.default_rng(1)

    def ends(share: float) -> tuple[float, float]:
        tests = [
            one_test(iter(row), bounds, alpha=alpha, beta=beta)
            for row in (chance.random((10_000, 400)) < share).tolist()
        ]
        assert None not in tests
        return float(np.mean([one[0] for one in tests if one])), float(np.mean([one[2] for one in tests if one]))

    stopped, n_good = ends(good)
    caught, n_bad = ends(bad)
    assert stopped <= alpha / (1 - beta) + 0.003
    assert 1 - caught <= beta / (1 - alpha) + 0.006
    upper, lower = np.log((1 - beta) / alpha), np.log(beta / (1 - alpha))
    right, wrong = np.log(bad / good), np.log((1 - bad) / (1 - good))
    assert n_bad >= ((1 - beta) * upper + beta * lower) / (bad * right + (1 - bad) * wrong) - 1
    assert n_good >= ((1 - alpha) * lower + alpha * upper) / (good * right + (1 - good) * wrong) - 1
    assert max(n_bad, n_good) < 60


def test_a_new_test_begins_after_each_that_ends_well() -> None:
    bounds = Bounds(good=0.9, bad=0.5)
    assert sequential_test([True] * 500, bounds, alpha=0.05, beta=0.1) is None
    found = sequential_test([True] * 500 + [False] * 10, bounds, alpha=0.05, beta=0.1)
    assert found is not None
    assert found[1] < 12, "500 right answers are no credit"


def test_a_pass_mark_that_nobody_reaches_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot be reached with 4 questions: all right, the interval begins at 0.51"):
        QualifyConfig(batch="test", questions=4, pass_mark=0.7)
    assert QualifyConfig(batch="test", questions=10, pass_mark=0.7).passes(10)
    assert not QualifyConfig(batch="test", questions=10, pass_mark=0.7).passes(9), "Wilson: 9 of 10 begins at 0.596"


# --- the test before work ---


def test_a_marked_test_cannot_be_answered_again(url: str) -> None:
    """Changing one answer after another until the test is passed would be easier than the test."""
    store = begin(url)
    store.rules.qualify = QUALIFY
    for right in (True, False):
        judge(store, "r0", right)
    last = store.last_judgment("r0")
    assert last is not None
    store.amend("r0", last, "a", Answer(answer=1))  # before it is marked, an answer can be corrected
    again = store.undo("r0", last)
    wrong = 2 if again.left_id.endswith("-0") else -2
    store.submit("r0", Submission(client_id="again", pair_id=again.item_id, answer=wrong))
    for right in (False, True):
        judge(store, "r0", right)
    assert store.attempt("r0").number == 2  # type: ignore[union-attr]
    for entry in store.history("r0"):
        with pytest.raises(RefusedError, match="belongs to a test that has been marked"):
            store.amend("r0", entry.judgment_id, "b", Answer(answer=1))
        with pytest.raises(RefusedError, match="belongs to a test that has been marked"):
            store.undo("r0", entry.judgment_id)
    for right in (True, True, True, True):
        judge(store, "r0", right)
    assert standing_of(store, "r0")[0] == "qualified"
    assert verify(store).faults == []


def test_work_begins_after_the_test(url: str) -> None:
    store = begin(url)
    store.rules.qualify = QUALIFY
    held = [store.claim("r0"), store.claim("r0", ["x"])]
    assert all(one is not None and one.item_id.startswith("pair-10") for one in held)
    first = [judge(store, "r0", right).item_id for right in (True, False, False, True)]
    assert standing_of(store, "r0") == ("", ""), "half right is not enough"
    attempt = store.attempt("r0")
    assert (attempt.number, attempt.done) == (2, 0)  # type: ignore[union-attr]
    second = [judge(store, "r0", right).item_id for right in (True, True, False, True)]
    assert not set(first) & set(second)
    assert standing_of(store, "r0") == ("qualified", "qualify 3/4")
    assert store.attempt("r0") is None
    assert not judge(store, "r0", True).item_id.startswith("pair-10")

    for right in [True, False] * 4:
        judge(store, "r1", right)
    assert standing_of(store, "r1") == ("failed", "qualify 2/4")
    assert store.claim("r1") is None
    store.set_standing("r1", "qualified", by="lead")
    assert store.claim("r1") is not None
    assert verify(store).faults == []


def test_a_test_gives_no_more_than_the_attempts_pairs(url: str) -> None:
    store = begin(url)
    store.rules.qualify = QUALIFY
    held: list[str] = []
    for _ in range(3):
        given = store.claim("r0", held)
        held.append(given.item_id)  # type: ignore[union-attr]
    judge(store, "r0", True)
    judge(store, "r0", True)
    judge(store, "r0", True)
    fourth = store.claim("r0")
    assert fourth is not None
    assert store.claim("r0", [fourth.item_id]) is None, "the fifth belongs to another attempt"
    judge(store, "r0", True)
    assert standing_of(store, "r0")[0] == "qualified"


# --- stopping ---


def watched(url: str, **config: Any) -> Store:
    store = begin(url, test_pairs=30)
    nothing = {"gold": None, "consistency": None, "pace": None}
    store.rules.stop = StopConfig(**{**nothing, **config})
    return store


def test_bad_gold_answers_stop_a_rater_and_free_what_they_hold(url: str) -> None:
    store = watched(url, gold=Bounds(good=0.85, bad=0.6))
    store.rules.gold_share = 1.0
    held = store.claim("r0", ["x"])
    assert held is not None
    n = 0
    while standing_of(store, "r0")[0] == "":
        judge(store, "r0", False)
        n += 1
    # Wald: the evidence of a wrong answer is log(0.4 / 0.15); five of them pass log(0.95 / 0.01).
    assert n == int(np.ceil(np.log(0.95 / 0.01) / np.log(0.4 / 0.15))) == 5
    assert standing_of(store, "r0") == ("stopped", "gold 0/5")
    assert store.claim("r0") is None
    with pytest.raises(RefusedError, match="nothing is lost"):
        store.undo("r0", store.last_judgment("r0") or "")
    assert verify(store).faults == []
    store.set_standing("r0", "qualified", by="lead")
    for _ in range(4):
        judge(store, "r0", False)
    assert standing_of(store, "r0")[0] == "qualified", "what was before a lead's decision does not count again"
    judge(store, "r0", False)
    assert standing_of(store, "r0")[0] == "stopped"
    judge(store, "r1", False)
    assert standing_of(store, "r1")[0] == ""


def test_a_hasty_rater_is_stopped_and_a_careful_one_is_not(url: str) -> None:
    store = watched(url, pace=Bounds(good=0.9, bad=0.6))
    for _ in range(12):
        judge(store, "r0", True)
    n = 0
    while standing_of(store, "r0")[0] == "":
        judge(store, "r0", True, seconds_active=0.5)
        n += 1
    assert n <= 6
    assert standing_of(store, "r0")[1].startswith("pace ")


def test_inconsistent_repeats_stop_a_rater(url: str) -> None:
    store = watched(url, consistency=Bounds(good=0.8, bad=0.5))
    for _ in range(25):
        judge(store, "r0", True)
    store.rules.repeat_share = 1.0
    n = 0
    while standing_of(store, "r0")[0] == "" and n < 15:
        judge(store, "r0", False)
        n += 1
    assert standing_of(store, "r0")[1] == "consistency 0/5", "Wald: log(0.95 / 0.01) is 5 times log(0.5 / 0.2)"


# --- the pages ---


@needs_chromium
def test_a_rater_takes_the_test_is_stopped_and_a_lead_decides(tmp_path: Path, axe: str) -> None:  # noqa: F811
    from playwright.sync_api import sync_playwright

    url = f"sqlite:///{tmp_path}/label.sqlite"
    store = Store.open(url, create=True)
    store.add_pairs([make_pair(n) for n in range(100, 103)], overlap=1, seed=0, source="t", source_id="t", batch="test")
    for n in range(100, 103):
        store.set_gold(f"pair-{n}", f"{n}-0")
    rater, _ = (add_account(store, name, role, PASSWORD) for name, role in (("anna", "rater"), ("lead", "lead")))
    config = tmp_path / "label.yaml"
    stop = {"gold": None, "consistency": None, "pace": {"good": 0.9, "bad": 0.5}, "least_seconds": 60}
    qualify = {"batch": "test", "questions": 3, "pass_mark": 0.6, "by": "accuracy", "attempts": 1}
    config.write_text(
        yaml.safe_dump({"output": "x", "qualify": qualify, "stop": stop, "repeat_share": 0.0, "gold_share": 0.0})
    )
    with (
        serving(tmp_path, [make_pair(n) for n in range(30)], "--config", str(config)) as (address, _),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])

        def log_in(name: str, path: str) -> Any:
            page = browser.new_context(viewport={"width": 1366, "height": 768}).new_page()
            page.goto(f"{address}/login/")
            page.fill("[name=username]", name)
            page.fill("[name=password]", PASSWORD)
            page.keyboard.press("Enter")
            page.wait_for_url("**/rate/")
            page.goto(f"{address}{path}")
            return page

        page = log_in("anna", "/rate/")
        for n in range(3):
            page.wait_for_function(f"document.querySelector('.count')?.innerText === 'Test: {n + 1} of 3'")
            page.wait_for_selector(".desk[data-pair^=pair-10]:not([data-fresh])")
            given = page.get_attribute(".desk", "data-pair")
            first = page.inner_text("[data-letter=A] .text").startswith("first")
            page.keyboard.press("1" if first else "7")
            page.wait_for_function(f"document.querySelector('.desk').dataset.pair !== '{given}'")
        page.wait_for_function("document.querySelector('.saved').innerText.includes('passed the test')")
        page.wait_for_selector(".desk[data-pair^=pair-]:not([data-fresh])")
        assert standing_of(store, rater.id)[0] == "qualified"
        for _ in range(5):
            if page.locator(".rest.held").count():
                break
            page.wait_for_selector(".desk:not([data-fresh])")
            page.keyboard.press("1")
            page.wait_for_timeout(400)
        page.wait_for_selector(".rest.held")
        assert "A short pause" in page.inner_text(".rest")
        assert page.locator(".banner").is_hidden()
        assert page.inner_text(".saved") == "", "it cannot be undone"
        assert faults_of_both(page, axe) == []

        lead = log_in("lead", "/lead/#view=raters")
        lead.wait_for_selector(".raters .held")
        assert "stopped: judgments at a careful pace" in lead.inner_text(".raters .held")
        lead.click(f"[data-person={rater.id}]")
        lead.wait_for_selector("[data-stand=qualified]")
        assert faults_of_both(lead, axe) == []
        lead.click("[data-stand=qualified]")
        lead.wait_for_selector(".raters tr:not(.held) [data-person]")
        lead.wait_for_selector("[data-stand=stopped]")
        assert standing_of(store, rater.id)[0] == "qualified"
        page.reload()
        page.wait_for_selector(".desk[data-pair^=pair-]")
        browser.close()
    assert verify(store).faults == []
    store.close()
