"""Direct preference optimisation (Rafailov et al. 2023): TRL's DPOTrainer, its reference checked.

    tiebreak dpo --config configs/quickstart/dpo.yaml --beta 0.2
    accelerate launch --config_file configs/accelerate/zero2.yaml -m preference.dpo --config configs/quickstart/dpo.yaml

The reference is the policy at the start of training. This is checked: before the first update, both must give every
answer the same log-probability (so that implicit rewards are 0, and the sigmoid loss is ln 2), or the run stops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from trl import DPOTrainer

from preference import rater_em
from preference.configuration import LOSSES_OF_PAIRS, DPOConfig
from preference.first_loss import RecordingModel, check_first_loss, check_reference, computed_dtype
from preference.guarded import guard_direct
from preference.losses import (
    Batch,
    Pairs,
    divergence_score,
    labelled_loss,
    length_desensitised,
    unlabelled_loss,
)
from preference.pairs import LABELS, EncodedPair, PairCollator, PairStage, to_dataset
from preference.policy.adapters import POLICY
from preference.policy.overoptimisation import reference_name
from preference.rater_em import NO_VOTES, RaterEM, RenewedRaters
from preference.reference import ReferenceLogps
from preference.second_copy import reference_of, require_adapter_of
from preference.sync import SyncedReference
from tiebreak.command.launch import stage_main
from tiebreak.hashing import hash_file
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.models.adapters.peft_files import ADAPTER_FILE, PEFT_FILE
from tiebreak.models.find import ModelSource
from tiebreak.models.load import adapter_of, load_policy
from tiebreak.packed.parts import whole_model
from tiebreak.packed.products import products_engine
from tiebreak.packed.proof import is_routed
from tiebreak.runs.run import Run, installed_versions
from tiebreak.tracking.recorder import RunRecorder
from tiebreak.training.labels import TIE
from tiebreak.training.noise import switch_off_noise
from tiebreak.training.passes import Passes, StepInPasses, mean_of_processes
from tiebreak.training.prompt_order import PromptByPrompt
from tiebreak.training.skeleton import Rows, train_stage
from tiebreak.training.stage import common_arguments, evaluation_rows
from tiebreak.training.trainer import StageTrainer
from tiebreak.upstream import PairHooks, attention_of, metrics_of

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import DPOConfig as DPOArguments

BATCH_PAIRS, BATCH_TOKENS = "batch_pairs", "batch_tokens"
"""in a batch whose loss averages over tokens: its pairs, and its trained tokens of chosen answers, the mean over processes;
each of shape ()"""


class CheckedDPOTrainer(StageTrainer, PairHooks, PromptByPrompt, StepInPasses, DPOTrainer):
    """TRL's trainer, on rows tokenised by tiebreak.chat.chat, with its reference checked at the first batch."""

    precompute_ref_logps: bool
    loss_weights: list[float]
    reference: ReferenceLogps | None = None
    """set: the reference's log-probabilities are looked up before they are computed"""
    raters: RenewedRaters | None = None
    """set: labels are estimated from the votes"""
    _nll_total: Tensor
    """the last batch's negative log-likelihood of chosen answers, of this process, shape ()"""

    losses_that_add_up = frozenset((*LOSSES_OF_PAIRS, "sft"))

    def __init__(
        self,
        *args: Any,
        cache: Callable[[CheckedDPOTrainer], ReferenceLogps] | None = None,
        raters: RenewedRaters | None = None,
        **kwargs: Any,
    ) -> None:
        """TRL's.

        Args:
            cache: makes the reference's cache for the trainer; None: no cache.
            raters: estimates labels from votes; None: rows have labels.
        """
        self.raters = raters
        super().__init__(*args, **kwargs)
        if raters is not None:
            self.add_callback(raters)
        if cache is not None and not is_sharded(self):
            self.reference = cache(self)

    def prepare_model(self) -> None:
        switch_off_noise(self.model)
        if self.ref_model is None:
            Adapter(self.model, POLICY).copy_to(reference_name(self.model))  # TRL skips some adapters' weights

    def losses(self) -> Sequence[str]:
        names: list[str] = self.loss_types
        return names

    def prepare_rows(self, rows: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """Disabled: TRL would tokenise again, and add end tokens to unfinished answers."""
        return rows

    def of_whole_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """With the counts that the mean over tokens of `sft` needs in each pass."""
        if "sft" not in self.loss_types or BATCH_PAIRS in inputs:
            return inputs
        pairs = len(inputs["input_ids"]) // 2
        tokens = inputs["completion_mask"][:pairs].sum()
        mean = mean_of_processes(self.accelerator, tokens)
        return inputs | {BATCH_PAIRS: torch.full_like(tokens, pairs), BATCH_TOKENS: mean}

    def metric_weights(self, inputs: dict[str, Any]) -> dict[str, int]:
        chosen, rejected = (int(side.sum()) for side in inputs["completion_mask"][:, 1:].chunk(2))
        return {
            **super().metric_weights(inputs),
            "entropy": chosen + rejected,
            "mean_token_accuracy": chosen,
            "logits/chosen": chosen,
            "logits/rejected": rejected,
        }

    def loss_sums(self, loss: Tensor, inputs: dict[str, Any]) -> dict[str, Tensor]:
        if "sft" not in self.loss_types:
            return super().loss_sums(loss, inputs)
        factor = sum(w for name, w in zip(self.loss_types, self.loss_weights, strict=True) if name == "sft")
        nll = factor * self._nll_total.double()
        of_pairs = loss.detach().double() - nll / inputs[BATCH_TOKENS]
        return {"": of_pairs * self.weight(inputs), "mean_token_accuracy": nll}

    def pair_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        labels = {name: inputs[name] for name in (*LABELS, *rater_em.COLUMNS) if name in inputs}
        inputs = {name: value for name, value in inputs.items() if name not in labels}
        counts = inputs.pop(BATCH_PAIRS, None), inputs.pop(BATCH_TOKENS, None)
        inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = self._reference_logps(inputs)
        policy = RecordingModel(model)
        before = self.precompute_ref_logps, self.loss_weights
        self.precompute_ref_logps = True  # TRL then reads the two columns
        self.loss_weights = self._weights_in_pass(inputs, *counts)
        try:
            result = super().pair_loss(policy, inputs, return_outputs)
            self._check_first(result[0] if return_outputs else result, policy.output, inputs)
        finally:
            self.precompute_ref_logps, self.loss_weights = before
        self._nll_total = -policy.output.log_probs.detach().chunk(2)[0].sum()
        if not labels:
            return result
        pairs = self._pairs(policy.output.log_probs, inputs, labels["margin"])
        target = self._posterior(pairs, labels) if rater_em.ROW in labels else labels["target"]
        loss = labelled_loss(self.loss_types, pairs, target, labels["weight"], self.loss_weights)
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * policy.output.aux_loss
        return (loss, result[1]) if return_outputs else loss

    def _posterior(self, pairs: Pairs, labels: dict[str, Any]) -> Tensor:
        """The probability that each chosen answer is the better one, from its votes; of a tie kept both ways, ½."""
        assert self.raters is not None
        q = self.raters.em.posterior(pairs.beta * pairs.difference, labels[rater_em.RATERS], labels[rater_em.VOTES])
        q = torch.where(labels["target"] == TIE, labels["target"].to(q.dtype), q)
        if self.model.training:
            everywhere = self.accelerator.gather(q)
            for name, value in (("posterior", everywhere), ("doubted", (everywhere < TIE).float())):
                metrics_of(self)["train"][f"rater_em/{name}"].append(value.mean().item())
            self.raters.pending += zip(labels[rater_em.ROW].tolist(), q.tolist(), strict=True)
        return q

    def _reference_logps(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The reference's log-probabilities of chosen and rejected answers, each of shape (pairs,)."""
        model = self.model if self.ref_model is None else self.ref_model
        if self.reference is not None:
            return self.reference.of(inputs, lambda pairs: self.compute_ref_log_probs(model, pairs))
        chosen, rejected = self.compute_ref_log_probs(model, inputs)
        return chosen, rejected

    def _weights_in_pass(self, inputs: dict[str, Any], pairs: Tensor | None, tokens: Tensor | None) -> list[float]:
        """The losses' weights. A pass counts by its share of the pairs, so `sft` is brought to its share of the tokens."""
        if pairs is None or tokens is None:
            return list(self.loss_weights)
        own = len(inputs["input_ids"]) // 2
        share_of_pairs, share_of_tokens = own / int(pairs), int(inputs["completion_mask"][:own].sum()) / tokens.item()
        return [
            weight * share_of_tokens / share_of_pairs if name == "sft" else weight
            for name, weight in zip(self.loss_types, self.loss_weights, strict=True)
        ]

    def _check_first(self, loss: Tensor, output: Any, inputs: dict[str, Any]) -> None:
        """Compare policy and reference, and TRL's loss with its formula, before the first update."""
        if self.state.global_step or not self.model.training:
            return
        logps = output.log_probs.detach()
        ours = length_desensitised(logps, inputs["completion_mask"][:, 1:], self.ld_alpha)
        reference = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
        check_reference(ours, reference, computed_dtype(self), routed=is_routed(whole_model(self.model)))
        pairs = self._pairs(logps, inputs, torch.zeros_like(ours[: len(ours) // 2]))
        chosen, rejected = ours.chunk(2)
        batch = Batch(
            pairs, chosen, rejected, inputs["ref_chosen_logps"], inputs["ref_rejected_logps"], logps.sum(1).chunk(2)[0]
        )
        expected = unlabelled_loss(self.loss_types, batch, self.loss_weights)
        if self.aux_loss_enabled:
            expected = expected + self.router_aux_loss_coef * output.aux_loss
        check_first_loss(loss, expected, ", ".join(self.loss_types))

    def _pairs(self, logps: Tensor, inputs: dict[str, Any], margin: Tensor) -> Pairs:
        """A loss's inputs, from the policy's log-probabilities of tokens, shape (2 · pairs, tokens)."""
        chosen, rejected = length_desensitised(logps, inputs["completion_mask"][:, 1:], self.ld_alpha).chunk(2)
        chosen_tokens, rejected_tokens = inputs["completion_mask"].sum(1).chunk(2)
        coefficient = self.f_alpha_divergence_coef
        return Pairs(
            chosen=divergence_score(chosen - inputs["ref_chosen_logps"], self.f_divergence_type, coefficient),
            rejected=divergence_score(rejected - inputs["ref_rejected_logps"], self.f_divergence_type, coefficient),
            chosen_tokens=chosen_tokens,
            rejected_tokens=rejected_tokens,
            margin=margin,
            beta=self.beta,
            smoothing=self.label_smoothing,
        )


class DPO(PairStage):
    """The stage."""

    def check(self) -> None:
        require_adapter_of(self.source, self.config)

    def build(self, rows: Rows[EncodedPair], recorder: RunRecorder) -> CheckedDPOTrainer:
        """TRL's trainer on the policy, with its reference and its guard."""
        config, source, tokenizer = self.config, self.source, self.chat.tokenizer
        held_out = evaluation_rows(rows.validation, config.training)
        every = (*rows.train, *rows.validation)
        pairs = [(e.prompt, e.chosen, e.rejected) for e in every]
        whole = all(example.masks is None for example in every)
        # unlike other new adapters, new virtual tokens change the outputs, so the cache does not fit their reference
        prompt_tuned = adapter_of(source, config.adapter).method == "prompt"
        whole = whole and not prompt_tuned  # the cache holds whole answers, each alone, of one reference
        self.em = RaterEM([e.votes or NO_VOTES for e in rows.train], config.rater_em) if config.rater_em else None
        trainer = CheckedDPOTrainer(
            raters=RenewedRaters(self.em) if self.em else None,
            model=load_policy(source, config.training, config.adapter, tokenizer, self.first_ids(rows)),
            ref_model=reference_of(source, config),
            args=build_dpo_args(config, self.run),
            train_dataset=to_dataset(rows.train, config.prompt_by_prompt, self.em),
            eval_dataset=to_dataset(held_out) if held_out else None,
            processing_class=tokenizer,
            data_collator=PairCollator(pad_token_id=self.chat.pad_id),
            passes=Passes(config.training.tokens_per_pass, config.share_prefixes),
            cache=(lambda built: ReferenceLogps(reference_facts(built, source), pairs=pairs))
            if config.cache_reference and whole and config.ld_alpha is None and not config.sync_ref_model
            else None,
        )
        if config.sync_ref_model:
            trainer.add_callback(SyncedReference(trainer, config.ref_model_sync_steps))
        if config.guard is not None:
            self.guard = guard_direct(
                config.guard, config, recorder, trainer, source, self.chat, self.data.validation, self.dropping
            )
        return trainer


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
        **({"products": products_engine()} if products_engine() != "torch" else {}),  # as the first versions wrote it
    }


def is_sharded(trainer: DPOTrainer) -> bool:
    """Whether a forward needs all processes, so that none may skip one."""
    return bool(trainer.is_fsdp_enabled or getattr(trainer.accelerator.state, "deepspeed_plugin", None))


def build_dpo_args(config: DPOConfig, run: Run) -> DPOArguments:
    """TRL's arguments."""
    from trl import DPOConfig as DPOArguments

    return DPOArguments(
        **common_arguments(config.training, run),
        beta=config.beta,
        loss_type=config.loss_type,
        loss_weights=config.loss_weights,
        label_smoothing=config.label_smoothing,
        ld_alpha=config.ld_alpha,
        f_divergence_type=config.f_divergence_type,
        f_alpha_divergence_coef=config.f_alpha_divergence_coef,
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
    elif config.algorithm == "dpo":
        train_stage(DPO, config)
    else:
        from preference.reference_free import ReferenceFree

        train_stage(ReferenceFree, config)


if __name__ == "__main__":
    main()
