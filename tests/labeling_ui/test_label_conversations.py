"""The conversation mode: what is asked waits in the store, what is answered is a pair, and the better answer goes on."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import httpx
import pytest
from label_support import answer, make_pair, needs_chromium, open_store, serving, tiebreak

from labeling_ui import conversations
from labeling_ui.answers import Submission
from labeling_ui.assigning import RefusedError
from labeling_ui.conversations import Ask, Request
from labeling_ui.store import Store
from labeling_ui.verify import verify
from labeling_ui.worker import answer_one
from tiebreak.records import Completion, Message


def ask(store: Store, rater: str, number: int, text: str, system: str = "") -> str:
    asked = Ask(conversation_id="talk", number=number, text=text)
    return store.transact(lambda tx: conversations.ask(tx, rater, asked, system))


def look(store: Store, rater: str, turn_id: str | None = None) -> conversations.Turn:
    with store.reading() as connection:
        turn = conversations.look(connection, store.rules, rater, turn_id)
    assert turn is not None
    return turn


def reply(request: Request) -> list[Completion]:
    """Two answers that say what they answer."""
    asked = request.messages[-1].content
    return [Completion(id=f"{n}{request.turn_id}", text=f"{n} to {asked}", policy=f"policy {n}") for n in "ab"]


def answer_next(store: Store) -> None:
    request = store.transact(conversations.take)
    assert request is not None
    answer_one(store, reply, request)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path, [make_pair(0)], raters=2)


def test_a_conversation_goes_on_with_the_better_answer(store: Store) -> None:
    first = ask(store, "r0", 0, "hello", system="be brief")
    assert ask(store, "r0", 0, "hello") == first, "sent twice, asked once"
    with pytest.raises(RefusedError, match="judge the two answers first"):
        ask(store, "r0", 1, "too early")
    assert look(store, "r0", first).state == "waiting"
    answer_next(store)
    assert store.transact(conversations.take) is None
    given = look(store, "r0", first).assignment
    assert given is not None
    assert [one and one.item_id for one in (store.claim("r1"), store.claim("r1", ["pair-0"]))] == ["pair-0", None]
    assert store.claim("r0") == given, "a page that lost it gets it again"
    store.submit("r0", answer(given.item_id, 2))
    better = next(one.text for one in given.pair.completions if one.id == given.right_id)
    second = ask(store, "r0", 1, "and then?")
    told = [(message.role, message.content) for message in look(store, "r0", second).messages]
    assert told == [("system", "be brief"), ("user", "hello"), ("assistant", better), ("user", "and then?")]
    answer_next(store)
    last = look(store, "r0").assignment
    assert last is not None
    said = Submission(client_id="edit", pair_id=last.item_id, answer=-1, edited_text="what I would have said")
    store.submit("r0", said)
    third = ask(store, "r0", 2, "thanks")
    assert look(store, "r0", third).messages[-2].content == "what I would have said"
    assert verify(store).faults == []
    assert [(one.pair_id, one.answer) for one in store.judgments()[0]] == [(given.item_id, 2), (last.item_id, -1)]
    assert store.campaign()["sources"].count(["conversations", "conversations"]) == 1


def test_where_there_is_no_answer_to_go_on_with_the_conversation_is_over(store: Store) -> None:
    ask(store, "r0", 0, "hello")
    answer_next(store)
    given = look(store, "r0").assignment
    assert given is not None
    store.submit("r0", Submission(client_id="bad", pair_id=given.item_id, both_bad=True))
    with pytest.raises(RefusedError, match="begin another"):
        ask(store, "r0", 1, "go on")
    with pytest.raises(RefusedError, match="no such turn"):
        look(store, "r1", look(store, "r0").id)


def test_a_turn_is_answered_after_a_failure_and_after_the_worker_died(tmp_path: Path) -> None:
    now = [1_000_000]
    store = open_store(tmp_path, [make_pair(0)], clock=lambda: now[0])
    turn = ask(store, "r0", 0, "hello")
    request = store.transact(conversations.take)
    assert request is not None

    def broken(_request: Request) -> list[Completion]:
        raise RuntimeError("out of memory")

    answer_one(store, broken, request)  # type: ignore[arg-type]
    assert (look(store, "r0", turn).state, look(store, "r0", turn).error) == ("failed", "out of memory")
    ask(store, "r0", 0, "hello again")
    assert store.transact(conversations.take) is not None  # and this worker dies
    assert store.transact(conversations.take) is None
    now[0] += 1000 * conversations.ANSWER_SECONDS + 1
    answer_next(store)
    late = reply(Request(turn, (Message(role="user", content="late"),)))
    store.transact(lambda tx: conversations.answer(tx, store.rules, turn, late))
    assert look(store, "r0", turn).state == "ready"
    assert store.status()["pairs"] == 2, "an answer that comes late makes no second pair"
    assert verify(store).faults == []


def test_pairs_may_be_missing_only_where_raters_converse(tmp_path: Path) -> None:
    result = tiebreak("label", "--output", str(tmp_path / "label"), ok=False)
    assert "pairs: missing" in result.stderr


def test_two_answers_differ_and_a_conversation_can_be_too_long(tiny_model: Path) -> None:
    from preference.answer import AnswerConfig, UnansweredError, answer_twice, load_policy

    config = AnswerConfig.model_validate(
        {"policies": [str(tiny_model)], "sampling": {"max_new_tokens": 5}, "max_prompt_tokens": 60}
    )
    policies = [load_policy(str(tiny_model))]
    answers = answer_twice(policies, "turn", [Message(role="user", content="hello")], config)
    assert answers == answer_twice(policies, "turn", [Message(role="user", content="hello")], config), (
        "seeded by the turn"
    )
    assert len({one.text for one in answers}) == 2
    assert all(one.text and one.policy == policies[0].id for one in answers)
    with pytest.raises(UnansweredError, match="too long"):
        answer_twice(policies, "turn", [Message(role="user", content="long " * 100)], config)
    greedy = config.model_copy(update={"sampling": config.sampling.model_copy(update={"temperature": 0.0})})
    with pytest.raises(UnansweredError, match="the same"):
        answer_twice(policies, "turn", [Message(role="user", content="hello")], greedy)


@needs_chromium
def test_a_conversation_in_the_browser(tmp_path: Path, tiny_model: Path) -> None:
    from label_support import CHROMIUM, FLAGS
    from playwright.sync_api import sync_playwright

    words = ["--converse.policies", str(tiny_model), "--converse.sampling.max_new_tokens", "4"]
    with serving(tmp_path, [make_pair(0)], *words) as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS.split())
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        page.set_default_timeout(90_000)
        page.goto(address)
        page.wait_for_selector(".desk[data-pair=pair-0]")
        page.keyboard.press("c")
        page.keyboard.type("hello")
        page.keyboard.press("Enter")
        page.wait_for_selector(".desk[data-pair^='pair-']:not([data-pair=pair-0]) .answer")
        first = page.get_attribute(".desk", "data-pair")
        better = httpx.get(f"{address}/api/turns/latest").json()["pair"]["right"]["text"]
        page.keyboard.press("7")
        page.wait_for_selector(".compose textarea:enabled")
        page.reload()  # judged: the queue goes on where it was
        page.wait_for_selector(".desk[data-pair=pair-0]")
        page.keyboard.press("c")
        page.keyboard.type("another")
        page.keyboard.press("Enter")
        page.wait_for_selector(".compose.waiting")
        page.reload()  # waiting: the conversation goes on where it was
        page.wait_for_selector(f".desk[data-pair^='pair-']:not([data-pair=pair-0]):not([data-pair='{first}']) .answer")
        page.keyboard.press("1")
        page.wait_for_selector(".compose textarea:enabled")
        assert page.locator(".prompt .turn").count() == 2
        page.keyboard.press("Escape")
        page.keyboard.press("c")
        page.wait_for_selector(".desk[data-pair=pair-0]")
        browser.close()
    for _ in range(100):  # the server was killed; whoever answered for it ends too
        left = [told for told in commands() if "labeling_ui.worker" in told or "preference.answer" in told]
        if not any(str(tmp_path) in told or str(tiny_model) in told for told in left):
            break
        time.sleep(0.1)
    else:
        raise AssertionError(f"still there: {left}")
    store = Store.open(f"sqlite:///{tmp_path}/label.sqlite")
    judgments = {judgment.pair_id: judgment for judgment in store.judgments()[0]}
    assert [judgments[str(first)].answer, len(judgments)] == [3, 2]
    pair = next(one for one in store.pairs() if one.id == first)
    assert better == next(one.text for one in pair.completions if one.id == judgments[str(first)].right)
    assert verify(store).faults == []


def commands() -> list[str]:
    """The command lines of all processes."""
    told = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            told.append(path.read_text(errors="replace").replace("\0", " "))
    return told
