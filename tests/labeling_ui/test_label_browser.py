"""The pages in a real Chromium, on a real server: what raters and leads do there, and what becomes of it in the store."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import gmtime, monotonic, sleep, strftime, time
from typing import Any

import pytest
import sqlalchemy as sa
from label_support import CHROMIUM, FLAGS, make_pair, needs_chromium, processes, serving, write_words

from labeling_ui.database.schema import EVENTS
from labeling_ui.pages import PageConfig, describe_page
from labeling_ui.store.leads.rejecting import Selection
from labeling_ui.store.store import Store, Submission
from labeling_ui.store.verify import verify
from labeling_ui.store.work import conversations
from labeling_ui.web.context import SESSION_COOKIE
from labeling_ui.web.login.accounts import add_account, invite, log_in
from labeling_ui.worker import answer_one
from tiebreak.messages import Message
from tiebreak.records import Completion, Judgment, Pair

pytestmark = needs_chromium

PASSWORD = "a long password"
EVIL = (
    "<script>window.pwned=1</script><img src=x onerror='window.pwned=1'> <svg onload=window.pwned=1> "
    "[press](javascript:window.pwned=1) ![picture](http://pictures.invalid/x.png) <http://links.invalid> "
    "${window.pwned=1} {{value}} \u202egnp.exe $\\href{javascript:window.pwned=1}{x}$"
)
LONG = "A paragraph of an answer that goes on for a while, so that it fills more than one line.\n\n" * 60
PLAIN = "The editor of a journal counts how many letters there are in each of the lines that people have to read. "
HOSTILE = [
    (EVIL, "**plain** answer"),
    ("x" * 1_000_000, "short"),
    ("a\u0301" * 3_000, "\u05d0\u05d1\u05d2 right to left \u05d3\u05d4"),
    ("| " * 200 + "\n" + "|-" * 200 + "\n", "$$" + "x^{" * 30 + "y" + "}" * 30 + "$$"),
]
GUIDELINES = "Prefer the **true** answer.\n\n1. Read both.\n2. Check `1 + 1`.\n\n> When in doubt, it is a tie.\n"
CODE = "def f(x):\n    return x < 1\n"
QUICK = """const plain = window.setTimeout, shorter = { 300: 20, 3000: 300 };
window.setTimeout = (act, ms, ...rest) => plain(act, shorter[ms] || ms, ...rest);"""
"""A new pair takes answers at once: tests do not press twice by accident. What was saved is shown for a shorter time."""
CHOICES = 3
"""answers of the last pair, which is a ranking"""


def campaign() -> list[Pair]:
    """Hostile pairs, plain ones, one with a long conversation, and a ranking."""
    pairs = [make_pair(n, *texts) for n, texts in enumerate(HOSTILE)]
    pairs += [make_pair(n, f"first {n}", f"second {n}") for n in range(len(HOSTILE), 12)]
    pairs[8] = make_pair(8, f"# One\n\n## Two\n\n### Three\n\n{PLAIN * 9}\n", f"{PLAIN * 9}\n")
    pairs[9] = make_pair(9, "In English.\n\n- \u05d0\u05d1\n- \u05d2\n", "\u05d0\u05d1\u05d2\n\n- \u05d0\n")
    pairs[10] = make_pair(10, f"Code:\n\n```python\n{CODE}```\n", "second 10")
    hebrew = (Message(role="user", content="\u05e9\u05dc\u05d5\u05dd"),)
    pairs[9] = pairs[9].model_copy(update={"messages": hebrew})
    talk = [Message(role="assistant" if n % 2 else "user", content=LONG[:900]) for n in range(7)]
    pairs[5] = make_pair(5, "first\r\nline\rand more", LONG.replace("\n", "\r\n"))
    pairs[7] = pairs[7].model_copy(update={"messages": tuple(talk)})
    return [*pairs, make_pair(12, "one", "two", ("three",))]


@dataclass(frozen=True)
class Site:
    """A campaign that is served, and a browser."""

    address: str
    store: Store
    browser: Any
    elsewhere: list[str]
    """requests to other hosts, by any of the pages"""

    def open(self, rater: str, *, role: Any = "rater", path: str = "/rate/", after: int = 0, **context: Any) -> Any:
        """A page of a new rater, who has accepted the guidelines and judged the first `after` pairs."""
        rater_id = add_account(self.store, rater, role, PASSWORD).id
        for document in ("guidelines", "consent"):
            self.store.accept(rater_id, self.store.published(document)[-1], document)
        self.judge(rater_id, after)
        return self.page(rater, path, **context)

    def judge(self, rater_id: str, count: int) -> None:
        """A rater judges their next pairs, all of them ties."""
        for _ in range(count):
            given = self.store.claim(rater_id)
            assert given is not None
            self.store.submit(rater_id, Submission(client_id=f"c-{given.item_id}", pair_id=given.item_id, answer=0))

    def answer(self) -> None:
        """Answer what waits in a conversation."""
        request, give_up = None, monotonic() + 600
        while request is None:  # the page says "waiting" before the server has the message
            assert monotonic() < give_up, "no message came"
            sleep(0.02)
            request = self.store.transact(conversations.take)
        answers = [Completion(id=f"{n}{request.turn_id}", text=f"answer {n}", policy=f"policy {n}") for n in "ab"]
        answer_one(self.store, lambda _: answers, request)

    def window(self, quick: bool = True, **context: Any) -> Any:
        """A window without animations, and without the wait before a new pair takes an answer."""
        window = self.browser.new_context(
            **{"viewport": {"width": 1366, "height": 768}, "reduced_motion": "reduce", **context}
        )
        if quick:
            window.add_init_script(QUICK)
        window.set_default_timeout(180_000)
        return window

    def page(self, rater: str, path: str = "/rate/", **context: Any) -> Any:
        """A page of a rater who is there."""
        session = log_in(self.store, rater, PASSWORD)
        assert session is not None
        window = self.window(**context)
        window.add_cookies([{"name": SESSION_COOKIE, "value": session.token, "url": self.address}])
        window.on("request", lambda one: None if one.url.startswith(self.address) else self.elsewhere.append(one.url))
        page = window.new_page()
        page.goto(self.address + path)
        page.wait_for_selector(".desk[aria-busy=false]")
        return page

    def judgments(self, rater: str, after: int = 0) -> list[Judgment]:
        """A rater's judgments that stand, the oldest first."""
        rater_id = next(one.id for one in self.store.raters() if one.name == rater)
        return [past.judgment for past in reversed(self.store.history(rater_id))][after:]

    def events(self, rater: str) -> list[str]:
        """What the log says of a rater."""
        rater_id = next(one.id for one in self.store.raters() if one.name == rater)
        with self.store.reading() as connection:
            return list(connection.scalars(sa.select(EVENTS.c.kind).where(EVENTS.c.rater_id == rater_id)))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("browser")
    store = Store.open(f"sqlite:///{folder}/label.sqlite", create=True)
    add_account(store, "first", "rater", PASSWORD)
    words = ["--overlap", "60", "--ranking", "true", "--aspects", "helpful", "honest", "harmless"]
    words += [
        "--guidelines",
        GUIDELINES,
        "--consent",
        "What you say trains a model.",
        "--show-gold-agreement",
        "true",
        "--break-after-minutes",
        "50",
    ]
    words += ["--converse.policies", "nobody"]
    with serving(folder, campaign(), *words) as (address, _), sync_playwright() as playwright:
        for module, about in (("labeling_ui.worker", str(folder)), ("preference.answer", "nobody")):
            for process in processes(module, about):
                os.kill(process, signal.SIGKILL)  # the tests answer
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS.split())
        site = Site(address, store, browser, [])
        yield site
        browser.close()
    assert site.elsewhere == []
    assert verify(store).faults == []
    store.close()


@pytest.fixture(autouse=True)
def _windows_closed(request: pytest.FixtureRequest) -> Iterator[None]:
    """A page that stays open keeps asking the server, and redraws itself."""
    yield
    if "site" in request.fixturenames:
        for window in request.getfixturevalue("site").browser.contexts:
            window.close()


def on(page: Any, pair: int | str) -> None:
    """Wait until a pair is on the screen."""
    page.wait_for_selector(f".desk[data-pair=pair-{pair}]")


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.wait_for_selector(".desk:not([data-fresh])")  # a pair that has just appeared takes no answer
        page.keyboard.press(key)


