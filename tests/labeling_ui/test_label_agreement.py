"""Agreement: by hand, against another implementation, and against published figures on real data."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest
from label_support import make_pair, open_store, tiebreak

from labeling_ui.aggregate import group_judgments
from labeling_ui.agreement import (
    SIDES,
    STRENGTHS,
    cohen_kappa,
    krippendorff_alpha,
    measure_agreement,
    percent_agreement,
    self_consistency,
)
from labeling_ui.importing import import_records
from labeling_ui.store import Store
from labeling_ui.verify import verify
from tiebreak.errors import DataError
from tiebreak.records import Judgment, Pair, write_jsonl

DATA = Path("/work/shared/data")


def said(pair: str, rater: str, answer: int, *, swapped: bool = False, **more: Any) -> Judgment:
    n = pair.removeprefix("pair-")
    left, right = (f"{n}-1", f"{n}-0") if swapped else (f"{n}-0", f"{n}-1")
    return Judgment(pair_id=pair, rater_id=rater, left=left, right=right, answer=answer, kind="human", **more)


# --- by hand ---


def test_kappa_of_cohens_own_kind_of_table() -> None:
    # 50 items: both yes 20, both no 15, yes-no 5, no-yes 10. Observed 0.7, chance 0.5·0.6 + 0.5·0.4 = 0.5, κ = 0.4.
    figure = cohen_kappa([(1, 1)] * 20 + [(1, -1)] * 5 + [(-1, 1)] * 10 + [(-1, -1)] * 15)
    assert figure.value == pytest.approx(0.4)
    assert figure.n == 50
    assert figure.interval is not None
    low, high = figure.interval
    # The large-sample standard error (Fleiss, Cohen & Everitt 1969) of this table is 0.127.
    assert (low, high) == (pytest.approx(0.4 - 1.96 * 0.127, abs=0.04), pytest.approx(0.4 + 1.96 * 0.127, abs=0.04))
    assert cohen_kappa([(2, 3), (-1, -3), (0, 0)]).value == 1.0, "how much is not asked, only which side"
    assert cohen_kappa([(1, 1)] * 5).value is None, "chance alone would have them agree"
    assert cohen_kappa([]).value is None


def test_alpha_of_krippendorffs_own_example() -> None:
    # Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), example C: two observers, ten units, binary
    # data with a nominal alpha of 0.095.
    one = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    other = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    figure = krippendorff_alpha(list(zip(one, other, strict=True)), (0, 1), interval=False)
    assert figure.value == pytest.approx(0.095, abs=5e-4)
    assert figure.n == 20


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("level", ["nominal", "interval"])
def test_alpha_is_the_krippendorff_packages(seed: int, level: str) -> None:
    chance = random.Random(seed)
    values = STRENGTHS if level == "interval" else SIDES
    table = []
    for _ in range(60):
        truth = chance.choice(values)
        votes = [truth if chance.random() < 0.6 else chance.choice(values) for _ in range(5)]
        table.append([math.nan if chance.random() < 0.3 else vote for vote in votes])
    units = [[int(vote) for vote in row if not math.isnan(vote)] for row in table]
    figure = krippendorff_alpha(units, values, interval=level == "interval")
    theirs = krippendorff.alpha(np.array(table).T, level_of_measurement=level, value_domain=list(values))
    assert figure.value == pytest.approx(theirs, abs=1e-12)
    assert figure.interval is not None
    assert figure.interval[0] < theirs < figure.interval[1]


def test_the_bootstrap_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(60):
        chance = random.Random(seed)
        judgments = []
        for n in range(60):
            judgments += [said(f"pair-{n}", "a", 1), said(f"pair-{n}", "b", 1 if chance.random() < 0.7 else -1)]
        interval = percent_agreement(group_judgments(judgments), ties=True).interval
        assert interval is not None
        covered += interval[0] <= 0.7 <= interval[1]
    assert 51 <= covered <= 60  # 57 expected of 60 at 95%; below 51 is a chance of 1 in 200


def test_a_raters_repeats_are_consistency_not_agreement() -> None:
    judgments = [said("pair-0", "a", 2), said("pair-0", "a", -2), said("pair-0", "b", 3, swapped=True)]
    judgments += [said("pair-1", "a", 1), said("pair-1", "a", 3)]
    groups = group_judgments(judgments)
    with_ties = percent_agreement(groups, ties=True)
    assert (with_ties.value, with_ties.n) == (0.5, 2), "each of a's two answers against b's; not against each other"
    consistency = self_consistency(groups)
    assert (consistency.value, consistency.n) == (0.5, 2)


def test_sides_and_lengths_of_raters() -> None:
    pairs = [make_pair(n, "short", "a much longer answer") for n in range(20)]
    judgments = [said(pair.id, "left-lover", -1, swapped=n % 2 == 0) for n, pair in enumerate(pairs)]
    judgments += [
        said(pair.id, "long-lover", -2 if n % 2 == 0 else 2, swapped=n % 2 == 0) for n, pair in enumerate(pairs)
    ]
    rows = {row["rater"]: row for row in measure_agreement(pairs, judgments)["raters"]}
    assert rows["left-lover"]["left_side"]["value"] == 1.0
    assert rows["left-lover"]["left_side"]["interval"][0] > 0.8
    assert rows["left-lover"]["longer_side"]["value"] == 0.5
    assert rows["long-lover"]["left_side"]["value"] == 0.5
    assert rows["long-lover"]["longer_side"] == {
        "value": 1.0,
        "n": 20,
        "interval": rows["left-lover"]["left_side"]["interval"],
    }


# --- import ---


def test_importing_twice_changes_nothing_and_faults_are_all_told(tmp_path: Path) -> None:
    pairs = [make_pair(0), make_pair(1)]
    judgments = [said("pair-0", "a", 2), said("pair-0", "b", -1), said("pair-0", "a", 2), said("pair-1", "a", 0)]
    store = Store.open(f"sqlite:///{tmp_path}/labels.sqlite", create=True)
    first = import_records(store, pairs, judgments, source="t", source_id="t")
    assert (first.pairs, first.judgments) == (2, 4)
    head = store.status()["head"]
    again = import_records(store, pairs, judgments, source="t", source_id="t")
    assert (again.pairs, again.judgments) == (0, 0)
    assert store.status()["head"] == head
    assert sorted(store.judgments()[0], key=str) == sorted(judgments, key=str)
    assert verify(store).faults == []
    bad = [said("pair-9", "a", 1), said("pair-0", "c", 1).model_copy(update={"left": "1-0"})]
    with pytest.raises(DataError) as caught:
        import_records(store, [], bad, source="t", source_id="t")
    assert len(caught.value.faults) == 2
    store.add_rater("newcomer", rater_id="newcomer")
    assert store.claim("newcomer") is None, "both pairs have the judgments they were to have"


def test_import_goes_on_with_a_campaign(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(0), make_pair(1)], overlap=2, raters=2)
    import_records(store, [], [said("pair-0", "elsewhere", 3)], source="t", source_id="t")
    assert [store.claim(rater).item_id for rater in ("r0", "r1")] == ["pair-0", "pair-1"]  # type: ignore[union-attr]
    assert verify(store).faults == []


# --- published figures ---


def imported_agreement(folder: Path, pairs: Iterable[Pair], judgments: Iterable[Judgment]) -> dict[str, Any]:
    """Through the command line: import, verify, agreement."""
    write_jsonl(folder / "pairs.jsonl", pairs)
    write_jsonl(folder / "judgments.jsonl", judgments)
    store = f"sqlite:///{folder}/labels.sqlite"
    files = ["--pairs", str(folder / "pairs.jsonl"), "--judgments", str(folder / "judgments.jsonl")]
    tiebreak("label", "import", *files, "--store", store)
    assert "Krippendorff" in tiebreak("label", "agreement", "--store", store).stdout
    measured: dict[str, Any] = json.loads(tiebreak("label", "agreement", "--store", store, "--json").stdout)
    assert measured["kind"] == "human"
    return measured


def test_pandalm(tmp_path: Path) -> None:
    file = DATA / "pandalm-testset/votes_long.csv"
    if not file.exists():
        pytest.skip(f"no {file}")
    with file.open() as lines:
        votes = list(csv.DictReader(lines))
    pairs = [make_pair(int(item)) for item in sorted({vote["item"] for vote in votes}, key=int)]
    answers = {"0": 0, "1": -2, "2": 2}
    judgments = [
        said(f"pair-{v['item']}", v["rater"], answers[v["vote"]] * (-1) ** (n % 2), swapped=n % 2 == 1)
        for n, v in enumerate(votes)
    ]
    measured = imported_agreement(tmp_path, pairs, judgments)
    kappa = {tuple(one["raters"]): (round(one["value"], 4), one["n"]) for one in measured["cohen_kappa"]}
    assert kappa == {
        ("annotator1", "annotator2"): (0.8520, 999),
        ("annotator1", "annotator3"): (0.8789, 999),
        ("annotator2", "annotator3"): (0.8617, 999),
    }
    table = np.array([[int(v["vote"]) for v in votes if v["rater"] == f"annotator{n}"] for n in (1, 2, 3)])
    alpha = krippendorff.alpha(table, level_of_measurement="nominal")
    assert measured["krippendorff_alpha"]["nominal"]["value"] == pytest.approx(alpha, abs=1e-6)


def test_mt_bench(tmp_path: Path) -> None:
    file = DATA / "mt-bench-human-judgments/human.jsonl"
    if not file.exists():
        pytest.skip(f"no {file}")
    votes = [json.loads(line) for line in file.read_text().splitlines()]
    numbers: dict[tuple[object, ...], int] = {}
    judgments = []
    for vote in votes:
        first, second = sorted((vote["model_a"], vote["model_b"]))
        key = (vote["question_id"], vote["turn"], first, second)
        n = numbers.setdefault(key, len(numbers))
        answer = 0 if vote["winner"] == "tie" else -2 if vote["winner"] == "model_a" else 2
        judgments.append(said(f"pair-{n}", vote["judge"], answer, swapped=vote["model_a"] == second))
    store = Store.open(f"sqlite:///{tmp_path}/labels.sqlite", create=True)
    import_records(store, [make_pair(n) for n in numbers.values()], judgments, source="t", source_id="t")
    measured = measure_agreement(store.pairs(), store.judgments()[0])
    assert len(numbers) == 1814
    assert measured["judgments"] == 3355
    with_ties, without = measured["percent_with_ties"], measured["percent_without_ties"]
    assert (round(with_ties["value"], 3), with_ties["n"]) == (0.655, 2367)
    assert (round(without["value"], 3), without["n"]) == (0.827, 1550)
    assert with_ties["interval"][0] < 0.655 < with_ties["interval"][1]
