"""The order of training rows: random prompts, with the rows of one prompt side by side.

Raters pair the K answers to a prompt with each other. In one batch, each answer is computed once for all of its pairs
(tiebreak.packed.packing); and a single pass over individually shuffled pairs shows every answer to the model repeatedly,
which overfits (Ouyang et al. 2022, 3.5).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from tiebreak.upstream import SamplerHook

PROMPT_NUMBER = "prompt_number"
"""the column with the prompt's number"""


def numbered(prompts: Sequence[Hashable]) -> list[int]:
    """The same number for the same prompt."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(prompt, len(numbers)) for prompt in prompts]


class PromptOrder(Sampler[int]):
    """Row indices, in an order that depends only on the seed and the epoch."""

    def __init__(self, prompts: Sequence[int], seed: int) -> None:
        self.rows: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            self.rows.setdefault(prompt, []).append(row)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loaders."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        chance = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        own = list(self.rows.values())
        for prompt in torch.randperm(len(own), generator=chance).tolist():
            for row in torch.randperm(len(own[prompt]), generator=chance).tolist():
                yield own[prompt][row]

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))


class PromptByPrompt(SamplerHook):
    """Mixin for TRL's trainers. Rows without a number come in transformers' order."""

    def train_sampler(self, rows: Any) -> Any:
        if rows is None:
            rows = self.train_dataset
        if PROMPT_NUMBER not in (getattr(rows, "column_names", None) or ()):
            return super().train_sampler(rows)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return PromptOrder(rows[PROMPT_NUMBER], seed)
