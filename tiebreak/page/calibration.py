"""The reliability diagram: the share of right verdicts against the confidence stated in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tiebreak.page.charts import Frame, axes, mark
from tiebreak.page.markup import Markup, line, svg, text
from tiebreak.page.numbers import number, percent

_TONE, _SHAPE = "sft", "square"


def reliability_diagram(bins: Sequence[Mapping[str, Any]], title: str) -> Markup:
    """Share right against confidence, shape (340, 240) in SVG units."""
    frame = Frame(340, 240, 40, 14, 20, 34, (0.5, 1.02), (0.0, 1.03))
    body = axes(
        frame, "probability it gives to its choice", "share in which it is right", (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    )
    body.append(line(frame.px(0.5), frame.py(0.5), frame.px(1.0), frame.py(1.0), "reference"))
    for one in bins:
        x = frame.px(one["confidence"])
        body.append(line(x, frame.py(one["interval"][0]), x, frame.py(one["interval"][1]), f"whisker tone-{_TONE}"))
        body.append(mark(_SHAPE, x, frame.py(one["accuracy"]), f"mark ring tone-{_TONE}", 5.0))
        inside = x > frame.end - 30
        body.append(
            text(
                x + (-9 if inside else 9),
                frame.py(one["accuracy"]) + 4,
                number(one["n"]),
                "note",
                "end" if inside else "start",
            )
        )
    points = "; ".join(
        f"confidence {percent(b['confidence'])}, right {percent(b['accuracy'])} of {b['n']}" for b in bins
    )
    return svg(340, 240, body, cls="plot", label=f"{title}: {points}")
