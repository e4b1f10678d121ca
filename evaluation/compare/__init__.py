"""The last stage: one report over everything that led to an evaluation.

    tiebreak compare --config configs/quickstart/compare.yaml
    tiebreak compare --config configs/quickstart/compare.yaml --output runs/two-seeds --against runs/seed1/evaluate

Writes into its run folder `report.json`, for programs, and `report.html`, for people: one file that opens without a
network. It shows the contents of finished folders and computes only differences paired by prompt. It refuses to compare
numbers that are not comparable.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.compare.lineage import Lineage
from evaluation.compare.page import LoggedRun, build_page
from evaluation.compare.reading import OLDER_NAMES, Evaluation, Link, read_chain, read_evaluation
from evaluation.compare.samples import select_samples
from evaluation.compare.summary import build_report
from evaluation.compare.verdicts import prompts_missing
from evaluation.compare.words import edge, label
from evaluation.configuration import CompareConfig
from tiebreak.command.launch import stage_main
from tiebreak.files import write_json, write_text_atomically
from tiebreak.page.numbers import digits_for, p_value
from tiebreak.runs import run as runs
from tiebreak.terminal import Cell, has_colours, paint, prints, show, table
from tiebreak.tracking.recorder import tracked


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `tiebreak compare`; with run folders instead of flags, of the overview."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and not words[0].startswith("-"):
        from evaluation import overview

        overview.main(words[1:] if words[0] == "overview" else words)
        return
    stage_main("compare", CompareConfig, compare, words)


def compare(config: CompareConfig) -> dict[str, Any]:
    """Write the report and print its table, and check the gate; returns the content of report.json.

    Raises:
        GateError: a requirement of the gate is not met; the report is written.
    """
    evaluation = read_evaluation(config.evaluation)
    against = [read_evaluation(folder) for folder in config.against]
    links = read_chain(config.evaluation, config.runs)
    chains = [read_chain(folder) for folder in config.against]
    report = build_report(evaluation, links, against, config.title, chains)
    next_step = config.next_step or judge_by_hand(config, links, report["kinds"])
    with runs.start_run(config, "compare") as run, tracked(run):
        if not run.finished:
            write_json(run.final / "report.json", {key: value for key, value in report.items() if key != "timings"})
        if not run.finished or not all((run.folder / name).is_file() for name in ("report.json", "report.html")):
            samples = select_samples(evaluation, Lineage(evaluation, links), config.samples)
            page = build_page(report, _trained([link for chain in (*chains, links) for link in chain]), samples)
            write_json(run.folder / "report.json", report)
            write_text_atomically(run.folder / "report.html", page)
        if not run.finished:
            run.facts |= {"kinds": report["kinds"], "verdicts": report["headline"]["verdicts"], "next": next_step}
            run.finish()
    report = json.loads((run.folder / "report.json").read_text(encoding="utf-8"))
    in_recipe = "TIEBREAK_GROUP" in os.environ  # whose last lines name the next command
    print_summary(report, run.folder / "report.html", "" if in_recipe else next_step)
    if config.gate is not None:
        from evaluation.gate import require_gate  # which reads evaluations as this package does

        require_gate(config.gate, config.evaluation)
    return dict(report)


def judge_by_hand(config: CompareConfig, links: Sequence[Link], kinds: Sequence[str]) -> str:
    """The command with which people judge the policies' pairs; empty if there are none, or only people judged them."""
    sampled = next((Path(link.folder) for link in reversed(links) if link.stage == "sample"), None)
    if sampled is None or list(kinds) == ["human"]:
        return ""
    words = ["--pairs", str(sampled), "--output", str(sampled.parent / "label-by-hand")]
    labelling = config.config_folder / "label.yaml" if config.config_folder else None
    if labelling is not None and labelling.is_file():
        words = ["--config", str(labelling), "--simulate", "false", *words]
    return shlex.join(["tiebreak", "label", *words])


def _trained(links: Sequence[Link]) -> list[LoggedRun]:
    """Runs with logged metrics, in the order of the chain."""
    each = {link.id: link for link in links}.values()
    everyone = [
        LoggedRun(link.stage, link.folder, link.id, runs.read_metrics(link.folder), link.manifest.get("config") or {})
        for link in each
    ]
    return [run for run in everyone if run.rows]


# --- on the terminal ---


def print_summary(report: dict[str, Any], page: Path, next_step: str) -> None:
    """The claim, the table, the caveats, the report's path, and the next command."""
    top = report["headline"]
    colours = has_colours(sys.stdout)
    claim = f"{top['claim']}."
    lines = summary_table(report, colours, prints(sys.stdout, _MARKS))
    show("", paint(claim, "bold") if colours else claim, "", *lines, "")
    show(*_further_sentences(report), *top["caveats"], *top.get("guards", []), "")
    show(f"report: {page.resolve().as_uri()}", *([f"next: {next_step}"] if next_step else []))


