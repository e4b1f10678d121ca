"""A selection's report as one HTML page; see tiebreak.page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tiebreak.page.charts import Scale, value_scale
from tiebreak.page.document import build_document
from tiebreak.page.markup import Markup, el, join
from tiebreak.page.numbers import digits_for, number, percent
from tiebreak.page.tables import cell, heading, measured, note, table

Report = Mapping[str, Any]

_RANDOM, _STRATEGY = ("base", "circle"), ("dpo", "diamond")
_LEFT_OUT = (("Already judged", "already_judged"), ("Twice in the pool", "duplicates"))


def build_page(report: Report, made_from: Mapping[str, str]) -> str:
    """The whole page.

    Args:
        report: as in report.json.
        made_from: sources of the inputs, by name.
    """
    sections = [("arms", "Arms", _arms(report)), ("splits", "Splits", _splits(report["splits"]))]
    return build_document("Selection: report", _head(report, made_from), sections, report)


def _head(report: Report, made_from: Mapping[str, str]) -> Markup:
    counts = report["counts"]
    facts = {
        "Strategy": report["strategy"],
        "Pool": made_from.get("pairs", ""),
        **{name: number(counts[key]) if counts[key] else "" for name, key in _LEFT_OUT},
        **_other_inputs(made_from),
    }
    return join(
        el("p", "Selection: report", cls="eyebrow"),
        el("h1", f"{number(counts['selected'])} of {number(counts['pool'])} pairs selected for people to judge"),
        el("div", [el("span", name, " ", el("b", value)) for name, value in facts.items() if value], cls="facts"),
    )


def _other_inputs(made_from: Mapping[str, str]) -> dict[str, str]:
    """Inputs by name; those of a list, such as judges.0 and judges.1, together."""
    found: dict[str, list[str]] = {}
    for name, source in made_from.items():
        if name != "pairs":
            found.setdefault(name.partition(".")[0].replace("_", " ").capitalize(), []).append(source)
    return {name: ", ".join(sources) for name, sources in found.items()}


def _arms(report: Report) -> Markup:
    arms: Mapping[str, Any] = report["arms"]
    scale = _scale_of([arm["score_quartiles"] for arm in arms.values() if arm["score_quartiles"]])
    headings = [
        heading("Arm"),
        heading("Pairs", numeric=True),
        heading("Share", "of the selection", numeric=True),
        heading("Probability", "smallest of a pair", numeric=True),
        *([heading("Score", "median; middle half", scale=scale)] if scale else []),
    ]
    rows = [_arm(name, arm, report["counts"]["selected"], scale) for name, arm in arms.items()]
    remark = (
        "Random: a simple random sample of the pool; the strategy takes the best of the rest. Scores are those of the "
        "strategy, the largest first. A pair's probability of selection is in pairs.jsonl."
    )
    return join(table(headings, rows), note(remark))


def _arm(name: str, arm: Mapping[str, Any], selected: int, scale: Scale | None) -> Markup:
    tone = _RANDOM if name == "random" else _STRATEGY
    quartiles = arm["score_quartiles"]
    score = None
    if scale is not None and quartiles is None:
        score = cell("Score", "–", absent=True)
    elif scale is not None:
        digits = digits_for(scale.high - scale.low)
        score = measured("Score", quartiles[2], [quartiles[1], quartiles[3]], scale, lambda x: number(x, digits), tone)
    return el(
        "tr",
        el("th", "at random" if name == "random" else name.replace("_", " "), scope="row"),
        cell("Pairs", number(arm["pairs"]), cls="n"),
        cell("Share", percent(arm["pairs"] / max(selected, 1)), cls="n"),
        cell("Probability", number(arm["smallest_probability"]), cls="n"),
        score,
    )


def _scale_of(quartiles: Sequence[Sequence[float]]) -> Scale | None:
    return value_scale([score for row in quartiles for score in row]) if quartiles else None


def _splits(splits: Mapping[str, Mapping[str, int]]) -> Markup:
    headings = [
        heading("Split"),
        heading("Pool", "pairs", numeric=True),
        heading("Selected", numeric=True),
        heading("At random", numeric=True),
    ]
    rows = [
        el(
            "tr",
            el("th", name, scope="row"),
            cell("Pool", number(one["pool"]), cls="n"),
            cell("Selected", number(one["selected"]), cls="n"),
            cell("At random", number(one["at_random"]), cls="n"),
        )
        for name, one in splits.items()
    ]
    held_out = "Held-out pairs are all selected at random, so held-out figures need no weights."
    return join(table(headings, rows), note(held_out))
