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
from typing import TYPE_CHECKING

import numpy as np

from reward import report
from reward.calibration import fit_temperature
from reward.configuration import RewardConfig
from reward.examples import EncodedPreference, encode
from reward.losses import bootstrap_counts
from reward.provenance import trace_origin
from reward.report import Exam
from reward.trainer import PackedRewardTrainer
from tiebreak.command.launch import stage_main
from tiebreak.data.pairs import read_pairs
from tiebreak.data.reading import Rules, read_preferences
from tiebreak.data.splits import partition
from tiebreak.errors import DataError
from tiebreak.models.chat import Chat, Encoded
from tiebreak.models.find import find_model
from tiebreak.models.load import adapter_of, load_reward_model
from tiebreak.models.reload import FreshProcess
from tiebreak.models.scores import ScoreScale, write_score_scale
from tiebreak.models.tokenizers import load_chat
from tiebreak.records import Preference, assistant, write_json
from tiebreak.runs.run import Run, start_run, that_drops
from tiebreak.terminal import say
from tiebreak.tracking.recorder import RunRecorder
from tiebreak.training.labels import label_of, mean_one, report_unused_columns
from tiebreak.training.noise import switch_off_noise
from tiebreak.training.prompt_order import PROMPT_NUMBER, numbered
from tiebreak.training.stage import (
    common_arguments,
    describe,
    evaluation_rows,
    finish_adapter,
    last_metrics,
    preflight,
    train,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import RewardConfig as RewardArguments


def train_reward(config: RewardConfig) -> None:
    """The stage."""
    run = start_run(config, "reward")
    if describe(run, report=lambda process: report_again(config, run, process)):
        return
    source = find_model(config.policy, trust_remote_code=config.training.trust_remote_code)
    chat = load_chat(source, config.chat, config.training.trust_remote_code)
    training, validation = partition(read_preferences(config.preferences, Rules.of(run)), lambda one: one.split)
    if not training:
        raise DataError(f"{config.preferences} has no preference of the train split")
    report_unused_columns(training, config)
    train_set = label(encode(training, chat, config.training.max_length_tokens, that_drops(run)), config)
    exam = build_exam(config, validation, chat, run)
    evaluated = label(exam.examples, config, bootstrap=False)
    preflight(
        [Encoded(e.prompt + e.chosen, [0] * len(e.prompt) + [1] * len(e.chosen)) for e in train_set],
        chat,
        "preferences",
    )
    trainer = build_trainer(config, run, chat, train_set, evaluated)
    recorder = RunRecorder(run)
    train(trainer, run, recorder)

    finish_adapter(
        trainer,
        run,
        recorder,
        model=trainer.model,
        chat=chat,
        source=source,
        kind="reward",
        adapter=adapter_of(source, config.adapter),
        probe_ids=train_set[0].prompt + train_set[0].chosen,
        metrics=last_metrics(run),
        facts={
            **trainer.path_facts(),
            "counts": {"train": len(train_set), "validation": len(exam.examples)},
            "kinds": sorted({preference.kind for preference in training}),
        },
        sequences=exam.sequences(),
        on_verified=lambda scores: keep_scale(run, exam.mark(scores), train_set),
        report=(lambda process: write_report(config, run, exam, process)) if exam.examples else None,
    )
    if not exam.examples:
        say("nothing is held out: there is no report on whether to trust this model")


def build_exam(config: RewardConfig, validation: Sequence[Preference], chat: Chat, run: Run) -> Exam:
    """What the finished model is asked."""
    longest, samples = config.training.max_length_tokens, encode_samples(config, chat)
    return report.build_exam(validation, chat, config.garbage_prompts, longest, samples, that_drops(run))


def build_trainer(
    config: RewardConfig,
    run: Run,
    chat: Chat,
    train_set: Sequence[EncodedPreference],
    evaluated: Sequence[EncodedPreference],
) -> PackedRewardTrainer:
    """TRL's trainer on the labelled preferences, packed if the configuration wants it and the model can be."""
    trainer = PackedRewardTrainer(
        model=load_reward_model(
            find_model(config.policy, trust_remote_code=config.training.trust_remote_code),
            config.training,
            config.adapter,
            chat.tokenizer,
            config.members,
        ),
        args=build_reward_args(config, run),
        train_dataset=to_dataset(train_set, config.prompt_by_prompt),
        eval_dataset=to_dataset(evaluation_rows(evaluated, config.training)) if evaluated else None,
        processing_class=chat.tokenizer,
    )
    switch_off_noise(trainer.model)
    trainer.compute_in_passes(config.training.tokens_per_pass, packed=config.share_prefixes)
    return trainer


def keep_scale(run: Run, marked: report.Marked, train_set: Sequence[EncodedPreference]) -> None:
    """Write what later stages need beside the model: the scale of its scores, and what it was trained on."""
    write_json(run.final / report.TRAINED_PROMPTS, sorted({e.group for e in train_set}))
    report.write_scores(run, marked)
    temperature = fit_temperature([pair.difference for pair in marked.pairs]) if marked.pairs else None
    write_score_scale(run.final, measure_scale(marked, temperature))


def write_report(config: RewardConfig, run: Run, exam: Exam, process: FreshProcess) -> None:
    """Write the report on the saved model, and its figures into the manifest."""
    garbage = exam.garbage_sequences()
    marked = exam.mark(report.read_scores(run.final), process.scores(garbage) if garbage else [])
    written = report.write_report(run, marked, trace_origin(config.preferences), str(run.folder))
    run.amend({"metrics": report.report_metrics(written)}, made=[run.final / "report.json"])


def report_again(config: RewardConfig, run: Run, process: FreshProcess) -> None:
    """The report of a run that was finished without one."""
    chat = load_chat(
        find_model(config.policy, trust_remote_code=config.training.trust_remote_code),
        config.chat,
        config.training.trust_remote_code,
    )
    _, validation = partition(read_preferences(config.preferences, Rules.of(run)), lambda one: one.split)
    write_report(config, run, build_exam(config, validation, chat, run), process)


def label(
    examples: Sequence[EncodedPreference], config: RewardConfig, bootstrap: bool = True
) -> list[EncodedPreference]:
    """The examples that count for anything, with their margins, targets and weights.

    Args:
        bootstrap: whether the members of an ensemble see different rows, as in training; all see all in evaluation.

    Raises:
        DataError: no example counts for anything.
    """
    labels = [label_of(e.source, config) for e in examples]
    counting = [(example, said) for example, said in zip(examples, labels, strict=True) if said.weight]
    if bootstrap and not counting and examples:
        raise DataError(
            "every preference has weight 0, so there is nothing to learn: mend the weights, or give --use-weights false"
        )
    if not counting:
        return []
    weights = np.array([[said.weight] for _, said in counting]).repeat(config.members, axis=1)
    if bootstrap:
        weights = weights * bootstrap_counts([e.group for e, _ in counting], config.members, config.training.seed)
    return [
        dataclasses.replace(example, margin=said.margin, target=said.target, weight=tuple(row))
        for (example, said), row in zip(counting, mean_one(weights).tolist(), strict=True)
    ]


def encode_samples(config: RewardConfig, chat: Chat) -> list[list[int]]:
    """Prompt and completion of at most `max_samples` answers of a sample run, spread evenly over it."""
    if config.samples is None:
        return []
    answers = [(pair, c) for pair in read_pairs(config.samples) for c in pair.completions]
    count = min(config.max_samples, len(answers))
    picked = [answers[place * len(answers) // count] for place in range(count)]
    encoded = [
        chat.encode_side(pair.messages, assistant(c.text), c.finished, pair.tools, c.ids, c.tokenizer_sha256)
        for pair, c in picked
    ]
    return [written.prompt + written.completion for written in encoded]


def measure_scale(marked: report.Marked, temperature: float | None) -> ScoreScale:
    """The scale of the scores: by the samples where there are any; members' offsets by all that was scored."""
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
    """What TRL's collator takes; `prompt_by_prompt`: and which rows have one prompt."""
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
        max_length=None,  # rows that are too long were left out already
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
        stage_main("reward", RewardConfig, train_reward, words)


if __name__ == "__main__":
    main()
