"""Calibration: whether σ(difference of two scores) is the probability that the first answer is better, and its fit.

A difference is score(chosen) − score(rejected); the model is right if it is positive. Everything here is a pure function
of differences and their prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from tiebreak.measures.calibration import BINS, Bin, bins_by_confidence
from tiebreak.measures.calibration import expected_calibration_error as expected_calibration_error

Array = npt.NDArray[np.float64]
FOLDS = 10
ROUNDING = 1e-9
"""Scores that differ by less are equal."""


def sigmoid(x: Array) -> Array:
    """1/(1 + e^−x), for any x."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))


def fit_temperature(differences: Sequence[float]) -> float | None:
    """The maximum-likelihood T > 0 for σ(difference/T) (temperature scaling, Guo et al. 2017).

    With Platt's targets (n + 1)/(n + 2) instead of certainty (Platt 1999), so that T stays above 0 if every difference is
    positive. None if no T helps: the differences do not favour the better answers.
    """
    d = np.asarray(differences, dtype=np.float64)
    if not len(d) or float(np.abs(d).max()) < ROUNDING:
        return None
    target = (len(d) + 1) / (len(d) + 2)

    def slope(inverse: float) -> float:
        """Derivative of the negative log-likelihood in 1/T; it is increasing, so its root is the minimum."""
        return float((d * (sigmoid(d * inverse) - target)).mean())

    if slope(0.0) >= 0.0:
        return None
    low, high = 0.0, 1.0 / float(np.abs(d).max())
    while slope(high) < 0.0:
        low, high = high, 2.0 * high
    for _ in range(100):
        middle = (low + high) / 2.0
        low, high = (middle, high) if slope(middle) < 0.0 else (low, middle)
    return 2.0 / (low + high)


def cross_fitted(differences: Sequence[float], groups: Sequence[str]) -> list[float] | None:
    """Each difference divided by a temperature fitted on other prompts: those of the other `FOLDS` − 1 folds.

    So no figure is measured on the rows it was fitted on, and all rows are measured. A fold without a helpful temperature
    gets difference 0: probability ½. None with fewer than two prompts.
    """
    names = sorted(set(groups), key=lambda name: hashlib.sha256(name.encode()).digest())
    if len(names) < 2:
        return None
    fold = {name: place % FOLDS for place, name in enumerate(names)}
    rows = list(zip(differences, groups, strict=True))
    fitted = {one: fit_temperature([d for d, g in rows if fold[g] != one]) for one in set(fold.values())}
    return [0.0 if (t := fitted[fold[group]]) is None else d / t for d, group in rows]


def correctness(differences: Sequence[float]) -> list[float]:
    """1 if the chosen answer has the higher score, ½ if the scores are equal, otherwise 0."""
    return [1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in differences]


def reliability(differences: Sequence[float], groups: Sequence[str], bins: int = BINS) -> list[Bin]:
    """The non-empty bins, by confidence σ(|difference|)."""
    confidences = sigmoid(np.abs(np.asarray(differences, dtype=np.float64)))
    return bins_by_confidence(confidences.tolist(), correctness(differences), groups, bins)


def negative_log_likelihood(differences: Sequence[float]) -> float:
    """Mean −log σ(difference), in nats; ln 2 at chance."""
    return float(np.logaddexp(0.0, -np.asarray(differences, dtype=np.float64)).mean())


def measured(differences: Sequence[float], groups: Sequence[str]) -> dict[str, Any]:
    """ECE, negative log-likelihood and the bins of a reliability diagram."""
    bins = reliability(differences, groups)
    return {
        "ece": expected_calibration_error(bins),
        "nll": negative_log_likelihood(differences),
        "bins": [asdict(one) for one in bins],
    }
