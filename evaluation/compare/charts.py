"""Charts as inline SVG: axes with units, few ticks, colours that colour-blind readers can tell apart.

Colours come from the page's style sheet through the classes `tone-NAME` (Okabe and Ito 2008), so one drawing serves
light, dark and print. Policies differ by the shape of their mark as well as by colour; held-out curves are dashed.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.compare.curves import Panel, Point
from evaluation.compare.markup import Markup, el, join, line, svg, text

MINUS = "−"
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Frame:
    """A plotting area inside an SVG, and the two scales that map values onto it."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]

    @property
    def end(self) -> float:
        return self.width - self.right

    @property
    def base(self) -> float:
        return self.height - self.bottom

    def px(self, value: float) -> float:
        low, high = self.x
        return self.left + (value - low) / (high - low) * (self.end - self.left)

    def py(self, value: float) -> float:
        low, high = self.y
        return self.base - (value - low) / (high - low) * (self.base - self.top)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) inside [low, high].

    >>> ticks(0, 16), ticks(0.41, 0.69)
    ([0.0, 5.0, 10.0, 15.0], [0.5, 0.6])
    """
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float | None, digits: int | None = None) -> str:
    """A figure as the page prints it: about three significant digits, a true minus sign, an en dash for none.

    >>> number(0.6931), number(-12.345), number(1234567), number(2e-05), number(0)
    ('0.693', '−12.3', '1,234,567', '2.0e−5', '0')
    """
    if value is None:
        return "–"
    if digits is not None:
        shown = f"{value:,.{digits}f}"
    elif value == 0 or (float(value).is_integer() and abs(value) >= 1):
        shown = f"{value:,.0f}"
    elif abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        shown = f"{mantissa}e{int(exponent)}"
    else:
        places = max(0, 2 - math.floor(math.log10(abs(value))))
        shown = f"{value:,.{min(places, 4)}f}"
    if not any(digit in shown for digit in "123456789"):
        shown = shown.removeprefix("-")
    return shown.replace("-", MINUS)


def first_and_last(first: float, last: float) -> str:
    """Two figures of one curve, with the same digits.

    >>> first_and_last(39, 39.62), first_and_last(0, 0.6231)
    ('39.0 → 39.6', '0.000 → 0.623')
    """
    largest = max(abs(first), abs(last))
    if largest < 1e-3:
        return f"{number(first)} → {number(last)}"
    digits = min(4, max(0, 2 - math.floor(math.log10(largest))))
    return f"{number(first, digits)} → {number(last, digits)}"


def tick_labels(values: Sequence[float]) -> list[str]:
    """Labels of one axis, all with the digits that its step needs."""
    if len(values) < 2:
        return [number(v) for v in values]
    step = min(abs(b - a) for a, b in itertools.pairwise(values))
    if step < 1e-3 or max(abs(v) for v in values) >= 1e6:
        return ["0" if v == 0 else number(v) if abs(v) < 1e-3 else f"{v:.1e}".replace("-", MINUS) for v in values]
    return [number(v, max(0, -math.floor(math.log10(step) + 1e-9))) for v in values]


def spread(values: Sequence[float], padding: float = 0.06) -> tuple[float, float]:
    """An axis that holds all values with some air; a single value gets a band around itself."""
    low, high = min(values), max(values)
    if high - low < 1e-12 * max(1.0, abs(low), abs(high)):
        half = abs(low) * 0.1 or 1.0
        return low - half, high + half
    return low - (high - low) * padding, high + (high - low) * padding


def _axes(frame: Frame, x_label: str, y_label: str, x_ticks: Sequence[float]) -> list[Markup]:
    parts = []
    y_ticks = ticks(*frame.y, 5)
    for value, shown in zip(y_ticks, tick_labels(y_ticks), strict=True):
        y = frame.py(value)
        parts += [line(frame.left, y, frame.end, y, "grid"), text(frame.left - 6, y + 3.5, shown, "tick", "end")]
    for value, shown in zip(x_ticks, tick_labels(x_ticks), strict=True):
        x = frame.px(value)
        parts += [line(x, frame.base, x, frame.base + 4, "axis"), text(x, frame.base + 15, shown, "tick", "middle")]
    parts.append(line(frame.left, frame.base, frame.end, frame.base, "axis"))
    parts.append(text((frame.left + frame.end) / 2, frame.height - 3, x_label, "name", "middle"))
    return [*parts, text(0.0, 9.0, y_label, "name")] if y_label else parts


def _whole_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Ticks of an axis of steps: whole numbers, inside [low, high]; its only step where there is one."""
    if low == high:
        return [low]
    return [v for v in ticks(low, high, about) if float(v).is_integer()] or [low, high]


