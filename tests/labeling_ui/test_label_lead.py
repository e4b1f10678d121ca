"""The lead's page in a real Chromium: every state of it is accessible, and its table of raters sorts by keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from label_support import CHROMIUM, FLAGS, make_pair, needs_chromium, serving, write_reward_report
from test_label_browser import HOLD, PASSWORD, UNSEEN_FOCUS, Site, axe, faults_of_both, press  # noqa: F401

from labeling_ui.exchange.importing import import_records
from labeling_ui.store.store import Store, Submission
from labeling_ui.store.verify import verify
from labeling_ui.web.login.accounts import add_account, log_in
from tiebreak.records import Judgment, ModelVerdict, Pair

pytestmark = needs_chromium

AGAIN = "\u05e9\u05d5\u05d1 2"
"""a batch's name in Hebrew"""
ANSWERS = {"Ada": 2, "Bruno": 2, "Chiara": -3}
"""each for the first completion of every pair, on whichever side it stands; Chiara is against all others"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    from playwright.sync_api import sync_playwright

    store = Store.open(f"sqlite:///{tmp_path}/label.sqlite", create=True)
    add_account(store, "Zoe", "lead", PASSWORD)
    pairs = [make_pair(n, f"first **{n}**", f"second {n}, the longer one") for n in range(8)]
    pulls = [
        {"pair_id": f"pair-{n}", "raters": ["someone"], "pull": pull, "chosen": side.format(n=n)}
        for n, pull, side in (
            (2, -3.04, "first **{n}**"),
            (5, -1.2, "second {n}, the longer one"),
            (3, 1.0, "first **{n}**"),
        )
    ]
    report = str(write_reward_report(tmp_path / "report", pulls))
    keys = ("--overlap", "3", "--reward_reports", report)
    with serving(tmp_path, pairs, *keys) as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS.split())
        yield Site(address, store, browser, [])
        browser.close()
    store.close()


def judge_everything(store: Store) -> None:
    for name, value in ANSWERS.items():
        judge_as(store, add_account(store, name, "rater", PASSWORD).id, value)
    store.set_gold("pair-0", "0-0")


def judge_as(store: Store, rater_id: str, value: int) -> None:
    """A vote for the first completion (value > 0) on all that the rater gets."""
    while (given := store.claim(rater_id)) is not None:
        answer = -value if given.left_id.endswith("-0") else value
        submission = Submission(client_id=given.item_id, pair_id=given.item_id, answer=answer, seconds_active=9.0)
        store.submit(rater_id, submission)


def states(site: Site) -> Iterator[tuple[str, Any]]:
    """The lead's page, in one state after the other, wide and light."""
    page = site.page("Zoe", "/lead/")
    for view in ("overview", "raters", "disputes"):
        page.click(f"button[data-view={view}]")
        yield f"{view}, nothing judged", page
    judge_everything(site.store)
    page.reload()
    page.wait_for_selector(".desk[data-view=disputes][aria-busy=false]")  # a reload opens the same view
    page.click("button[data-view=overview]")
    page.wait_for_selector(".figure")
    yield "overview", page
    page.click("button[data-view=raters]")
    page.wait_for_function("!document.querySelector('.raters tbody').innerText.includes('…')")
    yield "raters", page
    page.click("[data-invite=rater]")
    page.wait_for_selector(".invitation input:visible")
    yield "invitation", page
    page.click("button[data-view=items]")
    page.click(".found li:nth-child(2) button")
    page.wait_for_selector(".item .history")
    yield "items", page
    site.store.withdraw_pairs(["pair-7"], "names a person")
    page.click("button[data-view=batches]")
    page.wait_for_selector("[data-restore]")
    yield "batches", page
    steer(site, page)
    publish(site, page)
    yield "guidelines", page
    erase(site, page)
    yield "erasing", page
    page.click(".erasure [data-close]")
    page.click("button[data-view=disputes]")
    page.wait_for_selector(".case .bar7")
    yield "dispute", page
    page.locator("[name=rationale]").fill("The first one answers.")
    press(page, "Escape", "1")
    page.wait_for_function("document.querySelectorAll('.disputes li').length === 7")
    page.click("[data-settled]")
    page.wait_for_selector(".case .note >> text=Settled as")
    yield "settled", page


