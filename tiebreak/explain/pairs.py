"""The pairs that a model was trained on, and those among them that pull against the rest."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiebreak.errors import ConfigError
from tiebreak.records import Preference
from tiebreak.runs.chain import InputFinder
from tiebreak.runs.run import read_manifest

if TYPE_CHECKING:
    from tiebreak.chat.chat import Chat
    from tiebreak.explain.influence import TokenPair


@dataclass(frozen=True)
class Pull:
    """How a training pair moved the others."""

    pair: Preference
    pull: float
    """in units of the average pair's; negative: learning from it raised the others' loss"""


def pulls_of(run: str, chat: Chat, model: Any, count: int) -> tuple[list[Pull], int]:
    """The pulls of a reward model's training pairs, strongest against the rest first, and the number of all its pairs.

    Args:
        model: the reward model, with its LoRA adapter.
        count: of pairs, drawn at random, always the same ones.

    Raises:
        ConfigError: it was trained on none, or they are not found.
        HandoffError: it has no LoRA adapter.
    """
    from tiebreak.explain import influence
    from tiebreak.terminal.progress import progress

    pairs, rows = training_pairs(run, chat)
    drawn = sorted(random.Random(0).sample(range(len(pairs)), min(count, len(pairs))))
    sketch = influence.Sketch(influence.lora_parameters(model))
    losses = [lambda row=rows[n]: influence.reward_loss(model, row, chat.pad_id) for n in drawn]
    with progress(len(losses), "gradients of training pairs") as bar:
        values = influence.pulls(losses, sketch, lambda: bar.advance(1))
    return sorted(
        (Pull(pairs[n], value) for n, value in zip(drawn, values, strict=True)), key=lambda one: one.pull
    ), len(pairs)


def training_pairs(run: str, chat: Chat) -> tuple[list[Preference], list[TokenPair]]:
    """The pairs that a run was trained on, as records and as token ids.

    Raises:
        ConfigError: it was trained on none, or they are not found.
    """
    from tiebreak.data.reading import Rules, read_preferences
    from tiebreak.data.splits import partition
    from tiebreak.explain.influence import TokenPair

    manifest = read_manifest(run)
    recorded, config = manifest["inputs"].get("preferences"), manifest["config"]
    if recorded is None:
        raise ConfigError(f"--pairs: {run} was not trained on pairs")
    place = InputFinder().find(run, manifest, recorded).place or recorded["source"]
    rules = Rules(config.get("columns", {}), "drop", config.get("validation_share", 0.0), stage=str(manifest["stage"]))
    pairs = partition(read_preferences(str(place), rules), lambda one: one.split)[0]
    rows = []
    for pair in pairs:
        chosen, rejected = chat.encode_preference(pair)
        rows.append(TokenPair((chosen.prompt, chosen.completion), (rejected.prompt, rejected.completion)))
    return pairs, rows
