"""Agreement: by hand, against other implementations, and against published figures on real data."""

from __future__ import annotations

import csv
import json
import math
import random
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pandas
import pytest
from label_support import make_pair, open_store, tiebreak
from scipy import stats
from support import SHARED_DATA, seconds_here

from labeling_ui.exchange.importing import import_records
from labeling_ui.quality.agreement import (
    SIDES,
    STRENGTHS,
    cohen_kappa,
    kappa_by_raters,
    krippendorff_alpha,
    measure_agreement,
    measure_votes,
    percent_agreement,
    pooled_agreement,
    self_consistency,
)
from labeling_ui.quality.biases import adjust_for_many, sign_test, two_shares_test
from labeling_ui.quality.intervals import mean_over_clusters, share_of_clusters
from labeling_ui.quality.vote_cache import LiveVotes
from labeling_ui.quality.votes import Votes, read_votes, votes_of_columns
from labeling_ui.store.answers import Answer, Submission
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from tiebreak.errors import DataError
from tiebreak.files import write_jsonl
from tiebreak.measures.statistics import wilson_interval
from tiebreak.records import Judgment, Pair


def judged(pair: str, rater: str, answer: int, *, swapped: bool = False, **more: Any) -> Judgment:
    n = pair.removeprefix("pair-")
    left, right = (f"{n}-1", f"{n}-0") if swapped else (f"{n}-0", f"{n}-1")
    return Judgment(pair_id=pair, rater_id=rater, left=left, right=right, answer=answer, kind="human", **more)


# --- by hand ---


def votes(judgments: list[Judgment], pairs: Sequence[Pair] = ()) -> Votes:
    return read_votes(pairs, judgments, "human")


def test_kappa_of_cohens_own_kind_of_table() -> None:
    # 50 items: both yes 20, both no 15, yes-no 5, no-yes 10. Observed 0.7, chance 0.5·0.6 + 0.5·0.4 = 0.5, κ = 0.4.
    figure = cohen_kappa(np.array([[20.0, 5.0], [10.0, 15.0]]))
    assert figure.value == pytest.approx(0.4)
    assert figure.n == 50
    # statsmodels 0.15, stats.inter_rater.cohens_kappa: std_kappa 0.126996…
    assert figure.interval == pytest.approx((0.4 - 1.959964 * 0.12699606, 0.4 + 1.959964 * 0.12699606), abs=1e-6)
    assert cohen_kappa(np.diag([5.0, 0.0, 0.0])).value is None, "chance agreement is 1"
    assert cohen_kappa(np.zeros((3, 3))).value is None


def test_kappa_where_raters_always_agree_is_not_certain() -> None:
    # Half and half: chance 0.5. Wilson's low edge of 10 of 10 is 10 / (10 + 1.96²) = 0.722, and κ there 0.445.
    figure = cohen_kappa(np.diag([5.0, 0.0, 5.0]))
    assert figure.value == 1.0
    assert figure.interval == pytest.approx((0.4449, 1.0), abs=1e-3)


def test_kappa_of_one_item_is_not_certain() -> None:
    # One says first and the other second: κ 0, chance 0. Wilson's high edge of 0 of 1 is 1.96² / (1 + 1.96²) = 0.7935.
    figure = cohen_kappa(np.array([[0.0, 1.0], [0.0, 0.0]]))
    assert (figure.value, figure.n) == (0.0, 1)
    assert figure.interval == pytest.approx((0.0, 0.793451), abs=1e-5)


def test_alpha_has_no_interval_where_all_samples_give_the_same() -> None:
    # Votes 3 4 4 5 of two items, and 4 4 4 4 of one. With k of three such items, the observed disagreement is 4/9 · k and
    # the expected 4/11 · k: α = 1 − 11/9, whichever are drawn.
    tallies = np.array([[0, 4, 0], [1, 2, 1], [1, 2, 1]])
    figure = krippendorff_alpha(tallies, [3, 4, 5], interval=True)
    assert figure.value == pytest.approx(-2 / 9)
    assert figure.interval is None


def test_kappas_interval_covers_the_truth_as_often_as_it_says() -> None:
    # Both say what is so with chance 0.85 each, of two sides: they agree with chance 0.745, by chance 0.5: κ = 0.49.
    chance, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        right = chance.random((2, 100)) < 0.85
        truth = chance.random(100) < 0.5
        one, other = right == truth
        interval = cohen_kappa(np.histogram2d(one, other, bins=2)[0]).interval
        covered += interval is not None and interval[0] <= 0.49 <= interval[1]
    assert 925 <= covered <= 970


