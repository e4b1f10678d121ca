"""A mixin for the trainers of all stages: a signal cuts a step or an evaluation short, on one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor

from tiebreak.packed.proof import Proof
from tiebreak.process.stopping import interruptible
from tiebreak.training.callbacks import RunCallback, generator_states
from tiebreak.upstream import Hooks


class StageTrainer(Hooks):
    """It goes first. Several processes would wait for one another: there, a signal is heeded between steps."""

    proof: Proof | None = None
    """of the path by which batches, or log-probabilities, are computed; None: it is the library's own"""

    def path_facts(self) -> dict[str, Any]:
        """For the manifest: that path."""
        return self.proof.facts() if self.proof else {}

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._interruptible():
            loss: Tensor = super().training_step(*args, **kwargs)
            return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self._interruptible_evaluation():
            figures: dict[str, float] = super().evaluate(*args, **kwargs)
            return figures

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: TRL writes a card into every checkpoint, and what a run says of itself is its manifest."""

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
