"""Sequences laid out for a forward pass: nothing padded, and what several begin with computed once.

All prompts of a chat model begin with its system prompt, and several completions of one prompt with that prompt. Sorted,
sequences that begin alike are neighbours, so each one needs new tokens only past what it shares with the one before it:

    row 0   <system> <user> A <assistant> x y            ┐
    row 1   <system> <user> A <assistant> z              │  <system> <user> A <assistant> x y | z | B <assistant> x
    row 2   <system> <user> B <assistant> x              ┘

A token attends to the tokens of its own sequence alone, at the positions they have there, so hidden states are those of
the plain forward to rounding. (Shared-prefix training: arXiv 2410.20305.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tiebreak.logprobs import pad_right
from tiebreak.pairwise import why_not

ATTENTION = "tiebreak_packed"
"""the name under which transformers knows our attention"""


@dataclass(frozen=True)
class Span:
    """The tokens that one sequence adds: `start` to `stop` of the row."""

    start: int
    stop: int
    attends: Tensor
    """places of the whole sequence in the row, shape (length,); its last `stop − start` are the span itself"""
    mask: Tensor | None
    """which of `attends` each of the span's tokens sees, shape (stop − start, length); None: all up to itself"""


@dataclass(frozen=True)
class Layout:
    """Sequences in the shape that a language model takes."""

    input_ids: Tensor
    """shape (rows, width); one row where packed"""
    position_ids: Tensor
    attention_mask: Tensor
    """shape (rows, width) where padded; where packed a single element that says nothing, as `spans` says it"""
    spans: tuple[Span, ...] | None
    places: tuple[Tensor, ...]
    """where the tokens of each sequence stand in `input_ids`, flattened"""

    def hidden_states(self, model: nn.Module) -> Tensor:
        """The model's last hidden states, flattened to (rows × width, hidden)."""
        packed = {"packed_spans": self.spans} if self.spans is not None else {}
        hidden: Tensor = model(
            input_ids=self.input_ids,
            attention_mask=self.attention_mask,
            position_ids=self.position_ids,
            use_cache=False,
            **packed,
        ).last_hidden_state
        return hidden.flatten(0, 1)


def pad(sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> Layout:
    """A row each, padded on the right: for models that cannot take `pack`."""
    ids, mask = pad_right(sequences, pad_id, device)
    steps = torch.arange(ids.shape[1], device=device)
    places = tuple(row * ids.shape[1] + steps[: len(sequence)] for row, sequence in enumerate(sequences))
    return Layout(ids, steps.expand(ids.shape), mask, None, places)


def pack(sequences: Sequence[Sequence[int]], device: torch.device) -> Layout:
    """All of them in one row, every shared beginning once."""
    ids: list[int] = []
    positions: list[int] = []
    places: list[Tensor] = [torch.empty(0)] * len(sequences)
    spans: list[Span] = []
    before: Sequence[int] = ()
    path = torch.empty(0, dtype=torch.long)
    for row in sorted(range(len(sequences)), key=lambda r: tuple(sequences[r])):
        sequence = sequences[row]
        shared = _shared_length(before, sequence)
        start, stop = len(ids), len(ids) + len(sequence) - shared
        path = torch.cat([path[:shared], torch.arange(start, stop)])
        ids += sequence[shared:]
        positions += range(shared, len(sequence))
        places[row] = path.to(device)
        if stop > start:
            spans.append(Span(start, stop, places[row], _sees(shared, len(sequence), device)))
        before = sequence
    says_nothing = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)  # transformers makes no mask of four axes
    return Layout(
        torch.tensor([ids], device=device),
        torch.tensor([positions], device=device),
        says_nothing,
        tuple(spans),
        tuple(places),
    )


def _shared_length(one: Sequence[int], other: Sequence[int]) -> int:
    shared = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        shared += 1
    return shared


def _sees(shared: int, length: int, device: torch.device) -> Tensor | None:
    if not shared:
        return None
    return torch.ones(length - shared, length, dtype=torch.bool, device=device).tril(shared)


def batches_by_tokens(sequences: Sequence[Sequence[int]], budget: int) -> Iterator[list[int]]:
    """Row numbers in batches of at most `budget` tokens (or one sequence), those that begin alike together."""
    batch: list[int] = []
    tokens = 0
    for row in sorted(range(len(sequences)), key=lambda r: tuple(sequences[r])):
        if batch and tokens + len(sequences[row]) > budget:
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += len(sequences[row])
    if batch:
        yield batch


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_spans: Sequence[Span] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of each span to its own sequence; transformers' SDPA where nothing is packed.

    Args:
        query, key, value: shape (rows, heads, width, head size).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packed_spans is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return plain
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    for span in packed_spans:
        own = slice(span.start, span.stop)
        seen = (own,) if span.mask is None else (span.attends,)
        outputs.append(
            nn.functional.scaled_dot_product_attention(
                query[:, :, own],
                key[:, :, seen[0]],
                value[:, :, seen[0]],
                attn_mask=span.mask,
                dropout_p=dropout,
                is_causal=span.mask is None,
                scale=scaling,
                enable_gqa=grouped,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def allow_packing(model: nn.Module) -> str:
    """Let a causal language model take packed layouts; returns why it cannot, or nothing.

    Architectures differ in what they pass on to attention, so it is tried on two sequences that share a beginning.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    reason = why_not(model)
    if reason:
        return reason
    if model.config._attn_implementation != "sdpa":
        return f"attention is {model.config._attn_implementation}"
    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)
    if _packs_exactly(model):
        return ""
    model.set_attn_implementation("sdpa")
    return "its attention does not learn which tokens belong together"


@torch.no_grad()
def _packs_exactly(model: nn.Module) -> bool:
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    sequences = [[5, 6, 7, 2, 3, 4], [5, 6, 7, 1, 2], [3, 6, 5]]
    packed, padded = pack(sequences, device), pad(sequences, 0, device)
    try:
        one = packed.hidden_states(model.base_model)[torch.cat(packed.places)]
    except (TypeError, RuntimeError, ValueError):
        one = None
    other = padded.hidden_states(model.base_model)[torch.cat(padded.places)]
    model.train(training)
    allowed = 1e-3 if other.dtype == torch.float32 else 0.05
    return one is not None and float((one - other).abs().max()) <= allowed * float(other.abs().max())
