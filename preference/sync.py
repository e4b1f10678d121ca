"""A reference that follows the policy (TR-DPO, Gorbatovski et al. 2024): `sync_ref_model`.

Every `ref_model_sync_steps` optimizer steps the reference becomes the policy, their hard update (α = 1). A soft one, a
mean of the two models' weights, is not offered: policy and reference are adapters of one base, and the mean of two
products of low-rank factors is not the product of their means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from preference.policy.adapters import POLICY
from preference.policy.overoptimisation import reference_name
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.packed.sharding import gathered

if TYPE_CHECKING:
    from transformers import Trainer


class SyncedReference(TrainerCallback):
    """Copies the policy's adapter to the reference's. Checkpoints hold both."""

    def __init__(self, trainer: Trainer, steps: int) -> None:
        self._trainer, self._steps = trainer, steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self._steps:
            return
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        policy, reference = Adapter(model, POLICY), Adapter(model, reference_name(model))
        both = [*policy.parameters().values(), *reference.parameters().values()]
        with gathered(both, written=True):
            policy.copy_to(reference.name)
