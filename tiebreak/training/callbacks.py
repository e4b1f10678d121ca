"""Callbacks of transformers' trainers: progress bars, and the run's metrics and checkpoints."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tiebreak.models.adapters.virtual_tokens import encodes, save_encoder
from tiebreak.process.limit import Margin
from tiebreak.process.stopping import OUT_OF_TIME, Stopped, note, requested
from tiebreak.runs.checkpoints import delete_old, facts_of, mark_complete
from tiebreak.terminal.bars import Bar
from tiebreak.terminal.progress import Screen
from tiebreak.tracking.recorder import RunRecorder
from tiebreak.upstream import set_trained_tokens, trained_tokens

if TYPE_CHECKING:
    from transformers import Trainer


class ProgressBars(TrainerCallback):
    """Bars of training and of the evaluations within it, with the figures worth watching; all are in metrics.jsonl."""

    def __init__(self, screen: Screen, metrics: Mapping[str, str]) -> None:
        self._screen = screen
        self._metrics = {key: name for key, name in metrics.items() if not key.startswith("eval_")}
        self._training: Bar | None = None
        self._evaluation: Bar | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training = self._screen.begin(state.max_steps, "training", done=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._training is not None:
            self._training.advance_to(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        figures = [f"{name} {logs[key]:.3f}" for key, name in self._metrics.items() if logs and key in logs]
        if self._training is not None and figures:
            self._training.show(", ".join(figures))

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        if self._evaluation is None:
            self._evaluation = self._screen.begin(len(eval_dataloader), "evaluating")
        self._evaluation.advance()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._evaluation is not None:
            self._evaluation.end()
        self._evaluation = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._training is not None:
            self._training.end()
        self._training = None


class NothingToTrainError(Exception):
    """The checkpoint is of the last step. transformers would otherwise take another step first."""


class TokenCount(TrainerCallback):
    """Saves the count of trained tokens (`num_tokens`) in checkpoints: TRL's trainers restart it at 0 when they resume.

    SFT, reward training and DPO have it; the others do not.
    """

    FILE = "tokens.json"

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / self.FILE
        if state.global_step and file.is_file():
            set_trained_tokens(self.trainer, json.loads(file.read_text()))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        count = trained_tokens(self.trainer)
        if state.is_world_process_zero and count is not None:
            file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / self.FILE
            file.write_text(json.dumps(count))


class EncoderWeights(TrainerCallback):
    """Saves P-tuning's encoder in checkpoints: PEFT saves the embeddings that it computes. Sharded ones are in the
    checkpoints of DeepSpeed and FSDP."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer.is_deepspeed_enabled or self.trainer.is_fsdp_enabled:
            return
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        if state.is_world_process_zero and encodes(model):
            save_encoder(model, Path(args.output_dir) / f"checkpoint-{state.global_step}")


@runtime_checkable
class ChecksLosses(Protocol):
    """A trainer that notes the losses of a step."""

    def require_finite_losses(self) -> None:
        """Before the optimizer's step."""


EVALUATE_NEXT = "evaluate_next"
"""in a checkpoint's marker: a signal postponed the evaluation of its step"""


class RunCallback(TrainerCallback):
    """Writes the trainer's logs to the run, marks a checkpoint complete once all of it is on disk, and ends the training
    there if a signal asked for it."""

    def __init__(self, recorder: RunRecorder, trainer: Trainer) -> None:
        self.recorder, self.trainer = recorder, trainer
        self.stopped_by = 0
        """the signal, once every process has it"""
        self.evaluates_next = False
        self.generators = generator_states()
        """as they were before the step that is computed now"""
        self.margin = Margin()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.recorder.keep_up_to(state.global_step)
        self.margin = Margin()
        if state.global_step >= state.max_steps:
            raise NothingToTrainError
        if state.is_world_process_zero:
            self.recorder.run.steps = state.max_steps
            self.recorder.run.note_seconds()
        if state.global_step:
            self.evaluates_next = bool(facts_of(_checkpoint(args, state)).get(EVALUATE_NEXT))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.generators = generator_states()
        if self.evaluates_next:
            self.evaluates_next = False
            self.trainer.evaluate()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if isinstance(self.trainer, ChecksLosses):
            self.trainer.require_finite_losses()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_training_stop and state.global_step < state.max_steps:
            control.should_save = False  # a run resumed from an early end would continue: it gets there again
            return
        self.margin.step_ended()
        if (
            state.is_world_process_zero
            and not requested()
            and self.margin.is_reached
            and state.global_step < state.max_steps
        ):
            note(OUT_OF_TIME)
        self.stopped_by = requested_of_any()
        if self.stopped_by:
            self.evaluates_next, control.should_evaluate = control.should_evaluate, False
            control.should_save = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "train_runtime" not in logs:
            self.recorder.row(state.global_step, logs)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if dist.is_available() and dist.is_initialized():
            dist.barrier()  # every process has written its part
        if state.is_world_process_zero:
            run = self.recorder.run
            mark_complete(_checkpoint(args, state), {EVALUATE_NEXT: self.evaluates_next, "key": run.key})
            run.note_seconds()
            delete_old(run.checkpoints, run.key)
        self.margin.saved()
        if self.stopped_by:
            if dist.is_available() and dist.is_initialized():
                dist.barrier()  # a launcher ends the other processes once one has ended
            raise Stopped(
                self.stopped_by, f"step {state.global_step} of {state.max_steps} is in {_checkpoint(args, state)}"
            )


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def requested_of_any() -> int:
    """The signal that stopped this or another process of the launch; 0 if none."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return requested()
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    numbers = torch.tensor(requested(), device=device)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return int(numbers)


GeneratorStates = tuple[Any, Any, torch.Tensor, list[torch.Tensor]]


def generator_states() -> GeneratorStates:
    """The states of all random generators: Python's, NumPy's, torch's."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), devices


def set_generators(states: GeneratorStates) -> None:
    """Restore them."""
    python, numpy, cpu, devices = states
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if devices:
        torch.cuda.set_rng_state_all(devices)
