"""Judges on real pairs with three people's votes, and the figures worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import SHARED_DATA, read_rows, run_here, write_rows

from evaluation.judging.questions import Rater
from evaluation.judging.report import Caveats, build_report, win_rates
from tiebreak.data.pairs import read_pairs
from tiebreak.measures.judges import (
    against_people,
    contests,
    habits,
    majorities,
    markdown_marks,
    preference_for,
)
from tiebreak.measures.statistics import wilson_interval
from tiebreak.messages import Message, prompt_id
from tiebreak.records import Completion, ExportedJudgment, Judgment, ModelVerdict, Pair, Selection

PANDALM = SHARED_DATA / "pandalm-testset"


def pair(n: int, texts: tuple[str, str] = ("short", "much longer")) -> Pair:
    messages = (Message(role="user", content=f"q{n}"),)
    completions = tuple(
        Completion(id=f"{n}-{side}", text=text, policy=f"policy-{side}") for side, text in zip("ab", texts, strict=True)
    )
    return Pair(id=f"p{n}", prompt_id=prompt_id(messages), messages=messages, completions=completions)


def vote(
    n: int, rater: str, answer: int, answers: tuple[int, int] | None = None, confidence: float | None = None
) -> Judgment:
    """About pair(n), its first completion on the left; by a judge if `answers` are given."""
    judge = ModelVerdict(model="m", answers=answers, confidence=confidence) if answers else None
    kind: Any = "model" if answers else "human"
    return Judgment(
        pair_id=f"p{n}", rater_id=rater, left=f"{n}-a", right=f"{n}-b", answer=answer, kind=kind, judge=judge
    )


def test_a_majority_needs_more_votes_than_any_other_answer() -> None:
    votes = [vote(0, "r", 1), vote(0, "s", 2), vote(0, "t", -1), vote(1, "r", 1), vote(1, "s", -1), vote(2, "r", 0)]
    swapped = vote(3, "r", -1).model_copy(update={"left": "3-b", "right": "3-a"})  # prefers b, as answer 1 above does
    found = majorities([*votes, swapped])
    assert found == {("p0", "0-a", "0-b"): -1, ("p2", "2-a", "2-b"): 0, ("p3", "3-a", "3-b"): -1}


def test_habits_by_hand() -> None:
    """Four comparisons: left twice and consistent, right twice, turned for the left, turned for the right."""
    judged = [vote(0, "j", -1, (-1, -2)), vote(1, "j", 2, (3, 2)), vote(2, "j", 0, (-1, 1)), vote(3, "j", 0, (1, -1))]
    found = habits(judged, [pair(n) for n in range(4)])
    assert found["consistency"]["value"] == 0.5
    assert found["turned"] == 2
    # left chosen: p0 once (exchanged, it is on the right), p1 once, p2 twice, p3 never: 4 of 8
    assert found["left"]["value"] == 0.5
    assert found["longer"] == preference_for(judged[:2], [pair(0), pair(1)], len)
    assert found["longer"]["value"] == 0.5
    assert markdown_marks("# a\n- b\n**c** and `d`") == 4


def test_accuracy_kappa_and_calibration_by_hand() -> None:
    """Ten pairs. People: six for b, four for a. The judge: right on five of b and three of a, with confidence 0.9 where it
    is right and 0.6 where it is not. κ = (0.8 − 0.52) / (1 − 0.52): 0.6·0.6 + 0.4·0.4 = 0.52 by chance."""
    people = [1] * 6 + [-1] * 4
    said = [1] * 5 + [-1] + [-1] * 3 + [1]
    judged = [
        vote(n, "j", answer, (answer, answer), 0.9 if answer == truth else 0.6)
        for n, (answer, truth) in enumerate(zip(said, people, strict=True))
    ]
    votes = [vote(n, rater, answer) for n, answer in enumerate(people) for rater in "rst"]
    found = against_people(judged, votes, [pair(n) for n in range(10)])
    assert found is not None
    assert (found["n"], found["accuracy"]["value"]) == (10, 0.8)
    assert found["kappa"]["value"] == pytest.approx(0.28 / 0.48, abs=1e-6)
    assert found["calibration"]["ece"] == pytest.approx(0.8 * 0.1 + 0.2 * 0.6)
    assert against_people(judged, [], []) is None


def test_the_judges_win_rate_is_never_alone() -> None:
    """30 pairs of two policies; people judged 15. The judge always prefers b, people prefer it in 10 of 15."""
    judged = [vote(n, "j", 1, (1, 1)) for n in range(30)]
    votes = [vote(n, "r", 1 if n < 10 else -1) for n in range(15)]
    pairs = [pair(n) for n in range(30)]
    [contest] = contests(judged, votes, pairs)
    found = win_rates(contest)
    assert found["policies"] == ["policy-a", "policy-b"]
    assert (found["judge"]["value"], found["people"]["value"]) == (0.0, pytest.approx(1 / 3, abs=1e-6))
    assert found["corrected"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    [alone] = contests(judged, votes[:5], pairs)
    assert win_rates(alone)["corrected"] is None


def test_pairs_on_which_people_disagree_count_in_the_win_rates() -> None:
    """Two people judge 20 of 40 pairs: on 12 both prefer a, on 8 they disagree. So they prefer a in (24 + 8)/40 = 0.8 of
    their votes. The judge always prefers a, so it corrects nothing."""
    judged = [vote(n, "j", -1, (-1, -1)) for n in range(40)]
    votes = [vote(n, rater, 1 if n >= 12 and rater == "s" else -1) for n in range(20) for rater in "rs"]
    [contest] = contests(judged, votes, [pair(n) for n in range(40)])
    found = win_rates(contest)
    assert (found["people"]["value"], found["people"]["n"]) == (0.8, 20)
    assert found["corrected"]["value"] == pytest.approx(0.8)
    assert found["preferred"]["people"] == 20


def test_pairs_that_a_strategy_chose_do_not_bias_the_win_rates() -> None:
    """People prefer a on all 12 pairs that chance chose, and b on all 12 that a strategy did; the judge always prefers a.
    The strategy's pairs are known by people's judgments, or by the judge's own pairs."""
    judged = [vote(n, "j", -1, (-1, -1)) for n in range(60)]
    arms = ["random"] * 12 + ["margin"] * 12
    selections = [Selection(strategy=arm, probability=0.5) for arm in arms]
    votes = [
        ExportedJudgment(**vars(vote(n, "r", -1 if one.strategy == "random" else 1)), selection=one)
        for n, one in enumerate(selections)
    ]
    pairs = [pair(n) for n in range(60)]
    about = (Rater("j", "m", "v", 0, "1"), judged), ([], Caveats("function", ()))

    def rates(people: list[ExportedJudgment], pairs: list[Pair]) -> tuple[Any, ...]:
        report = build_report(*about[0], people, pairs, *about[1])
        [one] = report["win_rates"]
        chosen = report["chosen_by_strategy"]
        return one["judge"]["n"], one["people"]["n"], one["people"]["value"], one["corrected"]["value"], chosen

    assert rates(votes, pairs) == (60, 12, 1.0, 1.0, 12)
    selected = [pairs[n].model_copy(update={"selection": one}) for n, one in enumerate(selections)]
    unmarked = [one.model_copy(update={"selection": None}) for one in votes]
    assert rates(unmarked, selected) == (12, 12, 1.0, 1.0, 12)


