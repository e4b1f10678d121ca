"""Layout of sequences for a pass: packed, or padded for models that do not support packing.

Packed (tiebreak.packed.packing), nothing is padded, and the common beginning of prompts is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tiebreak.packed.forward import hidden_states
from tiebreak.packed.logprobs import pad_right
from tiebreak.packed.packing import PackedRow, pack_sequences
from tiebreak.packed.parts import layers_of


@dataclass(frozen=True)
class Layout:
    """Sequences in the shape that a language model takes."""

    row: PackedRow | None
    padded: tuple[Tensor, Tensor] | None
    """(token ids, attention mask), if there is no packed row"""
    places: tuple[Tensor, ...]
    """positions of each sequence's tokens in `hidden_states`"""

    def hidden_states(self, model: nn.Module) -> Tensor:
        """The last hidden states of a causal language model, shape (tokens of the layout, hidden)."""
        if self.row is not None:
            return hidden_states(model, self.row)
        ids, mask = self.padded or (None, None)
        hidden: Tensor = layers_of(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return hidden.flatten(0, 1)


def pack(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> Layout:
    """All in one row, completions of one prompt after it, and the prompts' common beginning once."""
    sequences = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
    packing = pack_sequences(sequences, device=device)
    places = []
    for number, sequence in enumerate(sequences):
        steps = torch.arange(len(sequence), device=device)
        places.append(packing.place(torch.full_like(steps, number), steps))
    return Layout(packing.rows[0], None, tuple(places))


def pad(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    pad_id: int,
    device: torch.device | str = "cpu",
) -> Layout:
    """One row each, right-padded."""
    ids, mask = pad_right([[*p, *c] for p, c in zip(prompts, completions, strict=True)], pad_id, device)
    steps = torch.arange(ids.shape[1], device=device)
    places = tuple(row * ids.shape[1] + steps[:length] for row, length in enumerate(mask.sum(1).tolist()))
    return Layout(None, (ids, mask), places)


def batches_by_tokens(sequences: Sequence[Sequence[int]], budget: int) -> Iterator[list[int]]:
    """Row indices in batches of at most `budget` tokens (or one sequence), similar beginnings together."""
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
