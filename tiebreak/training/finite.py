"""A loss that is not a finite number stops every process before the optimizer's step, and its rows are named.

One such step makes every later weight NaN. The losses of a step are looked at once, before its gradient is applied.
DeepSpeed applies it earlier: there the weights in memory are lost, and not saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

ROWS_NAMED = 16
WORDS_SHOWN = 60
"""characters of a row's beginning"""


class NotFiniteLossError(Exception):
    """The loss of a step is NaN or infinite."""

    def __init__(self, step: int, sequences: Sequence[Sequence[int]]) -> None:
        self.step = step
        self.sequences = [list(ids) for ids in sequences]
        """token ids of the rows whose loss it is, or of those computed with them"""
        super().__init__(f"the loss of step {step} is not a finite number")


class StepLosses:
    """The losses of one optimizer step, each with its batch."""

    def __init__(self) -> None:
        self._losses: list[tuple[Tensor, Any, int]] = []

    def add(self, loss: Tensor, batch: Any, together: int = 1) -> None:
        """A loss of shape (), of a batch whose rows are all first answers to the prompts, then all second ones, …

        Args:
            together: how many answers.
        """
        self._losses.append((loss.detach(), batch, together))

    def require_finite(self, step: int, processes: int) -> None:
        """Refuse the step, on every process, if one of them has a loss that is not finite. The next step starts anew.

        Raises:
            NotFiniteLossError: one has.
        """
        losses, self._losses = self._losses, []
        if not losses:
            return
        finite = torch.stack([loss.float() for loss, *_ in losses]).isfinite()
        everywhere = finite.all()
        if processes > 1:
            torch.distributed.all_reduce(everywhere := everywhere.int(), torch.distributed.ReduceOp.MIN)
        if bool(everywhere):
            return
        mine: list[list[int]] = []
        for (_, batch, together), fine in zip(losses, finite.tolist(), strict=True):
            rows = [] if fine else rows_in(batch)
            mine += rows[: len(rows) // together]
        raise NotFiniteLossError(step, gather_object(mine) if processes > 1 else mine)


def rows_in(batch: Any) -> list[list[int]]:
    """Token ids of each row of a batch, without padding; of a rollout, those of the prompts."""
    if not isinstance(batch, Mapping):
        return []
    if "micro_batch" in batch:
        return [list(ids) for ids in batch["micro_batch"].prompts]
    for name, mask in (("prompt_ids", "prompt_mask"), ("input_ids", "attention_mask")):
        if isinstance(batch.get(name), Tensor) and isinstance(batch.get(mask), Tensor):
            return [ids[kept].tolist() for ids, kept in zip(batch[name], batch[mask].bool(), strict=True)]
    return []


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of tokens that both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def name_rows(sequences: Sequence[Sequence[int]], trained_on: Sequence[Sequence[int]], tokenizer: Any) -> list[str]:
    """The rows that sequences belong to, by number and first words; by their words alone if none is found.

    Args:
        trained_on: token ids of the rows trained on, in the order of the data.
    """
    numbers = {tuple(ids): number for number, ids in enumerate(trained_on, start=1)}
    ordered = sorted(list(ids) for ids in trained_on)
    alike = common_length(ordered[0], ordered[-1])  # a template's head: a system message

    def words(ids: Sequence[int]) -> str:
        text = " ".join(tokenizer.decode(list(ids)[alike:] or list(ids), skip_special_tokens=True).split())
        return f"“{text[:WORDS_SHOWN]}…”" if len(text) > WORDS_SHOWN else f"“{text}”"

    found = {number: ids for ids in sequences if (number := numbers.get(tuple(ids)))}
    named = [f"row {number} of {len(trained_on)}, {words(found[number])}" for number in sorted(found)]
    named = named or list(dict.fromkeys(words(ids) for ids in sequences))
    more = len(named) - ROWS_NAMED
    return [*named[:ROWS_NAMED], *([f"and {more} more"] if more > 0 else [])]
