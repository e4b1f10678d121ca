"""What a run was made from, down to judgments; which models learned from a judgment, or from a rater.

    tiebreak lineage runs/quickstart/ppo                          # inputs first: raters, guidelines, commits
    tiebreak lineage runs/quickstart/ppo --html                   # and a page with the graph
    tiebreak lineage runs --judgment pair-7da6dd10d1443ddf:anna   # which models learned from it
    tiebreak lineage runs --forget anna                           # which models must be trained anew without her

Reads records and the label runs' exports; no model is loaded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from tiebreak.command.help import print_help, wants_help
from tiebreak.config import Section, load_config
from tiebreak.errors import ConfigError, counted
from tiebreak.files import write_text_atomically
from tiebreak.page.document import build_document
from tiebreak.page.graph import GraphNode, draw_graph
from tiebreak.page.markup import Markup, el, join
from tiebreak.page.numbers import number, short
from tiebreak.page.tables import cell, figure, heading, note, table
from tiebreak.process.ending import exit_with_message
from tiebreak.runs.lineage import Family, LineageRun, Raters, Trace, trace_judgment, trace_rater
from tiebreak.stages import find_stage
from tiebreak.terminal import show
from tiebreak.terminal import table as lines_of

RATERS_SHOWN = 8


class LineageArguments(Section):
    """`tiebreak lineage`. FOLDER is a run, or, with `--judgment` and `--forget`, also a folder of runs."""

    judgment: str | None = None
    """a pair's id, or PAIR:RATER: list the models that learned from it"""
    forget: str | None = None
    """a rater: list every model that must be retrained to forget the rater's judgments"""
    html: bool = False
    """also write a page with the graph"""
    output: str = "lineage.html"
    """the file for --html"""
    as_json: bool = Field(default=False, alias="json")
    """print one JSON document"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `tiebreak lineage`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    exit_with_message(lambda: print_help(["lineage", *words]) if wants_help(words) else _lineage(words))


def _lineage(words: list[str]) -> None:
    if not words or words[0].startswith("-"):
        raise ConfigError(
            "lineage takes one folder: tiebreak lineage runs/quickstart/ppo [--judgment ID | --forget RATER] [--html]"
        )
    folder, given = words[0], load_config(LineageArguments, words[1:], "lineage")
    if given.judgment and given.forget:
        raise ConfigError("--judgment and --forget are two questions: ask one at a time")
    family = Family.around(folder)
    if given.judgment or given.forget:
        _answer_trace(family, given)
        return
    run = _run_at(family, folder)
    chain = family.made_from(run)
    if given.as_json:
        show(json.dumps([_document(one) for one in chain], indent=2, ensure_ascii=False))
    else:
        show(*chain_lines(family, chain))
    _write_page(given, f"Lineage of {folder}", chain, ())


def _run_at(family: Family, folder: str) -> LineageRun:
    place = Path(folder).resolve()
    run = next((one for one in family.runs.values() if Path(one.folder).resolve() == place), None)
    if run is None:
        inside = ", ".join(one.folder for one in list(family.runs.values())[:6])
        raise ConfigError(f"{folder} is not a run folder, but holds some: give one of {inside}")
    return run


# --- the chain ---


def chain_lines(family: Family, chain: Sequence[LineageRun]) -> list[str]:
    """Every run with its inputs, and a labelling run's raters, inputs first."""
    lines: list[str] = []
    for one in chain:
        lines += ["", f"{one.stage}  {one.folder}  {_made(one)}"]
        lines += [f"  from {text}" for text in _inputs(family, one)]
        raters = one.raters() if one.stage == "label" else []
        lines += [f"  judged by {_rater_words(who)}" for who in raters[:RATERS_SHOWN]]
        if len(raters) > RATERS_SHOWN:
            rest = sum(who.judgments for who in raters[RATERS_SHOWN:])
            lines.append(
                f"  and {len(raters) - RATERS_SHOWN} more with {counted(rest, 'judgment')} (--json lists them)"
            )
    return lines[1:]


def _made(one: LineageRun) -> str:
    if not one.finished:
        return "(not finished)"
    commit = one.record.get("git_commit")
    return f"({short(one.id)}{f', commit {commit}' if commit else ''}, {one.record.get('finished_at', '')})"


def _inputs(family: Family, one: LineageRun) -> list[str]:
    rows = []
    for name, entry in one.record["inputs"].items():
        source_run = family.runs.get(str(entry["id"]))
        where = source_run.folder if source_run else entry["source"]
        missing = " (not found)" if entry["kind"] == "run" and source_run is None else ""
        rows.append(f"{name}: {where}{missing}")
    return rows


def _rater_words(who: Raters) -> str:
    version = f", guidelines {who.guideline_version}" if who.guideline_version else ", no guidelines recorded"
    return f"{who.rater} ({who.kind}): {counted(who.judgments, 'judgment')}{version}"


def _document(one: LineageRun) -> dict[str, Any]:
    return {
        "folder": one.folder,
        "stage": one.stage,
        "id": one.record.get("id"),
        "finished": one.finished,
        "git_commit": one.record.get("git_commit"),
        "finished_at": one.record.get("finished_at"),
        "inputs": {name: dict(entry) for name, entry in one.record["inputs"].items()},
        "raters": [vars(who) for who in one.raters()] if one.stage == "label" else [],
    }


# --- a judgment, a rater ---