def eventually(page: Any, found: Callable[[], bool], what: str) -> None:
    """Wait until the store says so; the page sends in the background."""
    for _ in range(2_000):
        if found():
            return
        page.wait_for_timeout(50)
    raise AssertionError(what)


# --- judging ---


def test_judging_by_keys(site: Site) -> None:
    page = site.open("keys")
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.reload()
    shown = []
    for n, keys in enumerate(["1", "7", "4", "t", "b", "s3", "5", "sEnter"]):
        on(page, n)
        shown.append(page.inner_text("[data-side=left] .text"))
        in_view(page, ".prompt", "[data-side=left]", "[data-side=right]", ".scale", ".others")
        if n == 0:
            press(page, "Control+1", "Alt+2", "x", "9", "?", "3", "Escape")  # none of them is a judgment
        press(page, *re.findall(r"[A-Z]\w+|.", keys))
    on(page, 8)
    eventually(page, lambda: len(site.judgments("keys")) == 8, "eight judgments")
    stored = [(j.answer, j.both_bad, j.skip_reason if j.skip else None) for j in site.judgments("keys")]
    assert stored == [
        (-3, False, None), (3, False, None), (0, False, None), (0, False, None),
        (None, True, None), (None, False, "broken"), (1, False, None), (None, False, ""),
    ]  # fmt: skip
    texts = {completion.id: completion.text for pair in campaign() for completion in pair.completions}
    for judgment, text in list(zip(site.judgments("keys"), shown, strict=True))[4:]:
        assert texts[judgment.left].split() == text.split(), "the side that is stored is the side that was shown"
    assert all(0 <= (j.seconds_active or 0) < 60 for j in site.judgments("keys"))
    assert site.events("keys").count("shown") >= 8
    assert page.evaluate("window.pwned") is None
    assert errors == []
    assert site.elsewhere == []


DOUBLE_PRESS = """() => new Promise((done) => {
  const key = { key: '1', code: 'Digit1', bubbles: true };
  const press = () => document.activeElement.dispatchEvent(new KeyboardEvent('keydown', key));
  press();
  setTimeout(() => { press(); done(); }, 60);
})"""
"""60 ms apart by the page's clock, however busy the machine is"""


def test_a_double_press_or_click_judges_one_pair(site: Site) -> None:
    page = site.open("double", after=4, quick=False)
    on(page, 4)
    page.evaluate(DOUBLE_PRESS)
    page.wait_for_timeout(400)
    on(page, 5)
    page.dblclick("[data-answer='2']", delay=20)
    page.wait_for_timeout(400)
    on(page, 6)
    page.focus("[data-answer='1']")
    press(page, "Enter")
    on(page, 7)
    press(page, "Enter", "Space")  # the focus is back on the pair, not on the button
    page.wait_for_timeout(400)
    on(page, 7)
    eventually(page, lambda: len(site.judgments("double", 4)) == 3, "three judgments")
    assert [judgment.answer for judgment in site.judgments("double", 4)] == [-3, 2, 1]
    two_windows_judge_no_pair_twice(site, page)


def two_windows_judge_no_pair_twice(site: Site, page: Any) -> None:
    """What was judged in the other window makes room for the next pair, but what is being written stays."""
    other = page.context.new_page()
    other.goto(site.address + "/rate/")
    on(other, 7)
    press(page, "1")
    on(page, 8)
    eventually(page, lambda: len(site.judgments("double", 4)) == 4, "the judgment")
    back = "document.dispatchEvent(new Event('visibilitychange'))"
    other.evaluate(back)
    on(other, 8)
    assert "you have already judged pair pair-7" in other.inner_text(".saved")
    press(other, "r")
    other.keyboard.type("both are wrong")
    press(page, "2")
    on(page, 9)
    eventually(page, lambda: len(site.judgments("double", 4)) == 5, "the judgment")
    with other.expect_response("**/api/shown/pair-8"):
        other.evaluate(back)
    other.wait_for_timeout(100)
    on(other, 8)
    press(other, "Escape", "7")
    other.wait_for_selector(".banner:has-text('An earlier judgment was rejected')")
    press(other, "w")
    other.wait_for_selector(".work .rejected >> text=both are wrong")
    assert [judgment.answer for judgment in site.judgments("double", 7)] == [-3, -2]


def in_view(page: Any, *selectors: str) -> None:
    size = page.viewport_size
    for selector in selectors:
        box = page.locator(selector).bounding_box()
        assert box is not None, selector
        assert box["height"] > 20, selector
        assert -0.5 <= box["y"] <= box["y"] + box["height"] <= size["height"] + 0.5, f"{selector} is not on the screen"
        assert -0.5 <= box["x"] <= box["x"] + box["width"] <= size["width"] + 0.5, f"{selector} is not on the screen"


LAYOUTS = [
    ("&", "Digit1", -3), ("\u00e9", "Digit2", -2), ("-", "Digit6", 2), ("\u00e8", "Digit7", 3),  # AZERTY
    ("+", "Digit1", -3), ("\u010d", "Digit4", 0),  # Czech
    ("\u0661", "Digit1", -3), ("\u06f3", "Digit3", -1), ("\u096d", "Digit7", 3),  # Arabic, Persian, Hindi
    ("5", "Numpad5", 1), ("\u0435", "KeyT", 0), ("\u0641", "KeyT", 0),  # a number pad; Cyrillic and Arabic letters
]  # fmt: skip
"""Of a key: what it writes, where it is, and the answer that it gives."""
DEAD = [("!", "Digit1", True), ("End", "Numpad1", False), ("\u00f6", "Semicolon", False), ("F4", "F4", False)]


def test_keys_of_other_layouts_and_scripts_judge(site: Site) -> None:
    page = site.open("layouts")
    send = "(one) => document.body.dispatchEvent(new KeyboardEvent('keydown', { ...one, bubbles: true }))"
    for n, (key, code, _) in enumerate(LAYOUTS):
        on(page, n)
        page.wait_for_selector(".desk:not([data-fresh])")
        for dead, place, shift in DEAD:
            page.evaluate(send, {"key": dead, "code": place, "shiftKey": shift})
        page.evaluate(send, {"key": key, "code": code})
    on(page, len(LAYOUTS))
    eventually(page, lambda: len(site.judgments("layouts")) == len(LAYOUTS), "all judged")
    assert [judgment.answer for judgment in site.judgments("layouts")] == [answer for *_, answer in LAYOUTS]
    page.evaluate(send, {"key": "\u0627", "code": "KeyW"})
    page.wait_for_selector("[data-card=work][open]")


DIALOG = """() => {
    const dialog = document.querySelector('dialog[open]');
    return [dialog.scrollHeight > dialog.clientHeight + 40, dialog.scrollTop, dialog.contains(document.activeElement)];
}"""
"""Of the open dialog: whether it scrolls, how far it is scrolled down, and whether it has the focus."""


def test_a_rater_chooses_keys_and_a_conflict_is_refused(site: Site) -> None:
    page = site.open("keys of one's own")
    on(page, 0)
    press(page, "?")
    assert page.evaluate(DIALOG) == [True, 0, True]
    press(page, "End")
    page.wait_for_function("document.querySelector('dialog[open]').scrollTop > 40")
    press(page, "?", "?")
    assert page.evaluate(DIALOG) == [True, 0, True], "again at its top"
    page.click("[data-bindings]")
    page.click("[data-bind='1']")
    press(page, "s")
    assert page.inner_text(".bind-note") == "S is already used for: skip"
    press(page, "ArrowUp")
    assert "fixed" in page.inner_text(".bind-note")
    press(page, "Numpad9")
    assert page.inner_text(".bind-note") == "Num 9 is now the key for: number 1"
    press(page, "Escape")
    assert page.inner_text("[data-answer='-3'] kbd") == "Num 9"
    press(page, "1")  # its old key does nothing
    page.reload()
    on(page, 0)
    press(page, "Numpad9")
    on(page, 1)
    press(page, "?")
    page.click("[data-bindings]")
    page.click("[data-reset-keys]")
    press(page, "Escape", "1")
    on(page, 2)
    eventually(page, lambda: len(site.judgments("keys of one's own")) == 2, "two judgments")
    assert [one.answer for one in site.judgments("keys of one's own")] == [-3, -3]


