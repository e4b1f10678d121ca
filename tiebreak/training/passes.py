"""A training step in passes with limited tokens, each with its own backward, so that memory depends on the pass.

The gradient of a mean over pairs is the sum of the passes' gradients, each weighted by its share of the pairs; so the
step equals TRL's, at no extra cost. (tiebreak.packed.forward can split a batch as well, for losses that couple its pairs;
but it computes every pass twice.)

Several processes synchronise within a pass: where weights are sharded at every layer, and wherever TRL gathers a metric.
So all of them run equally many passes, of equally many groups each, and, with whole weights, exchange gradients only
after the last one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tiebreak.packed.packing import pack_padded
from tiebreak.packed.parts import whole_model
from tiebreak.packed.positions import require_positions
from tiebreak.packed.proof import (
    TOKENS_CHECKED,
    BatchResult,
    ForwardPath,
    Forwards,
    Proof,
    gradients_of,
    has_auxiliary_loss,
    prove,
)
from tiebreak.terminal import say
from tiebreak.upstream import Hooks, metrics_of, prepare_batch, set_synchronises

TOKENS_PER_PASS = 640
"""per pass with its backward, on the CPU. In SFT, reward training and DPO of a 135M model, 1,024 made no difference to
time and took 19 to 26% more memory; 512 cost 2 to 6% of time. In PPO the rollout fragments the heap, and a process that
keeps freed memory grows by what does not fit: 4.0 GiB with a step of eight episodes at once, 3.0 with this."""
TOKENS_PER_PASS_GPU = 2048
"""GPUs are underused by small products. Chosen for the activations of a 7B model beside its weights; not measured."""


ROWS_LOOKED_AT = 512
"""rows of the training set, for the batch that verifies the path"""


def default_tokens_per_pass(device: torch.device) -> int:
    """The value of `training.tokens_per_pass: null` on a device."""
    return TOKENS_PER_PASS if device.type == "cpu" else TOKENS_PER_PASS_GPU


@dataclass(frozen=True)
class Passes:
    """Settings of a trainer's passes."""

    tokens: int | None = None
    """per pass (`training.tokens_per_pass`)"""
    packed: bool = True
    """without padding, if the model supports it"""