def publish(site: Site, page: Any) -> None:
    """A lead writes guidelines, looks at them, and publishes them."""
    page.click("button[data-view=documents]")
    page.fill("[data-form=document] [name=text]", "Be *fair*.")
    page.click("[data-form=document] button")
    page.wait_for_selector(".preview em >> text=fair")
    page.click("[data-publish]")
    page.wait_for_selector(".versions tbody tr >> text=Zoe")
    now = site.store.present_document("guidelines")
    assert (now and now.text, now and now.name) == ("Be *fair*.", "1")


def erase(site: Site, page: Any) -> None:
    """A lead looks at what an erasure would do; the name must be typed before anything is done. The view that the lead
    chose before the page had its raters is the one that stays."""
    chiara = next(one.id for one in site.store.raters() if one.name == "Chiara")
    site.store.withdraw_consent(chiara, judgments=True)
    page.add_init_script(f"({HOLD})('/api/lead/raters')")
    page.reload(wait_until="domcontentloaded")
    page.wait_for_function("held.length")
    page.click("button[data-view=raters]")
    page.evaluate("window.fetch = plainFetch; for (const send of held) send();")
    page.wait_for_selector(".desk[data-view=raters][aria-busy=false]")
    page.click(".raters tbody th button:text-is('Chiara')")
    page.click("[data-erase]")
    page.wait_for_selector(".erasure[open] .effect >> text=Judgments rejected")
    page.click("[data-erase-now]")
    assert page.is_visible(".erasure[open]"), "without the name, nothing"
    assert [one.name for one in site.store.raters() if one.erased] == []


def steer(site: Site, page: Any) -> None:
    """What a lead changes on the page of batches is in the store."""
    page.fill("[data-field='priority/']", "101")
    press(page, "Tab")
    assert site.store.batches()[0].priority == 0, "it is refused in the page"
    page.evaluate(HOLD, "/api/lead/batches?name=")
    page.fill("[data-field='priority/']", "7")
    press(page, "Tab")
    page.keyboard.type("law")  # while the priority is on its way: the table is then drawn again
    page.evaluate("window.fetch = plainFetch; for (const send of held) send();")
    page.wait_for_function("document.querySelector(`[data-field='priority/']`).defaultValue === '7'")
    assert page.input_value("[data-field='pool/']:focus") == "law"
    assert site.store.batches()[0].pool == "", "it has not been sent"
    page.fill("[data-field='pool/']", "")
    for words in ("Resume", "Pause"):
        page.click("[data-batch='']")
        page.wait_for_selector(f"[data-batch=''] >> text={words}")
    page.click("[data-restore]")
    page.wait_for_selector(".withdrawn", state="hidden")
    (batch,) = site.store.batches()
    assert (batch.priority, batch.paused, batch.overlap, site.store.withdrawals()) == (7, False, 3, [])
    assert "21 of 21" in page.inner_text(".batches tbody"), "seven pairs, without the gold one"


def test_every_state_is_accessible_light_and_wide_dark_and_narrow(site: Site, axe: str) -> None:  # noqa: F811
    found: dict[str, list[str]] = {}
    for state, page in states(site):
        page.wait_for_timeout(150)  # colours fade in
        press(page, "Tab")  # from here on the focus is the keyboard's
        _, unseen = page.evaluate(UNSEEN_FOCUS)
        found[state] = faults_of_both(page, axe) + [f"focus is not seen: {one}" for one in unseen]
    assert {state: problems for state, problems in found.items() if problems} == {}
    assert len(found) == 12
    assert site.elsewhere == []


