"""The benchmark of wrong votes: its world and its figures by hand, and a loss that is unbiased by theory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support import REPOSITORY


@pytest.fixture
def wrong_votes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import wrong_votes as benchmark

    return benchmark


def test_the_share_of_the_gain_by_hand(wrong_votes: Any) -> None:
    """One prompt, two answers; the policy's weight is their log-odds; an even reference, a reward of ln 3.

    π* = (¾, ¼). KL(even ‖ π*) = ½·ln(⅔) + ½·ln 2 = 0.1438; of weights ln 3/2, π = (.634, .366): KL = .0308.
    """
    features = torch.tensor([[[[1.0], [0.0]]]], dtype=torch.float64)
    even = torch.full((1, 1, 2), math.log(0.5), dtype=torch.float64)
    worlds = wrong_votes.Worlds(features, even, torch.tensor([[math.log(3)]], dtype=torch.float64))
    assert worlds.best.exp().flatten().tolist() == pytest.approx([0.75, 0.25])
    p = math.sqrt(3) / (1 + math.sqrt(3))
    half = p * math.log(p / 0.75) + (1 - p) * math.log((1 - p) / 0.25)
    gained = [worlds.gained(weight * worlds.reward).item() for weight in (0.0, 0.5, 1.0)]
    assert gained == pytest.approx([0.0, 1 - half / (0.5 * math.log(4 / 3)), 1.0])
    factor, tuned = wrong_votes.at_best_factor(worlds, worlds.reward / 4)
    assert (factor, tuned.item()) == pytest.approx((4.0, 1.0))


def test_majorities_by_hand(wrong_votes: Any) -> None:
    """Of three votes, each wrong in 20%: .2³ + 3·.2²·.8 = .104."""
    assert wrong_votes.majority_error(wrong_votes.Case("x", (0.2, 0.2))) == pytest.approx(0.104)
    signs = torch.tensor([[[1, 1, -1], [-1, -1, -1]]])
    features = torch.tensor([[[2.0], [5.0]]], dtype=torch.float64)
    votes = wrong_votes.Votes(features, torch.zeros(1, 2, 3, dtype=torch.long), signs, torch.tensor([[1, 3]]))
    rows = wrong_votes.label_by_majority(votes)
    assert rows.features.flatten().tolist() == [2.0, -5.0]
    assert rows.agreement.tolist() == pytest.approx([2 / 3, 1.0])


def test_votes_are_wrong_as_often_as_their_raters_are(wrong_votes: Any) -> None:
    """Without errors all votes on a pair agree, and the better answer has them in σ(difference) of the pairs."""
    chance = torch.Generator().manual_seed(1)
    worlds = wrong_votes.build_worlds(4, chance)
    none = wrong_votes.draw_votes(worlds, 5_000, wrong_votes.Case("none", (0.0,) * 5), chance)
    assert bool((none.signs == none.signs[..., :1]).all())
    difference = torch.einsum("wnf,wf->wn", none.features, worlds.reward)
    expected = difference.abs().sigmoid().mean().item()
    assert (none.signs[..., 0] * difference.sign()).mean().item() == pytest.approx(2 * expected - 1, abs=0.02)
    liar = wrong_votes.draw_votes(worlds, 5_000, wrong_votes.Case("liar", (1.0, 0.0, 0.0, 0.0, 0.0)), chance)
    lied = liar.raters == 0
    alone = lied.any(-1)
    assert alone.float().mean().item() == pytest.approx(3 / 5, abs=0.02)
    assert bool((liar.signs[alone].sum(-1).abs() == 1).all())  # two against one


def test_with_many_pairs_the_unbiased_loss_finds_the_best_policy_and_the_plain_one_stays_short(
    wrong_votes: Any,
) -> None:
    """Chowdhury et al. 2024: with the true share of wrong labels, `robust` has the minimum of the labels without errors."""
    chance = torch.Generator().manual_seed(0)
    worlds = wrong_votes.build_worlds(2, chance)
    case = wrong_votes.Case("wrong", (0.3,) * 5)
    votes = wrong_votes.draw_votes(worlds, 12_000, case, chance)
    found = {
        name: worlds.gained(wrong_votes.train(wrong_votes.objective_of(name, votes, case), 2, 150)).min().item()
        for name in ("plain", "robust")
    }
    assert found["robust"] > 0.97
    assert found["plain"] < 0.9


def test_dawid_skene_believes_the_rater_who_agrees_with_the_others(wrong_votes: Any) -> None:
    """Four raters, of whom the fourth always contradicts: its votes count against the side that they are for, so the pair
    with one vote for and one of the fourth against is as sure as two votes for. By hand: the sign of each pair's step."""
    raters = torch.tensor([[[0, 1, 3]] * 30 + [[0, 2, 3]] * 30 + [[1, 2, 3]] * 30])
    truth = torch.tensor([1, -1]).repeat(45)[None, :, None]
    signs = torch.cat([truth, truth, -truth], -1)
    features = torch.eye(90, dtype=torch.float64)[None] * truth
    votes = wrong_votes.Votes(features, raters, signs, torch.ones(1, 90))
    [ballots] = wrong_votes.ballots_of(votes)
    fit = wrong_votes.fit_dawid_skene(ballots)
    assert (fit.accuracy > 0.9).tolist() == [True, True, True, False]
    weights = torch.zeros(1, 90, dtype=torch.float64, requires_grad=True)
    wrong_votes.objective_of("dawid_skene", votes, wrong_votes.CASES[0])(weights).backward()
    step = -weights.grad[0]  # a loss of -log σ(θ) in each pair's own feature: 1/2 of its weight, over 90 pairs
    assert step.tolist() == pytest.approx([1 / 180] * 90, rel=1e-3)


def test_the_whole_in_small(wrong_votes: Any, tmp_path: Path) -> None:
    found = wrong_votes.measure(2, 12, 3)
    assert len(found["rows"]) == len(wrong_votes.CASES) * len(wrong_votes.LOSSES)
    lines = wrong_votes.tables(found)
    assert lines[0].startswith("| share of the attainable gain; votes wrong: | plain | weights |")
    assert sum(line.count("**") >= 2 for line in lines) == 2 * len(wrong_votes.CASES)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{wrong_votes.BEGIN}\nold\n{wrong_votes.END}\nafter\n")
    wrong_votes.write_table(page, ["| a |"])
    assert page.read_text() == f"before\n{wrong_votes.BEGIN}\n\n| a |\n\n{wrong_votes.END}\nafter\n"
