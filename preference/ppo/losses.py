"""PPO's mathematics. Tensors have shape (episodes, tokens) unless stated; `mask` is 1 on the policy's tokens.

Token t's value V_t is the critic's estimate before the token is written; its advantage is that of writing it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def next_kl_coef(kl_coef: float, kl: float, *, target: float, horizon: int, episodes: int) -> float:
    """The coefficient after `episodes` more, adjusted to move the KL towards its target (Ziegler et al. 2019, Eq. 4).

    e = clip(KL/target − 1, −0.2, 0.2), and β ← β·(1 + e·episodes/horizon).
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + error * episodes / horizon)


def generalised_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, Eq. 16): (advantages, returns).

    δ_t = r_t + γ·V_{t+1} − V_t and A_t = δ_t + γλ·A_{t+1}; past the last token both V and A are 0. Returns are A + V.
    Masked tokens must come after the others.
    """
    advantages = torch.zeros_like(rewards)
    following, carried = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        carried = (delta + gamma * lam * carried) * mask[:, t]
        following = values[:, t] * mask[:, t]
        advantages[:, t] = carried
    return advantages, (advantages + values) * mask


def whiten(values: Tensor, mask: Tensor, mean: Tensor, variance: Tensor, keep_mean: bool = False) -> Tensor:
    """(values − mean)/std over the masked-in tokens, plus the mean again if `keep_mean` (Huang et al. 2024, 4.8).

    The caller computes mean and variance over all processes.
    """
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened + mean if keep_mean else whitened) * mask


@dataclass(frozen=True)
class PolicyLoss:
    """A loss per token, and its logged figures; all of shape (episodes, tokens)."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor
    approximate_kl: Tensor


def policy_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, cliprange: float) -> PolicyLoss:
    """−min(ρ·A, clip(ρ, 1−ε, 1+ε)·A) with ρ = π/π_old (Schulman et al. 2017, Eq. 7), per token."""
    difference = logps - old_logps
    ratio = difference.exp()
    plain = -advantages * ratio
    limited = -advantages * ratio.clamp(1.0 - cliprange, 1.0 + cliprange)
    return PolicyLoss(
        loss=torch.maximum(plain, limited),
        ratio=ratio.detach(),
        clipped=(limited > plain).float().detach(),
        approximate_kl=(0.5 * difference**2).detach(),
    )


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, cliprange: float) -> tuple[Tensor, Tensor]:
    """½·max((V − R)², (clip(V, V_old ± ε) − R)²) per token, and where the clip is active (Huang et al. 2024, 4.6)."""
    limited = old_values + (values - old_values).clamp(-cliprange, cliprange)
    plain, clipped = (values - returns) ** 2, (limited - returns) ** 2
    return 0.5 * torch.maximum(plain, clipped), (clipped > plain).float().detach()