def test_duels_and_judges_are_beside_people(site: Site, axe: str) -> None:  # noqa: F811
    """dpo beats sft at all of 20 prompts in one evaluation, and nobody has judged the other. Of the 8 other pairs, two
    people prefer the first answer and one the second; the judge says the first on six, so it is right on six."""
    store = site.store
    judge_everything(store)
    store.add_rater("Dora", rater_id="dora")
    for name, first in (("one", 100), ("other", 200)):
        duel = [duel_pair(n, name) for n in range(first, first + 20)]
        store.add_pairs(duel, overlap=1, seed=0, source=name, source_id=name, batch=name)
        if name == "one":
            judge_as(store, "dora", 2)
    import_records(store, (), [verdict(n, -1 if n < 6 else 1) for n in range(8)], source="judge", source_id="judge")
    page = site.page("Zoe", "/lead/")
    page.wait_for_selector(".duels tbody tr")
    one, other = (row.inner_text() for row in page.locator(".duels tbody tr").all())
    assert all(words in one for words in ("dpo against sft", "Evaluation one", "dpo is better", "100.0%", "20 of 20"))
    assert all(words in other for words in ("dpo against sft", "Evaluation other", "Undecided; about", "0 of 20"))
    page.wait_for_selector(".judges tbody tr:nth-child(2)")
    people, judge = (row.inner_text() for row in page.locator(".judges tbody tr").all())
    assert people.startswith("People among themselves")
    assert "judge-m" in judge
    assert "75.0%" in judge
    assert "n 8" in judge
    pulled = [row.inner_text() for row in page.locator(".pulls tbody tr").all()]
    assert [one.replace("\t", " ").replace("\n", " ") for one in pulled] == [
        "question 2? −3.0 Ada, Bruno",
        "question 5? −1.2 Chiara",
    ]
    figures = " ".join(page.inner_text(".pulls .reports").split())
    assert all(words in figures for words in ("of 3 training pairs, 2 in this campaign", "Ada 50.0%", "Chiara 100.0%"))
    assert faults_of_both(page, axe) == []
    page.click(".pulls tbody tr:nth-child(2) button")
    page.wait_for_selector(".item h2 >> text=pair-5")


def verdict(n: int, answer: int) -> Judgment:
    """A judge's answer about make_pair(n), the first completion on the left."""
    judge = ModelVerdict(model="m", answers=(answer, answer))
    sides = {"left": f"{n}-0", "right": f"{n}-1"}
    return Judgment(pair_id=f"pair-{n}", rater_id="judge-m", **sides, answer=answer, kind="model", judge=judge)


def duel_pair(n: int, evaluation: str) -> Pair:
    """Answers of dpo, which comes first, and sft."""
    pair = make_pair(n)
    sides = (
        one.model_copy(update={"policy": name}) for one, name in zip(pair.completions, ("dpo", "sft"), strict=True)
    )
    about = {"purpose": "evaluation", "split": "test", "source": evaluation}
    return pair.model_copy(update={**about, "completions": tuple(sides)})


def test_raters_are_told_apart_and_sorted_by_keys(site: Site) -> None:
    judge_everything(site.store)
    page = site.page("Zoe", "/lead/")
    page.click("button[data-view=raters]")
    page.wait_for_function("document.querySelector('.raters tbody').innerText.includes('%')")
    head = page.locator(".raters thead th")
    columns = {head.nth(n).inner_text().strip(" ▲\n"): n for n in range(head.count())}

    def column(name: str) -> dict[str, str]:
        cells = page.locator(".raters tbody tr:not(:has([colspan]))").all()
        return {
            row.locator("th").inner_text().split("\n")[0]: row.locator("th, td").nth(columns[name]).inner_text()
            for row in cells
        }

    assert [page.evaluate(f"document.querySelector('{panel}').hidden") for panel in (".duels", ".judges")] == [
        True,
        True,
    ]
    assert list(column("Judged")) == ["Ada", "Bruno", "Chiara"]
    assert set(column("Judged").values()) == {"8"}
    # By hand: Ada agrees with Bruno always, Chiara with nobody.
    assert {name: cell.split("\n")[0] for name, cell in column("Agreement").items()} == {
        "Ada": "50.0%", "Bruno": "50.0%", "Chiara": "0.0%",
    }  # fmt: skip
    assert [cell.split("\n")[0] for cell in column("Gold accuracy").values()] == ["100.0%", "100.0%", "0.0%"]
    assert all("n 1" in cell for cell in column("Gold accuracy").values())
    page.wait_for_function("document.querySelector('.raters tbody tr td:nth-of-type(6)').innerText.includes('%')")
    reliable = {name: float(cell.split("%")[0]) for name, cell in column("Estimated accuracy").items()}
    assert reliable["Chiara"] < 50 < min(reliable["Ada"], reliable["Bruno"])
    page.focus("[data-sort=agrees]")
    for order, last in (("descending", "Chiara"), ("ascending", "Bruno")):
        press(page, "Enter")
        assert page.get_attribute("th:has([data-sort=agrees])", "aria-sort") == order
        assert list(column("Agreement"))[-1] == last
        assert page.evaluate("document.activeElement.dataset.sort") == "agrees", "the focus stays"
    explained = page.locator(".columns dt").all_inner_texts()
    assert set(columns) - set(explained) == {"Rater", "Judged", "Access"}


