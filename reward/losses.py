"""What a reward model is trained to: losses and labels as pure functions. TRL's trainer calls them; see reward.trainer.

Shapes: B pairs, K members of an ensemble (1 where there is none).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional as F

MAX_STRENGTH = 3
TIE = 0.5
"""The probability that either answer of a kept tie is the better one."""
PSEUDO_VOTES = 0.5
"""Added to each side's votes, so that one rater alone is no certainty (Krichevsky and Trofimov 1981)."""


def preference_loss(chosen: Tensor, rejected: Tensor, margin: Tensor, target: Tensor) -> Tensor:
    """−p·log σ(z) − (1−p)·log σ(−z), z = chosen − rejected − margin: one value a pair and member, shape (B, K).

    With p = 1 and no margin this is Bradley-Terry; its minimum is at z = log(p/(1−p)). Margin: Touvron et al. 2023,
    Eq. 2. Cross-entropy against a probability: Christiano et al. 2017, section 2.2.3.

    Args:
        chosen, rejected: scores, shape (B, K).
        margin: by how much they must differ, shape (B,).
        target: the probability p that the chosen answer is the better one, shape (B,).
    """
    z = chosen - rejected - margin[:, None]
    return F.binary_cross_entropy_with_logits(z, target[:, None].expand_as(z), reduction="none")


def centring_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Mean (chosen + rejected)²: differences leave a score's origin open, this puts it at 0. Eisenstein et al. 2023."""
    return (chosen + rejected).square().mean()


def margin_of(strength: float | None, scale: float) -> float:
    """scale·s/3 for an answer better by strength s, 1 to 3; 0 where it was not asked.

    Touvron et al. 2023, Table 27: with scale 1, their small margins (1, 2/3, 1/3).
    """
    return scale * (strength or 0.0) / MAX_STRENGTH


def target_of(agreement: float | None, raters: int | None) -> float:
    """The probability that the chosen answer is the better one, from the share of raters who said so: (k + ½)/(n + 1).

    The share itself where their number n is not known, and 1 where the share is not. Never below ½: the winning side of
    a vote with many ties can have fewer than half of the votes, and is still the winning side.
    """
    if agreement is None:
        return 1.0
    share = agreement if raters is None else (agreement * raters + PSEUDO_VOTES) / (raters + 2 * PSEUDO_VOTES)
    return max(share, TIE)


def bootstrap_counts(groups: Sequence[str], members: int, seed: int) -> npt.NDArray[np.float64]:
    """How often each member of an ensemble sees each row, shape (rows, members); all ones for one member.

    Drawn from Poisson(1), the bootstrap in the limit (Oza and Russell 2001), once a group: rows that share a prompt are
    seen or left out together. Members that share a backbone differ by this and by their heads (Osband et al. 2016).
    """
    if members == 1:
        return np.ones((len(groups), 1))
    return np.array([np.random.default_rng([seed, _number(group)]).poisson(1.0, members) for group in groups], float)


def _number(group: str) -> int:
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big")


def mean_one(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weights divided by each member's mean, shape (rows, members), so that they do not change the learning rate.

    Over the whole set and not over a batch: a pair counts the same in whatever batch it lands.
    """
    means = weights.mean(axis=0, keepdims=True)
    return weights / np.where(means > 0, means, 1.0)
