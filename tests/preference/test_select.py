"""Selection of pairs: strategies by hand, probabilities by counting every draw, and the stage through the command line."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_world import World, questions
from support import read_rows, run_here, write_config, write_rows

from preference.selection.page import build_page
from preference.selection.pool import _cut, read_judged
from preference.selection.scores import by_judges
from preference.selection.strategies import (
    Shares,
    arms,
    choose,
    disagreement,
    farthest_first,
    gap,
    judges_uncertainty,
    share_out,
)
from tiebreak.errors import DataError, HandoffError
from tiebreak.files import write_jsonl
from tiebreak.measures.selection import inverse_probability_mean, selection_probabilities
from tiebreak.messages import Message, assistant
from tiebreak.records import Completion, Judgment, ModelVerdict, Pair, Preference

# --- by hand ---


@pytest.mark.parametrize(("pool", "drawn", "taken"), [(4, 1, 1), (6, 2, 2), (7, 3, 2), (5, 2, 3), (6, 6, 0), (5, 1, 4)])
def test_probabilities_are_those_of_every_possible_draw(pool: int, drawn: int, taken: int) -> None:
    """Counted: of all draws of the random arm, in how many is each rank selected?"""
    counts = np.zeros(pool)
    draws = list(itertools.combinations(range(pool), drawn))
    for draw in draws:
        rest = [rank for rank in range(pool) if rank not in draw]
        for rank in (*draw, *rest[:taken]):
            counts[rank] += 1
    found = selection_probabilities(pool, drawn, taken)
    assert found == pytest.approx(counts / len(draws))
    assert found.sum() == pytest.approx(drawn + taken)


def test_probabilities_of_a_large_pool_sum_to_the_number_selected() -> None:
    assert selection_probabilities(5000, 100, 400).sum() == pytest.approx(500, abs=1e-6)


def test_the_weighted_mean_is_unbiased_and_the_plain_one_is_not() -> None:
    """The strategy takes pairs whose value is high. Averaged over every seed's draw, the weighted mean is the pool's."""
    values = np.linspace(0, 1, 40) ** 2
    ids = [f"pair-{n}" for n in range(40)]
    ranking = sorted(range(40), key=lambda n: -values[n])
    weighted, plain, covered = [], [], 0
    for seed in range(2000):
        chosen = choose(ids, ranking, Shares(4, 8), seed)
        assert len(chosen) == 12
        assert sum(arm == "random" for arm, _ in chosen.values()) == 4
        rows = list(chosen)
        figure = inverse_probability_mean([values[n] for n in rows], [chosen[n][1] for n in rows], 40)
        assert figure.value is not None
        assert figure.interval is not None
        weighted.append(figure.value)
        plain.append(float(np.mean(values[rows])))
        covered += figure.interval[0] <= values.mean() <= figure.interval[1]
    error = 4 * np.std(weighted) / math.sqrt(2000)
    assert np.mean(weighted) == pytest.approx(values.mean(), abs=error)
    assert np.mean(plain) > values.mean() + 10 * error
    assert covered > 0.9 * 2000


def test_scores_by_hand() -> None:
    origins = np.array([5.0, -7.0])
    first, second = np.array([[1.0, 3.0], [0.0, 0.5]]), np.array([[0.0, 0.0], [1.0, 1.5]])
    assert disagreement(first, second).tolist() == [1.0, 0.0]  # differences 1 and 3; −1 and −1
    assert gap(first, second).tolist() == [2.0, 1.0]
    assert disagreement(first + origins, second + origins).tolist() == [1.0, 0.0]  # origins of members
    assert farthest_first(np.array([[0.0, 0], [3, 0], [0, 4], [3, 4]]), 0, 4)[0] == [
        0,
        3,
        1,
        2,
    ]  # both are 3 away: the first


def verdict(one: int | None, other: int | None, confidence: float | None = None, left: str = "a") -> Judgment:
    answer = None if one is None or other is None else 0 if one * other <= 0 else one
    sides = {"left": left, "right": "b" if left == "a" else "a"}
    given: dict[str, Any] = {"skip": True} if answer is None else {"answer": answer}
    judge = ModelVerdict(model="m", answers=(one, other), confidence=confidence)
    return Judgment(pair_id="p", rater_id="j", kind="model", judge=judge, **sides, **given)


@pytest.mark.parametrize(
    ("verdicts", "unsure"),
    [
        ([verdict(2, 1, 0.9)], 0.2),  # p = .1 or .9
        ([verdict(2, 1)], 0.0),
        ([verdict(2, -1)], 1.0),  # turned with the order
        ([verdict(0, 0)], 1.0),
        ([verdict(1, 0)], 0.5),  # ¾
        ([verdict(None, 1)], 1.0),
        ([verdict(1, 1, 0.9), verdict(-1, -1, 0.9)], 1.0),  # two judges, each sure of another side
        ([verdict(1, 1, 0.9), verdict(-1, -1, 0.9, left="b")], 0.2),  # the same side, seen the other way round
        ([], 1.0),
    ],
)
def test_how_unsure_judges_are(verdicts: list[Judgment], unsure: float) -> None:
    assert judges_uncertainty(verdicts) == pytest.approx(unsure)


def test_numbers_are_shared_out() -> None:
    assert share_out(10, [70, 20, 10]) == [7, 2, 1]
    assert share_out(3, [3, 0, 0]) == [3, 0, 0]
    assert share_out(7, [5, 4, 3]) == [3, 2, 2]
    assert [arms(n, 0.05) for n in (1, 10, 100)] == [Shares(1, 0), Shares(1, 9), Shares(5, 95)]
    assert arms(10, 1.0) == Shares(10, 0)


def test_a_pair_of_three_is_cut_and_a_pair_of_two_keeps_its_id() -> None:
    ask = (Message(role="user", content="q"),)
    three = tuple(Completion(id=name, text=name) for name in "abc")
    whole = Pair(id="w", prompt_id="q", messages=ask, completions=three)
    cut = list(_cut(whole))
    assert [(one.first.id, one.second.id, one.pool_id) for one in cut] == [
        ("a", "b", "w"),
        ("a", "c", "w"),
        ("b", "c", "w"),
    ]
    assert len({one.pair.id for one in cut}) == 3
    [same] = _cut(whole.model_copy(update={"completions": three[:2]}))
    assert same.pair.id == "w"


# --- the stage ---


def select(*words: str | Path) -> tuple[int, str]:
    return run_here("select", *words, "--tracking.mode", "disabled")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Twenty training pairs, b longer than a by n words, and ten that are held out."""
    return write_rows(
        tmp_path / "pool.jsonl",
        [
            {
                "prompt": question,
                "response_a": "more",
                "response_b": "more " * (n % 20 + 2),
                "split": "train" if n < 20 else "validation",
            }
            for n, question in enumerate(questions(30))
        ],
    )


