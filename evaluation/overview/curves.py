"""The runs' logged figures on shared axes, and reward against KL where reward model and reference are the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from evaluation.compare import curves as one_run
from evaluation.overview.model import Curve, KLChart, KLPoint, KLTrail, Panel
from evaluation.overview.reading import RunRecord
from tiebreak.page.numbers import short

POINTS, LEAST_POINTS = 60_000, 24
"""most points of all curves together, and fewest of one curve: a page of 200 runs stays small"""
TRAIL_POINTS = 60
_BASES: Mapping[str, tuple[str, ...]] = {
    "loss": ("demonstrations", "preferences"),
    "accuracy": ("demonstrations", "preferences"),
    "accuracies": ("demonstrations", "preferences"),
    "margin": ("preferences",),
    "margins": ("preferences",),
    "chosen": ("preferences", "policy"),
    "rejected": ("preferences", "policy"),
    "mean_token_accuracy": ("demonstrations",),
    "entropy": ("demonstrations",),
    "kl": ("policy",),
    "score": ("reward_model", "rewards.", "guard.reward_model"),
    "scores": ("reward_model", "rewards."),
    "rlhf_reward": ("reward_model", "rewards.", "policy"),
}
"""Last part of a figure's name → the inputs that set its level. Levels of runs with different ones cannot be compared."""


def overlay(records: Sequence[RunRecord], names: Mapping[str, str]) -> list[Panel]:
    """A panel for each figure of a stage, with the curves of all its runs."""
    panels: dict[tuple[str, str], Panel] = {}
    own: dict[tuple[str, str], dict[str, RunRecord]] = {}
    for one in records:
        main, further = one_run.read_panels(one.rows, one.stage, one.record["config"])
        for title, drawn, curves in _by_figure((*main, *further)):
            key = (one.stage, title)
            shared = panels.setdefault(
                key,
                Panel(
                    stage=one.stage,
                    title=title,
                    unit=drawn.unit,
                    curves=[],
                    reference=drawn.reference,
                    reference_name=drawn.reference_name,
                ),
            )
            own.setdefault(key, {})[one.id] = one
            shared.curves += [
                Curve(
                    run=names[one.id],
                    key=curve.key,
                    held_out=curve.held_out,
                    points=list(curve.points),
                    skipped=curve.skipped,
                    rows_a_point=curve.steps_a_point * (one.every_held_out if curve.held_out else one.every),
                )
                for curve in curves
            ]
    most = max(POINTS // max(sum(len(panel.curves) for panel in panels.values()), 1), LEAST_POINTS)
    for panel in panels.values():
        mine = list(own[panel.stage, panel.title].values())
        panel.warning = level_warning(panel, mine)
        for curve in panel.curves:
            thinned, each = one_run.thin(curve.points, most)
            curve.points = [(_rounded(x), _rounded(y)) for x, y in thinned]
            curve.rows_a_point *= each
    return list(panels.values())


def _by_figure(panels: Sequence[one_run.Panel]) -> Iterator[tuple[str, one_run.Panel, list[one_run.Curve]]]:
    """(title, panel, curves), each for one figure and its held-out twin, since colours already distinguish runs."""
    for panel in panels:
        trained = [one_run.base_name(curve.key) for curve in panel.curves if not curve.held_out]
        figures: dict[str, list[one_run.Curve]] = {}
        for curve in panel.curves:
            figures.setdefault(_figure_of(curve, trained), []).append(curve)
        for name, curves in figures.items():
            yield (panel.title if len(figures) == 1 else f"{panel.title}: {name}"), panel, curves


def _figure_of(curve: one_run.Curve, trained: Sequence[str]) -> str:
    """A curve's training figure: its own, or the one that it is the held-out twin of."""
    name = one_run.base_name(curve.key)
    if not curve.held_out or name in trained:
        return name
    last = name.rpartition("/")[2].removesuffix("s")
    return next((one for one in trained if one.rpartition("/")[2].removesuffix("s") == last), name)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}") if abs(value) < 1e5 else float(round(value))


