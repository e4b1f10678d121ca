"""The report as one HTML page, in the look of the recipe's own report; see tiebreak.page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tiebreak.errors import counted
from tiebreak.page.calibration import reliability_diagram
from tiebreak.page.charts import Scale, swatch
from tiebreak.page.document import build_document
from tiebreak.page.markup import Markup, el, join
from tiebreak.page.numbers import finer_percent, number, percent, signed, two_digits
from tiebreak.page.tables import cell, figure, heading, measured, note, table

Report = Mapping[str, Any]
Row = Mapping[str, Any]

_SHARE = Scale(0.0, 1.0, ((0.0, "0%"), (0.5, "50%"), (1.0, "100%")), reference=0.5)
MOST_ROWS = 12
"""of one kind of slice; tags can be many"""
_MODEL, _BASELINE, _GARBAGE = ("sft", "square"), ("base", "circle"), ("dpo", "diamond")


def build_page(report: Report, made_from: Mapping[str, str]) -> str:
    """The whole page.

    Args:
        report: as in report.json.
        made_from: folders and files by what they are, as `reward_model` and `preferences`.
    """
    sections = [
        ("accuracy", "Accuracy", _accuracy(report)),
        ("slices", "Where it is right", _slices(report)),
        ("raters", "Agreement with each rater", _raters(report)),
        ("calibration", "Calibration", _calibration(report)),
        ("spread", "Spread of the ensemble against error", _spread(report)),
        ("garbage", "Adversarial answers it prefers", _garbage(report)),
        ("mistakes", "Worst mistakes", _mistakes(report)),
        ("against", "Judgments that pull against the rest", _against_the_rest(report)),
    ]
    return build_document("Reward model: report", _head(report, made_from), sections, report)


def _head(report: Report, made_from: Mapping[str, str]) -> Markup:
    headline = report["headline"]
    temperature = report["calibration"]["temperature"]
    facts = {
        "Reward model": made_from.get("reward_model", ""),
        "Preferences": made_from.get("preferences", ""),
        "Held out": f"{number(report['n'])} pairs of {number(report['prompts'])} prompts",
        "Raters": ", ".join(report["kinds"]),
        "Scores": f"{number(report['score_mean'], 2)} ± {number(report['score_std'], 2)}",
        "Temperature": "none helps" if temperature is None else number(temperature),
    }
    return join(
        el("p", "Reward model: report", cls="eyebrow"),
        el("h1", headline["claim"]),
        [el("p", caveat, cls="caveat") for caveat in headline["caveats"]],
        el("div", [el("span", name, " ", el("b", value)) for name, value in facts.items() if value], cls="facts"),
    )


# --- shares ---


def _share_headings(first: str, what: str = "Right about", of: str = "Pairs") -> list[Markup]:
    return [
        heading(first),
        heading(what, "share, 95% interval", scale=_SHARE),
        heading(of, "and prompts", numeric=True),
    ]


def _share_row(
    name: Markup | str, row: Row, tone: tuple[str, str] = _MODEL, what: str = "Right about", of: str = "Pairs"
) -> Markup:
    return el(
        "tr",
        el("th", name, scope="row"),
        measured(what, row["accuracy"], row["interval"], _SHARE, percent, tone),
        cell(of, el("span", number(row["n"]), el("small", f" of {counted(row['prompts'], 'prompt')}")), cls="n"),
    )


def _named(name: str, tone: tuple[str, str]) -> Markup:
    return join(swatch(*tone), name)


def _accuracy(report: Report) -> Markup:
    counted = {"n": report["n"], "prompts": report["prompts"]}
    model = {"accuracy": report["accuracy"], "interval": report["accuracy_interval"], **counted}
    longer = {"accuracy": report["length_baseline"], "interval": report["length_baseline_interval"], **counted}
    rows = [
        _share_row(_named("Reward model", _MODEL), model),
        _share_row(_named("Always the longer answer", _BASELINE), longer, _BASELINE),
    ]
    first = report["first_answer_baseline"]
    if first:
        rows.append(_share_row(_named("Always the answer shown first", _BASELINE), first, _BASELINE))
    remark = (
        "Preferences whose prompts it was not trained on. Intervals count the pairs of one prompt as far as they vary "
        "together. Equal scores, and equal lengths, count as half."
    )
    if first:
        remark += " What was shown first is counted over the raters' single votes."
    return join(table(_share_headings("Chooses"), rows), note(remark))


def _slices(report: Report) -> Markup | None:
    """One table, so that all whiskers share an axis."""
    if not report["slices"]:
        return None
    rows = []
    for one in report["slices"]:
        rows.append(el("tr", el("th", one["name"], scope="rowgroup", colspan=3, cls="group")))
        largest = sorted(one["rows"], key=lambda row: row["n"], reverse=True)[:MOST_ROWS]
        rows += [_share_row(row["value"], row) for row in one["rows"] if row in largest]
        rest = len(one["rows"]) - len(largest)
        rows += [el("tr", el("td", f"and {rest} smaller ones, in report.json", cls="rest", colspan=3))] if rest else []
    return table(_share_headings("Pairs by"), rows)


def _raters(report: Report) -> Markup | None:
    if not report["raters"]:
        return None
    by_vote = report["raters"][0]["of"] == "votes"
    of = "Votes" if by_vote else "Pairs"
    rows = [_share_row(row["rater"], row, what="Agrees with", of=of) for row in report["raters"]]
    remark = (
        "How often the model prefers the answer that the rater preferred, over the rater's own votes on held-out pairs."
        if by_vote
        else "How often the model is right about the preferences that the rater had a part in."
    )
    return join(table(_share_headings("Rater", "Agrees with", of), rows), note(remark))


# --- calibration ---


def _calibration(report: Report) -> Markup:
    found = report["calibration"]
    drawn = [("As it scores", found["before"])]
    drawn += [("After temperature calibration", found["after"])] if found["after"] else []
    panels = [
        el(
            "figure",
            el("figcaption", el("b", title)),
            reliability_diagram(row["bins"], title),
            note(
                f"ECE {finer_percent(row['ece'])}, negative log-likelihood {number(row['nll'], 3)} nats (a coin: 0.693)"
            ),
        )
        for title, row in drawn
    ]
    remark = (
        "σ(difference of two scores ÷ temperature) is the probability that the first answer is the better one. Marks on "
        "the diagonal: calibrated; below it: overconfident. Beside each mark: its number of pairs."
    )
    if found["after"]:
        remark += (
            " The temperature of each tenth of the prompts was fitted on the other nine, so nothing here was measured on "
            "what it was fitted on."
        )
        if found["after"]["nll"] >= found["before"]["nll"]:
            remark += " It did not help here: the raw scores are calibrated at least as well."
    return join(el("div", panels, cls="panels"), note(remark))


def _spread(report: Report) -> Markup | None:
    found = report["spread"]
    if not found:
        return None
    rows = [
        _share_row(f"{number(row['spread_from'], 2)} to {number(row['spread_to'], 2)}", row) for row in found["parts"]
    ]
    remark = f"Standard deviation of the score difference over the {found['members']} members. "
    if found["auroc"] is None:
        remark += "It makes no mistakes here to compare the spread with."
    else:
        remark += (
            f"A pair that it gets wrong has the larger spread than one that it gets right {percent(found['auroc'])} of "
            "the time; at 50% the spread is uninformative."
        )
    return join(table(_share_headings("Spread, units of score"), rows), note(remark))


# --- what to read ---


def _garbage(report: Report) -> Markup | None:
    found = report["garbage"]
    if not found["kinds"]:
        return None
    headings = [
        heading("Answer"),
        heading("Scores above the rejected answer", "share, 95% interval", scale=_SHARE),
        heading("Above the chosen answer", "share, 95% interval", scale=_SHARE),
        heading("Score", "mean", numeric=True),
        heading("Prompts", numeric=True),
    ]
    rows = [
        el(
            "tr",
            el("th", row["kind"], el("small", f" {row['what']}"), scope="row"),
            measured(
                "Above rejected", row["above_rejected"], row["above_rejected_interval"], _SHARE, percent, _GARBAGE
            ),
            measured("Above chosen", row["above_chosen"], row["above_chosen_interval"], _SHARE, percent, _GARBAGE),
            figure("Score, mean", row["score_mean"], two_digits),
            figure("Prompts", row["n"], number),
        )
        for row in found["kinds"]
    ]
    remark = (
        "Bad answers made from held-out prompts. A reward model to optimise against should score them below both real "
        "answers: shares near 0%."
    )
    cards = [_garbage_card(row) for row in found["highest"]]
    title = el("h3", "The highest above the rejected answer to the same prompt")
    return join(table(headings, rows), note(remark), title, cards)


def _garbage_card(row: Row) -> Markup:
    return _card(
        row["prompt"],
        _answer(f"Adversarial: {row['kind']}", _GARBAGE, row["score"], row["text"]),
        _answer(
            "Chosen",
            _MODEL,
            row["chosen_score"],
            row["chosen"],
            f"the rejected one: {two_digits(row['rejected_score'])}",
        ),
    )


def _mistakes(report: Report) -> Markup | None:
    if not report["worst"]:
        return None
    cards = []
    for row in report["worst"]:
        strength, agreement = row["strength"], row["agreement"]
        facts = [f"strength {number(strength)}"] if strength is not None else []
        facts += [f"{percent(agreement)} of the raters"] if agreement is not None else []
        cards.append(
            _card(
                row["prompt"],
                _answer("Chosen", _MODEL, row["chosen_score"], row["chosen"], ", ".join(facts)),
                _answer("Rejected", _GARBAGE, row["rejected_score"], row["rejected"]),
            )
        )
    return join(note("The pairs whose rejected answer it scores highest above the chosen one."), cards)


def _against_the_rest(report: Report) -> Markup | None:
    found = report.get("against_the_rest")
    if not found:
        return None
    cards = [
        _card(
            row["prompt"],
            _answer("Chosen", _MODEL, None, row["chosen"], _judged_by(row)),
            _answer("Rejected", _GARBAGE, None, row["rejected"], f"pull {signed(row['pull'], 1)}"),
        )
        for row in found["rows"]
    ]
    sampled = "" if found["pairs"] == found["of"] else f", drawn from {number(found['of'])}"
    remark = (
        f"Of {number(found['pairs'])} training pairs{sampled}, learning from {number(found['against'])} raised the loss of "
        "the others, as far as their gradients show (TracIn, Pruthi et al. 2020). The strongest are below; a pull of −2 is "
        "twice the average pair's. Such a judgment may be a slip, or a view that other raters do not share: read it before "
        "you send it back."
    )
    return join(note(remark), cards)


def _judged_by(row: Row) -> str:
    names = [str(one) for one in row["raters"] or ()]
    place = str(row["pair_id"] or "")[:17]
    return ", ".join(part for part in (place, f"judged by {', '.join(names)}" if names else "") if part)


def _card(prompt: Sequence[Row], *answers: Markup) -> Markup:
    only = len(prompt) == 1
    turns = [el("p", None if only else el("span", m["role"], cls="role"), m["content"], cls="turn") for m in prompt]
    return el("article", el("div", turns, cls="prompt"), el("div", list(answers), cls="answers"), cls="sample")


def _answer(title: str, tone: tuple[str, str], score: float | None, shown: str, foot: str = "") -> Markup:
    return el(
        "div",
        el("header", el("strong", _named(title, tone)), "" if score is None else f" score {two_digits(score)}"),
        el("p", shown, cls="turn") if shown.strip() else el("p", "an empty answer", cls="empty"),
        el("footer", foot) if foot else None,
        cls="answer",
    )
