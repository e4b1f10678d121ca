"""Reward losses and labels against closed forms and numbers worked by hand."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from reward.losses import bootstrap_counts, centring_loss, preference_loss
from tiebreak.errors import DataError
from tiebreak.records import Preference
from tiebreak.training.labels import (
    Label,
    is_tie,
    label_of,
    margin_of,
    mean_one,
    report_unused_columns,
    require_a_verdict,
    target_of,
    unused_columns,
)


def test_of_the_rows_that_count_one_must_say_which_answer_is_better() -> None:
    tie, decided, ignored = Label(0.0, 0.5, 1.0), Label(0.0, 1.0, 1.0), Label(0.0, 1.0, 0.0)
    for labels in ([tie, tie], [tie, ignored]):
        with pytest.raises(DataError, match="every preference is a tie"):
            require_a_verdict(labels)
    for labels in ([tie, decided], [decided, tie], [decided], []):
        require_a_verdict(labels)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_without_margin_and_doubt_it_is_bradley_terry() -> None:
    chosen, rejected = column(1.0, 0.0), column(0.0, 2.0)
    loss = preference_loss(chosen, rejected, torch.zeros(2), torch.ones(2))
    assert loss.squeeze(-1).tolist() == pytest.approx([math.log(1 + math.exp(-1)), math.log(1 + math.exp(2))])


def test_a_margin_moves_the_point_of_indifference() -> None:
    """A difference equal to the margin costs ln 2, as equal scores do without one."""
    loss = preference_loss(column(0.75), column(0.25), torch.tensor([0.5]), torch.ones(1))
    assert loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(("target", "margin"), [(0.6, 0.0), (0.75, 0.5), (0.9, 1.0)])
def test_a_soft_label_is_met_where_the_difference_is_its_log_odds(target: float, margin: float) -> None:
    """The minimum lies at margin + log(p/(1−p)), and is the entropy of p."""
    best = margin + math.log(target / (1 - target))
    chosen = column(best).requires_grad_()
    loss = preference_loss(chosen, column(0.0), torch.tensor([margin]), torch.tensor([target], dtype=torch.float64))
    loss.sum().backward()
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(0.0, abs=1e-7)
    entropy = -target * math.log(target) - (1 - target) * math.log(1 - target)
    assert loss.item() == pytest.approx(entropy, abs=1e-6)


def test_an_even_label_does_not_care_which_side_is_which() -> None:
    chosen, rejected, even = column(0.3, -1.0), column(1.5, 0.2), torch.full((2,), 0.5)
    one = preference_loss(chosen, rejected, torch.zeros(2), even)
    torch.testing.assert_close(one, preference_loss(rejected, chosen, torch.zeros(2), even))


def test_members_are_independent() -> None:
    """A pair's loss for one head does not depend on what other heads score."""
    chosen, rejected = torch.randn(4, 3), torch.randn(4, 3)
    margin, target = torch.rand(4), 0.5 + torch.rand(4) / 2
    whole = preference_loss(chosen, rejected, margin, target)
    for k in range(3):
        alone = preference_loss(chosen[:, k : k + 1], rejected[:, k : k + 1], margin, target)
        torch.testing.assert_close(whole[:, k : k + 1], alone)


def test_centring_is_zero_for_opposite_scores_alone() -> None:
    assert centring_loss(column(1.0, -2.0), column(-1.0, 2.0)).item() == 0.0
    assert centring_loss(column(1.0, 2.0), column(1.0, 0.0)).item() == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("agreement", "raters", "expected"),
    [
        (None, None, 1.0),
        (None, 3, 1.0),
        (0.8, None, 0.8),
        (1.0, 1, 0.75),  # (1 + ½)/(1 + 1)
        (1.0, 3, 0.875),  # 3½/4
        (2 / 3, 3, 0.625),  # 2½/4
        (0.4, 5, 0.5),  # 2½/6 of the votes, the rest ties: still the winning side
    ],
)
def test_targets_from_votes(agreement: float | None, raters: int | None, expected: float) -> None:
    assert target_of(agreement, raters) == pytest.approx(expected)


def test_margins_are_those_of_the_paper() -> None:
    """Touvron et al. 2023, Table 27, small margins: 1 for significantly better, 2/3 for better, 1/3 for slightly."""
    assert [margin_of(s, 1.0) for s in (3, 2, 1, None)] == pytest.approx([1, 2 / 3, 1 / 3, 0])


