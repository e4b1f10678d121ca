"""The benchmark of labels: savings worked by hand, and a small run of every arm that is stopped and continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import REPOSITORY
from test_benchmark import run_benchmark


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import labels as benchmark

    return benchmark


def rows_of(labels: Any, arm: str, rates: dict[int, float], prompts: int = 100) -> list[Any]:
    """Cells of one seed, in which exactly this share of the prompts is won."""
    return [
        labels.Outcomes(arm, str(size), (np.arange(prompts) < round(rate * prompts)).astype(float)[None], size)
        for size, rate in rates.items()
    ]


def test_labels_saved_by_hand(labels: Any) -> None:
    """A doubling of random labels gains 5 points, and the arm is 5 points higher everywhere: half of the labels."""
    random = rows_of(labels, "random", {40: 0.5, 80: 0.55, 160: 0.6})
    better = rows_of(labels, "active", {40: 0.55, 80: 0.6, 160: 0.65})
    found = labels.labels_saved([*random, *better], "active")
    assert found["saved"] == pytest.approx(0.5)
    low, high = found["interval"]
    assert low < 0.5 < high
    worse = rows_of(labels, "judge", {40: 0.45, 80: 0.5, 160: 0.55})
    assert labels.labels_saved([*random, *worse], "judge")["saved"] == pytest.approx(-1.0)  # twice as many
    assert labels.labels_saved(random, "active") is None
    falling = [row for arm in ("random", "active") for row in rows_of(labels, arm, {40: 0.6, 80: 0.5})]
    assert labels.labels_saved(falling, "active") is None


def test_tables_of_unfinished_benchmarks(labels: Any) -> None:
    random = rows_of(labels, "random", {40: 0.5, 320: 0.6})
    active = rows_of(labels, "active", {40: 0.6})
    found = {"strategy": "margin", "budgets": [row.as_json() for row in [*random, *active]], "saved": [], "losses": []}
    lines = labels.tables(found)
    assert lines[0] == "| judgments | random | active (margin) |"
    assert lines[2].startswith("| 40 | 0.50 [0.40, 0.60] | 0.60 [")
    assert lines[3].endswith("| – |")


def test_tables_go_between_the_marks_of_a_page(labels: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{labels.BEGIN}\nold\n{labels.END}\n\nrest\n")
    for _ in range(2):
        labels.write_tables(page, ["| a |", "|---|", ""])
    assert page.read_text() == f"# Title\n\n{labels.BEGIN}\n\n| a |\n|---|\n\n{labels.END}\n\nrest\n"
    for name in labels.PAGES:
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        assert text.index(labels.BEGIN) < text.index(labels.END)


@pytest.mark.proof
def test_every_arm_and_loss_in_small(finished_recipe: Path, tmp_path: Path, labels: Any) -> None:
    words = ("labels.py", "--small", "--runs", finished_recipe / "runs", "--folder", tmp_path / "cells", "--seeds", "0")
    results = ("--results", tmp_path / "labels.json")
    run_benchmark(*words, *results, "--case", "budgets", "--budgets", "4")
    first = json.loads((tmp_path / "labels.json").read_text())
    assert {row["arm"] for row in first["budgets"]} == set(labels.ARMS)
    manifests = {file: file.read_bytes() for file in (tmp_path / "cells").rglob("manifest.json")}
    done = run_benchmark(*words, *results, "--budgets", "4", "8")
    found = json.loads((tmp_path / "labels.json").read_text())
    assert [row["judgments"] for row in found["budgets"] if row["arm"] == "random"] == [4, 8]
    assert {row["arm"] for row in found["losses"]} == set(labels.LOSSES)
    assert {file: file.read_bytes() for file in manifests} == manifests  # what was finished was not run again
    assert "| judgments | random | active (largest_gap) | random + judge on the rest |" in done.stdout
    bought = (tmp_path / "cells" / "budgets" / "active-8-seed-0" / "labels" / "final" / "preferences.jsonl").read_text()
    assert bought.count('"kind":"simulated"') + bought.count('"kind": "simulated"') > 0
