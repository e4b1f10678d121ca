"""Losses and labels of reward training as pure functions. TRL's trainer calls them; see reward.trainer.

Shapes: B pairs, K members of an ensemble (1 without one).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional as F


def preference_loss(chosen: Tensor, rejected: Tensor, margin: Tensor, target: Tensor) -> Tensor:
    """−p·log σ(z) − (1−p)·log σ(−z), z = chosen − rejected − margin: one value per pair and member, shape (B, K).

    With p = 1 and no margin this is Bradley-Terry; its minimum is at z = log(p/(1−p)). Margin: Touvron et al. 2023,
    Eq. 2. Cross-entropy against a probability: Christiano et al. 2017, section 2.2.3.

    Args:
        chosen, rejected: scores, shape (B, K).
        margin: required differences, shape (B,).
        target: the probability p that the chosen answer is the better one, shape (B,).
    """
    z = chosen - rejected - margin[:, None]
    return F.binary_cross_entropy_with_logits(z, target[:, None].expand_as(z), reduction="none")


def centring_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Mean (chosen + rejected)²: differences leave a score's origin free, this keeps it at 0. Eisenstein et al. 2023."""
    return (chosen + rejected).square().mean()


def bootstrap_counts(groups: Sequence[str], members: int, seed: int) -> npt.NDArray[np.float64]:
    """How often each member of an ensemble sees each row, shape (rows, members); all ones for one member.

    Drawn from Poisson(1), the limit of the bootstrap (Oza and Russell 2001), once per group: rows of one prompt are seen or
    left out together. Members that share a backbone differ by this and by their heads (Osband et al. 2016).
    """
    if members == 1:
        return np.ones((len(groups), 1))
    return np.array([np.random.default_rng([seed, _number(group)]).poisson(1.0, members) for group in groups], float)


def _number(group: str) -> int:
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big")
