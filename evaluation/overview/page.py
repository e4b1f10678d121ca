"""The overview as one self-contained page. Text from prompts and models is shown as plain text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import resources

from evaluation.compare.page import policy_marks
from evaluation.compare.words import edge, label
from evaluation.compare.yardsticks import benchmarks_part, yardsticks_part
from evaluation.overview import charts
from evaluation.overview.charts import Style, group_styles
from evaluation.overview.grouping import value_words
from evaluation.overview.model import (
    Differences,
    Field,
    KLChart,
    Match,
    Overview,
    Panel,
    Policy,
    RunRow,
    Sample,
    Spread,
)
from evaluation.overview.report import verdict_words
from tiebreak.page.charts import Scale, change_scale, count_bar, value_scale
from tiebreak.page.document import build_document
from tiebreak.page.graph import GraphNode, draw_graph
from tiebreak.page.markup import Markup, el, join, svg
from tiebreak.page.numbers import (
    digits_for,
    duration,
    energy,
    finer_percent,
    memory,
    number,
    one_digit,
    p_value,
    percent,
    short,
    signed,
    signed_points,
    two_digits,
)
from tiebreak.page.tables import Form, cell, figure, heading, measured, note, ranged, table
from tiebreak.stages import find_stage

Styles = Mapping[str, Style]
MOST_PANELS = 40
"""of one stage that are drawn; report.json has the rest"""
_STATES = {"running": "running", "interrupted": "interrupted", "failed": "failed"}


def build_page(report: Overview, version: str = "") -> str:
    """The whole page.

    Args:
        version: of a page that its server keeps up to date; empty: a page that stays.
    """
    styles = _styles(report)
    sections = [
        ("policies", "Policies", _policies(report, styles)),
        ("matches", "Win rates", _matches(report)),
        ("yardsticks", "Other yardsticks", _further(report)),
        ("runs", "Runs", _runs(report, styles)),
        ("curves", "Curves", _curves(report, styles)),
        ("kl", "Reward against KL", _kl(report, styles)),
        ("shifts", "Length and refusals", _shifts(report, styles)),
        ("samples", "Answers", _samples(report, styles)),
        ("training", "Answers during training", _training_answers(report)),
        ("raters", "Raters", _raters(report)),
        ("cost", "Cost", _cost(report)),
        ("lineage", "Lineage", _lineage(report)),
    ]
    package = resources.files("evaluation.overview")
    script, style = (package.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    data = report.model_dump(mode="json")
    return build_document(report.title, _head(report), sections, data, script, style=style, version=version)


def _styles(report: Overview) -> Mapping[str, Style]:
    """Colours for policies and for groups that train; the others are grey."""
    coloured = [one.name for field in report.fields for one in field.policies]
    coloured += [one.name for one in report.groups if find_stage(one.stage).trains]
    return {one.name: Style("base") for one in report.groups} | group_styles(coloured)


def _swatch(style: Style) -> Markup:
    return svg(14, 14, el("circle", cls=f"mark tone-{style.tone}", cx=7, cy=7, r=4.6), cls="inline swatch", fixed=True)


def _named(name: str, styles: Styles) -> Markup:
    return join(_swatch(styles[name]), name)


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


# --- policies ---


def _policies(report: Overview, styles: Styles) -> Markup | None:
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
        heading("KL", "nats per answer", numeric=True),
    ]
    rows = [_policy_row(one, field, styles, ratings, scale, lambda v: number(v, digits)) for one in field.policies]
    remarks = (
        f"{number(field.prompts)} held-out prompts, the same for every policy, sampled alike. Ratings: Bradley-Terry over "
        "all pairs of policies, intervals clustered by prompt; 100 points are a win rate of 64%. KL is from the baseline "
        "of the policy's own evaluation."
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
        el("th", _named(one.name, styles), el("small", below, cls="unit"), scope="row"),
        rating,
        measured(field.yardstick, one.yardstick.mean, one.yardstick_interval, scale, form, (style.tone, "circle")),
        cell("Seeds", f"{form(one.yardstick.low)} to {form(one.yardstick.high)}" if several else "1", cls="n"),
        figure("Score", one.score.mean if one.score else None, two_digits),
        figure("KL, nats per answer", one.kl.mean if one.kl else None, one_digit),
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


def _matches(report: Overview) -> Markup | None:
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
            "interval. Filled: better or worse at 5%, p-values corrected for all pairs (Benjamini-Hochberg). No worse: the "
            "interval excludes a win rate below 45%."
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


# --- runs ---


def _runs(report: Overview, styles: Styles) -> Markup:
    rows = {one.name: one for one in report.runs}
    shown = [
        one
        for one in report.differences
        if one.differing or any(rows[name].figures or rows[name].notes for name in one.runs)
    ]
    quiet = [label(one.stage) for one in report.differences if one not in shown]
    parts = [_stage_runs(one, rows, report, styles) for one in shown]
    left = [el("li", el("code", folder), f": {why}") for folder, why in report.left_out.items()]
    search = el(
        "div",
        el("label", "Runs containing ", el("input", type="search", id="run-search", size=18)),
        el("span", cls="note-text", id="run-tally", role="status"),
        cls="controls",
        hidden=True,
    )
    return join(
        search,
        parts,
        note(f"One run each, or no difference: {', '.join(quiet)}.") if quiet else None,
        el("details", el("summary", f"{len(left)} folders left out"), el("ul", left)) if left else None,
    )


def _stage_runs(one: Differences, rows: Mapping[str, RunRow], report: Overview, styles: Styles) -> Markup:
    mine = [rows[name] for name in one.runs]
    head = [
        el(
            "th",
            el("span", run.name, cls="run-name"),
            el("small", _swatch(styles[run.group]), run.group, cls="unit"),
            scope="col",
            cls="n",
            data_run=run.name,
        )
        for run in mine
    ]
    body = [_plain_row("state", [_state(run) for run in mine])] if any(run.state != "finished" for run in mine) else []
    body += [
        _plain_row(el("code", key), list(map(value_words, values)), mine, "differs")
        for key, values in one.differing.items()
    ]
    figures = dict.fromkeys(
        key
        for key in (*find_stage(one.stage).metrics, *(k for run in mine for k in run.figures))
        if any(key in r.figures for r in mine)
    )
    titles = find_stage(one.stage).metrics
    main = [key for key in figures if key in titles or len(figures) <= 8]
    body += [_figure_row(key, titles.get(key, key), mine) for key in main]
    further = [_figure_row(key, key, mine) for key in figures if key not in main]
    spreads = _spreads(one.stage, report, main, titles)
    shared = [
        el("tr", el("th", el("code", key), scope="row"), el("td", value_words(value)))
        for key, value in one.shared.items()
    ]
    notes = [el("li", el("b", run.name), f": {text}") for run in mine for text in run.notes]
    count = f"{len(mine)} run{'s' if len(mine) > 1 else ''}"
    return el(
        "div",
        el("h3", label(one.stage), " ", el("small", count, cls="count")),
        el("div", table([heading("Key"), *head], body, cls="columns"), cls="scroll") if body else None,
        spreads,
        el(
            "details",
            el("summary", f"{len(further)} further figures"),
            el("div", table([heading("Figure"), *head], further, cls="columns"), cls="scroll"),
        )
        if further
        else None,
        el(
            "details",
            el("summary", f"{len(shared)} keys" + (", the same in all" if len(mine) > 1 else "")),
            table([], shared, cls="keys"),
        )
        if shared
        else None,
        el("ul", notes, cls="note-text") if notes else None,
        cls="stage",
    )


def _state(run: RunRow) -> str:
    at = f" at step {number(run.step)}" if run.step is not None and run.state != "finished" else ""
    at += f" of {number(run.steps)}" if at and run.steps else ""
    left = f", about {duration(run.seconds_left)} left" if run.seconds_left is not None else ""
    return f"{_STATES.get(run.state, run.state)}{at}{left}"


# --- other yardsticks, answers in training ---


def _further(report: Overview) -> Markup | None:
    """A table for each evaluation with several yardsticks, or benchmarks."""
    parts: list[object] = []
    for one in report.further:
        row = {"yardsticks": one.yardsticks, "policies": one.policies, "baseline": one.baseline}
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


def _plain_row(title: object, values: Sequence[str], runs: Sequence[RunRow] | None = None, cls: str = "") -> Markup:
    named: Sequence[RunRow | None] = runs or [None] * len(values)
    cells = [
        el("td", value, cls="n", data_run=run.name if run else None) for value, run in zip(values, named, strict=True)
    ]
    return el("tr", el("th", title, scope="row"), cells, cls=cls)


def _figure_row(key: str, title: str, runs: Sequence[RunRow]) -> Markup:
    values = [number(run.figures[key]) if key in run.figures else "–" for run in runs]
    return _plain_row(title.replace("_", " "), values, runs)


def _spreads(stage: str, report: Overview, keys: Sequence[str], titles: Mapping[str, str]) -> Markup | None:
    """Mean and spread of groups of several seeds."""
    groups = [one for one in report.groups if one.stage == stage and len(one.runs) > 1]
    shown = [key for key in keys if any(key in one.figures for one in groups)]
    if not groups or not shown:
        return None
    rows = [
        el(
            "tr",
            el("th", titles.get(key, key).replace("_", " "), scope="row"),
            [el("td", _spread(one.figures.get(key)), cls="n") for one in groups],
        )
        for key in shown
    ]
    heads = [el("th", f"{one.name}, {len(one.runs)} seeds", scope="col", cls="n") for one in groups]
    return el(
        "div",
        el("h4", "Seeds of one configuration: mean ± standard deviation"),
        el("div", table([heading("Figure"), *heads], rows, cls="columns"), cls="scroll"),
    )


def _spread(one: Spread | None) -> str:
    if one is None:
        return "–"
    return number(one.mean) if one.deviation is None else f"{number(one.mean)} ± {number(one.deviation)}"


# --- curves ---


def _curves(report: Overview, styles: Styles) -> Markup | None:
    if not report.panels:
        return None
    group_of = {run.name: run.group for run in report.runs}
    parts: list[Markup | None] = []
    for stage in dict.fromkeys(panel.stage for panel in report.panels):
        mine = [(at, panel) for at, panel in enumerate(report.panels) if panel.stage == stage]
        titles = {one.title for one in find_stage(stage).figures}
        main = [(at, panel) for at, panel in mine if panel.title.partition(": ")[0] in titles] or mine
        further = [pair for pair in mine if pair not in main][:MOST_PANELS]
        groups = dict.fromkeys(group_of[curve.run] for _, panel in mine for curve in panel.curves)
        parts.append(el("h3", label(stage)))
        parts.append(el("div", [el("span", _named(name, styles)) for name in groups], cls="legend"))
        parts.append(_panels(main, group_of, styles))
        if further:
            drawn = _panels(further, group_of, styles)
            parts.append(el("details", el("summary", f"{len(further)} further figures"), drawn))
    controls = el(
        "div",
        el(
            "label",
            "Smoothing ",
            el("input", type="range", id="smoothing", min="0", max="0.98", step="0.02", value=f"{charts.SMOOTHING:g}"),
        ),
        el("label", "Figures containing ", el("input", type="search", id="figure-search", size=14)),
        cls="controls",
        hidden=True,
    )
    legend = note(
        "Thin: logged values. Bold: smoothed. Dashed: held-out data. With several seeds in a group, the bold line is "
        "their mean and the band spans them."
    )
    return join(legend, controls, parts)


def _panels(panels: Sequence[tuple[int, Panel]], group_of: Mapping[str, str], styles: Styles) -> Markup:
    figures = []
    for at, panel in panels:
        keys = list(dict.fromkeys(curve.key for curve in panel.curves))
        skipped = sum(curve.skipped for curve in panel.curves)
        each = max(curve.rows_a_point for curve in panel.curves)
        notes = [f"each point is {each} rows"] if each > 1 else []
        notes += [f"{skipped} values are not finite"] if skipped else []
        figures.append(
            el(
                "figure",
                el("figcaption", el("b", panel.title), el("div", ", ".join(keys), cls="legend")),
                el("p", panel.warning, cls="level") if panel.warning else None,
                charts.overlay_chart(panel, at, group_of, styles),
                el("output", cls="readout"),
                el("span", "; ".join(notes), cls="note-text") if notes else None,
                data_figure=f"{panel.title} {' '.join(keys)}".lower(),
            )
        )
    return el("div", figures, cls="panels")


def _kl(report: Overview, styles: Styles) -> Markup | None:
    if not report.reward_against_kl:
        return None
    groups = {run.name: run.group for run in report.runs}
    several = len(report.reward_against_kl) > 1
    parts: list[Markup | None] = [
        note(
            f"{len(report.reward_against_kl)} charts, because scores of different reward models and distances from "
            "different references have no common scale."
        )
        if several
        else None
    ]
    for chart in report.reward_against_kl:
        parts.append(_kl_figure(chart, groups, styles))
    remark = note(
        "Small dots: training rollouts, darker with the steps. Rings: held-out prompts at a checkpoint. Diamonds: "
        "evaluated policies, with 95% intervals over prompts. Up is better liked by the reward model, right is further "
        "from the reference; a score that rises while the yardstick does not is a sign of over-optimisation."
    )
    return join(parts[0], el("div", parts[1:], cls="panels wide-panels"), remark)


def _kl_figure(chart: KLChart, groups: Mapping[str, str], styles: Styles) -> Markup:
    plain = Style("base")
    style_of = {trail.name: styles.get(groups.get(trail.run or "", ""), plain) for trail in chart.trails}
    return el(
        "figure",
        el(
            "figcaption",
            el("b", f"Scored by {chart.reward_model}"),
            el("div", f"KL from {chart.reference}", cls="legend"),
        ),
        charts.kl_overlay(chart, style_of),
    )


# --- length and refusals ---


def _shifts(report: Overview, styles: Styles) -> Markup | None:
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
            "Refusals: answers that open with a refusal, in English."
        ),
    )


def _shift_row(one: Policy, base: Policy | None, match: Match | None, styles: Styles) -> Markup:
    def shifted(value: float, before: float | None, form: Form, change: Form) -> Markup:
        moved = None if before is None or one is base else el("small", f" {change(value - before)}")
        return el("span", form(value), moved, cls="value")

    controlled = match.length_controlled if match else None
    unfinished = one.unfinished.mean if one.unfinished else None
    cut = base.unfinished.mean if base and base.unfinished else None
    return el(
        "tr",
        el("th", _named(one.name, styles), scope="row"),
        cell(
            "Length, tokens",
            shifted(one.length.mean, base.length.mean if base else None, one_digit, lambda v: signed(v, 1)),
            cls="n",
        ),
        cell(
            "Refusals",
            shifted(one.refusals.mean, base.refusals.mean if base else None, finer_percent, signed_points),
            cls="n",
        ),
        cell(
            "Cut off",
            "–" if unfinished is None else shifted(unfinished, cut, finer_percent, signed_points),
            cls="n",
            absent=unfinished is None,
        ),
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


def _samples(report: Overview, styles: Styles) -> Markup | None:
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
        el("label", el("input", type="checkbox", name_="policy", value=name, checked=True), _named(name, styles))
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
                el("header", el("strong", _named(name, styles)), " ", ", ".join(facts)),
                el("p", one.text, cls="turn text") if one.text.strip() else el("p", "an empty answer", cls="empty"),
                cls="answer",
                data_policy=name,
                data_value=f"{one.value:.6g}",
            )
        )
    return el("article", el("div", turns, cls="prompt"), el("div", answers, cls="answers"), cls="sample")


# --- raters, cost, lineage ---


_MEASURES = {
    "percent_with_ties": "Agreement, counting ties",
    "percent_without_ties": "Agreement, without ties",
    "alpha": "Krippendorff's alpha",
    "kappa": "Kappa",
}


def _raters(report: Overview) -> Markup | None:
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


def _cost(report: Overview) -> Markup | None:
    rows = [one for one in report.runs if one.cost.seconds is not None]
    if not rows:
        return None
    most = max(one.cost.seconds or 0.0 for one in rows) or 1.0
    measured = sum(one.cost.energy_kwh is not None for one in rows)
    drawn = [
        el(
            "tr",
            el("th", one.name, el("small", one.group, cls="unit"), scope="row"),
            cell("", count_bar(round(1000 * (one.cost.seconds or 0.0) / most), 1000), cls="count-bar"),
            figure("Time", one.cost.seconds, duration),
            figure("With all before it", one.cost.seconds_in_all, duration),
            figure("Peak memory", one.cost.peak_memory_bytes, memory),
            figure("Energy, kWh", one.cost.energy_kwh, energy) if measured else None,
            figure("Tokens", one.cost.tokens, number),
            figure("Judgments", one.cost.judgments, number),
            data_run=one.name,
        )
        for one in rows
    ]
    titles = [
        "Time",
        "With all before it",
        "Peak memory",
        *(["Energy, kWh"] if measured else []),
        "Tokens",
        "Judgments",
    ]
    headings = [heading("Run"), el("th"), *(heading(title, numeric=True) for title in titles)]
    machines = sorted({one.cost.machine for one in rows if one.cost.machine})
    total = sum(one.cost.seconds or 0.0 for one in rows)
    unmeasured = (
        "Energy was not measured" if not measured else f"Energy was measured for {measured} of {len(rows)} runs"
    )
    return join(
        el("div", table(headings, drawn), cls="scroll"),
        note(
            f"All {len(rows)} runs together: {duration(total)}. Machine: {'; '.join(machines) or 'not recorded'}."
            + ("" if measured == len(rows) else f" {unmeasured}.")
        ),
    )


def _lineage(report: Overview) -> Markup | None:
    if not report.nodes:
        return None
    tones = {node.id: (find_stage(node.stage).mark or ("plain", ""))[0] for node in report.nodes}
    nodes = [
        GraphNode(
            node.id,
            node.name,
            label(node.stage) + (f", {node.runs} runs" if node.runs > 1 else ""),
            tones[node.id],
            not node.given,
        )
        for node in report.nodes
    ]
    graph = draw_graph(nodes, [(one.source, one.target) for one in report.edges], "Which run was made from which")
    rows = [
        el(
            "tr",
            el("th", one.name, scope="row"),
            cell("Folder", el("code", one.folder)),
            cell("Id", el("code", short(one.id), title=one.id) if one.id else "–"),
            cell(
                "Made from",
                el(
                    "span",
                    [el("span", f"{k} ", el("code", short(v), title=v), cls="input") for k, v in one.inputs.items()]
                    or "–",
                ),
            ),
            cell("Git commit", el("code", one.git_commit or "–")),
            cell("Finished", (one.finished_at or one.state).replace("T", " ").replace("Z", "")),
        )
        for one in report.runs
    ]
    headings = [heading(title) for title in ("Run", "Folder", "Id", "Made from", "Git commit", "Finished")]
    return join(
        el("div", graph, cls="scroll"),
        note("Faint: found as an input, not among the runs compared. A + after a commit: files differed from it."),
        el(
            "details",
            el("summary", "Folders, ids and commits"),
            el("div", table(headings, rows, cls="chain stack"), cls="scroll"),
        ),
    )
