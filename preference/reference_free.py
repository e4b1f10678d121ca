"""Pairs without a reference policy: ORPO, SimPO and CPO, by TRL's experimental trainers.

    tiebreak dpo --config configs/quickstart/dpo.yaml --algorithm simpo

orpo    negative log-likelihood of prompt and chosen answer, plus the odds ratio of the two (Hong et al. 2024)
simpo   log-probabilities per token, which must differ by a margin (Meng et al. 2024)
cpo     log-probabilities, plus the negative log-likelihood of the chosen answer (Xu et al. 2024)

TRL's losses and metrics are computed as they are. The forward under them is replaced: token ids come from
tiebreak.chat.chat, and log-probabilities from the packed forward, with no logits kept. `logits/chosen` and
`logits/rejected` are means over trained tokens, as in DPO; TRL's are over prompts and padding too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import datasets
import torch
from torch import Tensor
from trl.experimental.cpo import CPOConfig as CPOArguments
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOConfig as ORPOArguments
from trl.experimental.orpo import ORPOTrainer

from preference.configuration import DPOConfig
from preference.first_loss import check_first_loss
from preference.guarded import guard_direct
from preference.losses import cpo_loss, orpo_loss, simpo_loss
from preference.pairs import EncodedPair, PairCollator, PairStage, to_dataset
from preference.policy.adapters import POLICY, REFERENCE
from preference.second_copy import require_adapter_of
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.models.load import load_policy
from tiebreak.packed.parts import whole_model
from tiebreak.runs.run import Run
from tiebreak.tracking.recorder import RunRecorder
from tiebreak.training.noise import switch_off_noise
from tiebreak.training.passes import Passes, StepInPasses, mean_of_processes
from tiebreak.training.prompt_order import PromptByPrompt
from tiebreak.training.skeleton import Rows
from tiebreak.training.stage import common_arguments, evaluation_rows
from tiebreak.training.trainer import StageTrainer
from tiebreak.upstream import ScoredPairHooks, add_fused_head

if TYPE_CHECKING:
    pass

NLL_MASK = "nll_mask"
"""in a batch: 1 on the tokens of the negative log-likelihood; shape (2 · pairs, tokens)"""
BATCH_PAIRS, BATCH_TOKENS = "batch_pairs", "batch_tokens"
"""in a batch: its pairs, and its tokens of the negative log-likelihood, the mean over processes; each of shape ()"""


class ScoredPairCollator(PairCollator):
    """Pairs in TRL's layout for DPO, with the tokens whose negative log-likelihood is learned."""

    with_prompts = False
    """whether prompts are among them, as in ORPO"""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        batch[NLL_MASK] = batch["completion_mask"].clone()
        batch[NLL_MASK][len(examples) :] = 0
        if self.with_prompts:
            for row, example in enumerate(examples):
                batch[NLL_MASK][row, : len(example["prompt_ids"])] = 1
        return batch


class PromptedPairCollator(ScoredPairCollator):
    """For ORPO."""

    with_prompts = True