def level_warning(panel: Panel, records: Sequence[RunRecord]) -> str:
    """Why the levels of a panel's runs cannot be compared; empty if they can."""
    inputs = dict.fromkeys(
        name for curve in panel.curves for name in _BASES.get(one_run.base_name(curve.key).rpartition("/")[2], ())
    )
    unlike = []
    for name in inputs:
        found = {
            tuple(
                sorted(str(entry["id"]) for key, entry in one.inputs().items() if key == name or key.startswith(name))
            )
            for one in records
        }
        if len(found) > 1:
            unlike.append(name.rstrip(".").replace("_", " ").replace("guard.", "guard's "))
    objectives = {(str(one.config.get("algorithm", "")), str(one.config.get("loss_type", ""))) for one in records}
    if len(objectives) > 1 and any(one_run.base_name(curve.key).rpartition("/")[2] == "loss" for curve in panel.curves):
        unlike.append("loss functions")
    if not unlike:
        return ""
    return f"Different {' and '.join(unlike)}: compare the shapes, not the levels."


# --- reward against KL ---


def kl_charts(
    records: Sequence[RunRecord], names: Mapping[str, str], evaluated: Mapping[tuple[str, str], Sequence[KLTrail]]
) -> list[KLChart]:
    """A chart for each reward model and reference policy.

    Args:
        evaluated: (reward model's id, reference's id) → trails of evaluated policies.
    """
    trails: dict[tuple[str, str], list[KLTrail]] = {key: list(found) for key, found in evaluated.items()}
    for one in records:
        if (key := _axes_of(one)) is None:
            continue
        rollouts, held_out = _points(one.rows, "objective/"), _points(one.rows, "eval_objective/")
        if not (rollouts or held_out):
            continue
        mine = trails.setdefault(key, [])
        name = names[one.id]
        if rollouts:
            mine.append(KLTrail(name=name, run=name, points=_thinned(rollouts), kind="rollouts"))
        if held_out:
            mine.append(KLTrail(name=name, run=name, points=held_out, kind="held out"))
    called = _names_of_inputs(records, names)
    return [
        KLChart(
            reward_model=called.get(judge, short(judge)),
            reference=called.get(reference, short(reference)),
            trails=found,
        )
        for (judge, reference), found in trails.items()
        if sum(len(trail.points) for trail in found) > 1
    ]


def _names_of_inputs(records: Sequence[RunRecord], names: Mapping[str, str]) -> dict[str, str]:
    called = {}
    for one in records:
        for entry in one.inputs().values():
            called[str(entry["id"])] = str(entry["source"])
    return called | dict(names)


def _axes_of(record: RunRecord) -> tuple[str, str] | None:
    """(reward model, reference); None if the score comes from other rewards as well, or there is no reference."""
    inputs = record.inputs()
    if "policy" not in inputs or "reward_model" not in inputs or any(name.startswith("rewards.") for name in inputs):
        return None
    return str(inputs["reward_model"]["id"]), str(inputs["policy"]["id"])


def _points(rows: Sequence[Mapping[str, object]], prefix: str) -> list[KLPoint]:
    points = []
    for row in rows:
        kl, score, step = (finite_number(row.get(key)) for key in (f"{prefix}kl", f"{prefix}scores", "step"))
        if kl is not None and score is not None:
            points.append(KLPoint(step=step, kl=kl, score=score))
    return points


def finite_number(value: object) -> float | None:
    """A number as logged; None for anything else, and for NaN."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _thinned(points: Sequence[KLPoint]) -> list[KLPoint]:
    each = -(-len(points) // TRAIL_POINTS)
    groups = [points[i : i + each] for i in range(0, len(points), each)]
    return [
        KLPoint(
            step=g[-1].step,
            kl=sum(one.kl for one in g) / len(g),
            score=sum(one.score for one in g) / len(g),
        )
        for g in groups
    ]