def test_kappa_by_raters_asks_which_side_and_not_how_much() -> None:
    judgments = [judged(f"pair-{n}", "a", value) for n, value in enumerate((2, -1, 0))]
    judgments += [judged(f"pair-{n}", "b", -value, swapped=True) for n, value in enumerate((3, -3, 0))]
    judgments += [judged("pair-0", "a", -3), judged("pair-7", "c", 1)]
    ((raters, figure),) = kappa_by_raters(votes(judgments)).items()
    assert raters == ("a", "b")
    assert (figure.value, figure.n) == (1.0, 3), "a's repeat is passed over"


def test_alpha_of_krippendorffs_own_example() -> None:
    # Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), example C: two observers, ten units, binary
    # data with a nominal alpha of 0.095.
    ones = np.array([1, 2, 1, 0, 0, 1, 0, 0, 1, 0])
    figure = krippendorff_alpha(np.stack([2 - ones, ones], axis=1), (0, 1), interval=False)
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
        cast = [truth if chance.random() < 0.6 else chance.choice(values) for _ in range(5)]
        table.append([math.nan if chance.random() < 0.3 else vote for vote in cast])
    units = np.array([[sum(vote == value for vote in row) for value in values] for row in table])
    figure = krippendorff_alpha(units, values, interval=level == "interval")
    theirs = krippendorff.alpha(np.array(table).T, level_of_measurement=level, value_domain=list(values))
    assert figure.value == pytest.approx(theirs, abs=1e-12)
    assert figure.interval is not None
    assert figure.interval[0] < theirs < figure.interval[1]


def test_alpha_is_crowd_kits() -> None:
    crowdkit = pytest.importorskip("crowdkit.metrics.data")
    chance = random.Random(5)
    rows = [(f"{n}", f"r{k}", chance.choice((0, 0, 1))) for n in range(40) for k in range(3) if chance.random() < 0.9]
    judgments = [judged(f"pair-{task}", worker, label or -1) for task, worker, label in rows]
    table = pandas.DataFrame(rows, columns=["task", "worker", "label"])
    measured = measure_agreement([], judgments)["krippendorff_alpha"]["nominal"]
    assert measured["value"] == pytest.approx(crowdkit.alpha_krippendorff(table), abs=1e-6)


def test_the_interval_of_a_share_covers_the_truth_as_often_as_it_says() -> None:
    # Four raters who say "first" with a chance that differs by item: pairs of votes of one item go together.
    # P(two agree) is E[p² + (1 − p)²] = (0.9² + 0.1²)/2 + (0.6² + 0.4²)/2 = 0.67 of these two kinds of item.
    chance, covered = np.random.default_rng(0), 0
    for _ in range(300):
        first = (chance.random((60, 4)) < chance.choice([0.9, 0.6], size=(60, 1))).sum(axis=1)
        agreeing = (first * (first - 1) + (4 - first) * (3 - first)) / 2
        low, high = share_of_clusters(agreeing, np.full(60, 6.0)).interval or (1.0, 0.0)
        covered += low <= 0.67 <= high
    assert 273 <= covered <= 297  # 285 expected of 300 at 95%, less or more three standard deviations


def test_a_share_of_items_that_all_agree_counts_items_and_not_votes() -> None:
    figure = share_of_clusters(np.full(10, 3.0), np.full(10, 3.0))
    assert (figure.value, figure.n, figure.interval) == (1.0, 30, wilson_interval(10, 10))
    single = share_of_clusters(np.array([1.0, 0.0, 1.0]), np.ones(3))
    assert single.interval == pytest.approx(wilson_interval(2, 3)), "items of one trial each are independent trials"


def test_a_raters_repeats_are_consistency_not_agreement() -> None:
    judgments = [judged("pair-0", "a", 2), judged("pair-0", "a", -2), judged("pair-0", "b", 3, swapped=True)]
    judgments += [judged("pair-1", "a", 1), judged("pair-1", "a", 3)]
    with_ties = percent_agreement(votes(judgments), ties=True)
    assert (with_ties.value, with_ties.n) == (0.0, 1), "a's first answer against b's"
    pooled = pooled_agreement(votes(judgments), ties=True)
    assert (pooled.value, pooled.n) == (0.5, 2), "each of a's two answers against b's; not against each other"
    consistency = self_consistency(votes(judgments))
    assert (consistency.value, consistency.n) == (0.5, 2)


