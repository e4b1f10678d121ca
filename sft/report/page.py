"""The data report as one HTML page: what came in, what each step did, what is left, with examples of every change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft.report.examples import Lines, examples
from sft.report.flow import flow, rows_read
from sft.report.histograms import histograms, outliers
from tiebreak.page.charts import count_bar
from tiebreak.page.document import build_document
from tiebreak.page.markup import Markup, el, join
from tiebreak.page.numbers import number
from tiebreak.page.tables import cell, heading, note, table

Report = Mapping[str, Any]
_SPLITS = ("train", "validation", "test")
_STYLE = (
    ".sankey{max-width:470px;margin-top:14px}svg .stage{font-size:11px;fill:var(--ink)}svg .stage.faint{fill:var(--soft)}"
    "svg.sankey .spot{font-size:12px}.legend span{margin-right:1.2em}"
)


@dataclass(frozen=True)
class SourceFacts:
    """What the page says of a source."""

    path: str
    rows: int
    licence: str


def build_page(
    report: Report,
    drawn: Mapping[str, Any],
    sources: Sequence[SourceFacts],
    changed: Lines,
    dropped: Lines,
    flagged: Lines,
) -> str:
    """The whole page.

    Args:
        report: as in report.json, with `usable`, the number of rows that entered the first step.
        drawn: as in distributions.json.
        sources: in the order of the configuration.
        changed: the lines of changed.jsonl, dropped.jsonl and flagged.jsonl.
    """
    sections = [
        ("flow", "From rows read to rows kept", flow(report)),
        ("sources", "Sources and licences", _sources(sources, report.get("left_out", {}))),
        ("steps", "What each step did", _steps(report)),
        ("personal", "Personal data", _personal(report)),
        ("kept", "What is kept", _kept(report)),
        ("distributions", "Before and after", histograms(drawn)),
        ("perplexity", "Perplexity", _perplexity(report)),
        ("balance", "Balance", _balance(report)),
        ("changes", "Changes", examples(changed)),
        ("drops", "Dropped rows", examples(dropped)),
        ("flags", "Rows to look at", examples(flagged)),
    ]
    everything = {**report, "distributions": drawn, "sources": [vars(one) for one in sources]}
    return build_document("Data report", _head(report, sources), sections, everything, style=_STYLE)


def _head(report: Report, sources: Sequence[SourceFacts]) -> Markup:
    counts = report["counts"]
    read = sum(counts["read"].values())
    usable = report.get("usable", read)
    claim = f"{number(usable - counts['dropped'])} of {number(max(read, usable))} rows are kept"
    facts = {
        "Read": rows_read(counts["read"]),
        "From": ", ".join(dict.fromkeys(one.path for one in sources)),
        "Not usable": number(read - usable) if usable < read else "",
        "Normalised": number(counts["normalised"]),
        "Dropped": number(counts["dropped"]),
        "Canaries": _canaries(report),
    }
    remarks = [
        tally["facts"]["names"]
        for tally in report.get("steps", [])
        if tally["facts"].get("names", "sought") != "sought"
    ]
    return join(
        el("p", "Data report", cls="eyebrow"),
        el("h1", claim),
        [el("p", f"{remark[0].upper()}{remark[1:]}.", cls="caveat") for remark in remarks],
        el("div", [el("span", name, " ", el("b", value)) for name, value in facts.items() if value], cls="facts"),
    )


def _canaries(report: Report) -> str:
    if "canaries" not in report:
        return ""
    planted = report["canaries"]
    return f"{planted['count']} in {planted['rows']} rows, {planted['rows_with_number']} of them unchanged"


def _sources(sources: Sequence[SourceFacts], left_out: Mapping[str, int]) -> Markup | None:
    rows = [
        el(
            "tr",
            el("th", one.path, scope="row"),
            cell("Rows", number(one.rows), cls="n"),
            cell("Licence", one.licence or "not stated"),
        )
        for one in sources
    ]
    missing = sum(not one.licence for one in sources)
    remark = (
        note("State a licence with licences: {SOURCE: LICENCE}, or in a LICENSE file beside the data.")
        if missing
        else None
    )
    parts = "; ".join(f"{number(count)} {reason}" for reason, count in left_out.items())
    return join(
        table([heading("Source"), heading("Rows", numeric=True), heading("Licence")], rows),
        note(f"Left out when read: {parts}.") if parts else None,
        remark,
    )


def _steps(report: Report) -> Markup | None:
    tallies = report.get("steps", [])
    if not tallies:
        return None
    rows = []
    for tally in tallies:
        reasons = ", ".join(f"{number(count)} {reason}" for reason, count in tally["reasons"].items())
        figures = [cell(title, number(tally[key]), cls="n", absent=not tally[key]) for title, key in _COLUMNS]
        rows.append(
            el("tr", el("th", tally["step"], scope="row"), figures, cell("Of which", reasons, absent=not reasons))
        )
    heads = [heading("Step"), *(heading(title, numeric=True) for title, _ in _COLUMNS), heading("Of which")]
    return table(heads, rows)


_COLUMNS = (("Rows", "read"), ("Changed", "changed"), ("Dropped", "dropped"), ("Flagged", "flagged"))


def _personal(report: Report) -> Markup | None:
    facts = next((tally["facts"] for tally in report.get("steps", []) if "found" in tally["facts"]), None)
    if facts is None:
        return None
    kinds = sorted({*facts["found"], *facts["unsure"]}, key=lambda kind: (-facts["found"].get(kind, 0), kind))
    if not kinds:
        return note("None was found.")
    most = max(facts["found"].values(), default=1)
    rows = [
        el(
            "tr",
            el("th", kind, scope="row"),
            cell("Hidden", count_bar(facts["found"].get(kind, 0), most), f" {number(facts['found'].get(kind, 0))}"),
            cell("Unsure", number(facts["unsure"].get(kind, 0)), cls="n", absent=not facts["unsure"].get(kind)),
        )
        for kind in kinds
    ]
    heads = [heading("Kind"), heading("Hidden", facts["mode"]), heading("Unsure", "left as it is", numeric=True)]
    return join(table(heads, rows), note("Counts alone: the values are in no file of the run."))


def _kept(report: Report) -> Markup:
    counts = report["counts"]
    rows = []
    for what in ("prompts", "demonstrations"):
        in_split = [(split, counts[what].get(split, 0)) for split in _SPLITS]
        figures = [cell(split, number(rows_of), cls="n", absent=not rows_of) for split, rows_of in in_split]
        if counts[what]:
            rows.append(el("tr", el("th", what, scope="row"), figures))
    splits = table([heading("Rows"), *(heading(split, numeric=True) for split in _SPLITS)], rows)
    lengths = [
        el(
            "tr",
            el("th", name.removesuffix("_tokens"), scope="row", data_name="Length in tokens:"),
            [cell(quantile, number(values[quantile]), cls="n") for quantile in ("min", "median", "p95", "max")],
        )
        for name, values in report["lengths"].items()
    ]
    heads = [heading("Length in tokens"), *(heading(name, numeric=True) for name in ("min", "median", "p95", "max"))]
    tags = report["tags"]
    most = max(tags.values(), default=1)
    shown = [
        el("tr", el("th", tag, scope="row"), cell("Prompts", count_bar(count, most), f" {number(count)}"))
        for tag, count in list(tags.items())[:20]
    ]
    return join(
        splits,
        table(heads, lengths) if lengths else None,
        join(el("h3", "Prompts by tag"), table([], shown)) if shown else None,
    )


def _perplexity(report: Report) -> Markup | None:
    facts = next((tally["facts"] for tally in report.get("steps", []) if "perplexity" in tally["facts"]), None)
    return None if facts is None else outliers(facts["perplexity"])


def _balance(report: Report) -> Markup | None:
    """Prompts by topic, tag, language and length, the rare ones at the end of each table."""
    facts = next((tally["facts"] for tally in report.get("steps", []) if "balance" in tally["facts"]), None)
    if facts is None:
        return None
    parts: list[object] = []
    for kind, counts in facts["balance"].items():
        most = max(counts.values(), default=1)
        rows = [
            el(
                "tr",
                el("th", value, scope="row"),
                cell("Prompts", count_bar(count, most), f" {number(count)}"),
            )
            for value, count in counts.items()
        ]
        if rows:
            parts += [el("h3", f"Prompts by {kind}"), table([], rows)]
    gaps = facts["gaps"]
    parts.append(
        note(f"{number(gaps)} gaps, each with a suggestion, are in gaps.jsonl." if gaps else "Nothing is rare.")
    )
    return join(parts)
