"""Parts of the overview about labels and what is learned from them: agreement of raters, calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evaluation.compare.words import label
from evaluation.overview.model import Calibration, Overview
from tiebreak.page.calibration import reliability_diagram
from tiebreak.page.markup import Markup, el, join
from tiebreak.page.numbers import finer_percent, number, percent, two_digits
from tiebreak.page.tables import cell, figure, heading, note, ranged, table

MOST_DIAGRAMS = 12
"""that are drawn; the table and report.json have the rest"""

_MEASURES = {
    "percent_with_ties": "Agreement, counting ties",
    "percent_without_ties": "Agreement, without ties",
    "alpha": "Krippendorff's alpha",
    "kappa": "Kappa",
}


def raters_part(report: Overview) -> Markup | None:
    """How far raters agree, a row for each labelling run and kind of rater."""
    if not report.agreement:
        return None
    keys = list(dict.fromkeys(key for one in report.agreement for key in one.measures))
    headings = [
        heading("Labels"),
        heading("Raters", numeric=True),
        heading("Judgments", numeric=True),
        heading("Preferences", numeric=True),
    ]
    headings += [heading(_MEASURES.get(key, key.replace("_", " ")), "95% interval", numeric=True) for key in keys]
    rows = []
    for one in report.agreement:
        cells = []
        for key in keys:
            found = one.measures.get(key)
            form: Callable[[float], str] = percent if key.startswith("percent") else two_digits
            shown = "–" if found is None else ranged(found["value"], found.get("interval"), form)
            cells.append(cell(_MEASURES.get(key, key), shown, cls="n two-lines", absent=found is None))
        rows.append(
            el(
                "tr",
                el("th", one.run, el("small", one.kind, cls="unit"), scope="row"),
                figure("Raters", one.raters, number),
                figure("Judgments", one.judgments, number),
                figure("Preferences", one.preferences, number),
                cells,
            )
        )
    return el("div", table(headings, rows), cls="scroll")


# --- calibration ---


def calibration_part(report: Overview) -> Markup | None:
    """A reliability diagram for each reward model and judge, over a table of their errors; None without any."""
    found = report.calibration
    if not found:
        return None
    panels = [_diagram(one) for one in found[:MOST_DIAGRAMS]]
    left = len(found) - MOST_DIAGRAMS
    return join(
        el("div", panels, cls="panels"),
        note(f"{number(left)} more are in the table.") if left > 0 else None,
        el("div", _errors(found), cls="scroll"),
        note(_remark(found)),
    )


def _diagram(one: Calibration) -> Markup:
    return el(
        "figure",
        el("figcaption", el("b", one.run), el("div", label(one.stage), cls="legend")),
        reliability_diagram(one.bins, one.run),
        data_run=one.run,
    )


def _errors(found: Sequence[Calibration]) -> Markup:
    scaled = any(one.ece_scaled is not None for one in found)
    likely = any(one.nll is not None for one in found)
    headings = [heading("Run"), heading("Pairs", numeric=True), heading("Right", "95% interval", numeric=True)]
    headings += [heading("ECE", numeric=True)]
    headings += [heading("Temperature", numeric=True), heading("ECE with it", numeric=True)] if scaled else []
    headings += [heading("Log-loss", "nats", numeric=True)] if likely else []
    rows = []
    for one in found:
        right = "–" if one.accuracy is None else ranged(one.accuracy, one.accuracy_interval, percent)
        rows.append(
            el(
                "tr",
                el("th", one.run, el("small", label(one.stage), cls="unit"), scope="row"),
                figure("Pairs", one.pairs, number),
                cell("Right", right, cls="n two-lines", absent=one.accuracy is None),
                figure("ECE", one.ece, finer_percent),
                figure("Temperature", one.temperature, two_digits) if scaled else None,
                figure("ECE with it", one.ece_scaled, finer_percent) if scaled else None,
                figure("Log-loss", one.nll, two_digits) if likely else None,
                data_run=one.run,
            )
        )
    return table(headings, rows)


def _remark(found: Sequence[Calibration]) -> str:
    stages = {one.stage for one in found}
    remark = "Marks on the diagonal: calibrated; below it: overconfident. Beside each mark: its number of pairs."
    if "reward" in stages:
        remark += (
            " A reward model's confidence is σ(difference of two scores); with the temperature, that of the difference "
            "divided by it, fitted on other prompts than those it is measured on. Log-loss of a coin: 0.69 nats."
        )
    if "judge" in stages:
        remark += " A judge's is the confidence that it states, against people's majority, where both prefer a side."
    return remark
