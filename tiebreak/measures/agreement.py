"""Agreement corrected for chance, and figures as they are reported: with n and a 95% interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tiebreak.measures.statistics import Interval, Z, wilson_interval

Floats = npt.NDArray[np.float64]
NO_VARIANCE = 1e-12


@dataclass(frozen=True)
class Figure:
    """A figure with its n and 95% interval. `value` is None where it is undefined."""

    value: float | None
    n: int
    interval: Interval | None

    def as_json(self) -> dict[str, Any]:
        """Rounded, for a report."""
        edges = None if self.interval is None else [round(edge, 6) for edge in self.interval]
        return {"value": None if self.value is None else round(self.value, 6), "n": self.n, "interval": edges}


def cohen_kappa(table: Floats) -> Figure:
    """Cohen's κ (1960) of two raters from their table of counts, shape (categories, categories); None where chance
    agreement is 1.

    The interval uses the large-sample variance (Fleiss, Cohen & Everitt 1969). Where that is zero, as of raters who always
    agree or who share one item, it is Wilson's interval of their share of agreement.

    >>> round(cohen_kappa(np.array([[20.0, 5.0], [10.0, 15.0]])).value, 6)
    0.4
    """
    n = float(table.sum())
    if not n:
        return Figure(None, 0, None)
    shares = table / n
    rows, columns = shares.sum(axis=1), shares.sum(axis=0)
    agreed, chance = float(np.trace(table)), float(rows @ columns)
    observed = agreed / n
    if np.isclose(chance, 1.0):
        return Figure(None, int(n), None)
    kappa = (observed - chance) / (1 - chance)
    # Fleiss, Cohen & Everitt 1969, Eq. 13: agreements, disagreements, and the mean's term.
    both = rows[None, :] + columns[:, None]
    agreeing = float((np.diag(shares) * (1 - np.diag(both) * (1 - kappa)) ** 2).sum())
    disagreeing = (1 - kappa) ** 2 * float((shares * both**2).sum() - (np.diag(shares) * np.diag(both) ** 2).sum())
    variance = (agreeing + disagreeing - (kappa - chance * (1 - kappa)) ** 2) / ((1 - chance) ** 2 * n)
    if variance < NO_VARIANCE:
        low, high = wilson_interval(agreed, n)
        return Figure(
            kappa, int(n), (max((low - chance) / (1 - chance), -1.0), min((high - chance) / (1 - chance), 1.0))
        )
    half = Z * float(np.sqrt(variance))
    return Figure(kappa, int(n), (max(kappa - half, -1.0), min(kappa + half, 1.0)))