def test_keys_are_dead_while_typing_and_what_is_typed_is_saved(site: Site) -> None:
    page = site.open("dead", after=4)
    on(page, 4)
    press(page, "r")
    page.keyboard.type("17tbsu")
    press(page, "Enter")
    for event in ({"key": "1", "repeat": True}, {"key": "1", "isComposing": True}, {"key": "2", "metaKey": True}):
        page.evaluate(
            "(one) => document.body.dispatchEvent(new KeyboardEvent('keydown', {...one, bubbles: true}))", event
        )
    page.wait_for_timeout(100)
    assert page.get_attribute(".desk", "data-pair") == "pair-4"
    press(page, "6")
    on(page, 5)
    eventually(page, lambda: len(site.judgments("dead", 4)) == 1, "a judgment")
    assert [(j.rationale, j.answer) for j in site.judgments("dead", 4)] == [("17tbsu", 2)]
    a_draft_is_saved_and_comes_back(site, page)


def a_draft_is_saved_and_comes_back(site: Site, page: Any) -> None:
    press(page, "a", "6", "3", "Escape", "f", "2", "b", "f", "r")
    page.keyboard.type("because")
    with page.expect_response(
        lambda reply: "/api/drafts/" in reply.url and reply.request.method == "PUT", timeout=60_000
    ):
        pass
    page.reload()
    on(page, 5)
    assert page.input_value("[name=rationale]") == "because"
    assert page.is_checked(".flag input[value=personal_data][data-of=B]")
    assert page.get_attribute("[data-aspect=honest] [data-value='-1']", "aria-checked") == "true"
    press(page, "2")
    eventually(page, lambda: len(site.judgments("dead", 4)) == 2, "a judgment")
    judgment = site.judgments("dead", 4)[1]
    assert judgment.aspects == {"helpful": 2, "honest": -1}
    assert (judgment.flags, judgment.rationale, judgment.answer) == (("personal_data",), "because", -2)
    assert judgment.answer_flags == {judgment.right: ("personal_data",)}


def test_an_edit_goes_with_the_better_answer_alone_and_a_look_is_none(site: Site) -> None:
    page = site.open("edits", after=5)
    on(page, 5)
    press(page, "e", "Escape", "6")
    on(page, 6)
    before = page.inner_text("[data-side=left] .text")
    press(page, "e")
    page.keyboard.type("Better: ")
    press(page, "Escape", "6")
    assert "needs a vote for A" in page.inner_text(".banner")
    press(page, "3")
    on(page, 7)
    eventually(page, lambda: len(site.judgments("edits", 5)) == 2, "two judgments")
    stored = [(judgment.answer, judgment.edited_text) for judgment in site.judgments("edits", 5)]
    assert stored == [(2, None), (-1, f"Better: {before}")]


def test_undo_goes_back_through_the_history_and_enter_keeps_the_answer(site: Site) -> None:
    page = site.open("undoes", after=4)
    for n, key in ((4, "1"), (5, "t"), (6, "7")):
        on(page, n)
        press(page, key)
    on(page, 7)
    page.reload()  # the history is the store's, not the window's
    on(page, 7)
    for n, answer in ((6, 3), (5, 0), (4, -3)):
        press(page, "u")
        on(page, n)
        assert page.get_attribute(".judging .chosen", "data-answer") == str(answer)
    press(page, "Enter", "6", "Enter")
    on(page, 7)
    eventually(page, lambda: len(site.judgments("undoes", 4)) == 3, "three judgments")
    assert [j.answer for j in site.judgments("undoes", 4)] == [-3, 2, 3]
    assert site.events("undoes").count("undone") == 3
    assert page.inner_text(".count").startswith("7 judged")
    site.store.withdraw_pairs(["pair-6"], "a duplicate")
    press(page, "u")
    page.wait_for_selector(".banner:has-text('a lead has since withdrawn this pair')")
    press(page, "u")  # goes past the judgment that stays
    on(page, 5)
    assert page.get_attribute(".judging .chosen", "data-answer") == "2"
    press(page, "Enter")
    on(page, 7)
    site.store.restore_pairs(["pair-6"])
    assert [j.answer for j in site.judgments("undoes", 4)] == [-3, 3, 2]


def test_a_judgment_outlives_the_network_and_the_window(site: Site) -> None:
    page = site.open("offline", after=4)
    on(page, 4)
    page.wait_for_function(
        "performance.getEntriesByType('resource').filter((one) => /api.next/.test(one.name)).length > 2"
    )
    page.context.set_offline(True)
    press(page, "1")
    on(page, 5)  # the pair that was fetched ahead is shown all the same
    page.wait_for_selector(".banner[data-kind=lost]:visible")
    assert "Not saved yet" in page.inner_text(".banner")
    assert site.judgments("offline", 4) == []
    page.close()
    page.context.set_offline(False)
    page = page.context.new_page()
    page.goto(site.address)
    on(page, 5)
    eventually(page, lambda: len(site.judgments("offline", 4)) == 1, "the judgment came late")
    assert [(j.pair_id, j.answer) for j in site.judgments("offline", 4)] == [("pair-4", -3)]
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.startsWith('tiebreak-judgment')).length") == 0
    page.context.set_offline(True)
    press(page, "7")
    page.wait_for_selector(".banner[data-kind=lost]:visible")
    page.context.set_offline(False)
    page.wait_for_selector(".banner", state="hidden")
    eventually(page, lambda: len(site.judgments("offline", 4)) == 2, "sent again")


REPLY = """([status, headers]) => {
  window.plainFetch = window.plainFetch || window.fetch;
  window.fetch = (path, options) => (path === '/api/judgments'
    ? Promise.resolve(new Response('{"detail": "not here"}', { status, headers })) : plainFetch(path, options));
}"""
"""Judgments get this reply in the server's place."""


def test_only_the_server_takes_a_judgment_from_the_browser(site: Site) -> None:
    page = site.open("proxied", after=4)
    for n, status in enumerate((404, 421, 200)):
        on(page, 4 + n)
        page.evaluate(REPLY, [status, {}])  # another program behind the proxy, for a moment
        press(page, "r")
        page.keyboard.type(f"because {status}")
        press(page, "Enter", "6")
        page.wait_for_selector(".banner[data-kind=lost]:visible")
        on(page, 5 + n)
        assert len(site.judgments("proxied", 4)) == n
        page.evaluate("window.fetch = plainFetch")
        eventually(page, lambda n=n: len(site.judgments("proxied", 4)) == n + 1, "sent again")
    assert [j.rationale for j in site.judgments("proxied", 4)] == [f"because {n}" for n in (404, 421, 200)]
    page.evaluate(REPLY, [409, {"X-Tiebreak": "1"}])
    press(page, "r")
    page.keyboard.type("words to keep")
    press(page, "Enter", "6")
    page.wait_for_selector(".banner[data-kind=refused] >> text=not here")
    page.evaluate("window.fetch = plainFetch")
    press(page, "w")
    assert "words to keep" in page.inner_text(".work .rejected")


def test_judging_goes_on_where_the_storage_is_full(site: Site) -> None:
    page = site.open("full", after=4)
    on(page, 4)
    fill = """for (let size = 2 ** 20; size;) {
      try { localStorage.setItem(`x${size}-${Math.random()}`, 'x'.repeat(size)); } catch (error) { size >>= 1; }
    }"""
    page.evaluate(fill)
    page.evaluate(REPLY, [503, {}])
    press(page, "6")
    on(page, 5)
    page.wait_for_selector(".banner >> text=this browser cannot keep it")
    assert page.inner_text(".count").startswith("5 judged")
    page.evaluate("window.fetch = plainFetch")
    eventually(page, lambda: len(site.judgments("full", 4)) == 1, "sent from memory")
    page.wait_for_selector(".banner", state="hidden")


NOTHING_UNSENT = """{
  let config;
  const change = (text) => JSON.parse(text.replaceAll('"unsent_in_browser":true', '"unsent_in_browser":false'));
  const set = (given) => { config = change(JSON.stringify(given)); };
  Object.defineProperty(window, 'gradio_config', { get: () => config, set });
}"""
"""The page as a campaign with `unsent_in_browser: false` serves it."""


