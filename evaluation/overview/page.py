"""The overview as one self-contained page. Text from prompts and models is shown as plain text.

Its parts are in `policies_page`, `runs_page` and `labels_page`, and here those that need neither.
"""

from __future__ import annotations

from importlib import resources

from evaluation.compare.page import policy_marks
from evaluation.compare.yardsticks import benchmarks_part, yardsticks_part
from evaluation.overview.charts import Style, Styles, group_styles
from evaluation.overview.labels_page import calibration_part, raters_part
from evaluation.overview.model import Overview
from evaluation.overview.policies_page import matches_part, policies_part, samples_part, shifts_part
from evaluation.overview.runs_page import cost_part, curves_part, kl_part, lineage_part, runs_part
from tiebreak.page.document import build_document
from tiebreak.page.markup import Markup, el, join
from tiebreak.page.numbers import number
from tiebreak.page.tables import cell, heading, table
from tiebreak.stages import find_stage


def build_page(report: Overview, version: str = "") -> str:
    """The whole page.

    Args:
        version: identifies the state of a page that its server updates; empty: a static page.
    """
    styles = _styles(report)
    sections = [
        ("policies", "Policies", policies_part(report, styles)),
        ("matches", "Win rates", matches_part(report)),
        ("yardsticks", "Other yardsticks", _further(report)),
        ("runs", "Runs", runs_part(report, styles)),
        ("curves", "Curves", curves_part(report, styles)),
        ("kl", "Reward against KL", kl_part(report, styles)),
        ("shifts", "Length and refusals", shifts_part(report, styles)),
        ("samples", "Answers", samples_part(report, styles)),
        ("training", "Answers during training", _training_answers(report)),
        ("raters", "Raters", raters_part(report)),
        ("calibration", "Calibration", calibration_part(report)),
        ("cost", "Cost", cost_part(report)),
        ("lineage", "Lineage", lineage_part(report)),
    ]
    package = resources.files("evaluation.overview")
    script, style = (package.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    data = report.model_dump(mode="json")
    return build_document(report.title, _head(report), sections, data, script, style=style, version=version)


def _styles(report: Overview) -> Styles:
    """Colours for policies and for groups that train; the others are grey."""
    coloured = [one.name for field in report.fields for one in field.policies]
    coloured += [one.name for one in report.groups if find_stage(one.stage).trains]
    return {one.name: Style("base") for one in report.groups} | group_styles(coloured)


def _head(report: Overview) -> Markup:
    top = report.headline
    facts = {"Runs": str(len(report.runs)), "Groups": str(len(report.groups))}
    if report.fields:
        first = report.fields[0]
        facts |= {
            "Prompts": number(first.prompts),
            "Yardstick": first.yardstick,
            "Evaluations": str(len(first.evaluations)),
        }
    return join(
        el("p", report.title, cls="eyebrow"),
        el("h1", f"{top.claim}."),
        el("p", " ".join(top.sentences), cls="lead") if top.sentences else None,
        [el("p", caveat, cls="caveat") for caveat in top.caveats[:4]],
        el("details", el("summary", f"{len(top.caveats) - 4} more caveats"), [el("p", one) for one in top.caveats[4:]])
        if len(top.caveats) > 4
        else None,
        el("div", [el("span", name, " ", el("b", value)) for name, value in facts.items()], cls="facts"),
    )


# --- other yardsticks, answers in training ---


def _further(report: Overview) -> Markup | None:
    """A table for each evaluation with several yardsticks, or benchmarks."""
    parts: list[object] = []
    for one in report.further:
        about = {"yardsticks": one.yardsticks, "policies": one.policies, "baseline": one.baseline}
        row = {**about, "comparisons": report.comparisons}
        marks = policy_marks(list(one.policies))
        parts += [el("h3", one.evaluation) if len(report.further) > 1 else None]
        parts += [yardsticks_part(row, marks), benchmarks_part(row, marks)]
    return join(parts) if parts else None


def _training_answers(report: Overview) -> Markup | None:
    """The newest answers of each run, beside those before its training."""
    if not report.training_answers:
        return None
    titles = ("Prompt", "Before training", "Answer")
    parts = []
    for one in report.training_answers:
        rows = [
            el("tr", [cell(title, str(row[key] or "–")) for title, key in zip(titles, row, strict=True)])
            for row in one.rows
        ]
        parts += [
            el("h3", f"{one.run}, step {number(one.step)}"),
            el("div", table([heading(title) for title in titles], rows), cls="scroll"),
        ]
    return join(parts)
