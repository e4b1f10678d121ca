"""TRL's RewardTrainer, extended at its loss: margins, soft labels, weights, and several heads on one backbone.

The forward, the metrics and everything around them stay TRL's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from reward.losses import centring_loss, preference_loss
from tiebreak.training.noise import switch_off_noise
from tiebreak.training.passes import StepInPasses
from tiebreak.training.prompt_order import PromptByPrompt
from tiebreak.training.trainer import StageTrainer
from tiebreak.upstream import metrics_of

LABELS = {"margin": 0.0, "target": 1.0, "weight": [1.0]}
"""Label columns of the rows, and their values for rows with only TRL's columns."""


@dataclass
class LabelCollator(DataCollatorForPreference):
    """TRL's batch, with `target` of shape (pairs,) and `weight` of shape (pairs, members) beside its `margin`."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        labels = {
            name: torch.tensor([example.get(name, plain) for example in examples], dtype=torch.float)
            for name, plain in LABELS.items()
        }
        batch: dict[str, Any] = super().torch_call(examples)
        return batch | labels


class LabelledRewardTrainer(RewardTrainer):
    """A RewardTrainer whose rows carry the reliability of their label."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_collator = LabelCollator(self.processing_class.pad_token_id, self.args.pad_to_multiple_of)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        margin, target, weight = (inputs.pop(name) for name in LABELS)
        _, outputs = super().compute_loss(model, inputs, return_outputs=True)  # the forward, and TRL's metrics
        chosen, rejected = outputs.logits.chunk(2)
        loss = (weight * preference_loss(chosen, rejected, margin, target)).mean()
        loss = loss + (self.args.center_rewards_coefficient or 0.0) * centring_loss(chosen, rejected)
        if chosen.shape[-1] > 1:
            self._note_spread(chosen - rejected)
        return (loss, outputs) if return_outputs else loss

    def _note_spread(self, difference: Tensor) -> None:
        """The members' disagreement: the mean deviation of chosen − rejected over them."""
        spread = self.accelerator.gather_for_metrics(difference.detach().std(-1, correction=0).mean()).mean()
        metrics_of(self)["train" if self.model.training else "eval"]["spread"].append(spread.item())


class PackedRewardTrainer(StageTrainer, PromptByPrompt, StepInPasses, LabelledRewardTrainer):
    """The same, with steps in passes: the loss is a mean over pairs, with weights that do not depend on the batch."""

    losses_that_add_up = frozenset({preference_loss.__name__, centring_loss.__name__})

    def prepare_model(self) -> None:
        switch_off_noise(self.model)

    def losses(self) -> Sequence[str]:
        """The metrics of `compute_loss` above: TRL's own are replaced."""
        return [preference_loss.__name__, centring_loss.__name__]