def test_nothing_typed_or_judged_is_in_the_browsers_storage_if_the_campaign_says_so(site: Site) -> None:
    assert describe_page(PageConfig("t"))["unsent_in_browser"] is True
    assert describe_page(PageConfig("t", unsent_in_browser=False))["unsent_in_browser"] is False
    page = site.open("shares a computer", after=4)
    before = (
        "{client_id: 'from-before', pair_id: document.querySelector('.desk').dataset.pair, answer: 2, client_at_ms: 1}"
    )
    rater_id = next(one.id for one in site.store.raters() if one.name == "shares a computer")
    page.evaluate(f"localStorage.setItem('tiebreak-judgment:{rater_id}:from-before', JSON.stringify({before}))")
    page.add_init_script(NOTHING_UNSENT)
    page.reload()
    page.wait_for_selector(".desk[aria-busy=false]")
    eventually(page, lambda: [one.answer for one in site.judgments("shares a computer", 4)] == [2], "sent")
    on(page, 5)
    page.evaluate(REPLY, [503, {}])
    press(page, "r")
    page.keyboard.type("a secret reason")
    press(page, "Enter", "6")
    on(page, 6)
    page.wait_for_selector(".banner >> text=this browser cannot keep it")
    page.evaluate("window.dispatchEvent(new Event('pagehide'))")
    kept = page.evaluate(
        "Object.keys(localStorage).filter((key) => !/^tiebreak(-(theme|started|view|keys|notes|notices)|$)/.test(key))"
    )
    assert kept == []
    closing = "window.dispatchEvent(new Event('beforeunload', {cancelable: true}))"
    assert page.evaluate(closing) is False, "it warns"
    page.evaluate("window.fetch = plainFetch")
    eventually(page, lambda: len(site.judgments("shares a computer", 5)) == 1, "sent from memory")
    assert site.judgments("shares a computer", 5)[0].rationale == "a secret reason"
    assert page.evaluate(closing) is True


def test_a_goal_that_is_reached_says_so(site: Site) -> None:
    page = site.open("reaches", after=3)

    def with_goal(route: Any) -> None:
        reply = route.fetch()
        me = reply.json()
        route.fulfill(response=reply, json={**me, "progress": {**me["progress"], "goal_per_day": 4}})

    page.route("**/api/me?*", with_goal)
    page.reload()
    on(page, 3)
    assert page.inner_text(".count") == "3 of 4 today"
    press(page, "4")
    on(page, 4)
    assert page.inner_text(".count") == "4 today, goal of 4 reached"
    press(page, "4")
    on(page, 5)
    assert page.inner_text(".count") == "5 today, goal of 4 reached"


def test_undo_without_the_server_says_so_and_freezes_nothing(site: Site) -> None:
    page = site.open("undo offline", after=4)
    for n, key in ((4, "1"), (5, "7")):
        on(page, n)
        if n == 5:
            page.wait_for_function("[...document.querySelectorAll('[data-undo]:not(:disabled)')].length > 0")
            page.wait_for_timeout(1_000)  # pairs are fetched ahead
            page.context.set_offline(True)
        press(page, key)
        on(page, n + 1)
        press(page, *("u" if n == 5 else ""))
    page.wait_for_selector(".banner >> text=Cannot undo")
    page.wait_for_timeout(3_000)  # the judgment is sent again meanwhile, and fails
    assert "Cannot undo" in page.inner_text(".banner")
    press(page, "2")
    page.wait_for_selector(".banner >> text=Not saved yet")
    on(page, 7)
    page.context.set_offline(False)
    eventually(page, lambda: [j.answer for j in site.judgments("undo offline", 4)] == [-3, 3, -2], "all are sent")
    page.wait_for_selector(".banner", state="hidden")
    press(page, "u")
    on(page, 6)


def test_text_outlives_the_session(site: Site) -> None:
    page = site.open("logged out", after=4)
    on(page, 4)
    press(page, "e")
    page.keyboard.type("Better: ")
    page.wait_for_timeout(1_200)  # saved; what follows is not
    page.context.clear_cookies()
    page.keyboard.type("and longer")
    page.wait_for_url("**/login/")
    page.wait_for_selector("[name=username]")
    page.fill("[name=username]", "logged out")
    page.fill("[name=password]", PASSWORD)
    press(page, "Enter")
    on(page, 4)
    text = page.input_value("[data-letter=A] textarea")
    assert text.startswith("Better: and longer")
    press(page, "3")
    eventually(page, lambda: [j.edited_text for j in site.judgments("logged out", 4)] == [text], "a judgment")


def test_more_than_two_answers_are_put_in_order_by_keys_and_by_dragging(site: Site) -> None:
    page = site.open("ranks", after=12)
    on(page, 12)
    in_view(page, ".prompt", ".answers", ".ranking")
    shown = [page.inner_text(f"[data-letter={letter}] .text").strip() for letter in "ABC"]
    texts = {completion.id: completion.text for completion in campaign()[-1].completions}
    press(page, "3", "=", "1", "Backspace", "1", "Enter")  # two of three: not yet an order
    assert page.get_attribute(".desk", "data-pair") == "pair-12"
    press(page, "2")
    start, end = (page.locator(f".order [data-chip={letter}]").bounding_box() for letter in "BC")
    page.mouse.move(start["x"] + 10, start["y"] + 10)
    page.mouse.down()
    page.mouse.move(end["x"] - 5, end["y"] + 10, steps=5)
    page.mouse.up()
    assert page.inner_text(".order").split() == ["B", "›", "C", "›", "A"]
    page.click(".order [data-relation='2']")
    press(page, "Enter")
    page.wait_for_selector(".rest.finished:visible")
    eventually(page, lambda: len(site.judgments("ranks", 12)) == 1, "an order")
    (judgment,) = site.judgments("ranks", 12)
    assert judgment.ranking is not None
    assert [{texts[one] for one in group} for group in judgment.ranking] == [{shown[1]}, {shown[2], shown[0]}]
    press(page, "u")
    on(page, 12)
    assert page.inner_text(".order").split() == ["B", "›", "C", "=", "A"]
    page.click("[data-clear]")
    press(page, "e")
    assert page.get_attribute(".banner", "data-kind") == "edit", "nothing stands first yet"
    press(page, "b")  # all bad
    page.wait_for_selector(".rest.finished:visible")
    eventually(page, lambda: [j.both_bad for j in site.judgments("ranks", 12)] == [True], "all bad")
    press(page, "u")
    on(page, 12)
    press(page, "Enter")  # all bad still
    page.wait_for_selector(".rest.finished:visible")
    amend_the_ranking(site, page, shown, texts)


def amend_the_ranking(site: Site, page: Any, shown: list[str], texts: dict[str, str]) -> None:
    """From "my work", by keys alone: another order, and an edit of the answer that stands first in it."""
    eventually(page, lambda: [j.both_bad for j in site.judgments("ranks", 12)] == [True], "all bad again")
    press(page, "w")
    page.wait_for_selector(".history tr:first-child >> text=All bad")
    page.focus(".history tr:first-child [data-amend]")
    press(page, "Enter")
    on(page, 12)
    assert page.get_attribute(".banner", "data-kind") == "amending"
    press(page, "3", "e")
    page.keyboard.type("Mended: ")
    press(page, "Escape", "Backspace", "1", "3", "2", "Enter")
    assert "needs C alone" in page.inner_text(".banner")
    page.focus("[data-chip=C]")
    press(page, "ArrowLeft", "Escape")
    page.wait_for_selector(".rest.finished:visible")  # Escape leaves the judgment as it was
    assert "amended" not in site.events("ranks")
    press(page, "w")
    page.wait_for_selector(".work[aria-busy=false] .history")
    page.focus(".history tr:first-child [data-amend]")
    press(page, "Enter")
    on(page, 12)
    press(page, "3", "e")
    page.keyboard.type("Mended: ")
    press(page, "Escape", "1", "=", "2", "Enter")
    page.wait_for_selector(".rest.finished:visible")
    (judgment,) = site.judgments("ranks", 12)
    assert judgment.ranking is not None
    assert [{texts[one] for one in group} for group in judgment.ranking] == [{shown[2]}, {shown[0], shown[1]}]
    assert judgment.edited_text == f"Mended: {shown[2]}"
    assert site.events("ranks").count("amended") == 1
    press(page, "w")
    page.wait_for_selector(".history tr:first-child >> text=Ranking: C › A = B, edited")
    press(page, "Escape", "u")
    on(page, 12)
    assert page.input_value("[data-letter=C] textarea") == f"Mended: {shown[2]}"


