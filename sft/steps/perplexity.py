"""The step `perplexity`: flags rows that a model finds far more, or far less, surprising than the others.

Perplexity is exp(−Σ log p / n) over a text's n tokens; the rows are compared by its logarithm. High values come from noise,
wrong encodings and other languages, low ones from repetition and texts that the model knows by heart (Wenzek et al. 2020,
section 3.3; Marion et al. 2023). Outliers are found by the modified z-score (Iglewicz and Hoaglin 1993): a distance from
the median of more than `deviations` times 1.4826 times the median distance.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from sft.configuration import PrepareConfig
from sft.steps.step import Ledger, Row, Step
from tiebreak.extras import require_training_packages
from tiebreak.measures.canaries import is_canary

if TYPE_CHECKING:
    from tiebreak.chat.chat import Chat

FEWEST_TOKENS = 8
"""Shorter texts are not measured: their perplexity depends on a word."""
FEWEST_ROWS = 20
"""Fewer rows have no outliers."""
SCALE = 1.4826
"""times the median distance from the median is the standard deviation of a normal distribution"""
EDGES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 4096)
"""edges of the histogram's bins"""
BATCH_ROWS = 500
DIGITS = 4
"""decimal places of a logarithm; further ones depend on how rows are batched"""


class Perplexity(Step):
    """The step."""

    order = "all at once"

    def __init__(self, config: PrepareConfig) -> None:
        super().__init__(config)
        require_training_packages("the step perplexity")
        self.settings = config.perplexity

    def run(self, rows: Sequence[Row], ledger: Ledger) -> Sequence[Row]:
        found = list(self._measured(rows))
        measured = [one for one in found if one is not None]
        low, high = limits_of(measured, self.settings.deviations)
        for row, value in zip(rows, found, strict=True):
            if value is not None and not low <= value <= high:
                side, limit = ("low", low) if value < low else ("high", high)
                reason = f"perplexity {math.exp(value):.4g} is {side}: the limit is {math.exp(limit):.4g}"
                ledger.flag(row, reason, f"perplexity is {side}")
        ledger.now.facts["perplexity"] = facts_of(measured, low, high) if measured else {"measured": 0}
        return rows

    def _measured(self, rows: Sequence[Row]) -> Iterator[float | None]:
        """The logarithm of each row's perplexity; None of rows that are not measured."""
        from tiebreak.config import LoadingConfig
        from tiebreak.models.find import find_model
        from tiebreak.models.load import load_frozen_policy
        from tiebreak.models.tokenizers import load_chat

        trust = self.config.trust_remote_code
        source = find_model(self.settings.model or self.config.policy, trust_remote_code=trust)
        chat = load_chat(source, trust_remote_code=trust)
        model = load_frozen_policy(source, LoadingConfig(trust_remote_code=trust))
        left = iter(rows)
        while some := list(islice(left, BATCH_ROWS)):
            yield from log_perplexities(model, chat, [_text(row) for row in some], self.settings.max_tokens)


def _text(row: Row) -> str:
    return "" if is_canary(row.prompt) else row.text


def log_perplexities(model: Any, chat: Chat, texts: Sequence[str], max_tokens: int) -> list[float | None]:
    """The logarithm of each text's perplexity: the mean of −log p of its tokens after the first. None of short texts."""
    from tiebreak.packed.logprobs import completion_logps_in_batches

    ids = [chat.tokenizer(text, add_special_tokens=False)["input_ids"][:max_tokens] for text in texts]
    long = [number for number, one in enumerate(ids) if len(one) >= FEWEST_TOKENS]
    found: list[float | None] = [None] * len(texts)
    if long:
        examples = [(ids[number][:1], ids[number][1:]) for number in long]
        for number, logps in zip(long, completion_logps_in_batches(model, examples, chat.pad_id, 16), strict=True):
            found[number] = round(-math.fsum(logps) / len(logps), DIGITS)
    return found


def limits_of(values: Sequence[float], deviations: float) -> tuple[float, float]:
    """(lowest, highest) value that is not an outlier.

    >>> low, high = limits_of([*range(-10, 11)], 2)
    >>> round(high / 1.4826, 4), low == -high
    (10.0, True)
    """
    if len(values) < FEWEST_ROWS:
        return -math.inf, math.inf
    middle = statistics.median(values)
    reach = deviations * SCALE * statistics.median(abs(value - middle) for value in values)
    return (middle - reach, middle + reach) if reach else (-math.inf, math.inf)


def facts_of(values: Sequence[float], low: float, high: float) -> dict[str, Any]:
    """What the report shows: limits as perplexities, and the number of rows in each bin."""
    perplexities = [math.exp(value) for value in values]
    counts = [0] * (len(EDGES) + 1)
    for one in perplexities:
        counts[bisect_right(EDGES, one)] += 1
    shown = {"low": low, "median": statistics.median(values), "high": high}
    limits = {name: round(math.exp(value), 3) for name, value in shown.items() if math.isfinite(value)}
    return {"measured": len(values), **limits, "edges": list(EDGES), "counts": counts}
