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
        self.batch_size: int = batches.batch_size
        self.drop_last: bool = batches.drop_last
        self.sampler = batches.sampler  # accelerate tells it the epoch

    def __iter__(self) -> Iterator[list[int]]:
        step: list[int] = []
        for batch in self.batches:
            step += batch
            if len(step) == self.batch_size * self.processes:
                yield from _parts(step, self.processes)
                step = []
        if len(step) >= self.processes:
            yield from _parts(step, self.processes)

    def __len__(self) -> int:
        each = len(self.sampler) // self.processes
        steps = math.ceil(each / self.batch_size)
        return steps * self.processes


class SharedBatches:
    """Batches that every process computes, for fewer rows than there are processes: a mean over processes is then the
    rows' own."""

    def __init__(self, batches: Any, processes: int) -> None:
        """Args:
        batches: a torch BatchSampler.
        """
        self.batches, self.processes = batches, processes
        self.batch_size: int = batches.batch_size
        self.drop_last: bool = batches.drop_last
        self.sampler = batches.sampler

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            for _ in range(self.processes):
                yield list(batch)

    def __len__(self) -> int:
        return len(self.batches) * self.processes


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
        return self._evenly(super().get_train_dataloader())

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        return self._evenly(super().get_eval_dataloader(*args, **kwargs))

    def _evenly(self, loader: Any) -> Any:
        """The loader of several processes, without accelerate's own way: it repeats the first rows after the last, and does
        not pass the epoch on to the sampler once a resumed run skips batches; transformers asks the shard."""
        shard, processes = loader.batch_sampler, self.args.world_size
        if processes > 1 and not isinstance(shard.batch_sampler, (EvenBatches, SharedBatches)):
            even = EvenBatches(shard.batch_sampler, processes)
            shard.batch_sampler = even if len(even) else SharedBatches(shard.batch_sampler, processes)
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