def test_an_answer_that_two_policies_of_a_duel_gave_counts_for_both() -> None:
    """a and b gave the same answer at one of three prompts, and c is better there and at one other prompt."""
    judged = [vote(n, "j", answer, (answer, answer)) for n, answer in enumerate((1, 1, -1))]
    pairs = []
    for n, first in enumerate(("a = b", "a", "a")):
        one, other = pair(n).completions
        sides = (one.model_copy(update={"policy": first}), other.model_copy(update={"policy": "c"}))
        pairs.append(pair(n).model_copy(update={"completions": sides}))
    found = {one.policies: one.judge for one in contests(judged, [], pairs)}
    assert {policies: sorted(judge.values()) for policies, judge in found.items()} == {
        ("a", "c"): [0.0, 0.0, 1.0],
        ("b", "c"): [0.0],
    }


def test_copies_of_a_comparison_add_no_certainty() -> None:
    """Each of 30 prompts three times, as in pairs of two policies with several answers: every interval stays as it is.
    Of the 20 that people judged, the judge agrees on 14, calls 3 ties, and prefers the other answer in 3."""
    truth = [1, 1, -1, -1, 1] * 4
    said = [0 if n % 6 == 5 else -a if n % 5 == 2 else a for n, a in enumerate([*truth, *truth[:10]])]

    def each(one: Any, key: str, copies: int) -> list[Any]:
        return [one.model_copy(update={key: f"{getattr(one, key)}-{n}"}) for n in range(copies)]

    def votes_of(answers: list[int], rater: str, copies: int, confidence: float | None = None) -> list[Judgment]:
        orders = [(a, a or 1) if confidence else None for a in answers]
        votes = [vote(n, rater, a, order, confidence) for n, (a, order) in enumerate(zip(answers, orders, strict=True))]
        about = [one.model_copy(update={"aspects": {"clear": one.answer}}) for one in votes]
        return [one for vote in about for one in each(vote, "pair_id", copies)]

    def measured(copies: int) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        judged, votes = votes_of(said, "j", copies, 0.9), votes_of(truth, "r", copies)
        splits = [pair(n).model_copy(update={"split": "train" if n % 2 else "test"}) for n in range(30)]
        pairs = [one for each_pair in splits for one in each(each_pair, "id", copies)]
        [contest] = contests(judged, votes, pairs)
        people = against_people(judged, votes, pairs)
        assert people is not None
        parts = {"habits": habits(judged, pairs), "people": people, "aspect": people["aspects"]["clear"]}
        parts |= {name: people["slices"][name] for name in ("split train", "split test")}
        parts |= {f"bin {n}": {"accuracy": one} for n, one in enumerate(people["calibration"]["bins"])}
        return win_rates(contest), parts

    (rates, parts), (rates3, parts3) = measured(1), measured(3)
    assert rates["preferred"]["value"] is not None
    for key in ("judge", "people", "corrected", "preferred"):
        for part in ("value", "interval"):
            assert rates3[key][part] == pytest.approx(rates[key][part], abs=2e-6), (key, part)
    for name, one in parts.items():
        for key in one.keys() & {"consistency", "longer", "accuracy", "accuracy_without_ties", "kappa"}:
            three = parts3[name][key]
            assert three["n"] == 3 * one[key]["n"]
            assert three["interval"] == pytest.approx(one[key]["interval"], abs=2e-6), (name, key)


