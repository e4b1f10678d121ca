"""The report's part on several yardsticks: a row for each, a column for each policy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.compare.reading import beside
from evaluation.compare.words import edge, label
from tiebreak.page.charts import swatch
from tiebreak.page.markup import Markup, el, join
from tiebreak.page.numbers import digits_for, number, p_value, signed
from tiebreak.page.tables import cell, heading, note, ranged, table

Row = Mapping[str, Any]
Marks = Mapping[str, tuple[str, str]]

_DIRECTIONS = {"higher": "more is better", "lower": "less is better", "neither": ""}
_VERDICTS = {"undecided": "no clear difference", "too few": "too few prompts"}


def yardsticks_part(report: Row, marks: Marks) -> Markup | None:
    """The yardsticks after the first, which has the report's other tables."""
    named = report.get("yardsticks", [])
    further = named[1:]
    if not further:
        return None
    policies = report["policies"]
    headings = [heading("Yardstick"), *(el("th", _named(policy, marks), scope="col", cls="n") for policy in policies)]
    rows = [
        el(
            "tr",
            el("th", one["title"], el("small", _about(one), cls="unit"), scope="row"),
            [_cell(policy, row["yardsticks"][one["source"]], one) for policy, row in policies.items()],
        )
        for one in further
    ]
    own = sum("p_value" in row["yardsticks"][one["source"]] for one in named for row in policies.values())
    compared = report.get("comparisons") or own
    remark = (
        "Means with 95% bootstrap intervals over prompts; several answers to a prompt count as their mean. Δ: the "
        f"difference from {label(report['baseline'])} on the same prompts. Verdicts: McNemar's test of the prompts on "
        "which one of the two has the better value, from 30 prompts on, p-values corrected for all "
        f"{compared} comparisons of this report (Holm)."
    )
    failed = [
        note(f"{one['source']} failed on {one['failed']} rows, which have no value. The first: {one['first_failure']}")
        for one in named
        if one.get("failed")
    ]
    return join(el("div", table(headings, rows), cls="scroll"), note(remark), failed)


def _named(policy: str, marks: Marks) -> Markup:
    return join(swatch(*marks[policy]), label(policy))


def _about(one: Row) -> str:
    return ", ".join(filter(None, (str(one["source"]) if _is_news(one) else "", _DIRECTIONS[one["better"]])))


def _is_news(one: Row) -> bool:
    """Whether a yardstick's source is short, and not its title already."""
    return len(str(one["source"])) < 40 and one["source"] != one["title"]


def _cell(policy: str, row: Row, one: Row) -> Markup:
    if row["mean"] is None:
        return cell(label(policy), "–", cls="n", absent=True)
    span = _span(one.get("scale"), row)
    digits = digits_for(span)
    shown = ranged(row["mean"], row["interval"], lambda value: number(value, digits))
    further = []
    if "difference" in row:
        further.append(el("small", f"Δ {signed(row['difference'], digits)}", cls="verdict"))
        verdict = str(row["verdict"])
        words = _VERDICTS.get(verdict, verdict)
        further.append(
            el("small", words if verdict == "too few" else f"{words}, p {p_value(row['p_value'])}", cls="verdict")
        )
    return cell(label(policy), el("span", shown, further, cls="stacked"), cls="n")


def _span(scale: Sequence[float] | None, row: Row) -> float:
    return float(scale[1] - scale[0]) if scale else float(max(abs(row["mean"]), 1e-6))


def slices_part(report: Row, marks: Marks) -> Markup | None:
    """The first yardstick's figures by tag and source of the prompts."""
    measured = {name: row["slices"] for name, row in report["policies"].items() if row.get("slices")}
    if not measured:
        return None
    names = list(dict.fromkeys(name for slices in measured.values() for name in slices))
    span = _span(
        report["yardstick_scale"],
        {"mean": max(abs(r["yardstick_mean"]) for s in measured.values() for r in s.values())},
    )
    rows = []
    for name in names:
        first = next(slices[name] for slices in measured.values() if name in slices)
        cells = [_slice_cell(policy, slices.get(name), digits_for(span)) for policy, slices in measured.items()]
        rows.append(
            el("tr", el("th", name, el("small", f"{first['n_prompts']} prompts", cls="unit"), scope="row"), cells)
        )
    headings = [heading("Slice"), *(el("th", _named(name, marks), scope="col", cls="n") for name in measured)]
    remark = (
        f"{report['yardstick_name']}, and below it the win rate against {label(report['baseline'])}, on the prompts of one "
        "tag or source, with 95% intervals. There are no verdicts by slice: among many, some differ by chance."
    )
    return join(el("div", table(headings, rows), cls="scroll"), note(remark))


def _slice_cell(policy: str, row: Row | None, digits: int) -> Markup:
    if row is None:
        return cell(label(policy), "–", cls="n", absent=True)
    shown = ranged(row["yardstick_mean"], row["yardstick_interval"], lambda value: number(value, digits))
    rate = row.get("win_rate_vs_baseline")
    won = ranged(rate, row["win_rate_interval"], edge) if rate is not None else None
    return cell(
        label(policy),
        el("span", shown, el("small", "wins ", won, cls="verdict") if won else None, cls="stacked"),
        cls="n",
    )


_BESIDE = re.compile("_(stderr|difference|difference_interval)(,|$)")
"""in the names of further figures of a metric"""


