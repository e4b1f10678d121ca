"""Which split a row belongs to: one rule for every stage.

1. A row that names a split keeps it, and with it every row of the same prompt.
2. Every other prompt is held out or trained on by a hash of its content, so that all stages decide alike, whatever the
   order of the rows and whatever else is in the file.
3. A prompt whose rows name two splits is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar, get_args

from tiebreak.errors import DataError
from tiebreak.records import Split

VALIDATION_SHARE = 0.1
"""How much of the prompts is held out where a stage has no key for it."""

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
    """Our split of a data set's: `train_prefs` is train, `dev` validation. None where the name is no split's."""
    word = re.match(r"[a-z_]*", name.strip().lower())
    return next(
        (
            split
            for beginning, split in _BEGINNINGS.items()
            if word and re.fullmatch(rf"{beginning}(ing|uation|ation)?(_.*)?", word.group())
        ),
        None,
    )


def variant_of(name: str) -> str:
    """What a split's name says beside the split: `prefs` of `train_prefs`."""
    return name.strip().lower().partition("_")[2]


def is_held_out(identity: str, share: float, seed: int = 0) -> bool:
    """Whether a prompt of data that names no splits is held out: decided by its id, so every stage decides alike."""
    digest = hashlib.sha256(f"{seed}:{identity}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def assign(rows: Sequence[tuple[str, str, Split | None]], share: float) -> list[Split]:
    """The split of each row.

    Args:
        rows: (where the row stands, its prompt's id, the split that it names).
        share: of the prompts that no row names a split for, how many are held out for validation.

    Raises:
        DataError: rows of one prompt name two splits.
    """
    named = named_splits(rows)
    return [
        named.get(identity) or ("validation" if is_held_out(identity, share) else "train") for _, identity, _ in rows
    ]


def named_splits(rows: Iterable[tuple[str, str, Split | None]]) -> dict[str, Split]:
    """The split that the rows of each prompt name.

    Raises:
        DataError: rows of one prompt name two splits; all are listed with their rows.
    """
    named: dict[str, dict[Split, str]] = {}
    for where, identity, split in rows:
        if split is not None:
            named.setdefault(identity, {}).setdefault(split, where)
    leaked = {identity: places for identity, places in named.items() if len(places) > 1}
    if leaked:
        raise DataError(
            f"{len(leaked)} prompt(s) are in two splits, so held-out figures would be false: keep each in one",
            [
                f"{identity}: " + ", ".join(f"{split} at {where}" for split, where in places.items())
                for identity, places in leaked.items()
            ],
        )
    return {identity: next(iter(places)) for identity, places in named.items()}


T = TypeVar("T")


def partition(records: Iterable[T], split: Callable[[T], Hashable]) -> tuple[list[T], list[T]]:
    """(train, validation); the test split's are left out of both."""
    parts: dict[Hashable, list[T]] = {name: [] for name in get_args(Split)}
    for record in records:
        parts[split(record)].append(record)
    return parts["train"], parts["validation"]
