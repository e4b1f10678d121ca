"""The report's charts: training curves, and score against KL.

Policies differ by the shape of their mark as well as by colour; held-out curves are dashed.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.compare.curves import Panel, Point
from tiebreak.page.charts import Frame, axes, mark, spread, svg_points, ticks
from tiebreak.page.markup import Markup, el, join, line, svg, text
from tiebreak.page.numbers import number

Box = tuple[float, float, float, float]


def _whole_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Ticks of an axis of steps: whole numbers inside [low, high]; for a single step, that step."""
    if low == high:
        return [low]
    return [v for v in ticks(low, high, about) if float(v).is_integer()] or [low, high]


def line_chart(panel: Panel, tones: Sequence[str], kept: float | None = None) -> Markup:
    """A panel's curves over the optimizer steps, shape (340, 180) in SVG units; a line at the kept step."""
    xs = [x for curve in panel.curves for x, _ in curve.points]
    ys = [y for curve in panel.curves for _, y in curve.points]
    ys += [] if panel.reference is None else [panel.reference]
    first, last = min(xs), max(xs)
    x_axis = (first, last) if first < last else (first - 1, last + 1)
    frame = Frame(340, 180, 46, 10, 20, 32, x_axis, spread(ys))
    body = axes(frame, "optimizer step", panel.unit, _whole_ticks(first, last))
    names: list[Markup] = []  # over the curves, so that these do not cross them out
    if panel.reference is not None:
        y = frame.py(panel.reference)
        body.append(line(frame.left, y, frame.end, y, "reference"))
        names.append(text(frame.end, y - 4, panel.reference_name, "note", "end"))
    if kept is not None and first <= kept <= last:
        body.append(line(frame.px(kept), frame.top - 4, frame.px(kept), frame.base, "reference"))
        names.append(_kept_label(frame, frame.px(kept)))
    for curve, tone in zip(panel.curves, tones, strict=True):
        body.append(_curve(frame, curve.points, f"tone-{tone}" + (" held-out" if curve.held_out else "")))
    body += names
    body.append(line(0.0, frame.top, 0.0, frame.base, "cursor"))
    series = [{"name": curve.key, "points": [[x, round(y, 9)] for x, y in curve.points]} for curve in panel.curves]
    scale = f"{frame.left},{frame.end},{frame.x[0]},{frame.x[1]},{frame.width}"
    return svg(340, 180, body, cls="plot", label=_described(panel), data_scale=scale, data_series=json.dumps(series))


def _kept_label(frame: Frame, x: float) -> Markup:
    left = x > (frame.left + frame.end) / 2  # the label goes where there is room
    return text(x + (-4 if left else 4), frame.top + 3, "kept", "note", "end" if left else "start")


def _described(panel: Panel) -> str:
    ends = [f"{c.key} from {number(c.points[0][1])} to {number(c.points[-1][1])}" for c in panel.curves]
    return f"{panel.title} over the steps: {'; '.join(ends)}"


def _curve(frame: Frame, points: Sequence[Point], classes: str) -> Markup:
    places = [(frame.px(x), frame.py(y)) for x, y in points]
    drawn = el("polyline", cls=f"curve {classes}", points=svg_points(places)) if len(points) > 1 else None
    dots = [el("circle", cls=f"dot {classes}", cx=x, cy=y, r=2.4) for x, y in places] if len(points) <= 12 else None
    return join(drawn, dots)


def line_key(tone: str, held_out: bool) -> Markup:
    """A curve's entry in a legend."""
    dashed = " held-out" if held_out else ""
    return svg(22, 8, el("polyline", cls=f"curve tone-{tone}{dashed}", points="1,4 21,4"), fixed=True)


# --- reward against KL ---


@dataclass(frozen=True)
class Spot:
    """An evaluated policy on the plane of KL and score."""

    name: str
    kl: float
    score: float
    interval: tuple[float, float] | None
    tone: str
    shape: str


