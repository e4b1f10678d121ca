"""Parts of the overview about policies: the table, win rates, length and refusals, answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evaluation.compare.words import edge
from evaluation.overview.charts import Styles, named
from evaluation.overview.model import (
    Field,
    Match,
    Overview,
    Policy,
    Sample,
)
from evaluation.overview.report import verdict_words
from tiebreak.page.charts import Scale, change_scale, value_scale
from tiebreak.page.markup import Markup, el, join
from tiebreak.page.numbers import (
    digits_for,
    finer_percent,
    number,
    one_digit,
    p_value,
    percent,
    signed,
    signed_points,
    two_digits,
)
from tiebreak.page.tables import Form, cell, figure, heading, measured, note, ranged, table

# --- policies ---


def policies_part(report: Overview, styles: Styles) -> Markup | None:
    """A table of policies for each field: ratings, yardstick, seeds, score, KL."""
    parts = [_field(field, styles) for field in report.fields]
    return join(*parts) if parts else None


def _apart(field: Field) -> Markup | None:
    if not field.unlike:
        return None
    title = el("h3", f"Apart: {', '.join(field.evaluations)}")
    return join(title, el("p", f"Not comparable with the policies above: {'; '.join(field.unlike)}.", cls="caveat"))


def _field(field: Field, styles: Styles) -> Markup:
    edges = [e for one in field.policies for e in one.rating_interval or ()]
    ratings = change_scale(edges, 50.0)
    values = [v for one in field.policies for v in (one.yardstick.mean, *(one.yardstick_interval or ()))]
    scale = value_scale(values, field.yardstick_scale)
    digits = digits_for(scale.high - scale.low)
    headings = [
        heading("Policy", "the best rated first"),
        heading("Rating", "Elo scale, 95% interval", scale=ratings) if edges else heading("Rating"),
        heading(field.yardstick, "mean, 95% interval", scale=scale),
        heading("Seeds", "range of means", numeric=True),
        heading("Score", "reward model", numeric=True),
        heading("KL", "nats per answer, 95% interval", numeric=True),
    ]
    rows = [_policy_row(one, field, styles, ratings, scale, lambda v: number(v, digits)) for one in field.policies]
    remarks = (
        f"{number(field.prompts)} held-out prompts and one sampling setting for all policies. Ratings: Bradley-Terry over "
        "all pairs of policies, intervals clustered by prompt; 100 points are a win rate of 64%. KL: from the baseline of "
        "the policy's evaluation."
    )
    if field.against_baseline:
        remarks += (
            " The yardstick is a share of judgments against the baseline's answers, and one half is the baseline's own: "
            "two other policies were compared through it, not with each other."
        )
    return join(
        _apart(field),
        el("div", table(headings, rows), cls="scroll"),
        note(remarks),
        _noise(field, lambda v: number(v, digits)),
    )


def _policy_row(one: Policy, field: Field, styles: Styles, ratings: Scale, scale: Scale, form: Form) -> Markup:
    style = styles[one.name]
    below = "the baseline" if one.name == field.baseline else ", ".join(one.members[:3])
    rating = (
        cell("Rating", "–", absent=True)
        if one.rating is None
        else measured(
            "Rating", one.rating, one.rating_interval, ratings, lambda v: signed(v, 0), (style.tone, "circle")
        )
    )
    several = one.yardstick.n > 1
    return el(
        "tr",
        el("th", named(one.name, styles), el("small", below, cls="unit"), scope="row"),
        rating,
        measured(field.yardstick, one.yardstick.mean, one.yardstick_interval, scale, form, (style.tone, "circle")),
        cell("Seeds", f"{form(one.yardstick.low)} to {form(one.yardstick.high)}" if several else "1", cls="n"),
        figure("Score", one.score.mean if one.score else None, two_digits),
        cell(
            "KL, nats per answer",
            ranged(one.kl.mean, one.kl_interval, one_digit) if one.kl else "–",
            cls="n two-lines",
            absent=one.kl is None,
        ),
    )


def _noise(field: Field, form: Form) -> Markup | None:
    if not field.noise:
        return None
    rows = [
        el(
            "tr",
            el("th", one.policy, scope="row"),
            cell("Seeds", ", ".join(map(str, one.seeds)), cls="n"),
            cell("Win rate", ranged(one.win_rate, one.interval, edge), cls="n"),
            cell("Ties", percent(one.tied), cls="n"),
            cell("Means differ by", form(one.difference), cls="n"),
        )
        for one in field.noise
    ]
    headings = [
        heading("Policy"),
        *(heading(h, numeric=True) for h in ("Seeds", "Win rate", "Ties", "Means differ by")),
    ]
    return el(
        "details",
        el("summary", "Noise floor: the same policy sampled with another seed, against itself"),
        el("div", table(headings, rows), cls="scroll"),
        note("A difference between policies of this size says nothing."),
    )


# --- win rates ---


def matches_part(report: Overview) -> Markup | None:
    """Win rates of all policies of a field against each other."""
    parts = [join(_apart(field), _matrix(field)) for field in report.fields if len(field.policies) > 1]
    return join(*parts) if parts else None


def _matrix(field: Field) -> Markup:
    found = {(one.policy, one.other): one for one in field.matches}
    names = [one.name for one in field.policies]
    head = [el("th", "Row against column", scope="col"), *(el("th", name, scope="col", cls="versus") for name in names)]
    rows = [
        el("tr", el("th", name, scope="row"), [_match_cell(found.get((name, other)), other) for other in names])
        for name in names
    ]
    decided = [found[a, b] for at, a in enumerate(names) for b in names[at + 1 :]]
    lines = [el("li", el("b", f"{m.policy}"), f" against {m.other}: {_in_short(m)}") for m in decided]
    return join(
        el("div", table(head, rows, cls="matrix"), cls="scroll"),
        note(
            "Share of prompts that the row's policy wins against the column's, a tie being half a win, with its 95% "
            "interval. Filled: better or worse at 5%, p-values corrected for all comparisons of this report (Holm). No "
            "worse: the interval excludes a win rate below 45%."
        ),
        el(
            "details",
            el("summary", f"All {len(lines)} pairs in words"),
            el("ul", lines, cls="verdicts"),
            open=len(lines) <= 6,
        ),
    )


def _match_cell(match: Match | None, other: str) -> Markup:
    if match is None:
        return el("td", "–", cls="self")
    low, high = match.interval
    decided = match.outcome in ("better", "worse")
    strength = min(int(abs(match.win_rate - 0.5) * 10), 4) if decided else 0
    classes = f"heat {match.outcome.replace(' ', '-')} heat-{strength}"
    return el(
        "td",
        el("b", edge(match.win_rate)),
        el("small", f"{edge(low)} to {edge(high)}"),
        el("small", match.outcome, cls="sign"),
        cls=classes,
        data_name=f"against {other}",
    )


def _in_short(match: Match) -> str:
    low, high = match.interval
    words = f"{edge(match.win_rate)} ({edge(low)} to {edge(high)}), p {p_value(match.p_value)}: {verdict_words(match)}"
    if match.seeds_low is not None and match.seeds_high is not None:
        words += f"; over pairs of seeds {edge(match.seeds_low)} to {edge(match.seeds_high)}"
    return words


# --- length and refusals ---


def shifts_part(report: Overview, styles: Styles) -> Markup | None:
    """Length, refusals, cut-off answers and repetition, with the win rate at equal length."""
    parts = [join(_apart(field), _shift_table(field, styles)) for field in report.fields]
    return join(*parts) if parts else None


def _shift_table(field: Field, styles: Styles) -> Markup:
    against = field.baseline if field.baseline in {one.name for one in field.policies} else None
    base = next((one for one in field.policies if one.name == against), None)
    found = {one.policy: one for one in field.matches if one.other == against}
    headings = [
        heading("Policy"),
        heading("Length", "tokens", numeric=True),
        heading("Refusals", "share", numeric=True),
        heading("Cut off", "share", numeric=True),
        heading("Repetition", "share", numeric=True),
        heading(f"Win rate against {against}", numeric=True) if against else heading("Win rate", numeric=True),
        heading("At equal length", "95% interval", numeric=True),
        heading("Due to length", "points", numeric=True),
    ]
    rows = [_shift_row(one, base, found.get(one.name), styles) for one in field.policies]
    return join(
        el("div", table(headings, rows), cls="scroll"),
        note(
            "In small print, the change against the baseline. At equal length: the win rate that answers as long as the "
            "baseline's would have (length-controlled, Dubois et al. 2024); the rest of the win rate is due to length. "
            "Refusals: answers that open with a refusal, in English. Repetition: runs of four words that came before in "
            "the answer."
        ),
    )


def _shift_row(one: Policy, base: Policy | None, match: Match | None, styles: Styles) -> Markup:
    def shifted(value: float, before: float | None, form: Form, change: Form) -> Markup:
        moved = None if before is None or one is base else el("small", f" {change(value - before)}")
        return el("span", form(value), moved, cls="value")

    controlled = match.length_controlled if match else None

    def share(name: str, key: str) -> Markup:
        mine, theirs = (getattr(policy, key) if policy else None for policy in (one, base))
        if mine is None:
            return cell(name, "–", cls="n", absent=True)
        return cell(name, shifted(mine.mean, theirs.mean if theirs else None, finer_percent, signed_points), cls="n")

    return el(
        "tr",
        el("th", named(one.name, styles), scope="row"),
        cell(
            "Length, tokens",
            shifted(one.length.mean, base.length.mean if base else None, one_digit, lambda v: signed(v, 1)),
            cls="n",
        ),
        share("Refusals", "refusals"),
        share("Cut off", "unfinished"),
        share("Repetition", "repetition"),
        figure("Win rate", match.win_rate if match else None, edge),
        cell(
            "At equal length",
            "–" if controlled is None or match is None else ranged(controlled, match.length_controlled_interval, edge),
            cls="n",
            absent=controlled is None,
        ),
        figure(
            "Due to length, points",
            match.win_rate - controlled if match and controlled is not None else None,
            signed_points,
        ),
    )


# --- answers ---


def samples_part(report: Overview, styles: Styles) -> Markup | None:
    """Prompts with every policy's answer; None if there are none."""
    field = next((one for one in report.fields if one.samples), None)
    if field is None:
        return None
    names = [one.name for one in field.policies]
    cards = [_sample(sample, names, field, styles) for sample in field.samples]
    return join(
        note(
            f"{len(field.samples)} of {number(field.prompts)} prompts; of several seeds, the first one's answer. "
            "Values are the yardstick's."
        ),
        _sample_controls(names, field.baseline, styles),
        el("div", cards, id="sample-list"),
        el(
            "p",
            el("button", "Show more", type="button", id="more"),
            " ",
            el("span", cls="note-text", id="tally", role="status"),
            cls="more",
            hidden=True,
        ),
    )


