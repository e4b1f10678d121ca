"""The store: no pair over its overlap, none twice, nothing lost, nothing changed unseen."""

from __future__ import annotations

import errno
import multiprocessing
import os
import sqlite3
import threading
from collections import Counter
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import sqlalchemy as sa
from label_support import answer, make_pair, open_store
from pydantic import ValidationError

from labeling_ui.database.errors import RefusedError, StoreError
from labeling_ui.database.migrations import MIGRATIONS
from labeling_ui.database.schema import METADATA, build_engine
from labeling_ui.quality.aggregate import build_preferences, group_judgments
from labeling_ui.quality.agreement import measure_agreement
from labeling_ui.store.answers import Submission
from labeling_ui.store.pairs.items import items_of, shuffle_sides
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from tiebreak.records import Completion, Pair


def work(url: str, rater_id: str, start: Barrier | None = None) -> None:
    """A rater in a closed loop, until nothing is left."""
    store = Store.open(url)
    if start:
        start.wait(30)
    while (assignment := store.claim(rater_id)) is not None:
        store.submit(rater_id, answer(assignment.item_id, 2, f"{rater_id}-{assignment.item_id}"))
    store.close()


def rows(store: Store, query: str) -> list[tuple[object, ...]]:
    with store.reading() as connection:
        return [tuple(row) for row in connection.execute(sa.text(query))]


def assert_whole(store: Store) -> None:
    found = verify(store)
    assert found.faults == []
    assert found.events > 0