def manifest_of(stage: str) -> str:
    return json.dumps({"id": stage, "stage": stage, "inputs": {}, "config": {}})


def selected(output: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in read_rows(output / "final" / "pairs.jsonl")}


def test_selected_pairs_reach_export_and_training_with_their_arm(tmp_path: Path, pool: Path) -> None:
    status, message = select("--pairs", pool, "--selected-pairs", "9", "--output", tmp_path / "s")
    assert status == 0, message
    assert "9 of 30 pairs selected: 9 at random" in message
    rows = selected(tmp_path / "s")
    assert sorted(row["split"] for row in rows.values()) == ["train"] * 6 + ["validation"] * 3
    assert {row["selection"]["probability"] for row in rows.values()} == {0.3}
    (tmp_path / "mine.py").write_text("def length(prompt, answer):\n    return float(len(answer))\n")
    config = write_config(
        tmp_path / "label.yaml",
        output=tmp_path / "label",
        pairs=tmp_path / "s",
        simulate={"yardstick": "mine:length", "error_rate": 0.0, "tie_threshold": 0.5},
        formats=["parquet"],
    )
    status, message = run_here("label", "--config", config, "--tracking.mode", "disabled")
    assert status == 0, message
    preferences = read_rows(tmp_path / "label" / "final" / "preferences.jsonl")
    assert len(preferences) == 9
    assert all(one["selection"] == rows[one["pair_id"]]["selection"] for one in preferences)
    judgments = read_rows(tmp_path / "label" / "final" / "judgments.jsonl")
    assert all(one["selection"] == rows[one["pair_id"]]["selection"] for one in judgments)
    from tiebreak.data.reading import read_preferences
    from tiebreak.records import Preference

    own = [Preference.model_validate(row) for row in preferences]
    parquet = read_preferences(str(tmp_path / "label" / "final" / "parquet" / "train.parquet"))
    assert {(one.pair_id, one.selection) for one in parquet} == {
        (one.pair_id, one.selection) for one in own if one.split == "train"
    }

    # what is judged is not selected again; what is left is too little for 22
    words = ["--pairs", pool, "--judged", f"[{tmp_path / 'label'}]"]
    status, message = select(*words, "--selected-pairs", "21", "--output", tmp_path / "rest")
    assert status == 0, message
    assert "left out of the pool: 9 already judged" in message
    assert not rows.keys() & selected(tmp_path / "rest").keys()
    status, message = select(*words, "--selected-pairs", "22", "--output", tmp_path / "more")
    assert status == 1
    assert "22, but" in message
    assert "has 21 pairs to select from (9 pairs already judged left out): select fewer, or sample more" in message


