"""A new trained stage is a module (toy_stage.py) and an entry: the command line, recipes, inspect and compare have it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import REPOSITORY, TINY_TRAINING, run_here, succeed, write_config
from toy_stage import TOY

from evaluation.compare.curves import read_panels
from evaluation.compare.settings import training_settings
from evaluation.compare.words import label
from tiebreak.command.cli import help_page, main
from tiebreak.models.find import find_model
from tiebreak.runs.run import read_manifest, read_metrics
from tiebreak.stages import STAGES


@pytest.fixture
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, TOY.name, TOY)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, raw_data: Path) -> Path:
    """A recipe of the new stage, run by the command line in processes that have it among their stages."""
    folder = tmp_path_factory.mktemp("toy")
    stage = write_config(
        folder / "toy.yaml",
        output=folder / "runs" / "toy",
        policy=tiny_model,
        preferences=raw_data / "preferences.jsonl",
        adapter={"r": 4, "alpha": 8},
        training={**TINY_TRAINING, "max_steps": 3, "eval_steps": 3},
    )
    config = write_config(
        folder / "pipeline.yaml", name="toy", group="toy", stages=[{"stage": "toy", "config": str(stage)}]
    )
    (folder / "sitecustomize.py").write_text("from toy_stage import register\nregister()\n")
    paths = os.pathsep.join(map(str, (folder, REPOSITORY, REPOSITORY / "tests")))
    succeed("run", "--config", config, environment={"PYTHONPATH": paths})
    return folder


def test_it_trains_to_a_finished_run_that_others_read(recipe: Path) -> None:
    folder = recipe / "runs" / "toy"
    manifest = read_manifest(folder)
    assert (manifest["stage"], set(manifest["inputs"])) == ("toy", {"policy", "preferences"})
    assert manifest["probe_difference"] <= 1e-5
    assert set(manifest["metrics"]) == {"loss", "eval_loss"}
    assert manifest["counts"] == {"train": 20, "validation": 4}
    losses = [row["loss"] for row in read_metrics(folder) if "loss" in row]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert find_model(str(folder)).stage == "toy"


@pytest.mark.usefixtures("_registered")
def test_help_recipes_inspect_and_compare_read_its_entry(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recipe / "runs" / "toy"
    assert f"  {TOY.name} " in help_page()
    main(["toy", "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: tiebreak toy --config FILE [--key value …] [--accelerate NAME]")
    assert "--side chosen|rejected" in shown
    status, message = run_here("run", "--config", recipe / "pipeline.yaml")
    assert (status, "up to date" in message) == (0, True)
    status, message = run_here("toy", "--config", recipe / "toy.yaml")
    assert (status, "nothing to do" in message) == (0, True)
    assert run_here("toy", "--config", recipe / "toy.yaml", "--side", "both")[0] == 2
    assert run_here("inspect", folder)[0] == 0
    main_figures, _ = read_panels(read_metrics(folder), "toy")
    assert [panel.title for panel in main_figures] == ["Loss of chosen answers"]
    assert [curve.key for curve in main_figures[0].curves] == ["loss", "eval_loss"]
    settings = training_settings(read_manifest(folder))
    assert (settings["side imitated"], settings["learning rate"], settings["adapter r"]) == ("chosen", 1e-3, 4)
    assert label("toy") == "Toy"


def test_without_its_entry_it_is_no_stage(recipe: Path) -> None:
    assert "toy" not in STAGES
    status, message = run_here("run", "--config", recipe / "pipeline.yaml")
    assert status == 2
    assert "no such stage: toy" in message