def listed_pulls(page: Any) -> dict[str, list[str]]:
    """The pairs on the overview that pull against the rest, and whose judgments they are."""
    return {
        row.locator("[data-pulled]").get_attribute("title").removeprefix("Open "): sorted(
            row.locator("td").last.text_content().split(", ")
        )
        for row in page.locator(".pulls tbody tr").all()
    }


def test_a_lead_finds_a_bad_raters_work_and_has_it_done_again(site: Site) -> None:
    judge_everything(site.store)
    chiara = next(one.id for one in site.store.raters() if one.name == "Chiara")
    page = site.page("Zoe", "/lead/")
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.wait_for_selector(".pulls [data-pulled]")
    assert listed_pulls(page) == {"pair-2": ["Ada", "Bruno"], "pair-5": ["Chiara"]}
    page.click("button[data-view=items]")
    page.wait_for_function("document.querySelectorAll('.found button').length === 8")
    page.select_option(".filters [name=agreement]", "side")
    page.fill(".filters [name=text]", '"question 5"')
    page.wait_for_function("document.querySelectorAll('.found button').length === 1")
    assert page.url.endswith("#view=items&text=%22question+5%22&agreement=side")
    page.click(".found button")
    page.wait_for_selector(".item .history li >> nth=2")
    assert page.locator(".item .given tr").count() == 3
    again = site.page("Zoe", "/lead/" + page.url.partition("/lead/")[2])
    again.wait_for_selector(".item h2 >> text=pair-5")  # the address alone opens it
    assert again.locator(".found button").count() == 1
    again.context.close()
    page.evaluate("location.hash = '#view=items&state=gold'")  # a colleague's link, in the same window
    page.wait_for_selector(".found [data-item=pair-0]")
    assert page.input_value(".filters [name=text]") == ""
    page.go_back()
    page.wait_for_selector(".found [data-item=pair-5]")
    assert page.input_value(".filters [name=text]") == '"question 5"'
    page.click("button[data-view=raters]")
    page.click(f"[data-person='{chiara}']")
    page.wait_for_selector(".person .given tr >> nth=7")
    page.click("[data-form=period] button")
    page.wait_for_selector(".rejecting[open]")
    effect = page.inner_text(".effect").split("\n")
    assert effect[:4] == ["Judgments", "8", "Pairs", "8"]
    assert "Pairs whose majority changes" not in effect, "two agree on each"
    page.click("[data-reject]")
    assert page.is_visible(".rejecting[open]"), "a reason is asked for"
    page.fill(".rejecting [name=reason]", "prefers the longer one")
    page.click("[data-reject]")
    page.wait_for_function("document.querySelectorAll('.person .rejected').length === 8")
    assert site.store.status()["judgments"] == {"human": 16}
    page.wait_for_function("document.querySelectorAll('.pulls [data-pulled]').length === 1")
    assert listed_pulls(page) == {"pair-2": ["Ada", "Bruno"]}, "no judgment of the other pair is left"
    assert "Chiara" not in page.locator(".pulls").text_content()
    page.click("button[data-view=items]")
    page.click(".filters [type=reset]")
    page.wait_for_function("document.querySelectorAll('.found button').length === 8")
    page.check("[data-pick=pair-1]")
    page.check("[data-pick=pair-2]")
    page.click("button[data-view=batches]")
    page.fill("[data-form=batch] [name=name]", AGAIN)
    page.click("[data-form=batch] button")
    page.wait_for_selector(f"[data-field='deadline/{AGAIN}']")
    page.fill(f"[data-field='deadline/{AGAIN}']", "2020-02-02")
    page.wait_for_selector(f"tr:has([data-field='deadline/{AGAIN}']) .note >> text=reached")
    file = {"name": "new.csv", "mimeType": "text/csv", "buffer": b"prompt,response_a,response_b\nWhy?,<b>x</b>,y\n"}
    page.set_input_files("[data-form=upload] [type=file]", file)
    page.select_option("[data-form=upload] select", AGAIN)
    page.click("[data-form=upload] button")
    page.wait_for_selector(".looked .sample")
    page.click("[data-upload]")
    page.wait_for_selector(".looked >> text=Pairs added: 1")
    assert len(site.store.pairs_in_batch(AGAIN)) == 1
    page.click("button[data-view=items]")
    page.wait_for_function("document.querySelectorAll('.found button').length === 9")
    for name in ("pair-1", "pair-2"):
        page.check(f"[data-pick={name}]")
    page.select_option(".acting select", AGAIN)
    page.click("[data-act=move]")
    page.wait_for_selector(f".found [data-item=pair-2] .note >> text={AGAIN[:3]}")
    note = page.inner_text(".found [data-item=pair-2] .note")
    assert f"pair-2 · \u2068{AGAIN}\u2069 · " in note, "the name turns nothing around it"
    assert len(site.store.pairs_in_batch(AGAIN)) == 3
    page.click(".found [data-item=pair-2]")
    page.wait_for_selector(".item h2 >> text=pair-2")
    page.select_option("[data-gold]", "B")
    page.wait_for_selector(".item .history >> text=made gold: B")
    page.select_option("[data-gold]", "none")
    page.wait_for_selector(".item .history >> text=no longer gold")
    page.click(".item summary >> text=Correct")
    page.fill(".correcting textarea >> nth=0", "A better first")
    page.click(".correcting button")
    page.wait_for_selector(".item h2 >> text=pair-2@2")
    assert errors == []
    assert verify(site.store).faults == []


