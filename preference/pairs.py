"""Pairs as token ids: encoding, weights, and the collator of every trainer on pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference

from preference.configuration import LOSSES_OF_PAIRS, DPOConfig
from preference.guarded import kinds_of_judgments
from preference.policy.overoptimisation import Guard, require_held_out
from preference.rater_em import PairVotes, RaterEM, collate_votes, require_votes, votes_of
from tiebreak.chat.chat import Chat, EncodedSequence
from tiebreak.chat.rows import encode_each
from tiebreak.data.reading import read_edits, read_preferences
from tiebreak.data.splits import partition
from tiebreak.errors import ConfigError, DataError
from tiebreak.models.precision import resolve_precision
from tiebreak.records import Preference, Prompt
from tiebreak.runs.run import Run
from tiebreak.terminal import say
from tiebreak.training.labels import Label, label_of, mean_one, report_unused_columns, require_a_verdict
from tiebreak.training.prompt_order import PROMPT_NUMBER, numbered
from tiebreak.training.skeleton import Rows, TrainedStage
from tiebreak.training.stage import Products, drop_too_long

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer

LABELS = ("margin", "target", "weight")
"""Columns of rows whose label has more than a preferred side; see tiebreak.training.labels."""
PLAIN = Label()
"""A label with only a preferred side."""


@dataclass(frozen=True)
class EncodedPair:
    """Token ids of a preference."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    masks: tuple[list[int], list[int]] | None = None
    """mask of the trained tokens of the two; None: all"""
    label: Label = PLAIN
    votes: PairVotes | None = None
    """with `rater_em`"""

    @property
    def learned(self) -> tuple[list[int], list[int]]:
        """1 on the trained tokens of each."""
        return self.masks or ([1] * len(self.chosen), [1] * len(self.rejected))


class PairCollator(DataCollatorForPreference):
    """TRL's collator, for answers with untrained parts (a masked thought, a tool's result), and for labels."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch, with its completion mask reduced, and a column of shape (pairs,) for each label."""
        batch: dict[str, Any] = super().torch_call(examples)
        batch |= {
            name: torch.tensor([e[name] for e in examples], dtype=torch.float) for name in LABELS if name in examples[0]
        }
        batch |= collate_votes(examples)
        rows = [(example, side) for side in ("chosen", "rejected") for example in examples]
        for row, (example, side) in enumerate(rows):
            mask = example.get(f"{side}_mask")
            if mask is not None:
                start = len(example["prompt_ids"])
                batch["completion_mask"][row, start : start + len(mask)] = torch.tensor(mask)
        return batch


def encode(
    preferences: Sequence[Preference], chat: Chat, config: DPOConfig, dropping: Run | None = None
) -> list[EncodedPair]:
    """Token ids of the preferences within the length limit."""

    def encode_one(preference: Preference) -> EncodedPair:
        chosen, rejected = chat.encode_preference(preference)
        masks = None if all((*chosen.trained, *rejected.trained)) else (chosen.trained, rejected.trained)
        label = label_of(preference, config)
        votes = votes_of(preference) if config.rater_em else None
        return EncodedPair(chosen.prompt, chosen.completion, rejected.completion, masks, label, votes)

    encoded = [made for _, made in encode_each(preferences, encode_one, "preferences", dropping)]
    lengths = [len(e.prompt) + max(len(e.chosen), len(e.rejected)) for e in encoded]
    return drop_too_long(encoded, lengths, config.training.max_length_tokens, "preferences")


