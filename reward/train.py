"""A reward model from preferences: TRL's RewardTrainer with a LoRA adapter and a score head.

    tiebreak reward --config configs/quickstart/reward.yaml
    accelerate launch --config_file configs/accelerate/zero2.yaml -m reward.train --config configs/quickstart/reward.yaml

The adapter starts as the policy's, on the same base weights, so that PPO can hold policy and reward model on one
backbone. The held-out figures are measured on the saved model, in a fresh process.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field
from trl import RewardTrainer

from tiebreak.chat import Encoded, encode_preference
from tiebreak.config import AdapterConfig, StageConfig, TrainingConfig
from tiebreak.errors import DataError
from tiebreak.launch import stage_main
from tiebreak.models import adapter_of, find_model, load_reward_model, load_tokenizer
from tiebreak.pairwise import pack_forward
from tiebreak.passes import StepInPasses
from tiebreak.records import Preference, read_preferences, split_preferences, write_json, write_jsonl
from tiebreak.runs import Run, start_run
from tiebreak.statistics import wilson_interval
from tiebreak.tracking import RunRecorder
from tiebreak.training import (
    common_arguments,
    describe,
    drop_too_long,
    evaluation_rows,
    finish_adapter,
    last_metrics,
    preflight,
    train,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase
    from trl import RewardConfig as RewardArguments

MAX_STRENGTH = 3


class RewardConfig(StageConfig):
    """`tiebreak reward`"""

    policy: str
    """the model to start from: usually the SFT run, whose adapter becomes the start of this one"""
    preferences: str
    """a label run, a .jsonl or .parquet file, or hub:NAME@SPLIT, in TRL's columns"""
    adapter: AdapterConfig | None = None
    """null: the policy's own; a policy without one needs it"""
    training: TrainingConfig = TrainingConfig()
    validation_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    """of raw data that names no splits"""
    margin_scale: float = Field(default=1.0, ge=0.0)
    """a pair of strength s (1 to 3) must be told apart by margin_scale·s/3 (Touvron et al. 2023, Eq. 2 and Table 27,
    small margin); rows without a strength have none"""
    centering: float = Field(default=0.01, ge=0.0)
    """weight of the squared sum of both scores, which keeps their mean near 0 (Eisenstein et al. 2023)"""
    share_prefixes: bool = True
    """compute a pair's prompt once, and no padding (see tiebreak.pairwise); false: TRL's own layout"""


@dataclass(frozen=True)
class EncodedPreference:
    """Token ids of a preference, and by how much its scores must differ."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    margin: float
    source: Preference


class PackedRewardTrainer(StepInPasses, RewardTrainer):
    """TRL's trainer, its step in passes."""


def train_reward(config: RewardConfig) -> None:
    """The stage."""
    run = start_run(config, "reward", {"policy": config.policy, "preferences": config.preferences})
    if describe(run):
        return
    source = find_model(config.policy)
    tokenizer = load_tokenizer(source, config.training.trust_remote_code)
    training, validation = split_preferences(read_preferences(config.preferences), config.validation_share)
    if not training:
        raise DataError(f"{config.preferences} has no preference of the train split")
    train_set = encode(training, tokenizer, config)
    validation_set = encode(validation, tokenizer, config)
    preflight(
        [Encoded(e.prompt + e.chosen, [0] * len(e.prompt) + [1] * len(e.chosen)) for e in train_set],
        tokenizer,
        "preferences",
    )
    model = load_reward_model(source, config.training, config.adapter, tokenizer)

    recorder = RunRecorder(run)
    trainer = PackedRewardTrainer(
        model=model,
        args=build_reward_args(config, run),
        train_dataset=to_dataset(train_set),
        eval_dataset=to_dataset(evaluation_rows(validation_set, config.training)) if validation_set else None,
        processing_class=tokenizer,
    )
    trainer.tokens_per_pass = config.training.tokens_per_pass
    if config.share_prefixes:
        pack_forward(trainer.model, together=2, tokens_per_pass=config.training.tokens_per_pass)
    train(trainer, run, recorder)

    def report(answer: dict[str, Any]) -> dict[str, Any]:
        return held_out_report(run, validation_set, answer["scores"])

    finish_adapter(
        trainer,
        run,
        recorder,
        model=trainer.model,
        tokenizer=tokenizer,
        source=source,
        kind="reward",
        adapter=adapter_of(source, config.adapter),
        probe_ids=train_set[0].prompt + train_set[0].chosen,
        metrics=last_metrics(run.folder, ("loss", "accuracy", "margin", "eval_loss")),
        facts={
            "counts": {"train": len(train_set), "validation": len(validation_set)},
            "kinds": sorted({preference.kind for preference in training}),
        },
        sequences=[e.prompt + side for e in validation_set for side in (e.chosen, e.rejected)],
        on_reloaded=report,
    )


