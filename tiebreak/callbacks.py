"""What transformers' trainers call while they train: the progress line, and the run's metrics and checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch.distributed as dist
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tiebreak.checkpoints import mark_complete
from tiebreak.tracking import RunRecorder


class ProgressLine(ProgressCallback):
    """The library's progress bar, with the few figures worth watching beside it; all of them are in metrics.jsonl."""

    SHOWN: ClassVar = {
        "loss": "loss",
        "mean_token_accuracy": "token accuracy",
        "accuracy": "accuracy",
        "rewards/accuracies": "accuracy",
        "rewards/margins": "margin",
        "objective/scores": "score",
        "objective/kl": "KL",
    }

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.training_bar is not None and logs:
            shown = {name: f"{logs[key]:.3f}" for key, name in self.SHOWN.items() if key in logs}
            if shown:
                self.training_bar.set_postfix(shown)


class NothingToTrainError(Exception):
    """The checkpoint is of the last step. transformers would take another one before it looks."""


class TokenCount(TrainerCallback):
    """Keeps the count of trained tokens (`num_tokens`) in checkpoints: TRL's trainers begin anew at 0 when they resume.

    `_total_train_tokens` is TRL's private counter, of its SFT, reward and DPO trainers; the others have none.
    """

    FILE = "tokens.json"

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / self.FILE
        if state.global_step and file.is_file():
            self.trainer._total_train_tokens = json.loads(file.read_text())

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero and hasattr(self.trainer, "_total_train_tokens"):
            file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / self.FILE
            file.write_text(json.dumps(self.trainer._total_train_tokens))


class RunCallback(TrainerCallback):
    """Writes the trainer's logs to the run, and marks a checkpoint complete once all of it is on disk."""

    def __init__(self, recorder: RunRecorder) -> None:
        self.recorder = recorder

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.recorder.keep_up_to(state.global_step)
        if state.global_step >= state.max_steps:
            raise NothingToTrainError

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_training_stop and state.global_step < state.max_steps:
            control.should_save = False  # a run that resumed from an early end would train on: it comes to it again

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
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", {})
            self.recorder.run.note_seconds()