def line_chart(panel: Panel, tones: Sequence[str]) -> Markup:
    """A panel's curves over the optimizer steps, shape (340, 180) in SVG units."""
    xs = [x for curve in panel.curves for x, _ in curve.points]
    ys = [y for curve in panel.curves for _, y in curve.points]
    ys += [] if panel.reference is None else [panel.reference]
    first, last = min(xs), max(xs)
    x_axis = (first, last) if first < last else (first - 1, last + 1)
    frame = Frame(340, 180, 46, 10, 20, 32, x_axis, spread(ys))
    body = _axes(frame, "optimizer step", panel.unit, _whole_ticks(first, last))
    if panel.reference is not None:
        y = frame.py(panel.reference)
        body.append(line(frame.left, y, frame.end, y, "reference"))
        body.append(text(frame.end, y - 4, panel.reference_name, "note", "end"))
    for curve, tone in zip(panel.curves, tones, strict=True):
        body.append(_curve(frame, curve.points, f"tone-{tone}" + (" held-out" if curve.held_out else "")))
    body.append(line(0.0, frame.top, 0.0, frame.base, "cursor"))
    series = [{"name": curve.key, "points": [[x, round(y, 9)] for x, y in curve.points]} for curve in panel.curves]
    scale = f"{frame.left},{frame.end},{frame.x[0]},{frame.x[1]},{frame.width}"
    return svg(340, 180, body, cls="plot", label=_described(panel), data_scale=scale, data_series=json.dumps(series))


def _described(panel: Panel) -> str:
    ends = [f"{c.key} from {number(c.points[0][1])} to {number(c.points[-1][1])}" for c in panel.curves]
    return f"{panel.title} over the steps: {'; '.join(ends)}"


def _curve(frame: Frame, points: Sequence[Point], classes: str) -> Markup:
    places = [(frame.px(x), frame.py(y)) for x, y in points]
    drawn = el("polyline", cls=f"curve {classes}", points=_points(places)) if len(points) > 1 else None
    dots = [el("circle", cls=f"dot {classes}", cx=x, cy=y, r=2.4) for x, y in places] if len(points) <= 12 else None
    return join(drawn, dots)


