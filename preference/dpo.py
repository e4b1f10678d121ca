"""Direct preference optimisation (Rafailov et al. 2023): TRL's DPOTrainer, its reference checked.

    tiebreak dpo --config configs/quickstart/dpo.yaml --beta 0.2
    accelerate launch --config_file configs/accelerate/zero2.yaml -m preference.dpo --config configs/quickstart/dpo.yaml

The reference is the policy at the start of training. This is checked: before the first update, both must give every
answer the same log-probability (so that implicit rewards are 0, and the sigmoid loss is ln 2), or the run stops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from preference.configuration import LOSSES_OF_PAIRS, DPOConfig
from preference.first_loss import Remembered, check_reference, computed_dtype
from preference.guarded import guard_direct, kinds_of_judgments
from preference.losses import Pairs, labelled_loss
from preference.policy.adapters import POLICY
from preference.policy.overoptimisation import Guard, reference_name, require_held_out
from preference.reference import ReferenceLogps
from tiebreak.chat.chat import Chat, Encoded, encode_each
from tiebreak.command.launch import stage_main
from tiebreak.data.reading import read_preferences
from tiebreak.data.splits import partition
from tiebreak.errors import ConfigError, DataError
from tiebreak.hashing import hash_file
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.models.adapters.peft_files import ADAPTER_FILE, PEFT_FILE
from tiebreak.models.find import ModelSource
from tiebreak.models.load import load_policy, resolve_precision
from tiebreak.packed.forward import whole_model
from tiebreak.packed.proof import is_routed
from tiebreak.records import Preference, Prompt
from tiebreak.runs.run import Run, installed_versions
from tiebreak.terminal import say
from tiebreak.tracking.recorder import RunRecorder
from tiebreak.training.labels import Label, label_of, mean_one, report_unused_columns, require_a_verdict
from tiebreak.training.noise import switch_off_noise
from tiebreak.training.passes import Passes, StepInPasses
from tiebreak.training.prompt_order import PROMPT_NUMBER, PromptByPrompt, numbered
from tiebreak.training.skeleton import Rows, TrainedStage, train_stage
from tiebreak.training.stage import Products, common_arguments, drop_too_long, evaluation_rows
from tiebreak.training.trainer import StageTrainer
from tiebreak.upstream import PairHooks, attention_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer
    from trl import DPOConfig as DPOArguments

LABELS = ("margin", "target", "weight")
"""Columns of rows whose label has more than a preferred side; see tiebreak.training.labels."""
PLAIN = Label()
"""A label with only a preferred side."""


@dataclass(frozen=True)
class EncodedPair:
    """Token ids of a preference."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    masks: tuple[list[int], list[int]] | None = None
    """mask of the trained tokens of the two; None: all"""
    label: Label = PLAIN

    @property
    def learned(self) -> tuple[list[int], list[int]]:
        """1 on the trained tokens of each."""
        return self.masks or ([1] * len(self.chosen), [1] * len(self.rejected))


class PairCollator(DataCollatorForPreference):
    """TRL's collator, for answers with untrained parts (a masked thought, a tool's result), and for labels."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch, with its completion mask reduced, and a column of shape (pairs,) for each label."""
        batch: dict[str, Any] = super().torch_call(examples)
        batch |= {
            name: torch.tensor([e[name] for e in examples], dtype=torch.float) for name in LABELS if name in examples[0]
        }
        rows = [(example, side) for side in ("chosen", "rejected") for example in examples]
        for row, (example, side) in enumerate(rows):
            mask = example.get(f"{side}_mask")
            if mask is not None:
                start = len(example["prompt_ids"])
                batch["completion_mask"][row, start : start + len(mask)] = torch.tensor(mask)
        return batch