def _sample_controls(names: Sequence[str], baseline: str | None, styles: Styles) -> Markup:
    def choice(title: str, key: str, options: Mapping[str, str], chosen: str = "") -> Markup:
        entries = [el("option", words, value=value, selected=value == chosen) for value, words in options.items()]
        return el("label", f"{title} ", el("select", entries, id=key))

    policies = {name: name for name in names}
    orders = {
        "apart": "largest difference first",
        "gain": "largest gain first",
        "loss": "largest loss first",
        "none": "as chosen",
    }
    last = baseline if baseline in names else names[-1]
    boxes = [
        el("label", el("input", type="checkbox", name_="policy", value=name, checked=True), named(name, styles))
        for name in names
    ]
    return el(
        "div",
        choice("Order", "order", orders, "none"),
        choice("of", "subject", policies, names[0]),
        choice("against", "against", policies, last or ""),
        choice("Mark words that differ from", "marked", {"": "nothing", **policies}),
        el("label", "Containing ", el("input", type="search", id="search", size=16)),
        el("fieldset", el("legend", "Show"), boxes),
        cls="controls",
        hidden=True,
    )


def _sample(sample: Sample, names: Sequence[str], field: Field, styles: Styles) -> Markup:
    only = len(sample.messages) == 1
    turns = [
        el("p", None if only else el("span", m["role"], cls="role"), m["text"], cls="turn") for m in sample.messages
    ]
    digits = digits_for((field.yardstick_scale or (0.0, 1.0))[1] - (field.yardstick_scale or (0.0, 1.0))[0])
    answers = []
    for name in names:
        one = sample.answers[name]
        facts = [number(one.value, digits)]
        facts += [f"score {number(one.score, 2)}"] if one.score is not None else []
        facts += [f"{one.tokens} tokens"] + ([] if one.finished else ["cut off"])
        answers.append(
            el(
                "div",
                el("header", el("strong", named(name, styles)), " ", ", ".join(facts)),
                el("p", one.text, cls="turn text") if one.text.strip() else el("p", "an empty answer", cls="empty"),
                cls="answer",
                data_policy=name,
                data_value=f"{one.value:.6g}",
            )
        )
    return el("article", el("div", turns, cls="prompt"), el("div", answers, cls="answers"), cls="sample")
