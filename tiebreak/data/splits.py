"""The split of a row: one rule for every stage.

1. A row that names a split keeps it, and so does every row with the same prompt.
2. Every other prompt is held out or not by a hash of its content, so that all stages decide alike, independent of the
   order of the rows and of the rest of the file.
3. A prompt with rows in two splits is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar, get_args

from tiebreak.errors import DataError, counted
from tiebreak.records import Split

VALIDATION_SHARE = 0.1
"""Share of the prompts that is held out where a stage has no key for it."""

_BEGINNINGS: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
    "heldout": "test",
    "holdout": "test",
    "held_out": "test",
}


def split_of(name: str) -> Split | None:
    """Our name of a data set's split: `train_prefs` is train, `dev` validation. None if it is not a split's name."""
    word = re.match(r"[a-z_]*", name.strip().lower())
    return next(
        (
            split
            for beginning, split in _BEGINNINGS.items()
            if word and re.fullmatch(rf"{beginning}(ing|uation|ation)?(_.*)?", word.group())
        ),
        None,
    )


def named_split(value: object) -> Split | None:
    """The split that a row's cell names; None if the cell is empty.

    Raises:
        ValueError: it is not a split's name.
    """
    name = "" if value is None else str(value).strip()
    split = split_of(name)
    if name and split is None:
        raise ValueError(f"split: {name[:60]!r} is not a split's name: write train, validation or test, or nothing")
    return split


def variant_of(name: str) -> str:
    """The rest of a split's name: `prefs` of `train_prefs`."""
    return name.strip().lower().partition("_")[2]


def is_held_out(identity: str, share: float, seed: int = 0) -> bool:
    """Whether a prompt without a named split is held out: decided by its id, so every stage decides alike."""
    digest = hashlib.sha256(f"{seed}:{identity}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def assign(rows: Sequence[tuple[str, str, Split | None]], share: float) -> list[Split]:
    """The split of each row.

    Args:
        rows: (the row's place, its prompt's id, the split that it names).
        share: held out for validation, of the prompts without a named split.

    Raises:
        DataError: rows of one prompt name two splits.
    """
    named = named_splits(rows)
    return [
        named.get(identity) or ("validation" if is_held_out(identity, share) else "train") for _, identity, _ in rows
    ]


def named_splits(rows: Iterable[tuple[str, str, Split | None]]) -> dict[str, Split]:
    """The named split of each prompt's rows.

    Raises:
        DataError: rows of one prompt name two splits; all are listed.
    """
    named: dict[str, dict[Split, str]] = {}
    for where, identity, split in rows:
        if split is not None:
            named.setdefault(identity, {}).setdefault(split, where)
    leaked = {identity: places for identity, places in named.items() if len(places) > 1}
    if leaked:
        raise DataError(
            f"{counted(len(leaked), 'prompt')} in two splits, so held-out figures would be wrong: keep each in one split",
            [
                f"{identity}: " + ", ".join(f"{split} at {where}" for split, where in places.items())
                for identity, places in leaked.items()
            ],
        )
    return {identity: next(iter(places)) for identity, places in named.items()}


T = TypeVar("T")


def partition(records: Iterable[T], split: Callable[[T], Hashable]) -> tuple[list[T], list[T]]:
    """(train, validation), without the test split."""
    parts: dict[Hashable, list[T]] = {name: [] for name in get_args(Split)}
    for record in records:
        parts[split(record)].append(record)
    return parts["train"], parts["validation"]
