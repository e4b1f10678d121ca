"""Leads find items by anything that is known of them, and see all judgments of an item and of a rater."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from label_support import answer, before_withdrawals, make_pair, open_store

from labeling_ui.database.errors import RefusedError
from labeling_ui.database.schema import EVENTS
from labeling_ui.database.words import phrases_of, words_of
from labeling_ui.steering import difference_lines
from labeling_ui.store.answers import Answer, Submission
from labeling_ui.store.figures import news, progress
from labeling_ui.store.leads import erasing, notes
from labeling_ui.store.leads.finding import Search
from labeling_ui.store.leads.rejecting import Selection
from labeling_ui.store.pairs.campaign import Batch, BatchChange
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from tiebreak.records import Judgment, Pair

TEXTS = [
    "Iron makes pale leaves green.",
    "The leaves are pale; add iron_chelate.",
    "Stra\u00dfe und B\u00e4ume, na\u00efve caf\u00e9.",
    "\u690d\u7269\u306e\u8449\u304c\u9ec4\u8272\u3044\u3002",
    "\u0412\u043e\u0434\u0430 \u0438 \u0441\u0432\u0435\u0442.",
    "x" * 400 + " end",
]
MANY = 60


@pytest.fixture
def store(url: str) -> Store:
    """Sixty pairs in two batches: two raters have judged most, one with flags and skips; some gold and settled."""
    chance = random.Random(1)
    pairs = [make_pair(n, TEXTS[n % 6], f"Second answer {n}: {TEXTS[(n + 1) % 6]}") for n in range(MANY)]
    store = open_store(url, pairs[:40], overlap=3, raters=2)
    about = {"overlap": 2, "seed": 0, "source": "more", "source_id": "more"}
    store.add_pairs(pairs[40:], batch="more", **about)  # type: ignore[arg-type]
    store.add_rater("lead", role="lead", rater_id="lead")
    for rater in ("r0", "r1"):
        for n in range(50):
            given = store.claim(rater)
            assert given is not None
            fields: dict[str, object] = {"answer": chance.choice([-3, -1, 0, 2])}
            if rater == "r1" and n % 9 == 0:
                fields = {"skip": True}
            elif rater == "r1" and n % 7 == 0:
                marked = f"{given.item_id.removeprefix('pair-')}-0"
                fields = {"both_bad": True, "flags": ["unsafe"], "rationale": 'not "broken_prompt" at all'}
                fields["spans"] = [{"completion": marked, "start": 0, "end": 1, "label": "broken_prompt"}]
            store.submit(rater, Submission.model_validate({"client_id": f"c{n}", "pair_id": given.item_id, **fields}))
    store.set_gold("pair-55", "55-0")
    store.adjudicate("lead", answer("pair-1", 2))
    store.withdraw_pairs(["pair-2"], "names a person")
    store.reject(Selection(judgment_ids=(store.history("r0")[0].judgment_id,)), "careless", "lead")
    return store


Row = tuple[Pair, str, list[Judgment]]


def rows(store: Store) -> list[Row]:
    """The oracle: every pair that is not withdrawn with its batch and its judgments, from the store's plain lists."""
    judgments, _ = store.judgments()
    batches = {pair_id: batch.name for batch in store.batches() for pair_id in store.pairs_in_batch(batch.name)}
    return [(pair, batches[pair.id], [one for one in judgments if one.pair_id == pair.id]) for pair in store.pairs()]


def side(judgment: Judgment) -> int | None:
    """1: the first completion is better, −1: the second, 0: neither; None: a skip."""
    if judgment.skip:
        return None
    value = judgment.answer or 0
    return (value < 0) - (value > 0) if judgment.left.endswith("-0") else (value > 0) - (value < 0)


def sides(row: Row) -> list[int]:
    return [one for judgment in row[2] if (one := side(judgment)) is not None]


def has(row: Row, *words: str) -> bool:
    """Whether every word begins a word of the pair's texts, without case."""
    whole = " ".join([row[0].messages[0].text, *(one.text for one in row[0].completions)])
    folded = "".join(c if c.isalnum() else " " for c in unicodedata.normalize("NFKC", whole).casefold())
    return all(any(one.startswith(word) for one in folded.split()) for word in words)