class ReferenceFreeTrainer(StageTrainer, ScoredPairHooks, PromptByPrompt, StepInPasses):
    """Mixin for TRL's trainers of pairs without a reference."""

    per_token = True
    """whether log-probabilities are means over tokens"""
    _last: tuple[Tensor, Tensor, Tensor, Tensor | None]
    _nll_total: Tensor
    """the last batch's negative log-likelihood, of this process, shape ()"""

    def prepare_model(self) -> None:
        switch_off_noise(self.model)
        add_fused_head(whole_model(self.model))
        self.use_dpo_data_collator = True  # ORPO warns of every other collator in each evaluation

    def of_whole_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """With the counts that a mean over its tokens needs, of all processes."""
        if BATCH_TOKENS in inputs:
            return inputs
        tokens = inputs[NLL_MASK][:, 1:].sum()
        pairs = torch.full_like(tokens, len(inputs["input_ids"]) // 2)
        return inputs | {BATCH_PAIRS: pairs, BATCH_TOKENS: mean_of_processes(self.accelerator, tokens)}

    def forward_pairs(self, model: Any, batch: dict[str, Any]) -> tuple[Tensor, ...]:
        """TRL's: log-probabilities and logits of chosen and rejected answers, the negative log-likelihood, and an
        auxiliary loss. In a pass, which counts by its share of the pairs, the second by its share of the tokens. On several
        processes it is a mean over the tokens of all, where TRL takes the mean of the processes' means."""
        completion, nll = batch["completion_mask"][:, 1:], batch[NLL_MASK][:, 1:]
        wanted = (batch["completion_mask"] + batch[NLL_MASK]) > 0
        more = {"output_router_logits": True} if self.aux_loss_enabled else {}
        out = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=batch["input_ids"].masked_fill(~wanted, -100),
            use_cache=False,
            fused_lm_head=True,
            **more,
        )
        log_probs = out.log_probs[:, -completion.shape[1] :]
        logps = (log_probs * completion).sum(1)
        if self.per_token:
            logps = logps / completion.sum(1)
        chosen, rejected = logps.chunk(2)
        pairs = len(chosen)
        share = int(batch[BATCH_PAIRS]) / pairs
        total = -(log_probs * nll).sum()
        loss = total / batch[BATCH_TOKENS] * share
        means = out.mean_logits[:, -completion.shape[1] :]
        logits = [self._token_mean(means[rows], completion[rows]) for rows in (slice(None, pairs), slice(pairs, None))]
        auxiliary = out.aux_loss if self.aux_loss_enabled else None
        self._last = chosen.detach(), rejected.detach(), loss.detach(), auxiliary
        self._nll_total = total.detach()
        return (chosen, rejected, *logits, loss, *([] if auxiliary is None else [auxiliary]))

    def _token_mean(self, values: Tensor, mask: Tensor) -> Tensor:
        """Of the trained tokens of all processes, shape (1,)."""
        tokens = mean_of_processes(self.accelerator, mask.sum())
        return (values.detach()[mask > 0].sum() / tokens).reshape(1)

    def metric_weights(self, inputs: dict[str, Any]) -> dict[str, int]:
        chosen, rejected = inputs["completion_mask"][:, 1:].sum(1).chunk(2)
        counts = {
            **super().metric_weights(inputs),
            "logits/chosen": int(chosen.sum()),
            "logits/rejected": int(rejected.sum()),
        }
        if self.model.training:  # a pass's share of the tokens is in its loss
            return {**counts, "nll_loss": counts[""]}
        return {**counts, "nll_loss": int(inputs[NLL_MASK][:, 1:].sum())}

    def loss_sums(self, loss: Tensor, inputs: dict[str, Any]) -> dict[str, Tensor]:
        nll = self.nll_weight * self._nll_total.double()
        of_pairs = loss.detach().double() - nll / inputs[BATCH_TOKENS]
        return {"": of_pairs * self.weight(inputs), "nll_loss": nll}

    def loss_and_metrics(self, model: Any, batch: dict[str, Any], train_eval: str) -> tuple[Tensor, dict[str, float]]:
        batch = self.of_whole_batch(batch)
        loss, metrics = super().loss_and_metrics(model, batch, train_eval)
        if train_eval == "eval":  # TRL's evaluation does not call compute_loss
            self.note_evaluated(loss, batch)
        if self.state.global_step == 0 and self.model.training:
            chosen, rejected, nll, auxiliary = self._last
            expected = self.formula(chosen, rejected, nll)
            if auxiliary is not None:
                expected = expected + self.aux_loss_coef * auxiliary
            check_first_loss(loss, expected, ", ".join(self.losses()))
        return loss, metrics

    def formula(self, chosen: Tensor, rejected: Tensor, nll: Tensor) -> Tensor:
        """The loss, from log-probabilities of shape (pairs,) and the negative log-likelihood."""
        raise NotImplementedError

    @property
    def nll_weight(self) -> float:
        """The weight of the negative log-likelihood in the loss."""
        return 1.0


