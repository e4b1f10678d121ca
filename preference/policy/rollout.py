"""One rollout: completions from the policy, their scores, and the inputs of the update."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from preference.policy.backbone import Backbone, Batch
from preference.policy.layout import batches_by_tokens
from preference.policy.rewards import TOKENS_AT_ONCE, Reward, score_all
from preference.policy.token_rewards import per_token_kl, per_token_kl_k3, shape_scores, token_rewards
from tiebreak.config import SamplingConfig
from tiebreak.errors import HandoffError
from tiebreak.packed.generation import SampledCompletion, sample_completions

MOST_TEXTLESS = 0.1
"""share of a completion's probability that ids without text may have"""


class Draw(Protocol):
    """Samples one completion for each prompt from the current policy."""

    def __call__(
        self,
        backbone: Backbone,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        sampling: SamplingConfig,
        *,
        stop_ids: Collection[int],
    ) -> list[SampledCompletion]:
        """In the prompts' order, with a seed each, for samplers that use it."""


def draw_seeded(
    backbone: Backbone,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    *,
    stop_ids: Collection[int],
) -> list[SampledCompletion]:
    """Our own sampler: `Draw`, unless the configuration names another."""
    with backbone.acting():
        sampled: list[SampledCompletion] = sample_completions(
            backbone.lm,
            prompts,
            seeds,
            sampling,
            stop_ids=stop_ids,
            pad_id=backbone.pad_id,
            batch_size=max(len(prompts), 1),
            textless_ids=backbone.textless_ids,
        )
    _require_text(sampled, len(backbone.textless_ids))
    return sampled


def _require_text(sampled: Sequence[SampledCompletion], count: int) -> None:
    """Refuse a policy that gives much probability to ids without text, which are never drawn: if their share is s, the
    log-probability of every drawn token is too small by −log(1 − s).

    Raises:
        HandoffError: the share is too large to be neglected.
    """
    share = max((one.textless_share for one in sampled), default=0.0)
    if share > MOST_TEXTLESS:
        raise HandoffError(
            f"{count} of the model's ids have no token in its tokenizer and up to {share:.0%} of a completion's "
            "probability, so completions are not drawn from the distribution that is trained: cut its embeddings to the "
            "tokenizer's tokens (transformers' resize_token_embeddings)"
        )


@dataclass(frozen=True)
class Episodes:
    """Completions with everything computed about them. Tensors of shape (episodes, longest completion)."""

    prompts: list[list[int]]
    completions: list[list[int]]
    finished: Tensor
    """shape (episodes,)"""
    scores: Tensor
    """raw rewards, before normalisation, weights and penalties; shape (rewards, episodes)"""
    logps: Tensor
    sampler_logps: Tensor
    """the sampler's log-probabilities"""
    reference_logps: Tensor
    values: Tensor
    entropy: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each completion, shape (episodes,)."""
        return self.mask.sum(-1)

    @property
    def kl(self) -> Tensor:
        """log π − log π_ref per token (k1), 0 where masked: used in the reward."""
        return per_token_kl(self.logps, self.reference_logps) * self.mask

    @property
    def kl_k3(self) -> Tensor:
        """The same divergence by a less noisy estimate, for monitoring only."""
        return per_token_kl_k3(self.logps, self.reference_logps) * self.mask


@torch.no_grad()
def roll_out(
    backbone: Backbone,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    rewards: Sequence[Reward],
    *,
    stop_ids: Collection[int],
    draw: Draw = draw_seeded,
) -> Episodes:
    """Sample a completion for each prompt, and compute everything requested about it."""
    sampled = draw(backbone, prompts, seeds, sampling, stop_ids=stop_ids)
    completions = [one.ids for one in sampled]
    sampler_logps, mask = table_of_logps(sampled, backbone.device)
    batches = list(_batches(backbone, prompts, completions))
    logps, reference, values, entropy = (torch.zeros(mask.shape, device=backbone.device) for _ in range(4))
    with backbone.acting():
        for rows, batch in batches:
            inside = slice(0, batch.mask.shape[1])
            logps[rows, inside], values[rows, inside], entropy[rows, inside] = backbone(batch, sampling.temperature)
    with backbone.acting(backbone.reference):
        for rows, batch in batches:
            reference[rows, : batch.mask.shape[1]] = backbone.logps(batch, sampling.temperature)
    return Episodes(
        prompts=[list(p) for p in prompts],
        completions=completions,
        finished=torch.tensor([one.finished for one in sampled], device=backbone.device),
        scores=score_all(rewards, prompts, completions).to(backbone.device),
        logps=logps,
        sampler_logps=sampler_logps,
        reference_logps=reference,
        values=values,
        entropy=entropy,
        mask=mask,
    )


def table_of_logps(sampled: Sequence[SampledCompletion], device: torch.device) -> tuple[Tensor, Tensor]:
    """(the sampler's log-probabilities, mask of completion tokens), of shape (completions, tokens)."""
    lengths = torch.tensor([len(one.ids) for one in sampled], device=device)
    mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]
    flat = torch.tensor([logp for one in sampled for logp in one.logps], device=device)
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat), mask


@torch.no_grad()
def policy_logps(
    backbone: Backbone, prompts: Sequence[list[int]], completions: Sequence[list[int]], temperature: float
) -> Tensor:
    """Log-probabilities of completions by the policy's own pass, shape (completions, tokens), 0 where masked."""
    logps = torch.zeros(len(completions), max(map(len, completions)), device=backbone.device)
    with backbone.acting():
        for rows, batch in _batches(backbone, prompts, completions):
            logps[rows, : batch.mask.shape[1]] = backbone.logps(batch, temperature)
    return logps


def _batches(
    backbone: Backbone, prompts: Sequence[list[int]], completions: Sequence[list[int]]
) -> Iterator[tuple[list[int], Batch]]:
    """(indices of completions, their layout), one pass at a time."""
    sequences = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
    for rows in batches_by_tokens(sequences, TOKENS_AT_ONCE):
        yield rows, backbone.to_batch([prompts[r] for r in rows], [completions[r] for r in rows])


@dataclass(frozen=True)
class Shaping:
    """How scores become rewards."""

    weights: tuple[float, ...]
    scales: tuple[tuple[float, float], ...]
    """(mean, standard deviation) that normalises each reward's scores; (0, 1) does nothing"""
    missing_eos_penalty: float
    length_penalty: float
    kl_coef: float


@dataclass(frozen=True)
class TokenRewards:
    """Each token's reward, and its parts for the log."""

    tokens: Tensor
    """shape (episodes, tokens)"""
    shaped_scores: Tensor
    """normalised, weighted, summed, with penalties; shape (episodes,)"""


def to_rewards(episodes: Episodes, shaping: Shaping) -> TokenRewards:
    """The score minus the KL to the reference; not whitened."""
    scores = shape_scores(
        episodes.scores,
        episodes.finished,
        episodes.lengths,
        weights=shaping.weights,
        scales=shaping.scales,
        missing_eos_penalty=shaping.missing_eos_penalty,
        length_penalty=shaping.length_penalty,
    )
    return TokenRewards(token_rewards(scores, episodes.kl, episodes.mask, shaping.kl_coef), scores)
