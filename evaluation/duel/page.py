"""A duel's report as one HTML page; see tiebreak.page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tiebreak.page.charts import Scale
from tiebreak.page.document import build_document
from tiebreak.page.markup import Markup, el, join
from tiebreak.page.numbers import number, percent, signed
from tiebreak.page.tables import cell, heading, measured, note, ranged, table

Report = Mapping[str, Any]
Row = Mapping[str, Any]

_SHARE = Scale(0.0, 1.0, ((0.0, "0%"), (0.5, "50%"), (1.0, "100%")), reference=0.5)
_PEOPLE, _CORRECTED = ("base", "circle"), ("dpo", "diamond")
_PROGRAMS = {"judge": ("sft", "square"), "reward model": ("ppo", "triangle"), "yardstick": ("dpo", "diamond")}


def build_page(report: Report, made_from: Mapping[str, str]) -> str:
    """The whole page.

    Args:
        report: as in report.json.
        made_from: sources of the inputs, by name.
    """
    sections = [
        ("matrix", "Win rates", _matrix(report)),
        ("ratings", "Ratings", _ratings(report["ratings"])),
        ("beside", "People and programs", _contests(report["contests"])),
        ("sequence", "Verdicts", _sequence(report["contests"])),
    ]
    return build_document("Duel: report", _head(report, made_from), sections, report)


def _head(report: Report, made_from: Mapping[str, str]) -> Markup:
    counts = report["counts"]
    facts = {
        "Duel": made_from.get("duel", ""),
        "Judgments": number(counts["judgments"]),
        "Raters": number(counts["raters"]),
        "Prompts": number(counts["prompts"]),
        "Equal answers": number(counts["same"]) if counts["same"] else "",
        "Skipped": number(counts["skips"]) if counts["skips"] else "",
    }
    return join(
        el("p", "Duel: report", cls="eyebrow"),
        el("h1", claim_of(report)),
        [el("p", caveat, cls="caveat") for caveat in report["caveats"]],
        el("div", [el("span", name, " ", el("b", value)) for name, value in facts.items() if value], cls="facts"),
    )


def claim_of(report: Report) -> str:
    """The main result in a sentence."""
    contests = report["contests"]
    if len(contests) != 1:
        best = report["ratings"][0]["policy"] if report["ratings"] else "nobody"
        decided = sum(one["sequence"]["state"] in ("first", "second") for one in contests)
        return f"{best} has the highest rating; {decided} of {len(contests)} comparisons are decided"
    [one] = contests
    first, second = one["policies"]
    people = one["people"]
    edges = " to ".join(map(percent, people["interval"]))
    rate = f"{first} wins {percent(people['value'])} against {second} ({edges}, {people['n']} prompts)"
    return f"{verdict_of(one)}: {rate}"


def verdict_of(contest: Row) -> str:
    """The verdict of the confidence sequence, in words."""
    (first, second), found = contest["policies"], contest["sequence"]
    if found["state"] in ("first", "second"):
        return f"{first if found['state'] == 'first' else second} is better"
    if found["state"] == "no difference":
        return f"No difference above {percent(found['most'])}"
    return f"Undecided; about {number(found['more'])} more prompts"


# --- win rates ---


def _matrix(report: Report) -> Markup | None:
    names, rates = report["policies"], {tuple(one["policies"]): one["people"] for one in report["contests"]}
    if not rates:
        return None
    rows = []
    for row in names:
        cells = [el("th", row, scope="row")]
        for column in names:
            found = rates.get((row, column)) or _mirrored(rates.get((column, row)))
            label = f"against {column}"
            cells.append(
                cell(label, "–", cls="n", absent=True)
                if found is None
                else cell(label, ranged(found["value"], found["interval"], percent), cls="n")
            )
        rows.append(el("tr", *cells))
    headings = [heading("Policy"), *(heading(f"against {name}", numeric=True) for name in names)]
    remark = (
        "The row's win rate against the column's, over prompts; a tie is half a win. Intervals: 95%, for other prompts and "
        "the same raters. Prompts with equal answers are left out."
    )
    return join(table(headings, rows), note(remark))


def _mirrored(found: Row | None) -> Row | None:
    if found is None:
        return None
    low, high = found["interval"]
    return {"value": 1 - found["value"], "interval": [1 - high, 1 - low]}


def _ratings(ratings: Sequence[Row]) -> Markup | None:
    if not ratings:
        return None
    edges = [edge for row in ratings for edge in (*row["interval"], *(row["interval_raters"] or ()))]
    reach = max(50.0, *(abs(edge) for edge in edges))
    scale = Scale(-reach, reach, ((-reach, signed(-reach, 0)), (0.0, "0"), (reach, signed(reach, 0))), reference=0.0)

    def form(value: float) -> str:
        return signed(value, 0)

    rows = [
        el(
            "tr",
            el("th", row["policy"], scope="row"),
            measured("Same raters", row["value"], row["interval"], scale, form, _PEOPLE),
            cell("Other raters", "–", absent=True)
            if row["interval_raters"] is None
            else measured("Other raters", row["value"], row["interval_raters"], scale, form, _CORRECTED),
        )
        for row in ratings
    ]
    headings = [
        heading("Policy"),
        heading("Rating", "other prompts, the same raters", scale=scale),
        heading("Rating", "other prompts and raters", scale=scale),
    ]
    remark = (
        "Bradley and Terry's model on Elo's scale; the mean of all policies is 0, and 100 points are a win rate of 64%. "
        "Intervals: 95%, clustered by prompt, and by prompt and rater (Cameron, Gelbach & Miller 2011)."
    )
    return join(table(headings, rows), note(remark))


# --- beside programs ---


def _contests(contests: Sequence[Row]) -> Markup | None:
    rows = [row for one in contests for row in _contest_rows(one)]
    if not rows:
        return None
    headings = [
        heading("Win rate"),
        heading("Share", "95% interval", scale=_SHARE),
        heading("Same side as people", numeric=True),
        heading("Prompts", numeric=True),
    ]
    remark = (
        "On the prompts that people judged. Same side: of the prompts where both prefer one. Corrected: "
        "prediction-powered inference (Angelopoulos et al. 2023), from the program's outcomes on all prompts and people's "
        "on some."
    )
    return join(table(headings, rows), note(remark))


def _contest_rows(one: Row) -> list[Markup]:
    first, second = one["policies"]
    rows = [el("tr", el("th", f"{first} against {second}", scope="rowgroup", colspan=4, cls="group"))]
    people = one["people"]
    rows.append(_row("People", people, _PEOPLE))
    if people["interval_raters"]:
        rows.append(_row("for other raters", {**people, "interval": people["interval_raters"]}, _PEOPLE))
    for program in one["programs"]:
        rows.append(_row(_called(program), program, _PROGRAMS[program["kind"]], _agreement(program)))
        if program["corrected"]:
            rows.append(_row("corrected by people", program["corrected"], _CORRECTED))
    return rows


def _called(program: Row) -> str:
    return str(program["name"]) if program["name"] == program["kind"] else f"{program['kind']}: {program['name']}"


def _agreement(program: Row) -> str:
    if program["agreement"] is None:
        return "–"
    low, high = program["agreement_interval"]
    return f"{percent(program['agreement'])} ({percent(low)} to {percent(high)}) of {program['decided']}"


def _row(name: str, found: Row, tone: tuple[str, str], agreement: str = "–") -> Markup:
    return el(
        "tr",
        el("th", name, scope="row"),
        measured("Share", found["value"], found["interval"], _SHARE, percent, tone),
        cell("Same side as people", agreement, cls="n", absent=agreement == "–"),
        cell("Prompts", number(found["n"]), cls="n"),
    )


def _sequence(contests: Sequence[Row]) -> Markup | None:
    rows = [
        el(
            "tr",
            el("th", " against ".join(one["policies"]), scope="row"),
            measured("Win rate", one["people"]["value"], one["sequence"]["interval"], _SHARE, percent, _PEOPLE),
            cell("Verdict", verdict_of(one)),
        )
        for one in contests
    ]
    if not rows:
        return None
    remark = (
        "A confidence sequence by betting (Waudby-Smith & Ramdas 2024): it holds at every look, so raters may stop as soon "
        "as there is a verdict. Of policies that are equally good, at most 5% of duels ever get a false one, all "
        "comparisons together."
    )
    headings = [heading("Comparison"), heading("Win rate", "at every look", scale=_SHARE), heading("Verdict")]
    return join(table(headings, rows), note(remark))
