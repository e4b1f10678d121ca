"""Images and recordings, messages, notices, keys and known answers, in a real Chromium: each by keys, and seen by axe."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from label_support import CHROMIUM, FLAGS, needs_chromium, serving_config
from test_label_browser import PASSWORD, UNSEEN_FOCUS, Site, axe, eventually, faults_of_both, press  # noqa: F401
from test_label_mail import StandIn
from test_label_media import asked, png, wav

from labeling_ui.configuration import LabelConfig
from labeling_ui.store.leads import notes
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from labeling_ui.web.login.accounts import add_account
from tiebreak.data.pairs import read_pairs

pytestmark = needs_chromium

ASKS = "\u05e9\u05d5\u05d0\u05dc\u05ea"
NOTICES = """window.noticed = [];
window.Notification = class {
  constructor(...about) { window.noticed.push(about[0]); }
  addEventListener() {}
  static requestPermission() { return Promise.resolve(window.answersNo ? 'denied' : 'granted'); }
  static get permission() { return 'granted'; }
};
const plain = window.setInterval; window.setInterval = (act, ms) => plain(act, ms === 60000 ? 200 : ms);"""
"""What a browser shows beside the page is kept, and the page looks for work more often."""


def rows() -> list[dict[str, Any]]:
    """A pair with an image in its prompt, two images in one answer and a recording in the other, and two of text."""
    shown = [{"type": "text", "text": "A leaf:"}, {"type": "image", "image": "one.png", "alt": "blue"}]
    heard = [{"type": "text", "text": "Listen:"}, {"type": "audio", "audio": "talk.wav", "alt": "a voice"}]
    answers = [[{"role": "assistant", "content": content}] for content in (shown, heard)]
    first = {"prompt": asked("leaf.png", "a green leaf"), "response_a": answers[0], "response_b": answers[1]}
    return [first, *({"prompt": f"question {n}?", "response_a": "a", "response_b": "b"} for n in range(2))]


@pytest.fixture(scope="module")
def mail_server() -> Iterator[StandIn]:
    server = StandIn(None)
    yield server
    server.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, mail_server: StandIn) -> Iterator[Site]:
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("screen")
    (folder / "files").mkdir()
    for name, raw in (("leaf.png", png((400, 200), "green")), ("one.png", png((40, 900))), ("talk.wav", wav())):
        (folder / "files" / name).write_bytes(raw)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    image = [{"role": "assistant", "content": [{"type": "image", "image": "one.png", "alt": "blue"}]}]
    single = [{"prompt": asked("leaf.png", "a green leaf"), "completion": image, "task": "review"}]
    single += [{"prompt": "q", "completion": "a", "task": task} for task in ("rate", "classify")]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in single))
    config = {
        "output": str(folder / "label"),
        "pairs": str(folder / "pairs.jsonl"),
        "answers": str(folder / "answers.jsonl"),
        "media": str(folder / "files"),
        "classes": ["law", "medicine"],
        "overlap": 60,
        "repeat_share": 0.0,
        "mail": {
            "server": "127.0.0.1",
            "port": mail_server.port,
            "security": "none",
            "sender": "labels@example.org",
            "link": "https://labels.example.org/rate/",
        },
        "guidelines": "Be fair.",
        "consent": "What you say trains a model.",
    }
    (folder / "label.yaml").write_text(yaml.safe_dump(config))
    store = Store.open(LabelConfig(**config).store_url, create=True)
    add_account(store, "first", "rater", PASSWORD)
    with serving_config(folder / "label.yaml") as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS.split())
        site = Site(address, store, browser, [])
        yield site
        browser.close()
    assert site.elsewhere == []
    assert verify(store).faults == []
    store.close()


@pytest.fixture(autouse=True)
def _windows_closed(site: Site) -> Iterator[None]:
    yield
    for window in site.browser.contexts:
        window.close()


def shown_size(page: Any) -> tuple[float, float, float]:
    """How the opened image is placed: its scale, and how far it is moved."""
    place = "const m = new DOMMatrix(getComputedStyle(document.querySelector('.frame img')).transform); [m.a, m.e, m.f]"
    scale, right, down = page.evaluate(place)
    return round(scale, 3), round(right), round(down)


def test_an_image_is_enlarged_and_moved_by_keys_which_judge_nothing(site: Site, axe: str) -> None:  # noqa: F811
    page = site.open("looks")
    page.wait_for_function("[...document.querySelectorAll('figure img')].every((one) => one.naturalWidth > 0)")
    assert sorted(one.get_attribute("alt") for one in page.locator("figure img").all()) == ["a green leaf", "blue"]
    assert page.locator("audio[controls]").get_attribute("aria-label") == "a voice"
    assert "Recording 1: a voice" in page.inner_text(".answers")
    assert page.locator(".answer .edit:disabled").count() == 2  # an edit would lose the files
    assert faults_of_both(page, axe) == []
    press(page, "i")
    page.wait_for_selector("[data-card=picture][open]")
    assert page.inner_text("[data-card=picture] h2") == "Image 1: a green leaf"
    assert shown_size(page) == (1, 0, 0)
    assert faults_of_both(page, axe) == []
    press(page, "+", "+")
    assert shown_size(page)[0] == 2.25
    press(page, "ArrowRight", "ArrowDown")
    assert shown_size(page) == (2.25, -60, -60)
    press(page, "-", "0", "4", "b", "s")
    assert shown_size(page) == (1, 0, 0)
    page.dblclick(".frame")
    assert shown_size(page)[0] == 3
    press(page, "i")
    assert page.inner_text("[data-card=picture] h2") == "Image 1: blue"
    assert shown_size(page)[0] == 1
    press(page, "i")
    page.wait_for_selector("[data-card=picture]", state="hidden")
    page.click("[data-picture]")
    page.wait_for_selector("[data-card=picture][open]")
    press(page, "Escape", "4")
    page.wait_for_function("document.querySelector('.prompt').innerText.includes('question')")
    eventually(page, lambda: len(site.judgments("looks")) == 1, "one judgment, by the key after the image was closed")


def test_a_single_answer_with_an_image_is_reviewed_without_an_edit(site: Site, axe: str) -> None:  # noqa: F811
    page = site.open("reviews", after=3)
    page.wait_for_selector(".desk[data-task=review]")
    assert page.locator(".answer figure img").get_attribute("alt") == "blue"
    assert page.locator("[data-step='\"edit\"']").is_disabled()
    assert faults_of_both(page, axe) == []
    press(page, "2", "e")  # neither does anything
    assert page.locator(".answer textarea").is_hidden()
    press(page, "1")
    page.wait_for_selector(".desk[data-task=rate]")
    eventually(page, lambda: [j.value for j in site.judgments("reviews", 3)] == ["accept"], "accepted")


def test_a_rater_and_a_lead_write_about_a_pair(site: Site, axe: str) -> None:  # noqa: F811
    page = site.open(ASKS)
    press(page, "q")
    page.wait_for_selector("[data-card=note][open] textarea:focus")
    page.keyboard.type("1 or 7? <b>Both</b> \U0001f642 \u05e9\u05dc\u05d5\u05dd")
    assert faults_of_both(page, axe) == []
    page.click("[data-card=note] .primary")
    page.wait_for_selector("[data-card=note]", state="hidden")
    assert page.inner_text(".saved") == "Sent to your lead"
    assert not site.judgments(ASKS)
    lead = site.open("answers them", role="lead", path="/lead/")
    thread = lead.locator(".notes .thread").filter(has_text="1 or 7?")
    thread.wait_for()
    assert "<b>Both</b>" in thread.inner_text()
    assert f"\u2068{ASKS}\u2069" in thread.inner_text(), "the name does not turn the date behind it"
    assert faults_of_both(lead, axe) == []
    what_is_typed_outlives_the_session(lead, axe)
    assert thread.locator("textarea").input_value() == "Seven."
    thread.locator("form button:not([type=button])").dblclick()
    thread.wait_for(state="detached")
    (written,) = site.store.transact(
        lambda tx: [one for one in notes.threads_of_item(tx.connection, lead_item(page)) if len(one.notes) > 1]
    )
    assert [one.text for one in written.notes][1:] == ["Seven."], "a double click sends it once"
    lead.reload()
    lead.wait_for_selector(".desk[aria-busy=false]")
    assert lead.locator(".notes .kept").count() == 0
    lead.click("button[data-view=documents]")
    lead.click("[data-form=document] .kept button")  # the guidelines, which have not been sent, are discarded
    assert lead.input_value("[data-form=document] textarea") == "Be fair."
    page.reload()
    page.wait_for_selector("[data-open=work].new")
    press(page, "w")
    page.wait_for_selector(".work[aria-busy=false] section.thread")
    assert "Seven." in page.inner_text(".work section.thread")
    assert "answers them" not in page.inner_text(".work")  # leads are not named
    assert faults_of_both(page, axe) == []
    count, unseen = page.evaluate(UNSEEN_FOCUS)
    assert (count > 5, unseen) == (True, [])
    assert page.locator("[data-open=work].new").count() == 0
    page.locator(".work section.thread button").click()
    page.wait_for_selector("[data-card=note][open] .thread p.theirs")
    page.fill("[data-card=note] textarea", "Thank you.")
    page.context.set_offline(True)
    page.click("[data-card=note] .primary")
    page.wait_for_function("document.querySelector('[data-card=note] .problem').textContent")
    assert page.input_value("[data-card=note] textarea") == "Thank you."  # still there to be sent again
    page.context.set_offline(False)
    page.click("[data-card=note] .primary")
    page.wait_for_selector("[data-card=note]", state="hidden")


def lead_item(page: Any) -> str:
    """The pair on the screen."""
    return str(page.get_attribute(".desk", "data-pair"))


def what_is_typed_outlives_the_session(lead: Any, axe: str) -> None:  # noqa: F811
    """A lead types in five views; the session ends, and the next login brings all of it back."""
    lead.fill(".notes .thread textarea", "Seven.")
    typed = {
        "raters": ("[data-form=pay] [name=rate]", "12.5"),
        "disputes": ("[data-form=sample] [name=count]", "33"),
        "batches": ("[data-field='priority/']", "101"),
    }
    for view, (field, text) in typed.items():
        lead.click(f"button[data-view={view}]")
        lead.fill(field, text)
    press(lead, "Tab")  # the page refuses a priority above 100
    lead.click("button[data-view=documents]")
    lead.wait_for_function("!document.querySelector('[data-form=document] textarea').readOnly")
    lead.fill("[data-form=document] textarea", "Be fair, and \u05d4\u05d5\u05d2\u05df.\n")
    lead.click("[data-document=consent]")
    lead.wait_for_selector("[data-document=consent][aria-pressed=true]")
    lead.wait_for_function("document.querySelector('[data-form=document] textarea').value.startsWith('What you say')")
    lead.click("[data-document=guidelines]")
    lead.wait_for_selector(".kept:visible")
    lead.context.clear_cookies()
    lead.click("[data-form=document] .leads-only button.plain")
    lead.wait_for_url("**/login/")
    lead.fill("[name=username]", "answers them")
    lead.fill("[name=password]", PASSWORD)
    lead.keyboard.press("Enter")
    lead.wait_for_url("**/lead/#view=documents")
    lead.wait_for_selector(".kept:visible")
    assert lead.input_value("[data-form=document] textarea") == "Be fair, and \u05d4\u05d5\u05d2\u05df.\n"
    assert faults_of_both(lead, axe) == []
    for view, (field, text) in typed.items():
        lead.click(f"button[data-view={view}]")
        lead.wait_for_selector(f"[data-for={view}] .kept")
        assert lead.input_value(field) == text
    assert faults_of_both(lead, axe) == []
    lead.click(".batches .kept [data-drop]")
    assert lead.input_value("[data-field='priority/']") == "0"
    lead.click("button[data-view=overview]")
    lead.wait_for_selector(".notes .thread textarea")


def test_a_notice_says_that_there_is_work_again(site: Site, tmp_path: Path, axe: str) -> None:  # noqa: F811
    page = site.open("waits", after=3)
    page.add_init_script(NOTICES)
    page.reload()
    page.wait_for_selector(".desk[aria-busy=false]:not([data-pair=''])")
    press(page, "w")
    page.wait_for_selector(".work[aria-busy=false] .notice")
    page.evaluate("window.answersNo = true")
    page.click(".notice input")
    page.wait_for_function("document.querySelector('.notice').parentElement.innerText.length > 60")
    assert not page.is_checked(".notice input")
    page.evaluate("window.answersNo = false")
    page.check(".notice input")
    assert faults_of_both(page, axe) == []
    press(page, "Escape")
    for task in ("review", "rate", "classify"):
        page.wait_for_selector(f".desk[data-task={task}]:not([data-pair=''])")
        press(page, "1")
    page.wait_for_selector(".rest.finished")
    assert page.evaluate("window.noticed") == []
    page.evaluate("Object.defineProperty(document, 'hidden', { get: () => true })")
    (tmp_path / "more.jsonl").write_text(json.dumps({"prompt": "more?", "response_a": "a", "response_b": "b"}) + "\n")
    site.store.add_pairs(read_pairs(str(tmp_path / "more.jsonl")), overlap=60, seed=0, source="more", source_id="more")
    page.wait_for_function("window.noticed.length === 1")


def test_a_new_pair_is_seen_before_its_fields_and_a_cut_paste_is_reported(site: Site) -> None:
    page = site.open("small windows", after=1, viewport={"width": 683, "height": 384})
    page.wait_for_selector(".desk[aria-busy=false]:not([data-pair=''])")
    assert page.locator(".details").is_hidden()
    press(page, "r")
    page.keyboard.type("kept")
    paste = "document.activeElement.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true }))"
    for count, said in (
        (3_996, ""),
        (3_997, "This field takes 4,000 characters: the rest of what you pasted was cut off."),
    ):
        page.evaluate(f"const data = new DataTransfer(); data.setData('text', 'x'.repeat({count})); {paste};")
        assert page.inner_text(".saved") == said
    before = page.get_attribute(".desk", "data-pair")
    press(page, "Escape", "4")
    page.wait_for_function(f"document.querySelector('.desk').dataset.pair !== '{before}'")
    assert page.locator(".details").is_hidden(), "the fields are folded away again"
    press(page, "u")
    page.wait_for_function(f"document.querySelector('.desk').dataset.pair === '{before}'")
    assert page.locator(".details").is_visible(), "what was written is seen"


def test_an_address_is_confirmed_and_removed_on_the_page(site: Site, mail_server: StandIn, axe: str) -> None:  # noqa: F811
    page = site.open("wants mail")
    press(page, "w")
    page.wait_for_selector(".work[aria-busy=false] .mail [name=email]")
    page.fill(".mail [name=email]", "ada@example.org")
    page.press(".mail [name=email]", "Enter")
    page.wait_for_selector(".mail [name=code]:focus")
    assert "ada@example.org" in page.inner_text(".mail .note")
    eventually(page, lambda: len(mail_server.mails) == 1, "the code is on its way")
    code = re.search(r"Subject: (\d{6})", mail_server.mails[0])
    assert code is not None
    page.fill(".mail [name=code]", f"{(int(code[1]) + 1) % 1_000_000:06}")
    page.press(".mail [name=code]", "Enter")
    page.wait_for_function("document.querySelector('.mail .note').textContent.includes('wrong')")
    assert faults_of_both(page, axe) == []
    page.fill(".mail [name=code]", code[1])
    page.press(".mail [name=code]", "Enter")
    page.wait_for_function("document.querySelector('.mail').innerText.includes('Mails go to ada@example.org.')")
    page.click(".mail [data-mail=forget]")
    page.wait_for_selector(".mail [name=email]")


def test_a_password_can_be_shown(site: Site, axe: str) -> None:  # noqa: F811
    page = site.window().new_page()
    page.goto(f"{site.address}/login/")
    page.fill("[name=password]", "a wrong password")
    page.press("[name=password]", "Tab")
    page.keyboard.press("Space")
    assert page.get_attribute("[name=password]", "type") == "text"
    assert faults_of_both(page, axe) == []
    page.fill("[name=username]", "nobody")
    press(page, "Enter")
    page.wait_for_selector(".problem:visible")
    assert page.get_attribute("[name=password]", "type") == "password"


def test_the_page_of_keys_is_seen_and_reached_by_keys(site: Site, axe: str) -> None:  # noqa: F811
    page = site.open("chooses keys")
    press(page, "?")
    page.focus("[data-bindings]")
    press(page, "Enter")
    page.wait_for_selector("[data-card=bindings][open]")
    assert faults_of_both(page, axe) == []
    count, unseen = page.evaluate(UNSEEN_FOCUS)
    assert (count > 20, unseen) == (True, [])
    page.focus("[data-bind=t]")
    press(page, "Enter", "z")
    assert page.inner_text(".bind-note") == "Z is now the key for: tie"
    assert page.evaluate("document.activeElement.dataset.bind") == "t"


def test_known_answers_of_every_task_are_set_and_withdrawn(site: Site, axe: str) -> None:  # noqa: F811
    page = site.open("knows", role="lead", path="/lead/#view=items")
    page.wait_for_selector(".found li button")
    wanted: list[tuple[str, str | int]] = [("review", "reject"), ("rating", 4), ("classification", "medicine")]
    for task, value in wanted:
        page.locator(".found li").filter(has_text=task).locator("button").first.click()
        page.wait_for_selector(f".item [data-gold] option[value='value:{value}']", state="attached")
        page.select_option(".item [data-gold]", f"value:{value}")
        eventually(page, lambda value=value: value in [one.value for one in site.store.gold()], task)
        page.wait_for_function(f"document.querySelector('.item [data-gold]').value === 'value:{value}'")
        assert faults_of_both(page, axe) == []
    page.select_option(".item [data-gold]", "none")
    eventually(page, lambda: [one.value for one in site.store.gold()] == ["reject", 4], "the last is no longer known")
    page.reload()
    page.wait_for_selector(".found li button")
    page.select_option(".filters [name=state]", "gold")
    page.wait_for_function("document.querySelectorAll('.found li').length === 2")


def test_a_lead_adds_files_by_choosing_and_dropping(site: Site, axe: str) -> None:  # noqa: F811
    page = site.open("adds files", role="lead", path="/lead/#view=batches")
    page.wait_for_selector(".files tbody tr")
    assert "20 MB" in page.inner_text(".files .limits")
    files = [
        {"name": "new.png", "mimeType": "image/png", "buffer": png()},
        {"name": "page.svg", "mimeType": "image/svg+xml", "buffer": b"<svg onload='window.pwned=1'/>"},
    ]
    page.set_input_files("[name=media]", files)
    page.fill("[name=alt0]", "a square")
    assert faults_of_both(page, axe) == []
    page.click("[data-form=files] button")
    page.wait_for_selector(".files tbody th:has-text('new.png')")
    assert page.inner_text(".files .state") == "Files added: 1."
    assert "no PNG, JPEG, WebP or GIF" in page.inner_text(
        "[data-form=files]"
    )  # what was refused stays, with the reason
    assert page.input_value("[data-describe='new.png']") == "a square"
    page.fill("[data-describe='new.png']", "a blue square")
    page.press("[data-describe='new.png']", "Tab")
    page.wait_for_function("document.querySelector('.files .state').textContent.includes('new.png')")
    transfer = page.evaluate_handle(
        "() => { const all = new DataTransfer(); all.items.add(new File(['no image'], 'x.txt')); return all; }"
    )
    page.dispatch_event(".files .drop", "drop", {"dataTransfer": transfer})
    page.wait_for_selector("[data-form=files] li:has-text('x.txt')")
    assert page.locator("[data-form=files] li").count() == 1
    assert page.evaluate("window.pwned") is None
    assert faults_of_both(page, axe) == []