def test_the_bootstrap_is_poisson_by_prompt_and_does_not_depend_on_the_order() -> None:
    groups = [f"prompt-{n // 2}" for n in range(4000)]
    counts = bootstrap_counts(groups, members=3, seed=5)
    assert counts.shape == (4000, 3)
    assert (counts[0::2] == counts[1::2]).all()  # pairs of one prompt stand and fall together
    assert counts[0::2].mean(axis=0) == pytest.approx([1, 1, 1], abs=0.08)  # 3.5 standard errors of 2,000 draws
    assert counts[0::2].var(axis=0) == pytest.approx([1, 1, 1], abs=0.15)
    assert (counts == 0).mean() == pytest.approx(math.exp(-1), abs=0.02)
    assert np.array_equal(bootstrap_counts(groups[::-1], 3, 5), counts[::-1])
    assert not np.array_equal(bootstrap_counts(groups, 3, 6), counts)
    assert np.array_equal(bootstrap_counts(groups[:3], 1, 5), np.ones((3, 1)))


def test_the_bootstrap_of_a_prompt_is_drawn_from_the_seed_and_the_prompt() -> None:
    """The same on every machine and in every later version: a seeded ensemble can be trained again."""
    number = int(hashlib.sha256(b"prompt-a").hexdigest()[:16], 16)
    expected = np.random.default_rng([7, number]).poisson(1.0, 4)
    assert bootstrap_counts(["prompt-a"], 4, 7).tolist() == [expected.tolist()]


def test_weights_of_mean_one_leave_equal_weights_alone() -> None:
    assert mean_one(np.full((5, 2), 0.25)).tolist() == np.ones((5, 2)).tolist()
    scaled = mean_one(np.array([[1.0, 0.0], [3.0, 0.0]]))
    assert scaled.tolist() == [[0.5, 0.0], [1.5, 0.0]]
    assert mean_one(np.array([[0.5e308], [1.5e308]])).tolist() == [[0.5], [1.5]]  # whose sum is infinite


def test_a_weighted_loss_is_the_loss_of_repeated_rows() -> None:
    """Weight 2 is the same as standing in the data twice."""
    difference = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
    weights = torch.tensor(mean_one(np.array([[1.0], [2.0], [1.0]])))
    zeros, ones = torch.zeros(3), torch.ones(3)
    weighted = (weights * preference_loss(difference[:, None], column(0, 0, 0), zeros, ones)).mean()
    repeated = -F.logsigmoid(torch.tensor([0.3, -0.7, -0.7, 1.1], dtype=torch.float64)).mean()
    assert weighted.item() == pytest.approx(repeated.item())


# --- what a preference's columns say


@dataclass(frozen=True)
class Settings:
    strength_as: Literal["margin", "weight", "nothing"] = "nothing"
    margin_scale: float = 0.6
    soft_labels: bool = False
    use_weights: bool = False


def preference(**columns: Any) -> Preference:
    sides = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    return Preference.model_validate({"prompt": [{"role": "user", "content": "which?"}], **sides, **columns})


PLAIN = Label(margin=0.0, target=1.0, weight=1.0)


@pytest.mark.parametrize(
    ("columns", "settings", "expected"),
    [
        ({}, Settings(), PLAIN),
        ({"strength": 2, "margin": 0.5, "confidence": 0.9, "weight": 3.0}, Settings(), PLAIN),
        # margins: 0.6 times the column, or 0.6 · strength/3
        ({"strength": 2, "margin": 0.5}, Settings("margin"), Label(0.3, 1.0, 1.0)),
        ({"strength": 2}, Settings("margin"), Label(0.4, 1.0, 1.0)),
        ({"margin": 0.0, "strength": 2}, Settings("margin"), PLAIN),
        ({}, Settings("margin"), PLAIN),
        # strengths and weights multiply
        ({"strength": 2}, Settings("weight"), Label(0.0, 1.0, 2.0)),
        ({"strength": 2, "weight": 1.5}, Settings("weight", use_weights=True), Label(0.0, 1.0, 3.0)),
        ({"strength": 2, "weight": 1.5}, Settings(use_weights=True), Label(0.0, 1.0, 1.5)),
        ({"weight": 0.0}, Settings("weight", use_weights=True), Label(0.0, 1.0, 0.0)),
        ({}, Settings("weight"), PLAIN),
        # soft labels: the confidence, else (k + ½)/(n + 1) of the votes; never below ½
        ({"confidence": 0.9, "agreement": 0.6}, Settings(soft_labels=True), Label(0.0, 0.9, 1.0)),
        ({"confidence": 0.3}, Settings(soft_labels=True), Label(0.0, 0.5, 1.0)),
        ({"agreement": 2 / 3, "raters": ["a", "b", "c"]}, Settings(soft_labels=True), Label(0.0, 0.625, 1.0)),
        ({"agreement": 0.8}, Settings(soft_labels=True), Label(0.0, 0.8, 1.0)),
        ({}, Settings(soft_labels=True), PLAIN),
        # a kept tie is one whatever the settings, and counts once
        ({"strength": 0, "margin": 0.5, "confidence": 0.9}, Settings("margin"), Label(0.0, 0.5, 1.0)),
        ({"strength": 0, "confidence": 0.9}, Settings("weight", soft_labels=True), Label(0.0, 0.5, 1.0)),
        ({"strength": 0, "weight": 0.5}, Settings("weight", use_weights=True), Label(0.0, 0.5, 0.5)),
    ],
)
def test_labels_by_hand(columns: dict[str, Any], settings: Settings, expected: Label) -> None:
    label = label_of(preference(**columns), settings)
    assert [label.margin, label.target, label.weight] == pytest.approx(
        [expected.margin, expected.target, expected.weight]
    )


