"""From scores and log-probabilities to rewards per token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def per_token_kl(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """log π − log π_ref at each sampled token (k1): its mean is KL(policy ‖ reference), and as a reward it has the right
    gradient.

    Used in the reward. The less noisy estimate, `per_token_kl_k3`, must not be used there.
    """
    return logps - reference_logps


def per_token_kl_k3(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """exp(−d) − 1 + d with d = log π − log π_ref (k3, Schulman 2020): never negative, same mean as k1, less noisy.

    For monitoring the divergence, controlling kl_coef and early stops. Not for the reward: there it has another gradient,
    which vanishes at the reference and leads away from it, so that the policy collapses whatever kl_coef is.
    """
    difference = logps - reference_logps
    return torch.expm1(-difference) + difference


def shape_scores(
    scores: Tensor,
    finished: Tensor,
    lengths: Tensor,
    *,
    weights: Sequence[float],
    scales: Sequence[tuple[float, float]],
    missing_eos_penalty: float,
    length_penalty: float,
) -> Tensor:
    """Each reward's scores normalised, weighted and summed, minus the penalties. Shape (episodes,).

    Args:
        scores: shape (rewards, episodes).
        finished: which completions have an end-of-sequence token, shape (episodes,).
        lengths: tokens of each completion, shape (episodes,).
        scales: (mean, standard deviation) of each reward.
        missing_eos_penalty: for a completion that was cut off (Huang et al. 2024, 4.1).
        length_penalty: for each token.
    """
    total = torch.zeros_like(scores[0])
    for row, weight, (mean, deviation) in zip(scores, weights, scales, strict=True):
        total = total + weight * (row - mean) / deviation
    return total - missing_eos_penalty * (~finished).to(total.dtype) - length_penalty * lengths.to(total.dtype)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """r_t = −kl_coef·KL_t, and the score at the last token (Ziegler et al. 2019, Eq. 2). `scores` has shape (episodes,)."""
    rewards = -kl_coef * kl * mask
    last = mask.sum(-1).long() - 1
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards
