"""Judges beside people in one store: marked, never in people's way, aggregated together only where it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from label_support import answer, make_pair, open_store, rubric_pairs, write_pairs
from support import read_rows, run_here, write_config, write_rows

from labeling_ui.exchange.importing import import_records
from labeling_ui.label import status_lines
from labeling_ui.quality.aggregate import AggregationConfig, KnownAnswers, Vote, build_preferences, group_judgments
from labeling_ui.quality.figures_process import StoreFigures
from labeling_ui.quality.judges import judge_weights, measure_judges
from labeling_ui.store.leads.rejecting import Selection, preview
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from labeling_ui.web.metrics import Metrics
from tiebreak.errors import DataError
from tiebreak.measures.judges import comparison_of
from tiebreak.measures.statistics import wilson_interval
from tiebreak.records import Judgment, ModelVerdict, Pair
from tiebreak.runs.run import read_manifest


def said(n: int, rater: str, value: int, kind: str = "human", confidence: float | None = None) -> Judgment:
    """An answer about make_pair(n), the first completion on the left."""
    judge = ModelVerdict(model="m", answers=(value, value), confidence=confidence) if kind == "model" else None
    return Judgment(
        pair_id=f"pair-{n}", rater_id=rater, left=f"{n}-0", right=f"{n}-1", answer=value, kind=kind, judge=judge
    )  # type: ignore[arg-type]


def forty(wrong: int) -> tuple[list[Pair], list[Judgment]]:
    """Two people on 40 pairs prefer the left; a judge does on all but `wrong`, and of pair 40 it says the right."""
    pairs = [make_pair(n) for n in range(41)]
    people = [said(n, rater, -2) for n in range(40) for rater in ("p", "q")]
    return pairs, [
        *people,
        *(said(n, "j", 1 if n < wrong else -1, "model") for n in range(40)),
        said(40, "j", 3, "model"),
    ]


@pytest.fixture
def judged(tmp_path: Path) -> tuple[Path, Path]:
    """(pairs, a judge run on them)."""
    pairs = write_pairs(tmp_path, rubric_pairs(6))
    out = tmp_path / "judge"
    status, printed = run_here(
        "judge", "--pairs", pairs, "--function", "rubric", "--output", out, "--tracking.mode", "disabled"
    )
    assert status == 0, printed
    return pairs, out


def test_judges_join_a_store_and_take_no_place_from_people(judged: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = judged
    store = open_store(tmp_path, rubric_pairs(6), raters=1)
    judgments = [Judgment.model_validate(row) for row in read_rows(out / "final" / "judgments.jsonl")]
    assert import_records(store, (), judgments, source=str(out), source_id="x").judgments == 6
    assert import_records(store, (), judgments, source=str(out), source_id="x").judgments == 0
    status = store.status()
    assert (status["judgments"], status["judgments_wanted"], store.judged()) == ({"model": 6}, 6, 6)
    for _ in range(6):  # every pair is still given to a person, and no disagreement with a judge is a dispute
        assignment = store.claim("r0")
        assert assignment is not None
        store.submit("r0", answer(assignment.item_id, -1, assignment.id))
    assert store.claim("r0") is None
    assert (store.status()["disputed"], store.judged()) == (0, 6)
    status = store.status()
    assert (status["judgments"], status["judged"]) == ({"human": 6, "model": 6}, 6)
    assert "6 of 6 wanted" not in "".join(status_lines(status))
    [line] = [line for line in status_lines(status) if "judgments" in line]
    assert line.split() == "judgments 6 of 6 wanted: 6 human; beside them, 6 by model judges".split()
    assert "tiebreak_judgments 6" in list(Metrics().lines(status))
    assert "tiebreak_judgments_by_judges 6" in list(Metrics().lines(status))
    store.add_rater("model rater", kind="model", rater_id="m0")
    given = store.claim("m0")
    assert given is None, "a judge takes no place"
    assert sum(store.judged_by_day().values()) == 6
    assert store.judged_since(0) == (6, 1)
    assert verify(store).faults == []
    mine = Selection(rater_id="judge-function-rubric")
    with store.reading() as connection:
        described = preview(connection, mine)
    assert (described.judgments, described.requeued, described.unjudged) == (6, 0, 0)
    assert store.reject(mine, "it is a bad judge") == 6
    assert store.status()["judgments"] == {"human": 6}
    assert verify(store).faults == []
    store.close()


def test_the_stage_takes_up_judges_and_counts_both(judged: tuple[Path, Path], tmp_path: Path) -> None:
    pairs, out = judged
    words = ["--pairs", pairs, "--output", tmp_path / "label", "--judges", out, "--tracking.mode", "disabled"]
    status, printed = run_here("label", *words, "--simulate", "true", "--simulate.raters", "2", "--overlap", "2")
    assert status == 0, printed
    manifest = read_manifest(tmp_path / "label")
    assert manifest["kinds"] == {"model": 6, "simulated": 12}
    assert manifest["inputs"]["judges.0"]["kind"] == "run"
    report = json.loads((tmp_path / "label" / "final" / "report.json").read_text())
    assert report["preferences"]["by_kind"]["model"] == 6
    kinds = {row["kind"] for row in read_rows(tmp_path / "label" / "final" / "preferences.jsonl")}
    assert kinds == {"model", "simulated"}
    kept = read_rows(tmp_path / "label" / "final" / "judgments.jsonl")
    assert {row["judge"]["model"] for row in kept if row["kind"] == "model"} == {"rubric"}
    store = f"sqlite:///{tmp_path / 'label' / 'store' / 'labels.sqlite'}"
    assert run_here("label", "verify", "--store", store)[0] == 0
    opened = Store.open(store)
    found = measure_judges(opened.pairs(), opened.judgments()[0])
    first = next(comparison_of(one) for one in opened.judgments()[0])
    without = measure_judges(opened.pairs(), opened.judgments()[0], {first})
    opened.close()
    assert found[0]["people"]["kinds"] == ["simulated"]
    assert found[0]["people"]["n"] >= 5
    assert without[0]["people"]["n"] == found[0]["people"]["n"] - 1


def test_a_judge_of_the_whole_pool_joins_the_pairs_that_were_selected_from_it(tmp_path: Path) -> None:
    """Three sets of three and three pairs: 12 comparisons. Those that were selected have the verdict that the judge gave of
    the same two texts in the pool, and the others are left out."""
    texts = [
        "",
        "Lower the pH to 5.8 with 1 ml of acid per litre, wait 30 minutes, then measure it again",
        "It depends",
    ]
    rows = []
    for n in range(6):
        sides = [{"id": f"{n}-{k}", "text": f"{text} or {n}.", "policy": "p"} for k, text in enumerate(texts)]
        asked = [{"role": "user", "content": f"question {n}?"}]
        about = {"id": f"pool-{n}", "prompt_id": f"prompt-{n}", "messages": asked}
        rows.append({**about, "completions": sides if n % 2 else sides[1:]})
    pool = write_rows(tmp_path / "pool.jsonl", rows)
    untracked = ("--tracking.mode", "disabled")
    for words in (
        ["judge", "--pairs", pool, "--function", "rubric", "--output", tmp_path / "judge"],
        ["select", "--pairs", pool, "--selected-pairs", 8, "--output", tmp_path / "select"],
        ["label", "--pairs", tmp_path / "select", "--judges", tmp_path / "judge", "--simulate", "true", "--output",
         tmp_path / "label"],
    ):  # fmt: skip
        status, printed = run_here(*words, *untracked)
        assert status == 0, printed
    judged = {
        frozenset((row["left"], row["right"])): row for row in read_rows(tmp_path / "judge/final/judgments.jsonl")
    }
    kept = [row for row in read_rows(tmp_path / "label/final/judgments.jsonl") if row["kind"] == "model"]
    selected = {row["id"]: row for row in read_rows(tmp_path / "select/final/pairs.jsonl")}
    assert {row["pair_id"] for row in kept} == set(selected)
    for row in kept:
        assert {row["left"], row["right"]} == {side["id"] for side in selected[row["pair_id"]]["completions"]}
        assert row["answer"] == judged[frozenset((row["left"], row["right"]))]["answer"]
    others = write_pairs(tmp_path, rubric_pairs(2))
    words = ["label", "--pairs", others, "--judges", tmp_path / "judge", "--simulate", "true", *untracked]
    status, printed = run_here(*words, "--output", tmp_path / "other")
    assert status == 1
    assert "judges: none of 12 judgments" in printed


def test_two_judges_of_one_name_are_refused(judged: tuple[Path, Path], tmp_path: Path) -> None:
    """Such as two reward models in folders of one name. The second one's verdicts were stored as repeats of the first."""
    pairs, out = judged
    untracked = ("--tracking.mode", "disabled")
    (tmp_path / "mine.py").write_text("def length(prompt, answer):\n    return float(len(answer))\n")
    config = write_config(
        tmp_path / "judge.yaml",
        pairs=pairs,
        function="mine:length",
        rater="judge-function-rubric",
        output=tmp_path / "other",
    )
    assert run_here("judge", "--config", config, *untracked)[0] == 0
    words = ["label", "--pairs", pairs, "--simulate", "true", *untracked, "--output", tmp_path / "label"]
    status, printed = run_here(*words, "--judges", out, tmp_path / "other")
    assert status == 1
    assert "other is of judge-function-rubric, and" in printed
    assert "has another judge of that name (model rubric there, mine:length here)" in printed