CASES: list[tuple[Search, Callable[[Row], bool]]] = [
    (Search(), lambda row: True),
    (Search(text="IRON leaf leaves"), lambda row: False),
    (Search(text="IRON leav"), lambda row: has(row, "iron", "leav")),
    (Search(text='"pale leaves"'), lambda row: has(row, "iron") and "pale leaves" in str(row[0])),
    (Search(text="STRASSE"), lambda row: has(row, "strasse")),
    (Search(text="cafe"), lambda row: False),
    (Search(text="caf\u00e9"), lambda row: has(row, "caf\u00e9")),
    (Search(text="chelate"), lambda row: has(row, "chelate")),
    (Search(text="\u8449\u304c"), lambda row: "\u8449\u304c" in str(row[0])),
    (Search(text="\u304c\u8449"), lambda row: False),
    (Search(text="\u0432\u043e\u0434\u0430"), lambda row: has(row, "\u0432\u043e\u0434\u0430")),
    (Search(text="... -- \"'"), lambda row: True),
    (Search(text="question 7"), lambda row: has(row, "question", "7")),
    (Search(id="r-1"), lambda row: "r-1" in row[0].id),
    (Search(id="%"), lambda row: False),
    (Search(batch="more"), lambda row: row[1] == "more"),
    (Search(batch=""), lambda row: row[1] == ""),
    (Search(rater="r1"), lambda row: any(one.rater_id == "r1" for one in row[2])),
    (Search(rater="r1", answer="skip"), lambda row: any(one.rater_id == "r1" and one.skip for one in row[2])),
    (Search(rater="r0", answer="first"), lambda row: any(one.rater_id == "r0" and side(one) == 1 for one in row[2])),
    (Search(answer="second"), lambda row: -1 in sides(row)),
    (Search(answer="neither"), lambda row: 0 in sides(row)),
    (Search(answer="skip"), lambda row: any(one.skip for one in row[2])),
    (Search(flag="unsafe"), lambda row: any("unsafe" in one.flags for one in row[2])),
    (Search(flag="broken_prompt"), lambda row: False),
    (Search(agreement="one"), lambda row: len(sides(row)) == 1),
    (Search(agreement="agree"), lambda row: len(sides(row)) > 1 and len(set(sides(row))) == 1),
    (Search(agreement="side"), lambda row: {1, -1} <= set(sides(row))),
    (Search(agreement="tie"), lambda row: len(set(sides(row))) == 2 and 0 in sides(row)),
    (Search(state="unjudged"), lambda row: not row[2]),
    (Search(state="gold"), lambda row: row[0].id == "pair-55"),
    (Search(state="settled"), lambda row: row[0].id == "pair-1"),
    (Search(shortest=100), lambda row: max(len(one.text) for one in row[0].completions) >= 100),
    (Search(longest=60, text="iron"), lambda row: has(row, "iron") and max(len(c.text) for c in row[0].completions) <= 60),
]  # fmt: skip


def test_every_filter_finds_what_the_plain_lists_have_a_page_at_a_time(store: Store) -> None:
    plain = rows(store)
    for search, wanted in CASES:
        found, after = [], -1
        while True:
            page = store.find(search, after=after, limit=7)
            assert len(page.items) <= 7
            found += [one.item_id for one in page.items]
            if page.after is None:
                break
            after = page.after
        assert found == [row[0].id for row in plain if wanted(row)], search
    (withdrawn,) = store.find(Search(state="withdrawn")).items
    assert (withdrawn.item_id, withdrawn.withdrawn) == ("pair-2", True)
    (rejected,) = store.find(Search(state="rejected")).items
    assert rejected.rejected == 1
    counted = {row[0].id: [sides(row).count(one) for one in (1, -1, 0)] for row in plain}
    for one in store.find(Search(), limit=200).items:
        assert [one.for_first, one.for_second, one.for_neither] == counted[one.item_id]
    assert verify(store).faults == []


def test_an_item_is_opened_with_all_judgments_and_its_history_and_a_rater_with_theirs(store: Store) -> None:
    rejected = store.judgments_of_rater("r0")[0]
    assert (rejected.rejected, rejected.rejected_by) == ("careless", "lead")
    opened = store.open_item(rejected.item_id)
    assert rejected in opened.judgments
    kinds = [one.kind for one in opened.history]
    assert kinds[-1] == "rejected"
    assert (opened.history[-1].note, opened.history[-1].rater_id) == ("careless", "lead")
    assert next(one.judgment for one in opened.history if one.kind == "submitted") is not None
    settled = store.open_item("pair-1")
    assert settled.settled is not None
    assert settled.history[-1].kind == "adjudicated"
    gold = store.open_item("pair-55")
    assert (gold.gold_id, gold.item.gold) == ("55-0", True)
    assert store.open_item("pair-2").withdrawn == "names a person"
    seen, before = [], None
    while page := store.judgments_of_rater("r0", before=before, limit=20):
        seen += page
        before = page[-1].seq
    assert len(seen) == 50
    assert [one.seq for one in seen] == sorted((one.seq for one in seen), reverse=True)
    with pytest.raises(RefusedError, match="no pair"):
        store.open_item("no-such")