def _further_sentences(report: dict[str, Any]) -> list[str]:
    """Caveats of other evaluations; the table has the report's own."""
    top = report["headline"]
    return [] if not top.get("claims") else list(top.get("sentences", []))


def summary_table(report: dict[str, Any], colours: bool = False, marks: bool = True) -> list[str]:
    """The policies in lines of at most 100 columns, each marked as better or worse than the baseline and explained.

    Args:
        marks: whether ✓ and ✗ can be printed; + and - otherwise.
    """
    values = [_figure(row, "yardstick_mean") for row in report["policies"].values()]
    digits = 1 + digits_for(_span(report, values))
    head = [
        " ",
        "policy",
        _column_name(report),
        "95% interval",
        f"win vs {label(report['baseline'])}",
        "95% interval",
        "score",
        "KL",
        "tokens",
        "prompts",
    ]
    rows: list[list[str | Cell]] = [[Cell(name, "dim") for name in head]]
    for (name, row), mean in zip(report["policies"].items(), values, strict=True):
        mark, style = _OUTCOMES.get(row.get("verdict", ""), ("", ""))
        rows.append(
            [
                Cell(mark if marks else _PLAIN_MARKS[mark], style),
                Cell(label(name)[:14], "bold" if mark == "✓" else ""),
                f"{mean:.{digits}f}",
                _interval(_figure(row, "yardstick_interval"), lambda v: f"{v:.{digits}f}"),
                "-" if (rate := _figure(row, "win_rate_vs_baseline")) is None else edge(rate),
                _interval(row["win_rate_interval"], edge),
                "-" if row["score_mean"] is None else f"{row['score_mean']:.2f}",
                "-" if row["kl_per_sequence"] is None else f"{row['kl_per_sequence']:.1f}",
                f"{row['length_tokens_mean']:.1f}",
                str(row["n_prompts"]),
            ]
        )
    head_line, *lines = table(rows, left=(0, 1), colours=colours)
    meanings = [f"     {meaning(name, row, report['baseline'])}" for name, row in report["policies"].items()]
    explained = [paint(words, "dim") if colours else words for words in meanings]
    return [head_line, *(text for pair in zip(lines, explained, strict=True) for text in pair)]


_MARKS = "✓✗≈"
_PLAIN_MARKS = {"✓": "+", "✗": "-", "≈": "=", "": ""}
_OUTCOMES = {"better": ("✓", "green"), "worse": ("✗", "red"), "undecided": ("≈", "")}


def meaning(name: str, row: dict[str, Any], baseline: str) -> str:
    """The meaning of a policy's row, in one line."""
    against, counts = label(baseline), row.get("outcomes")
    if name == baseline:
        return "the baseline: the others are compared with it"
    if not counts:
        rate = row.get("win_rate_vs_baseline", row.get("win_rate_vs_sft"))
        return f"not compared with {against}" if rate is None else f"wins {edge(rate)} against {against}"
    wins, ties, losses = counts["wins"], counts["ties"], counts["losses"]
    score = f"{wins} won, {losses} lost, {ties} tied"
    p = row.get("p_value")
    level = "" if p is None else f", p = {p_value(p)}".replace("= <", "<")
    words = {
        "better": f"better than {against}: {score}{level}",
        "worse": f"worse than {against}: {score}{level}",
        "undecided": f"no clear difference from {against}: {score}{level}",
        "too few": f"too few prompts to compare it with {against} ({score}): about "
        f"{prompts_missing(wins + ties + losses, row.get('comparisons', 1))} more are needed",
    }
    return words.get(row.get("verdict", ""), f"against {against}: {score}")


def _figure(row: dict[str, Any], name: str) -> Any:
    """A figure of a report, which may be of an earlier version and have it under its older name."""
    return row[name] if name in row else row[OLDER_NAMES[name]]


def _column_name(report: dict[str, Any]) -> str:
    """The yardstick's name, shortened to fit; `rubric` for the rubric, and in older reports."""
    name = str(report.get("yardstick_name", "Rubric score"))
    return "rubric" if name == "Rubric score" else name if len(name) <= 14 else f"{name[:13]}~"


def _span(report: dict[str, Any], values: Sequence[float]) -> float:
    scale = report.get("yardstick_scale") or (([0.0, 1.0]) if "yardstick_name" not in report else None)
    return float(scale[1] - scale[0]) if scale else max(max(map(abs, values)), 1e-6)


def _interval(interval: Sequence[float] | None, form: Any) -> str:
    return f"{form(interval[0])} to {form(interval[1])}" if interval else "-"


__all__ = ["CompareConfig", "Evaluation", "compare", "main", "print_summary", "summary_table"]
