"""The report on synthetic rows as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft.report.examples import shortened
from tiebreak.page.charts import count_bar
from tiebreak.page.document import build_document
from tiebreak.page.markup import Markup, el, join
from tiebreak.page.numbers import number
from tiebreak.page.tables import cell, heading, note, table

EXAMPLES = 3
"""examples shown of each method"""


def build_page(report: Mapping[str, Any]) -> str:
    """The whole page."""
    sections = [
        ("methods", "Methods", _methods(report)),
        ("diversity", "Diversity", _diversity(report)),
        ("dropped", "Dropped rows", _reasons(report)),
        ("examples", "Synthetic rows", _examples(report)),
    ]
    return build_document("Synthetic data", _head(report), sections, report)


def _head(report: Mapping[str, Any]) -> Markup:
    counts = report["counts"]
    unreviewed = report["review"] == "none"
    caveat = "No person has reviewed these rows, and training takes them (review: none)." if unreviewed else ""
    facts = {
        "Writer": report["writer"] or "rules",
        "Tokens": number(sum(report["tokens"].values())),
        "Cost": "" if report["cost"] is None else number(report["cost"]),
        "Personal data": report["personal_data"],
    }
    return join(
        el("p", "Synthetic data", cls="eyebrow"),
        el("h1", f"{number(counts['kept'])} of {number(counts['tried'])} synthetic rows are kept"),
        el("p", caveat, cls="caveat") if caveat else None,
        el("div", [el("span", name, " ", el("b", value)) for name, value in facts.items() if value], cls="facts"),
    )


def _methods(report: Mapping[str, Any]) -> Markup:
    rows = [
        el(
            "tr",
            el("th", name, scope="row"),
            cell("Tried", number(one["tried"]), cls="n"),
            cell("Kept", count_bar(one["kept"], max(one["tried"], 1)), f" {number(one['kept'])}"),
            cell("Source", one["paper"]),
        )
        for name, one in report["methods"].items()
    ]
    return table([heading("Method"), heading("Tried", numeric=True), heading("Kept"), heading("Source")], rows)


def _diversity(report: Mapping[str, Any]) -> Markup:
    rows = [
        el(
            "tr",
            el("th", name, scope="row"),
            cell("Prompts", number(one["prompts"]), cls="n"),
            cell("Distinct word pairs", number(one["distinct_2"]), cls="n"),
            cell("Words", number(one["words_median"]), cls="n"),
        )
        for name, one in report["diversity"].items()
    ]
    heads = [heading("Data"), *(heading(name, numeric=True) for name in ("Prompts", "Distinct word pairs", "Words"))]
    overlap = number(report["diversity"]["synthetic"]["overlap_with_real"])
    return join(
        table(heads, rows),
        note(
            "Distinct word pairs: their share of all (Li et al. 2016), which falls with the number of prompts. Words: of a "
            f"median prompt. A synthetic prompt shares {overlap} of its word trigrams with the real one most alike, "
            "on average."
        ),
    )


def _reasons(report: Mapping[str, Any]) -> Markup | None:
    reasons = report["dropped"]
    most = max(reasons.values(), default=1)
    rows = [
        el("tr", el("th", reason, scope="row"), cell("Rows", count_bar(count, most), f" {number(count)}"))
        for reason, count in reasons.items()
    ]
    return table([heading("Reason"), heading("Rows")], rows) if rows else None


def _answer(row: Mapping[str, Any]) -> str | Markup:
    """The row's answer, marked as the better one where there is a rejected one beside it."""
    text = shortened(row["completion"])
    return el("ins", text) if row.get("rejected") else text


def _examples(report: Mapping[str, Any]) -> Markup | None:
    parts: list[object] = []
    for method in report["methods"]:
        shown = [one for one in report["examples"] if one["method"] == method][:EXAMPLES]
        if not shown:
            continue
        parts.append(el("h3", method))
        for one in shown:
            rejected = el("p", el("del", shortened(one["rejected"])), cls="example") if one.get("rejected") else None
            answer = el("p", _answer(one), cls="example") if one["completion"] else None
            prompt = el("p", shortened(one["prompt"]), cls="example")
            parts.append(el("figure", el("figcaption", one["how"]) if one["how"] else None, prompt, answer, rejected))
    return join(parts) if parts else None
