"""Items: the unit that one rater judges at once, made from pairs, and the sides that a rater sees.

They follow from the pair, the rater and the campaign's seed alone: the same on every machine and in every process.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tiebreak.assessments import SingleAnswer, SingleTask
from tiebreak.hashing import canonical_json
from tiebreak.messages import Message, content_id
from tiebreak.records import Pair

Task = Literal["pair", "ranking"] | SingleTask


@dataclass(frozen=True)
class Item:
    """Two completions of a pair to compare, all completions of a larger pair to rank, or a single answer.

    In a ranking, `first_id` and `second_id` are the first two completions.
    """

    id: str
    pair_id: str
    first_id: str
    second_id: str | None
    """None of a single answer"""
    task: Task = "pair"


def items_of(pair: Pair, *, ranking: bool = False) -> list[Item]:
    """A pair of two is one item with the pair's id, and so is a single answer; a larger pair is one ranking, or one item
    per two completions."""
    ids = [completion.id for completion in pair.completions]
    if isinstance(pair, SingleAnswer):
        return [Item(pair.id, pair.id, ids[0], None, pair.task)]
    if len(ids) == 2 or ranking:
        return [Item(pair.id, pair.id, ids[0], ids[1], "pair" if len(ids) == 2 else "ranking")]
    return [Item(f"{pair.id}:{i}-{j}", pair.id, ids[i], ids[j]) for i, j in itertools.combinations(range(len(ids)), 2)]


def shuffle_sides(first: str, second: str, *, seed: int, rater_id: str, item_id: str) -> tuple[str, str]:
    """(left, right): half of the raters see each order, and a rater always sees the same one."""
    digest = hashlib.sha256(canonical_json([seed, rater_id, item_id]).encode()).digest()
    return (first, second) if digest[0] % 2 == 0 else (second, first)


def shuffle_all(ids: Sequence[str], *, seed: int, rater_id: str, item_id: str) -> tuple[str, ...]:
    """The order in which a rater sees the completions of a ranking."""
    chance = random.Random(content_id("order", seed, rater_id, item_id))
    return tuple(chance.sample(sorted(ids), len(ids)))


def assignment_id(item_id: str, rater_id: str, occasion: int = 0) -> str:
    """The id of an assignment. Occasions after the first are repeats."""
    return content_id("assignment", item_id, rater_id, occasion)


def pairs_digest(records: Iterable[str]) -> str:
    """A hash of pair records, in order."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(hashlib.sha256(record.encode()).digest())
    return digest.hexdigest()


def beginning_of(record: str) -> str:
    """The beginning of a pair's last message, from its record."""
    messages = json.loads(record)["messages"]
    content = messages[-1]["content"] if messages else ""
    if not isinstance(content, str):  # file names may tell who made what
        content = Message.model_validate(messages[-1]).numbered_text
    return content[:200]