def test_a_habit_on_copies_of_a_comparison_is_no_surer() -> None:
    """Of 10 prompts, the judge takes the left twice at six, the right twice at four: as sure as of 10 answers, not 20."""
    for copies in (1, 3):
        turned = [vote(n, "j", 0, (-1, 1) if n < 6 else (1, -1)) for n in range(10)]
        judged = [one.model_copy(update={"pair_id": f"{one.pair_id}-{k}"}) for one in turned for k in range(copies)]
        pairs = [pair(n).model_copy(update={"id": f"p{n}-{k}"}) for n in range(10) for k in range(copies)]
        left = habits(judged, pairs)["left"]
        assert (left["value"], left["n"]) == (0.6, 20 * copies)
        assert left["interval"] == pytest.approx(wilson_interval(6, 10), abs=2e-6)


def test_a_prompt_that_people_judged_in_part_counts_once() -> None:
    """Two comparisons at each prompt, people judged one: the judge's other verdict is not a case of its own."""
    first, second = ([pair(n).model_copy(update={"id": f"p{n}-{k}"}) for n in range(14)] for k in "12")
    judged = [
        vote(n, "j", 1, (1, 1)).model_copy(update={"pair_id": one[n].id}) for n in range(14) for one in (first, second)
    ]
    votes = [vote(n, "r", 1 if n % 2 else -1).model_copy(update={"pair_id": first[n].id}) for n in range(12)]
    [contest] = contests(judged, votes, [*first, *second])
    found = win_rates(contest)["corrected"]
    assert (found["judged"], found["people"]) == (2, 12)


