"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024): TRL's KTOTrainer, on single answers labelled good or bad.

    tiebreak dpo --config configs/quickstart/dpo.yaml --algorithm kto --preferences runs/quickstart/label

Each answer's implicit reward is compared with a reference point: the KL of policy and reference, estimated on
mismatched pairs of a prompt and another prompt's answer. They are made within each batch as it is drawn, so batches can be
shuffled, and no answer is paired with its own prompt. (TRL pairs each prompt once with the answer of the row before it,
in file order. In a file of label exports that row mostly has the same prompt.) An evaluation has one estimate, of all
held-out rows, where TRL has one a batch: so its figures depend on neither batches nor the number of processes.

Before the first update the policy is the reference, so implicit rewards and KL are 0, and each answer's loss is half its
label's weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from trl import KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from preference.configuration import KTO_LOSSES, DPOConfig
from preference.first_loss import RecordingModel, check_first_loss, check_reference, computed_dtype
from preference.guarded import guard_direct, kinds_of_judgments
from preference.losses import Answers, kto_loss
from preference.policy.adapters import POLICY
from preference.policy.overoptimisation import Guard, reference_name, require_held_out
from preference.second_copy import reference_of, require_adapter_of
from preference.sync import SyncedReference
from tiebreak.chat.chat import Chat, EncodedSequence
from tiebreak.chat.rows import encode_each
from tiebreak.data.reading import read_answers
from tiebreak.data.splits import partition
from tiebreak.errors import DataError
from tiebreak.models.adapters.adapter import Adapter
from tiebreak.models.load import load_policy
from tiebreak.models.precision import resolve_precision
from tiebreak.packed.parts import whole_model
from tiebreak.packed.proof import is_routed
from tiebreak.records import LabelledAnswer, Prompt
from tiebreak.runs.run import Run
from tiebreak.terminal import say
from tiebreak.tracking.recorder import RunRecorder
from tiebreak.training.noise import switch_off_noise
from tiebreak.training.passes import Passes, StepInPasses
from tiebreak.training.prompt_order import PROMPT_NUMBER, PromptByPrompt
from tiebreak.training.skeleton import Rows, TrainedStage
from tiebreak.training.stage import Products, common_arguments, drop_too_long, evaluation_rows
from tiebreak.training.trainer import StageTrainer
from tiebreak.upstream import AnswerHooks, metrics_of, prepare_batch

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer
    from trl import KTOConfig as KTOArguments

RATIO_AT_MOST = 4 / 3
"""Ethayarajh et al. 2024, Eq. 8: λ_D·n_D / (λ_U·n_U) should be from 1 to 4/3"""
KL = "kl_estimate"
"""in a batch: its estimate of the KL before TRL averages it over processes and clamps it at 0, shape ()"""
KL_ANSWER = "KL_completion_ids"
"""in a row: the answer to another prompt; TRL's name"""

T = TypeVar("T")


@dataclass(frozen=True)
class EncodedAnswer:
    """Token ids of a labelled answer."""

    prompt: list[int]
    answer: list[int]
    label: bool
    mask: list[int] | None = None
    """of its trained tokens; None: all"""

    @property
    def learned(self) -> list[int]:
        """1 on its trained tokens."""
        return self.mask or [1] * len(self.answer)

    def row(self) -> dict[str, Any]:
        """TRL's columns."""
        return {
            "prompt_ids": self.prompt,
            "completion_ids": self.answer,
            "label": self.label,
            "length": len(self.prompt) + len(self.answer),
            **({"mask": self.mask} if self.mask else {}),
        }


def mismatched(prompts: Sequence[Hashable]) -> list[int]:
    """For each row, the row whose answer it gets: all answers once, and another prompt's wherever no prompt has more than
    half of the rows.

    Rows of one prompt are laid side by side, and answers are moved on by the size of the largest group.
    """
    first = {prompt: number for number, prompt in reversed(list(enumerate(prompts)))}
    order = sorted(range(len(prompts)), key=lambda row: first[prompts[row]])
    shift = max(Counter(prompts).values())
    partners = [0] * len(prompts)
    for place, row in enumerate(order):
        partners[row] = order[(place + shift) % len(order)]
    return partners