def encode(
    preferences: Sequence[Preference], tokenizer: PreTrainedTokenizerBase, config: RewardConfig
) -> list[EncodedPreference]:
    """Token ids and margins of the preferences that fit."""
    encoded = []
    for preference in preferences:
        prompt, chosen, rejected = encode_preference(tokenizer, preference)
        margin = config.margin_scale * (preference.strength or 0.0) / MAX_STRENGTH
        encoded.append(EncodedPreference(prompt, chosen, rejected, margin, preference))
    lengths = [len(e.prompt) + max(len(e.chosen), len(e.rejected)) for e in encoded]
    return drop_too_long(encoded, lengths, config.training.max_length_tokens, "preferences")


def to_dataset(examples: Sequence[EncodedPreference]) -> Dataset:
    """What TRL's collator takes."""
    from datasets import Dataset

    return Dataset.from_list(
        [
            {
                "chosen_ids": e.prompt + e.chosen,
                "rejected_ids": e.prompt + e.rejected,
                "margin": e.margin,
                "length": len(e.prompt) + max(len(e.chosen), len(e.rejected)),
            }
            for e in examples
        ]
    )


def build_reward_args(config: RewardConfig, run: Run) -> RewardArguments:
    """TRL's arguments."""
    from trl import RewardConfig as RewardArguments

    return RewardArguments(
        **common_arguments(config.training, run),
        max_length=None,  # rows that are too long were left out already
        pad_to_multiple_of=None,
        center_rewards_coefficient=config.centering or None,
        train_sampling_strategy="group_by_length",
        length_column_name="length",
    )


def held_out_report(run: Run, examples: Sequence[EncodedPreference], scores: Sequence[float]) -> dict[str, Any]:
    """Accuracy on preferences the training never saw, with its 95% interval, beside what length alone would get.

    `scores` holds chosen and rejected in turn. Ties of length count as half.
    """
    if not examples:
        return {}
    chosen, rejected = scores[0::2], scores[1::2]
    right = sum(c > r for c, r in zip(chosen, rejected, strict=True))
    longer = sum(
        1.0 if len(e.chosen) > len(e.rejected) else 0.5 if len(e.chosen) == len(e.rejected) else 0.0 for e in examples
    )
    report = {
        "accuracy": right / len(examples),
        "accuracy_interval": wilson_interval(right, len(examples)),
        "n": len(examples),
        "length_baseline": longer / len(examples),
        "score_mean": statistics.fmean(scores),
        "score_std": statistics.pstdev(scores),
    }
    write_json(run.final / "report.json", report)
    rows = zip(examples, chosen, rejected, strict=True)
    write_jsonl(
        run.final / "validation_scores.jsonl",
        [
            {"prompt_id": e.source.prompt_id, "pair_id": e.source.pair_id, "chosen": c, "rejected": r}
            for e, c, r in rows
        ],
    )
    return {f"held_out_{key}": value for key, value in report.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak reward`, or `python -m reward.train`."""
    stage_main("reward", RewardConfig, train_reward, arguments)


if __name__ == "__main__":
    main()