@pytest.fixture(scope="module")
def pandalm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(pairs, people's judgments) of the 999."""
    file = PANDALM / "testset-v1.json"
    if not file.exists():
        pytest.skip(f"no {file}")
    folder = tmp_path_factory.mktemp("pandalm")
    rows = json.loads(file.read_text())
    records, votes = [], []
    for row in rows:
        texts = [str(row[f"response{n}"]).strip() for n in (1, 2)]
        if texts[0] == texts[1] or not all(texts):
            continue
        name = f"pandalm-{row['idx']}"
        messages = [{"role": "user", "content": f"{row['instruction']}\n{row['input']}".strip()}]
        first, second = row["cmp_key"].split("_", 1)
        sides = [
            {"id": f"{name}-{n}", "text": texts[n - 1], "policy": policy} for n, policy in ((1, first), (2, second))
        ]
        records.append({"id": name, "prompt_id": name, "messages": messages, "completions": sides})
        for n in (1, 2, 3):
            answer = {0: 0, 1: -2, 2: 2}[row[f"annotator{n}"]]
            about = {"pair_id": name, "left": f"{name}-1", "right": f"{name}-2", "answer": answer, "kind": "human"}
            votes.append({**about, "rater_id": f"annotator{n}"})
    return write_rows(folder / "pairs.jsonl", records), write_rows(folder / "votes.jsonl", votes)


def test_a_function_on_pandalm_against_three_people(pandalm: tuple[Path, Path], tmp_path: Path) -> None:
    """Accuracy and preference for length, recounted here from the files."""
    pairs, votes = pandalm
    (tmp_path / "lengths.py").write_text("def longer(prompt, answer):\n    return float(len(answer))\n")
    (tmp_path / "judge.yaml").write_text(
        f"pairs: {pairs}\npeople: {votes}\nfunction: lengths:longer\noutput: {tmp_path / 'out'}\ntie_threshold: 0\n"
        "tracking: {mode: disabled}\ninjection_pairs: 0\n"
    )
    status, printed = run_here("judge", "--config", tmp_path / "judge.yaml")
    assert status == 0, printed
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    answers: dict[str, list[int]] = {}
    for row in read_rows(votes):
        answers.setdefault(row["pair_id"], []).append((row["answer"] > 0) - (row["answer"] < 0))
    right = n = 0
    for one in read_pairs(str(pairs)):
        counts = sorted(((answers[one.id].count(side), side) for side in (-1, 0, 1)), reverse=True)
        if counts[0][0] > counts[1][0]:
            apart = len(one.completions[1].text) - len(one.completions[0].text)
            right += counts[0][1] == (apart > 0) - (apart < 0)
            n += 1
    people = report["people"]
    assert (people["n"], people["raters"]) == (n, 3)
    assert people["accuracy"]["value"] == pytest.approx(right / n, abs=1e-6)
    assert report["habits"]["longer"]["value"] == 1.0
    assert 0.5 < people["people_longer"]["value"] < 0.7
    for rate in report["win_rates"]:
        if rate["corrected"] and rate["corrected"]["judged"] == 0:
            low, high = rate["corrected"]["interval"]
            assert low <= rate["people"]["value"] <= high