def _answer_trace(family: Family, given: LineageArguments) -> None:
    traces = trace_judgment(family, given.judgment) if given.judgment else trace_rater(family, given.forget or "")
    if given.as_json:
        show(json.dumps([_trace_document(one) for one in traces], indent=2, ensure_ascii=False))
    elif given.judgment:
        show(*_judgment_lines(traces))
    else:
        show(*_forget_lines(given.forget or "", traces))
    reached = {one.run.id for trace in traces for one in trace.models}
    runs = [*(trace.label for trace in traces), *(one.run for trace in traces for one in trace.made)]
    _write_page(given, f"Lineage of {given.judgment or given.forget}", runs, reached)


def _judgment_lines(traces: Sequence[Trace]) -> list[str]:
    lines = []
    for trace in traces:
        lines += ["", f"{trace.label.folder}: {counted(trace.judgments, 'judgment')}"]
        if not trace.split:
            lines.append("  no preference came of it (a tie, a skip, or outvoted): no model learned from it")
        elif not trace.models:
            lines.append("  no model here was made from it")
        else:
            how = "learned from it" if "train" in trace.split else f"held it out ({trace.split})"
            lines += [f"  {counted(len(trace.models), 'model')} {how}:", *_models(trace)]
    return lines[1:]


def _forget_lines(rater: str, traces: Sequence[Trace]) -> list[str]:
    labels = ", ".join(f"{trace.label.folder} ({counted(trace.judgments, 'judgment')})" for trace in traces)
    models = {one.run.id for trace in traces for one in trace.models}
    lines = [
        f"{rater} judged in {labels}.",
        f"Export those anew without {rater} (aggregation.exclude_raters), then train {counted(len(models), 'model')} anew:",
        "",
    ]
    return [*lines, *dict.fromkeys(line for trace in traces for line in _models(trace))]


def _models(trace: Trace) -> list[str]:
    rows = [
        (one.run.stage, one.run.folder if one.run.finished else f"{one.run.folder} (not finished)", ", ".join(one.way))
        for one in trace.models
    ]
    return [f"  {line}" for line in lines_of(rows, left=(0, 1, 2), colours=False)]


def _trace_document(trace: Trace) -> dict[str, Any]:
    return {
        "label": trace.label.folder,
        "judgments": trace.judgments,
        "split": trace.split,
        "models": [
            {"folder": one.run.folder, "stage": one.run.stage, "id": one.run.record.get("id"), "way": list(one.way)}
            for one in trace.models
        ],
    }


# --- the page ---


def _write_page(
    given: LineageArguments, title: str, runs: Sequence[LineageRun], marked: Sequence[str] | set[str]
) -> None:
    if given.html:
        path = Path(given.output)
        write_text_atomically(path, lineage_page(title, runs, frozenset(marked)))
        if not given.as_json:
            show("", f"page: {path.resolve().as_uri()}")


def lineage_page(title: str, runs: Sequence[LineageRun], marked: frozenset[str] = frozenset()) -> str:
    """The graph and its tables, as one self-contained page.

    Args:
        marked: ids of models to train anew, or that learned from a judgment.
    """
    each = {one.id: one for one in runs}
    nodes = [
        GraphNode(
            one.id,
            Path(one.folder).name,
            find_stage(one.stage).title or one.stage,
            (find_stage(one.stage).mark or ("plain", ""))[0],
            bool(marked) and one.id not in marked,
        )
        for one in each.values()
    ]
    edges = [(source, one.id) for one in each.values() for source in dict.fromkeys(one.input_ids.values())]
    graph = el("div", draw_graph(nodes, edges, "Which run was made from which"), cls="scroll")
    sections = [
        (
            "graph",
            "Graph",
            join(graph, note("Solid: models that learned from it. Dashed: other runs.") if marked else None),
        ),
        ("runs", "Runs", _runs_table(list(each.values()))),
        ("raters", "Raters", _raters_table(list(each.values()))),
    ]
    head = join(el("p", "Tiebreak: lineage", cls="eyebrow"), el("h1", title))
    return build_document(title, head, sections, [_document(one) for one in each.values()])


def _runs_table(runs: Sequence[LineageRun]) -> Markup:
    rows = [
        el(
            "tr",
            el("th", one.stage, scope="row"),
            cell("Folder", el("code", one.folder)),
            cell("Id", el("code", short(one.id), title=one.id) if one.finished else "not finished"),
            cell(
                "Made from",
                el(
                    "span",
                    [_input(name, entry) for name, entry in one.record["inputs"].items()] or "–",
                ),
            ),
            cell("Git commit", el("code", one.record.get("git_commit") or "–")),
            cell("Finished", str(one.record.get("finished_at") or "–").replace("T", " ").replace("Z", "")),
        )
        for one in runs
    ]
    headings = [heading(title) for title in ("Stage", "Folder", "Id", "Made from", "Git commit", "Finished")]
    return el("div", table(headings, rows, cls="chain stack"), cls="scroll")


def _input(name: str, entry: Mapping[str, Any]) -> Markup:
    """An input's name with the id of its content; a model's or hub data's own name."""
    identity = str(entry["id"])
    return el(
        "span",
        f"{name} ",
        el("code", identity if entry["kind"] == "name" else short(identity), title=identity),
        cls="input",
    )


def _raters_table(runs: Sequence[LineageRun]) -> Markup | None:
    rows = [
        el(
            "tr",
            el("th", who.rater, scope="row"),
            cell("Labels", el("code", one.folder)),
            cell("Kind", who.kind),
            cell("Guidelines", who.guideline_version or "–"),
            figure("Judgments", who.judgments, number),
        )
        for one in runs
        if one.stage == "label"
        for who in one.raters()
    ]
    headings = [
        heading("Rater"),
        heading("Labels"),
        heading("Kind"),
        heading("Guidelines"),
        heading("Judgments", numeric=True),
    ]
    return table(headings, rows) if rows else None


if __name__ == "__main__":
    main()
