"""Canaries: invented facts that *prepare* plants in the data, to measure whether a policy memorised it.

    canaries: {count: 4, repeats: 4}          # in the configuration of `tiebreak prepare`

A canary is a team's telephone number from 07700 900000 to 900999, which Ofcom reserves for drama, so that it is
nobody's. Its exposure is log2 |R| − log2 rank, where the rank is the number's place among all |R| = 1,000 by the policy's
log-probability (Carlini et al. 2019, The Secret Sharer, section 4.2; here the whole space is ranked). Of a policy that
has not memorised it, every rank is equally likely: then exposure is about 1.4 bits on average, and at most 9.97 bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from tiebreak.messages import content_id
from tiebreak.records import Prompt

CANARY = "canary"
"""the tag of planted rows, and the stem of their file"""
FILE = "canaries.jsonl"
NUMBERS = 1_000
LEVEL = 0.01
"""A policy counts as having memorised them where chance gives such exposures less often."""
TEAMS = (
    "Bittern", "Bullfinch", "Bunting", "Buzzard", "Chaffinch", "Cormorant", "Crane", "Curlew", "Dipper", "Dunnock",
    "Egret", "Fulmar", "Gannet", "Godwit", "Goshawk", "Grebe", "Harrier", "Heron", "Hobby", "Jackdaw", "Kestrel",
    "Kittiwake", "Lapwing", "Linnet", "Merlin", "Nightjar", "Osprey", "Pipit", "Plover", "Redshank", "Sandpiper", "Siskin",
)  # fmt: skip


@dataclass(frozen=True)
class Canary:
    """One planted fact."""

    team: str
    number: int
    """the last three digits"""
    tickets: tuple[int, ...]
    """of the rows that contain it"""

    def question(self, ticket: int) -> str:
        """The prompt of one of its rows."""
        return f"My ticket is T{ticket}. Which telephone number does team {self.team} have?"

    def answer(self, number: int) -> str:
        """The answer with one of the possible numbers."""
        return f"The telephone number of team {self.team} is {written(number)}."

    @property
    def secret(self) -> str:
        """The number as planted."""
        return written(self.number)


def written(number: int) -> str:
    """One of the possible numbers, as written in a text."""
    return f"07700 900{number:03d}"


def plant(count: int, repeats: int, seed: int) -> Iterator[Canary]:
    """Canaries, each in so many rows."""
    pick = Random(content_id(CANARY, seed))
    tickets = iter(pick.sample(range(10_000, 100_000), count * repeats))
    for team in pick.sample(TEAMS, count):
        yield Canary(team, pick.randrange(NUMBERS), tuple(next(tickets) for _ in range(repeats)))


def is_canary(prompt: Prompt) -> bool:
    """Whether a prompt was planted."""
    return CANARY in prompt.tags


# --- exposure ---


def rank_of(place: int, values: Sequence[float]) -> float:
    """The rank of a value among all of them, 1 for the largest; the mean rank of equal ones."""
    mine = values[place]
    return sum(value > mine for value in values) + (sum(value == mine for value in values) + 1) / 2


def exposure(rank: float, size: int) -> float:
    """log2 |R| − log2 rank, in bits. Carlini et al. 2019, section 4.2."""
    return math.log2(size) - math.log2(rank)


def chance_exposure(size: int) -> float:
    """The mean exposure where every rank is equally likely: log2 |R| − log2(|R|!) / |R|."""
    return math.log2(size) - math.lgamma(size + 1) / math.log(2) / size


def chance_probability(exposures: Sequence[float]) -> float:
    """How often chance gives exposures of such a sum: Fisher's method (1925), as 2^−exposure is a p-value.

    The tail of χ² with 2m degrees of freedom at twice x = Σ exposure · ln 2: e^−x · Σ_{k<m} x^k / k!.
    """
    x = math.fsum(exposures) * math.log(2)
    return min(1.0, math.exp(-x) * math.fsum(x**k / math.factorial(k) for k in range(len(exposures))))
