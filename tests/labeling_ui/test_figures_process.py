"""The lead's figures: measured beside the server, the same as the store's records give, and never waited for long."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from label_support import make_pair, open_store

from labeling_ui.database.errors import StoreError
from labeling_ui.exchange.export import read_known_answers
from labeling_ui.exchange.importing import import_records
from labeling_ui.quality import figures_process
from labeling_ui.quality.aggregate import ballots_of_groups, group_judgments
from labeling_ui.quality.agreement import measure_agreement
from labeling_ui.quality.figures_process import LatestFigures, StoreFigures
from labeling_ui.quality.reliability import Ballots, describe_reliability
from labeling_ui.quality.vote_cache import LiveVotes
from labeling_ui.store.answers import Submission
from labeling_ui.store.store import Store
from tiebreak.records import Judgment, ModelVerdict


def judge_all(store: Store, raters: int, seed: int = 0) -> None:
    """Every rater judges whatever they are given."""
    chance = np.random.default_rng(seed)
    for rater in (f"r{n}" for n in range(raters)):
        while (given := store.claim(rater)) is not None:
            n = len(store.history(rater, limit=1_000))
            fields: dict[str, Any] = {"answer": int(chance.integers(-3, 4))}
            if given.ranking:
                fields = {"ranking": tuple((one,) for one in chance.permutation(given.shown).tolist())}
            store.submit(rater, Submission(client_id=f"{rater}-{n}", pair_id=given.item_id, **fields))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(tmp_path, [make_pair(n) for n in range(6)], overlap=3, raters=3)
    store.add_rater("lead", rater_id="lead", role="lead")
    judge_all(store, 3)
    yield store
    store.close()


def wait_for(figures: LatestFigures, ready: Callable[[dict[str, Any]], bool], seconds: float = 600) -> dict[str, Any]:
    until = time.monotonic() + seconds
    while not ready(printed := figures()):
        assert time.monotonic() < until, printed
        time.sleep(0.05)
    return printed


def test_figures_are_those_of_the_records_and_follow_them(store: Store) -> None:
    store.set_gold("pair-0", "0-0")
    figures = LatestFigures(store)
    printed = wait_for(figures, lambda one: not one["measuring"])
    fresh = measure_agreement(store.pairs(), store.judgments()[0], read_known_answers(store).gold)
    assert printed["not_counted"]["gold"] == 3
    assert {name: printed[name] for name in fresh} == fresh
    counted = {rater: (figure["value"] * figure["n"], figure["n"]) for rater, figure in printed["gold"].items()}
    assert counted == store.gold_agreements()
    assert sorted(counted) == ["r0", "r1", "r2"]
    wanted = describe_reliability(ballots_of_groups(group_judgments(store.judgments()[0]), read_known_answers(store)))
    for model, one in wanted.items():
        found = {row["rater"]: row["accuracy"]["value"] for row in printed["reliability"]["human"][model]["raters"]}
        assert found == pytest.approx({row["rater"]: row["accuracy"]["value"] for row in one["raters"]}, abs=1e-3)
    store.add_pairs([make_pair(50)], overlap=3, seed=0, source="test", source_id="more")
    judge_all(store, 3, seed=1)
    assert wait_for(figures, lambda one: one["judgments"] == 21)["items"] == 7
    figures.close()


def test_judges_that_came_too_early_are_measured_without_a_further_judgment(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reliability takes 1 s, so it rests for 10. A judge's verdicts arrive meanwhile, and then nothing more."""
    clock = [100.0]
    monkeypatch.setattr(figures_process, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(figures_process, "describe_reliability", lambda *_, **__: {})  # another test's matter
    figures, computing, asked = LatestFigures(store), StoreFigures(store), []

    def measure_here() -> None:
        asked.append(clock[0])
        figures._busy = figures._waiting = True
        for part in computing.measure():
            clock[0] += 1.0
            figures._take(**json.loads(json.dumps(part)))

    monkeypatch.setattr(figures, "_ask", measure_here)
    assert figures()["judges"] == []
    verdict = ModelVerdict(model="m", answers=(-2, -2))
    said = [
        Judgment(
            pair_id=pair.id, rater_id="judge", left=left.id, right=right.id, answer=-2, kind="model", judge=verdict
        )
        for pair in store.pairs()
        for left, right in [pair.completions]
    ]
    import_records(store, (), said, source="judge", source_id="judge")
    early = figures()
    assert (early["judges"], list(early["other_kinds"])) == ([], ["model"])
    figures()
    assert len(asked) == 2, "neither is due"
    clock[0] += 10.0
    [judge] = figures()["judges"]
    assert (judge["rater"], judge["judgments"]) == ("judge", 6)
    clock[0] += 1000.0
    figures()
    assert len(asked) == 3, "nothing new: nothing is computed"


def test_a_large_store_is_measured_at_the_start_and_nobody_waits(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures_process, "LARGE_STORE", 1)
    figures = LatestFigures(store)
    start, started = figures_process._start, []

    def start_stopped(store: Store) -> subprocess.Popen[str]:
        started.append(start(store))
        started[-1].send_signal(signal.SIGSTOP)
        return started[-1]

    monkeypatch.setattr(figures_process, "_start", start_stopped)
    figures.begin()
    assert figures() == {"measuring": True, "age_seconds": None}, "the process answers nothing yet"
    started[-1].send_signal(signal.SIGCONT)
    printed = wait_for(figures, lambda one: one["age_seconds"] is not None)
    assert printed["judgments"] == 18
    figures.close()


def test_a_process_that_died_is_told_and_started_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = LatestFigures(store)
    wait_for(figures, lambda one: not one["measuring"])
    first = figures._process
    assert first is not None
    session = Path(f"/proc/{first.pid}/autogroup")
    assert not session.exists() or session.read_text().split()[-1] == str(figures_process.NICE), (
        "it yields to the server"
    )
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    store.add_pairs([make_pair(50)], overlap=3, seed=0, source="test", source_id="more")
    judge_all(store, 3, seed=1)
    assert wait_for(figures, lambda one: one["judgments"] == 21)["items"] == 7
    assert figures._process is not first
    figures.close()
    monkeypatch.setattr(figures_process, "_start", lambda _store: start("import sys; sys.exit('no figures today')"))
    with pytest.raises(StoreError, match="could not be computed"):
        LatestFigures(store)()


def start(program: str) -> Any:
    import subprocess
    import sys

    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", program], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
    )


