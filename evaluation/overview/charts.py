"""Charts of several runs: curves on shared axes, and reward against KL.

Runs of one group share a colour. A group of several seeds has a bold mean and a band from its lowest to its highest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.compare.charts import Box, place_label
from evaluation.overview.model import Curve, KLChart, KLTrail, Panel
from tiebreak.page.charts import Frame, axes, mark, spread, svg_points, ticks
from tiebreak.page.markup import Markup, el, join, line, svg, text
from tiebreak.page.numbers import number

Points = Sequence[tuple[float, float]]
SMOOTHING = 0.6
"""the page's initial smoothing; page.js has the same formula"""
BAND_STEPS = 60
WIDTH, HEIGHT = 340, 190


@dataclass(frozen=True)
class Style:
    """A group's colour, and dashes where colours are used up."""

    tone: str
    dashes: int = 0

    @property
    def classes(self) -> str:
        return f"tone-{self.tone}" + (f" dash-{self.dashes}" if self.dashes else "")


Styles = Mapping[str, Style]
"""group or policy → its style"""
TONES = 8


def group_styles(groups: Sequence[str]) -> dict[str, Style]:
    """Group → style, the same on the whole page."""
    return {name: Style(f"g{at % TONES}", min(at // TONES, 2)) for at, name in enumerate(dict.fromkeys(groups))}


def swatch(style: Style) -> Markup:
    """A dot of a style's colour."""
    return svg(14, 14, el("circle", cls=f"mark tone-{style.tone}", cx=7, cy=7, r=4.6), cls="inline swatch", fixed=True)


def named(name: str, styles: Styles) -> Markup:
    """A policy's or a group's name behind its swatch."""
    return join(swatch(styles[name]), name)


def smooth(points: Points, weight: float = SMOOTHING) -> list[tuple[float, float]]:
    """An exponential moving average without the bias of its start (Kingma and Ba 2015, section 3).

    >>> smooth([(1, 2.0), (2, 2.0)], 0.9)
    [(1, 2.0), (2, 2.0)]
    """
    smoothed, average, rest = [], 0.0, 1.0
    for x, y in points:
        average, rest = weight * average + (1 - weight) * y, rest * weight
        smoothed.append((x, round(average / (1 - rest), 9)))
    return smoothed


def overlay_chart(panel: Panel, at: int, group_of: Mapping[str, str], styles: Mapping[str, Style]) -> Markup:
    """A panel's curves over the steps. page.js draws them again with another smoothing, from the embedded report."""
    xs = [x for curve in panel.curves for x, _ in curve.points]
    ys = [y for curve in panel.curves for _, y in curve.points]
    ys += [] if panel.reference is None else [panel.reference]
    first, last = min(xs), max(xs)
    ends = (first, last) if first < last else (first - 1, last + 1)
    frame = Frame(WIDTH, HEIGHT, 46, 10, 20, 32, ends, spread(ys))
    steps = [v for v in ticks(*ends, 4) if float(v).is_integer()] if first < last else [first]
    body = axes(frame, "optimizer step", panel.unit, steps or [first, last])
    if panel.reference is not None:
        body.append(line(frame.left, frame.py(panel.reference), frame.end, frame.py(panel.reference), "reference"))
    body.append(el("g", drawn_curves(frame, panel, group_of, styles), cls="curves"))
    if panel.reference is not None:  # over the curves, so that these do not cross it out
        body.append(text(frame.end, frame.py(panel.reference) - 4, panel.reference_name, "note", "end"))
    body.append(line(0.0, frame.top, 0.0, frame.base, "cursor"))
    scale = ",".join(f"{v:g}" for v in (frame.left, frame.end, frame.top, frame.base, *frame.x, *frame.y, frame.width))
    return svg(WIDTH, HEIGHT, body, cls="plot", label=_described(panel), data_panel=str(at), data_scale=scale)


def drawn_curves(frame: Frame, panel: Panel, group_of: Mapping[str, str], styles: Mapping[str, Style]) -> list[Markup]:
    """Raw lines, smoothed lines, and the mean and band of groups of several runs."""

    def path(points: Points, classes: str) -> Markup:
        return el("polyline", cls=classes, points=svg_points([(frame.px(x), frame.py(y)) for x, y in points]))

    parts: list[Markup] = []
    means: list[Markup] = []
    for (key, group, held_out), curves in _by_group(panel, group_of).items():
        style = styles[group].classes + (" held-out" if held_out else "")
        several = len(curves) > 1
        smoothed = [smooth(curve.points) if len(curve.points) > 3 else list(curve.points) for curve in curves]
        for curve, points in zip(curves, smoothed, strict=True):
            if len(points) == 1:
                x, y = points[0]
                parts.append(el("circle", cls=f"dot {style}", cx=frame.px(x), cy=frame.py(y), r=2.6))
                continue
            if not several and len(curve.points) > 3:
                parts.append(path(curve.points, f"curve raw {style}"))
            parts.append(path(points, f"curve {'thin' if several else ''} {style}"))
        band = mean_and_band(smoothed) if several else None
        if band:
            low, mean, high = band
            outline = [*low, *reversed(high)]
            places = svg_points([(frame.px(x), frame.py(y)) for x, y in outline])
            parts.append(el("polygon", cls=f"band {style}", points=places, data_key=key))
            means.append(path(mean, f"curve mean {style}"))
    return [*parts, *means]


def _by_group(panel: Panel, group_of: Mapping[str, str]) -> dict[tuple[str, str, bool], list[Curve]]:
    found: dict[tuple[str, str, bool], list[Curve]] = {}
    for curve in panel.curves:
        found.setdefault((curve.key, group_of[curve.run], curve.held_out), []).append(curve)
    return found


Lines = list[tuple[float, float]]


def mean_and_band(lines: Sequence[Points]) -> tuple[Lines, Lines, Lines] | None:
    """(lowest, mean, highest) of several curves over the steps that all have; None if there are fewer than two."""
    low, high = max(points[0][0] for points in lines), min(points[-1][0] for points in lines)
    if low >= high:
        return None
    grid = np.linspace(low, high, BAND_STEPS)
    values = np.stack([np.interp(grid, [x for x, _ in points], [y for _, y in points]) for points in lines])
    rows = (values.min(axis=0), values.mean(axis=0), values.max(axis=0))
    lowest, mean, highest = ([(float(x), float(y)) for x, y in zip(grid, row, strict=True)] for row in rows)
    return lowest, mean, highest


def _described(panel: Panel) -> str:
    ends = [f"{c.run} {c.key} from {number(c.points[0][1])} to {number(c.points[-1][1])}" for c in panel.curves[:12]]
    more = f"; and {len(panel.curves) - 12} more" if len(panel.curves) > 12 else ""
    return f"{panel.title} over the steps: {'; '.join(ends)}{more}"


# --- reward against KL ---


def kl_overlay(chart: KLChart, style_of: Mapping[str, Style]) -> Markup:
    """Score against KL: rollouts as trails, held-out measurements as rings, evaluated policies as marks with whiskers."""
    points = [point for trail in chart.trails for point in trail.points]
    edges = [edge for point in points for edge in point.interval or ()]
    frame = Frame(
        560,
        340,
        46,
        16,
        22,
        36,
        spread([0.0, *(p.kl for p in points)], 0.07),
        spread([*(p.score for p in points), *edges], 0.09),
    )
    body = axes(frame, "KL from the reference, nats per answer", "score of the reward model", ticks(*frame.x, 5))
    boxes: list[Box] = []
    for trail in chart.trails:
        body += _trail(frame, trail, style_of[trail.name], boxes)
    for trail in chart.trails:
        if trail.kind == "evaluated":
            point = trail.points[-1]
            body.append(place_label(frame, boxes, (frame.px(point.kl), frame.py(point.score)), trail.name, "spot"))
    summary = "; ".join(
        f"{t.name}: KL {number(t.points[-1].kl)}, score {number(t.points[-1].score)}" for t in chart.trails
    )
    return svg(560, 340, body, cls="plot wide", label=f"Score against KL. {summary}")


def _trail(frame: Frame, trail: KLTrail, style: Style, boxes: list[Box]) -> list[Markup]:
    places = [(frame.px(point.kl), frame.py(point.score)) for point in trail.points]
    boxes += [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    if trail.kind == "evaluated":
        parts = []
        for (x, y), point in zip(places, trail.points, strict=True):
            if point.interval:
                low, high = frame.py(point.interval[0]), frame.py(point.interval[1])
                parts.append(line(x, low, x, high, f"whisker {style.classes}"))
            parts.append(mark("diamond", x, y, f"mark ring {style.classes}", 5))
        return parts
    parts = [el("polyline", cls=f"curve thin {style.classes}", points=svg_points(places))] if len(places) > 1 else []
    for at, ((x, y), point) in enumerate(zip(places, trail.points, strict=True)):
        opacity = f"{0.25 + 0.75 * at / max(len(places) - 1, 1):.2f}"
        ring = " held-out" if trail.kind == "held out" else ""
        step = "" if point.step is None else f", step {number(point.step)}"
        title = el("title", f"{trail.name}{step}: KL {number(point.kl)}, score {number(point.score)}")
        radius = 4.2 if ring else 2.6
        parts.append(
            el(
                "circle",
                title,
                cls=f"dot {style.classes}{ring}",
                cx=x,
                cy=y,
                r=radius,
                stroke_opacity=opacity,
                fill_opacity=None if ring else opacity,
            )
        )
    return parts
