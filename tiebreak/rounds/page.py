"""The rounds as one HTML page: win rate, score and KL against labels bought, and a table; see tiebreak.page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tiebreak.page.charts import Frame, Scale, axes, mark, spread, svg_points, ticks
from tiebreak.page.document import build_document
from tiebreak.page.markup import Markup, el, join, line, svg
from tiebreak.page.numbers import number, one_digit, percent
from tiebreak.page.tables import cell, figure, heading, measured, note, table

Row = Mapping[str, Any]
Point = tuple[float, float, Sequence[float] | None]
"""labels bought, a value, its interval"""

_SHARE = Scale(0.0, 1.0, ((0.0, "0%"), (0.5, "50%"), (1.0, "100%")), reference=0.5)
_START, _PREVIOUS = ("dpo", "diamond"), ("sft", "square")


def build_page(report: Row) -> str:
    """The whole page, from the content of rounds.json."""
    trained = [one for one in with_bought(report["rounds"]) if one["trained"]]
    sections = [
        ("win-rate", "Win rate", _win_rates(trained)),
        ("score", "Score and KL", _score_and_kl(trained)),
        ("policies", "Policies", _policies(trained, report.get("judge_cycles", 0))),
        ("labels", "Labels", _labels(report["rounds"])),
    ]
    return build_document(f"{report['name']}: rounds", _head(report, trained), sections, report)


def with_bought(rounds: Sequence[Row]) -> list[dict[str, Any]]:
    """Rounds, each with the number of labels bought by its end."""
    found, total = [], 0
    for one in rounds:
        total += one["labels"]
        found.append({**one, "bought": total})
    return found


def _head(report: Row, trained: Sequence[Row]) -> Markup:
    facts = {
        "Start": report["start"],
        "Labels bought": f"{number(report['bought'])} of {number(report['budget'])}",
        "Rounds": number(len(report["rounds"])),
        "Stopped": report["stopped"],
    }
    kinds = sorted({kind for one in report["rounds"] for kind in one["kinds"]})
    caveat = ""
    if "simulated" in kinds:
        caveat = f"{'The' if len(kinds) == 1 else 'Part of the'} labels come from simulated raters, not from people."
    return join(
        el("p", f"Rounds: {report['name']}", cls="eyebrow"),
        el("h1", _claim(trained)),
        el("p", caveat, cls="caveat") if caveat else None,
        el("div", [el("span", name, " ", el("b", value)) for name, value in facts.items() if value], cls="facts"),
    )


def _claim(trained: Sequence[Row]) -> str:
    if not trained:
        return "No round has trained a policy yet"
    last = trained[-1]
    low, high = last["over_start"]["interval"]
    return (
        f"After {number(last['bought'])} labels, the policy beats the start in {percent(last['over_start']['value'])} of "
        f"{number(last['over_start']['n'])} prompts ({percent(low)} to {percent(high)})"
    )


def _win_rates(trained: Sequence[Row]) -> Markup | None:
    if not trained:
        return None
    points = [(one["bought"], one["over_start"]["value"], one["over_start"]["interval"]) for one in trained]
    drawn = chart("Win rate over the start", "share of prompts", points, _START, 0.5)
    remark = (
        "Marks: rounds. Whiskers: 95% intervals of one round alone; the best of several rounds seems better than it is."
    )
    return join(el("div", [drawn], cls="panels"), note(remark))


def _score_and_kl(trained: Sequence[Row]) -> Markup | None:
    gains = [(one["bought"], one["score_gain"], None) for one in trained if one["score_gain"] is not None]
    distances = [(one["bought"], one["kl"], None) for one in trained if one["kl"] is not None]
    panels = [
        chart(title, unit, points, _PREVIOUS, 0.0)
        for title, unit, points in (
            ("Score above the start's", "score of the round's reward model", gains),
            ("KL from the start", "nats per answer", distances),
        )
        if points
    ]
    remark = (
        "Policy and reward model learned from the same labels, or the policy from the model's scores: a higher score alone "
        "does not show a better policy."
    )
    return join(el("div", panels, cls="panels"), note(remark) if gains else None) if panels else None


def chart(title: str, unit: str, points: Sequence[Point], tone: tuple[str, str], reference: float) -> Markup:
    """A panel: a value against labels bought, with whiskers where there are intervals."""
    xs = [0.0, *(x for x, _, _ in points)]
    ys = [reference, *(y for _, y, _ in points), *(edge for _, _, interval in points for edge in interval or ())]
    frame = Frame(340, 180, 46, 10, 20, 32, (0.0, max(xs) * 1.05), spread(ys))
    body = axes(frame, "labels bought", unit, ticks(*frame.x, 5))
    at = frame.py(reference)
    body.append(line(frame.left, at, frame.end, at, "reference"))
    places = [(frame.px(x), frame.py(y)) for x, y, _ in points]
    if len(places) > 1:
        body.append(el("polyline", cls=f"curve thin tone-{tone[0]}", points=svg_points(places)))
    for (x, y), (_, _, interval) in zip(places, points, strict=True):
        if interval is not None:
            body.append(line(x, frame.py(interval[1]), x, frame.py(interval[0]), f"whisker tone-{tone[0]}"))
        body.append(mark(tone[1], x, y, f"mark tone-{tone[0]}"))
    described = "; ".join(f"{number(x)} labels: {number(y)}" for x, y, _ in points)
    drawn = svg(340, 180, body, cls="plot", label=f"{title}: {described}")
    return el("figure", el("figcaption", el("b", title)), drawn)


def _labels(rounds: Sequence[Row]) -> Markup | None:
    """Labels bought, and their quality."""
    headings = [
        heading("Round"),
        heading("Labels", "bought", numeric=True),
        heading("By arm"),
        heading("Raters agree", "chance is 50%", scale=_SHARE),
        heading("Reward model", "held-out accuracy", scale=_SHARE),
    ]
    rows = [
        el(
            "tr",
            el("th", number(one["round"]), scope="row", data_name="Round"),
            cell("Labels", number(one["labels"]), cls="n"),
            cell(
                "By arm", ", ".join(f"{number(n)} {name.replace('_', ' ')}" for name, n in one["arms"].items()) or "–"
            ),
            _share("Raters agree", one["agreement"], _PREVIOUS),
            _share("Reward model", one.get("reward_accuracy"), _PREVIOUS),
        )
        for one in rounds
    ]
    return table(headings, rows) if rows else None


def _policies(trained: Sequence[Row], judge_cycles: int) -> Markup | None:
    """The figures of every round's policy.

    Args:
        judge_cycles: number per round; the policy from the other start has none.
    """
    compared = any("other_over_start" in one for one in trained)
    title = "From the other start"
    headings = [
        heading("Round"),
        heading("Over the start", "win rate", scale=_SHARE),
        heading("Over the previous", "win rate", scale=_SHARE),
        heading("KL", "nats per answer", numeric=True),
        *([heading(title, "win rate over the start", scale=_SHARE)] if compared else []),
    ]
    rows = [
        el(
            "tr",
            el("th", number(one["round"]), scope="row", data_name="Round"),
            _share("Over the start", one["over_start"], _START),
            _share("Over the previous", one["over_previous"], _START),
            figure("KL", one["kl"], one_digit),
            _share(title, one.get("other_over_start"), _PREVIOUS) if compared else None,
        )
        for one in trained
    ]
    apart = (
        note("The policy from the other start had no judge cycles, so it differs in its start and in these.")
        if compared and judge_cycles
        else None
    )
    return join(table(headings, rows), apart) if rows else None


def _share(name: str, found: Row | None, tone: tuple[str, str]) -> Markup:
    if found is None or found["value"] is None:
        return cell(name, "–", absent=True)
    return measured(name, found["value"], found["interval"], _SHARE, percent, tone)
