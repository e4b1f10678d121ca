"""A trained stage in one module, as somebody would add it: it imitates the chosen answers of preferences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from tiebreak.command.launch import stage_main
from tiebreak.stages import STAGES, Figure, Setting, Stage
from tiebreak.training.configuration import RowsConfig

if TYPE_CHECKING:
    from tiebreak.training.skeleton import TrainedStage

TOY = Stage(
    "toy",
    "toy_stage",
    "imitate the chosen answers of preferences",
    "toy_stage:ToyConfig",
    heavy=True,
    makes="policy",
    inputs={"policy": "policy", "preferences": "preferences"},
    title="Toy",
    metrics={"loss": "loss", "eval_loss": "held-out loss"},
    figures=(Figure("Loss of chosen answers", "nats per token", ("loss",)),),
    settings=(Setting("side", "side imitated"),),
)


def register() -> None:
    """The entry, as if it stood in tiebreak.stages."""
    STAGES[TOY.name] = TOY


class ToyConfig(RowsConfig):
    """`tiebreak toy`"""

    preferences: str
    """answers that were compared"""
    side: Literal["chosen", "rejected"] = "chosen"
    """which of them to imitate"""


def stage_class() -> type[TrainedStage[ToyConfig, Any, Any]]:
    """The stage; what it needs is imported here, so that help answers at once."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from tiebreak.chat.chat import EncodedSequence
    from tiebreak.data.reading import read_preferences
    from tiebreak.data.splits import partition
    from tiebreak.models.load import load_policy
    from tiebreak.records import Preference
    from tiebreak.tracking.recorder import RunRecorder
    from tiebreak.training.skeleton import Rows, TrainedStage
    from tiebreak.training.stage import common_arguments
    from tiebreak.training.trainer import StageTrainer

    class ToyTrainer(StageTrainer, SFTTrainer):
        pass

    def to_dataset(rows: list[EncodedSequence]) -> Dataset:
        labels = [[i if m else -100 for i, m in zip(r.input_ids, r.loss_mask, strict=True)] for r in rows]
        return Dataset.from_dict({"input_ids": [row.input_ids for row in rows], "labels": labels})

    class Toy(TrainedStage[ToyConfig, Preference, EncodedSequence]):
        name = "toy"

        def read(self) -> tuple[list[Preference], list[Preference]]:
            return partition(read_preferences(self.config.preferences, self.rules), lambda one: one.split)

        def encode(self, rows: list[Preference], *, held_out: bool) -> list[EncodedSequence]:
            pairs = [self.chat.encode_preference(row) for row in rows]
            sides = [chosen if self.config.side == "chosen" else rejected for chosen, rejected in pairs]
            return [
                EncodedSequence(s.prompt + s.completion, [0] * len(s.prompt) + [1] * len(s.completion)) for s in sides
            ]

        def example(self, row: EncodedSequence) -> EncodedSequence:
            return row

        def build(self, rows: Rows[EncodedSequence], recorder: RunRecorder) -> ToyTrainer:
            return ToyTrainer(
                model=load_policy(self.source, self.config.training, self.config.adapter, self.chat.tokenizer),
                args=SFTConfig(
                    **common_arguments(self.config.training, self.run),
                    max_length=None,
                    dataset_kwargs={"skip_prepare_dataset": True},
                ),
                train_dataset=to_dataset(rows.train),
                eval_dataset=to_dataset(rows.validation),
                processing_class=self.chat.tokenizer,
            )

    return Toy


def train(config: ToyConfig) -> None:
    """The stage."""
    from tiebreak.training.skeleton import train_stage

    train_stage(stage_class(), config)


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak toy`"""
    stage_main("toy", ToyConfig, train, arguments)