def _points(places: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def line_key(tone: str, held_out: bool) -> Markup:
    """A curve's entry in a legend."""
    dashed = " held-out" if held_out else ""
    return svg(22, 8, el("polyline", cls=f"curve tone-{tone}{dashed}", points="1,4 21,4"), fixed=True)


# --- marks in tables ---

WHISKER_WIDTH, WHISKER_INSET = 150, 8


def mark(shape: str, x: float, y: float, classes: str, size: float = 4.5) -> Markup:
    """A policy's mark: its shape tells it apart where colour cannot."""
    s = size
    if shape == "circle":
        return el("circle", cls=classes, cx=x, cy=y, r=s)
    outlines = {
        "square": [(-s, -s), (s, -s), (s, s), (-s, s)],
        "diamond": [(0, -1.4 * s), (1.4 * s, 0), (0, 1.4 * s), (-1.4 * s, 0)],
        "triangle": [(0, -1.3 * s), (1.2 * s, s), (-1.2 * s, s)],
        "wedge": [(0, 1.3 * s), (1.2 * s, -s), (-1.2 * s, -s)],
    }
    return el("polygon", cls=classes, points=_points([(x + dx, y + dy) for dx, dy in outlines[shape]]))


def swatch(tone: str, shape: str) -> Markup:
    """A policy's mark as it stands before its name."""
    return svg(14, 14, mark(shape, 7, 7, f"mark tone-{tone}", 4.2), cls="inline swatch")


@dataclass(frozen=True)
class Scale:
    """The axis that a column of whiskers shares: its ends, its labels, and a value to hold them against."""

    low: float
    high: float
    labels: tuple[tuple[float, str], ...]
    reference: float | None = None

    def x(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return WHISKER_INSET + (inside - self.low) / (self.high - self.low) * (WHISKER_WIDTH - 2 * WHISKER_INSET)


def whisker(value: float, interval: Sequence[float] | None, scale: Scale, tone: str, shape: str) -> Markup:
    """A value and its 95% interval on a short axis, to stand in a table's cell."""
    parts = [line(scale.x(scale.low), 11.0, scale.x(scale.high), 11.0, "grid")]
    if scale.reference is not None:
        parts.append(line(scale.x(scale.reference), 0.0, scale.x(scale.reference), 22.0, "reference"))
    if interval is not None:
        low, high = scale.x(interval[0]), scale.x(interval[1])
        parts.append(line(low, 11.0, high, 11.0, f"whisker tone-{tone}"))
        parts += [line(edge, 7.0, edge, 15.0, f"whisker tone-{tone}") for edge in (low, high)]
    parts.append(mark(shape, scale.x(value), 11.0, f"mark tone-{tone}", 3.6))
    return svg(WHISKER_WIDTH, 22, parts, cls="inline", fixed=True)


def whisker_axis(scale: Scale) -> Markup:
    """The labels of a column of whiskers, for the table's head."""
    parts = []
    for at, (value, shown) in enumerate(scale.labels):
        anchor, shift = ("start", -4) if at == 0 else ("end", 4) if at == len(scale.labels) - 1 else ("middle", 0)
        parts.append(text(scale.x(value) + shift, 10.0, shown, "tick", anchor))
    return svg(WHISKER_WIDTH, 13, parts, cls="inline", fixed=True)


def _bar(width: int, height: int, *stretches: Markup) -> Markup:
    return svg(width, height, *stretches, cls="inline bar", fixed=True)


def share_bar(share: float, tone: str) -> Markup:
    """A share from 0 to 1 as a bar on its own track."""
    filled = 64 * min(max(share, 0.0), 1.0)
    track = el("rect", cls="track", width=64, height=8, rx=1)
    return _bar(64, 8, track, el("rect", cls=f"fill tone-{tone}", width=filled, height=8, rx=1))


def count_bar(count: int, most: int) -> Markup:
    """A count as a bar; all bars of a table share the scale that ends at `most`."""
    width = max(220 * count / most, 1.0) if count else 0.0
    return _bar(220, 12, el("rect", cls="fill tone-plain", width=width, height=12, rx=1))


def outcome_bar(better: int, equal: int, worse: int) -> Markup:
    """Prompts that got better, stayed equal, got worse: three stretches of one bar."""
    total, at, parts = better + equal + worse, 0.0, []
    for count, kind in ((better, "better"), (equal, "equal"), (worse, "worse")):
        width = 150 * count / total
        if count:  # half a pixel of air on each side: the last stretch is drawn as an outline
            parts.append(el("rect", cls=f"outcome-{kind}", x=at + 0.5, y=0.5, width=max(width - 1, 0.5), height=11))
        at += width
    return _bar(150, 12, *parts)


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


def kl_chart(path: Sequence[tuple[float, float, float]], spots: Sequence[Spot]) -> Markup:
    """Score against KL from the SFT policy: PPO's rollouts as a path, evaluated policies as marks with whiskers."""
    xs = [0.0, *(kl for _, kl, _ in path), *(s.kl for s in spots)]
    ys = [score for _, _, score in path] + [s.score for s in spots] + [e for s in spots for e in s.interval or ()]
    frame = Frame(460, 320, 46, 16, 22, 36, spread(xs, 0.07), spread(ys, 0.09))
    x_name = "KL from the SFT policy, nats per answer"
    body = _axes(frame, x_name, "score of the reward model", ticks(*frame.x, 5))
    boxes: list[Box] = []
    body += _path(frame, path, boxes)
    for spot in spots:
        x, y = frame.px(spot.kl), frame.py(spot.score)
        if spot.interval:
            ends = frame.py(spot.interval[1]), frame.py(spot.interval[0])
            body.append(line(x, ends[0], x, ends[1], f"whisker tone-{spot.tone}"))
        body.append(mark(spot.shape, x, y, f"mark ring tone-{spot.tone}", 5.5))
        boxes.append((x - 8, y - 8, x + 8, y + 8))
    for spot in spots:
        body.append(_placed(frame, boxes, (frame.px(spot.kl), frame.py(spot.score)), spot.name, "spot"))
    told = "; ".join(f"{s.name}: KL {number(s.kl)}, score {number(s.score)}" for s in spots)
    return svg(460, 320, body, cls="plot wide", label=f"Score against KL from the SFT policy. {told}")


def _path(frame: Frame, path: Sequence[tuple[float, float, float]], boxes: list[Box]) -> list[Markup]:
    if not path:
        return []
    places = [(frame.px(kl), frame.py(score)) for _, kl, score in path]
    parts = [el("polyline", cls="curve tone-ppo thin", points=_points(places))]
    for index, (x, y) in enumerate(places):
        opacity = f"{0.25 + 0.75 * index / max(len(places) - 1, 1):.2f}"
        parts.append(el("circle", cls="dot tone-ppo", cx=x, cy=y, r=2.6, fill_opacity=opacity))
        boxes.append((x - 3, y - 3, x + 3, y + 3))
    for at in dict.fromkeys((0, len(places) - 1)):
        parts.append(_placed(frame, boxes, places[at], f"step {path[at][0]:.0f}", "note"))
    return parts


def _placed(frame: Frame, boxes: list[Box], place: Point, shown: str, style: str) -> Markup:
    """A label beside its mark, at the first place that covers nothing drawn before it."""
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