def test_an_item_has_one_weight_however_many_raters_it_has() -> None:
    # Pair 0: four raters, of whom three agree: 3 of 6 pairs of votes. Pair 1: two who agree: 1 of 1. The mean over items
    # is 0.75; over the 7 pairs of votes it is 4/7.
    judgments = [judged("pair-0", rater, answer) for rater, answer in zip("abcd", (1, 2, 3, -1), strict=True)]
    judgments += [judged("pair-1", "a", -1), judged("pair-1", "b", -3)]
    figure, pooled = (measure(votes(judgments), ties=True) for measure in (percent_agreement, pooled_agreement))
    assert (figure.value, figure.n) == (0.75, 2)
    assert (pooled.value, pooled.n) == (pytest.approx(4 / 7), 7)


def test_gold_does_not_inflate_the_headline() -> None:
    # 200 pairs with three raters, each right with chance 0.75, and 10 gold pairs with 20 raters, right with chance 0.97.
    # Two raters of an ordinary pair agree with chance 0.75² + 0.25² = 0.625; of a gold pair with 0.97² + 0.03² = 0.942,
    # and its 190 pairs of votes would outweigh 63 ordinary pairs.
    chance, judgments, raters = random.Random(3), [], [f"r{n}" for n in range(20)]
    for n in range(210):
        gold = n >= 200
        for rater in raters if gold else chance.sample(raters, 3):
            judgments.append(judged(f"pair-{n}", rater, -2 if chance.random() < (0.97 if gold else 0.75) else 2))
    gold = {(f"pair-{n}", f"{n}-0", f"{n}-1") for n in range(200, 210)}
    measured = measure_agreement([], judgments, gold)
    headline, pooled = measured["percent_with_ties"], measured["pooled"]["percent_with_ties"]
    assert headline["n"] == 200
    assert headline["interval"][0] < 0.625 < headline["interval"][1] < 0.7
    assert pooled["n"] == 200 * 3 + 10 * 190
    assert pooled["value"] == pytest.approx((600 * 0.625 + 1900 * 0.942) / 2500, abs=0.03)
    assert measured["not_counted"] == {"gold": 200, "repeats": 0}
    ordinary = [one for one in judgments if int(one.pair_id.removeprefix("pair-")) < 200]
    assert measured["krippendorff_alpha"] == measure_agreement([], ordinary)["krippendorff_alpha"]
    assert measured["cohen_kappa"] == measure_agreement([], ordinary)["cohen_kappa"]


def test_the_interval_of_a_mean_over_items_covers_the_truth_as_often_as_it_says() -> None:
    # Items with 2 to 6 raters; two agree with chance 0.67 (as above), whatever their number.
    chance, covered = np.random.default_rng(1), 0
    for _ in range(300):
        raters = chance.integers(2, 7, size=80)
        first = chance.binomial(raters, chance.choice([0.9, 0.6], size=80))
        pairs_of = raters * (raters - 1) / 2
        agreeing = (first * (first - 1) + (raters - first) * (raters - first - 1)) / 2
        low, high = mean_over_clusters(agreeing, pairs_of).interval or (1.0, 0.0)
        covered += low <= 0.67 <= high
    assert 273 <= covered <= 297  # 285 expected of 300 at 95%, less or more three standard deviations


# --- habits ---


def test_sides_and_lengths_of_raters() -> None:
    pairs = [make_pair(n, "short", "a much longer answer") for n in range(20)]
    judgments = [judged(pair.id, "left-lover", -1, swapped=n % 2 == 0) for n, pair in enumerate(pairs)]
    judgments += [
        judged(pair.id, "long-lover", -2 if n % 2 == 0 else 2, swapped=n % 2 == 0) for n, pair in enumerate(pairs)
    ]
    measured = measure_agreement(pairs, judgments)
    rows = {row["rater"]: row for row in measured["raters"]}
    left = rows["left-lover"]["left_side"]
    assert (left["value"], left["n"]) == (1.0, 20)
    assert left["interval"] == pytest.approx(wilson_interval(20, 20), abs=1e-6)
    assert left["p"] == pytest.approx(2 * 0.5**20, rel=1e-4)
    assert left["p_adjusted"] == pytest.approx(4 * 0.5**20, rel=1e-4), "Holm: the smaller of two p-values counts twice"
    assert rows["left-lover"]["longer_side"]["value"] == 0.5
    assert rows["long-lover"]["left_side"]["value"] == 0.5
    longer = rows["long-lover"]["longer_side"]
    assert (longer["value"], longer["n"], longer["others"]) == (1.0, 20, 0.5)
    assert rows["left-lover"]["marks"] == ["left side", "shorter answers"]
    assert rows["long-lover"]["marks"] == ["longer answers"]
    assert (measured["left_side"]["value"], measured["longer_side"]["value"]) == (0.75, 0.75)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (3, 10), (9, 10), (50, 100), (460, 1000), (1, 2000)])
