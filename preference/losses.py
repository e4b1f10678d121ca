"""Losses on preferences: DPO's per pair, for weighted, uncertain, or margin-labelled rows; and those of whole batches, of
labelled answers and without a reference, for the check of the first loss.

TRL's trainer averages over pairs internally, so weighting happens here. Without such labels, every function equals TRL's
own loss (trl/trainer/dpo_trainer.py); all tensors have shape (pairs,).
"""

from __future__ import annotations

import math
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


def labelled_loss(
    names: Sequence[str], pairs: Pairs, target: Tensor, weight: Tensor, loss_weights: Sequence[float] | None = None
) -> Tensor:
    """Mean of weight · (p·loss + (1 − p)·loss of the swapped pair), summed over the named losses.

    The expected loss if the label is right with probability p (for `sigmoid`, cDPO: Mitchell 2023).

    Args:
        target: p of each pair, shape (pairs,).
        weight: weight of each pair, shape (pairs,).
        loss_weights: of the losses; None: 1 each.
    """
    total = torch.zeros_like(weight)
    for name, factor in zip(names, loss_weights or [1.0] * len(names), strict=True):
        loss = PAIR_LOSSES[name]
        expected = target * loss(pairs)
        if bool((target < 1).any()):
            expected = expected + (1 - target) * loss(pairs.flipped())
        total = total + expected if factor == 1.0 else total + factor * expected
    return (weight * total).mean()


# --- losses of a whole batch


@dataclass(frozen=True)
class Batch:
    """Inputs of a loss that compares a batch as a whole; tensors of shape (pairs,)."""

    pairs: Pairs
    chosen: Tensor
    """log π of each chosen answer"""
    rejected: Tensor
    reference_chosen: Tensor
    """log π_ref"""
    reference_rejected: Tensor
    chosen_whole: Tensor
    """log π of each chosen answer, with all of its tokens whatever `ld_alpha`"""


BatchLoss = Callable[[Batch], Tensor]


def aot(batch: Batch) -> Tensor:
    """The logistic loss of sorted margins of the policy against sorted margins of the reference. Melnyk et al. 2024."""
    reference = batch.reference_chosen - batch.reference_rejected
    return _smoothed(batch.pairs, (batch.chosen - batch.rejected).sort().values - reference.sort().values)


def aot_unpaired(batch: Batch) -> Tensor:
    """The same of sorted log-ratios of chosen answers against those of rejected ones."""
    chosen, rejected = batch.chosen - batch.reference_chosen, batch.rejected - batch.reference_rejected
    return _smoothed(batch.pairs, chosen.sort().values - rejected.sort().values)


def _smoothed(pairs: Pairs, difference: Tensor) -> Tensor:
    z = pairs.beta * difference
    return (-logsigmoid(z) * (1 - pairs.smoothing) - logsigmoid(-z) * pairs.smoothing).mean()


def sft(batch: Batch) -> Tensor:
    """−log π per token of the chosen answers, over all tokens of the batch: the term of Wang et al. 2024 (MPO)."""
    return -batch.chosen_whole.sum() / batch.pairs.chosen_tokens.sum()


BATCH_LOSSES: Mapping[str, BatchLoss] = {loss.__name__: loss for loss in (aot, aot_unpaired, sft)}


def unlabelled_loss(names: Sequence[str], batch: Batch, loss_weights: Sequence[float]) -> Tensor:
    """TRL's loss of a batch whose rows count alike: the weighted sum of the named losses."""
    total = batch.chosen.new_zeros(())
    for name, factor in zip(names, loss_weights, strict=True):
        value = BATCH_LOSSES[name](batch) if name in BATCH_LOSSES else PAIR_LOSSES[name](batch.pairs).mean()
        total = total + factor * value
    return total


# --- what log-ratios are made of


def length_desensitised(logps: Tensor, mask: Tensor, alpha: float | None) -> Tensor:
    """log π of each answer; tokens beyond the shorter answer's length count α. Liu et al. 2024 (LD-DPO).

    Args:
        logps: of tokens, 0 elsewhere; the chosen answers, then the rejected ones; shape (2 · pairs, tokens).
        mask: 1 on trained tokens, of the same shape.
        alpha: None: all tokens count alike.

    Returns:
        Shape (2 · pairs,).
    """
    if alpha is None:
        return logps.sum(1)
    chosen, rejected = mask.sum(1).chunk(2)
    shared = torch.minimum(chosen, rejected).repeat(2)[:, None]
    return (logps * torch.where(mask.cumsum(1) <= shared, 1.0, alpha)).sum(1)


CLAMPED = {torch.float16: 11.0}
"""largest exponent of the α-divergence, as in TRL; 80 in other dtypes"""


def divergence_score(ratio: Tensor, kind: str, alpha: float = 0.5) -> Tensor:
    """f′(u) for u = π/π_ref, in place of log u: DPO under another divergence than the reverse KL. Wang et al. 2024 (f-DPO).

    Constants that cancel between chosen and rejected are left as TRL has them.

    Args:
        ratio: log u of each answer.
        kind: reverse_kl: log u; forward_kl: 1 − 1/u; js_divergence: log 2u/(1 + u); alpha_divergence:
            (u^(α − 1) − 1)/(α − 1).
    """
    if kind == "forward_kl":
        return 1 - torch.exp(-ratio)
    if kind == "js_divergence":
        return math.log(2) + logsigmoid(ratio)
    if kind == "alpha_divergence" and abs(alpha - 1) >= 1e-6:
        exponent = ((alpha - 1) * ratio).float().clamp(max=CLAMPED.get(ratio.dtype, 80.0))
        return (torch.exp(exponent) - 1).to(ratio.dtype) / (alpha - 1)
    return ratio


# --- without a reference


def orpo_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """−β·log σ(log odds(chosen) − log odds(rejected)), odds = p/(1 − p); to it is added the chosen ones' NLL. Hong et al.
    2024, Eqs. 6 and 7, where β is λ.

    Args:
        chosen, rejected: log p per token, shape (pairs,).
    """
    odds = [log_p - torch.log1p(-log_p.exp()) for log_p in (chosen.double(), rejected.double())]
    return -beta * logsigmoid(odds[0] - odds[1]).to(chosen.dtype)


def simpo_loss(chosen: Tensor, rejected: Tensor, beta: float, gamma: float, smoothing: float = 0.0) -> Tensor:
    """−log σ(β·(chosen − rejected) − γ). Meng et al. 2024, Eq. 6.

    Args:
        chosen, rejected: log p per token, shape (pairs,).
    """
    z = beta * (chosen - rejected) - gamma
    return -logsigmoid(z) * (1 - smoothing) - logsigmoid(-z) * smoothing


def cpo_loss(chosen: Tensor, rejected: Tensor, beta: float, kind: str, smoothing: float = 0.0) -> Tensor:
    """sigmoid: −log σ(β·(chosen − rejected)), Xu et al. 2024, Eq. 3. hinge: max(0, 1 − β·(chosen − rejected)). ipo:
    (chosen − rejected − 1/(2β))².

    Args:
        chosen, rejected: log p, for `ipo` per token; shape (pairs,).
    """
    difference = chosen - rejected
    if kind == "hinge":
        return torch.relu(1 - beta * difference)
    if kind == "ipo":
        return (difference - 1 / (2 * beta)) ** 2
    return simpo_loss(chosen, rejected, beta, 0.0, smoothing)


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