def benchmarks_part(report: Row, marks: Marks) -> Markup | None:
    """lm-eval's tasks: a row for each metric, a column for each policy."""
    measured = {name: row["benchmarks"] for name, row in report["policies"].items() if row.get("benchmarks")}
    if not measured:
        return None
    metrics = {
        (task, metric)
        for tasks in measured.values()
        for task, figures in tasks.items()
        for metric in figures
        if not _BESIDE.search(metric)
    }
    rows = [
        el(
            "tr",
            el("th", task, el("small", metric, cls="unit"), scope="row"),
            [_benchmark_cell(name, tasks.get(task, {}), metric) for name, tasks in measured.items()],
        )
        for task, metric in sorted(metrics)
    ]
    headings = [heading("Task"), *(el("th", _named(name, marks), scope="col", cls="n") for name in measured)]
    remark = (
        "Tasks of lm-eval (EleutherAI), in its own metrics; ± is the standard error over the task's questions. Δ: the "
        "difference from the baseline on the same questions, with its 95% interval."
    )
    return join(el("div", table(headings, rows), cls="scroll"), note(remark))


def _benchmark_cell(policy: str, figures: Row, metric: str) -> Markup:
    value = figures.get(metric)
    if value is None:
        return cell(label(policy), "–", cls="n", absent=True)
    error, difference = figures.get(beside(metric, "stderr")), figures.get(beside(metric, "difference"))
    shown = el("span", number(value, 3), el("small", f" ± {number(error, 3)}") if error else None)
    if difference is None:
        return cell(label(policy), shown, cls="n")
    low, high = figures[beside(metric, "difference_interval")]
    against = el("small", f"Δ {signed(difference, 3)}, {signed(low, 3)} to {signed(high, 3)}", cls="verdict")
    return cell(label(policy), el("span", shown, against, cls="stacked"), cls="n")


def canaries_part(report: Row, marks: Marks) -> Markup | None:
    """Exposure of the facts that were planted in the data."""
    measured = {name: row["canaries"] for name, row in report["policies"].items() if row.get("canaries")}
    if not measured:
        return None
    rows = [
        el(
            "tr",
            el("th", _named(name, marks), scope="row"),
            cell("Mean, bits", number(one["exposure_mean"]), cls="n"),
            cell("Largest, bits", number(one["exposure_max"]), cls="n"),
            cell("p by chance", p_value(one["chance_probability"]), cls="n"),
            cell("Verdict", "memorised" if one["memorised"] else "not shown to be memorised"),
        )
        for name, one in measured.items()
    ]
    first = next(iter(measured.values()))
    headings = [
        heading("Policy"),
        heading("Exposure", "mean, bits", numeric=True),
        heading("Exposure", "largest, bits", numeric=True),
        heading("p", "by chance", numeric=True),
        heading("Verdict"),
    ]
    remark = (
        f"Exposure of {first['planted']} invented telephone numbers that were planted in the data: log2 of 1,000 possible "
        "numbers, less log2 of the planted one's rank by log-probability (Carlini et al. 2019). A policy that never saw "
        f"them has {number(first['exposure_of_chance'])} bits on average; 10 bits: it ranks the planted number first. p: "
        "Fisher's method; below 0.01 counts as memorised."
    )
    return join(el("div", table(headings, rows), cls="scroll"), note(remark))


def gaps_part(report: Row, marks: Marks) -> Markup | None:
    """Differences between prompts that name different groups."""
    gaps = report.get("gaps", [])
    if not gaps:
        return None
    titles = {one["source"]: one["title"] for one in report["yardsticks"]}
    scales = {one["source"]: one.get("scale") for one in report["yardsticks"]}
    policies = list(dict.fromkeys(row["policy"] for row in gaps))
    lines: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in gaps:
        first, second = row["groups"]
        lines.setdefault((row["attribute"], f"{first} − {second}", row["yardstick"]), {})[row["policy"]] = row
    rows = []
    for (attribute, groups, source), by_policy in lines.items():
        pairs = max(row["pairs"] for row in by_policy.values())
        about = f"{attribute + ', ' if attribute else ''}{pairs} pairs"
        cells = [_gap_cell(policy, by_policy.get(policy), scales[source]) for policy in policies]
        rows.append(
            el(
                "tr",
                el("th", groups, el("small", about, cls="unit"), scope="row"),
                cell("Yardstick", titles[source]),
                cells,
            )
        )
    headings = [
        heading("Groups"),
        heading("Yardstick"),
        *(el("th", _named(policy, marks), scope="col", cls="n") for policy in policies),
    ]
    remark = (
        "Prompts that differ in the named group alone. A gap is the first group's mean less the second's, over pairs, "
        f"with a 95% bootstrap interval; p-values of McNemar's test, corrected for all {len(gaps)} gaps (Holm). An "
        "interval that includes 0 does not show that there is no gap."
    )
    return join(el("div", table(headings, rows), cls="scroll"), note(remark))


def _gap_cell(policy: str, row: Row | None, scale: Sequence[float] | None) -> Markup:
    if row is None:
        return cell(label(policy), "–", cls="n", absent=True)
    digits = digits_for(float(scale[1] - scale[0]) if scale else max(abs(row["gap"]), 1e-6))
    shown = ranged(row["gap"], row["gap_interval"], lambda value: signed(value, digits))
    return cell(
        label(policy),
        el("span", shown, el("small", f"p {p_value(row['p_value'])}", cls="verdict"), cls="stacked"),
        cls="n",
    )
