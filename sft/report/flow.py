"""A Sankey diagram from the rows read to the rows kept: each step's dropped rows leave the stream to the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tiebreak.errors import counted
from tiebreak.page.charts import svg_points
from tiebreak.page.markup import Markup, el, svg, text
from tiebreak.page.numbers import number

WIDTH, STREAM, LEFT, END = 360, 190, 4, 226
"""of the drawing; of the stream at its beginning; its left side; where the dropped rows end"""
_TOP, _PLAIN, _BRANCH, _MARGIN = 24, 24, 30, 12
_LONGEST_NAME = 16


def flow(report: Mapping[str, Any]) -> Markup | None:
    """The diagram of a data report; none without rows."""
    read = report["counts"]["read"]
    rows = sum(read.values())
    if not rows:
        return None
    usable = report.get("usable", rows)
    rows = max(rows, usable)  # a row that is a tree of messages may hold several
    stages = [*([("not usable", rows - usable)] if usable < rows else []), *stages_of(report)]
    left = rows - sum(dropped for _, dropped in stages)
    drawn, end = _stream(rows, stages)
    drawn.insert(0, text(LEFT, 14, f"{rows_read(read)} read", "spot"))
    drawn.append(text(LEFT, end + 16, f"{number(left)} kept", "spot"))
    label = f"Of {number(rows)} rows read, {number(left)} are kept. " + " ".join(
        f"{name}: {number(dropped)} dropped." for name, dropped in stages
    )
    return svg(WIDTH, round(end + 26), drawn, cls="plot sankey", label=label)


def rows_read(counts: Mapping[str, int]) -> str:
    """The rows of the sources, by what they were read as; a row may hold no record of the kind, or several.

    >>> rows_read({"prompts": 1072, "demonstrations": 1})
    '1,072 rows of prompts and 1 row of demonstrations'
    """
    return " and ".join(f"{counted(rows, 'row')} of {kind}" for kind, rows in counts.items())


def stages_of(report: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(name, rows dropped) of every step, then of what is dropped after them."""
    stages = [(str(tally["step"]), int(tally["dropped"])) for tally in report.get("steps", [])]
    return stages + [(_title(reason), int(count)) for reason, count in report["dropped"].items()]


def _title(reason: str) -> str:
    return {"the same as": "exact duplicates", "near duplicate of": "near duplicates"}.get(reason, reason)


def _stream(rows: int, stages: Sequence[tuple[str, int]]) -> tuple[list[Markup], float]:
    """The pieces of the drawing, and where it ends."""
    drawn: list[Markup] = []
    side: list[tuple[float, float]] = []
    left, y = rows, float(_TOP)
    for name, dropped in stages:
        wide, less, thick = (STREAM * count / rows for count in (left, left - dropped, dropped))
        height = max(_BRANCH, thick + _MARGIN) if dropped else _PLAIN
        side += [(LEFT + less, y), (LEFT + less, y + height)]
        middle = y + height / 2
        if dropped:
            drawn.append(_branch(LEFT + less, LEFT + wide, y, middle - thick / 2, max(thick, 1.0)))
        drawn += _label(name, dropped, middle)
        left, y = left - dropped, y + height
    end = y + _PLAIN
    side += [(LEFT + STREAM * left / rows, y), (LEFT + STREAM * left / rows, end)]
    outline = svg_points([(LEFT, _TOP), *side, (LEFT, end)])
    drawn.insert(0, el("polygon", cls="fill tone-sft", points=outline, fill_opacity="0.55"))
    return drawn, end


def _label(name: str, dropped: int, y: float) -> list[Markup]:
    shown = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    beside = f"−{number(dropped)}" if dropped else "none"
    return [
        text(END + 6, y + 4, shown, "stage" if dropped else "stage faint"),
        text(WIDTH, y + 4, beside, "stage" if dropped else "stage faint", "end"),
    ]


def _branch(inner: float, outer: float, y: float, top: float, thick: float) -> Markup:
    """From the stream's right part at height y, down and to the right."""
    bottom = top + thick
    path = (
        f"M{outer:.1f},{y:.1f} C{outer:.1f},{top:.1f} {outer + 8:.1f},{top:.1f} {END},{top:.1f} "
        f"L{END},{bottom:.1f} C{inner + 8:.1f},{bottom:.1f} {inner:.1f},{bottom:.1f} {inner:.1f},{y:.1f} Z"
    )
    return el("path", cls="fill tone-dpo", d=path, fill_opacity="0.6")