def test_the_sign_test_is_scipys(successes: int, n: int) -> None:
    assert sign_test(successes, n) == pytest.approx(stats.binomtest(successes, n).pvalue, rel=1e-9)


def test_two_shares_and_holm_are_statsmodels() -> None:
    # statsmodels 0.15: proportions_ztest([30, 45], [50, 120]), and multipletests([.01, .04, .03, .5], method="holm").
    assert two_shares_test(30, 50, 45, 120) == pytest.approx(0.0071005, abs=1e-7)
    assert adjust_for_many([0.01, None, 0.04, 0.03, 0.5]) == pytest.approx([0.04, None, 0.09, 0.09, 0.5])
    assert two_shares_test(5, 5, 7, 7) is None
    assert two_shares_test(0, 0, 7, 9) is None


def test_pace_outliers_by_hand() -> None:
    # Medians 10, 11, 12, 13 and 1 seconds: in logs the median is 2.398, the deviations 0.095, 0, 0.087, 0.167, 2.398;
    # MAD 0.0953, a robust standard deviation of 0.1413, and the fast one lies 17 of them below.
    judgments = []
    for rater, seconds in zip("abcde", (10.0, 11.0, 12.0, 13.0, 1.0), strict=True):
        judgments += [judged(f"pair-{n}", rater, 1, seconds_active=seconds) for n in range(3)]
    rows = {row["rater"]: row for row in measure_agreement([], judgments)["raters"]}
    assert [rows[rater]["speed"]["outlier"] for rater in "abcde"] == [None, None, None, None, "fast"]
    assert rows["e"]["speed"]["z"] == pytest.approx(-math.log(11) * 0.6745 / math.log(1.1), abs=0.01)
    assert (rows["e"]["speed"]["hasty"], rows["a"]["speed"]["hasty"]) == (1.0, 0.0)
    assert rows["e"]["median_seconds"] == 1.0
    unmeasured = measure_agreement([], [judged("pair-0", "a", 1)])["raters"][0]
    assert (unmeasured["median_seconds"], unmeasured["speed"]["outlier"]) == (None, None)


@pytest.mark.slow
def test_a_million_judgments_are_measured_in_the_time_of_a_page() -> None:
    chance, items, raters = np.random.default_rng(0), 333_334, 30
    rater = np.argsort(chance.random((items, raters)), axis=1)[:, :3].ravel()
    n = items * 3
    value = np.clip(np.repeat(chance.integers(-3, 4, items), 3) + chance.integers(-2, 3, n), -3, 3)
    flags = [np.zeros(n), np.zeros(n), chance.random(n) < 0.5]
    rest = [chance.integers(-1, 2, n), np.exp(chance.normal(3, 0.5, n))]
    columns = np.stack([np.repeat(np.arange(items), 3), rater, value, *flags, *rest, np.zeros(n)])
    cast = votes_of_columns(tuple(f"r{k}" for k in range(raters)), columns)
    begun = time.process_time()
    measured = measure_votes({"human": cast})
    assert time.process_time() - begun < seconds_here(6), "1.3 s where nothing else runs"
    assert measured["judgments"] == n
    assert len(measured["cohen_kappa"]) == 30 * 29 / 2


# --- live ---