class StepInPasses(Hooks):
    """Mixin for TRL's trainers whose loss is a mean over the groups of a batch."""

    together = 2
    """rows per prompt in a batch; see tiebreak.packed.packing.pack_padded"""
    tokens_per_pass = TOKENS_PER_PASS
    losses_that_add_up: ClassVar[frozenset[str]] = frozenset()
    """losses that are known to be a mean over the groups of a batch; any other batch is computed whole"""
    proof: Proof | None
    batches_counted: float = math.inf
    """as in StageTrainer"""
    _share = 1.0
    _weights_of_step: Sequence[int] = ()
    """of the batches of an accumulated step"""
    _batches_done = 0

    def __init__(self, *args: Any, passes: Passes | None = None, **kwargs: Any) -> None:
        """TRL's, then the forward path verified.

        Args:
            passes: how batches are computed; None: as in TRL, until `compute_in_passes` is called.
        """
        self._evaluated: list[dict[str, int]] = []
        """weights of an evaluation's batches"""
        self._evaluated_losses: list[dict[str, Tensor]] = []
        """their losses, as `loss_sums`"""
        super().__init__(*args, **kwargs)
        if passes is not None:
            self.prepare_model()
            self.compute_in_passes(passes.tokens, packed=passes.packed)

    def prepare_model(self) -> None:
        """A stage's changes to its model before any computation."""

    def compute_in_passes(self, tokens: int | None, *, packed: bool) -> None:
        """Limit the tokens per pass, on the fastest path that agrees with the model's own forward.

        Args:
            packed: without padding, if the model supports it.

        Raises:
            ConfigError: a row is longer than the model has positions.
            ModelError: no path agrees.
        """
        sets = [rows for rows in (self.train_dataset, self.eval_dataset) if rows is not None]
        longest = max(max(lengths_of(rows)) for rows in sets)
        require_positions(whole_model(self.model).config, longest, "the longest rows (see training.max_length_tokens)")
        self.tokens_per_pass = tokens or default_tokens_per_pass(self.args.device)
        forwards = Forwards.of(self.model, together=self.together, tokens_per_pass=self.tokens_per_pass)
        self.proof = prove_step(self, forwards, packed=packed)
        if reason := self.why_whole():
            say(f"each batch has one backward pass, as {reason}: a large one takes more time, or more memory")

    def why_whole(self) -> str:
        """Why a batch is computed as a whole; empty if it can be split between groups."""
        whole = [name for name in self.losses() if name not in self.losses_that_add_up]
        if whole:
            return f"the loss {', '.join(whole)} is not among those that are a mean over rows"
        return "its experts are balanced over the whole batch" if getattr(self, "aux_loss_enabled", False) else ""

    def items(self, inputs: dict[str, Any]) -> Tensor | None:
        """The count of this batch on every process that transformers divides by."""
        return None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._weights_of_step, self._batches_done = [self.weight(batch) for batch in batches], 0
        return batches, items

    def share_of_step(self) -> float:
        """Of the next batch of an accumulated step, relative to a mean over its batches: the last may have fewer rows."""
        weights = self._weights_of_step
        if len(set(weights)) < 2:
            return 1.0
        return weights[self._batches_done] * len(weights) / sum(weights)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """transformers' step, once per pass; returns the loss of the whole batch."""
        inputs = self.of_whole_batch(inputs)
        parts = self._parts(inputs)
        self._share = of_step = 1.0 if self.adds_up(num_items_in_batch) else self.share_of_step()
        self._batches_done += 1
        try:
            return self._step_of_parts(model, inputs, parts, of_step, num_items_in_batch)
        finally:
            self._share = 1.0

    def _step_of_parts(
        self, model: Any, inputs: dict[str, Any], parts: Sequence[dict[str, Any]], of_step: float, items: Any
    ) -> Tensor:
        if len(parts) == 1:
            return self._step(model, inputs, items)
        weights = [self.weight(part) for part in parts]
        shares = [weight / max(sum(weights), 1) for weight in weights]
        logged = {key: len(values) for key, values in metrics_of(self)["train"].items()}
        losses = []
        for number, (part, share) in enumerate(zip(parts, shares, strict=True), start=1):
            self._share = 1.0 if self.adds_up(items) else share * of_step
            with nullcontext() if number == len(parts) else more_to_come(self.accelerator, model):
                losses.append(self._step(model, part, items))
        self.join_metrics(logged, self._on_all_processes([self.metric_weights(part) for part in parts]))
        return torch.stack(losses).sum()

    def _step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's, scaled by the pass's share of the batch."""
        if self.model.training:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            return loss if self._share == 1.0 else loss * self._share
        inputs = self.of_whole_batch(inputs)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.note_evaluated(loss[0] if isinstance(loss, tuple) else loss, inputs)
        return loss if self._share == 1.0 else loss * self._share

    def note_evaluated(self, loss: Tensor, inputs: dict[str, Any]) -> None:
        """Note an evaluation's batch, of `of_whole_batch`, for `log`."""
        counts = len(self._evaluated) < self.batches_counted
        weights = self.metric_weights(inputs)
        sums = self.loss_sums(loss, inputs)
        self._evaluated.append(weights if counts else dict.fromkeys(weights, 0))
        self._evaluated_losses.append({key: value.detach().double() * counts for key, value in sums.items()})

    def loss_sums(self, loss: Tensor, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """What an evaluation's batch adds to its sums, each of shape (), by the weight that the sum is divided by (a key of
        `metric_weights`): the evaluation's loss is the sum of the quotients."""
        return {"": loss.detach().double() * self.weight(inputs)}

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """TRL's and transformers', in which every batch of an evaluation counts alike: here every row does, and for a mean
        over tokens every token. So no figure depends on the batches, or on the number of processes."""
        if self._evaluated:
            weights = self._on_all_processes(self._evaluated)
            self.join_metrics({}, weights, "eval")
            means = [self._sum_evaluated(key) / max(sum(weights[key]), 1) for key in self._evaluated_losses[0]]
            if "eval_loss" in logs:
                logs["eval_loss"] = sum(means)
            self._forget_evaluated()
        super().log(logs, *args, **kwargs)

    def _sum_evaluated(self, key: str) -> float:
        """Over the batches of all processes."""
        total = torch.stack([sums[key] for sums in self._evaluated_losses]).sum()
        if self.accelerator.num_processes > 1:
            total = self.accelerator.reduce(total, reduction="sum")
        return float(total)

    def _forget_evaluated(self) -> None:
        self._evaluated.clear()
        self._evaluated_losses.clear()

    def of_whole_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch, with the facts about the whole batch that its passes need, as tensors of shape () or with a row
        per sequence."""
        return inputs

    def weight(self, inputs: dict[str, Any]) -> int:
        """The pass's weight in the loss's mean: its groups."""
        return len(inputs["input_ids"]) // self.together

    def metric_weights(self, inputs: dict[str, Any]) -> dict[str, int]:
        """The weights of a pass, or of an evaluation's batch, in the means of metrics, by the end of their names; "" of all
        others. TRL leaves out a metric of a batch that has none of its rows."""
        return {"": self.weight(inputs)}

    def _on_all_processes(self, each: Sequence[dict[str, int]]) -> dict[str, list[int]]:
        """`metric_weights` of each pass, summed over the processes: TRL's metrics are over all of them."""
        table = torch.tensor([list(weights.values()) for weights in each], device=self.args.device)
        if self.accelerator.num_processes > 1:
            table = self.accelerator.reduce(table, reduction="sum")
        return dict(zip(each[0], table.T.tolist(), strict=True))

    def adds_up(self, num_items_in_batch: Any) -> bool:
        """Whether the passes' losses are already shares of the batch's."""
        return False

    def losses(self) -> Sequence[str]:
        """The names of the summed losses."""
        raise NotImplementedError

    def _parts(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The batch, split between groups."""
        return [take_groups(inputs, groups, self.together) for groups in self._groups(inputs)]

    def _groups(self, inputs: dict[str, Any]) -> list[list[int]]:
        """Group indices of each pass."""
        count = len(inputs["input_ids"]) // self.together
        if self.why_whole():
            return [list(range(count))]
        packing = pack_padded(inputs["input_ids"], inputs["attention_mask"], self.together, self.tokens_per_pass)
        if self.accelerator.num_processes > 1:
            alike: list[list[int]] = self._cut_alike(inputs, count, len(packing.rows))
            return alike
        rows = packing.row[:count].tolist()
        return [[group for group in range(count) if rows[group] == row] for row in sorted(set(rows))]

    def _cut_alike(self, inputs: dict[str, Any], count: int, fewest: int) -> list[list[int]]:
        """Group indices of each pass: equally many passes, of equally many groups each, on every process."""
        sequences = [
            row[mask].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
        ]
        order = sorted(range(count), key=lambda group: sequences[group])  # groups of one prompt side by side

        def fits(groups: list[int]) -> bool:
            part = take_groups({name: inputs[name] for name in ("input_ids", "attention_mask")}, groups, self.together)
            return len(pack_padded(**part, together=self.together, tokens_per_row=self.tokens_per_pass).rows) == 1

        able = (number for number in range(fewest, count) if all(map(fits, cut_evenly(order, number))))
        wanted = torch.tensor([[count, next(able, count)]], device=self.args.device)
        counts, numbers = self.accelerator.gather(wanted).unbind(1)
        if len(counts.unique()) > 1:  # no equal passes are possible: the forward is split instead
            return [order]
        return cut_evenly(order, int(numbers.max()))

    def join_metrics(
        self, logged: Mapping[str, int], weights: Mapping[str, Sequence[int]], mode: str = "train"
    ) -> None:
        """One value per step where each pass logged its own, averaged as TRL does; or per evaluation, over its batches.

        Args:
            logged: how many values each metric had before the step.
            weights: of the passes, by the end of a metric's name.
            mode: "train" or "eval".
        """
        for key, values in metrics_of(self)[mode].items():
            end = max((end for end in weights if key.endswith(end)), key=len)
            counted = [weight for weight in weights[end] if weight]
            new = values[logged.get(key, 0) :]
            if not new or len(new) != len(counted):
                continue
            joined = sum(value * (weight / sum(counted)) for value, weight in zip(new, counted, strict=True))
            if key.startswith(("min_", "max_")):
                joined = min(new) if key.startswith("min_") else max(new)
            values[logged.get(key, 0) :] = [joined]


# --- verification of the path before training


def prove_step(trainer: Any, forwards: Forwards, *, packed: bool) -> Proof:
    """Choose the fastest path whose results for a batch, in passes, equal the model's own forward for the whole batch."""
    scores = hasattr(whole_model(trainer.model), "score")
    candidates = [
        *([ForwardPath.PACKED] if packed else []),
        *([] if scores else [ForwardPath.PADDED]),
        ForwardPath.PLAIN,
        ForwardPath.ALONE,
    ]
    with _unobserved(trainer):
        trainer.aux_loss_enabled = getattr(trainer, "aux_loss_enabled", False) and has_auxiliary_loss(trainer.model)
        if trainer.aux_loss_enabled:  # it is over the whole batch
            candidates.remove(ForwardPath.ALONE)
        batch = prepare_batch(trainer, batch_to_check(trainer))
        forwards.take(candidates[-1])
        truth = _compute(trainer, batch, [list(range(len(batch["input_ids"]) // trainer.together))])

        def compute(path: ForwardPath) -> BatchResult:
            forwards.take(path)
            return _compute(trainer, batch, trainer._groups(batch))

        return prove(trainer.model, candidates, truth, compute)


def lengths_of(dataset: Any, count: int | None = None) -> list[int]:
    """Tokens of each of the first rows, from the column `length` or counted."""
    if "length" in dataset.column_names:
        return [int(length) for length in dataset.select_columns("length")[:count]["length"]]
    ids = [name for name in dataset.column_names if name.endswith("_ids")]
    rows = [{name: len(row[name]) for name in ids} for row in dataset.select_columns(ids).select(range(len(dataset)))]
    return [row.pop("prompt_ids", 0) + max(row.values()) for row in rows[:count]]


def batch_to_check(trainer: Any) -> dict[str, Any]:
    """The first rows of the training set within a token limit; otherwise the shortest row."""
    lengths = lengths_of(trainer.train_dataset, ROWS_LOOKED_AT)
    chosen: list[int] = []
    tokens = 0
    for row, length in enumerate(lengths):
        if tokens + trainer.together * length <= TOKENS_CHECKED:
            chosen.append(row)
            tokens += trainer.together * length
    if not chosen:
        chosen = [min(range(len(lengths)), key=lambda row: int(lengths[row]))]
    batch: dict[str, Any] = trainer.data_collator([trainer.train_dataset[row] for row in chosen])
    return batch


def _compute(trainer: Any, batch: dict[str, Any], groups: Sequence[Sequence[int]]) -> BatchResult:
    """Loss, gradient and log-probabilities or scores of a batch in passes; nothing is stored."""
    batch = trainer.of_whole_batch(batch)
    parts = [take_groups(batch, each, trainer.together) for each in groups]
    weights = [trainer.weight(part) for part in parts]
    items = trainer.items(batch)
    model = _RecordingModel(trainer.model)
    loss = 0.0
    gradients: dict[str, Tensor | None] = {}
    for part, weight in zip(parts, weights, strict=True):
        trainer._share = 1.0 if trainer.adds_up(items) else weight / max(sum(weights), 1)
        with trainer.compute_loss_context_manager():
            of_part = trainer.compute_loss(model, dict(part), num_items_in_batch=items)
        for name, gradient in gradients_of(of_part, trainer.model).items():
            before = gradients.get(name)
            gradients[name] = gradient if before is None else before if gradient is None else before + gradient
        loss += float(of_part.detach())
    trainer._share = 1.0
    return BatchResult(model.values(groups, len(batch["input_ids"]), trainer.together), loss, gradients)


class _RecordingModel:
    """A model called by TRL's losses, which records its results for every row."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._made: list[Tensor] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = self._model(*args, **kwargs)
        self._made.append((out.log_probs if kwargs.get("fused_lm_head") else out.logits).detach().float())
        return out

    def values(self, groups: Sequence[Sequence[int]], rows: int, together: int) -> Tensor:
        """Of all rows of the batch, in order."""
        count = rows // together
        table = self._made[0].new_zeros(rows, self._made[0].shape[1])
        for each, made in zip(groups, self._made, strict=True):
            table[[group + count * k for k in range(together) for group in each]] = made
        return table.flatten()


@contextmanager
def _unobserved(trainer: Any) -> Iterator[None]:
    """Within, compute batches without dropout, and restore the training state: metrics, modes, the device."""
    model: nn.Module = trainer.model
    training, device = model.training, next(model.parameters()).device
    tokens, trainer.tokens_per_pass = trainer.tokens_per_pass, min(trainer.tokens_per_pass, TOKENS_CHECKED // 2)
    trainer.current_gradient_accumulation_steps = 1  # set by the training loop, and divides an auxiliary loss
    model.eval()
    if device != trainer.args.device:
        model.to(trainer.args.device)
    try:
        yield
    finally:
        if device != trainer.args.device:
            model.to(device)
        model.train(training)
        trainer.tokens_per_pass = tokens
        for mode in ("train", "eval"):  # TRL's experimental trainers count every batch among those of training
            metrics_of(trainer)[mode].clear()
        trainer._forget_evaluated()


def mean_of_processes(accelerator: Accelerator, count: Tensor) -> Tensor:
    """A count's mean over the processes, shape (); on one, the count."""
    if accelerator.num_processes == 1:
        return count
    mean: Tensor = accelerator.reduce(count.double(), reduction="mean")
    return mean


@contextmanager
def more_to_come(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """A pass with its backward that is not the last of its step: no exchange of whole gradients, no update."""
    state = accelerator.gradient_state
    synchronises = state.sync_gradients
    set_synchronises(state, False)  # DeepSpeed updates the weights in the last backward pass of a step
    try:
        with model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext():
            yield
    finally:
        set_synchronises(state, synchronises)


def cut_evenly(order: Sequence[int], number: int) -> list[list[int]]:
    """Consecutive parts of nearly equal size."""
    size, longer = divmod(len(order), number)
    starts = [part * size + min(part, longer) for part in range(number + 1)]
    return [list(order[start:end]) for start, end in pairwise(starts)]


def take_groups(inputs: dict[str, Any], groups: Sequence[int], together: int) -> dict[str, Any]:
    """Some groups of a batch in TRL's order, from tensors with a row per sequence or per group."""
    count = len(inputs["input_ids"]) // together
    rows = [group + count * k for k in range(together) for group in groups]
    return {
        key: value
        if not isinstance(value, Tensor) or not value.ndim
        else value[rows if len(value) == count * together else list(groups)]
        for key, value in inputs.items()
    }
