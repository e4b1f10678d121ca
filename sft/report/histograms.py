"""Pictures of the distributions before and after: bars of what is kept, under the outline of what was read."""

from __future__ import annotations

import math
from bisect import bisect_right
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


def outliers(facts: Mapping[str, Any]) -> Markup | None:
    """The perplexities of the rows, with the limits beyond which they are flagged."""
    if not facts["measured"]:
        return note("Every row is too short to be measured.")
    edges, counts = facts["edges"], facts["counts"]
    used = [n for n, count in enumerate(counts) if count]
    first, last = used[0], used[-1]
    step = (_WIDTH - _LEFT) / (last - first + 1)
    most = max(counts)

    def x_of(value: float) -> float:
        """Its place: bins have one width, and within a bin the scale is logarithmic."""
        number = bisect_right(edges, value)
        if number in (0, len(edges)):
            within = 0.5
        else:
            within = math.log(value / edges[number - 1]) / math.log(edges[number] / edges[number - 1])
        return min(max(_LEFT + (number - first + within) * step, _LEFT), float(_WIDTH))

    bars = [
        el("rect", cls="fill tone-sft", x=_LEFT + (n - first) * step + 1, y=_BASE - height, width=step - 2,
           height=height, fill_opacity="0.75")
        for n in used
        if (height := (_BASE - _TOP) * counts[n] / most)
    ]  # fmt: skip
    limits = [
        line(x_of(facts[name]), _TOP, x_of(facts[name]), _BASE, "curve tone-dpo")
        for name in ("low", "high")
        if name in facts
    ]
    marks = [
        text(_LEFT + (n - first + 1) * step, _BASE + 14, f"{edges[n]:g}", "tick", "middle") for n in range(first, last)
    ]
    sizes = [text(_LEFT - 4, _TOP + 4, str(most), "tick", "end"), text(_LEFT - 4, _BASE, "0", "tick", "end")]
    unit = text((_LEFT + _WIDTH) / 2, _HEIGHT - 2, "perplexity", "name", "middle")
    parts = [f"{label_of(edges, n)}: {counts[n]} rows" for n in used]
    limits_text = " and ".join(f"{name} {facts[name]:g}" for name in ("low", "high") if name in facts)
    drawing = svg(
        _WIDTH, _HEIGHT, bars, limits, line(_LEFT, _BASE, _WIDTH, _BASE, "axis"), marks, sizes, unit,
        cls="plot", label=f"Perplexity. {'; '.join(parts)}. Limits: {limits_text or 'none'}.",
    )  # fmt: skip
    caption = el("figcaption", el("b", "Rows by perplexity"), f" · median {facts['median']:g}")
    remark = (
        f"Rows beyond the limits ({limits_text}) are flagged."
        if limits_text
        else "Too few rows, or too alike, for a limit."
    )
    return join(el("div", el("figure", caption, drawing), cls="panels"), note(remark))


def _described(title: str, one: Mapping[str, Sequence[Any]], before: Sequence[float], after: Sequence[float]) -> str:
    parts = [
        f"{label_of(one['edges'], n)}: {percent(then)} before, {percent(now)} after"
        for n, (then, now) in enumerate(zip(before, after, strict=True))
        if then or now
    ]
    return f"{title}. {'; '.join(parts)}."
