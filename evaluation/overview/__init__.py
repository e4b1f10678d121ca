"""Any runs side by side on one page: what differs, which policy is best, and whether to believe it.

    tiebreak compare runs/seed-0 runs/seed-1                    # every run below the two folders
    tiebreak compare runs/quickstart/dpo runs/beta-03/dpo       # two runs
    tiebreak compare runs --serve                               # follows runs in progress

Writes `report.html`, which opens without a network, and `report.json` (evaluation/overview/schema.json is its schema).
Runs of one configuration with other seeds are grouped. Evaluations are compared where prompts, yardstick and sampling
are the same; others are shown separately, with the reason.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.configuration import OverviewArguments
from evaluation.overview.model import Overview
from evaluation.overview.page import build_page
from evaluation.overview.report import build_overview, read_overview, to_json
from tiebreak.command.help import print_help, wants_help
from tiebreak.config import load_config
from tiebreak.errors import ConfigError, RunError, counted
from tiebreak.files import write_json, write_text_atomically
from tiebreak.process.ending import exit_with_message
from tiebreak.runs import run as runs
from tiebreak.terminal import show


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `tiebreak compare RUNS…`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    exit_with_message(lambda: print_help(["compare", "overview"]) if wants_help(words) else _overview(words))


def _overview(words: list[str]) -> None:
    first_flag = next((at for at, word in enumerate(words) if word.startswith("--")), len(words))
    folders, flags = words[:first_flag], words[first_flag:]
    if not folders:
        raise ConfigError("compare overview takes run folders: tiebreak compare runs/seed-0 runs/seed-1")
    given = load_config(OverviewArguments, flags, "compare overview")
    if given.serve:
        from evaluation.overview.serve import serve

        serve(folders, given)
        return
    page, report = write_overview(folders, given)
    print_overview(report, page)


def write_overview(folders: Sequence[str], given: OverviewArguments) -> tuple[Path, Overview]:
    """Write both files; returns the page's path and the report.

    Raises:
        RunError: the output folder is a run.
    """
    output = Path(given.output)
    if any((output / name).exists() for name in (runs.MANIFEST, runs.RUN_FILE)):
        raise RunError(f"output: {output} is a run folder, and nothing is written into one: give another --output")
    report = read_overview(folders, given)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "report.json", to_json(report))
    write_text_atomically(output / "report.html", build_page(report))
    return output / "report.html", report


def print_overview(report: Overview, page: Path) -> None:
    """The claim, its figures, the caveats, and where the page is."""
    top = report.headline
    show("", f"{top.claim}.", *top.sentences, *top.caveats, "")
    if report.left_out:
        show(f"{counted(len(report.left_out), 'folder')} left out:", *map(_left_out, report.left_out.items()), "")
    show(f"report: {page.resolve().as_uri()}")


def _left_out(entry: tuple[str, str]) -> str:
    return f"  {entry[0]}: {entry[1]}"


__all__ = ["build_overview", "main", "read_overview", "write_overview"]
