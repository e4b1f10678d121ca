"""Agreement of raters on single answers: ratings, verdicts of reviews, and classes, each task by itself.

Ratings have an ordinal Krippendorff's α, verdicts and classes a nominal one. Repeats measure their raters' consistency
and count nowhere else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from labeling_ui.quality.agreement import krippendorff_alpha, shown_figure
from labeling_ui.quality.intervals import mean_over_clusters, share
from tiebreak.assessments import SINGLE_TASKS, ExportedAssessment, SingleTask
from tiebreak.terminal import titled_table


def measure_assessments(assessments: Sequence[ExportedAssessment]) -> dict[str, Any]:
    """Each task's agreement, α and self-consistency, without gold; people's judgments alone where there are any."""
    assessments = [one for one in assessments if not one.gold]
    kinds = {one.kind for one in assessments}
    measured: dict[str, Any] = {}
    for task in SINGLE_TASKS:
        kind = next((kind for kind in ("human", "simulated", "model") if kind in kinds), None)
        those = [one for one in assessments if one.task == task and one.kind == kind and not one.skip]
        if those:
            measured[task] = _measure(those, task)
    return measured


def _measure(assessments: Sequence[ExportedAssessment], task: SingleTask) -> dict[str, Any]:
    firsts: dict[str, dict[str, int | str]] = {}
    again: list[bool] = []
    for one in assessments:
        if one.value is not None and not one.repeat:
            firsts.setdefault(one.pair_id, {}).setdefault(one.rater_id, one.value)
    for one in assessments:
        if one.repeat and one.rater_id in firsts.get(one.pair_id, {}):
            again.append(firsts[one.pair_id][one.rater_id] == one.value)
    counts = [Counter(by_rater.values()) for by_rater in firsts.values()]
    values = sorted({value for count in counts for value in count}, key=lambda value: (str(type(value)), value))
    tallies = np.array([[count[value] for value in values] for count in counts], dtype=np.int64)
    numbers = [value if isinstance(value, int) else n for n, value in enumerate(values)]
    same = np.array([sum(n * (n - 1) / 2 for n in count.values()) for count in counts])
    pairs = np.array([count.total() * (count.total() - 1) / 2 for count in counts])
    alpha = krippendorff_alpha(tallies, numbers, interval=False, ordinal=task == "rate")
    return {
        "answers": len(firsts),
        "judgments": sum(count.total() for count in counts),
        "raters": len({one.rater_id for one in assessments}),
        "agreement": mean_over_clusters(same, pairs).as_json(),
        "krippendorff_alpha": alpha.as_json(),
        "scale": "ordinal" if task == "rate" else "nominal",
        "self_consistency": share(sum(again), len(again)).as_json(),
        "values": {str(value): sum(count[value] for count in counts) for value in values},
    }


def assessment_lines(measured: dict[str, Any], colours: bool = False) -> list[str]:
    """The figures as a table; empty without any."""
    if not measured:
        return []
    rows = [
        (
            task,
            str(one["answers"]),
            str(one["judgments"]),
            *shown_figure(one["agreement"], "{:.1%}"),
            *shown_figure(one["krippendorff_alpha"], "{:.3f}"),
            str(one["agreement"]["n"]),
        )
        for task, one in measured.items()
    ]
    head = ("single answers", "answers", "judgments", "agreement", "95% interval", "α", "95% interval", "n")
    return ["", *titled_table(head, rows, colours=colours)]