def test_my_work_and_amending(site: Site) -> None:
    page = site.open("works", after=5)
    on(page, 5)
    press(page, "w")
    page.wait_for_selector(".work[aria-busy=false] .history")
    names, values = (page.locator(f".work .tile {part}").all_inner_texts() for part in (".name", "strong"))
    figures = dict(zip(names, values, strict=True))
    assert (figures["Today"], figures["Total"]) == ("5", "5")
    assert page.locator(".history tr").count() == 5
    assert "question 4?" in page.inner_text(".history tr:first-child")
    page.click(".history tr:nth-child(2) [data-amend]")
    on(page, 3)
    assert page.get_attribute(".judging .chosen", "data-answer") == "0"
    press(page, "c")
    page.wait_for_selector(".compose textarea:enabled")  # another beginning ends the amending
    press(page, "Escape", "c")
    on(page, 5)
    press(page, "w")
    page.wait_for_selector(".work[aria-busy=false] .history")
    page.click(".history tr:nth-child(2) [data-amend]")
    on(page, 3)
    press(page, "u")  # and so does undo
    on(page, 5)
    press(page, "w")
    page.wait_for_selector(".work[aria-busy=false] .history")
    page.click(".history tr:nth-child(2) [data-amend]")
    on(page, 3)
    press(page, "6")
    on(page, 5)
    assert [j.answer for j in site.judgments("works")] == [0, 0, 0, 2, 0]
    assert site.events("works").count("amended") == 1
    assert site.events("works").count("undone") == 0


HOLD = """(start) => {
  window.plainFetch = window.fetch;
  window.held = [];
  window.fetch = (path, options) => (path.startsWith(start)
    ? new Promise((arrived) => { held.push(() => plainFetch(path, options).then(arrived)); }) : plainFetch(path, options));
}"""
"""Requests whose path starts so wait until the test lets them go. (Playwright's own routes miss some of a page that was
just busy: 3 of 40 requests went past one.)"""


def test_code_is_copied_and_a_password_changed_on_the_page(site: Site) -> None:
    page = site.open("copies", after=10, permissions=["clipboard-read", "clipboard-write"])
    on(page, 10)
    page.hover(".code pre")
    page.click(".code .copy")
    assert page.evaluate("navigator.clipboard.readText()") == CODE
    press(page, "w")
    page.fill("[name=current]", PASSWORD)
    page.fill("[name=new]", "password1234")
    page.wait_for_selector(".account + .strength >> text=too easy to guess")
    assert page.inner_text(".account + .strength output")[0].isupper()
    page.fill("[name=new]", "another long password")
    page.wait_for_selector(".account + .strength >> text=Hard to guess")
    assert page.evaluate("document.querySelector('.strength meter').value") == 4
    page.keyboard.press("Enter")
    page.wait_for_selector(".account .note >> text=Changed")
    assert page.is_hidden(".strength")
    assert log_in(site.store, "copies", "another long password") is not None
    page.context.close()


def test_two_weeks_of_ones_own_work_are_bars_and_a_break_is_suggested(site: Site) -> None:
    page = site.open("trend", after=6)
    page.clock.install()
    rater_id = next(one.id for one in site.store.raters() if one.name == "trend")
    now = int(page.evaluate("new Date(new Date().setHours(12, 0, 0, 0)).getTime()"))
    days = {2: 10, 0: 5}
    hours = [
        {"at_ms": now - day * 86_400_000, "judged": n, "active_seconds": 60 * n, "idle_seconds": 0}
        for day, n in days.items()
    ]
    page.route("**/api/hours?*", lambda route: route.fulfill(json=hours, headers={"X-Tiebreak": "1"}))
    press(page, "w")
    page.wait_for_selector(".trend")
    heights = page.evaluate("[...document.querySelectorAll('.trend .bar')].map((one) => one.style.height)")
    assert (len(heights), heights[-3:]) == (14, ["100%", "0%", "50%"])
    assert "10 judged, 60 per active hour" in page.text_content(".trend li:nth-child(12)")
    assert sum(work.judged for work in site.store.hours_since(rater_id, 0).values()) == 6
    press(page, "Escape")
    messages = []
    for n in range(30):
        page.clock.fast_forward(120_000)
        page.mouse.move(10 + n, 10)
        messages.append(page.inner_text(".saved"))
    assert ["minutes without a break" in one for one in messages].count(True) == 1
    page.context.close()


def test_my_work_shows_nothing_old_while_the_new_is_on_its_way(site: Site) -> None:
    """Or a rater who is quicker than the network amends what is no more, and loses the focus when the rows change."""
    page = site.open("slow network", after=2)
    on(page, 2)
    press(page, "w")
    page.wait_for_selector(".work[aria-busy=false] .history")
    press(page, "Escape", "6")
    on(page, 3)
    page.evaluate(HOLD, "/api/history")
    press(page, "w")
    page.wait_for_function("held.length === 1")
    assert page.is_visible("[data-card=work]")
    assert page.locator("[data-amend]").count() == 0
    press(page, "Escape", "w")
    page.wait_for_function("held.length === 2")
    page.evaluate("held[1]()")
    page.wait_for_selector(".history tr:first-child >> text=question 2?")
    page.focus(".history tr:first-child [data-amend]")
    page.evaluate("held[0]()")  # late: the card has been closed and opened since
    page.wait_for_timeout(100)
    press(page, "Enter")
    on(page, 2)
    assert page.get_attribute(".judging .chosen", "data-answer") == "2"


def test_without_pairs_a_conversation_opens_and_tells_how_long_it_waits(site: Site) -> None:
    page = site.open("talker", after=12)
    on(page, 12)
    press(page, "b")
    page.wait_for_selector(".rest >> text=Write to the assistants")
    eventually(page, lambda: len(site.judgments("talker", 12)) == 1, "the last pair")
    page.reload()
    page.wait_for_selector(".compose textarea:enabled")
    page.keyboard.type("What is 1 + 1?")
    press(page, "Enter")
    page.wait_for_selector(".compose .status >> text=1 s")
    site.answer()
    page.wait_for_selector(".desk:not([data-pair='']) .answer")
    press(page, "6")
    page.wait_for_selector(".compose textarea:enabled")
    assert page.inner_text(".count") == "14 judged"
    assert page.locator(".progress").evaluate("(bar) => getComputedStyle(bar).visibility") == "hidden"
    press(page, "Escape", "c")
    page.wait_for_selector(".rest >> text=Write to the assistants")


def test_guidelines_are_accepted_before_the_first_judgment_and_stay_beside_the_work(site: Site) -> None:
    add_account(site.store, "new", "rater", PASSWORD)
    page = site.window().new_page()
    page.goto(site.address)
    page.fill("[name=username]", "new")
    page.fill("[name=password]", "wrong")
    press(page, "Enter")
    page.wait_for_selector(".problem:visible")
    page.fill("[name=password]", PASSWORD)
    press(page, "Enter")
    page.wait_for_selector("[data-card=consent].asking[open]")
    press(page, "Escape", "1")
    assert page.is_visible("[data-card=consent].asking")
    page.click("[data-card=consent] button")
    page.wait_for_selector("[data-card=guidelines].asking[open]")
    assert "Version 1" in page.inner_text("[data-card=guidelines]")
    press(page, "Escape", "1")
    assert page.is_visible("[data-card=guidelines].asking")
    assert {"consent_given", "guidelines_accepted"} & set(site.events("new")) == {"consent_given"}
    page.click("[data-card=guidelines] button")
    on(page, 0)
    assert "guidelines_accepted" in site.events("new")
    press(page, "1", "g")
    on(page, 1)
    assert page.is_visible("[data-card=guidelines]")
    in_view(page, "[data-side=left]", "[data-side=right]", ".scale", "[data-card=guidelines]")
    press(page, "2")  # the panel takes no keys
    on(page, 2)
    from_right_to_left(page)
    assert page.is_hidden("a.lead")
    assert page.goto(f"{site.address}/lead/").status == 403
    page.context.close()