def by_comparison(ballots: Ballots) -> set[tuple[Any, ...]]:
    """Each vote as (prompt's votes' raters, rater, sign up to the order of the two) with its share: free of numbering."""
    flip = np.where(ballots.first < ballots.second, 1, -1)
    return {
        (
            int(ballots.prompt[item]),
            *sorted((int(ballots.first[item]), int(ballots.second[item]))),
            ballots.rater_ids[rater],
            int(sign * flip[item]),
            round(float(share), 6),
        )
        for item, rater, sign, share in zip(ballots.item, ballots.rater, ballots.sign, ballots.share, strict=True)
    }


def test_live_ballots_are_those_of_the_records(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(0), make_pair(1, "a", "b", ("c",))], overlap=2, raters=2)
    ranked = [make_pair(2, "d", "e", ("f", "g")), make_pair(3)]
    store.add_pairs(ranked, overlap=2, seed=0, source="t", source_id="t", ranking=True)
    store.add_rater("lead", rater_id="lead", role="lead")
    judge_all(store, 2)
    store.set_gold("pair-3", "3-1")
    store.adjudicate("lead", Submission(client_id="s", pair_id="pair-0", answer=0))
    live = LiveVotes(store)
    live.read()
    ours = live.ballots("human")
    theirs = ballots_of_groups(group_judgments(store.judgments()[0]), read_known_answers(store))
    assert by_comparison(ours) == by_comparison(theirs)
    assert len(by_comparison(ours)) == 2 * (1 + 3 + 6 + 1)
    classes = {
        (int(p), int(k) * (1 if f < s else -1))
        for p, f, s, k in zip(ours.prompt, ours.first, ours.second, ours.known_class, strict=True)
        if k in (-1, 0, 1)
    }
    assert classes == {(0, 0), (3, -1)}
    store.close()
