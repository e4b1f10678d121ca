"""A reward model from preferences: TRL's RewardTrainer with a LoRA adapter and a score head.

    tiebreak reward --config configs/quickstart/reward.yaml
    accelerate launch --config_file configs/accelerate/zero2.yaml -m reward.train --config configs/quickstart/reward.yaml

The adapter starts as the policy's, on the same base weights, so that PPO can hold policy and reward model on one
backbone. The held-out figures are measured on the saved model, in a fresh process.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from reward import report
from reward.calibration import fit_temperature
from reward.configuration import RewardConfig
from reward.examples import EncodedPreference, encode, prompt_keys
from reward.losses import bootstrap_counts
from reward.provenance import trace_origin
from reward.report import Exam, build_exam
from reward.trainer import PackedRewardTrainer
from tiebreak.chat.chat import Chat, EncodedSequence
from tiebreak.command.launch import stage_main
from tiebreak.data.pairs import read_pairs
from tiebreak.data.reading import read_edits, read_preferences
from tiebreak.data.splits import partition
from tiebreak.errors import DataError
from tiebreak.files import write_json
from tiebreak.messages import assistant
from tiebreak.models.load import load_reward_model
from tiebreak.models.reload import FreshProcess
from tiebreak.models.scores import ScoreScale, write_score_scale
from tiebreak.records import Preference
from tiebreak.runs.run import Run
from tiebreak.terminal import say
from tiebreak.tracking.recorder import RunRecorder
from tiebreak.training.labels import label_of, mean_one, report_unused_columns, require_a_verdict
from tiebreak.training.passes import Passes
from tiebreak.training.prompt_order import PROMPT_NUMBER, numbered
from tiebreak.training.skeleton import Rows, TrainedStage, train_stage
from tiebreak.training.stage import Products, common_arguments, evaluation_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer
    from trl import RewardConfig as RewardArguments


class Reward(TrainedStage[RewardConfig, Preference, EncodedPreference]):
    """The stage."""

    name = "reward"

    def read(self) -> tuple[list[Preference], list[Preference]]:
        preferences = read_preferences(self.config.preferences, self.rules)
        edits = read_edits(self.config.preferences, self.rules) if self.config.use_edits else []
        return partition([*preferences, *edits], lambda one: one.split)

    def encode(self, rows: list[Preference], *, held_out: bool) -> list[EncodedPreference]:
        """Token ids of the rows, with their labels. Held-out rows are the exam's examples."""
        if held_out:
            return label(self.exam.examples, self.config, bootstrap=False)
        report_unused_columns(rows, self.config)
        longest = self.config.training.max_length_tokens
        return label(encode(rows, self.chat, longest, self.dropping), self.config)

    @cached_property
    def exam(self) -> Exam:
        """The finished model's examination."""
        config, longest = self.config, self.config.training.max_length_tokens
        samples = encode_samples(config, self.chat)
        return build_exam(self.data.validation, self.chat, config.garbage_prompts, longest, samples, self.dropping)

    def example(self, row: EncodedPreference) -> EncodedSequence:
        return EncodedSequence(row.prompt + row.chosen, [0] * len(row.prompt) + [1] * len(row.chosen))

    def build(self, rows: Rows[EncodedPreference], recorder: RunRecorder) -> PackedRewardTrainer:
        config, tokenizer = self.config, self.chat.tokenizer
        held_out = evaluation_rows(rows.validation, config.training)
        return PackedRewardTrainer(
            model=load_reward_model(
                self.source, config.training, config.adapter, tokenizer, config.members, self.first_ids(rows)
            ),
            args=build_reward_args(config, self.run),
            train_dataset=to_dataset(rows.train, config.prompt_by_prompt),
            eval_dataset=to_dataset(held_out) if held_out else None,
            processing_class=tokenizer,
            passes=Passes(config.training.tokens_per_pass, config.share_prefixes),
        )

    def counts(self, rows: Rows[EncodedPreference], trainer: Trainer) -> dict[str, int]:
        return {"train": len(rows.train), "validation": len(self.exam.examples)}

    def facts(self, rows: Rows[EncodedPreference], trainer: Trainer) -> dict[str, Any]:
        return {"kinds": sorted({preference.kind for preference in self.data.train})}

    def products(self, rows: Rows[EncodedPreference]) -> Products:
        if not self.exam.examples:
            say("nothing is held out: there is no report on whether to trust this model")
        return Products(
            sequences=self.exam.sequences(),
            on_verified=lambda scores: keep_scale(self.run, self.exam.mark(scores), rows.train),
            report=self.report if self.exam.examples else None,
        )

    def report(self, process: FreshProcess) -> None:
        """Write the report on the saved model, and its figures into the manifest."""
        garbage = self.exam.garbage_sequences()
        marked = self.exam.mark(report.read_scores(self.run.final), process.scores(garbage) if garbage else [])
        origin = trace_origin(self.config.preferences)
        written = report.write_report(self.run, marked, origin, str(self.run.folder))
        self.run.amend({"metrics": report.report_metrics(written)}, made=[self.run.final / "report.json"])


