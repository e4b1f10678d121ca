"""Changes to a running campaign: pairs moved, withdrawn, restored and corrected; nothing of it happens silently."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from label_support import answer, make_pair, open_store, tiebreak, write_pairs

from labeling_ui import label
from labeling_ui.database.errors import RefusedError
from labeling_ui.exchange.export import read_labels
from labeling_ui.quality.agreement import measure_agreement, measure_votes
from labeling_ui.quality.vote_cache import LiveVotes
from labeling_ui.steering import difference_lines, ranking_lines
from labeling_ui.store.answers import Answer, Submission
from labeling_ui.store.pairs.campaign import Batch, BatchChange
from labeling_ui.store.store import Store, wall_clock_ms
from labeling_ui.store.verify import verify
from tiebreak.data.reading import read_records
from tiebreak.errors import TiebreakError
from tiebreak.files import write_jsonl
from tiebreak.records import ExportedJudgment, Pair
from tiebreak.runs.run import read_manifest

DAY_MS = 86_400_000


def add(store: Store, pairs: list[Pair], batch: str = "", **more: object) -> int:
    about = {"overlap": 1, "seed": 0, "source": "pairs.jsonl", "source_id": f"{batch}-{len(pairs)}"}
    return store.add_pairs(pairs, **(about | {"batch": batch} | more))  # type: ignore[arg-type]


def judge_all(store: Store, rater_id: str, value: int = 1) -> list[str]:
    order: list[str] = []
    while (given := store.claim(rater_id)) is not None:
        store.submit(rater_id, answer(given.item_id, value, f"{rater_id}-{len(order)}-{given.item_id}"))
        order.append(given.item_id)
    return order


def assert_whole(store: Store) -> None:
    assert verify(store).faults == []


def test_pairs_that_are_there_stay_in_their_batch_and_no_empty_one_appears(url: str) -> None:
    store = open_store(url, [], raters=1)
    pairs = [make_pair(n) for n in range(3)]
    add(store, pairs, "first")
    assert add(store, pairs, "second", priority=5, pool="german") == 0
    assert [batch.name for batch in store.batches()] == ["", "first"]
    configured = Batch("second", 5, "german")
    lines = difference_lines(store, "pairs.jsonl", pairs, configured)
    assert lines == [
        "3 pairs of pairs.jsonl stay in batch 'first': priority 0, for everybody, overlap 1",
        "the configuration names batch 'second'; to move them there: tiebreak label move --to second --priority 5 "
        f"--pool german --overlap 1 --pairs pairs.jsonl --store {shlex.quote(store.url)}",
    ]
    store.move_pairs([pair.id for pair in pairs], "second", BatchChange(priority=5, pool="german"))
    assert difference_lines(store, "pairs.jsonl", pairs, configured) == []
    assert store.claim("r0") is None, "the pool is for others"
    store.move_rater("r0", "german")
    assert judge_all(store, "r0") == ["pair-0", "pair-1", "pair-2"]
    assert_whole(store)


def test_pairs_that_are_judged_otherwise_than_the_configuration_says_are_named(tmp_path: Path) -> None:
    larger = make_pair(1, more=("third",))
    store = open_store(tmp_path, [make_pair(0), larger])
    (line,) = ranking_lines(store, "pairs.jsonl", [make_pair(0), larger], ranking=True)
    assert line.startswith("ranking: true applies to new pairs: 1 of pairs.jsonl are compared two answers at a time")
    assert ranking_lines(store, "pairs.jsonl", [make_pair(0), larger], ranking=False) == []
    ranked = make_pair(2, more=("third",))
    store.add_pairs([ranked], overlap=1, seed=0, source="s", source_id="s", ranking=True)
    assert ranking_lines(store, "pairs.jsonl", [ranked], ranking=True) == []
    assert "are ranked, as they were added" in ranking_lines(store, "pairs.jsonl", [ranked], ranking=False)[0]
    store.close()


def test_what_a_lead_has_set_outlives_a_restart_with_the_same_configuration(url: str) -> None:
    store = open_store(url, [make_pair(0)], raters=1)
    store.change_batch("", BatchChange(priority=9, overlap=4))
    open_store(url, [make_pair(0), make_pair(1)], raters=0)
    assert store.batches() == [Batch("", 9, "", 4)]
    add(store, [make_pair(0)], overlap=2, source="test")  # a configuration that has changed is applied
    assert store.batches() == [Batch("", 0, "", 2)]
    assert_whole(store)


def test_moved_pairs_go_by_their_new_batch(url: str) -> None:
    store = open_store(url, [make_pair(n) for n in range(4)], raters=2)
    assert store.claim("r0").item_id == "pair-0"  # type: ignore[union-attr]
    store.move_pairs(["pair-3"], "urgent", BatchChange(priority=3, overlap=2))
    store.move_pairs(["pair-1"], "later", BatchChange(paused=True))
    assert judge_all(store, "r0") == ["pair-0", "pair-3", "pair-2"]
    assert judge_all(store, "r1") == ["pair-3"]
    assert store.pairs_in_batch("urgent") == ["pair-3"]
    with pytest.raises(RefusedError, match="no pair pair-9, pair-8"):
        store.move_pairs(["pair-9", "pair-1", "pair-8"], "urgent")
    assert store.pairs_in_batch("later") == ["pair-1"]
    assert_whole(store)


def test_a_withdrawn_pair_is_given_to_nobody_counts_nowhere_and_comes_back_with_its_judgments(url: str) -> None:
    store = open_store(url, [make_pair(n) for n in range(4)], overlap=2, raters=2)
    live = LiveVotes(store)
    held = store.claim("r0")
    assert held is not None
    judged = {rater: judge_all(store, rater, value) for rater, value in (("r1", 2), ("r0", -2))}
    assert judged == {"r1": ["pair-0", "pair-1", "pair-2", "pair-3"], "r0": ["pair-0", "pair-1", "pair-2", "pair-3"]}
    store.add_rater("third", rater_id="r2")
    store.change_batch("", BatchChange(overlap=3))
    mine, again = store.claim("r2"), store.claim("r2", ["pair-0"])
    assert mine is not None
    assert again is not None
    before, disputed = store.status(), {one.item_id for one in store.disputes("r0")}
    assert disputed & {"pair-0", "pair-3"}

    assert store.withdraw_pairs(["pair-0", "pair-3"], "names a person") == 2
    assert store.withdraw_pairs(["pair-0"]) == 0, "once"
    for work in (
        lambda: store.submit("r2", answer("pair-0", 1, "late")),
        lambda: store.undo("r0", store.history("r0")[-1].judgment_id),
        lambda: store.amend("r0", store.history("r0")[-1].judgment_id, "c", Answer(answer=1)),
        lambda: store.set_gold("pair-0", "0-0"),
        lambda: store.open_dispute("r0", "pair-0"),
    ):
        with pytest.raises(RefusedError, match="withdrawn"):
            work()
    assert judge_all(store, "r2") == ["pair-1", "pair-2"]
    store.change_batch("", BatchChange(priority=1))
    assert store.claim("r2") is None, "a change of the batch offers no withdrawn pair"
    now = store.status()
    assert (now["pairs"], now["items"], now["withdrawn"]) == (2, 2, 2)
    assert (now["judgments"], now["judgments_wanted"]) == ({"human": 6}, 6)
    assert store.judged_since(0) == (6, 3)
    assert sum(store.judged_by_day().values()) == 6
    labels = read_labels(store)
    assert {judgment.pair_id for judgment in labels.judgments} == {"pair-2", "pair-1"} == {p.id for p in labels.pairs}
    assert [(one.pair_id, one.reason) for one in labels.withdrawn] == [
        ("pair-0", "names a person"), ("pair-3", "names a person")
    ]  # fmt: skip
    assert measure_votes(live.read())["judgments"] == 6
    assert (
        measure_votes(live.read())["percent_with_ties"]
        == measure_agreement(store.pairs(), store.judgments()[0])["percent_with_ties"]
    )
    assert not {one.item_id for one in store.disputes("r0")} & {"pair-0", "pair-3"}
    assert_whole(store)

    assert store.restore_pairs(["pair-0", "pair-3"]) == 2
    assert judge_all(store, "r2") == ["pair-0", "pair-3"]
    after = store.status()
    assert (after["pairs"], after["withdrawn"], after["judgments"]) == (4, 0, {"human": 12})
    assert after["judgments_wanted"] == before["judgments_wanted"] == 12
    assert measure_votes(live.read())["judgments"] == 12
    assert_whole(store)


def test_gold_and_repeats_of_a_withdrawn_pair_are_given_no_more(url: str) -> None:
    store = open_store(url, [make_pair(n) for n in range(60)], raters=1)
    store.set_gold("pair-59", "59-0")
    store.rules.gold_share = store.rules.repeat_share = 0.5
    given = []
    for n in range(25):
        one = store.claim("r0")
        assert one is not None
        given.append(one.item_id)
        store.submit("r0", answer(one.item_id, 1, f"a{n}"))
        store.withdraw_pairs([one.item_id, "pair-59"] if n == 0 else [one.item_id])
    rest = judge_all(store, "r0")
    assert not set(rest) & (set(given) | {"pair-59"})
    assert_whole(store)


def test_a_corrected_pair_is_judged_anew_and_its_old_judgments_are_kept_aside(url: str) -> None:
    store = open_store(url, [make_pair(n) for n in range(3)], raters=2)
    add(store, [make_pair(7)], "urgent", priority=2)
    assert judge_all(store, "r0") == ["pair-7", "pair-0", "pair-1", "pair-2"]
    fixed = make_pair(7, "first answer, without the typo")
    with pytest.raises(TiebreakError, match=r"label correct --pairs pairs\.jsonl"):
        add(store, [fixed], "urgent", priority=2)
    store.set_gold("pair-7", "7-0")
    (made,) = store.correct_pairs([fixed, make_pair(0)], source="pairs.jsonl", source_id="new")
    assert (made.pair_id, made.replaced_by, made.gold) == ("pair-7", "pair-7@2", True)
    assert add(store, [fixed, make_pair(0)], "urgent", priority=2) == 0, "the corrected file is what the store has"
    given = store.claim("r0")
    assert given is not None
    assert (given.item_id, given.pair.completions[0].text) == ("pair-7@2", "first answer, without the typo")
    assert judge_all(store, "r0", 2) == ["pair-7@2"]
    assert {one.pair_id for one in read_labels(store).judgments} == {"pair-0", "pair-1", "pair-2", "pair-7@2"}
    with pytest.raises(RefusedError, match="corrected, to pair-7@2"):
        store.restore_pairs(["pair-7"])
    again = make_pair(7, "first answer, once more")
    (made,) = store.correct_pairs([again], source="pairs.jsonl", source_id="newer")
    assert (made.pair_id, made.replaced_by) == ("pair-7@2", "pair-7@3")
    with pytest.raises(TiebreakError, match="two different pairs"):
        add(store, [make_pair(7, "something else")], "urgent", priority=2)
    assert add(store, [fixed], "urgent", priority=2) == 0, "a file from before the correction can still be served"
    (line,) = difference_lines(store, "pairs.jsonl", [fixed], Batch("urgent", 2))
    assert line.startswith("1 pair of pairs.jsonl had an error that was corrected")
    assert difference_lines(store, "pairs.jsonl", [again], Batch("urgent", 2)) == []
    assert add(store, [again], "urgent", priority=2) == 0
    assert_whole(store)


def test_commands_change_a_campaign_and_the_manifest_lists_what_is_withdrawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_pairs(tmp_path, [make_pair(n) for n in range(4)])
    at = ("--store", f"sqlite:///{tmp_path}/label.sqlite")

    def call(*words: str) -> str:
        label._dispatch([*words, *at])
        return capsys.readouterr().out

    assert call("import", "--pairs", str(file)).startswith("added 4 pairs")
    store = Store.open(at[1])
    store.add_rater("r0", rater_id="r0")
    write_pairs(tmp_path, [make_pair(0), make_pair(1), make_pair(2, "corrected")])
    assert "moved 3 pairs to batch 'two': priority 3" in call(
        "move", "--to", "two", "--priority", "3", "--pairs", str(file)
    )
    assert "corrected 1 pair;" in call("correct", "--pairs", str(file))
    assert "withdrew 1 pair;" in call("withdraw", "--absent-from", str(file), "--reason", "a duplicate")
    rows = json.loads(call("withdrawn", "--json"))
    assert [(row["pair_id"], row["replaced_by"], row["reason"]) for row in rows] == [
        ("pair-2", "pair-2@2", "corrected"), ("pair-3", None, "a duplicate")
    ]  # fmt: skip
    assert "paused" in call("batch", "--name", "two", "--paused", "true")
    assert store.claim("r0") is None
    call("batch", "--name", "two", "--paused", "false")
    assert judge_all(store, "r0") == ["pair-0", "pair-1", "pair-2@2"]
    assert {row["name"]: (row["pairs"], row["priority"]) for row in json.loads(call("batches", "--json"))} == {
        "": (1, 0), "two": (4, 3)
    }  # fmt: skip
    label._dispatch(["export", *at, "--output", str(tmp_path / "out")])
    listed = read_manifest(tmp_path / "out")["withdrawn"]
    assert [one["pair_id"] for one in listed] == ["pair-2", "pair-3"]
    capsys.readouterr()
    assert "restored 1 pair" in call("restore", "--ids", "pair-3")
    assert judge_all(store, "r0") == ["pair-3"]
    with pytest.raises(TiebreakError, match="in one way"):
        call("move", "--to", "two")
    with pytest.raises(TiebreakError, match="no pairs in batch 'none'"):
        call("withdraw", "--from-batch", "none")
    assert_whole(store)
    store.close()


def test_pairs_taken_out_of_the_file_are_named_at_the_start(tmp_path: Path) -> None:
    store = open_store(tmp_path, [], raters=0)
    add(store, [make_pair(n) for n in range(3)], source_id="before")
    add(store, [make_pair(0)], source_id="after")
    (line,) = difference_lines(store, "pairs.jsonl", [make_pair(0)], Batch(""))
    assert line.startswith("2 pairs that pairs.jsonl no longer has are still given to raters; to withdraw: tiebreak")
    store.withdraw_pairs(store.pairs_absent("pairs.jsonl", ["pair-0"]))
    assert difference_lines(store, "pairs.jsonl", [make_pair(0)], Batch("")) == []
    assert ["pairs.jsonl", "after"] in store.campaign()["sources"], "an export names the file as it is now"


# --- settled answers ---


def test_settled_answers_come_back_as_settled_answers(tmp_path: Path) -> None:
    pairs = [make_pair(n) for n in range(2)]
    store = open_store(tmp_path, pairs, overlap=2, raters=2)
    store.add_rater("lead", rater_id="lead", role="lead")
    for rater, value in (("r0", 2), ("r1", -2)):
        judge_all(store, rater, value)
    settled = Submission(client_id="s", pair_id="pair-0", answer=3)
    store.adjudicate("lead", settled)
    file = write_pairs(tmp_path, pairs)
    label._dispatch(["export", "--store", store.url, "--output", str(tmp_path / "out")])
    final = tmp_path / "out/final"
    (row,) = read_records(final / "adjudications.jsonl", ExportedJudgment)
    assert (row.settled, row.at is not None) == (True, True)
    unmarked = tmp_path / "adjudications.jsonl"  # as earlier versions wrote it
    write_jsonl(unmarked, [row.judgment])
    for number, words in enumerate(
        (
            ("--judgments", str(final / "judgments.jsonl"), "--adjudications", str(final / "adjudications.jsonl")),
            ("--judgments", str(final / "adjudications.jsonl")),
            ("--judgments", str(unmarked)),
        )
    ):
        other = f"sqlite:///{tmp_path}/other-{number}.sqlite"
        for _ in range(2):
            label._dispatch(["import", "--pairs", str(file), "--store", other, *words])
        back = Store.open(other)
        assert back.adjudications() == store.adjudications()
        assert back.judged() == (0 if number else 4), "it is nobody's vote"
        assert {rater.id: rater.role for rater in back.raters()}["lead"] == "lead"
        assert_whole(back)
        back.close()
    contrary = tmp_path / "contrary.jsonl"
    write_jsonl(contrary, [row.judgment.model_copy(update={"answer": -3})])
    words = ("--pairs", str(file), "--adjudications", str(contrary), "--store", store.url)
    refused = tiebreak("label", "import", *words, ok=False)
    assert "contrary.jsonl:1: pair-0 is already settled differently, by lead" in refused.stderr
    store.close()


# --- counts that agree ---


def test_the_last_day_the_forecast_and_agreement_count_what_judgments_counts(url: str) -> None:
    now = [wall_clock_ms() // DAY_MS * DAY_MS + 7_200_000]
    store = open_store(url, [make_pair(n) for n in range(6)], overlap=2, raters=3, clock=lambda: now[0])
    for n in range(6):
        for rater in ("r0", "r1"):
            given = store.claim(rater)
            assert given is not None
            fields: dict[str, object] = {"skip": True} if n == 2 or (n, rater) == (4, "r1") else {"answer": 1}
            store.submit(rater, Submission(client_id=f"{n}-{rater}", pair_id=given.item_id, **fields))  # type: ignore[arg-type]
        now[0] += 600_000 if n < 3 else DAY_MS
    assert store.status()["judgments"] == {"human": 9}
    assert sum(store.judged_by_day().values()) == 9
    assert list(store.judged_by_day().values()) == [6 + 0, 1, 2]
    assert store.judged_since(now[0] - 2 * DAY_MS) == (3, 2)
    live = measure_votes(LiveVotes(store).read())
    assert live["judgments"] == measure_agreement(store.pairs(), store.judgments()[0])["judgments"] == 9