class CheckedDPOTrainer(StageTrainer, PairHooks, PromptByPrompt, StepInPasses, DPOTrainer):
    """TRL's trainer, on rows tokenised by tiebreak.chat.chat, with its reference checked at the first batch."""

    precompute_ref_logps: bool
    reference: ReferenceLogps | None = None
    """set: the reference's log-probabilities are looked up before they are computed"""

    losses_that_add_up = frozenset(LOSSES_OF_PAIRS)

    def __init__(
        self, *args: Any, cache: Callable[[CheckedDPOTrainer], ReferenceLogps] | None = None, **kwargs: Any
    ) -> None:
        """TRL's.

        Args:
            cache: makes the reference's cache for the trainer; None: no cache.
        """
        super().__init__(*args, **kwargs)
        if cache is not None and not is_sharded(self):
            self.reference = cache(self)

    def prepare_model(self) -> None:
        switch_off_noise(self.model)
        Adapter(self.model, POLICY).copy_to(reference_name(self.model))  # TRL skips adapters on embeddings

    def losses(self) -> Sequence[str]:
        names: list[str] = self.loss_types
        return names

    def prepare_rows(self, rows: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """Disabled: TRL would tokenise again, and add end tokens to unfinished answers."""
        return rows

    def pair_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        labels = {name: inputs[name] for name in LABELS if name in inputs}
        inputs = {name: value for name, value in inputs.items() if name not in LABELS}
        inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = self._reference_logps(inputs)
        policy = Remembered(model)
        before, self.precompute_ref_logps = self.precompute_ref_logps, True  # TRL then reads the two columns
        try:
            result = super().pair_loss(policy, inputs, return_outputs)
        finally:
            self.precompute_ref_logps = before
        ours = policy.output.log_probs.sum(1)
        if self.state.global_step == 0 and self.model.training:
            reference = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
            check_reference(ours.detach(), reference, computed_dtype(self), routed=is_routed(whole_model(self.model)))
        if not labels:
            return result
        loss = self._labelled_loss(ours, inputs, labels)
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * policy.output.aux_loss
        return (loss, result[1]) if return_outputs else loss

    def _reference_logps(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The reference's log-probabilities of chosen and rejected answers, each of shape (pairs,)."""
        if self.reference is not None:
            return self.reference.of(inputs, lambda pairs: self.compute_ref_log_probs(self.model, pairs))
        chosen, rejected = self.compute_ref_log_probs(self.model, inputs)
        return chosen, rejected

    def _labelled_loss(self, logps: Tensor, inputs: dict[str, Any], labels: dict[str, Tensor]) -> Tensor:
        chosen, rejected = logps.chunk(2)
        chosen_tokens, rejected_tokens = inputs["completion_mask"].sum(1).chunk(2)
        pairs = Pairs(
            chosen=chosen - inputs["ref_chosen_logps"],
            rejected=rejected - inputs["ref_rejected_logps"],
            chosen_tokens=chosen_tokens,
            rejected_tokens=rejected_tokens,
            margin=labels["margin"],
            beta=self.beta,
            smoothing=self.label_smoothing,
        )
        return labelled_loss(self.loss_types, pairs, labels["target"], labels["weight"])


class DPO(TrainedStage[DPOConfig, Preference, EncodedPair]):
    """The stage."""

    name = "dpo"
    guard: Guard | None = None

    def read(self) -> tuple[list[Preference], list[Preference]]:
        return partition(read_preferences(self.config.preferences, self.rules), lambda one: one.split)

    def encode(self, rows: list[Preference], *, held_out: bool) -> list[EncodedPair]:
        if held_out and self.config.guard is not None:
            require_held_out(self.run, len(rows))
        if not held_out:
            report_unused_columns(rows, self.config)
        return weigh(encode(rows, self.chat, self.config, self.dropping), self.config, needed=not held_out)

    def example(self, row: EncodedPair) -> Encoded:
        return Encoded(row.prompt + row.chosen, [0] * len(row.prompt) + row.learned[0])

    def build(self, rows: Rows[EncodedPair], recorder: RunRecorder) -> CheckedDPOTrainer:
        """TRL's trainer on the policy, with its reference and its guard."""
        config, source, tokenizer = self.config, self.source, self.chat.tokenizer
        held_out = evaluation_rows(rows.validation, config.training)
        every = (*rows.train, *rows.validation)
        pairs = [(e.prompt, e.chosen, e.rejected) for e in every]
        whole = all(example.masks is None for example in every)  # the cache is of whole answers
        trainer = CheckedDPOTrainer(
            model=load_policy(source, config.training, config.adapter, tokenizer),
            args=build_dpo_args(config, self.run),
            train_dataset=to_dataset(rows.train, config.prompt_by_prompt),
            eval_dataset=to_dataset(held_out) if held_out else None,
            processing_class=tokenizer,
            data_collator=PairCollator(pad_token_id=self.chat.pad_id),
            passes=Passes(config.training.tokens_per_pass, config.share_prefixes),
            cache=(lambda built: ReferenceLogps(reference_facts(built, source), pairs=pairs))
            if config.cache_reference and whole
            else None,
        )
        if config.guard is not None:
            self.guard = guard_direct(
                config.guard, config, recorder, trainer, source, self.chat, self.data.validation, self.dropping
            )
        return trainer

    def facts(self, rows: Rows[EncodedPair], trainer: Trainer) -> dict[str, Any]:
        return {
            "kinds": kinds_of_judgments(self.config, self.data.train),
            "precision": str(resolve_precision(self.config.training)),
            **(self.guard.facts() if self.guard else {}),
        }

    def products(self, rows: Rows[EncodedPair]) -> Products:
        shown = self.data.validation or self.data.train
        prompts = [Prompt(id=p.prompt_id, messages=p.prompt, tools=p.tools) for p in shown]
        return Products(prompts, self.config.sampling)


def reference_facts(trainer: DPOTrainer, source: ModelSource) -> dict[str, Any]:
    """Everything that the reference's log-probabilities depend on, except the pair."""
    versions = installed_versions()
    return {
        "base": source.base_sha256,
        "adapter": [hash_file(source.folder / f) for f in (ADAPTER_FILE, PEFT_FILE)] if source.folder else None,
        "dtypes": sorted({str(parameter.dtype) for parameter in trainer.model.parameters()}),
        "autocast": [trainer.args.bf16, trainer.args.fp16],
        "device": trainer.args.device.type,
        "packed": attention_of(trainer.model),
        "threads": torch.get_num_threads(),
        **{name: versions.get(name) for name in ("torch", "transformers", "peft", "trl")},
    }


def is_sharded(trainer: DPOTrainer) -> bool:
    """Whether a forward needs all processes, so that none may skip one."""
    return bool(trainer.is_fsdp_enabled or getattr(trainer.accelerator.state, "deepspeed_plugin", None))


def encode(
    preferences: Sequence[Preference], chat: Chat, config: DPOConfig, dropping: Run | None = None
) -> list[EncodedPair]:
    """Token ids of the preferences within the length limit."""

    def encode_one(preference: Preference) -> EncodedPair:
        chosen, rejected = chat.encode_preference(preference)
        masks = None if all((*chosen.trained, *rejected.trained)) else (chosen.trained, rejected.trained)
        label = label_of(preference, config)
        return EncodedPair(chosen.prompt, chosen.completion, rejected.completion, masks, label)

    encoded = [made for _, made in encode_each(preferences, encode_one, "preferences", dropping)]
    lengths = [len(e.prompt) + max(len(e.chosen), len(e.rejected)) for e in encoded]
    return drop_too_long(encoded, lengths, config.training.max_length_tokens, "preferences")


def weigh(examples: Sequence[EncodedPair], config: DPOConfig, *, needed: bool = True) -> list[EncodedPair]:
    """The pairs with a positive weight, normalised to mean 1.

    Args:
        needed: whether there must be some.

    Raises:
        DataError: there are none, or all are ties.
        ConfigError: the weights differ, and a loss is not a mean over pairs.
    """
    counting = [example for example in examples if example.label.weight]
    if needed and examples and not counting:
        raise DataError(
            "every preference has weight 0, so there is nothing to learn: fix the weights, or give --use-weights false"
        )
    if needed:
        require_a_verdict([example.label for example in counting])
    labels = {example.label for example in counting}
    batchwise = [name for name in config.loss_type if name not in LOSSES_OF_PAIRS]
    if batchwise and (len(labels) > 1 or any(replace(label, weight=1.0) != PLAIN for label in labels)):
        raise ConfigError(
            f"loss_type: {', '.join(batchwise)} compares a batch as a whole, so its rows cannot count by their weight, or "
            f"be ties, as some of these preferences do; use {', '.join(LOSSES_OF_PAIRS)}; or give --use-weights false, and "
            "leave ties (strength 0) out"
        )
    if len(counting) < len(examples):
        say(f"{len(examples) - len(counting)} of {len(examples)} preferences have weight 0 and were left out")
    weights = mean_one(np.array([[example.label.weight] for example in counting])) if counting else np.zeros((0, 1))
    return [
        replace(example, label=replace(example.label, weight=float(weight)))
        for example, (weight,) in zip(counting, weights, strict=True)
    ]


def to_dataset(examples: Sequence[EncodedPair], prompt_by_prompt: bool = False) -> Dataset:
    """TRL's collator's input; `prompt_by_prompt`: with the prompt's number of each row."""
    from datasets import Dataset

    labelled = any(example.label != PLAIN for example in examples)
    rows = Dataset.from_list(
        [
            {
                "prompt_ids": e.prompt,
                "chosen_ids": e.chosen,
                "rejected_ids": e.rejected,
                "length": len(e.prompt) + max(len(e.chosen), len(e.rejected)),
                **(vars(e.label) if labelled else {}),
                **(dict(zip(("chosen_mask", "rejected_mask"), e.masks, strict=True)) if e.masks else {}),
            }
            for e in examples
        ]
    )
    return rows.add_column(PROMPT_NUMBER, numbered([tuple(e.prompt) for e in examples])) if prompt_by_prompt else rows


def build_dpo_args(config: DPOConfig, run: Run) -> DPOArguments:
    """TRL's arguments."""
    from trl import DPOConfig as DPOArguments

    return DPOArguments(
        **common_arguments(config.training, run),
        beta=config.beta,
        loss_type=config.loss_type,
        label_smoothing=config.label_smoothing,
        max_length=None,  # rows that are too long are already dropped
        pad_to_multiple_of=None,
        train_sampling_strategy="group_by_length",
        length_column_name="length",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak dpo`, or `python -m preference.dpo`."""
    stage_main("dpo", DPOConfig, _train, arguments)


def _train(config: DPOConfig) -> None:
    if config.algorithm == "kto":
        from preference.kto import KTO

        train_stage(KTO, config)
    else:
        train_stage(DPO, config)


if __name__ == "__main__":
    main()
