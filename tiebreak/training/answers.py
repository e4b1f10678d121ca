"""Answers of a policy in training to held-out prompts: the same prompts and the same seeds each time.

Monitors measure them, and a run's completions.jsonl shows them at every evaluation beside those before the first step:
of DPO and PPO, the reference's. Training is otherwise bit for bit the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tiebreak.chat.chat import Chat
from tiebreak.chat.rows import renderable
from tiebreak.config import SamplingConfig
from tiebreak.messages import content_id
from tiebreak.packed.generation import row_seed, sample_completions
from tiebreak.packed.sharding import at_own_pace
from tiebreak.records import Prompt
from tiebreak.terminal import say
from tiebreak.tracking.contents import read_rows
from tiebreak.tracking.recorder import RunRecorder

if TYPE_CHECKING:
    from transformers import Trainer

ANSWERS_AT_ONCE = 16
TABLE = "completions"


class HeldOutAnswers:
    """Some held-out prompts, and the policy that answers them."""

    def __init__(
        self,
        *,
        trainer: Trainer,
        model: Callable[[], Any],
        chat: Chat,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        max_tokens: int,
        most: int,
    ) -> None:
        self.trainer, self.model, self.chat, self.sampling = trainer, model, chat, sampling
        distinct = {prompt.id: prompt for prompt in prompts}.values()
        ranked = sorted(distinct, key=lambda prompt: content_id("rank", prompt.id))
        fitting = [(prompt, ids) for prompt, ids in renderable(ranked, chat) if len(ids) < max_tokens]
        self.asked = fitting[:most]

    @property
    def prompts(self) -> list[Prompt]:
        return [prompt for prompt, _ in self.asked]

    @torch.no_grad()
    def draw(self, count: int) -> list[str]:
        """The answers to the first `count` prompts, with seeds of their own."""
        asked, model, trainer = self.asked[:count], self.model(), self.trainer
        was_training = model.training
        model.eval()
        with at_own_pace(trainer.model_wrapped, model), trainer.accelerator.autocast():
            sampled = sample_completions(
                model,
                [ids for _, ids in asked],
                [row_seed("monitor", prompt.id) for prompt, _ in asked],
                self.sampling,
                stop_ids=self.chat.stop_ids,
                textless_ids=self.chat.textless_ids,
                pad_id=self.chat.pad_id,
                batch_size=ANSWERS_AT_ONCE,
            )
        model.train(was_training)
        return [self.chat.read(one.ids).text for one in sampled]


class CompletionsTable(TrainerCallback):
    """Writes completions.jsonl: a row for each prompt before the first step and at every evaluation."""

    def __init__(self, answers: HeldOutAnswers, recorder: RunRecorder, count: int) -> None:
        self.answers, self.recorder, self.count = answers, recorder, count

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self._add_rows(0)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step:
            self._add_rows(state.global_step)

    def _add_rows(self, step: int) -> None:
        started = time.monotonic()
        texts = self.answers.draw(self.count)
        before = self._before() if step else {}
        rows = [
            {
                "step": step,
                "prompt_id": prompt.id,
                "prompt": prompt.messages[-1].text,
                "before_training": before.get(prompt.id) if step else text,
                "completion": text,
            }
            for prompt, text in zip(self.answers.prompts[: self.count], texts, strict=True)
        ]
        try:
            self.recorder.extend_table(TABLE, rows)
        except OSError as error:
            say(f"warning: {TABLE}.jsonl cannot be written ({error.strerror})")
        self.recorder.leave_out(time.monotonic() - started)

    def _before(self) -> dict[str, str]:
        """The answers before the first step, which may have been drawn by an interrupted attempt."""
        rows = read_rows(self.recorder.run.folder / f"{TABLE}.jsonl")
        return {row["prompt_id"]: row["completion"] for row in rows if row["step"] == 0}
