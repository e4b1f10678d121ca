"""The data report as one HTML page: what came in, what each step did, what is left, with examples of every change."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from tiebreak.page.charts import count_bar
from tiebreak.page.document import build_document
from tiebreak.page.markup import Markup, el, join, svg, text
from tiebreak.page.numbers import number
from tiebreak.page.tables import cell, heading, note, table

Report = Mapping[str, Any]
Lines = Iterable[Mapping[str, str]]
EXAMPLES = 4
"""of each step, of different kinds"""
LONGEST = 600
"""Characters of an example that are shown."""
_SPLITS = ("train", "validation", "test")
_WIDTH, _ROW, _LEFT = 760, 46, 150


def build_page(report: Report, sources: Mapping[str, str], changed: Lines, dropped: Lines, flagged: Lines) -> str:
    """The whole page.

    Args:
        report: as in report.json.
        sources: the inputs by name.
        changed: the lines of changed.jsonl, dropped.jsonl and flagged.jsonl.
    """
    sections = [
        ("flow", "From rows read to rows kept", _flow(report)),
        ("steps", "What each step did", _steps(report)),
        ("personal", "Personal data", _personal(report)),
        ("kept", "What is kept", _kept(report)),
        ("balance", "Balance", _balance(report)),
        ("changes", "Changes", _examples(changed)),
        ("drops", "Dropped rows", _examples(dropped)),
        ("flags", "Rows to look at", _examples(flagged)),
    ]
    return build_document("Data report", _head(report, sources), sections, report)


def _head(report: Report, sources: Mapping[str, str]) -> Markup:
    counts = report["counts"]
    read = sum(counts["read"].values())
    claim = f"{number(read - counts['dropped'])} of {number(read)} rows are kept"
    facts = {
        "Read": ", ".join(f"{number(rows)} {what}" for what, rows in counts["read"].items()),
        "From": ", ".join(dict.fromkeys(sources.values())),
        "Normalised": number(counts["normalised"]),
        "Dropped": number(counts["dropped"]),
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


# --- the flow ---


def _flow(report: Report) -> Markup | None:
    """Rows from top to bottom: a band as wide as the rows that are left, and beside it what was dropped."""
    left = sum(report["counts"]["read"].values())
    if not left:
        return None
    most = left
    stages: list[tuple[str, int]] = [(tally["step"], tally["dropped"]) for tally in report.get("steps", [])]
    stages += [(_title(reason), count) for reason, count in report["dropped"].items()]
    drawn: list[Markup] = [_band(0, left, left, most, "read", f"{number(left)}")]
    for place, (name, dropped) in enumerate(stages, start=1):
        drawn.append(_band(place, left, left - dropped, most, name, f"−{number(dropped)}" if dropped else ""))
        left -= dropped
    drawn.append(_band(len(stages) + 1, left, left, most, "kept", number(left)))
    label = f"Of {number(most)} rows read, {number(left)} are kept"
    drawing = svg(_WIDTH, _ROW * (len(stages) + 2), drawn, cls="plot flow", label=label)
    return el("div", drawing, cls="scroll")


def _title(reason: str) -> str:
    return {"the same as": "exact duplicates", "near duplicate of": "near duplicates"}.get(reason, reason)


def _band(place: int, above: int, below: int, most: int, name: str, beside: str) -> Markup:
    full = _WIDTH - _LEFT - 90
    top, bottom = full * above / most, full * below / most
    y = place * _ROW
    middle = _LEFT + full / 2
    corners = [
        (middle - top / 2, y),
        (middle + top / 2, y),
        (middle + bottom / 2, y + _ROW),
        (middle - bottom / 2, y + _ROW),
    ]
    points = " ".join(f"{x:.1f},{at:.1f}" for x, at in corners)
    return join(
        el("polygon", cls="fill tone-sft", points=points, fill_opacity="0.75" if beside and place else "0.45"),
        text(_LEFT - 14, y + _ROW / 2 + 4, name, "spot", "end"),
        text(_WIDTH - 78, y + _ROW / 2 + 4, beside, "spot") if beside else None,
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
            el("th", name.removesuffix("_tokens"), scope="row"),
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
        table([heading("Tag"), heading("Prompts")], shown) if shown else None,
    )


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
                cell(f"Prompts of this {kind}", count_bar(count, most), f" {number(count)}"),
            )
            for value, count in counts.items()
        ]
        if rows:
            parts.append(table([heading(kind.capitalize()), heading("Prompts")], rows))
    gaps = facts["gaps"]
    parts.append(
        note(f"{number(gaps)} gaps, each with a suggestion, are in gaps.jsonl." if gaps else "Nothing is rare.")
    )
    return join(parts)


# --- examples ---


def _examples(lines: Lines) -> Markup | None:
    """A few rows of each step and reason, with their differences."""
    counts: Counter[str] = Counter()
    distinct: dict[str, dict[str, Mapping[str, str]]] = {}
    for line in lines:
        kind = _kind(line["reason"])
        step = line.get("step") or kind
        counts[step] += 1
        examples = distinct.setdefault(step, {})
        if kind not in examples and len(examples) < EXAMPLES:
            examples[kind] = line
    parts = []
    for step, examples in distinct.items():
        parts.append(el("h3", f"{step} ", el("small", f"{number(len(examples))} of {number(counts[step])}")))
        parts += [_example(line) for line in examples.values()]
    return join(parts) if parts else None


def _kind(reason: str) -> str:
    """The reason without what is special to the row."""
    return re.sub(r"(?:(?<= of)|(?<= as)|(?<= with)|(?<=, against)) .*|\b\d+ ", "", reason)


def _example(line: Mapping[str, str]) -> Markup:
    if "before" in line and "after" in line:
        body = difference(shortened(line["before"]), shortened(line["after"]))
    else:
        body = join(shortened(line.get("text", line.get("after", ""))))
    return el("figure", el("figcaption", f"{line['where']} · {line['reason']}"), el("p", body, cls="example"))


def shortened(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def difference(before: str, after: str) -> Markup:
    """A text with what was removed and what was inserted, word by word."""
    old, new = (re.findall(r"\s+|\w+|[^\w\s]", one) for one in (before, after))
    pieces: list[object] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        removed, inserted = "".join(old[a:b]), "".join(new[c:d])
        if kind == "equal":
            pieces.append(inserted)
        else:
            pieces += [el("del", removed) if removed else None, el("ins", inserted) if inserted else None]
    return join(pieces)
