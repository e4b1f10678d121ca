"""Supervised fine-tuning: TRL's SFTTrainer with a LoRA adapter, loss on the assistant's tokens only.

tiebreak sft --config configs/quickstart/sft.yaml
accelerate launch --config_file configs/accelerate/zero2.yaml -m sft.train --config configs/quickstart/sft.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trl import SFTTrainer

from sft.configuration import SFTConfig
from tiebreak.chat.chat import Chat, EncodedSequence
from tiebreak.chat.rows import encode_each
from tiebreak.command.launch import stage_main
from tiebreak.data.reading import read_demonstrations
from tiebreak.data.splits import partition
from tiebreak.models.load import load_policy
from tiebreak.records import Demonstration, Prompt
from tiebreak.runs.run import Run
from tiebreak.tracking.recorder import RunRecorder
from tiebreak.training.passes import Passes, StepInPasses
from tiebreak.training.skeleton import Rows, TrainedStage, train_stage
from tiebreak.training.stage import Products, common_arguments, drop_too_long, evaluation_rows
from tiebreak.training.trainer import StageTrainer

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import SFTConfig as SFTArguments


class PackedSFTTrainer(StageTrainer, StepInPasses, SFTTrainer):
    """TRL's trainer, its step in passes, each weighted by its trained tokens."""

    together = 1
    losses_that_add_up = frozenset({"nll"})

    def weight(self, inputs: dict[str, Any]) -> int:
        return int((inputs["labels"] != -100).sum())

    def losses(self) -> Sequence[str]:
        return [self.args.loss_type]

    def items(self, inputs: dict[str, Any]) -> Any:
        return (inputs["labels"][:, 1:] != -100).sum() * self.accelerator.num_processes

    def adds_up(self, num_items_in_batch: Any) -> bool:
        return num_items_in_batch is not None  # TRL then divides by the tokens of the whole step


class SFT(TrainedStage[SFTConfig, Demonstration, EncodedSequence]):
    """The stage."""

    name, rows_name = "sft", "demonstrations"

    def read(self) -> tuple[list[Demonstration], list[Demonstration]]:
        return partition(read_demonstrations(self.config.demonstrations, self.rules), lambda shown: shown.prompt.split)

    def encode(self, rows: list[Demonstration], *, held_out: bool) -> list[EncodedSequence]:
        return encode(rows, self.chat, self.config, self.dropping) if rows else []

    def example(self, row: EncodedSequence) -> EncodedSequence:
        return row

    def build(self, rows: Rows[EncodedSequence], recorder: RunRecorder) -> PackedSFTTrainer:
        config = self.config
        return PackedSFTTrainer(
            model=load_policy(self.source, config.training, config.adapter, self.chat.tokenizer, self.first_ids(rows)),
            args=build_sft_args(config, self.run),
            train_dataset=to_dataset(rows.train),
            eval_dataset=to_dataset(evaluation_rows(rows.validation, config.training)) if rows.validation else None,
            processing_class=self.chat.tokenizer,
            passes=Passes(config.training.tokens_per_pass, config.padding_free),
        )

    def held_out_prompts(self) -> list[Prompt]:
        return [shown.prompt for shown in self.data.validation]

    def products(self, rows: Rows[EncodedSequence]) -> Products:
        prompts = [shown.prompt for shown in self.data.validation or self.data.train]
        return Products(prompts, self.config.sampling, merged=self.config.merge)


def encode(
    shown: list[Demonstration], chat: Chat, config: SFTConfig, dropping: Run | None = None
) -> list[EncodedSequence]:
    """Token ids and loss masks of the demonstrations that fit; several examples for one if a template rewrites turns."""
    last_only = config.loss_on == "last_answer"

    def examples_of(one: Demonstration) -> list[EncodedSequence]:
        prompt = one.prompt
        conversation = (*prompt.messages, *one.answers)
        return chat.encode_conversation(conversation, last_only, prompt.tools, prompt_messages=len(prompt.messages))

    each = encode_each(shown, examples_of, "demonstrations", dropping)
    encoded = [example for _, made in each for example in made]
    limit = config.training.max_length_tokens
    return drop_too_long(encoded, [len(e.input_ids) for e in encoded], limit, "demonstrations")


def to_dataset(examples: list[EncodedSequence]) -> Dataset:
    """TRL's collator's input: ids, and labels with −100 on untrained tokens."""
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
        max_length=None,  # rows that are too long are already dropped
        pad_to_multiple_of=None,
        train_sampling_strategy="group_by_length",
        length_column_name="length",
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak sft`, or `python -m sft.train`."""
    stage_main("sft", SFTConfig, lambda config: train_stage(SFT, config), arguments)


if __name__ == "__main__":
    main()