def test_live_votes_are_those_of_the_records_whatever_happens_in_between(tmp_path: Path) -> None:
    pairs = [make_pair(n, "short", f"a much longer answer {n}") for n in range(8)]
    store = open_store(tmp_path, pairs, overlap=3, raters=3)
    store.add_pairs([make_pair(50, "a", "b", ("c",))], overlap=3, seed=0, source="t", source_id="t", ranking=True)
    live, chance, stored = LiveVotes(store), random.Random(0), []

    def check() -> None:
        live_figures, fresh = measure_votes(live.read()), measure_agreement(store.pairs(), store.judgments()[0])
        for figures in (live_figures, fresh):
            figures.pop("longer_side", None)  # of rankings, lengths are not kept
            figures.pop("raters", None)
        assert live_figures == fresh

    def answer_next(rater: str) -> None:
        given = store.claim(rater)
        if given is None:
            return
        said_of_it = chance.choice([{"answer": -2}, {"answer": 3}, {"answer": 0}, {"both_bad": True}, {"skip": True}])
        if given.ranking:
            said_of_it = {"ranking": tuple((one,) for one in chance.sample(given.shown, 3))}
        sent = Submission(client_id=f"c-{len(stored)}", pair_id=given.item_id, seconds_active=5.0, **said_of_it)
        stored.append((rater, store.submit(rater, sent).judgment_id))

    check()
    for step in range(30):
        answer_next(f"r{step % 3}")
        if step % 4 == 0:
            check()
        if step == 10:
            store.amend(*stored[2], "amended", Answer(answer=1))
            store.undo(*stored.pop(4))
    assert len(stored) == len(store.judgments()[0]) > 20
    check()
    lengths = measure_votes(live.read())["longer_side"]
    assert lengths["n"] == sum(bool(j.answer) for j in store.judgments()[0])


# --- import ---


def test_importing_twice_changes_nothing_and_faults_are_all_told(tmp_path: Path) -> None:
    pairs = [make_pair(0), make_pair(1)]
    judgments = [
        judged("pair-0", "a", 2),
        judged("pair-0", "b", -1),
        judged("pair-0", "a", 2),
        judged("pair-1", "a", 0),
    ]
    store = Store.open(f"sqlite:///{tmp_path}/labels.sqlite", create=True)
    first = import_records(store, pairs, judgments, source="t", source_id="t")
    assert (first.pairs, first.judgments) == (2, 4)
    head = store.status()["head"]
    again = import_records(store, pairs, judgments, source="t", source_id="t")
    assert (again.pairs, again.judgments) == (0, 0)
    assert store.status()["head"] == head
    assert sorted(store.judgments()[0], key=str) == sorted(judgments, key=str)
    assert verify(store).faults == []
    bad = [judged("pair-9", "a", 1), judged("pair-0", "c", 1).model_copy(update={"left": "1-0"})]
    with pytest.raises(DataError) as caught:
        import_records(store, [], bad, source="t", source_id="t")
    assert len(caught.value.faults) == 2
    store.add_rater("newcomer", rater_id="newcomer")
    assert store.claim("newcomer") is None, "both pairs have the judgments they were to have"


def test_import_goes_on_with_a_campaign(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(0), make_pair(1)], overlap=2, raters=2)
    import_records(store, [], [judged("pair-0", "elsewhere", 3)], source="t", source_id="t")
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


@pytest.mark.slow
def test_pandalm(tmp_path: Path) -> None:
    file = SHARED_DATA / "pandalm-testset/votes_long.csv"
    if not file.exists():
        pytest.skip(f"no {file}")
    with file.open() as lines:
        votes = list(csv.DictReader(lines))
    pairs = [make_pair(int(item)) for item in sorted({vote["item"] for vote in votes}, key=int)]
    answers = {"0": 0, "1": -2, "2": 2}
    judgments = [
        judged(f"pair-{v['item']}", v["rater"], answers[v["vote"]] * (-1) ** (n % 2), swapped=n % 2 == 1)
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
    file = SHARED_DATA / "mt-bench-human-judgments/human.jsonl"
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
        judgments.append(judged(f"pair-{n}", vote["judge"], answer, swapped=vote["model_a"] == second))
    store = Store.open(f"sqlite:///{tmp_path}/labels.sqlite", create=True)
    import_records(store, [make_pair(n) for n in numbers.values()], judgments, source="t", source_id="t")
    measured = measure_agreement(store.pairs(), store.judgments()[0])
    assert len(numbers) == 1814
    assert measured["judgments"] == 3355
    # The published 63% and 81% give each two raters of an item one weight.
    with_ties, without = measured["pooled"]["percent_with_ties"], measured["pooled"]["percent_without_ties"]
    assert (round(with_ties["value"], 3), with_ties["n"]) == (0.655, 2367)
    assert (round(without["value"], 3), without["n"]) == (0.827, 1550)
    assert with_ties["interval"][0] < 0.655 < with_ties["interval"][1]