def test_only_strength_0_is_a_tie() -> None:
    assert [is_tie(preference(strength=s)) for s in (None, 0, 1, 3)] == [False, True, False, False]
    assert Label() == PLAIN


@pytest.mark.parametrize(
    ("columns", "settings", "expected"),
    [
        ([{}, {"margin": 0.5}], Settings(), "margin (strength_as: margin)"),
        ([{}, {"margin": 0.5}], Settings("weight"), "margin (strength_as: margin)"),
        ([{}, {"margin": 0.0}], Settings(), ""),
        ([{}, {"margin": 0.5, "strength": 2}], Settings("margin"), ""),
        ([{}, {"strength": 2}], Settings(), "strength (strength_as: margin, or weight)"),
        ([{}, {"strength": 2}], Settings("weight"), ""),
        ([{"strength": 0}], Settings(), ""),
        ([{}, {"confidence": 0.9}], Settings(), "confidence (soft_labels: true)"),
        ([{}, {"confidence": 0.9}], Settings(soft_labels=True), ""),
        ([{"confidence": 1.0}, {"confidence": 1.0, "strength": 0}], Settings(), ""),
        ([{"confidence": 0.5, "strength": 0}], Settings(), ""),  # a tie is one with or without soft labels
        ([{"weight": 2.0}, {"weight": 1.0}], Settings(), "weight (use_weights: true)"),
        ([{"weight": 2.0}, {"weight": 1.0}], Settings(use_weights=True), ""),
        ([{"weight": 2.0}, {"weight": 2.0}], Settings(), ""),  # equal weights say nothing
        ([], Settings(), ""),
    ],
)
def test_columns_that_the_settings_leave_unused(
    columns: list[dict[str, Any]], settings: Settings, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    preferences = [preference(**one) for one in columns]
    assert unused_columns(preferences, settings) == expected
    report_unused_columns(preferences, settings)
    report = [f"unused columns of the preferences: {expected}"] if expected else []
    assert [line for line in capsys.readouterr().err.splitlines() if "no effect" not in line] == report


@pytest.mark.parametrize(
    ("columns", "settings", "expected"),
    [
        ([{}, {}], Settings("margin"), ["strength_as: margin has no effect: no preference has a margin or a strength"]),
        ([{}, {"margin": 0.5}], Settings("margin"), []),
        ([{}, {"strength": 2}], Settings("margin"), []),
        ([{}, {"margin": 0.5}], Settings("weight"), ["strength_as: weight has no effect: no preference has a strength"]),
        ([{}, {"strength": 2.0}], Settings("weight"), []),
        ([{}, {}], Settings(soft_labels=True), ["soft_labels: true has no effect: no preference has a confidence or "
                                                "an agreement"]),
        ([{}, {"agreement": 0.7}], Settings(soft_labels=True), []),
        ([], Settings("margin", soft_labels=True), []),
    ],
)  # fmt: skip
def test_settings_without_the_columns_that_they_read_are_named(
    columns: list[dict[str, Any]], settings: Settings, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    report_unused_columns([preference(**one) for one in columns], settings)
    assert [line for line in capsys.readouterr().err.splitlines() if "no effect" in line] == expected
