"""What transformers' trainers call while they train: the progress line, and the run's metrics and checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tiebreak.runs import CHECKPOINT_MARKER
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


class RunCallback(TrainerCallback):
    """Writes the trainer's logs to the run, and marks a checkpoint complete once all of it is on disk."""

    def __init__(self, recorder: RunRecorder) -> None:
        self.recorder = recorder

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.recorder.keep_up_to(state.global_step)

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
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            for path in folder.rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            (folder / CHECKPOINT_MARKER).touch()
