"""The reference's log-probabilities of pairs, computed once and kept in the user's cache.

DPO compares every pair with a model that never changes. So what it said of a pair is kept, under a hash of all that it
depends on: base weights, adapter, number format, libraries and device in the file's name, the pair's token ids (and with
them tokenizer, chat template and lengths) in its own key. A second epoch, a second beta, an evaluation and a resumed
run find it there.

The file is appended to, a line a pair with a checksum. A line that was cut off or damaged is not believed, and its pair
computed again. On a CPU each pair is computed by itself, so that its value does not depend on the batch it first came in.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiebreak.bundled import cache_folder
from tiebreak.passes import take_groups
from tiebreak.runs import hash_text

Compute = Callable[[dict[str, Any]], tuple[Tensor, Tensor]]
"""A batch of pairs in TRL's layout → the reference's log-probabilities of chosen and rejected, each of shape (pairs,)"""


class ReferenceLogps:
    """What the reference says of pairs, from the cache or computed."""

    def __init__(self, facts: Mapping[str, Any], folder: Path | None = None) -> None:
        """`facts`: all that a pair's log-probabilities depend on but the pair. `folder`: instead of the user's cache."""
        name = hash_text(json.dumps(dict(facts), sort_keys=True))
        self.path = (folder or cache_folder() / "reference") / f"{name}.txt"
        self._known = _read(self.path)
        self._cut_off = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        self.computed = 0
        """pairs that were not in the cache"""

    def of(self, inputs: dict[str, Any], compute: Compute) -> tuple[Tensor, Tensor]:
        """(chosen, rejected) log-probabilities of a batch in TRL's layout, each of shape (pairs,)."""
        keys = _pair_keys(inputs)
        missing = [number for number, key in enumerate(keys) if key not in self._known]
        alone = inputs["input_ids"].device.type == "cpu"
        for numbers in [[number] for number in missing] if alone else [missing] if missing else []:
            chosen, rejected = compute(take_groups(inputs, numbers, together=2))
            found = zip((keys[n] for n in numbers), chosen.tolist(), rejected.tolist(), strict=True)
            self._keep({key: (c, r) for key, c, r in found})
        columns = torch.tensor([self._known[key] for key in keys], device=inputs["input_ids"].device).unbind(1)
        return columns[0], columns[1]

    def _keep(self, found: dict[str, tuple[float, float]]) -> None:
        self._known |= found
        self.computed += len(found)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(_line(key, values) for key, values in found.items())
        if self._cut_off:
            lines, self._cut_off = "\n" + lines, False
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, lines.encode())  # one write: lines of two runs do not mix
        finally:
            os.close(descriptor)


def _line(key: str, values: tuple[float, float]) -> str:
    body = f"{key} {values[0]!r} {values[1]!r}"
    return f"{body} {zlib.crc32(body.encode()):08x}\n"


def _read(path: Path) -> dict[str, tuple[float, float]]:
    """Every line whose checksum is right."""
    known: dict[str, tuple[float, float]] = {}
    if path.is_file():
        for line in path.read_bytes().decode(errors="replace").splitlines():
            body, _, checksum = line.rpartition(" ")
            if checksum == f"{zlib.crc32(body.encode()):08x}":
                key, chosen, rejected = body.split(" ")
                known[key] = (float(chosen), float(rejected))
    return known


def _pair_keys(inputs: dict[str, Any]) -> list[str]:
    """A hash of each pair's ids, and of which of them are completions."""
    rows = [
        [[i for i, real in zip(ids, mask, strict=True) if real], sum(completion)]
        for ids, mask, completion in zip(
            inputs["input_ids"].tolist(),
            inputs["attention_mask"].tolist(),
            inputs["completion_mask"].tolist(),
            strict=True,
        )
    ]
    count = len(rows) // 2
    return [hash_text(json.dumps([rows[pair], rows[pair + count]])) for pair in range(count)]
