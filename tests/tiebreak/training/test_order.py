"""The order of training rows: every row once, a prompt's side by side, the same for a seed and an epoch."""

from __future__ import annotations

from itertools import groupby
from types import SimpleNamespace
from typing import Any

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from tiebreak.training.prompt_order import PromptOrder, numbered
from tiebreak.training.trainer import StageTrainer

PROMPTS = ["tea", "soup", "tea", "rice", "soup", "tea"]


def test_every_row_comes_once_and_the_rows_of_a_prompt_side_by_side() -> None:
    orders = set()
    for seed in range(20):
        order = list(PromptOrder(numbered(PROMPTS), seed))
        assert sorted(order) == list(range(6))
        assert len(PromptOrder(numbered(PROMPTS), seed)) == 6
        assert len([prompt for prompt, _ in groupby(PROMPTS[row] for row in order)]) == 3
        orders.add(tuple(order))
    assert len({PROMPTS[order[0]] for order in orders}) == 3
    assert len({tuple(row for row in order if PROMPTS[row] == "tea") for order in orders}) > 3


def test_seed_and_epoch_decide_it() -> None:
    """A resumed run asks for the epoch it was in."""
    numbers = list(range(50))
    one, other = PromptOrder(numbers, 3), PromptOrder(numbers, 3)
    first, other_seed = list(one), list(PromptOrder(numbers, 4))
    one.set_epoch(1)
    second = list(one)
    other.set_epoch(1)
    assert list(one) == second == list(other)
    other.set_epoch(0)
    assert list(other) == first
    assert len({tuple(first), tuple(second), tuple(other_seed)}) == 3


class _Base:
    """transformers' sampler of rows of similar length, as a trainer makes it."""

    def __init__(self, batch: int, world: int) -> None:
        self.batch, self.args = batch, SimpleNamespace(world_size=world)

    def _get_train_sampler(self, rows: Any = None) -> LengthGroupedSampler:
        generator = torch.Generator().manual_seed(0)
        return LengthGroupedSampler(self.batch, lengths=[n % 7 + 1 for n in range(40)], generator=generator)


class _OnProcesses(StageTrainer, _Base):
    def __init__(self, batch: int, world: int) -> None:
        _Base.__init__(self, batch, world)


def test_two_processes_with_half_a_batch_see_the_order_of_one() -> None:
    one, two = _OnProcesses(8, 1).train_sampler(None), _OnProcesses(4, 2).train_sampler(None)
    assert list(two) == list(one)
    assert list(_OnProcesses(4, 1).train_sampler(None)) != list(one)  # transformers' own order depends on the batch
