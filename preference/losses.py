"""DPO's losses per pair, for weighted, uncertain, or margin-labelled rows.

TRL's trainer averages over pairs internally, so weighting happens here. Without such labels, every function equals TRL's
own loss (trl/trainer/dpo_trainer.py); all tensors have shape (pairs,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

DISCOPOP_TAU = 0.05
"""Lu et al. 2024, and TRL's default"""


@dataclass(frozen=True)
class Pairs:
    """Inputs of a loss."""

    chosen: Tensor
    """log π − log π_ref of each chosen answer"""
    rejected: Tensor
    chosen_tokens: Tensor
    """trained tokens of each answer"""
    rejected_tokens: Tensor
    margin: Tensor
    beta: float
    smoothing: float = 0.0

    @property
    def difference(self) -> Tensor:
        """Difference of the log-ratios."""
        return self.chosen - self.rejected

    @property
    def difference_per_token(self) -> Tensor:
        """Difference of the log-ratios, each divided by its length."""
        return self.chosen / self.chosen_tokens.clamp(min=1) - self.rejected / self.rejected_tokens.clamp(min=1)

    def flipped(self) -> Pairs:
        """The pairs with the sides swapped."""
        return replace(
            self,
            chosen=self.rejected,
            rejected=self.chosen,
            chosen_tokens=self.rejected_tokens,
            rejected_tokens=self.chosen_tokens,
            margin=-self.margin,
        )


PairLoss = Callable[[Pairs], Tensor]


def sigmoid(pairs: Pairs) -> Tensor:
    """−log σ(β·Δ − margin). Rafailov et al. 2023, Eq. 7; the margin as in Amini et al. 2024 (DPO with an offset)."""
    return -logsigmoid(pairs.beta * pairs.difference - pairs.margin)


def sigmoid_norm(pairs: Pairs) -> Tensor:
    """The same, with log-ratios per token."""
    return -logsigmoid(pairs.beta * pairs.difference_per_token - pairs.margin)


def hinge(pairs: Pairs) -> Tensor:
    """max(0, 1 − β·Δ). Zhao et al. 2023."""
    return torch.relu(1 - pairs.beta * pairs.difference)


def ipo(pairs: Pairs) -> Tensor:
    """(Δ − 1/(2β))², with log-ratios per token. Azar et al. 2023, Eq. 17."""
    return (pairs.difference_per_token - 1 / (2 * pairs.beta)) ** 2


def exo_pair(pairs: Pairs) -> Tensor:
    """KL of σ(β·Δ) from the smoothed label. Ji et al. 2024, Eq. 16."""
    z = pairs.beta * pairs.difference
    log_p, log_q = torch.log1p(z.new_tensor(-pairs.smoothing)), torch.log(z.new_tensor(pairs.smoothing))
    return z.sigmoid() * (logsigmoid(z) - log_p) + (-z).sigmoid() * (logsigmoid(-z) - log_q)


def nca_pair(pairs: Pairs) -> Tensor:
    """Chen et al. 2024, for two answers."""
    chosen, rejected = pairs.beta * pairs.chosen, pairs.beta * pairs.rejected
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def robust(pairs: Pairs) -> Tensor:
    """Unbiased if a share of labels is wrong. Chowdhury et al. 2024, Eq. 8."""
    z = pairs.beta * pairs.difference
    return (-(1 - pairs.smoothing) * logsigmoid(z) + pairs.smoothing * logsigmoid(-z)) / (1 - 2 * pairs.smoothing)


def bco_pair(pairs: Pairs) -> Tensor:
    """−log σ(β·chosen) − log σ(−β·rejected). Jung et al. 2024, without their shift."""
    return -logsigmoid(pairs.beta * pairs.chosen) - logsigmoid(-pairs.beta * pairs.rejected)


def sppo_hard(pairs: Pairs) -> Tensor:
    """(chosen − 1/(2β))² + (rejected + 1/(2β))². Wu et al. 2024, Eq. 4.7 with certain wins."""
    return (pairs.chosen - 0.5 / pairs.beta) ** 2 + (pairs.rejected + 0.5 / pairs.beta) ** 2


def apo_zero(pairs: Pairs) -> Tensor:
    """1 − σ(β·chosen) + σ(β·rejected). D'Oosterlinck et al. 2024, Eq. 7."""
    return 1 - (pairs.beta * pairs.chosen).sigmoid() + (pairs.beta * pairs.rejected).sigmoid()


def apo_down(pairs: Pairs) -> Tensor:
    """σ(β·chosen) + 1 − σ(β·Δ). D'Oosterlinck et al. 2024, Eq. 8."""
    return (pairs.beta * pairs.chosen).sigmoid() + 1 - (pairs.beta * pairs.difference).sigmoid()


def discopop(pairs: Pairs) -> Tensor:
    """A blend of the logistic and the exponential loss. Lu et al. 2024, Eq. 5."""
    z = pairs.beta * pairs.difference
    share = (z / DISCOPOP_TAU).sigmoid()
    return -logsigmoid(z) * (1 - share) + torch.exp(-z) * share


PAIR_LOSSES: Mapping[str, PairLoss] = {
    loss.__name__: loss
    for loss in (
        sigmoid,
        hinge,
        ipo,
        exo_pair,
        nca_pair,
        robust,
        bco_pair,
        sppo_hard,
        apo_zero,
        apo_down,
        discopop,
        sigmoid_norm,
    )
}


def labelled_loss(names: Sequence[str], pairs: Pairs, target: Tensor, weight: Tensor) -> Tensor:
    """Mean of weight · (p·loss + (1 − p)·loss of the swapped pair), summed over the named losses.

    The expected loss if the label is right with probability p (for `sigmoid`, cDPO: Mitchell 2023).

    Args:
        target: p of each pair, shape (pairs,).
        weight: weight of each pair, shape (pairs,).
    """
    total = torch.zeros_like(weight)
    for name in names:
        loss = PAIR_LOSSES[name]
        total = total + target * loss(pairs)
        if bool((target < 1).any()):
            total = total + (1 - target) * loss(pairs.flipped())
    return (weight * total).mean()


@dataclass(frozen=True)
class Answers:
    """Inputs of KTO's loss; tensors of shape (answers,)."""

    ratio: Tensor
    """log π − log π_ref of each answer"""
    good: Tensor
    """whether it is desirable"""
    kl: Tensor
    """the reference point, shape (): the KL of policy and reference, at least 0"""
    beta: float
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0


def kto_loss(answers: Answers) -> Tensor:
    """Mean of λ_D·(1 − σ(β·(ratio − kl))) of desirable and λ_U·(1 − σ(β·(kl − ratio))) of undesirable answers.

    Ethayarajh et al. 2024, Eq. 7. At the start ratio and KL are 0 and σ(0) = ½, so it is (λ_D·n_D + λ_U·n_U)/(2n). Without
    the KL it is D'Oosterlinck et al.'s APO-zero (2024, Eq. 7) of single answers.
    """
    sign = answers.good.to(answers.ratio.dtype) * 2 - 1
    weight = torch.where(answers.good, answers.desirable_weight, answers.undesirable_weight)
    return (weight * (1 - (answers.beta * sign * (answers.ratio - answers.kl)).sigmoid())).mean()