def with_partners(rows: Sequence[dict[str, Any]], spares: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """TRL's rows, each with another prompt's answer for the KL.

    Args:
        spares: two rows with different prompts, for where one prompt has more than half of the rows.
    """
    prompts = [tuple(row["prompt_ids"]) for row in rows]
    paired = []
    for row, partner in zip(rows, mismatched(prompts), strict=True):
        other = next(one for one in (rows[partner], *spares) if one["prompt_ids"] != row["prompt_ids"])
        paired.append({**row, KL_ANSWER: other["completion_ids"], "KL_mask": other.get("mask")})
    return paired


@dataclass
class AnswerCollator(DataCollatorForUnpairedPreference):
    """TRL's collator, which pairs each prompt of a batch with another prompt's answer, for the KL."""

    spares: tuple[dict[str, Any], ...] = ()
    """two rows with different prompts, for batches with one prompt in more than half of their rows"""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch, with completion masks reduced to trained tokens."""
        examples = [dict(example) for example in examples]
        if self.spares and KL_ANSWER not in examples[0]:
            examples = with_partners(examples, self.spares)
        batch: dict[str, Any] = super().torch_call(examples)
        for prefix, column in (("", "mask"), ("KL_", "KL_mask")):
            for row, example in enumerate(examples):
                if example.get(column):
                    _narrow(batch[f"{prefix}completion_mask"][row], len(example["prompt_ids"]), example[column])
        return batch


def _narrow(mask: Tensor, start: int, trained: Sequence[int]) -> None:
    """Set a row's completion mask to its trained tokens; a mismatched answer may be cut off."""
    there = min(len(trained), len(mask) - start)
    mask[start : start + there] *= torch.tensor(trained[:there])


@dataclass(frozen=True)
class HeldOutReference:
    """What an evaluation compares with."""

    kl: Tensor
    """the estimate of all held-out rows, shape ()"""
    logps: Iterator[Tensor]
    """the reference's, of each batch, shape (rows,)"""


class CheckedKTOTrainer(StageTrainer, AnswerHooks, PromptByPrompt, StepInPasses, KTOTrainer):
    """TRL's trainer, on rows tokenised by tiebreak.chat.chat, with its reference checked at the first batch."""

    precompute_ref_logps: bool
    together = 1
    losses_that_add_up = frozenset(KTO_LOSSES)
    """given the KL, which is of the whole batch"""
    _kl: Tensor | None = None
    _held_out: HeldOutReference | None = None
    """during an evaluation"""

    def prepare_model(self) -> None:
        switch_off_noise(self.model)
        if self.ref_model is None:
            Adapter(self.model, POLICY).copy_to(reference_name(self.model))  # TRL skips adapters on embeddings

    def losses(self) -> Sequence[str]:
        return [self.loss_type]

    def prepare_rows(self, rows: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """Disabled: TRL would tokenise again, and pair prompts with answers by the order of the file."""
        return rows

    def of_whole_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """With the reference's log-probabilities, and the estimate of the KL instead of the mismatched rows."""
        if "ref_logps" in inputs:
            return inputs
        made = {key: value for key, value in inputs.items() if not key.startswith("KL_")}
        if self._held_out is not None:
            return made | {"ref_logps": next(self._held_out.logps), KL: self._held_out.kl}
        reference, differences = self._compare(inputs)
        made["ref_logps"] = reference
        return made if differences is None else made | {KL: differences.mean()}

    def _compare(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """(the reference's log-probabilities, policy less reference on mismatched answers), each of shape (rows,)."""
        reference, mismatched_reference = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        if not self.calculate_KL:
            return reference, None
        with torch.no_grad(), self.compute_loss_context_manager():
            policy = super().mismatched_logps(self.model, inputs)
        self._check(policy, mismatched_reference)
        return reference, policy - mismatched_reference

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """transformers', after an estimate of the KL from all of its rows."""
        self._held_out = self._reference_of(dataloader) if self.calculate_KL else None
        try:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self._held_out = None

    def _reference_of(self, loader: Any) -> HeldOutReference:
        self.model.eval()
        logps, total = [], torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for number, batch in enumerate(loader):
            reference, differences = self._compare(prepare_batch(self, batch))
            logps.append(reference)
            if differences is not None and number < self.batches_counted:
                total += torch.stack([differences.double().sum(), total.new_tensor(len(differences))])
        if self.accelerator.num_processes > 1:
            total = self.accelerator.reduce(total, reduction="sum")
        return HeldOutReference((total[0] / total[1]).float(), iter(logps))

    def mismatched_logps(self, model: Any, batch: dict[str, Any]) -> Tensor | None:
        """Those of the whole batch less the reference's, as one row."""
        return self._kl if self.calculate_KL else None

    def answer_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        inputs = dict(self.of_whole_batch(inputs))
        estimate = inputs.pop(KL, None)
        self._kl = None if estimate is None else estimate.reshape(1)
        if estimate is not None:
            inputs["ref_KL_logps"] = torch.zeros_like(estimate).reshape(1)
        policy = RecordingModel(model)
        before, self.precompute_ref_logps = self.precompute_ref_logps, True  # TRL then reads the two columns
        try:
            result = super().answer_loss(policy, inputs, return_outputs)
        finally:
            self.precompute_ref_logps = before
        if self.state.global_step == 0 and self.model.training:
            self._check_first(result[0] if return_outputs else result, policy.output, inputs)
        return result

    def _check(self, policy: Tensor, reference: Tensor) -> None:
        if self.state.global_step == 0 and self.model.training:
            routed = is_routed(whole_model(self.model))
            check_reference(policy.detach(), reference, computed_dtype(self), routed=routed)

    def _check_first(self, loss: Tensor, output: Any, inputs: dict[str, Any]) -> None:
        logps = output.log_probs.sum(1).detach()
        self._check(logps, inputs["ref_logps"])
        answers = Answers(
            ratio=logps - inputs["ref_logps"],
            good=inputs["label"].bool(),
            kl=logps.new_tensor(metrics_of(self)["train"]["kl"][-1]),
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        expected = kto_loss(answers)  # of apo_zero_unpaired too: its KL is 0
        if self.aux_loss_enabled:
            expected = expected + self.router_aux_loss_coef * output.aux_loss
        check_first_loss(loss, expected, self.loss_type)

    def metric_weights(self, inputs: dict[str, Any]) -> dict[str, int]:
        good = int(inputs["label"].sum())
        tokens = inputs["completion_mask"][:, 1:].sum(1)
        of_good = int(tokens[inputs["label"].bool()].sum())
        return {
            **super().metric_weights(inputs),
            "/chosen": good,
            "/rejected": len(inputs["label"]) - good,
            "entropy": int(tokens.sum()),
            "logits/chosen": of_good,
            "logits/rejected": int(tokens.sum()) - of_good,
        }

    def join_metrics(self, logged: Any, weights: Any, mode: str = "train") -> None:
        """As TRL has it for the whole batch: the margin is the difference of the two means."""
        super().join_metrics(logged, weights, mode)
        metrics = metrics_of(self)[mode]
        if sum(weights["/chosen"]) and sum(weights["/rejected"]):
            margin = metrics["rewards/chosen"][-1] - metrics["rewards/rejected"][-1]
            metrics["rewards/margins"][logged.get("rewards/margins", 0) :] = [margin]


class KTO(TrainedStage[DPOConfig, LabelledAnswer, EncodedAnswer]):
    """The stage."""

    name = "dpo"
    rows_name, rows_key = "labelled answers", "preferences"
    guard: Guard | None = None

    def held_out_prompts(self) -> list[Prompt]:
        return [Prompt(id=row.prompt_id, messages=row.prompt, tools=row.tools) for row in self.data.validation]

    def check(self) -> None:
        require_adapter_of(self.source, self.config)

    def read(self) -> tuple[list[LabelledAnswer], list[LabelledAnswer]]:
        return partition(read_answers(self.config.preferences, self.rules), lambda one: one.split)

    def encode(self, rows: list[LabelledAnswer], *, held_out: bool) -> list[EncodedAnswer]:
        if held_out and self.config.guard is not None:
            require_held_out(self.run, len(rows))
        encoded = encode(rows, self.chat, self.config, self.dropping)
        if not held_out:
            require_balance(encoded, self.config)
        return encoded

    def example(self, row: EncodedAnswer) -> EncodedSequence:
        return EncodedSequence(row.prompt + row.answer, [0] * len(row.prompt) + row.learned)

    def build(self, rows: Rows[EncodedAnswer], recorder: RunRecorder) -> CheckedKTOTrainer:
        """TRL's trainer on the policy, with its reference and its guard."""
        config, source, tokenizer = self.config, self.source, self.chat.tokenizer
        held_out = evaluation_rows(rows.validation, config.training)
        spares = spares_of(rows.train) if config.loss_type == ["kto"] else ()
        trainer = CheckedKTOTrainer(
            model=load_policy(source, config.training, config.adapter, tokenizer, self.first_ids(rows)),
            ref_model=reference_of(source, config),
            args=build_kto_args(config, self.run),
            train_dataset=to_dataset(rows.train, shuffled=True),
            eval_dataset=to_dataset(held_out, spares=spares) if held_out else None,
            processing_class=tokenizer,
            data_collator=AnswerCollator(
                pad_token_id=self.chat.pad_id,
                max_length=config.training.max_length_tokens,  # of mismatched pairs; no other is longer
                spares=spares,
            ),
            passes=Passes(config.training.tokens_per_pass, config.share_prefixes),
        )
        if config.sync_ref_model:
            trainer.add_callback(SyncedReference(trainer, config.ref_model_sync_steps))
        if config.guard is not None:
            self.guard = guard_direct(
                config.guard, config, recorder, trainer, source, self.chat, self.data.validation, self.dropping
            )
        return trainer

    def facts(self, rows: Rows[EncodedAnswer], trainer: Trainer) -> dict[str, Any]:
        return {
            "kinds": kinds_of_judgments(self.config, self.data.train),
            "labels": dict(zip(("desirable", "undesirable"), counts_of(rows.train), strict=True)),
            "precision": str(resolve_precision(self.config.training)),
            **(self.guard.facts() if self.guard else {}),
        }

    def products(self, rows: Rows[EncodedAnswer]) -> Products:
        shown = self.data.validation or self.data.train
        prompts = {p.prompt_id: Prompt(id=p.prompt_id, messages=p.prompt, tools=p.tools) for p in shown}
        return Products(list(prompts.values()), self.config.sampling)


def encode(
    answers: Sequence[LabelledAnswer], chat: Chat, config: DPOConfig, dropping: Run | None = None
) -> list[EncodedAnswer]:
    """Token ids of the labelled answers within the length limit."""

    def encode_one(answer: LabelledAnswer) -> EncodedAnswer:
        written = chat.encode_answer(answer)
        mask = None if all(written.trained) else written.trained
        return EncodedAnswer(written.prompt, written.completion, answer.label, mask)

    encoded = [made for _, made in encode_each(answers, encode_one, "labelled answers", dropping)]
    lengths = [len(e.prompt) + len(e.answer) for e in encoded]
    return drop_too_long(encoded, lengths, config.training.max_length_tokens, "labelled answers")


def counts_of(answers: Sequence[EncodedAnswer]) -> tuple[int, int]:
    """How many are desirable, and how many are not."""
    good = sum(answer.label for answer in answers)
    return good, len(answers) - good


def require_balance(answers: Sequence[EncodedAnswer], config: DPOConfig) -> None:
    """Report weights of the two labels outside the range that the paper advises.

    Raises:
        DataError: all answers have one label.
    """
    good, bad = counts_of(answers)
    if answers and not (good and bad):
        raise DataError(
            f"every one of the {len(answers)} labelled answers for training is {'desirable' if good else 'undesirable'}: "
            "KTO learns from both kinds" + ("; 'tiebreak sft' learns from good answers alone" if good else "")
        )
    ratio = config.desirable_weight * good / (config.undesirable_weight * bad) if bad else 1.0
    if answers and not 0.99 <= ratio <= RATIO_AT_MOST + 0.01:
        least = config.undesirable_weight * bad / good
        most = config.desirable_weight * good / bad
        say(
            f"{good} desirable and {bad} undesirable answers, which weigh {ratio:.2f} to 1; Ethayarajh et al. 2024 (Eq. 8) "
            f"advise 1 to 1.33: set desirable_weight from {least:.2f} to {RATIO_AT_MOST * least:.2f}, or "
            f"undesirable_weight from {most / RATIO_AT_MOST:.2f} to {most:.2f}"
        )


def spares_of(answers: Sequence[EncodedAnswer]) -> tuple[dict[str, Any], ...]:
    """Two rows with different prompts.

    Raises:
        DataError: there is one prompt only.
    """
    first = answers[0]
    other = next((answer for answer in answers if answer.prompt != first.prompt), None)
    if other is None:
        raise DataError(
            "all labelled answers have the same prompt: KTO's KL pairs prompts with answers to other prompts; give more "
            "prompts, or --loss-type apo_zero_unpaired, which has no KL"
        )
    return first.row(), other.row()


def to_dataset(
    answers: Sequence[EncodedAnswer], *, shuffled: bool = False, spares: Sequence[dict[str, Any]] = ()
) -> Dataset:
    """The collator's input.

    Args:
        shuffled: numbered, so that each epoch has an order of its own.
        spares: each prompt with another prompt's answer for the KL, these two if there is none.
    """
    from datasets import Dataset

    rows = [answer.row() for answer in answers]
    if any("mask" in row for row in rows):
        rows = [{**row, "mask": answer.learned} for row, answer in zip(rows, answers, strict=True)]
    if spares:
        rows = with_partners(rows, spares)
    made = Dataset.from_list(rows)
    return made.add_column(PROMPT_NUMBER, list(range(len(answers)))) if shuffled else made


def build_kto_args(config: DPOConfig, run: Run) -> KTOArguments:
    """TRL's arguments."""
    from trl import KTOConfig as KTOArguments

    return KTOArguments(
        **common_arguments(config.training, run),
        beta=config.beta,
        loss_type=config.loss_type[0],
        desirable_weight=config.desirable_weight,
        undesirable_weight=config.undesirable_weight,
        max_length=None,  # rows that are too long are already dropped
        pad_to_multiple_of=None,
    )
