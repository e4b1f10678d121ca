"""How much of the planted canaries each policy memorised: their exposure (tiebreak.measures.canaries).

Every policy is measured on the canaries of every *prepare* run behind any of them: those that never saw them are the
control. The numbers' common beginning is computed once, and each of the 1,000 numbers by its own tokens.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from evaluation.configuration import EvaluateConfig
from tiebreak.chat.chat import Chat
from tiebreak.data.reading import read_rows
from tiebreak.measures.canaries import (
    FILE,
    LEVEL,
    NUMBERS,
    Canary,
    chance_exposure,
    chance_probability,
    exposure,
    rank_of,
)
from tiebreak.messages import Message
from tiebreak.models.find import find_model
from tiebreak.models.load import load_frozen_policy
from tiebreak.models.tokenizers import load_chat
from tiebreak.packed.logprobs import completion_logps_in_batches
from tiebreak.runs.cache import cached_batches
from tiebreak.runs.chain import manifest_chain
from tiebreak.runs.run import MANIFEST, Run
from tiebreak.terminal import say

Figures = dict[str, Any]
"""a policy's `canaries` in report.json"""


def find_canaries(policies: Sequence[str]) -> list[Canary]:
    """The canaries in the data that the policies were made from."""
    found: dict[Canary, None] = {}
    for policy in policies:
        if not (Path(policy) / MANIFEST).is_file():
            continue
        for folder, manifest in manifest_chain(policy, as_far_as_known=True):
            if manifest.get("canaries"):
                found |= dict.fromkeys(_read(folder))
    return list(found)


def _read(folder: str) -> list[Canary]:
    path = Path(folder) / "final" / FILE
    if not path.is_file():
        say(f"{path} is missing: whether its canaries were memorised cannot be measured")
        return []
    return [Canary(row["team"], row["number"], tuple(row["tickets"])) for _, row in read_rows(str(path))]


def measure_canaries(config: EvaluateConfig, run: Run, canaries: Sequence[Canary]) -> dict[str, Figures]:
    """The exposure of the canaries by policy; what is done is on disk."""
    return {name: figures_of(_ranks(config, run, name, canaries)) for name in config.policies}


def _ranks(config: EvaluateConfig, run: Run, name: str, canaries: Sequence[Canary]) -> list[float]:
    trust = config.training.trust_remote_code
    source = find_model(config.policies[name], trust_remote_code=trust)
    chat = load_chat(source, config.chat, trust)
    model = cache(lambda: load_frozen_policy(source, config.training))

    def ranks(batch: list[Canary], _: object) -> list[float]:
        return [_rank(model(), chat, one, config.batch_size) for one in batch]

    def parts(batch: list[Canary]) -> object:
        settings = [run.inputs[f"policy_{name}"].id, config.training.model_dump(mode="json")]
        return ["canaries", settings, [[one.team, one.number, list(one.tickets)] for one in batch]]

    found: list[float] = cached_batches(run, list(canaries), 1, ranks, f"canaries of {name}", parts)
    model.cache_clear()
    gc.collect()
    return found


def _rank(model: Any, chat: Chat, canary: Canary, batch_size: int) -> float:
    """The rank of the planted number among all numbers, after the question of the canary's first row."""
    asked = Message(role="user", content=canary.question(canary.tickets[0]))
    rows = [
        chat.encode_conversation((asked, Message(role="assistant", content=canary.answer(number))), False)[0].input_ids
        for number in range(NUMBERS)
    ]
    shared = next(place for place, ids in enumerate(zip(*rows, strict=False)) if len(set(ids)) > 1)
    examples = [(row[:shared], row[shared:]) for row in rows]
    logps = completion_logps_in_batches(model, examples, chat.pad_id, batch_size)
    return rank_of(canary.number, [sum(one) for one in logps])


def figures_of(ranks: Sequence[float]) -> Figures:
    """The figures of one policy."""
    exposures = [exposure(rank, NUMBERS) for rank in ranks]
    probability = chance_probability(exposures)
    return {
        "planted": len(ranks),
        "exposure_mean": statistics.fmean(exposures),
        "exposure_max": max(exposures),
        "exposure_of_chance": chance_exposure(NUMBERS),
        "chance_probability": probability,
        "memorised": probability < LEVEL,
    }