def test_a_run_of_another_stage_is_no_judge(judged: tuple[Path, Path], tmp_path: Path) -> None:
    pairs, _ = judged
    words = ["--pairs", pairs, "--tracking.mode", "disabled", "--simulate", "true"]
    assert run_here("label", *words, "--output", tmp_path / "one")[0] == 0
    status, printed = run_here("label", *words, "--output", tmp_path / "two", "--judges", tmp_path / "one")
    assert status == 1
    assert "is a finished 'label' run: give the folder of a judge run" in printed


def test_apart_rest_and_with_people() -> None:
    """Two people against one judge on 40 pairs, and one pair that the judge alone judged."""
    pairs, judgments = forty(wrong=4)
    groups = group_judgments(judgments)

    def kinds(config: AggregationConfig) -> list[tuple[int, str]]:
        preferences = build_preferences(pairs, groups, config).preferences
        found = [one.kind for one in preferences]
        return sorted((found.count(kind), kind) for kind in set(found))

    assert kinds(AggregationConfig()) == [(40, "human"), (41, "model")]
    assert kinds(AggregationConfig(judges="rest")) == [(1, "model"), (40, "human")]
    joined = build_preferences(pairs, groups, AggregationConfig(judges="with_people")).preferences
    assert [one.kind for one in joined] == ["model"] * 41  # a judge had a say in each
    assert {one.chosen_text for one in joined[:40]} == {"first answer"}  # two people outvote it
    weight = 2 * wilson_interval(36, 40)[0] - 1
    assert judge_weights(groups) == {"j": pytest.approx(weight, abs=1e-6)}
    against, alone = joined[0], joined[40]
    assert against.agreement == pytest.approx(2 / (2 + weight), abs=1e-6)
    assert (alone.chosen_text, alone.weight) == ("second answer", pytest.approx(weight, abs=1e-6))


