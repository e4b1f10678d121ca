"""Selection of a stage's logged figures for charts, their panels and names.

A panel shows a figure and its held-out twin (`loss`, `eval_loss`). Figures outside the stage's list get their own panels
after the others, so that new metrics are visible; missing figures leave no empty panel. The lists are in
tiebreak.stages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tiebreak.stages import find_stage

Point = tuple[float, float]

MAX_POINTS = 240
"""More steps than this are averaged over equal runs of steps: a panel is about 300 pixels wide."""


@dataclass(frozen=True)
class Curve:
    """One figure over the steps. `held_out` marks figures of data not used in training."""

    key: str
    points: tuple[Point, ...]
    held_out: bool
    skipped: int = 0
    """values that are not finite and are not drawn"""
    steps_a_point: int = 1


@dataclass(frozen=True)
class Panel:
    """One small chart: title, unit, curves, and a reference value."""

    title: str
    unit: str
    curves: tuple[Curve, ...]
    reference: float | None = None
    reference_name: str = ""


_DEFAULTS: Mapping[str, Any] = {}
_NEVER = ("epoch", "episode", "step", "total_flos", "num_tokens", "num_input_tokens_seen", "train_loss")
_NEVER_PARTS = ("seconds", "runtime", "per_second", "memory", "flos")


def read_panels(
    rows: Sequence[dict[str, Any]], stage: str, config: Mapping[str, Any] = _DEFAULTS
) -> tuple[list[Panel], list[Panel]]:
    """Panels of a stage's metrics: those in the stage's list, then all others.

    Args:
        config: the run's configuration, by which some figures have a reference value and others none.
    """
    curves = {curve.key: curve for curve in _curves(rows)}
    chosen = []
    for plan in find_stage(stage).figures:
        taken = [key for key in curves if base_name(key) in plan.metrics or _loosely(key, plan.metrics)]
        mine = sorted((curves.pop(key) for key in taken), key=lambda c: _rank(c, plan.metrics))
        if mine:
            line = (plan.reference, plan.reference_name) if plan.has_reference(config) else (None, "")
            chosen.append(Panel(plan.title, plan.unit, tuple(mine), *line))
    rest: dict[str, list[Curve]] = {}
    for key, curve in curves.items():
        rest.setdefault(base_name(key), []).append(curve)
    others = [Panel(name, "", tuple(sorted(group, key=lambda c: c.held_out))) for name, group in sorted(rest.items())]
    return (chosen, others) if chosen else (others, [])


def base_name(key: str) -> str:
    """A figure's name without the held-out prefix: eval_loss → loss, eval/scores → scores."""
    return key.removeprefix("eval_").removeprefix("eval/")


def _is_held_out(key: str) -> bool:
    return base_name(key) != key or key.startswith("guard/")


def _loosely(key: str, wanted: Iterable[str]) -> bool:
    """True if a held-out figure matches a listed one without its group: eval/score for objective/scores."""
    name = base_name(key).removesuffix("s")
    return _is_held_out(key) and any(one.rpartition("/")[2].removesuffix("s") == name for one in wanted)


def _rank(curve: Curve, keys: Sequence[str]) -> tuple[int, bool]:
    name = base_name(curve.key)
    return (keys.index(name) if name in keys else len(keys), curve.held_out)


def _curves(rows: Sequence[dict[str, Any]]) -> list[Curve]:
    points: dict[str, dict[float, float]] = {}
    skipped: dict[str, int] = {}
    drawn: dict[str, bool] = {}
    for position, row in enumerate(rows, start=1):
        step = row.get("step", position)
        if not _is_number(step) or not math.isfinite(step):
            continue
        for key, value in row.items():
            if key not in drawn:
                drawn[key] = _is_drawn(key)
            if not drawn[key]:
                continue
            if _is_number(value) and math.isfinite(value):
                points.setdefault(key, {})[float(step)] = float(value)  # a step logged again after a resume counts once
            elif value is None or _is_number(value):
                skipped[key] = skipped.get(key, 0) + 1  # recorders write non-finite values as null
    curves = []
    for key, by_step in points.items():
        thinned, each = thin(sorted(by_step.items()))
        curves.append(Curve(key, tuple(thinned), _is_held_out(key), skipped.get(key, 0), each))
    return curves


def _is_drawn(key: str) -> bool:
    return base_name(key) not in _NEVER and not any(part in key for part in _NEVER_PARTS)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def thin(points: Sequence[Point], most: int = MAX_POINTS) -> tuple[list[Point], int]:
    """At most `most` points, each the mean of neighbours; and how many each averages."""
    each = -(-len(points) // most) if points else 1
    if each == 1:
        return list(points), 1
    groups = [list(zip(*points[i : i + each], strict=True)) for i in range(0, len(points), each)]
    return [(sum(xs) / len(xs), sum(ys) / len(ys)) for xs, ys in groups], each


def reward_against_kl(rows: Sequence[dict[str, Any]], most: int = 40) -> list[tuple[float, float, float]]:
    """(step, KL, score) of PPO's rollouts, thinned; [] if the run logged none."""
    path = []
    for row in rows:
        values = (row.get("step"), row.get("objective/kl"), row.get("objective/scores"))
        if all(isinstance(v, (int, float)) and math.isfinite(v) for v in values):
            path.append(tuple(float(v) for v in values if v is not None))
    each = -(-len(path) // most) if path else 1
    groups = [path[i : i + each] for i in range(0, len(path), each)]
    return [(g[-1][0], sum(p[1] for p in g) / len(g), sum(p[2] for p in g) / len(g)) for g in groups]
