"""Pictures of the distributions before and after: bars of what is kept, under the outline of what was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sft.distributions import FIGURE, label_of, moved, shares
from tiebreak.page.charts import svg_points
from tiebreak.page.markup import Markup, el, join, line, svg, text
from tiebreak.page.numbers import percent
from tiebreak.page.tables import note

_WIDTH, _HEIGHT, _LEFT, _BASE, _TOP = 340, 150, 30, 122, 12


def histograms(drawn: Mapping[str, Any]) -> Markup | None:
    """A panel for each figure."""
    panels = [_panel(name, one) for name, one in drawn.items() if sum(one["before"]) and sum(one["after"])]
    if not panels:
        return None
    legend = el(
        "p",
        el(
            "span",
            svg(14, 10, el("rect", cls="fill tone-sft", x=1, y=1, width=12, height=9), cls="inline", fixed=True),
            "kept",
        ),
        el(
            "span",
            svg(14, 10, line(0, 5, 14, 5, "curve tone-dpo"), cls="inline", fixed=True),
            "as read, before the first step",
        ),
        cls="legend",
    )
    remark = (
        "Share of rows in each bin; bins widen to the right. Of more than 20,000 rows, every n-th is counted. Mind what "
        "moves: a step that empties a bin changes what the data is like."
    )
    return join(legend, el("div", panels, cls="panels"), note(remark))


def _panel(name: str, one: Mapping[str, Sequence[Any]]) -> Markup:
    figure = FIGURE[name]
    before, after = shares(one["before"]), shares(one["after"])
    most = max(*before, *after)
    bins = len(before)
    step = (_WIDTH - _LEFT) / bins
    heights = [[(_BASE - _TOP) * share / most for share in part] for part in (before, after)]
    bars = [
        el("rect", cls="fill tone-sft", x=_LEFT + n * step + 1, y=_BASE - height, width=step - 2, height=height,
           fill_opacity="0.75")
        for n, height in enumerate(heights[1])
        if height
    ]  # fmt: skip
    outline = [(_LEFT + (n + end) * step, _BASE - height) for n, height in enumerate(heights[0]) for end in (0, 1)]
    marks = [
        text(_LEFT + (n + 1) * step, _BASE + 14, f"{edge:g}", "tick", "middle")
        for n, edge in enumerate(one["edges"])
        if n % 2 == 0
    ]
    drawing = svg(
        _WIDTH,
        _HEIGHT,
        bars,
        el("polyline", cls="curve tone-dpo", points=svg_points([(_LEFT, _BASE), *outline, (_WIDTH, _BASE)])),
        line(_LEFT, _BASE, _WIDTH, _BASE, "axis"),
        text(_LEFT - 4, _TOP + 4, percent(most), "tick", "end"),
        text(_LEFT - 4, _BASE, "0", "tick", "end"),
        marks,
        text((_LEFT + _WIDTH) / 2, _HEIGHT - 2, figure.unit, "name", "middle"),
        cls="plot",
        label=_described(figure.title, one, before, after),
    )
    caption = el("figcaption", el("b", figure.title), f" · {percent(moved(one))} of rows in another bin")
    return el("figure", caption, drawing)


def _described(title: str, one: Mapping[str, Sequence[Any]], before: Sequence[float], after: Sequence[float]) -> str:
    parts = [
        f"{label_of(one['edges'], n)}: {percent(then)} before, {percent(now)} after"
        for n, (then, now) in enumerate(zip(before, after, strict=True))
        if then or now
    ]
    return f"{title}. {'; '.join(parts)}."