@pytest.mark.slow
def test_four_processes_fill_every_place_once(url: str) -> None:
    store = open_store(url, [make_pair(n) for n in range(30)], overlap=3, raters=4)
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(4)
    workers = [context.Process(target=work, args=(store.url, f"r{n}", start)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    judged = rows(store, "SELECT item_id, rater_id FROM judgments")
    assert len(judged) == len(set(judged)) == 30 * 3
    assert set(Counter(item for item, _ in judged).values()) == {3}
    assert len({rater for _, rater in judged}) == 4
    assigned = rows(store, "SELECT item_id, rater_id FROM events WHERE kind = 'assigned'")
    assert len(assigned) == len(set(assigned)) == 90
    assert_whole(store)


def test_threads_of_one_rater_are_never_given_a_pair_twice(url: str) -> None:
    store = open_store(url, [make_pair(n) for n in range(12)], raters=1)
    faults: list[BaseException] = []

    def judge() -> None:
        while (assignment := store.claim("r0")) is not None:
            try:
                store.submit("r0", answer(assignment.item_id))
            except RefusedError:
                continue  # another tab of the same rater was quicker
            except Exception as error:  # noqa: BLE001
                faults.append(error)

    tabs = [threading.Thread(target=judge) for _ in range(4)]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join(60)
    assert faults == []
    assert rows(store, "SELECT count(*), count(DISTINCT item_id) FROM judgments") == [(12, 12)]
    assert_whole(store)


def test_submitting_again_changes_nothing(url: str) -> None:
    store = open_store(url, [make_pair(0), make_pair(1)], raters=1)
    store.claim("r0")
    first = store.submit("r0", answer("pair-0", 3, "client-01"))
    events = store.status()["events"]
    again = store.submit("r0", answer("pair-0", 3, "client-01"))
    assert (again.judgment_id, again.judgment, again.replayed) == (first.judgment_id, first.judgment, True)
    assert store.status()["events"] == events
    with pytest.raises(RefusedError, match="used for another judgment"):
        store.submit("r0", answer("pair-0", -3, "client-01"))
    with pytest.raises(RefusedError, match="already judged"):
        store.submit("r0", answer("pair-0", -3, "client-02"))
    assert [judgment.answer for judgment in store.judgments()[0]] == [3]


def test_what_is_held_is_given_again_and_what_the_client_holds_is_passed_over(url: str) -> None:
    store = open_store(url, [make_pair(n) for n in range(9)], raters=1)
    assert [store.claim("r0").item_id for _ in range(3)] == ["pair-0"] * 3  # type: ignore[union-attr]
    assert store.claim("r0", ["pair-0"]).item_id == "pair-1"  # type: ignore[union-attr]
    assert store.claim("r0", ["pair-0", "pair-1"]).item_id == "pair-2"  # type: ignore[union-attr]
    assert store.claim("r0", ["pair-0", "pair-1", "pair-2"]) is None, "no rater may hoard the campaign's pairs"


def test_only_what_was_assigned_can_be_judged(url: str) -> None:
    store = open_store(url, [make_pair(0), make_pair(1)], raters=2)
    store.claim("r0")
    for rater, pair in (("r1", "pair-0"), ("r0", "pair-1"), ("r0", "no-such-pair"), ("nobody", "pair-0")):
        with pytest.raises(RefusedError):
            store.submit(rater, answer(pair))
    assert store.judgments()[0] == []


def test_a_reader_sees_one_state_while_others_write(url: str) -> None:
    store = open_store(url, [make_pair(0)], raters=1)
    query = sa.text("SELECT seq FROM log_head")
    with store.reading() as connection:
        before = connection.scalar(query)
        assert store.claim("r0") is not None
        assert connection.scalar(query) == before
    assert store.status()["events"] == before + 1


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.ms = 1_000_000

    def __call__(self) -> int:
        return self.ms


def test_a_lapsed_lease_frees_the_place_and_late_work_counts_only_while_it_is_free(url: str) -> None:
    clock = Clock()
    store = open_store(url, [make_pair(0)], raters=3, clock=clock, lease_seconds=60)
    store.claim("r0")
    assert store.claim("r1") is None
    clock.ms += 61_000
    late = store.claim("r1")
    assert late is not None
    assert late.item_id == "pair-0"
    with pytest.raises(RefusedError, match="expired"):
        store.submit("r0", answer("pair-0"))
    clock.ms += 61_000
    assert store.claim("r2") is not None  # r1's lease is over too
    clock.ms += 61_000
    store.claim("r2", ["pair-0"])  # whatever claims sweeps; r2 holds nothing that lives now
    stored = store.submit("r1", answer("pair-0", 2, "late-client"))  # nobody has taken the place since
    assert stored.judgment.rater_id == "r1"
    assert [judgment.rater_id for judgment in store.judgments()[0]] == ["r1"]
    assert_whole(store)


def test_sides_are_even_and_each_raters_own(url: str) -> None:
    shown = Counter(
        shuffle_sides("a", "b", seed=0, rater_id=f"r{r}", item_id=f"i{i}")[0] for r in range(40) for i in range(50)
    )
    assert shown.total() == 2000
    assert abs(shown["a"] - 1000) < 4 * (2000 * 0.25) ** 0.5  # four standard deviations of a fair coin
    store = open_store(url, [make_pair(n) for n in range(20)], raters=1)
    while (assignment := store.claim("r0")) is not None:
        stored = store.submit("r0", answer(assignment.item_id))
        assert (stored.judgment.left, stored.judgment.right) == (assignment.left_id, assignment.right_id)
    lefts = {judgment.left.rpartition("-")[2] for judgment in store.judgments()[0]}
    assert lefts == {"0", "1"}


def test_a_pair_of_four_becomes_all_six_items() -> None:
    pair = make_pair(0, "a", "b", ("c", "d"))
    items = items_of(pair)
    assert {(item.first_id, item.second_id) for item in items} == {
        ("0-0", "0-1"), ("0-0", "0-2"), ("0-0", "0-3"), ("0-1", "0-2"), ("0-1", "0-3"), ("0-2", "0-3")
    }  # fmt: skip
    assert len({item.id for item in items}) == 6
    assert items_of(make_pair(1))[0].id == "pair-1"


def test_repeats_are_rare_unannounced_and_take_nobodys_place(url: str) -> None:
    store = open_store(url, [make_pair(n) for n in range(220)], overlap=1, raters=1)
    store.rules.repeat_share = 0.2
    order: list[str] = []
    while (assignment := store.claim("r0")) is not None:
        order.append(assignment.item_id)
        stored = store.submit("r0", answer(assignment.item_id, 2, f"client-{len(order)}"))
        assert (stored.judgment.left, stored.judgment.right) == (assignment.left_id, assignment.right_id)
    seen = Counter(order)
    assert len(seen) == 220
    assert set(seen.values()) == {1, 2}, "nothing is given a third time"
    repeats = [item for item, times in seen.items() if times == 2]
    assert 20 <= len(repeats) <= 70  # 0.2 of about 240 claims, less those that met a pair repeated already
    gaps = [len(order) - 1 - order[::-1].index(item) - order.index(item) for item in repeats]
    assert min(gaps) > 20
    consistency = measure_agreement(store.pairs(), store.judgments()[0])["self_consistency"]
    assert consistency["n"] == len(repeats)
    assert 0 < consistency["value"] < 1, "always 'right', on sides that are shuffled anew"
    preferences = build_preferences(store.pairs(), group_judgments(store.judgments()[0])).preferences
    assert len(preferences) == 220
    assert {preference.raters for preference in preferences} == {("r0",)}
    assert store.status()["judgments_wanted"] == len(order)
    assert_whole(store)


# --- tampering ---


def judged_store(tmp_path: Path) -> Store:
    store = open_store(tmp_path, [make_pair(n) for n in range(3)], raters=1)
    work(store.url, "r0")
    assert_whole(store)
    return store


@pytest.mark.parametrize(
    "statement", ["UPDATE events SET payload = '{}' WHERE seq = 3", "DELETE FROM events WHERE seq = 3"]
)
def test_the_log_refuses_to_be_changed(tmp_path: Path, statement: str) -> None:
    store = judged_store(tmp_path)
    connection = sqlite3.connect(store.engine.url.database or "")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    connection.close()
    assert_whole(store)


FORGERIES = {
    "an answer in the log": ("UPDATE events SET payload = replace(payload, '\"answer\":2', '\"answer\":-2')", "chain"),
    "the first event": ("DELETE FROM events WHERE seq = 1", "chain"),
    "the last event": ("DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)", "missing at the end"),
    "a label": (
        "UPDATE judgments SET record = replace(record, '\"answer\":2', '\"answer\":-2')",
        "not match the log",
    ),
    "a lost label": ("DELETE FROM judgments WHERE seq = (SELECT max(seq) FROM judgments)", "not match the log"),
    "a side": ("UPDATE assignments SET left_id = right_id, right_id = left_id", "not match the log"),
    "a text": ("UPDATE pairs SET record = replace(record, 'first', 'third')", "differ from those"),
    "who a rater is": ("UPDATE raters SET kind = 'model'", "not match the log"),
    "how many have judged": ("UPDATE items SET taken = 0", "its count of raters"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_verify_finds_what_was_tampered_with(tmp_path: Path, forgery: str) -> None:
    store = judged_store(tmp_path)
    statement, fault = FORGERIES[forgery]
    with sqlite3.connect(store.engine.url.database or "") as connection:
        connection.execute("DROP TRIGGER events_no_update")
        connection.execute("DROP TRIGGER events_no_delete")
        assert connection.execute(statement).rowcount > 0
    assert fault in "\n".join(verify(store).faults)


# --- bad input ---


@pytest.mark.parametrize(
    "fault",
    [
        {"answer": 4}, {"answer": -4}, {"answer": 1.5}, {"answer": True}, {"answer": "1"}, {"answer": None},
        {"both_bad": True}, {"skip": True}, {"both_bad": 1}, {"client_id": ""}, {"client_id": "x" * 65},
        {"edited_text": "e", "answer": 0}, {"edited_text": "e", "answer": None, "ranking": [["a", "b"], ["c"]]},
        {"answer": None, "ranking": []}, {"answer": None, "ranking": [["a"], ["a", "b"]]},
        {"rationale": "x" * 4001}, {"rationale": "a\0b"}, {"rationale": "\ud800"}, {"edited_text": "x" * 100_001},
        {"flags": ["no-such-flag"]}, {"aspects": {"helpful": 9}}, {"aspects": {"beautiful": 1}},
        {"seconds_active": -1}, {"seconds_active": float("nan")}, {"rater_id": "someone else"}, {"left": "0-0"},
        {"kind": "human"},
    ],
)  # fmt: skip
def test_faulty_judgments_are_refused(fault: dict[str, object]) -> None:
    good = {"client_id": "client-01", "pair_id": "pair-0", "answer": 1}
    Submission.model_validate(good)
    with pytest.raises(ValidationError):
        Submission.model_validate({**good, **fault})


def test_people_and_simulated_raters_never_share_a_store(url: str) -> None:
    store = open_store(url, [make_pair(0)], raters=1)
    with pytest.raises(StoreError, match="must not mix"):
        store.add_rater("simulated-0", kind="simulated")


def test_a_store_keeps_its_seed_and_its_pairs(url: str) -> None:
    store = open_store(url, [make_pair(0)], overlap=2)
    with pytest.raises(StoreError, match="seed 0"):
        store.add_pairs([make_pair(0)], overlap=2, seed=1, source="t", source_id="t")
    with pytest.raises(StoreError, match="two different pairs"):
        store.add_pairs([make_pair(0, "another text")], overlap=2, seed=0, source="t", source_id="t")
    added = store.add_pairs([make_pair(0), make_pair(1)], overlap=2, seed=0, source="t", source_id="t2")
    assert added == 1
    assert [pair.id for pair in store.pairs()] == ["pair-0", "pair-1"]
    assert_whole(store)


def test_a_lead_may_change_the_overlap(url: str) -> None:
    store = open_store(url, [make_pair(0), make_pair(1)], overlap=1, raters=3)
    work(store.url, "r0")
    assert store.claim("r1") is None
    store.add_pairs([], overlap=2, seed=0, source="t", source_id="t")
    work(store.url, "r1")
    store.add_pairs([], overlap=1, seed=0, source="t", source_id="t")
    assert store.claim("r2") is None
    assert store.status()["judgments"] == {"human": 4}
    assert_whole(store)


def test_identical_completions_are_no_pair() -> None:
    completions = tuple(Completion(id=f"c{k}", text="the same ", policy="p") for k in range(2))
    with pytest.raises(ValidationError, match="nothing to judge"):
        Pair(id="p", prompt_id="q", messages=(), completions=completions)


def test_a_newer_store_and_no_store_are_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(0)])
    with sqlite3.connect(store.engine.url.database or "") as connection:
        connection.execute("INSERT INTO schema_migrations VALUES (?, 0)", (len(MIGRATIONS) + 1,))
    with pytest.raises(StoreError, match="update Tiebreak"):
        Store.open(store.url)
    with pytest.raises(StoreError, match="no label store"):
        Store.open(f"sqlite:///{tmp_path}/nothing.sqlite")
    (tmp_path / "text.sqlite").write_text("not a database " * 100)
    with pytest.raises(StoreError, match="cannot open"):
        Store.open(f"sqlite:///{tmp_path}/text.sqlite")
    with pytest.raises(StoreError, match="in memory"):
        build_engine("sqlite://")


def test_migrations_make_the_tables_that_the_code_reads(url: str) -> None:
    store = open_store(url, [])
    inspector = sa.inspect(store.engine)
    for name, table in METADATA.tables.items():
        assert {column["name"] for column in inspector.get_columns(name)} == {
            column.name for column in table.columns
        }, name


def test_a_judgment_is_acknowledged_when_the_disk_has_it_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path, [make_pair(n) for n in range(3)], raters=1)
    first, second = (store.claim("r0", held) for held in ((), ("pair-0",)))
    assert first is not None
    assert second is not None
    confirmed: list[int] = []
    to_disk = os.fdatasync

    def watch(file: int) -> None:
        assert os.readlink(f"/proc/self/fd/{file}").endswith("labels.sqlite-wal")
        with sqlite3.connect(tmp_path / "labels.sqlite", timeout=0) as other:  # committed, and others may write
            confirmed.append(other.execute("SELECT count(*) FROM judgments").fetchone()[0])
            other.execute("BEGIN IMMEDIATE")
        to_disk(file)

    monkeypatch.setattr(os, "fdatasync", watch)
    store.submit("r0", answer(first.item_id))
    assert confirmed == [1]
    store.claim("r0")
    assert confirmed == [1], "who is given what need not wait for the disk"

    def fail(_file: int) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        store.submit("r0", answer(second.item_id))
    monkeypatch.setattr(os, "fdatasync", watch)
    assert store.submit("r0", answer(second.item_id)).replayed
    assert confirmed == [1, 2], "what is sent again waits for the disk again"
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_a_password_in_a_url_is_in_no_message() -> None:
    for url in ("postgresql+psycopg://me:hidden@127.0.0.1:1/none", "nosuch://me:hidden@host/x"):
        with pytest.raises(StoreError) as refused:
            Store.open(url)
        assert "hidden" not in str(refused.value)
