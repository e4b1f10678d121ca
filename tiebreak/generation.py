"""Sampling: batched, seeded a row at a time, nothing computed on rows that are done.

Each row draws from a generator of its own, seeded by the caller, so a completion does not depend on which rows share
its batch (but for the last bits of a matrix product), and a sampling stage that was cut off goes on to the same end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tiebreak.config import SamplingConfig
from tiebreak.logprobs import selected_logps


@dataclass(frozen=True)
class Sampled:
    """One completion as token ids, its end-of-sequence token included if it came to one."""

    ids: list[int]
    finished: bool
    logps: list[float]
    """of each token under softmax(logits / temperature), before top_k and top_p cut it; temperature 1 where greedy"""


def row_seed(*parts: object) -> int:
    """A 63-bit seed from what identifies a row, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def sample_completions(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    *,
    eos_id: int,
    pad_id: int,
    batch_size: int,
    on_batch: Callable[[int], object] = lambda rows: None,
) -> list[Sampled]:
    """One completion for each prompt, in the prompts' order.

    Rows are batched by length, so that little is padded. `on_batch` hears how many rows each batch finished.
    """
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    results: list[Sampled | None] = [None] * len(prompts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = _sample_batch(model, [prompts[r] for r in rows], [seeds[r] for r in rows], sampling, eos_id, pad_id)
        for row, sampled in zip(rows, batch, strict=True):
            results[row] = sampled
        on_batch(len(rows))
    return [sampled for sampled in results if sampled is not None]


@torch.no_grad()
def _sample_batch(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    eos_id: int,
    pad_id: int,
) -> list[Sampled]:
    from transformers import DynamicCache

    device = next(model.parameters()).device
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    uniforms = _uniforms(seeds, sampling.max_new_tokens).to(device)
    written: list[list[int]] = [[] for _ in prompts]
    logps: list[list[float]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # which prompt each row of the shrinking batch belongs to
    cache = DynamicCache()
    for step in range(sampling.max_new_tokens):
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        tokens = draw(logits, uniforms[rows, step], sampling)
        chosen = selected_logps(logits / (sampling.temperature or 1.0), tokens)
        for row, token, logp in zip(rows, tokens.tolist(), chosen.tolist(), strict=True):
            written[row].append(token)
            logps[row].append(logp)
        going = (tokens != eos_id).nonzero().flatten()
        if not len(going):
            break
        positions = positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        ids = tokens[:, None]
        if len(going) < len(rows):
            cache.batch_select_indices(going)
            ids, mask, positions = ids[going], mask[going], positions[going]
            rows = [rows[i] for i in going.tolist()]
    return [Sampled(ids, ids[-1] == eos_id, values) for ids, values in zip(written, logps, strict=True)]


def _uniforms(seeds: Sequence[int], steps: int) -> Tensor:
    """One uniform number a row and step, each row from its own generator. Shape (rows, steps)."""
    draws = torch.empty(len(seeds), steps, dtype=torch.float64)
    for row, seed in enumerate(seeds):
        draws[row].uniform_(generator=torch.Generator().manual_seed(seed))
    return draws


def draw(logits: Tensor, uniform: Tensor, sampling: SamplingConfig) -> Tensor:
    """Token ids, shape (rows,), by inverting each row's distribution function at its uniform number.

    Args:
        logits: shape (rows, vocabulary).
        uniform: shape (rows,), in [0, 1).
    """
    if sampling.temperature == 0.0:
        return logits.argmax(-1)
    logits = logits.float() / sampling.temperature
    if sampling.top_k or sampling.top_p < 1.0:
        kept = min(sampling.top_k or logits.shape[-1], logits.shape[-1])
        logits, tokens = logits.topk(kept, dim=-1)  # descending
        probabilities = logits.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
        return tokens.gather(-1, _invert(probabilities, uniform)[:, None]).squeeze(-1)
    return _invert(logits.softmax(-1), uniform)


def _invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    cumulative = probabilities.double().cumsum(-1)
    target = uniform.double() * cumulative[:, -1]
    picked = torch.searchsorted(cumulative, target[:, None], right=True).squeeze(-1)
    last = (probabilities > 0).long().cumsum(-1).argmax(-1)  # rounding must not pick past the last possible token
    return torch.minimum(picked, last)
