"""Rows, tokens, operations and time of a stage."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiebreak.errors import TiebreakError
from tiebreak.plan.hardware import Hardware
from tiebreak.plan.shape import Shape

ROWS_LOOKED_AT = 200
CHARACTERS_A_TOKEN = 4.0
"""of English text; an estimate, so that no tokenizer is loaded"""
ROWS_ASSUMED = 10_000
SHARE_OF_PEAK = 0.4
"""of a device's rate in matrix products that training reaches; an assumption on GPUs, measured as 0.36 to 0.43 of a large
torch.mm on CPUs"""
BANDWIDTHS = {"h100": 3.35e12, "h200": 4.8e12, "a100-80": 2.04e12, "l40s": 0.864e12, "4090": 1.01e12, "cpu": 20e9}
"""bytes a second that a device reads from its memory, by the vendors' data sheets: what bounds sampling"""


@dataclass(frozen=True)
class Rows:
    """The size of a stage's data."""

    count: int
    tokens: float
    """mean tokens of a row: of a demonstration with its prompt, of a pair with its prompt once, of a prompt"""
    source: str
    """where both come from"""
    is_assumed: bool = False
    """whether the number is not known"""


@dataclass(frozen=True)
class Work:
    """A stage's computation, over all devices."""

    steps: int
    tokens: float
    """trained tokens, or drawn ones in PPO, with their prompts"""
    operations: float
    """of matrix products"""
    read: float = 0.0
    """bytes of weights and caches that sampling reads, on each device"""

    def seconds(self, hardware: Hardware, share: float) -> float:
        """Time at a share of the devices' peak rate; sampling at the rate of their memory."""
        computing = self.operations / (hardware.device.rate * hardware.count * share)
        return computing + self.read / BANDWIDTHS.get(hardware.device.name, 1e12)


def rows_of(source: str, limit: int, count: int | None, tokens: float | None) -> Rows:
    """The rows that an input names: counted in JSON Lines and finished runs, else assumed.

    Args:
        source: empty: none.
        limit: the longest row, in tokens.
        count: the number of rows, if the user states it.
        tokens: their mean length, if the user states it.
    """
    found, length = _look_into(Path(source)) if source else (0, 0.0)
    origin = "as stated" if count is not None else f"counted in {source}" if found else "assumed"
    rows = count if count is not None else found or ROWS_ASSUMED
    mean = tokens if tokens is not None else min(length or limit, limit)
    size = "" if tokens is not None else (
        f", their length by {CHARACTERS_A_TOKEN:g} characters a token" if length else ", each of the longest length"
    )  # fmt: skip
    return Rows(rows, mean, origin + size, count is None and not found)


def _look_into(path: Path) -> tuple[int, float]:
    """(rows, estimated tokens of one); zeros if that cannot be read cheaply."""
    files = [path] if path.is_file() else sorted((path / "final").glob("*.jsonl"))
    records = [file for file in files if file.suffix == ".jsonl" and file.stem not in ("judgments", "pairs")]
    if not records:
        return 0, 0.0
    wanted = [file for file in records if file.stem in ("preferences", "demonstrations")] or records
    count, characters, seen = 0, 0, 0
    try:
        with wanted[0].open(encoding="utf-8") as lines:
            for line in lines:
                count += 1
                if seen < ROWS_LOOKED_AT:
                    seen += 1
                    characters += _characters(json.loads(line))
    except (OSError, ValueError, TiebreakError):
        return 0, 0.0
    return count, characters / max(seen, 1) / CHARACTERS_A_TOKEN


_TEXTS = frozenset(
    "prompt completion chosen rejected messages content question answer instruction output text response".split()
)


def _characters(value: Any, name: str = "") -> int:
    """Characters of a row's texts."""
    if isinstance(value, str):
        return len(value) if name in _TEXTS else 0
    if isinstance(value, dict):
        return sum(_characters(inner, key) for key, inner in value.items())
    if isinstance(value, list):
        return sum(_characters(inner, name) for inner in value)
    return 0


def steps_of(rows: int, batch: int, epochs: float, most: int | None) -> int:
    """Optimizer steps over all epochs; a last batch that is not full counts, as in transformers."""
    steps = math.ceil(math.ceil(rows / batch) * epochs)
    return min(steps, most) if most else max(steps, 1)


def forward_operations(shape: Shape, tokens: float, context: float) -> float:
    """A forward pass: two operations per weight and token, and attention's products with half the context on average."""
    attention = 4 * shape.layers * shape.heads * shape.head_size * context / 2
    return tokens * (2 * shape.active_in_linears + attention)


def training_operations(shape: Shape, tokens: float, context: float, *, frozen: bool, checkpointing: bool) -> float:
    """Forward and backward: with frozen weights the gradient of the activations alone, as much as a forward; with trained
    ones, as much again for theirs. Checkpointing computes the forward twice."""
    forwards = (2 if frozen else 3) + (1 if checkpointing else 0)
    return forwards * forward_operations(shape, tokens, context)


def head_operations(shape: Shape, tokens: float, *, trains: bool) -> float:
    """The language-model head on `tokens`: its product, and one with its weights for the gradient."""
    return (4 if trains else 2) * tokens * shape.embedding
