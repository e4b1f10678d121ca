"""The reference's log-probabilities of pairs, cached in the user's cache.

DPO compares every pair with a model that never changes. So its log-probabilities of an answer are stored, under a hash of
everything they depend on: base weights, adapter, dtype, libraries and device in the file's name, token ids (and with them
tokenizer, chat template and lengths) in the entry's key. Further epochs, other betas, evaluations and resumed runs use
them.

Raters pair K answers to a prompt in up to K·(K−1)/2 ways, but the reference scores each answer separately. So all of the
data set's answers to a prompt are computed in one pass, whichever of their pairs comes first. On a CPU such a group is
computed alone, and its key covers all of it, so that a value does not depend on the batch it was computed in.

The file is appended to, one line per group, with a checksum. An incomplete or damaged line is ignored, and its group
computed again.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tiebreak.hashing import hash_text
from tiebreak.models.bundled import cache_folder
from tiebreak.packed.packing import MOST_RESTS
from tiebreak.terminal import say

Compute = Callable[[dict[str, Any]], tuple[Tensor, Tensor]]
"""A batch of pairs in TRL's layout → the reference's log-probabilities of chosen and rejected, each of shape (pairs,)"""


Ids = tuple[int, ...]


class Group(NamedTuple):
    """Answers to one prompt that are computed together, as token ids."""

    prompt: Ids
    answers: tuple[Ids, ...]

    @property
    def key(self) -> str:
        """The group's key: a hash of its token ids."""
        return hash_text(json.dumps(self))


class ReferenceLogps:
    """The reference's log-probabilities, from the cache or computed."""

    def __init__(
        self,
        facts: Mapping[str, Any],
        folder: Path | None = None,
        pairs: Iterable[tuple[Sequence[int], Sequence[int], Sequence[int]]] = (),
    ) -> None:
        """Open the cache.

        Args:
            facts: everything that log-probabilities depend on, except the token ids.
            folder: replaces the user's cache.
            pairs: (prompt, chosen, rejected) of the data set, grouped by prompt.
        """
        name = hash_text(json.dumps(dict(facts), sort_keys=True))
        self.path = (folder or cache_folder() / "reference") / f"{name}.txt"
        self._groups = _groups(pairs)
        self._known = _read(self.path)
        self._cut_off = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        self._is_writable = True
        self.computed = 0
        """groups that were not in the cache"""

    def of(self, inputs: dict[str, Any], compute: Compute) -> tuple[Tensor, Tensor]:
        """(chosen, rejected) log-probabilities of a batch in TRL's layout, each of shape (pairs,)."""
        rows = _rows(inputs)
        chosen, rejected = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        pairs = [Group(prompt, (a, b)) for (prompt, a), (_, b) in zip(chosen, rejected, strict=True)]
        groups = [self._groups.get(row, pair) for row, pair in zip(rows, [*pairs, *pairs], strict=True)]
        missing = [group for group in dict.fromkeys(groups) if group.key not in self._known]
        alone = inputs["input_ids"].device.type == "cpu"
        for some in [[group] for group in missing] if alone else [missing] if missing else []:
            self._keep(_compute(some, compute, inputs["input_ids"].device))
        values = [self._known[g.key][g.answers.index(row[1])] for g, row in zip(groups, rows, strict=True)]
        columns = torch.tensor(values, device=inputs["input_ids"].device).chunk(2)
        return columns[0], columns[1]

    def _keep(self, found: dict[str, tuple[float, ...]]) -> None:
        self._known |= found
        self.computed += len(found)
        if self._is_writable:
            try:
                self._append(found)
            except OSError as error:
                self._is_writable = False
                say(f"the reference's log-probabilities are not cached: {self.path} is not writable ({error.strerror})")

    def _append(self, found: dict[str, tuple[float, ...]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(_line(key, values) for key, values in found.items())
        if self._cut_off:
            lines, self._cut_off = "\n" + lines, False
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, lines.encode())  # a single write: lines of two runs do not interleave
        finally:
            os.close(descriptor)


def _groups(pairs: Iterable[tuple[Sequence[int], Sequence[int], Sequence[int]]]) -> dict[tuple[Ids, Ids], Group]:
    """The group of each (prompt, answer)."""
    answers: dict[Ids, dict[Ids, None]] = {}
    for prompt, *sides in pairs:
        answers.setdefault(tuple(prompt), {}).update(dict.fromkeys(map(tuple, sides)))
    cut = [
        Group(prompt, tuple(own)[start : start + MOST_RESTS])
        for prompt, own in answers.items()
        for start in range(0, len(own), MOST_RESTS)
    ]
    return {(group.prompt, answer): group for group in cut for answer in group.answers}


def _compute(groups: Sequence[Group], compute: Compute, device: torch.device | str) -> dict[str, tuple[float, ...]]:
    """Log-probabilities of the groups' answers, by key. TRL expects pairs: an odd answer is paired with itself."""
    rows: list[tuple[Ids, Ids]] = []
    for group in groups:
        odd = group.answers[-1:] if len(group.answers) % 2 else ()
        rows += [(group.prompt, answer) for answer in (*group.answers, *odd)]
    layout = [*rows[::2], *rows[1::2]]
    values = dict(zip(layout, torch.cat(compute(_to_layout(layout, device))).tolist(), strict=True))
    return {group.key: tuple(values[group.prompt, answer] for answer in group.answers) for group in groups}


def _to_layout(rows: Sequence[tuple[Ids, Ids]], device: torch.device | str) -> dict[str, Tensor]:
    """(prompt, completion) in TRL's layout, padded on the right."""

    def padded(columns: Iterable[Sequence[int]]) -> Tensor:
        return pad_sequence([torch.tensor(column, device=device) for column in columns], batch_first=True)

    return {
        "input_ids": padded([*prompt, *answer] for prompt, answer in rows),
        "attention_mask": padded([1] * (len(prompt) + len(answer)) for prompt, answer in rows),
        "completion_mask": padded([0] * len(prompt) + [1] * len(answer) for prompt, answer in rows),
    }


def _line(key: str, values: tuple[float, ...]) -> str:
    body = " ".join([key, *map(repr, values)])
    return f"{body} {zlib.crc32(body.encode()):08x}\n"


def _read(path: Path) -> dict[str, tuple[float, ...]]:
    """Every line with a valid checksum."""
    logps_by_key: dict[str, tuple[float, ...]] = {}
    if path.is_file():
        for line in path.read_bytes().decode(errors="replace").splitlines():
            body, _, checksum = line.rpartition(" ")
            if checksum == f"{zlib.crc32(body.encode()):08x}":
                key, *values = body.split(" ")
                logps_by_key[key] = tuple(map(float, values))
    return logps_by_key


def _rows(inputs: dict[str, Any]) -> list[tuple[Ids, Ids]]:
    """(prompt, completion) of each row of a batch in TRL's layout."""
    columns = (inputs[name].tolist() for name in ("input_ids", "attention_mask", "completion_mask"))
    rows = []
    for ids, mask, completion in zip(*columns, strict=True):
        real = [token for token, is_real in zip(ids, mask, strict=True) if is_real]
        start = len(real) - sum(completion)
        rows.append((tuple(real[:start]), tuple(real[start:])))
    return rows