def test_scores_of_all_arms_have_the_same_decimals() -> None:
    """They span 5.2, so two decimals; before, −2 stood beside 3.20 and 0.100 beside 1.40."""
    arms = {
        "random": {"pairs": 1, "smallest_probability": 0.5, "score_quartiles": [-2.0, -0.5, 0.1, 0.6, 2.0]},
        "margin": {"pairs": 1, "smallest_probability": 0.5, "score_quartiles": [0.5, 1.1, 1.4, 1.9, 3.2]},
    }
    counts = {"selected": 2, "pool": 4, "already_judged": 0, "duplicates": 0}
    page = build_page({"strategy": "margin", "counts": counts, "arms": arms, "splits": {}}, {"pairs": "runs/pool"})
    assert [text in page for text in ("0.10", "−0.50 to 0.60", "1.40", "1.10 to 1.90", "0.100")] == [True] * 4 + [False]


def test_a_reward_model_selects(tmp_path: Path, world: World, pool: Path) -> None:
    """margin takes the reward model's closest pairs, largest_gap the others."""
    picked: dict[str, dict[str, dict[str, Any]]] = {}
    for strategy in ("margin", "largest_gap"):
        words = ["--pairs", pool, "--selected-pairs", "15", "--reward-model", world.judge, "--strategy", strategy]
        status, message = select(*words, "--output", tmp_path / strategy)
        assert status == 0, message
        assert f"15 of 30 pairs selected: 7 at random, 8 by {strategy}" in message  # 5 held out, 2 of 10
        picked[strategy] = selected(tmp_path / strategy)
        page = (tmp_path / strategy / "report.html").read_text()
        assert "15 of 30 pairs selected for people to judge" in page
        assert f"<th scope='row'>{strategy.replace('_', ' ')}</th>".replace("'", '"') in page
    for strategy, sign in (("margin", -1), ("largest_gap", 1)):
        rows = [row["selection"] for row in picked[strategy].values() if row["split"] == "train"]
        taken = [row["score"] for row in rows if row["strategy"] == strategy]
        assert len(taken) == 8
        assert all(sign * score > 0 for score in taken)
        assert sorted({row["probability"] for row in rows})[-1] == 1.0
    both = {
        name: {key for key, row in rows.items() if row["selection"]["strategy"] == name}
        for name, rows in picked.items()
    }
    assert not both["margin"] & both["largest_gap"]
    # the same command again is the same run, and a lone member cannot disagree
    assert "nothing to do" in select(*words, "--output", tmp_path / strategy)[1]
    status, message = select(
        "--pairs",
        pool,
        "--selected-pairs",
        "5",
        "--reward-model",
        world.judge,
        "--strategy",
        "disagreement",
        "--output",
        tmp_path / "d",
    )
    assert status == 1
    assert "has one member, which cannot disagree" in message


