"""Judgments of runs and files, as figures about raters read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tiebreak.data.reading import is_run, read_records
from tiebreak.records import ExportedJudgment


def read_judgments(source: str) -> list[ExportedJudgment]:
    """The judgments of a label or judge run, or of a file, without those of excluded raters (`excluded_raters`).

    Raises:
        RunError: the run is not finished.
    """
    folder = Path(source)
    file = folder / "final" / "judgments.jsonl" if is_run(source) or folder.is_dir() else folder
    excluded = excluded_raters(source)
    return [one for one in read_records(file, ExportedJudgment) if one.rater_id not in excluded]


def excluded_raters(source: str) -> frozenset[str]:
    """The ids of the raters that a label run's export left out (`aggregation.exclude_raters`): its `judgments.jsonl` has
    theirs too. None of other runs, and of files."""
    file = Path(source) / "final" / "report.json"
    if not is_run(source) or not file.is_file():
        return frozenset()
    aggregation = json.loads(file.read_text(encoding="utf-8")).get("aggregation") or {}
    return frozenset(aggregation.get("exclude_raters", ()))


def of_people(judgments: Sequence[ExportedJudgment]) -> list[ExportedJudgment]:
    """People's judgments; those of simulated raters only if no person judged. Models' are neither."""
    human = [one for one in judgments if one.kind == "human"]
    return human or [one for one in judgments if one.kind == "simulated"]
