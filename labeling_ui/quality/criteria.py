"""Agreement of raters on aspects and criteria, each by itself.

A bar's value is taken from the side whose id comes first, whatever side it was shown on, and raters agree on it where they
prefer the same side. Bars and stars have an interval-scaled α, yes or no and choices a nominal one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from typing import Any

import numpy as np

from labeling_ui.quality.agreement import krippendorff_alpha, shown_figure
from labeling_ui.quality.intervals import mean_over_clusters
from labeling_ui.quality.votes import Comparison
from tiebreak.records import Judgment
from tiebreak.terminal import titled_table

Value = bool | int | str
Unit = tuple[str, ...]
"""A pair, its two sides, and the answer that the value is about; empty for the pair."""


def agreement_by_criterion(
    judgments: Sequence[Judgment], gold: Container[Comparison] = (), *, aspects: bool = True
) -> dict[str, Any]:
    """Each criterion's share of agreement and Krippendorff's α, over what two or more raters answered.

    Args:
        judgments: of one kind; a rater's first one of a pair counts.
        gold: comparisons that are left out, as they are from the agreement of the votes: every rater gets them.
        aspects: with the aspects.
    """
    answers: dict[str, dict[Unit, dict[str, Value]]] = {}
    bars: set[str] = set()
    for judgment in judgments:
        if _comparison(judgment) in gold:
            continue
        for name, unit, value, is_bar in _values(judgment, aspects):
            answers.setdefault(name, {}).setdefault(unit, {}).setdefault(judgment.rater_id, value)
            if is_bar:
                bars.add(name)
    return {
        name: _measure([list(by_rater.values()) for by_rater in units.values()], is_bar=name in bars)
        for name, units in answers.items()
    }


def _comparison(judgment: Judgment) -> Comparison:
    first, second = sorted((judgment.left, judgment.right))
    return judgment.pair_id, first, second


def _values(judgment: Judgment, aspects: bool) -> Iterator[tuple[str, Unit, Value, bool]]:
    # A ranking's left and right are the first two of its rater's own order: the unit is the pair as a whole.
    sides: Unit = (judgment.pair_id,) if judgment.shown else _comparison(judgment)
    turned = -1 if judgment.right < judgment.left else 1
    if aspects:
        for name, step in judgment.aspects.items():
            yield name, sides, turned * step, True
    for name, value in judgment.criteria.items():
        if isinstance(value, dict):
            for completion, one in value.items():
                yield name, (judgment.pair_id, completion), one, False
        else:
            is_bar = isinstance(value, int) and not isinstance(value, bool)
            yield name, sides, turned * value if is_bar else value, is_bar


def _measure(units: Sequence[Sequence[Value]], *, is_bar: bool) -> dict[str, Any]:
    values = sorted({value for unit in units for value in unit}, key=lambda value: (str(type(value)), value))
    is_scale = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
    counts = [Counter(unit) for unit in units]
    tallies = np.array([[count[value] for value in values] for count in counts], dtype=np.int64)
    numbers = [int(value) for value in values] if is_scale else list(range(len(values)))
    merged = [Counter(int(value > 0) - int(value < 0) for value in unit) for unit in units] if is_bar else counts  # type: ignore[operator]
    same = np.array([sum(n * (n - 1) / 2 for n in count.values()) for count in merged])
    pairs = np.array([len(unit) * (len(unit) - 1) / 2 for unit in units])
    return {
        "agreement": mean_over_clusters(same, pairs).as_json(),
        "krippendorff_alpha": krippendorff_alpha(tallies, numbers, interval=is_scale).as_json(),
        "scale": "interval" if is_scale else "nominal",
    }


def criterion_lines(measured: dict[str, Any], colours: bool = False) -> list[str]:
    """The figures as a table; empty without any."""
    if not measured:
        return []
    rows = [
        (
            name,
            *shown_figure(one["agreement"], "{:.1%}"),
            *shown_figure(one["krippendorff_alpha"], "{:.3f}"),
            str(one["agreement"]["n"]),
        )
        for name, one in measured.items()
    ]
    head = ("criterion", "agreement", "95% interval", "α", "95% interval", "n")
    return ["", *titled_table(head, rows, colours=colours)]
