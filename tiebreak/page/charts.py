"""Pieces of charts as inline SVG: axes with units and few ticks, marks and whiskers in tables.

Colours come from the page's style sheet through the classes `tone-NAME` (Okabe and Ito 2008), so one drawing works in
light and dark themes, in print, and for colour-blind readers. Series differ by shape as well as by colour.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tiebreak.page.markup import Markup, el, line, svg, text
from tiebreak.page.numbers import number

Point = tuple[float, float]


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
    digits = 2 - math.floor(math.log10(step))
    return [round(k * step, digits) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Labels of one axis, all with the digits that its step needs.

    >>> tick_labels([0.69314, 0.69315]), tick_labels([0, 5e-6, 1e-5]), tick_labels([1e6, 1.05e6])
    (['0.69314', '0.69315'], ['0', '0.5e−5', '1.0e−5'], ['1.00e6', '1.05e6'])
    """
    largest = max(map(abs, values), default=0.0)
    step = min((abs(b - a) for a, b in itertools.pairwise(values)), default=largest / 10)
    power = math.floor(math.log10(step or 1.0) + 1e-9)
    if largest >= 1e6 or (power < -3 and largest < 1e-2):
        exponent = math.floor(math.log10(largest) + 1e-9)
        return [
            f"{number(v / 10.0**exponent, max(0, exponent - power))}e{number(exponent)}" if v else "0" for v in values
        ]
    return [number(v, max(0, -power)) for v in values]


def spread(values: Sequence[float], padding: float = 0.06) -> tuple[float, float]:
    """Ends of an axis with some margin; equal values to four digits get a band around them."""
    low, high = min(values), max(values)
    if high - low <= max(1e-12, 1e-4 * max(abs(low), abs(high))):
        half = abs(low) * 0.1 if abs(low) > 1e-12 else 1.0
        return low - half, high + half
    return low - (high - low) * padding, high + (high - low) * padding


def axes(frame: Frame, x_label: str, y_label: str, x_ticks: Sequence[float]) -> list[Markup]:
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


def svg_points(places: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


# --- marks in tables ---

WHISKER_WIDTH, WHISKER_INSET = 150, 8


def mark(shape: str, x: float, y: float, classes: str, size: float = 4.5) -> Markup:
    """A policy's mark: its shape distinguishes it where colour cannot."""
    s = size
    if shape == "circle":
        return el("circle", cls=classes, cx=x, cy=y, r=s)
    outlines = {
        "square": [(-s, -s), (s, -s), (s, s), (-s, s)],
        "diamond": [(0, -1.4 * s), (1.4 * s, 0), (0, 1.4 * s), (-1.4 * s, 0)],
        "triangle": [(0, -1.3 * s), (1.2 * s, s), (-1.2 * s, s)],
        "wedge": [(0, 1.3 * s), (1.2 * s, -s), (-1.2 * s, -s)],
    }
    return el("polygon", cls=classes, points=svg_points([(x + dx, y + dy) for dx, dy in outlines[shape]]))


def swatch(tone: str, shape: str) -> Markup:
    """A policy's mark, shown before its name."""
    return svg(14, 14, mark(shape, 7, 7, f"mark tone-{tone}", 4.2), cls="inline swatch")


@dataclass(frozen=True)
class Scale:
    """The common axis of a column of whiskers: ends, labels, and a reference value."""

    low: float
    high: float
    labels: tuple[tuple[float, str], ...]
    reference: float | None = None

    def x(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return WHISKER_INSET + (inside - self.low) / (self.high - self.low) * (WHISKER_WIDTH - 2 * WHISKER_INSET)


def value_scale(values: Sequence[float], declared: tuple[float, float] | None = None) -> Scale:
    """An axis for a column of values and interval ends: as declared, or rounded outwards.

    >>> value_scale([45.2, 48.7]).labels, value_scale([0.2], (0.0, 1.0)).labels
    (((44.0, '44'), (47.0, '47'), (50.0, '50')), ((0.0, '0.0'), (0.5, '0.5'), (1.0, '1.0')))
    """
    if declared is None:
        low, high = min(values), max(values)
        if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
            low, high = spread(values)
        step = ticks(low, high, 3)
        each = step[1] - step[0] if len(step) > 1 else (high - low) / 2
        declared = math.floor(low / each + 1e-9) * each, math.ceil(high / each - 1e-9) * each
    low, high = min([declared[0], *values]), max([declared[1], *values])
    places = (low, (low + high) / 2, high)
    return Scale(low, high, tuple(zip(places, tick_labels(places), strict=True)))


def change_scale(values: Sequence[float], least: float = 0.0) -> Scale:
    """A symmetric axis for a column of differences: up to the largest, at least `least`, rounded.

    >>> change_scale([-0.13, 0.02]).labels
    ((-0.2, '−0.2'), (0.0, '0'), (0.2, '+0.2'))
    """
    furthest = max([least, *map(abs, values)]) or 1.0
    power = 10.0 ** math.floor(math.log10(furthest))
    reach = next(float(f"{m * power:.1g}") for m in (1, 2, 5, 10) if m * power >= furthest * (1 - 1e-9))
    shown = f"{reach:g}"
    return Scale(-reach, reach, ((-reach, f"−{shown}"), (0.0, "0"), (reach, f"+{shown}")), reference=0.0)


def whisker(value: float, interval: Sequence[float] | None, scale: Scale, tone: str, shape: str) -> Markup:
    """A value and its 95% interval on a short axis, for a table's cell."""
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
    """A share from 0 to 1 as a bar on a track."""
    filled = 64 * min(max(share, 0.0), 1.0)
    track = el("rect", cls="track", width=64, height=8, rx=1)
    return _bar(64, 8, track, el("rect", cls=f"fill tone-{tone}", width=filled, height=8, rx=1))


def count_bar(count: int, most: int) -> Markup:
    """A count as a bar; all bars of a table share the scale up to `most`."""
    width = max(220 * count / most, 1.0) if count else 0.0
    return _bar(220, 12, el("rect", cls="fill tone-plain", width=width, height=12, rx=1))


def outcome_bar(better: int, equal: int, worse: int) -> Markup:
    """Prompts that got better, stayed equal, got worse: three parts of one bar."""
    total, at, parts = better + equal + worse, 0.0, []
    for count, kind in ((better, "better"), (equal, "equal"), (worse, "worse")):
        width = 150 * count / total
        if count:  # half a pixel of space on each side: the last part is an outline
            parts.append(el("rect", cls=f"outcome-{kind}", x=at + 0.5, y=0.5, width=max(width - 1, 0.5), height=11))
        at += width
    return _bar(150, 12, *parts)
