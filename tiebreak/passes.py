"""A training step in passes of at most so many tokens, each with its own backward, so that memory follows the pass.

The gradient of a mean over pairs is the sum of the passes' gradients, each weighted by its share of the pairs; so the
step is TRL's, and costs no operation more. (tiebreak.pairwise can cut a batch as well, for losses that tie the pairs of
a batch together and for several processes; it has to compute every pass twice.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor

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
        for part, share in zip(parts, shares, strict=True):
            self._share = 1.0 if self.adds_up(num_items_in_batch) else share
            losses.append(self._step(model, part, num_items_in_batch))
        self._share = 1.0
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
        """Whether the loss can be cut; if not, the batch is one pass here."""
        return True

    def _parts(self: Any, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The batch, cut between groups. Several processes would wait for one another at every pass: one pass there."""
        if self.accelerator.distributed_type != DistributedType.NO or not self.is_mean_over_groups():
            return [inputs]
        packing = pack_padded(inputs["input_ids"], inputs["attention_mask"], self.together, self.tokens_per_pass)
        count = len(inputs["input_ids"]) // self.together
        rows = packing.row[:count].tolist()
        return [
            take_groups(inputs, [group for group in range(count) if rows[group] == row], self.together)
            for row in sorted(set(rows))
        ]

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