def kl_chart(path: Sequence[tuple[float, float, float]], spots: Sequence[Spot], baseline: str) -> Markup:
    """Score against KL from the baseline: PPO's rollouts as a path, evaluated policies as marks with whiskers."""
    xs = [0.0, *(kl for _, kl, _ in path), *(s.kl for s in spots)]
    ys = [score for _, _, score in path] + [s.score for s in spots] + [e for s in spots for e in s.interval or ()]
    frame = Frame(460, 320, 46, 16, 22, 36, spread(xs, 0.07), spread(ys, 0.09))
    x_name = f"KL from {baseline}, nats per answer"
    body = axes(frame, x_name, "score of the reward model", ticks(*frame.x, 5))
    boxes: list[Box] = []
    places = [(frame.px(kl), frame.py(score)) for _, kl, score in path]
    body += _trail(places, "ppo", boxes) if path else []
    for spot in spots:
        x, y = frame.px(spot.kl), frame.py(spot.score)
        if spot.interval:
            ends = frame.py(spot.interval[1]), frame.py(spot.interval[0])
            body.append(line(x, ends[0], x, ends[1], f"whisker tone-{spot.tone}"))
            boxes.append((x - 1, ends[0], x + 1, ends[1]))
        body.append(mark(spot.shape, x, y, f"mark ring tone-{spot.tone}", 5.5))
        boxes.append((x - 8, y - 8, x + 8, y + 8))
    for spot in spots:
        body.append(place_label(frame, boxes, (frame.px(spot.kl), frame.py(spot.score)), spot.name, "spot"))
    for at in sorted({0, len(path) - 1}) if path else ():
        body.append(place_label(frame, boxes, places[at], f"step {path[at][0]:.0f}", "note"))
    points = "; ".join(f"{s.name}: KL {number(s.kl)}, score {number(s.score)}" for s in spots)
    return svg(460, 320, body, cls="plot wide", label=f"Score against KL from {baseline}. {points}")


def _trail(places: Sequence[Point], tone: str, boxes: list[Box]) -> list[Markup]:
    """Points in order of the steps, later ones darker."""
    parts = [el("polyline", cls=f"curve tone-{tone} thin", points=svg_points(places))]
    for index, (x, y) in enumerate(places):
        opacity = f"{0.25 + 0.75 * index / max(len(places) - 1, 1):.2f}"
        parts.append(el("circle", cls=f"dot tone-{tone}", cx=x, cy=y, r=2.6, fill_opacity=opacity))
        boxes.append((x - 3, y - 3, x + 3, y + 3))
    for (x, y), (to_x, to_y) in itertools.pairwise(places):
        beads = int(math.hypot(to_x - x, to_y - y) / 8)
        along = [((x + (to_x - x) * n / beads), (y + (to_y - y) * n / beads)) for n in range(1, beads)]
        boxes += [(at_x - 1, at_y - 1, at_x + 1, at_y + 1) for at_x, at_y in along]
    return parts


def guard_chart(path: Sequence[tuple[float, float, float]], kept: float, title: str, tone: str) -> Markup:
    """One score against KL at the steps a guard evaluated, the kept one ringed; shape (340, 220) in SVG units.

    Args:
        path: (step, KL, score), in the order of the steps.
        kept: a step of `path`.
    """
    frame = Frame(
        340, 220, 46, 12, 22, 34, spread([kl for _, kl, _ in path], 0.08), spread([y for _, _, y in path], 0.12)
    )
    body = axes(frame, "KL from the initial policy, nats per answer", "score", ticks(*frame.x, 5))
    places = [(frame.px(kl), frame.py(score)) for _, kl, score in path]
    steps = [step for step, _, _ in path]
    at = steps.index(kept)
    boxes: list[Box] = []
    body.append(line(places[at][0], frame.top, places[at][0], frame.base, "reference"))
    body += _trail(places, tone, boxes)
    body.append(el("circle", cls="kept", cx=places[at][0], cy=places[at][1], r=6))
    boxes.append((places[at][0] - 7, places[at][1] - 7, places[at][0] + 7, places[at][1] + 7))
    for place in dict.fromkeys((at, len(path) - 1)):  # the first is at KL 0 and needs no label
        shown = f"step {steps[place]:.0f}" + (", kept" if place == at else "")
        body.append(place_label(frame, boxes, places[place], shown, "spot" if place == at else "note"))
    points = "; ".join(f"step {step:.0f}: KL {number(kl)}, score {number(score)}" for step, kl, score in path)
    return svg(340, 220, body, cls="plot", label=f"{title} against KL. {points}")


def place_label(frame: Frame, boxes: list[Box], place: Point, shown: str, style: str) -> Markup:
    """A label beside its mark, at the first place that covers nothing."""
    width = 6.6 * len(shown)
    spots = [
        (place[0] + dx, place[1] + dy)
        for r in (11, 20, 32)
        for dx, dy in ((r, 4), (-r - width, 4), (-width / 2, -r), (-width / 2, r + 8), (r, -r), (r, r + 6))
    ]

    def box(spot: Point) -> Box:
        return spot[0], spot[1] - 10, spot[0] + width, spot[1] + 3

    def cost(spot: Point) -> int:
        left, top, right, bottom = box(spot)
        inside = frame.left <= left and right <= frame.width and frame.top <= top and bottom <= frame.base
        return sum(left < b[2] and b[0] < right and top < b[3] and b[1] < bottom for b in boxes) + 100 * (not inside)

    best = min(spots, key=cost)  # the earliest of equals: beside the mark is better than above it
    boxes.append(box(best))
    return text(*best, shown, style)