def from_right_to_left(page: Any) -> None:
    """In a right-to-left language, everything is mirrored except the sides: judgments refer to left and right as shown."""
    page.route("**/rate/*", turned)
    page.reload()
    on(page, 2)
    press(page, "g")
    page.wait_for_selector(".desk[dir=rtl] [data-card=guidelines][open]")
    at = {
        name: page.locator(selector).bounding_box()["x"]
        for name, selector in {
            "A": "[data-letter=A]",
            "B": "[data-letter=B]",
            "panel": "[data-card=guidelines]",
            "1": "[data-answer='-3']",
            "7": "[data-answer='3']",
            "skip": "[data-skip]",
            "edit": "[data-letter=A] .edit",
            "heading": "[data-letter=A] h2",
        }.items()
    }
    assert at["A"] < at["B"]
    assert at["skip"] < at["1"] < at["7"]
    assert at["edit"] < at["heading"], "within a pane, from right to left"
    assert at["panel"] == 0 < at["A"], "the panel is at the end of the line, and covers no answer"
    assert at["A"] >= 344
    page.unroute("**/rate/*")


def turned(route: Any) -> None:
    """A page in Arabic, for the direction's sake."""
    reply = route.fetch()
    route.fulfill(
        response=reply,
        body=reply.text().replace('"language": "en"', '"language": "ar"').replace('"language":"en"', '"language":"ar"'),
    )


# --- what one sees ---


def test_a_phone_shows_everything_without_scrolling_sideways(site: Site) -> None:
    page = site.open("phone", viewport={"width": 390, "height": 844}, has_touch=True)
    for n in range(len(HOSTILE)):
        on(page, n)
        stage = page.locator(".stage")
        assert stage.evaluate("(pane) => pane.scrollWidth - pane.clientWidth") <= 0, n
        in_view(page, ".scale", ".others")
        assert all(box["height"] >= 40 for box in (one.bounding_box() for one in page.locator(".scale button").all()))
        page.wait_for_selector(".desk:not([data-fresh])")
        page.tap("[data-answer='1']")
    on(page, len(HOSTILE))


LONGEST_LINE = """(paragraph) => {
  const text = paragraph.firstChild, range = document.createRange(), lines = {};
  for (let n = 0; n < text.length; n++) {
    range.setStart(text, n);
    range.setEnd(text, n + 1);
    const { top } = range.getBoundingClientRect();
    lines[top] = (lines[top] || 0) + 1;
  }
  return Math.max(...Object.values(lines));
}"""


def test_lines_are_short_headings_are_the_answers_and_short_pairs_end_early(site: Site) -> None:
    page = site.open("reads", after=8, viewport={"width": 1920, "height": 1080})
    on(page, 8)
    paragraph = page.locator(".answer .text > p").first
    assert 60 <= paragraph.evaluate(LONGEST_LINE) <= 80
    look = "(one) => [getComputedStyle(one).color, parseFloat(getComputedStyle(one).fontSize)]"
    (ink, size), *headings = [page.locator(f".text > {tag}").first.evaluate(look) for tag in ("p", "h1", "h2", "h3")]
    assert {colour for colour, _ in headings} == {ink}
    sizes = [size_of for _, size_of in headings]
    assert sizes == sorted(sizes, reverse=True)
    assert size == 16 < sizes[-1]
    rules = """(text) => {
      text.insertAdjacentHTML("beforeend", "<blockquote>x</blockquote><table><tr><td>y</td></tr></table>");
      const [quote, cell] = ["blockquote", "td"].map((tag) => getComputedStyle(text.querySelector(tag)));
      return [quote.borderInlineStartWidth, cell.borderTopWidth];
    }"""
    assert page.locator(".answer .text").first.evaluate(rules) == ["3px", "1px"]
    press(page, "+", "+")
    assert paragraph.evaluate(look)[1] == 18
    assert paragraph.evaluate(LONGEST_LINE) <= 80
    page.reload()
    on(page, 8)
    assert page.locator(".answer .text > p").first.evaluate(look)[1] == 18
    press(page, "t")
    on(page, 9)
    pane, prompt = (page.locator(part).bounding_box() for part in ("[data-side=left]", ".prompt"))
    assert pane["height"] < 300
    right_of = """(one) => {
      const all = document.createRange();
      all.selectNodeContents(one);
      return all.getBoundingClientRect().right;
    }"""
    assert page.locator(".prompt .text").evaluate(right_of) > prompt["x"] + prompt["width"] - 130
    lists = page.locator(".answer .text > ul")
    assert [one.get_attribute("dir") for one in lists.all()] == ["rtl", "rtl"]
    assert {one.evaluate("(one) => getComputedStyle(one).direction") for one in lists.all()} == {"rtl"}
    top = "(one) => one.getBoundingClientRect().top + parseFloat(getComputedStyle(one).paddingTop) + one.clientTop"
    before = page.locator("[data-side=left] > .text").evaluate(top)
    press(page, "e")
    assert abs(page.locator("[data-side=left] textarea").evaluate(top) - before) <= 1, "the text does not jump"


def test_what_was_saved_is_said_for_a_moment(site: Site) -> None:
    page = site.open("saved", after=6)
    on(page, 6)
    press(page, "5")
    page.wait_for_function("document.querySelector('.saved').textContent === 'Saved: B is slightly better · U undoes'")
    page.wait_for_timeout(400)
    assert page.inner_text(".saved") == ""


def test_ways_to_read_a_pair(site: Site) -> None:
    page = site.open("reader", after=8, viewport={"width": 1366, "height": 520})
    on(page, 8)
    marked = "() => CSS.highlights.has('differs') ? [...CSS.highlights.get('differs')].map(String).sort() : []"
    press(page, "d")
    assert page.evaluate(marked) == ["One", "Three", "Two"]  # all that the answers do not share
    press(page, "d")
    assert page.evaluate(marked) == []
    scroll = "(one) => one.scrollTop / (one.scrollHeight - one.clientHeight)"
    left, right = (page.locator(f"[data-side={side}] > .text") for side in ("left", "right"))
    for linked in (False, True):
        left.evaluate("(one) => { one.scrollTop = (one.scrollHeight - one.clientHeight) / 2; }")
        if linked:
            eventually(page, lambda: abs(right.evaluate(scroll) - 0.5) < 0.05, "the other answer follows")
        else:
            page.wait_for_timeout(250)
            assert right.evaluate(scroll) == 0
        left.evaluate("(one) => { one.scrollTop = 0; }")
        page.wait_for_timeout(250)
        press(page, *("" if linked else "l"))
    press(page, "x")
    page.reload()
    on(page, 8)
    assert page.locator(".desk.wrap").count() == 1
    press(page, "d", "t")
    on(page, 9)
    assert page.evaluate(marked) == []


@pytest.mark.parametrize(
    ("width", "height", "least"), [(683, 384, 0.7), (341, 192, 0.5), (320, 256, 0.6), (844, 390, 0.7), (390, 844, 0.75)]
)
def test_the_dock_yields_in_a_small_window(site: Site, width: int, height: int, least: float) -> None:
    page = site.open(f"small {width}", after=8, viewport={"width": width, "height": height})
    on(page, 8)
    in_view(page, ".scale", ".others")
    assert page.locator(".stage").bounding_box()["height"] >= least * height
    assert page.evaluate("document.querySelector('#desk .desk').scrollWidth") <= width
    for _ in range(2):
        page.click("[data-more]")
    assert page.is_hidden(".aspects")
    press(page, "a")
    assert page.is_visible(".aspects")
    page.locator(".aspect").last.scroll_into_view_if_needed()
    in_view(page, "[data-aspect=harmless]")
    press(page, "Escape")
    page.click("[data-answer='2']")
    on(page, 9)


def test_a_phone_reaches_the_last_of_the_ranked_answers_and_ones_own_work(site: Site) -> None:
    page = site.open("phone ranks", after=12, viewport={"width": 390, "height": 844})
    on(page, 12)
    page.evaluate("document.querySelector('.stage').scrollTop = 1e6")
    last, dock = (page.locator(part).bounding_box() for part in ("[data-letter=C]", ".dock"))
    assert last["y"] + last["height"] <= dock["y"]
    press(page, "w")
    page.wait_for_selector(".work[aria-busy=false] .history")
    page.locator("[data-amend]").last.scroll_into_view_if_needed()
    for one in page.locator("[data-amend]").all():
        box = one.bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 390
    page.locator("[data-amend]").last.click()
    page.wait_for_selector(".banner[data-kind=amending]")


