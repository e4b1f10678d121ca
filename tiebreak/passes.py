"""A training step in passes of at most so many tokens, each with its own backward, so that memory follows the pass.

The gradient of a mean over pairs is the sum of the passes' gradients, each weighted by its share of the pairs; so the
step is TRL's, and costs no operation more. (tiebreak.pairwise can cut a batch as well, for losses that tie the pairs of
a batch together; it has to compute every pass twice.)

Several processes meet within a pass: where weights are sharded at every layer, and wherever TRL gathers a metric. So
all of them take as many passes, of as many groups each, and exchange gradients after the last one alone where the
weights are whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tiebreak.packing import pack_padded
from tiebreak.pairwise import pack_forward

TOKENS_PER_PASS = 640
"""of a pass with its backward, on the CPU. In SFT, reward training and DPO of a 135M model, 1,024 made no difference to
time and took 19 to 26% more memory; 512 cost 2 to 6% of time. In PPO the rollout before has left the heap in pieces, and
a process that keeps what it frees grows by what does not fit: 4.0 GiB with a step of eight episodes at once, 3.0 so."""
TOKENS_PER_PASS_GPU = 2048
"""A GPU is idle between small products. Chosen for the activations of a 7B model beside its weights; not measured."""


def default_tokens_per_pass(device: torch.device) -> int:
    """What `training.tokens_per_pass: null` is there."""
    return TOKENS_PER_PASS if device.type == "cpu" else TOKENS_PER_PASS_GPU


class StepInPasses:
    """Goes before one of TRL's trainers, whose loss is a mean over the groups of a batch."""

    together = 2
    """rows of a batch that have the same prompt; see tiebreak.packing.pack_padded"""
    tokens_per_pass = TOKENS_PER_PASS
    _share = 1.0

    def compute_in_passes(self: Any, tokens: int | None, *, packed: bool) -> None:
        """Compute at most so many tokens at once; `packed`: without padding, where the model can."""
        self.tokens_per_pass = tokens or default_tokens_per_pass(self.args.device)
        if packed:
            pack_forward(self.model, together=self.together, tokens_per_pass=self.tokens_per_pass)

    def training_step(self: Any, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """transformers' step, once a pass; returns the loss of the whole batch."""
        parts = self._parts(inputs)
        if len(parts) == 1:
            return self._step(model, inputs, num_items_in_batch)
        weights = [self.weight(part) for part in parts]
        shares = [weight / max(sum(weights), 1) for weight in weights]
        logged = {key: len(values) for key, values in self._metrics["train"].items()}
        losses = []
        for number, (part, share) in enumerate(zip(parts, shares, strict=True), start=1):
            self._share = 1.0 if self.adds_up(num_items_in_batch) else share
            with nullcontext() if number == len(parts) else more_to_come(self.accelerator, model):
                losses.append(self._step(model, part, num_items_in_batch))
        self._share = 1.0
        if self.accelerator.num_processes > 1:  # TRL's metrics are of all processes
            weights = self.accelerator.reduce(torch.tensor(weights, device=self.args.device), reduction="sum").tolist()
            shares = [weight / max(sum(weights), 1) for weight in weights]
        self._join_metrics(logged, shares)
        return torch.stack(losses).sum()

    def _step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        return loss

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's, as the share of the batch that the pass is."""
        loss = super().compute_loss(*args, **kwargs)  # type: ignore[misc]
        return loss if self._share == 1.0 else loss * self._share

    def weight(self, inputs: dict[str, Any]) -> int:
        """What a pass counts in the mean that the loss is: its groups."""
        return len(inputs["input_ids"]) // self.together

    def adds_up(self, num_items_in_batch: Any) -> bool:
        """Whether the losses of passes are already parts of the batch's."""
        return False

    def is_mean_over_groups(self) -> bool:
        """Whether the loss can be cut, which a trainer must say of itself; if not, the batch is one pass here."""
        return False

    def _parts(self: Any, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The batch, cut between groups."""
        if not self.is_mean_over_groups():
            return [inputs]
        packing = pack_padded(inputs["input_ids"], inputs["attention_mask"], self.together, self.tokens_per_pass)
        count = len(inputs["input_ids"]) // self.together
        if self.accelerator.num_processes > 1:
            passes = self._cut_alike(inputs, count, len(packing.rows))
        else:
            rows = packing.row[:count].tolist()
            passes = [[group for group in range(count) if rows[group] == row] for row in sorted(set(rows))]
        return [take_groups(inputs, groups, self.together) for groups in passes]

    def _cut_alike(self: Any, inputs: dict[str, Any], count: int, fewest: int) -> list[list[int]]:
        """The numbers of the groups of each pass: as many passes, of as many groups each, on every process."""
        sequences = [
            row[mask].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
        ]
        order = sorted(range(count), key=lambda group: sequences[group])  # those of one prompt stand side by side

        def fits(groups: list[int]) -> bool:
            part = take_groups({name: inputs[name] for name in ("input_ids", "attention_mask")}, groups, self.together)
            return len(pack_padded(**part, together=self.together, tokens_per_row=self.tokens_per_pass).rows) == 1

        able = (number for number in range(fewest, count) if all(map(fits, cut_evenly(order, number))))
        wanted = torch.tensor([[count, next(able, count)]], device=self.args.device)
        counts, numbers = self.accelerator.gather(wanted).unbind(1)
        if len(counts.unique()) > 1:  # no pass could be like the others': the forward is cut instead
            return [order]
        return cut_evenly(order, int(numbers.max()))

    def _join_metrics(self: Any, logged: dict[str, int], shares: Sequence[float]) -> None:
        """One value a step where each pass left its own, as TRL averages over values."""
        for key, values in self._metrics["train"].items():
            new = values[logged.get(key, 0) :]
            if len(new) != len(shares):
                continue
            joined = sum(value * share for value, share in zip(new, shares, strict=True))
            if key.startswith(("min_", "max_")):
                joined = min(new) if key.startswith("min_") else max(new)
            values[logged.get(key, 0) :] = [joined]


@contextmanager
def more_to_come(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """A pass with its backward after which others of the same step follow: no exchange of whole gradients, no update."""
    state = accelerator.gradient_state
    synchronises = state.sync_gradients
    state._set_sync_gradients(False)  # DeepSpeed updates the weights in the backward pass that ends a step
    try:
        with model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext():
            yield
    finally:
        state._set_sync_gradients(synchronises)


def cut_evenly(order: Sequence[int], number: int) -> list[list[int]]:
    """So many parts, one after the other, of which none has two more than another."""
    size, longer = divmod(len(order), number)
    starts = [part * size + min(part, longer) for part in range(number + 1)]
    return [list(order[start:end]) for start, end in pairwise(starts)]


def take_groups(inputs: dict[str, Any], groups: Sequence[int], together: int) -> dict[str, Any]:
    """Some groups of a batch in TRL's order, of tensors with a row a sequence and of those with a row a group."""
    count = len(inputs["input_ids"]) // together
    rows = [group + count * k for k in range(together) for group in groups]
    return {
        key: value
        if not isinstance(value, Tensor) or not value.ndim
        else value[rows if len(value) == count * together else list(groups)]
        for key, value in inputs.items()
    }
