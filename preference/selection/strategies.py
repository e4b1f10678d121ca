"""Strategies as pure functions: scores of pairs, the largest taken first, and the choice itself.

disagreement is the spread of an ensemble (Lakshminarayanan et al. 2017), margin and judge_unsure are uncertainty sampling
(Lewis & Gale 1994; with model judges, arXiv 2502.13417), largest_gap is of arXiv 2603.09692, diverse is k-center (Sener &
Savarese 2018). That uncertainty may do no better than chance (arXiv 2604.02766) is why there is a random arm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preference.selection.configuration import LEAST_RANDOM
from tiebreak.measures.selection import selection_probabilities
from tiebreak.messages import content_id
from tiebreak.records import Judgment, Selection

Floats = npt.NDArray[np.float64]


def disagreement(first: Floats, second: Floats) -> Floats:
    """Standard deviation over the members of the difference of two scores, (pairs, members) to (pairs,). A member's origin
    cancels in the difference.

    >>> disagreement(np.array([[1.0, 3.0]]), np.array([[0.0, 0.0]])).tolist()
    [1.0]
    """
    return np.asarray((first - second).std(axis=1))


def gap(first: Floats, second: Floats) -> Floats:
    """Absolute difference of the members' mean scores, (pairs, members) to (pairs,).

    >>> gap(np.array([[1.0, 2.0]]), np.array([[3.0, 2.0]])).tolist()
    [1.0]
    """
    return np.asarray(abs((first - second).mean(axis=1)))


def judges_uncertainty(verdicts: Sequence[Judgment]) -> float:
    """How unsure judges are of a comparison: 1 − |2p − 1|, p being their mean probability that the first completion is the
    better one. From 0 (all certain of one side) to 1.

    A verdict counts with its confidence, or as certain without one. A tie, no verdict, and a verdict that turns with the
    order are ½; a side in one order and a tie in the other ¾. No verdicts at all are 1.
    """
    if not verdicts:
        return 1.0
    return 1.0 - abs(2 * math.fsum(_first_is_better(one) for one in verdicts) / len(verdicts) - 1)


def _first_is_better(judgment: Judgment) -> float:
    """The probability that the completion with the smaller id is the better one."""
    verdict = judgment.judge
    answers = (judgment.answer, judgment.answer) if verdict is None else verdict.answers
    if judgment.skip or None in answers:
        return 0.5
    sure = 1.0 if verdict is None or verdict.confidence is None else verdict.confidence
    signs = [((answer or 0) > 0) - ((answer or 0) < 0) for answer in answers]
    right = math.fsum(0.5 + sign * (sure - 0.5) for sign in signs) / len(signs)
    return right if judgment.right < judgment.left else 1 - right


def farthest_first(vectors: Floats, start: int, count: int) -> tuple[list[int], list[float]]:
    """The greedy k-center order (Gonzalez 1985): each row is the farthest one from all before it.

    Args:
        vectors: shape (rows, dimensions).
        start: the first row.
        count: the number of rows wanted.

    Returns:
        (rows, distances): the distance of each to the nearest one before it, infinite for the first.

    >>> farthest_first(np.array([[0.0], [1.0], [5.0], [6.0]]), 0, 3)
    ([0, 3, 1], [inf, 6.0, 1.0])
    """
    order, distances = [start], [math.inf]
    nearest = np.linalg.norm(vectors - vectors[start], axis=1)
    nearest[start] = -1.0
    while len(order) < count:
        row = int(nearest.argmax())
        order.append(row)
        distances.append(float(nearest[row]))
        nearest = np.minimum(nearest, np.linalg.norm(vectors - vectors[row], axis=1))
        nearest[order] = -1.0
    return order, distances


def most_central(vectors: Floats) -> int:
    """The row nearest to the mean of all."""
    return int(np.linalg.norm(vectors - vectors.mean(axis=0), axis=1).argmin())


# --- the choice ---


@dataclass(frozen=True)
class Shares:
    """How many pairs either arm selects."""

    drawn: int
    """at random"""
    taken: int
    """by the strategy"""


def share_out(selected: int, sizes: Sequence[int]) -> list[int]:
    """Split a number in proportion to sizes that sum to at least as much: the largest remainders are rounded up.

    >>> share_out(5, [6, 3, 1])
    [3, 2, 0]
    """
    exact = [selected * size / sum(sizes) for size in sizes]
    parts = [math.floor(part) for part in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda n: (parts[n] - exact[n], n))
    for n in by_remainder[: selected - sum(parts)]:
        parts[n] += 1
    return parts


def arms(selected: int, random_share: float) -> Shares:
    """The sizes of both arms; where there is anything to select, at least one pair is drawn at random.

    >>> arms(40, 0.2), arms(3, 0.05)
    (Shares(drawn=8, taken=32), Shares(drawn=1, taken=2))
    """
    least = math.ceil(LEAST_RANDOM * selected)
    drawn = min(max(round(random_share * selected), least), selected)
    return Shares(drawn, selected - drawn)


def choose(ids: Sequence[str], ranking: Sequence[int], shares: Shares, seed: int) -> dict[int, tuple[str, float]]:
    """Which pairs are selected: row → (arm, probability).

    The random arm is a simple random sample of all; the strategy takes the best of the rest.

    Args:
        ids: of all pairs; they and the seed decide which are drawn.
        ranking: rows from the best to the worst, by the strategy alone.
    """
    lot = sorted(range(len(ids)), key=lambda row: content_id("selected", seed, ids[row]))
    drawn = set(lot[: shares.drawn])
    taken = [row for row in ranking if row not in drawn][: shares.taken]
    probabilities = selection_probabilities(len(ids), shares.drawn, shares.taken)
    by_row = {row: float(probabilities[rank]) for rank, row in enumerate(ranking)}
    arm_of = {**dict.fromkeys(drawn, "random"), **dict.fromkeys(taken, "strategy")}
    return {row: (arm_of[row], by_row[row]) for row in sorted(arm_of)}


def to_selection(arm: str, probability: float, score: float | None, strategy: str, set_id: str = "") -> Selection:
    """The record of a selected pair. An infinite score, such as that of farthest_first's first pair, becomes None."""
    finite = None if score is None or not math.isfinite(score) else round(score, 6)
    return Selection(
        strategy="random" if arm == "random" else strategy,
        probability=min(round(probability, 12), 1.0),
        score=finite,
        set_id=set_id,
    )