def test_judges_and_hidden_states_select(tmp_path: Path, world: World, pool: Path) -> None:
    (tmp_path / "mine.py").write_text("def near(prompt, answer):\n    return float(min(len(answer.split()), 12))\n")
    config = write_config(
        tmp_path / "judge.yaml", output=tmp_path / "judge", pairs=pool, function="mine:near", tie_threshold=1.5
    )
    status, message = run_here("judge", "--config", config, "--tracking.mode", "disabled")
    assert status == 0, message
    words = [
        "--pairs",
        pool,
        "--selected-pairs",
        "9",
        "--strategy",
        "judge_unsure",
        "--judges",
        f"[{tmp_path / 'judge'}]",
    ]
    status, message = select(*words, "--output", tmp_path / "unsure")
    assert status == 0, message
    taken = [row for row in selected(tmp_path / "unsure").values() if row["selection"]["strategy"] == "judge_unsure"]
    assert max(row["selection"]["score"] for row in taken) == 1.0  # only question 0 is a tie: 1 word and 2
    assert any(row["messages"][0]["content"] == questions(1)[0] for row in selected(tmp_path / "unsure").values())

    status, message = select(
        *words, "--diverse", "true", "--policy", world.policy, "--candidates", "2", "--output", tmp_path / "both"
    )
    assert status == 0, message
    assert "by judge_unsure+diverse" in message
    status, message = select(
        "--pairs",
        pool,
        "--selected-pairs",
        "9",
        "--strategy",
        "diverse",
        "--policy",
        world.policy,
        "--output",
        tmp_path / "d",
    )
    assert status == 0, message
    distances = [row["selection"]["score"] for row in selected(tmp_path / "d").values()]
    assert sum(distance is None for distance in distances) <= 4 + 3  # held out, or drawn and not among the centres
    assert all(0 <= distance <= 2 for distance in distances if distance is not None)  # of vectors of length 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strategy", "margin"], "reward_model: strategy margin reads reward_model: name it"),
        (["--judges", "[x]"], "judges: strategy random does not read it"),
        (["--diverse", "true", "--policy", "p"], "by itself it is strategy: diverse"),
        (["--strategy", "diverse", "--policy", "p", "--random-share", "0.01"], "random-share: input should be"),
        (["--random-share", "0.5"], "with strategy random, both arms are one"),
    ],
)
def test_keys_without_what_they_need(tmp_path: Path, pool: Path, words: list[str], message: str) -> None:
    status, found = select("--pairs", pool, "--selected-pairs", "3", "--output", tmp_path / "s", *words)
    assert status == 2
    assert message in found


def test_duplicates_are_one_pair(tmp_path: Path) -> None:
    row = {"prompt": "q?", "response_a": "one", "response_b": "two"}
    turned = {"prompt": "q?", "response_a": "two", "response_b": "one "}
    accents = [{**row, "prompt": text} for text in ("caf\u00e9?", "cafe\u0301?")]
    pool = write_rows(tmp_path / "p.jsonl", [row, row, turned, {**row, "prompt": "other?"}, *accents])
    status, message = select("--pairs", pool, "--selected-pairs", "4", "--output", tmp_path / "s")
    assert status == 1
    assert "has 3 pairs to select from (3 pairs twice in it left out)" in message


