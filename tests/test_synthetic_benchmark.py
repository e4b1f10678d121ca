"""The benchmark of synthetic rows: a table by hand, and a small run that is stopped and continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY
from test_benchmark import run_benchmark


@pytest.fixture
def synthetic(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import synthetic as benchmark

    return benchmark


def test_a_table_of_unfinished_cells(synthetic: Any) -> None:
    figures = synthetic._figures("real", 27, [{"a": 0.2, "b": 0.6}, {"a": 0.4, "b": 0.8}])
    assert (figures["mean"], figures["seeds"], figures["prompts"]) == (0.5, [0.4, 0.6], 2)
    lines = list(synthetic.table({"cells": [figures]}))
    assert lines[0] == "| rows of each kind | real alone | synthetic alone | both |"
    assert lines[2].startswith("| 27 | 0.500 [")
    assert lines[2].endswith("| – | – |")
    text = (REPOSITORY / synthetic.PAGE).read_text(encoding="utf-8")
    assert text.index(synthetic.BEGIN) < text.index(synthetic.END)


def test_rows_of_a_cell(synthetic: Any, tmp_path: Path) -> None:
    """A smaller cell's rows are among a larger one's; held-out rows are in all, and are real."""
    world = synthetic.World(tmp_path / "prepare", tmp_path, "m")
    for folder, kind, rows in ((world.prepared, "real", 9), (world.made, "made", 7)):
        (folder / "final").mkdir(parents=True)
        lines = [
            {"prompt": {"id": f"{kind}-{n}", "split": "train" if n < 6 or kind == "made" else "validation"},
             "completion": "c"}
            for n in range(rows)
        ]  # fmt: skip
        (folder / "final" / "demonstrations.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in lines))

    def ids(source: str, size: int, seed: int = 0) -> list[str]:
        return [row["prompt"]["id"] for row in synthetic.rows_of(synthetic.Cell(source, size, seed), world)]

    assert ids("real", 2)[:3] == ["real-6", "real-7", "real-8"]
    assert set(ids("real", 2)) < set(ids("real", 5))
    assert ids("both", 4)[3:] == ids("real", 4)[3:] + ids("synthetic", 4)[3:]
    assert ids("synthetic", 4) != ids("synthetic", 4, seed=1)
    with pytest.raises(SystemExit, match="only 6 rows"):
        ids("real", 7)


@pytest.mark.proof
def test_a_small_run_that_is_stopped_and_continued(finished_recipe: Path, tiny_model: Path, tmp_path: Path) -> None:
    words = (
        "synthetic.py",
        "--small",
        "--runs",
        finished_recipe / "runs",
        "--folder",
        tmp_path / "cells",
        "--seeds",
        "0",
    )
    words = (*words, "--sizes", "2", "--writer", tiny_model, "--policy", tiny_model, "--results", tmp_path / "s.json")
    run_benchmark(*words, "--minutes", "0")
    assert json.loads((tmp_path / "s.json").read_text())["cells"] == []
    done = run_benchmark(*words)
    assert "| 2 | 0." in done.stdout
    found = json.loads((tmp_path / "s.json").read_text())["cells"]
    assert [one["source"] for one in found] == ["real", "synthetic", "both"]
    manifests = {file: file.read_bytes() for file in (tmp_path / "cells").rglob("manifest.json")}
    run_benchmark(*words)
    assert {file: file.read_bytes() for file in manifests} == manifests