def weigh(examples: Sequence[EncodedPair], config: DPOConfig, *, needed: bool = True) -> list[EncodedPair]:
    """The pairs with a positive weight, normalised to mean 1.

    Args:
        needed: whether there must be some.

    Raises:
        DataError: there are none, or all are ties.
        ConfigError: the weights differ, and a loss is not a mean over pairs.
    """
    counting = [example for example in examples if example.label.weight]
    if needed and examples and not counting:
        raise DataError(
            "every preference has weight 0, so there is nothing to learn: fix the weights, or give --use-weights false"
        )
    if needed:
        require_a_verdict([example.label for example in counting])
    labels = {example.label for example in counting}
    batchwise = [name for name in config.loss_type if name not in LOSSES_OF_PAIRS]
    differ = len(labels) > 1 or any(replace(label, weight=1.0) != PLAIN for label in labels)
    if differ and config.algorithm != "dpo":
        raise ConfigError(
            f"algorithm: {config.algorithm} counts every pair alike, so its rows cannot count by their weight, or be "
            "ties, as some of these preferences do; use --algorithm dpo; or give --use-weights false, and leave ties "
            "(strength 0) out"
        )
    if batchwise and differ:
        raise ConfigError(
            f"loss_type: {', '.join(batchwise)} compares a batch as a whole, so its rows cannot count by their weight, or "
            f"be ties, as some of these preferences do; use {', '.join(LOSSES_OF_PAIRS)}; or give --use-weights false, and "
            "leave ties (strength 0) out"
        )
    if len(counting) < len(examples):
        say(f"{len(examples) - len(counting)} of {len(examples)} preferences have weight 0 and were left out")
    weights = mean_one(np.array([[example.label.weight] for example in counting])) if counting else np.zeros((0, 1))
    return [
        replace(example, label=replace(example.label, weight=float(weight)))
        for example, (weight,) in zip(counting, weights, strict=True)
    ]


def to_dataset(examples: Sequence[EncodedPair], prompt_by_prompt: bool = False, em: RaterEM | None = None) -> Dataset:
    """TRL's collator's input.

    Args:
        prompt_by_prompt: with the prompt's number of each row.
        em: with each row's votes.
    """
    from datasets import Dataset

    labelled = em is not None or any(example.label != PLAIN for example in examples)
    rows = Dataset.from_list(
        [
            {
                "prompt_ids": e.prompt,
                "chosen_ids": e.chosen,
                "rejected_ids": e.rejected,
                "length": len(e.prompt) + max(len(e.chosen), len(e.rejected)),
                **(vars(e.label) if labelled else {}),
                **(em.columns(number) if em is not None else {}),
                **(dict(zip(("chosen_mask", "rejected_mask"), e.masks, strict=True)) if e.masks else {}),
            }
            for number, e in enumerate(examples)
        ]
    )
    return rows.add_column(PROMPT_NUMBER, numbered([tuple(e.prompt) for e in examples])) if prompt_by_prompt else rows


class PairStage(TrainedStage[DPOConfig, Preference, EncodedPair]):
    """The stage on pairs, except for its trainer."""

    name = "dpo"
    guard: Guard | None = None
    em: RaterEM | None = None

    def held_out_prompts(self) -> list[Prompt]:
        return [Prompt(id=row.prompt_id, messages=row.prompt, tools=row.tools) for row in self.data.validation]

    def read(self) -> tuple[list[Preference], list[Preference]]:
        preferences = read_preferences(self.config.preferences, self.rules)
        edits = read_edits(self.config.preferences, self.rules) if self.config.use_edits else []
        return partition([*preferences, *edits], lambda one: one.split)

    def encode(self, rows: list[Preference], *, held_out: bool) -> list[EncodedPair]:
        if held_out and self.config.guard is not None:
            require_held_out(self.run, len(rows))
        if not held_out:
            report_unused_columns(rows, self.config)
            if self.config.rater_em is not None:
                require_votes(rows)
        return weigh(encode(rows, self.chat, self.config, self.dropping), self.config, needed=not held_out)

    def example(self, row: EncodedPair) -> EncodedSequence:
        return EncodedSequence(row.prompt + row.chosen, [0] * len(row.prompt) + row.learned[0])

    def facts(self, rows: Rows[EncodedPair], trainer: Trainer) -> dict[str, Any]:
        return {
            "kinds": kinds_of_judgments(self.config, self.data.train),
            "precision": str(resolve_precision(self.config.training)),
            **(self.guard.facts() if self.guard else {}),
            **(self.em.facts() if self.em else {}),
        }

    def products(self, rows: Rows[EncodedPair]) -> Products:
        shown = self.data.validation or self.data.train
        prompts = [Prompt(id=p.prompt_id, messages=p.prompt, tools=p.tools) for p in shown]
        return Products(prompts, self.config.sampling)
