"""The guard of training on preferences: a held-out reward model chooses the policy to keep (preference.policy)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from preference.configuration import DPOConfig, GuardConfig
from preference.policy.backbone import Backbone
from preference.policy.overoptimisation import Guard, build_guard, reference_name
from preference.policy.rewards import readable
from tiebreak.chat.chat import Chat
from tiebreak.chat.rows import renderable
from tiebreak.config import SamplingConfig
from tiebreak.models.find import ModelSource
from tiebreak.records import LabelledAnswer, Preference, Prompt
from tiebreak.runs.run import Run, read_manifest
from tiebreak.tracking.recorder import RunRecorder
from tiebreak.training.stage import drop_too_long

if TYPE_CHECKING:
    from transformers import Trainer


def kinds_of_judgments(config: DPOConfig, training: Sequence[Preference | LabelledAnswer]) -> list[str]:
    """The kinds of judges behind the policy's data, and the guard's record: carried on to every figure."""
    kinds = {preference.kind for preference in training}
    if config.guard is not None:
        kinds |= set(read_manifest(config.guard.reward_model).get("kinds", []))
    return sorted(kinds)


def guard_direct(
    guard: GuardConfig,
    config: DPOConfig,
    recorder: RunRecorder,
    trainer: Trainer,
    source: ModelSource,
    chat: Chat,
    validation: Sequence[Preference | LabelledAnswer],
    dropping: Run | None = None,
) -> Guard:
    """Let a held-out reward model choose the policy to keep; the training's own score is the margin of implicit rewards."""
    prompts = {p.prompt_id: Prompt(id=p.prompt_id, messages=p.prompt, tools=p.tools) for p in validation}
    judged = readable(list(prompts.values()), [guard.reward_model], chat, config.training, dropping)
    encoded = [(ids, prompt) for prompt, ids in renderable(judged, chat)]
    lengths = [len(ids) for ids, _ in encoded]
    watching = build_guard(
        guard,
        recorder,
        backbone=Backbone(trainer.model, chat.pad_id, reference_name(trainer.model), chat.textless_ids),
        source=source,
        chat=chat,
        prompts=drop_too_long(encoded, lengths, config.training.max_length_tokens, "prompts of the guard"),
        sampling=SamplingConfig(  # uncut, so that the KL is of the sampling distribution
            temperature=config.sampling.temperature or 1.0, max_new_tokens=config.sampling.max_new_tokens
        ),
        training=config.training,
    )
    watching.watch(trainer)
    return watching