def keep_scale(run: Run, marked: report.ScoredExam, train_set: Sequence[EncodedPreference]) -> None:
    """Write files for later stages beside the model: the scale of its scores, and its training prompts."""
    write_json(run.final / report.TRAINED_PROMPTS, sorted({key for e in train_set for key in prompt_keys(e.source)}))
    report.write_scores(run, marked)
    temperature = fit_temperature([pair.difference for pair in marked.pairs]) if marked.pairs else None
    write_score_scale(run.final, measure_scale(marked, temperature))


def label(
    examples: Sequence[EncodedPreference], config: RewardConfig, bootstrap: bool = True
) -> list[EncodedPreference]:
    """The examples with a positive weight, with their margins, targets and weights.

    Args:
        bootstrap: whether the members of an ensemble see different rows, as in training; all see all in evaluation.

    Raises:
        DataError: there are none, or all are ties.
    """
    labels = [label_of(e.source, config) for e in examples]
    counting = [(example, label) for example, label in zip(examples, labels, strict=True) if label.weight]
    if bootstrap and not counting and examples:
        raise DataError(
            "every preference has weight 0, so there is nothing to learn: fix the weights, or give --use-weights false"
        )
    if not counting:
        return []
    if bootstrap:
        require_a_verdict(labels)
    weights = np.array([[label.weight] for _, label in counting]).repeat(config.members, axis=1)
    if bootstrap:
        weights = weights * bootstrap_counts([e.group for e, _ in counting], config.members, config.training.seed)
    return [
        dataclasses.replace(example, margin=label.margin, target=label.target, weight=tuple(row))
        for (example, label), row in zip(counting, mean_one(weights).tolist(), strict=True)
    ]


def encode_samples(config: RewardConfig, chat: Chat) -> list[list[int]]:
    """Prompt and completion of at most `max_samples` answers of a sample run, spread evenly over it."""
    if config.samples is None:
        return []
    answers = [(pair, c) for pair in read_pairs(config.samples, stage="reward") for c in pair.completions]
    count = min(config.max_samples, len(answers))
    picked = [answers[place * len(answers) // count] for place in range(count)]
    encoded = [
        chat.encode_side(pair.messages, assistant(c.text), c.finished, pair.tools, c.ids, c.tokenizer_sha256)
        for pair, c in picked
    ]
    return [written.prompt + written.completion for written in encoded]


def measure_scale(marked: report.ScoredExam, temperature: float | None) -> ScoreScale:
    """The scale of the scores: from the samples if there are any; members' offsets from all scores."""
    real = [side for pair in marked.pairs for side in (pair.chosen, pair.rejected)] + marked.samples
    offsets = np.array(real).mean(axis=0) - np.mean(real) if real else np.zeros(1)
    means = [float(np.mean(members)) for members in marked.samples]
    return ScoreScale(
        temperature=temperature,
        offsets=tuple(offsets.tolist()),
        score_mean=float(np.mean(means)) if means else None,
        score_std=float(np.std(means)) if means else None,
        samples=len(means),
    )


def to_dataset(examples: Sequence[EncodedPreference], prompt_by_prompt: bool = False) -> Dataset:
    """TRL's collator's input; `prompt_by_prompt`: with the prompt's number of each row."""
    from datasets import Dataset

    rows = Dataset.from_list(
        [
            {
                "chosen_ids": e.prompt + e.chosen,
                "rejected_ids": e.prompt + e.rejected,
                "margin": e.margin,
                "target": e.target,
                "weight": list(e.weight),
                "length": len(e.prompt) + max(len(e.chosen), len(e.rejected)),
            }
            for e in examples
        ]
    )
    return rows.add_column(PROMPT_NUMBER, numbered([e.group for e in examples])) if prompt_by_prompt else rows


def build_reward_args(config: RewardConfig, run: Run) -> RewardArguments:
    """TRL's arguments."""
    from trl import RewardConfig as RewardArguments

    return RewardArguments(
        **common_arguments(config.training, run),
        max_length=None,  # rows that are too long are already dropped
        pad_to_multiple_of=None,
        center_rewards_coefficient=config.centering or None,
        train_sampling_strategy="group_by_length",
        length_column_name="length",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak reward`, `tiebreak reward report`, or `python -m reward.train`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["report"]:
        report.main(words[1:])
    else:
        stage_main("reward", RewardConfig, lambda config: train_stage(Reward, config), words)


if __name__ == "__main__":
    main()
