"""One rollout: completions from the policy, their scores, and what the update needs to know of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from preference.ppo.backbone import Backbone
from preference.ppo.losses import (
    penalise_unfinished,
    per_token_kl,
    token_rewards,
)
from tiebreak.generation import Sampled
from tiebreak.logprobs import batches_by_length, pad_right


@dataclass(frozen=True)
class Episodes:
    """Completions with all that was computed about them. Tensors of shape (episodes, longest completion)."""

    prompts: list[list[int]]
    completions: list[list[int]]
    finished: Tensor
    """shape (episodes,)"""
    scores: Tensor
    """as the reward model gives them, before normalisation and penalties; shape (episodes,)"""
    logps: Tensor
    reference_logps: Tensor
    values: Tensor
    entropy: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Batch:
    """Episodes in the shape that the backbone takes."""

    input_ids: Tensor
    attention_mask: Tensor
    at: Tensor
    mask: Tensor


def to_batch(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> Batch:
    """Prompts and completions padded on the right, with the positions of the completion tokens."""
    ids, attention = pad_right([[*p, *c] for p, c in zip(prompts, completions, strict=True)], pad_id, device)
    lengths = torch.tensor([len(c) for c in completions], device=device)
    steps = torch.arange(int(lengths.max()), device=device)
    mask = steps < lengths[:, None]
    starts = torch.tensor([len(p) for p in prompts], device=device)
    at = (starts[:, None] + steps).clamp(max=ids.shape[1] - 1)
    return Batch(ids, attention, at, mask)


@torch.no_grad()
def assess(
    backbone: Backbone, prompts: Sequence[list[int]], sampled: Sequence[Sampled], batch_size: int, temperature: float
) -> Episodes:
    """Log-probabilities under policy and reference, values and scores of sampled completions."""
    device = backbone.value_head.weight.device
    completions = [one.ids for one in sampled]
    width = max(map(len, completions))
    shape = (len(prompts), width)
    logps, reference, values, entropy = (torch.zeros(shape, device=device) for _ in range(4))
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    scores = torch.zeros(len(prompts), device=device)
    for rows in batches_by_length([len(p) + len(c) for p, c in zip(prompts, completions, strict=True)], batch_size):
        batch = to_batch([prompts[r] for r in rows], [completions[r] for r in rows], backbone.pad_id, device)
        inside = slice(0, batch.mask.shape[1])
        arguments = (batch.input_ids, batch.attention_mask, batch.at, batch.mask, temperature)
        logps[rows, inside], values[rows, inside], entropy[rows, inside] = backbone(*arguments)
        reference[rows, inside] = backbone.reference_logps(*arguments)
        mask[rows, inside] = batch.mask
        scores[rows] = backbone.scores([[*prompts[r], *completions[r]] for r in rows])
    return Episodes(
        prompts=[list(p) for p in prompts],
        completions=completions,
        finished=torch.tensor([one.finished for one in sampled], device=device),
        scores=scores,
        logps=logps,
        reference_logps=reference,
        values=values,
        entropy=entropy,
        mask=mask,
    )


@dataclass(frozen=True)
class Rewards:
    """What each token earns, and the parts of it for the log."""

    tokens: Tensor
    """shape (episodes, tokens)"""
    kl: Tensor
    """shape (episodes, tokens)"""
    shaped_scores: Tensor
    """normalised, with penalties; shape (episodes,)"""


def to_rewards(
    episodes: Episodes,
    *,
    score_mean: float,
    score_std: float,
    missing_eos_penalty: float,
    kl_coef: float,
) -> Rewards:
    """Normalised scores with their penalties, less the KL to the reference; not whitened."""
    scores = (episodes.scores - score_mean) / max(score_std, 1e-6)
    scores = penalise_unfinished(scores, episodes.finished, missing_eos_penalty)
    kl = per_token_kl(episodes.logps, episodes.reference_logps) * episodes.mask
    return Rewards(token_rewards(scores, kl, episodes.mask, kl_coef), kl, scores)