def test_a_common_word_with_a_rare_filter_is_found_beyond_the_first_matches(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labeling_ui.store.leads.finding.FIRST_CHUNK", 2)
    monkeypatch.setattr("labeling_ui.store.leads.finding.FEW", 0)
    assert [one.item_id for one in store.find(Search(text="question", state="gold")).items] == ["pair-55"]
    page = store.find(Search(text="question", batch="more"), limit=3)
    assert [one.item_id for one in page.items] == ["pair-40", "pair-41", "pair-42"]
    assert page.after == 42


def test_an_existing_store_gets_its_words(tmp_path: object) -> None:
    import sqlite3

    store = open_store(f"sqlite:///{tmp_path}/labels.sqlite", [make_pair(n, TEXTS[n]) for n in range(6)])
    store.change_batch("", BatchChange(priority=1))
    store.close()
    with sqlite3.connect(f"{tmp_path}/labels.sqlite") as connection:
        before_withdrawals(connection)
        connection.execute("DELETE FROM schema_migrations WHERE number >= 9")
    store = Store.open(f"sqlite:///{tmp_path}/labels.sqlite")
    assert [one.item_id for one in store.find(Search(text="pale")).items] == ["pair-0", "pair-1"]
    assert [one.length for one in store.find(Search()).items] == [
        max(len(text), len("second answer")) for text in TEXTS
    ]
    assert verify(store).faults == []
    store.close()


def test_words() -> None:
    assert words_of("don\u2019t O(n\u00b2)") == ["don", "t", "o", "n2"]
    assert phrases_of('a "b c" "" !') == [["a"], ["b", "c"]]
    assert words_of("y" * 100) == ["y" * 60]


def test_disagreements_come_in_pages(store: Store) -> None:
    """Whatever the pages: those about a side, those about a tie, then skipped pairs."""
    every = store.disputes("lead", limit=100)
    assert len({one.about for one in every}) > 1
    for size in (1, 2, 7):
        pages = [store.disputes("lead", limit=size, offset=n) for n in range(0, len(every) + 2 * size, size)]
        assert [one for page in pages for one in page] == every


@contextmanager
def plans_of(store: Store) -> Iterator[list[str]]:
    """SQLite's plans of the statements that are run meanwhile."""
    asked: list[tuple[str, Any]] = []
    plans: list[str] = []

    def ask(_connection: Any, _cursor: Any, text: str, given: Any, *_: Any) -> None:
        asked.append((text, given))

    sa.event.listen(store.engine, "before_cursor_execute", ask)
    yield plans
    sa.event.remove(store.engine, "before_cursor_execute", ask)
    with store.reading() as connection:
        for text, given in asked:
            if text.lstrip().startswith(("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")):
                plans += [row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", given)]


def test_the_dashboard_reads_all_items_once_and_no_judgment_with_a_vote(tmp_path: Path) -> None:
    """By SQLite's own plans: in a store of a million judgments, each pass more takes a tenth of a second."""
    store = open_store(tmp_path, [make_pair(n) for n in range(3)], raters=2)
    with plans_of(store) as plans, store.reading() as connection:
        progress.status(connection)
        progress.judged_since(connection, 0)
        progress.judged_by_day(connection)
    assert len(plans) > 15
    assert len([one for one in plans if one == "SCAN items"]) == 1
    of_judgments = {one for one in plans if one.startswith("SCAN judgments")}
    assert of_judgments == {"SCAN judgments USING INDEX judgments_without_vote"}
    with plans_of(store) as plans:
        store.disputes("lead")
    assert "SEARCH items USING INDEX items_disputed (disputed>?)" in plans


@pytest.mark.parametrize(
    ("search", "step"),
    [
        (Search(agreement="side"), "SEARCH items USING INDEX items_disputed_in_order (disputed=? AND position>?)"),
        (Search(state="unjudged"), "SEARCH items USING INDEX items_untouched (position>?)"),
        (Search(id="r-2"), "SEARCH items USING INDEX items_ids (position>?)"),
        (Search(rater="r1"), "SEARCH items USING INDEX sqlite_autoindex_items_1 (id=?)"),
        (Search(text="first"), "SCAN item_words VIRTUAL TABLE INDEX 64:M1>"),
        (Search(text="first", agreement="side"), "SCAN item_words VIRTUAL TABLE INDEX 64:M1>"),
    ],
)
def test_a_search_reads_what_it_finds(tmp_path: Path, search: Search, step: str) -> None:
    """By SQLite's own plans: no pass over all items that are sorted or asked one by one, and one over a word's matches,
    which takes longer than all the rest for a common word."""
    store = open_store(tmp_path, [make_pair(n) for n in range(3)], raters=2)
    with plans_of(store) as plans:
        store.find(search)
    assert plans.count(step) >= 1
    assert len([one for one in plans if "item_words" in one]) == (1 if search.text else 0)
    assert not any(one.startswith("SCAN items") for one in plans)


def test_neither_a_servers_start_nor_a_message_reads_the_whole_log(tmp_path: Path) -> None:
    """By SQLite's own plans: a store of a million judgments has two million events."""
    pairs = [make_pair(n) for n in range(3)]
    store = open_store(tmp_path, pairs, raters=1)
    held = store.claim("r0")
    assert held is not None
    with plans_of(store) as plans:
        assert store.pairs_absent("test", ["pair-0", "pair-1"]) == ["pair-2"]
        assert difference_lines(store, "test", pairs, Batch("", 0, "", 1)) == []
        assert store.sources_of_single_answers() == set()
        store.transact(lambda tx: notes.write(tx, held.item_id, "r0", "r0", "is 7 right?"))
    assert {one for one in plans if "SCAN events" in one} == {
        "SCAN events USING INDEX events_pairs_added", "SCAN events USING INDEX events_notes",
    }  # fmt: skip


def test_a_webhooks_start_an_erasure_and_the_batches_read_neither_the_log_nor_sort_all_items(tmp_path: Path) -> None:
    """By SQLite's own plans."""
    store = open_store(tmp_path, [make_pair(n) for n in range(3)], raters=1)
    with plans_of(store) as plans, store.reading() as connection:
        news.present_place(connection)
        progress.batch_progress(connection)
        erasing.events_to_redact(connection, "r0", judgments=True)
    assert {one for one in plans if "SCAN events" in one} == {
        "SCAN events USING INDEX events_of_people", "SCAN events USING INDEX events_notes",
    }  # fmt: skip
    assert {one for one in plans if one.startswith(("SCAN items", "SEARCH items")) and "(id=?)" not in one} == {
        "SEARCH items USING INDEX items_of_batch (batch=?)", "SEARCH items USING INDEX items_unfinished (batch=?)",
        "SCAN items USING INDEX items_of_batch", "SCAN items USING INDEX items_withdrawn",
    }  # fmt: skip


def test_an_erasure_finds_every_text_that_a_rater_wrote(url: str) -> None:
    """Whatever became of the judgments: the oracle reads the whole log."""
    store = open_store(url, [make_pair(n) for n in range(8)], raters=2)
    whose: dict[str, str] = {}
    for n in range(7):
        held = store.claim("r0")
        assert held is not None
        written = Submission(client_id=f"c{n}", pair_id=held.item_id, answer=1, rationale=f"SECRET {n}")
        whose[store.submit("r0", written).judgment_id] = held.item_id
    ids = list(whose)
    store.amend("r0", ids[1], "a1", Answer(answer=2, rationale="SECRET amended"))
    store.reject(Selection(judgment_ids=(ids[2],)), "poor")
    store.reject(Selection(judgment_ids=(ids[3],)), "poor", again=True)
    store.withdraw_pairs([whose[ids[4]]])
    store.undo("r0", ids[5])
    store.submit("r0", Submission(client_id="again", pair_id=whose[ids[5]], answer=1, rationale="SECRET again"))
    store.undo("r0", ids[6])
    store.withdraw_pairs([whose[ids[6]]])
    with store.reading() as connection:
        found = erasing.events_to_redact(connection, "r0", judgments=True)
        events = connection.execute(sa.select(EVENTS)).all()
    written_in = {row.seq for row in events if "SECRET" in row.payload}
    rejected = {row.seq for row in events if "poor" in row.payload}
    assert set(found) == written_in | rejected
    assert (len(written_in), len(rejected)) == (9, 2)
    assert not any("SECRET" in payload or "poor" in payload for payload in found.values())
    store.close()
