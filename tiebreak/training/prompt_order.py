"""The order of training rows: prompts at random, and the rows of one prompt side by side.

Raters pair the K answers to a prompt with one another. In one batch, each of those answers is computed once for all the
pairs it stands in (tiebreak.packed.packing); and a single pass over pairs that are shuffled one by one shows every
answer to the model again and again, which overfits (Ouyang et al. 2022, 3.5).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from tiebreak.upstream import SamplerHook

PROMPT_NUMBER = "prompt_number"
"""the column that says which rows have one prompt"""


def numbered(prompts: Sequence[Hashable]) -> list[int]:
    """The same number for what is the same prompt."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(prompt, len(numbers)) for prompt in prompts]


class PromptOrder(Sampler[int]):
    """Row numbers, in an order that the seed and the epoch alone decide."""

    def __init__(self, prompts: Sequence[int], seed: int) -> None:
        self.rows: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            self.rows.setdefault(prompt, []).append(row)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """As accelerate's data loaders call it."""
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
    """Goes before one of TRL's trainers. Rows without a number come in transformers' order."""

    def train_sampler(self, rows: Any) -> Any:
        if rows is None:
            rows = self.train_dataset
        if PROMPT_NUMBER not in (getattr(rows, "column_names", None) or ()):
            return super().train_sampler(rows)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return PromptOrder(rows[PROMPT_NUMBER], seed)