class CheckedCPOTrainer(ReferenceFreeTrainer, CPOTrainer):
    """CPO, and SimPO, which is one of its losses in TRL."""

    losses_that_add_up = frozenset(("sigmoid", "hinge", "ipo", "simpo"))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.per_token = kwargs["args"].loss_type in ("ipo", "simpo")
        super().__init__(*args, **kwargs)

    def losses(self) -> Sequence[str]:
        return [self.loss_type]

    @property
    def nll_weight(self) -> float:
        return float(self.cpo_alpha)

    def formula(self, chosen: Tensor, rejected: Tensor, nll: Tensor) -> Tensor:
        if self.loss_type == "simpo":
            losses = simpo_loss(chosen, rejected, self.beta, self.simpo_gamma, self.label_smoothing)
        else:
            losses = cpo_loss(chosen, rejected, self.beta, self.loss_type, self.label_smoothing)
        return losses.mean() + self.cpo_alpha * nll


class CheckedORPOTrainer(ReferenceFreeTrainer, ORPOTrainer):
    """ORPO."""

    losses_that_add_up = frozenset(("orpo",))

    def losses(self) -> Sequence[str]:
        return ["orpo"]

    def formula(self, chosen: Tensor, rejected: Tensor, nll: Tensor) -> Tensor:
        return nll + orpo_loss(chosen, rejected, self.beta).mean()


class ReferenceFree(PairStage):
    """The stage."""

    def check(self) -> None:
        require_adapter_of(self.source, self.config)

    def build(self, rows: Rows[EncodedPair], recorder: RunRecorder) -> ReferenceFreeTrainer:
        """TRL's trainer on the policy, with its guard."""
        config, source, tokenizer = self.config, self.source, self.chat.tokenizer
        held_out = evaluation_rows(rows.validation, config.training)
        model = load_policy(source, config.training, config.adapter, tokenizer, self.first_ids(rows))
        if config.guard is not None:  # it measures the KL to the initial policy
            for parameter in Adapter(model, POLICY).copy(REFERENCE).parameters().values():
                parameter.requires_grad_(False)
        kind, collator = trainer_of(config)
        with without_bars():
            trainer: ReferenceFreeTrainer = kind(
                model=model,
                args=build_arguments(config, self.run),
                train_dataset=to_dataset(rows.train, config.prompt_by_prompt),
                eval_dataset=to_dataset(held_out) if held_out else None,
                processing_class=tokenizer,
                data_collator=collator(pad_token_id=self.chat.pad_id),
                passes=Passes(config.training.tokens_per_pass, config.share_prefixes),
            )
        if config.guard is not None:
            self.guard = guard_direct(
                config.guard, config, recorder, trainer, source, self.chat, self.data.validation, self.dropping
            )
        return trainer


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide data sets' progress bars: TRL's experimental trainers map over rows that are already prepared."""
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def trainer_of(config: DPOConfig) -> tuple[Any, type[ScoredPairCollator]]:
    """The algorithm's trainer and collator."""
    if config.algorithm == "orpo":
        return CheckedORPOTrainer, PromptedPairCollator
    return CheckedCPOTrainer, ScoredPairCollator


def build_arguments(config: DPOConfig, run: Run) -> CPOArguments | ORPOArguments:
    """TRL's arguments."""
    common = {
        **common_arguments(config.training, run),
        "beta": config.beta,
        "max_length": config.training.max_length_tokens,  # rows that are too long are already dropped
        "train_sampling_strategy": "group_by_length",
        "length_column_name": "length",
    }
    if config.algorithm == "orpo":
        return ORPOArguments(**common)
    return CPOArguments(
        **common,
        loss_type=config.loss_type[0],
        label_smoothing=config.label_smoothing,
        cpo_alpha=config.cpo_alpha,
        simpo_gamma=config.simpo_gamma,
    )
