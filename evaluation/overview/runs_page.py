"""Parts of the overview about runs: settings and figures, curves, reward against KL, cost, lineage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evaluation.compare.words import label
from evaluation.overview import charts
from evaluation.overview.charts import Style, Styles, named, swatch
from evaluation.overview.grouping import value_words
from evaluation.overview.model import (
    Differences,
    KLChart,
    Overview,
    Panel,
    RunRow,
    Spread,
)
from tiebreak.page.charts import count_bar
from tiebreak.page.graph import GraphNode, draw_graph
from tiebreak.page.markup import Markup, el, join
from tiebreak.page.numbers import (
    duration,
    energy,
    memory,
    number,
    short,
    with_deviation,
)
from tiebreak.page.tables import cell, figure, heading, note, table
from tiebreak.stages import find_stage

MOST_PANELS = 40
"""of one stage that are drawn; report.json has the rest"""


# --- runs ---


def runs_part(report: Overview, styles: Styles) -> Markup:
    """A table for each stage: the keys in which its runs differ, and their figures."""
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
        el("details", el("summary", f"Folders left out: {len(left)}"), el("ul", left)) if left else None,
    )


def _stage_runs(one: Differences, rows: Mapping[str, RunRow], report: Overview, styles: Styles) -> Markup:
    mine = [rows[name] for name in one.runs]
    head = [
        el(
            "th",
            el("span", run.name, cls="run-name"),
            el("small", swatch(styles[run.group]), run.group, cls="unit"),
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
    return f"{run.state}{at}{left}"


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
    return number(one.mean) if one.deviation is None else with_deviation(one.mean, one.deviation)


# --- curves ---


def curves_part(report: Overview, styles: Styles) -> Markup | None:
    """Every stage's curves, its main figures first."""
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
        parts.append(el("div", [el("span", named(name, styles)) for name in groups], cls="legend"))
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
        notes += [f"not finite and left out: {skipped}"] if skipped else []
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


def kl_part(report: Overview, styles: Styles) -> Markup | None:
    """A chart for each reward model and reference."""
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


# --- cost and lineage ---


def cost_part(report: Overview) -> Markup | None:
    """Time, memory, energy, tokens and judgments of each run; None if no run's time is known."""
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


def lineage_part(report: Overview) -> Markup | None:
    """Which run was made from which, as a graph and as a table."""
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
