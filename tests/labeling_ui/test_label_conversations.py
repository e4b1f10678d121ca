"""The conversation mode: questions wait in the store, answers become a pair, and the better answer is continued."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from label_support import (
    answer,
    before_withdrawals,
    free_port,
    make_pair,
    needs_chromium,
    open_store,
    processes,
    serving,
    tiebreak,
)

from labeling_ui.database.errors import RefusedError
from labeling_ui.database.event_log import event_hash
from labeling_ui.database.schema import EVENTS, TURNS
from labeling_ui.store.answers import Submission
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from labeling_ui.store.work import conversations
from labeling_ui.store.work.conversations import Ask, Request
from labeling_ui.worker import answer_one
from tiebreak.messages import Message
from tiebreak.records import Completion

POLICIES = ("runs/sft", "runs/dpo")


def ask(store: Store, rater: str, number: int, text: str, system: str = "") -> str:
    asked = Ask(conversation_id="talk", number=number, text=text)
    return store.transact(lambda tx: conversations.ask(tx, rater, asked, policies=POLICIES, system=system))


def look(store: Store, rater: str, turn_id: str | None = None) -> conversations.Turn:
    with store.reading() as connection:
        turn = conversations.look(connection, store.rules, rater, turn_id)
    assert turn is not None
    return turn


def reply(request: Request) -> list[Completion]:
    """Two answers that say what they answer."""
    asked = request.messages[-1].content
    return [Completion(id=f"{n}{request.turn_id}", text=f"{n} to {asked}", policy=f"policy {n}") for n in "ab"]


def take(store: Store) -> Request:
    request = store.transact(conversations.take)
    assert request is not None
    return request


def answer_next(store: Store) -> None:
    answer_one(store, reply, take(store))


def log_of_turns(store: Store) -> list[tuple[str, dict[str, Any]]]:
    """What the log tells of conversations."""
    query = sa.select(EVENTS.c.kind, EVENTS.c.payload).where(EVENTS.c.kind.in_(("asked", "answered")))
    with store.reading() as connection:
        return [(row.kind, json.loads(row.payload)) for row in connection.execute(query.order_by(EVENTS.c.seq))]


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url, [make_pair(0)], raters=2)


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
    turns = [(message.role, message.content) for message in look(store, "r0", second).messages]
    assert turns == [("system", "be brief"), ("user", "hello"), ("assistant", better), ("user", "and then?")]
    answer_next(store)
    last = look(store, "r0").assignment
    assert last is not None
    submission = Submission(client_id="edit", pair_id=last.item_id, answer=-1, edited_text="what I would have said")
    store.submit("r0", submission)
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
    with pytest.raises(RefusedError, match="start another"):
        ask(store, "r0", 1, "go on")
    with pytest.raises(RefusedError, match="no such turn"):
        look(store, "r1", look(store, "r0").id)


def test_the_log_tells_what_was_asked_of_whom_and_what_came_back(store: Store) -> None:
    first = ask(store, "r0", 0, "hello", system="be brief")
    ask(store, "r0", 0, "hello", system="be brief")
    answer_next(store)
    pair = look(store, "r0").assignment
    assert pair is not None
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    about = {"turn": first, "conversation_id": "talk", "number": 0}
    assert log_of_turns(store) == [
        ("asked", {**about, "messages": messages, "policies": list(POLICIES)}),
        ("answered", {"turn": first, "pair_id": pair.item_id, "error": ""}),
    ]
    waiting = ask(store, "r1", 0, "is anybody there?")
    assert [(kind, event["turn"]) for kind, event in log_of_turns(store)[2:]] == [("asked", waiting)], (
        "before any answer"
    )
    assert verify(store).faults == []
    mine = TURNS.c.id == first
    another = sa.update(TURNS).where(mine).values(pair_id="pair-0")
    failed = sa.update(TURNS).where(mine).values(pair_id=pair.item_id, error="none came")
    for forgery in (another, failed, sa.delete(TURNS).where(mine)):
        with store.engine.begin() as connection:
            connection.execute(forgery)
        assert verify(store).faults == [f"turn {first}: does not match the log"]


def test_what_was_left_behind_or_asked_anew_takes_no_answer_from_before(url: str) -> None:
    now = [1_000_000]
    store = open_store(url, [make_pair(0)], raters=2, clock=lambda: now[0])
    first = ask(store, "r0", 0, "hello")
    other = ask(store, "r1", 0, "somebody else's")
    request = take(store)
    now[0] += 1
    asked = Ask(conversation_id="another talk", number=0, text="something else")
    store.transact(lambda tx: conversations.ask(tx, "r0", asked, policies=POLICIES))
    assert (look(store, "r0", first).state, look(store, "r0", first).error) == ("failed", conversations.LEFT_BEHIND)
    assert look(store, "r1", other).state == "waiting", "each rater by themselves"
    answer_one(store, reply, request)
    now[0] += 1
    assert ask(store, "r0", 0, "hello again") == first
    assert take(store).turn_id == other
    assert take(store).messages[-1].content == "hello again"
    answer_one(store, reply, request)
    assert look(store, "r0", first).state == "working", "the answer is to what was asked before"
    assert store.status()["pairs"] == 1
    kinds = [(kind, event.get("error")) for kind, event in log_of_turns(store)]
    left = ("answered", conversations.LEFT_BEHIND)
    assert kinds == [("asked", None)] * 2 + [left, ("asked", None)] + [left, ("asked", None)]
    assert verify(store).faults == []


def test_a_turn_is_held_for_as_long_as_its_worker_lives(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labeling_ui.store.work.conversations.HOLD_SECONDS", 0.2)
    monkeypatch.setattr("labeling_ui.worker.HOLD_AGAIN_SECONDS", 0.05)
    store = open_store(url, [make_pair(0)])
    ask(store, "r0", 0, "hello")
    taken: list[Request | None] = []

    def slow(request: Request) -> list[Completion]:
        time.sleep(0.6)
        taken.append(store.transact(conversations.take))
        return reply(request)

    answer_one(store, slow, take(store))
    assert taken == [None], "no other worker got it meanwhile"
    assert look(store, "r0").state == "ready"


def test_a_store_whose_log_did_not_tell_of_turns_is_brought_up_to_date(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(0)], raters=2)
    ask(store, "r0", 0, "hello")
    answer_next(store)
    judged = look(store, "r0").assignment
    assert judged is not None
    store.submit("r0", answer(judged.item_id, 2))
    ask(store, "r1", 0, "waiting")
    before = [look(store, "r0"), look(store, "r1")]
    events = log_of_turns(store)
    store.close()
    forget_turns(tmp_path / "labels.sqlite")
    moved = Store.open(f"sqlite:///{tmp_path}/labels.sqlite")
    assert [look(moved, "r0"), look(moved, "r1")] == before
    assert log_of_turns(moved) == [(kind, {**one, "policies": []} if kind == "asked" else one) for kind, one in events]
    assert verify(moved).faults == []
    ask(moved, "r0", 1, "and then?")
    assert verify(moved).faults == []
    moved.close()


def forget_turns(path: Path) -> None:
    """Make the log as the version before wrote it: without events of conversations, chained anew."""
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER events_no_update")
        connection.execute("DROP TRIGGER events_no_delete")
        rows = connection.execute(
            "SELECT * FROM events WHERE kind NOT IN ('asked', 'answered') ORDER BY seq"
        ).fetchall()
        connection.execute("DELETE FROM events")
        previous = ""
        for seq, (_, at_ms, kind, rater_id, item_id, payload, _, _) in enumerate(rows, start=1):
            digest = event_hash(previous, seq, at_ms, kind, rater_id, item_id, payload)
            row = (seq, at_ms, kind, rater_id, item_id, payload, previous, digest)
            connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            previous = digest
        connection.execute("UPDATE log_head SET seq = ?, hash = ?", (len(rows), previous))
        connection.execute("DROP TABLE documents")
        connection.execute("DROP INDEX judgments_without_vote")
        connection.execute("ALTER TABLE items DROP COLUMN skips")
        before_withdrawals(connection)
        connection.execute("DELETE FROM schema_migrations WHERE number >= 6")


def test_a_turn_is_answered_after_a_failure_and_after_the_worker_died(tmp_path: Path) -> None:
    now = [1_000_000]
    store = open_store(tmp_path, [make_pair(0)], clock=lambda: now[0])
    turn = ask(store, "r0", 0, "hello")
    request = take(store)

    def broken(_request: Request) -> list[Completion]:
        raise RuntimeError("out of memory")

    answer_one(store, broken, request)
    assert (look(store, "r0", turn).state, look(store, "r0", turn).error) == ("failed", "out of memory")
    now[0] += 1
    ask(store, "r0", 0, "hello again")
    dead = take(store)
    store.close()  # and the server and its worker die
    store = open_store(tmp_path, [], clock=lambda: now[0])
    assert store.transact(conversations.take) is None
    now[0] += 1000 * conversations.HOLD_SECONDS + 1
    answer_next(store)
    assert look(store, "r0", turn).state == "ready"
    store.transact(lambda tx: conversations.answer(tx, store.rules, dead, reply(dead)[::-1]))
    assert store.status()["pairs"] == 2, "an answer that comes late makes no second pair"
    events = [(kind, one.get("error")) for kind, one in log_of_turns(store)]
    assert events == [("asked", None), ("answered", "out of memory"), ("asked", None), ("answered", "")]
    assert verify(store).faults == []
    store.close()


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
def test_a_conversation_in_the_browser_outlives_its_server(tmp_path: Path, tiny_model: Path) -> None:
    from label_support import CHROMIUM, FLAGS
    from playwright.sync_api import sync_playwright

    words = ["--converse.policies", str(tiny_model), "--converse.sampling.max_new_tokens", "4"]
    port = free_port()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS.split())
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        page.set_default_timeout(180_000)
        with serving(tmp_path, [make_pair(0)], *words, port=port) as (address, server):
            (worker,) = processes("labeling_ui.worker", str(tmp_path))
            os.kill(worker, signal.SIGSTOP)
            page.goto(address)
            page.wait_for_selector(".desk[data-pair=pair-0]")
            converse(page, "hello")
            page.wait_for_selector(".compose.waiting")
            assert httpx.get(f"{address}/api/turns/latest").json()["state"] == "waiting"
            for process in (server.pid, worker, *processes("preference.answer", str(tiny_model))):
                os.kill(process, signal.SIGKILL)
        with serving(tmp_path, [make_pair(0)], *words, port=port):
            page.reload()  # waiting: the conversation resumes where it was
            page.wait_for_selector(".desk[data-pair^='pair-']:not([data-pair=pair-0]) .answer")
            first = str(page.get_attribute(".desk", "data-pair"))
            better = httpx.get(f"{address}/api/turns/latest").json()["pair"]["right"]["text"]
            page.wait_for_selector(".desk:not([data-fresh])")
            page.keyboard.press("7")
            page.wait_for_selector(".compose textarea:enabled")
            assert page.locator(".prompt .turn").count() == 2
            page.reload()  # judged: the queue resumes where it was
            page.wait_for_selector(".desk[data-pair=pair-0]")
            converse(page, "another")
            page.wait_for_selector(f".desk[data-pair^='pair-']:not([data-pair=pair-0], [data-pair='{first}']) .answer")
            page.wait_for_selector(".desk:not([data-fresh])")
            page.keyboard.press("1")
            page.wait_for_selector(".compose textarea:enabled")
            page.keyboard.press("Escape")
            page.keyboard.press("c")
            page.wait_for_selector(".desk[data-pair=pair-0]")
            while page.evaluate("Object.keys(localStorage).some((key) => key.startsWith('tiebreak-judgment:'))"):
                page.wait_for_timeout(100)
        browser.close()
    for _ in range(2_000):  # the server was killed; whoever answered for it ends too
        left = [*processes("labeling_ui.worker", str(tmp_path)), *processes("preference.answer", str(tiny_model))]
        if not left:
            break
        time.sleep(0.1)
    assert left == []
    store = Store.open(f"sqlite:///{tmp_path}/label.sqlite")
    judgments = {judgment.pair_id: judgment for judgment in store.judgments()[0]}
    assert [judgments[first].answer, len(judgments)] == [3, 2]
    pair = next(one for one in store.pairs() if one.id == first)
    assert better == next(one.text for one in pair.completions if one.id == judgments[first].right)
    events = log_of_turns(store)
    assert [kind for kind, _ in events] == ["asked", "answered", "asked", "answered"]
    assert events[0][1]["policies"] == [str(tiny_model)]
    assert verify(store).faults == []
    store.close()


def converse(page: Any, text: str) -> None:
    """Begin a conversation by keys."""
    page.keyboard.press("c")
    page.keyboard.type(text)
    page.keyboard.press("Enter")