def test_a_judge_at_chance_has_no_say() -> None:
    pairs, judgments = forty(wrong=20)
    groups = group_judgments(judgments)
    assert judge_weights(groups) == {"j": 0.0}
    joined = build_preferences(pairs, groups, AggregationConfig(judges="with_people")).preferences
    assert [(one.kind, one.weight) for one in joined] == [("human", 1.0)] * 40


def test_a_lead_decides_over_judges() -> None:
    pairs, judgments = forty(wrong=0)
    known = KnownAnswers({("pair-0", "0-0", "0-1"): Vote("lead", -3)})
    joined = build_preferences(pairs, group_judgments(judgments), AggregationConfig(judges="with_people"), known)
    settled = next(one for one in joined.preferences if one.pair_id == "pair-0")
    assert (settled.adjudicated, settled.kind, settled.chosen_text) == (True, "human", "second answer")


def test_a_judge_that_cannot_be_weighed_is_refused() -> None:
    pairs, judgments = forty(wrong=0)
    few = [one for one in judgments if one.kind == "model" or one.pair_id in ("pair-1", "pair-2")]
    with pytest.raises(DataError, match="j has 2: let people judge more"):
        build_preferences(pairs, group_judgments(few), AggregationConfig(judges="with_people"))
    with pytest.raises(ValueError, match="set method: majority"):
        AggregationConfig(judges="with_people", method="dawid_skene")


def test_agreement_measures_judges_against_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The judge is right in 36 of 40 shared pairs; people never differ, so the expected agreement is its own share."""
    pairs, judgments = forty(wrong=4)
    store = open_store(tmp_path, pairs, raters=0)
    import_records(store, (), judgments, source="x", source_id="x")
    *_, last = StoreFigures(store).measure()
    store.close()
    from labeling_ui.label import main

    main(["agreement", "--store", store.url, "--json"])
    [found] = json.loads(capsys.readouterr().out)["judges"]
    assert last["figures"]["judges"] == [found]  # what /lead/ shows
    assert found["people"]["accuracy"]["value"] == 0.9
    assert found["people"]["kappa"]["value"] == 0.0
    assert (found["people"]["n"], found["habits"]["consistency"]["value"]) == (40, 1.0)
    main(["agreement", "--store", store.url])
    shown = capsys.readouterr().out
    assert "same verdict as human raters, counting ties" in shown
    assert "90.0%" in shown
