"""A figure with its n and its 95% interval, and how shares get theirs: no figure of ours is printed without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from labeling_ui.quality.votes import Floats
from tiebreak.statistics import Interval, wilson_interval


@dataclass(frozen=True)
class Figure:
    """A figure, of how many, with its 95% interval. `value` is None where it is not defined."""

    value: float | None
    n: int
    interval: Interval | None

    def as_json(self) -> dict[str, Any]:
        """Rounded, for a report."""
        edges = None if self.interval is None else [round(edge, 6) for edge in self.interval]
        return {"value": None if self.value is None else round(self.value, 6), "n": self.n, "interval": edges}


def share_of_clusters(successes: Floats, trials: Floats) -> Figure:
    """The share Σ successes / Σ trials of trials that come in clusters (here: items), shape (clusters,) each.

    The interval is Wilson's at the number of independent trials that would have the ratio estimator's variance
    (Kish 1965; Korn & Graubard 1998). Where all trials agree, each cluster counts once.
    """
    successes, trials = successes[trials > 0], trials[trials > 0]
    n = float(trials.sum())
    if not n:
        return Figure(None, 0, None)
    share = float(successes.sum()) / n
    variance = float(((successes - share * trials) ** 2).sum()) / n**2
    spread = share * (1 - share)
    effective = float(len(trials)) if spread == 0 else n if variance == 0 else min(spread / variance, n)
    return Figure(share, int(n), wilson_interval(share * effective, effective))


def share(successes: float, n: float) -> Figure:
    """The share of independent trials, with Wilson's interval."""
    return Figure(successes / n if n else None, int(n), wilson_interval(successes, n) if n else None)
