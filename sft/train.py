"""Supervised fine-tuning: TRL's SFTTrainer with a LoRA adapter, loss on the assistant's tokens alone.

tiebreak sft --config configs/quickstart/sft.yaml
accelerate launch --config_file configs/accelerate/zero2.yaml -m sft.train --config configs/quickstart/sft.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trl import SFTTrainer

from sft.configuration import SFTConfig
from tiebreak.command.launch import stage_main
from tiebreak.data.reading import Rules, read_demonstrations
from tiebreak.data.splits import partition
from tiebreak.models.chat import Chat, Encoded, encode_each
from tiebreak.models.find import find_model
from tiebreak.models.load import adapter_of, load_policy
from tiebreak.models.tokenizers import load_chat
from tiebreak.records import Demonstration
from tiebreak.runs.run import Run, start_run, that_drops
from tiebreak.tracking.recorder import RunRecorder
from tiebreak.training.passes import StepInPasses
from tiebreak.training.stage import (
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
    from trl import SFTConfig as SFTArguments


class PackedSFTTrainer(StepInPasses, SFTTrainer):
    """TRL's trainer, its step in passes, each weighted by the tokens it learns from."""

    together = 1
    losses_that_add_up = frozenset({"nll"})

    def weight(self, inputs: dict[str, Any]) -> int:
        return int((inputs["labels"] != -100).sum())

    def losses(self) -> Sequence[str]:
        return [self.args.loss_type]

    def items(self, inputs: dict[str, Any]) -> Any:
        return (inputs["labels"][:, 1:] != -100).sum() * self.accelerator.num_processes

    def adds_up(self, num_items_in_batch: Any) -> bool:
        return num_items_in_batch is not None  # TRL divides by the tokens of the whole step then


def train_sft(config: SFTConfig) -> None:
    """The stage."""
    run = start_run(config, "sft")
    if describe(run):
        return
    source = find_model(config.policy, trust_remote_code=config.training.trust_remote_code)
    chat = load_chat(source, config.chat, config.training.trust_remote_code)
    tokenizer = chat.tokenizer
    training, validation = split_demonstrations(config, Rules.of(run))
    dropping = that_drops(run)
    train_set = encode(training, chat, config, dropping)
    validation_set = encode(validation, chat, config, dropping) if validation else []
    preflight(train_set, chat, "demonstrations")
    model = load_policy(source, config.training, config.adapter, tokenizer)

    recorder = RunRecorder(run)
    trainer = PackedSFTTrainer(
        model=model,
        args=build_sft_args(config, run),
        train_dataset=to_dataset(train_set),
        eval_dataset=to_dataset(evaluation_rows(validation_set, config.training)) if validation_set else None,
        processing_class=tokenizer,
    )
    trainer.compute_in_passes(config.training.tokens_per_pass, packed=config.padding_free)
    train(trainer, run, recorder)
    finish_adapter(
        trainer,
        run,
        recorder,
        model=trainer.model,
        chat=chat,
        source=source,
        kind="policy",
        adapter=adapter_of(source, config.adapter),
        probe_ids=train_set[0].input_ids,
        metrics=last_metrics(run),
        facts={"counts": {"train": len(train_set), "validation": len(validation_set)}, **trainer.path_facts()},
        prompts=[shown.prompt for shown in validation or training],
        sampling=config.sampling,
        merged=config.merge,
    )


def split_demonstrations(config: SFTConfig, rules: Rules) -> tuple[list[Demonstration], list[Demonstration]]:
    """(train, validation)."""
    return partition(read_demonstrations(config.demonstrations, rules), lambda shown: shown.prompt.split)


def encode(shown: list[Demonstration], chat: Chat, config: SFTConfig, dropping: Run | None = None) -> list[Encoded]:
    """Token ids and loss masks of the demonstrations that fit; several examples of one where a template rewrites turns."""
    last_only = config.loss_on == "last_answer"

    def examples_of(one: Demonstration) -> list[Encoded]:
        prompt = one.prompt
        conversation = (*prompt.messages, *one.answers)
        return chat.encode_conversation(conversation, last_only, prompt.tools, prompt_messages=len(prompt.messages))

    each = encode_each(shown, examples_of, "demonstrations", dropping)
    encoded = [example for _, made in each for example in made]
    limit = config.training.max_length_tokens
    return drop_too_long(encoded, [len(e.input_ids) for e in encoded], limit, "demonstrations")


def to_dataset(examples: list[Encoded]) -> Dataset:
    """What TRL's collator takes: ids, and labels with −100 where nothing is learned."""
    from datasets import Dataset

    rows: list[dict[str, Any]] = [
        {
            "input_ids": e.input_ids,
            "labels": [i if m else -100 for i, m in zip(e.input_ids, e.loss_mask, strict=True)],
            "length": len(e.input_ids),
        }
        for e in examples
    ]
    return Dataset.from_list(rows)


def build_sft_args(config: SFTConfig, run: Run) -> SFTArguments:
    """TRL's arguments."""
    from trl import SFTConfig as SFTArguments

    return SFTArguments(
        **common_arguments(config.training, run),
        max_length=None,  # rows that are too long were left out already
        pad_to_multiple_of=None,
        train_sampling_strategy="group_by_length",
        length_column_name="length",
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak sft`, or `python -m sft.train`."""
    stage_main("sft", SFTConfig, train_sft, arguments)


if __name__ == "__main__":
    main()
