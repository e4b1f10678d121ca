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
    level = [row for arm in ("random", "active") for row in rows_of(labels, arm, {4: 0.46, 8: 0.46})]
    assert labels.labels_saved(level, "active") is None  # whatever the rounding of its slope


def test_tables_of_unfinished_benchmarks(labels: Any) -> None:
    random = rows_of(labels, "random", {40: 0.5, 320: 0.6})
    active = rows_of(labels, "active", {40: 0.6})
    budgets = [row.as_json() for row in [*random, *active]]
    found = {"strategy": "margin", "answers": 1, "budgets": budgets, "saved": [], "losses": [], "missing": []}
    lines = labels.tables(found)
    unfinished = labels.tables({**found, "missing": ["budgets/active-320-seed-0"]})
    assert unfinished == ["Not finished, and so not counted: budgets/active-320-seed-0.", "", *lines]
    assert lines[0] == "| judgments | random | active (margin) |"
    assert lines[2].startswith("| 40 | 0.50 [0.40, 0.60] | 0.60 [")
    assert lines[3].endswith("| – |")
    assert lines[-1].startswith("1 answer of each policy to each of 100 test prompts, against 4 of SFT")


def test_tables_go_between_the_marks_of_a_page(labels: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{labels.BEGIN}\nold\n{labels.END}\n\nrest\n")
    for _ in range(2):
        labels.write_tables(page, ["| a |", "|---|", ""])
    assert page.read_text() == f"# Title\n\n{labels.BEGIN}\n\n| a |\n|---|\n\n{labels.END}\n\nrest\n"
    for name in labels.PAGES:
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        assert text.index(labels.BEGIN) < text.index(labels.END)


def answers_of(folder: Path, scores: dict[str, list[float]], **facts: Any) -> None:
    """An evaluation that is finished."""
    rows = [{"prompt_id": prompt, "yardstick_score": score} for prompt, each in scores.items() for score in each]
    (folder / "final").mkdir(parents=True)
    (folder / "final" / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "manifest.json").write_text(json.dumps({"stage": "evaluate", **facts}))


def test_every_answer_of_a_prompt_meets_every_one_of_sft(labels: Any, tmp_path: Path) -> None:
    """At prompt a, .8 wins 2 of 4 and ties one, .2 ties one and loses 3: (2.5 + .5)/8. At b, both win all."""
    world = labels.World(tmp_path, tmp_path, budgets=(4, 8))
    cell = labels.Cell("budgets", "random", "8", 0)
    assert labels.read_outcomes(cell, world) is None
    answers_of(tmp_path / "sft", {"b": [0.0, 0.0], "a": [0.2, 0.5, 0.8, 0.9]})
    answers_of(tmp_path / cell.name / "evaluate-1", {"b": [1.0, 0.5], "a": [0.8, 0.2]}, seconds=1.0)
    assert labels.read_outcomes(cell, world).tolist() == pytest.approx([3.0 / 8, 1.0])
    judged = labels.Cell("budgets", "judge", "8", 0)  # of the largest budget, people judge every pair
    assert labels.read_outcomes(judged, world).tolist() == labels.read_outcomes(cell, world).tolist()
    assert labels.missing(world, [0]) == [
        f"budgets/{name}-seed-0" for name in ("random-4", "active-4", "judge-4", "active-8")
    ]


def test_other_settings_have_other_cells(labels: Any, tmp_path: Path) -> None:
    """What one command finished is not counted for another: other strategies, judges of more pairs, other answers."""
    active, judge = (labels.Cell("budgets", arm, "4", 0) for arm in ("active", "judge"))

    def places(**settings: Any) -> list[Path]:
        world = labels.World(tmp_path, tmp_path, **settings)
        return [world.evaluate_of(cell) for cell in (active, judge)]

    usual, margin = places(), places(strategy="margin")
    fewer, twice = places(budgets=(4, 8)), places(answers=2)
    assert (margin[0] == usual[0], margin[1] == usual[1]) == (False, True)
    assert (fewer[0] == usual[0], fewer[1] == usual[1]) == (True, False)
    assert not {*usual} & {*twice}
    assert twice[0].parent == usual[0].parent  # the same policy, answering more often


def test_no_cell_starts_that_would_end_too_late(
    labels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Times come from finished cells: of 1,000 s for answers, only the first cell is begun within 500 s."""
    world = labels.World(tmp_path, tmp_path / "cells", budgets=(4,))
    clock = [0.0]

    def run_cell(cell: Any, world: Any) -> None:
        clock[0] += 100
        answers_of(world.folder / cell.name / "evaluate-1", {"a": [1.0]}, seconds=1000.0)

    answers_of(world.folder / "sft", {"a": [0.0]})
    monkeypatch.setattr(labels, "run", lambda stages: None)
    monkeypatch.setattr(labels, "run_cell", run_cell)
    monkeypatch.setattr(labels.time, "monotonic", lambda: clock[0])
    assert len(labels.plan(["budgets"], world, [0, 1]).cells) == 4
    labels.run_cells(["budgets"], world, [0, 1], tmp_path / "labels.json", 500.0)
    found = json.loads((tmp_path / "labels.json").read_text())
    assert [(row["arm"], row["seeds"]) for row in found["budgets"]] == [("random", [1.0]), ("judge", [1.0])]
    assert "time is up: 3 cells are left" in capsys.readouterr().err
    assert len(found["missing"]) == 4  # the judge's cell of seed 1 is one with the random one


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