@pytest.fixture(scope="module")
def axe() -> str:
    package = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    return (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


def faults(page: Any, axe: str, *rules: str) -> list[str]:
    """What axe calls serious or worse, of all its rules or of some."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(axe)
    only = {"runOnly": list(rules)} if rules else {}
    found = page.evaluate("(options) => axe.run('#desk', options)", {"resultTypes": ["violations"], **only})
    assert found["passes"], "axe looked at nothing"
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:200]} {one['nodes'][0]['failureSummary'][:300]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]


def faults_of_both(page: Any, axe: str) -> list[str]:
    """Faults wide and light, then narrow and dark, where what is wider than the window is one too."""
    page.emulate_media(reduced_motion="reduce")
    page.wait_for_timeout(150)  # colours that are fading in
    found = faults(page, axe)
    page.set_viewport_size({"width": 390, "height": 844})
    page.evaluate("document.body.classList.add('dark')")
    wide = page.evaluate("document.querySelector('#desk .desk').scrollWidth")
    found += faults(page, axe, "color-contrast", "target-size") + [f"{wide} px wide"] * (wide > 390)
    page.evaluate("document.body.classList.remove('dark')")
    page.set_viewport_size({"width": 1366, "height": 768})
    return found


UNSEEN_FOCUS = """() => {
  const before = document.activeElement;
  const open = document.querySelector('dialog:modal') || document.querySelector('#desk');
  const shown = (one) => !one.disabled && one.checkVisibility({ visibilityProperty: true });
  const can = [...open.querySelectorAll('button, a[href], input, textarea, [tabindex="0"]')]
  .filter(shown);
  const unseen = can.filter((one) => {
    one.focus({ preventScroll: true });
    const style = getComputedStyle(one);
    const lost = style.outlineColor === style.backgroundColor && parseFloat(style.outlineOffset) <= 0;
    return style.outlineStyle === 'none' || parseFloat(style.outlineWidth) < 2 || lost;
  });
  document.activeElement.blur();
  before.focus({ preventScroll: true });
  return [can.length, unseen.map((one) => one.outerHTML.slice(0, 120))];
}"""


def rater_states(site: Site) -> Iterator[tuple[str, Any]]:
    """Every state of the raters' pages, in the order in which one person comes to them: its name, and the page."""
    page = site.window().new_page()
    page.goto(f"{site.address}/login/")
    page.wait_for_selector(".login")
    page.fill("[name=username]", "nobody")
    page.fill("[name=password]", "a wrong password")
    press(page, "Enter")
    page.wait_for_selector(".problem:visible")
    yield "login with an error", page
    page.goto("about:blank")
    page.goto(f"{site.address}/login/#invitation={invite(site.store, None)}")
    page.wait_for_selector(".invited:visible")
    yield "invitation", page
    page.fill("[name=username]", "newcomer")
    page.fill("[name=password]", PASSWORD)
    page.wait_for_selector(".strength >> text=ard to guess")
    yield "invitation, with a password", page
    press(page, "Enter")
    page.wait_for_selector("[data-card=consent].asking[open]")
    yield "consent", page
    press(page, "Tab", "Enter")
    page.wait_for_selector("[data-card=guidelines].asking[open]")
    yield "guidelines, to be accepted", page
    press(page, "Tab", "Enter")
    on(page, 0)
    press(page, "w")
    page.wait_for_selector(".work[aria-busy=false] .tiles")
    yield "my work, nothing yet", page
    newcomer = next(one.id for one in site.store.raters() if one.name == "newcomer")
    site.judge(newcomer, 7)
    page.reload()
    on(page, 7)
    yield from states_of_a_pair(page)
    yield from states_of_a_conversation(site, page)
    site.judge(newcomer, 5)
    page.reload()
    on(page, 12)
    yield "ranking", page
    press(page, "3", "=", "1")
    yield "ranking, begun", page
    press(page, "Backspace", "e")
    page.keyboard.type("Mended: ")
    yield "ranking, first edited", page
    press(page, "Escape", "1", "2", "?")
    yield "keys of a ranking", page
    press(page, "Escape", "Enter")
    page.wait_for_selector(".rest.finished:visible")
    yield "nothing left to judge", page
    page.context.close()


def states_of_a_pair(page: Any) -> Iterator[tuple[str, Any]]:
    yield "pair", page
    press(page, "?")
    yield "keys", page
    press(page, "Escape", "s")
    yield "skip reasons", page
    press(page, "Escape", "f", "2", "a")
    yield "flags", page
    press(page, "Enter", "a", "6")
    yield "aspects", page
    press(page, "Escape", "r")
    page.keyboard.type("because it is true")
    yield "reason", page
    press(page, "Enter", "e")
    page.keyboard.type("Better: ")
    yield "edit", page
    press(page, "Escape", "6")
    yield "edit of the other answer", page
    press(page, "e", "w")
    page.wait_for_selector(".work[aria-busy=false] .history")
    yield "my work with history", page
    page.focus(".history tr:first-child [data-amend]")
    press(page, "Enter")
    page.wait_for_selector(".banner[data-kind=amending]")
    yield "amending", page
    press(page, "Escape", "g")
    page.wait_for_selector(".with-guidelines")
    yield "guidelines beside the pair", page
    press(page, "Escape")
    page.context.set_offline(True)
    press(page, "r")
    page.keyboard.type("!")
    page.wait_for_selector(".banner[data-kind=draft]:visible")
    yield "no network", page
    page.context.set_offline(False)
    page.wait_for_selector(".banner", state="hidden")
    press(page, "Enter")


def states_of_a_conversation(site: Site, page: Any) -> Iterator[tuple[str, Any]]:
    press(page, "c")
    page.wait_for_selector(".compose textarea:enabled")
    yield "conversation begun", page
    page.keyboard.type("What is 1 + 1?")
    press(page, "Enter")
    page.wait_for_selector(".compose.waiting")
    yield "conversation waiting", page
    site.answer()
    page.wait_for_selector(".desk:not([data-pair='']) .answer")
    yield "conversation answered", page
    press(page, "6")
    page.wait_for_selector(".compose textarea:enabled")
    yield "conversation continues", page
    page.keyboard.type("And 2 + 2?")
    press(page, "Enter")
    page.wait_for_selector(".compose.waiting")
    site.answer()
    page.wait_for_selector(".desk:not([data-pair='']) .answer")
    press(page, "b")
    page.wait_for_selector(".compose textarea:enabled")
    yield "conversation ended", page
    press(page, "Escape", "c")
    on(page, 7)


def test_every_state_is_accessible_light_and_wide_dark_and_narrow(site: Site, axe: str) -> None:
    found: dict[str, list[str]] = {}
    seen = focused = 0
    for state, page in rater_states(site):
        count, unseen = page.evaluate(UNSEEN_FOCUS)
        found[state] = faults(page, axe) + [f"focus is not seen: {one}" for one in unseen]
        page.emulate_media(reduced_motion="reduce")  # colours change at once: axe would see them halfway
        page.set_viewport_size({"width": 390, "height": 844})
        page.evaluate("document.body.classList.add('dark')")
        menu = page.locator("[data-menu]:visible") if state == "pair" else None
        if menu:
            menu.click()
        wide = page.evaluate("document.querySelector('#desk .desk').scrollWidth")
        found[state] += faults(page, axe, "color-contrast", "target-size") + [f"{wide} px wide"] * (wide > 390)
        if menu:
            menu.click()
        page.evaluate("document.body.classList.remove('dark')")
        page.set_viewport_size({"width": 1366, "height": 768})
        seen, focused = seen + 1, focused + count
    assert {state: faults for state, faults in found.items() if faults} == {}
    assert seen == 28
    assert focused > 500


# --- leads ---


OURS = {"X-Tiebreak": "1"}  # a page takes no reply without it
EMPTY_BELOW = """() => {
    const seen = (within) => [...within].filter((one) => one.checkVisibility());
    const bottom = (one) => one.getBoundingClientRect().bottom;
    const panels = seen(document.querySelectorAll('.board .panel'));
    return panels.map((panel) => Math.round(bottom(panel) - Math.max(...seen(panel.children).map(bottom))));
}"""
"""How much of each panel of the overview is empty, below all that it shows, in pixels."""


def test_a_lead_sees_how_far_it_is_and_settles_a_disagreement(site: Site) -> None:
    for rater, key in (("for", 3), ("against", -3)):
        rater_id = add_account(site.store, rater, "rater", PASSWORD).id
        for n in range(5):
            given = site.store.claim(rater_id)
            assert given is not None
            better = given.left_id.endswith("-0") == (key > 0)
            site.store.submit(
                rater_id, Submission(client_id=f"c{n}", pair_id=given.item_id, answer=-2 if better else 2)
            )
    page = site.open("lead", role="lead", path="/lead/")
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    judged = sum(site.store.status()["judgments"].values())
    assert page.inner_text(".tiles .tile:first-child strong").startswith(f"{judged} of ")
    assert page.is_visible(".chart svg")
    page.wait_for_selector(".figures .figure")  # computed by another process
    measured = json.loads(page.evaluate("fetch('/api/lead/agreement').then((reply) => reply.text())"))
    assert f"{measured['krippendorff_alpha']['nominal']['value']:.3f}".replace("-", "−") in page.inner_text(".figures")
    assert "InstructGPT" in page.inner_text(".published")
    empty = page.evaluate(EMPTY_BELOW)
    assert (len(empty) >= 4, max(empty) < 40) == (True, True), empty
    page.click("button[data-view=raters]")
    assert page.locator(".raters tbody tr").count() == len(site.store.raters())
    assert page.locator(".raters tbody tr:not(:has([colspan]))").count() == len(measured["raters"])
    page.focus(f"[data-rater='{rater_id}']")
    for off in ("true", "false"):  # by keys: the table is redrawn after each, and the button keeps the focus
        press(page, "Enter")
        if off == "true":
            page.wait_for_selector(f"[data-rater='{rater_id}'].sure:focus")
            assert not any(one.disabled for one in site.store.raters()), "it asks first"
            press(page, "Enter")
        page.wait_for_selector(f"[data-rater='{rater_id}']:not([data-disabled={off}]):focus")
        assert [one.disabled for one in site.store.raters() if one.id == rater_id] == [off == "true"]
    long_ago = strftime("%Y-%m-%d", gmtime(time() - 10 * 86400))
    status = page.evaluate("fetch('/api/lead/status').then((reply) => reply.json())")
    idle = {**status, "by_day": {long_ago: judged}, "judgments_wanted": judged + 70}
    page.route("**/api/lead/status", lambda route: route.fulfill(json=idle, headers=OURS))
    early = {**measured, "judges": None, "reliability": None, "measuring": True}
    early["other_kinds"] = {"model": {"raters": []}}
    page.route("**/api/lead/agreement", lambda route: route.fulfill(json=early, headers=OURS))
    for _ in range(2):
        press(page, "Enter")
    page.wait_for_selector(f"[data-rater='{rater_id}'][data-disabled=false]:focus")  # then the page is refreshed
    page.wait_for_function("document.querySelector('.forecast').textContent === 'No judgment in the last seven days.'")
    assert page.locator(".panel:has(.forecast) .column").count() == 11, "the days since the last judgment are days too"
    page.wait_for_function("document.querySelectorAll('.judges:not([hidden]) tbody td').length === 1")
    estimates = page.locator(".raters tbody tr:not(:has([colspan])) >> text=Computing")
    assert estimates.count() == 2 * len(measured["raters"]), "two models' estimates of each rater are awaited"
    page.unroute("**/api/lead/status")
    page.unroute("**/api/lead/agreement")
    press(page, "Enter")
    page.wait_for_selector(f"[data-rater='{rater_id}'][data-disabled=true]:focus")
    page.click("[data-invite=rater]")
    page.wait_for_selector(".invitation input:visible")
    link = page.input_value(".invitation input")
    page.click("button[data-view=disputes]")
    page.wait_for_selector(".bar7")
    first = site.store.disputes("lead")[0]
    waiting = page.locator(".disputes li").count()
    page.focus(".disputes li:nth-child(2) button")
    press(page, "Enter")
    page.wait_for_selector(".disputes li:nth-child(2) [aria-current=true]")
    page.wait_for_selector(".disputes li:nth-child(2) :focus")
    press(page, "n")
    page.wait_for_selector(".disputes li:nth-child(3) [aria-current=true]")
    page.evaluate(HOLD, "/api/lead/disputes/")
    page.click(".disputes li:nth-child(2) button")
    page.click(".disputes li:first-child button")
    page.wait_for_function("held.length === 2")
    page.evaluate("held[1]()")
    page.wait_for_selector(".disputes li:first-child [aria-current=true]")
    page.evaluate("held[0]()")  # late: another one is looked at
    page.wait_for_timeout(100)
    assert page.get_attribute(".disputes [aria-current=true]", "data-dispute") == site.store.disputes("lead")[0].item_id
    page.evaluate("window.fetch = plainFetch")
    left = page.inner_text(".side-left .text")
    press(page, "1")
    page.keyboard.press("1")  # the second press is of the same answer
    page.wait_for_function(f"document.querySelectorAll('.disputes li').length === {waiting - 1}")
    page.wait_for_function(f"document.querySelector('.badge').textContent === '{waiting - 1}'")
    page.click("[data-settled]")
    page.wait_for_function("document.querySelectorAll('.disputes li').length === 1")
    page.wait_for_selector(".case .note >> text=A is much better")
    (settled,) = site.store.adjudications()
    assert site.events("lead").count("adjudicated") == 1
    assert errors == []
    assert (settled.pair_id, settled.answer) == (first.pair_id, -3)
    texts = {completion.id: completion.text for pair in campaign() for completion in pair.completions}
    assert show(texts[settled.left]) == show(left), "the side that is stored is the side that was shown"
    page = site.window().new_page()
    page.goto(link)
    page.fill("[name=username]", "invited")
    page.fill("[name=password]", PASSWORD)
    press(page, "Enter")
    page.wait_for_selector("dialog.asking[open]")
    assert [one.role for one in site.store.raters() if one.name == "invited"] == ["rater"]
    page.context.close()


def show(text: str) -> str:
    """What is left of a text whichever way it is shown."""
    return re.sub(r"\W", "", text)[:40]


# --- words ---


def test_a_campaign_in_another_language(tmp_path: Path) -> None:
    from labeling_ui.pages import load_words
    from tiebreak.errors import ConfigError

    words = load_words(str(write_words(tmp_path, {"skip": "Überspringen", "language": "de"})))
    assert (words["skip"], words["undo"]) == ("Überspringen", "Undo")
    with pytest.raises(ConfigError, match="skp"):
        load_words(str(write_words(tmp_path, {"skp": "x"})))


def test_every_word_on_the_pages_is_in_the_one_file() -> None:
    from labeling_ui.pages import FILES, load_words

    words = load_words()
    pages = "".join(path.read_text(encoding="utf-8") for path in FILES.glob("*.html"))
    scripts = "".join(path.read_text(encoding="utf-8") for path in FILES.glob("*.js"))
    named = set(re.findall(r"\[\[([\w.-]+)\]\]", pages)) | set(re.findall(r"say\('([\w.-]+)'", scripts))
    named |= set(re.findall(r"words\.(\w+)", scripts)) | set(re.findall(r"words\['([\w.-]+)'\]", scripts))
    assert named <= set(words)
    stray = re.sub(r"<kbd>[^<]*</kbd>|<[^>]*>|\[\[[\w.-]+\]\]", " ", pages)
    assert re.findall(r"[A-Za-z]{2,}", stray) == []
    assert re.findall(r'(?:aria-label|title|placeholder)="(?!\[\[)[^"]+"', pages) == []


def test_undo_goes_past_a_rejected_judgment_and_takes_back_the_new_one(site: Site) -> None:
    """The last test: a lead has a pair done again, so raters who begin later get it before others."""
    page = site.open("again", after=4)
    for n, key in ((4, "1"), (5, "7")):
        on(page, n)
        press(page, key)
    on(page, 6)
    eventually(page, lambda: len(site.judgments("again", 4)) == 2, "two judgments")
    (latest, *_) = site.store.history(next(one.id for one in site.store.raters() if one.name == "again"))
    assert latest.item_id == "pair-5"
    site.store.reject(Selection(judgment_ids=(latest.judgment_id,)), "too quick", again=True)
    press(page, "u")
    page.wait_for_selector(".banner:has-text('you have no such judgment')")
    press(page, "u")
    on(page, 4)
    press(page, "Enter")
    for n in (6, 7, 8):
        on(page, n)
        press(page, "1")
    on(page, 5)
    press(page, "7")
    on(page, 9)
    press(page, "u")
    on(page, 5)
    assert page.get_attribute(".judging .chosen", "data-answer") == "3"
    press(page, "6")
    on(page, 9)
    eventually(page, lambda: len(site.judgments("again", 4)) == 5, "the judgments")
    assert [j.answer for j in site.judgments("again", 4) if j.pair_id == "pair-5"] == [2]