def test_a_lead_invites_many_and_an_observer_changes_nothing(site: Site) -> None:
    page = site.page("Zoe", "/lead/#view=raters")
    page.fill("[data-form=invite] [name=names]", "Ada\nBo\n")
    page.select_option("[data-form=invite] [name=role]", "observer")
    page.click("[data-form=invite] button")
    page.wait_for_selector(".links textarea:visible")
    links = page.input_value(".links textarea").split("\n")
    assert [line.split("\t")[0] for line in links] == ["Ada", "Bo"]
    page.wait_for_selector(".invited tbody tr >> nth=1")
    page.click(".invited tbody tr:first-child [data-revoke]")
    page.wait_for_selector(".invited tbody tr:first-child >> text=revoked")
    guest = site.browser.new_context().new_page()
    guest.goto(links[1].split("\t")[1])
    guest.fill("[name=username]", "Bo Smith")
    guest.fill("[name=password]", PASSWORD)
    press(guest, "Enter")
    guest.wait_for_selector(".lead:visible")
    guest.context.close()
    (observer,) = [one for one in site.store.raters() if one.role == "observer"]
    seen = site.page(observer.name, "/lead/#view=batches")
    seen.wait_for_selector(".batches tbody tr")
    assert not seen.is_visible("[data-batch='']")
    assert not seen.is_visible(".filling")
    page.reload()
    page.click(f"[data-person='{observer.id}']")
    page.on("dialog", lambda dialog: dialog.accept())
    page.select_option("[data-role-of]", "reviewer")
    page.wait_for_selector(".raters tbody >> text=reviewer")
    page.click("[data-password-of]")
    page.wait_for_selector(".password >> text=New password")
    assert log_in(site.store, observer.name, page.inner_text(".password").split(": ")[1]) is not None
