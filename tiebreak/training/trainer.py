"""Mixin for all stages' trainers: a signal interrupts a step or an evaluation, on one process; a loss must be finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from tiebreak.models.adapters.virtual_tokens import is_virtual, load_virtual_tokens
from tiebreak.packed.proof import Proof
from tiebreak.process.stopping import interruptible
from tiebreak.training.callbacks import RunCallback, generator_states
from tiebreak.training.finite import StepLosses
from tiebreak.upstream import ResumeHook, SamplerHook, gather_whole


class EvenBatches:
    """An epoch's batches for several processes, one after the other: of its last rows each process has as many.

    What does not divide among them is left out, at most one row less than there are processes.
    """

    def __init__(self, batches: Any, processes: int) -> None:
        """Args:
        batches: a torch BatchSampler, whose batches go to the processes in turn.
        """
        self.batches, self.processes = batches, processes
        self.size: int = batches.batch_size
        self.batch_size: int | None = self.size
        self.drop_last: bool = batches.drop_last
        self.sampler = batches.sampler  # accelerate tells it the epoch

    def __iter__(self) -> Iterator[list[int]]:
        size = self.size * self.processes
        step: list[int] = []
        for batch in self.batches:
            step += batch
            if len(step) == size:
                yield from _parts(step, self.processes)
                step = []
        if len(step) >= self.processes:
            yield from _parts(step, self.processes)
        yield from self._of_rest(step[len(step) - len(step) % self.processes :])

    def _of_rest(self, rows: Sequence[int]) -> Iterator[list[int]]:
        """The batches of the rows that do not divide among the processes."""
        return iter(())

    @property
    def steps(self) -> int:
        """Batches of each process that hold rows of its own."""
        each = len(self.sampler) // self.processes
        return math.ceil(each / self.size)

    def __len__(self) -> int:
        return self.steps * self.processes


class EvaluatedBatches(EvenBatches):
    """An evaluation's batches for several processes: no row is left out.

    What does not divide among them is in batches that every process computes, since they wait for one another in each
    step, and that the first one counts.
    """

    def __init__(self, batches: Any, processes: int) -> None:
        super().__init__(batches, processes)
        self.batch_size = None  # else accelerate skips a batch that is not full if another follows

    def _of_rest(self, rows: Sequence[int]) -> Iterator[list[int]]:
        for start in range(0, len(rows), self.size):
            yield from [list(rows[start : start + self.size])] * self.processes

    def __len__(self) -> int:
        rest = len(self.sampler) % self.processes
        return super().__len__() + math.ceil(rest / self.size) * self.processes


def _ignore_epoch(_epoch: int) -> None:
    """Of a sampler whose order does not depend on it."""


def _parts(step: Sequence[int], processes: int) -> Iterator[list[int]]:
    size = len(step) // processes
    for number in range(processes):
        yield list(step[number * size : (number + 1) * size])


class StageTrainer(SamplerHook, ResumeHook):
    """Must be the first base. With several processes, signals are handled between steps: each waits for the others."""

    proof: Proof | None = None
    """of the path that computes batches or log-probabilities; None: the library's own"""
    batches_counted: float = math.inf
    """of an evaluation, by this process: the batches after them are counted by the first one"""
    _losses: StepLosses | None = None
    """of the step that is computed now"""
    _in_step = False

    def path_facts(self) -> dict[str, Any]:
        """The path, for the manifest."""
        return self.proof.facts() if self.proof else {}

    def load_weights(self, checkpoint: str, model: Any = None) -> None:
        trained = self.accelerator.unwrap_model(model or self.model)
        if is_virtual(trained):
            load_virtual_tokens(trained, Path(checkpoint))
            return
        super().load_weights(checkpoint, model)

    def train_sampler(self, rows: Any) -> Any:
        """transformers', its batches of similar length counted over all processes: so two processes with half a batch each
        see the rows of one with a whole batch, step by step."""
        from transformers.trainer_pt_utils import LengthGroupedSampler

        sampler = super().train_sampler(rows)
        if isinstance(sampler, LengthGroupedSampler):
            sampler.batch_size *= self.args.world_size
        return sampler

    def get_train_dataloader(self) -> Any:
        return self._shared_out(super().get_train_dataloader(), EvenBatches)

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        loader = self._shared_out(super().get_eval_dataloader(*args, **kwargs), EvaluatedBatches)
        if self.args.process_index > 0:
            self.batches_counted = loader.batch_sampler.batch_sampler.steps
        return loader

    def _shared_out(self, loader: Any, kind: type[EvenBatches]) -> Any:
        """The loader of several processes, without accelerate's own way: it repeats the first rows after the last, and does
        not pass the epoch on to the sampler once a resumed run skips batches; transformers asks the shard."""
        shard, processes = loader.batch_sampler, self.args.world_size
        if processes > 1 and not isinstance(shard.batch_sampler, EvenBatches):
            shard.batch_sampler = kind(shard.batch_sampler, processes)
            shard.batch_size = shard.batch_sampler.batch_size
            shard.even_batches = False
            shard.set_epoch = getattr(shard.batch_sampler.sampler, "set_epoch", _ignore_epoch)
            gather_whole(loader)
        return loader

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._interruptible(), self._noting_losses():
            loss: Tensor = super().training_step(*args, **kwargs)
            return loss

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.note_loss(loss, inputs)
        return loss

    def note_loss(self, loss: Any, inputs: Any) -> None:
        """Note a batch's loss, of shape (), for `require_finite_losses`."""
        if self._in_step and self._losses is not None:
            self._losses.add(loss, inputs, getattr(self, "together", 1))

    def require_finite_losses(self) -> None:
        """Before the optimizer's step, on every process.

        Raises:
            NotFiniteLossError: a loss of the step is not finite.
        """
        if self._losses is not None:
            self._losses.require_finite(self.state.global_step + 1, self.accelerator.num_processes)

    @contextmanager
    def _noting_losses(self) -> Iterator[None]:
        self._losses, self._in_step = self._losses or StepLosses(), True
        try:
            yield
        finally:
            self._in_step = False

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self._interruptible_evaluation():
            figures: dict[str, float] = super().evaluate(*args, **kwargs)
            return figures

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Disabled: TRL writes a card into every checkpoint, but a run's record is its manifest."""

    def _interruptible(self, *, at_once: bool = False) -> AbstractContextManager[None]:
        return interruptible(at_once=at_once) if self.accelerator.num_processes == 1 else nullcontext()

    @contextmanager
    def _interruptible_evaluation(self) -> Iterator[None]:
        callbacks = [one for one in self.callback_handler.callbacks if isinstance(one, RunCallback)]
        for callback in callbacks:
            callback.generators, callback.evaluates_next = generator_states(), True
        with self._interruptible(at_once=True):
            yield
        for callback in callbacks:
            callback.evaluates_next = False