def test_what_was_judged_is_not_selected_again_however_its_prompt_is_written(tmp_path: Path) -> None:
    final = tmp_path / "label" / "final"
    final.mkdir(parents=True)
    (tmp_path / "label" / "manifest.json").write_text(manifest_of("label"))
    (final / "judgments.jsonl").write_text("")
    asked, sides = (Message(role="user", content="caf\u00e9?"),), [assistant(text) for text in ("one", "two")]
    write_jsonl(final / "preferences.jsonl", [Preference(prompt=asked, chosen=sides[0], rejected=sides[1])])
    judged = read_judged([str(tmp_path / "label")])
    completions = tuple(Completion(id=text, text=text) for text in ("two ", "one"))
    again = Pair(
        id="p", prompt_id="q", messages=(Message(role="user", content="cafe\u0301?"),), completions=completions
    )
    other = again.model_copy(update={"messages": (Message(role="user", content="cafe?"),)})
    assert [one.texts in judged.texts for pair in (again, other) for one in _cut(pair)] == [True, False]


def test_ids_that_name_completions_of_their_pair_alone_leave_no_other_pair_out(tmp_path: Path) -> None:
    """All pairs of a user's file call their answers a and b; one was judged."""
    asked = [{"role": "user", "content": "?"}]
    rows = [
        {"id": f"p{n}", "prompt_id": f"q{n}", "messages": [{**asked[0], "content": f"question {n}?"}],
         "completions": [{"id": side, "text": f"{side} {n}"} for side in "ab"]}
        for n in range(6)
    ]  # fmt: skip
    vote = {"pair_id": "p0", "rater_id": "r", "left": "b", "right": "a", "answer": 1, "kind": "human"}
    words = ("--pairs", write_rows(tmp_path / "own.jsonl", rows), "--judged", write_rows(tmp_path / "j.jsonl", [vote]))
    status, message = select(*words, "--selected-pairs", "5", "--output", tmp_path / "out")
    assert status == 0, message
    assert set(selected(tmp_path / "out")) == {f"p{n}" for n in range(1, 6)}


def test_what_leaves_no_pair_out_is_refused_as_judged(tmp_path: Path) -> None:
    """A judge's run and a file of its verdicts; a file in which a person judged too counts that person's pair alone."""
    vote = {"left": "a", "right": "b", "answer": 1}
    verdicts = [{**vote, "pair_id": "p", "rater_id": "j", "kind": "model"}]
    file = write_rows(tmp_path / "judge" / "final" / "judgments.jsonl", verdicts)
    (tmp_path / "judge" / "manifest.json").write_text(manifest_of("judge"))
    with pytest.raises(
        HandoffError, match=r"is a finished 'judge' run: .* are read by --judges, with strategy judge_unsure"
    ):
        read_judged([str(tmp_path / "judge")])
    with pytest.raises(DataError, match=r"the 1 judgment in .* are all a model judge's, which leave no pair out"):
        read_judged([str(file)])
    person = {**vote, "left": "c", "pair_id": "q", "rater_id": "r", "kind": "human"}
    assert read_judged([str(write_rows(tmp_path / "both.jsonl", [*verdicts, person]))]).of_pairs == {
        ("q", frozenset("bc"))
    }


def test_pairs_that_no_judge_saw_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = (Message(role="user", content="q"),)
    two = tuple(Completion(id=name, text=name) for name in "ab")
    candidates = [one for n in "pq" for one in _cut(Pair(id=n, prompt_id=n, messages=ask, completions=two))]
    row = {"pair_id": "p", "left": "a", "right": "b", "answer": 1, "rater_id": "j", "kind": "model"}
    write_rows(tmp_path / "judge" / "final" / "judgments.jsonl", [row])
    (tmp_path / "judge" / "manifest.json").write_text(manifest_of("judge"))
    assert by_judges([str(tmp_path / "judge")], candidates).tolist() == [0.0, 1.0]
    assert "1 of 2 pairs are judged in none of" in "".join(capsys.readouterr())
    by_judges([str(tmp_path / "judge")], candidates[:1])
    assert "judged in none" not in "".join(capsys.readouterr())
