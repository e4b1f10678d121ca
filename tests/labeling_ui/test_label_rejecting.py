"""Rejected judgments: they count nowhere, the work is given out again, and nothing of them is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from label_support import answer, make_pair, open_store

from labeling_ui import label
from labeling_ui.database.errors import RefusedError
from labeling_ui.exchange.export import read_labels
from labeling_ui.quality.agreement import measure_agreement, measure_votes
from labeling_ui.quality.vote_cache import LiveVotes
from labeling_ui.store.answers import Answer, Submission
from labeling_ui.store.leads.finding import Search
from labeling_ui.store.leads.rejecting import Selection
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from tiebreak.errors import TiebreakError

HOUR = 3_600_000


def judge(store: Store, rater: str, *values: int, **fields: Any) -> list[str]:
    """Judge the next pairs: positive for their first completion."""
    judged = []
    for value in values:
        given = store.claim(rater)
        assert given is not None
        stored = store.submit(
            rater,
            Submission(
                client_id=f"{given.item_id}-{len(judged)}",
                pair_id=given.item_id,
                answer=-value if given.left_id.endswith("-0") else value,
                seconds_active=1.0,
                **fields,
            ),
        )
        judged.append(stored.judgment_id)
    return judged


def assert_whole(store: Store) -> None:
    assert verify(store).faults == []


def test_a_rejection_is_taken_back(url: str) -> None:
    store = open_store(url, [make_pair(n) for n in range(4)], overlap=1, raters=2)
    before = store.status()
    first, second, third = judge(store, "r0", 1, 1, 1)
    skipped = store.claim("r0")
    assert skipped is not None
    fourth = store.submit("r0", Submission(client_id="skip", pair_id=skipped.item_id, skip=True)).judgment_id
    votes = [row.for_first for row in store.find(Search()).items]
    work = store.work_since("r0", 0)
    assert store.reject(Selection(judgment_ids=(first, fourth)), "hasty") == 2
    assert store.reject(Selection(judgment_ids=(second, third)), "hasty", again=True) == 2
    assert [one.rejected for one in store.rejections_of_rater("r0")] == ["hasty"] * 4
    held = store.claim("r0")
    assert held is not None
    other = store.claim("r1")
    assert other is not None, "the first one's place is free, and somebody takes it"
    store.submit("r1", Submission(client_id="other", pair_id=other.item_id, answer=1))
    assert_whole(store)
    assert store.take_back_rejections([first, second, third, fourth], "lead") == (4, 0)
    assert_whole(store)
    assert store.rejections_of_rater("r0") == []
    assert store.work_since("r0", 0) == work
    assert store.status()["judged"] == 4, "three again, and the other rater's"
    assert store.status()["skipped"] == 1
    counted = {row.item_id: row.for_first + row.for_second for row in store.find(Search()).items}
    assert sum(counted.values()) == sum(votes) + 1
    assert store.undo("r0", first).item_id == "pair-0"
    assert_whole(store)
    assert before["judged"] == 0


def test_a_rejection_stays_where_the_rater_has_judged_again(url: str) -> None:
    store = open_store(url, [make_pair(0)], raters=1)
    [first] = judge(store, "r0", 1)
    store.reject(Selection(judgment_ids=(first,)), "hasty", again=True)
    store.claim("r0")
    store.submit("r0", Submission(client_id="again", pair_id="pair-0", answer=0))
    assert store.take_back_rejections([first]) == (0, 1)
    assert_whole(store)


def test_a_bad_raters_day_is_done_again_by_others(url: str) -> None:
    now = [1_000 * HOUR]
    store = open_store(url, [make_pair(n) for n in range(6)], overlap=3, raters=4, clock=lambda: now[0])
    live = LiveVotes(store)
    judge(store, "r0", *[1] * 6)
    judge(store, "r1", *[2] * 6)
    judge(store, "r2", 1, 1)
    now[0] += 10 * HOUR
    bad = judge(store, "r2", -3, -3, -3, -3, seconds_idle=2.0)
    assert store.claim("r3") is None
    assert measure_votes(live.read())["judgments"] == 18
    selection = Selection(rater_id="r2", since_ms=now[0] - HOUR)
    effect = store.preview_rejection(selection)
    assert (effect.judgments, effect.items, effect.requeued, effect.unjudged, effect.turned) == (4, 4, 4, 0, 0)
    assert (effect.raters, effect.skips, effect.gold, effect.repeats, effect.settled) == (1, 0, 0, 0, 0)
    assert effect.active_seconds == 4.0
    assert store.status()["disputed"] == 4
    assert store.reject(selection, "always the shorter one", "lead") == 4
    assert_whole(store)
    # r0 and r1 agree on all six, and r2 with both on two: that is what remains, by hand.
    status = store.status()
    assert (status["judgments"], status["disputed"], status["judgments_wanted"]) == ({"human": 14}, 0, 18)
    figures = measure_votes(live.read())
    assert (figures["judgments"], figures["percent_with_ties"]["value"]) == (14, 1.0)
    assert figures["percent_with_ties"] == measure_agreement(store.pairs(), store.judgments()[0])["percent_with_ties"]
    assert len(read_labels(store).judgments) == 14
    assert {one.judgment_id: one.rejected for one in store.judgments_of_rater("r2") if one.rejected} == dict.fromkeys(
        bad, "always the shorter one"
    )
    assert store.work_since("r2", 0).active_seconds == 6.0, "the work was done"
    assert store.claim("r2") is None, "they do not get the pairs again"
    for verb in (lambda: store.undo("r2", bad[0]), lambda: store.amend("r2", bad[0], "c", Answer(answer=1))):
        with pytest.raises(RefusedError, match="no such judgment"):
            verb()
    assert len(judge(store, "r3", *[1] * 4)) == 4
    assert store.claim("r3") is None
    with pytest.raises(RefusedError, match="rejected already"):
        store.reject(selection, "twice")
    assert_whole(store)


def test_the_same_rater_may_do_it_again_unless_others_are_faster(url: str) -> None:
    store = open_store(url, [make_pair(n) for n in range(2)], overlap=1, raters=2)
    first, second = judge(store, "r0", 1, 1)
    store.reject(Selection(judgment_ids=(first, second)), "too fast", again=True)
    assert_whole(store)
    other = store.claim("r1")
    assert other is not None
    store.submit("r1", answer(other.item_id))
    again = store.claim("r0")
    assert again is not None
    assert {other.item_id, again.item_id} == {"pair-0", "pair-1"}
    assert again.draft is None
    store.submit("r0", answer(again.item_id, 2, "anew"))
    assert store.claim("r0") is None
    assert store.status()["judgments"] == {"human": 2}
    assert len(store.open_item(again.item_id).judgments) == 2
    assert_whole(store)


def test_repeats_go_with_their_firsts_and_skips_and_gold_change_no_places(url: str) -> None:
    store = open_store(url, [make_pair(n) for n in range(30)], overlap=1, raters=3)
    store.set_gold("pair-29", "29-0")
    store.rules.repeat_share = 0.5
    judge(store, "r0", *[1] * 28)
    repeated = [one for one in store.judgments_of_rater("r0", limit=100) if one.repeat]
    assert repeated
    firsts = [one for one in store.judgments_of_rater("r0", limit=100) if one.item_id == repeated[0].item_id]
    effect = store.preview_rejection(Selection(judgment_ids=(firsts[-1].judgment_id,)))
    assert (effect.judgments, effect.repeats, effect.requeued, effect.unjudged) == (2, 1, 1, 1)
    wanted = store.status()["judgments_wanted"]
    store.reject(Selection(judgment_ids=(firsts[-1].judgment_id,)), "the side")
    assert store.status()["judgments_wanted"] == wanted - 1, "nobody is given a rejected repeat again"
    assert not [one for one in read_labels(store).judgments if one.pair_id == repeated[0].item_id]
    assert_whole(store)
    store.rules.repeat_share, store.rules.gold_share = 0.0, 0.99
    while (given := store.claim("r1")) is not None and given.item_id != "pair-29":
        store.submit("r1", Submission(client_id=given.item_id, pair_id=given.item_id, skip=True))
    assert given is not None
    store.submit("r1", answer("pair-29"))
    wanted = store.status()["judgments_wanted"]
    effect = store.preview_rejection(Selection(rater_id="r1"))
    assert (effect.gold, effect.skips) == (1, effect.judgments - 1)
    store.reject(Selection(rater_id="r1"), "all of it")
    assert store.status()["judgments_wanted"] == wanted - 1, "a judgment of gold is wanted while it is there"
    assert_whole(store)


def test_what_turns_and_what_stays_settled_is_counted_before(url: str) -> None:
    store = open_store(url, [make_pair(n) for n in range(3)], overlap=3, raters=3)
    store.add_rater("lead", role="lead", rater_id="lead")
    judge(store, "r0", 1, 1, 1)
    judge(store, "r1", -1, 1, -1)
    judge(store, "r2", -1, -1, -1)
    store.adjudicate("lead", answer("pair-2", 1))
    # Without r2: pair-0 is 1 : 1 instead of 1 : 2, pair-1 stays for the first, pair-2 is 1 : 1 as well.
    effect = store.preview_rejection(Selection(rater_id="r2"))
    assert (effect.turned, effect.unjudged, effect.settled, effect.requeued) == (2, 0, 1, 3)
    assert store.status()["judgments"] == {"human": 9}, "a preview changes nothing"
    store.reject(Selection(rater_id="r2"), "reads no prompt")
    assert len(store.adjudications()) == 1
    with pytest.raises(RefusedError, match="name judgments"):
        store.preview_rejection(Selection())
    assert_whole(store)


def test_the_command_says_what_it_would_do_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(tmp_path, [make_pair(n) for n in range(3)], raters=1)
    judge(store, "r0", 1, 1)
    at = ("--rater", "rater 0", "--store", store.url)
    label._dispatch(["reject", *at, "--preview", "true"])
    assert capsys.readouterr().out.startswith(
        "would reject 2 judgments of 2 pairs: 2 given out again, 2 without a vote"
    )
    with pytest.raises(TiebreakError, match="--reason"):
        label._dispatch(["reject", *at])
    with pytest.raises(TiebreakError, match="no such judgments"):
        label._dispatch(["reject", *at, "--reason", "x", "--until", "2020-01-01"])
    label._dispatch(["reject", *at, "--reason", "careless", "--since", "2020-01-01"])
    assert capsys.readouterr().out.startswith("rejected 2 judgments")
    assert store.judged() == 0
    with pytest.raises(TiebreakError, match="no rater"):
        label._dispatch(["reject", "--rater", "nobody", "--store", store.url])
    assert_whole(store)
    store.close()
