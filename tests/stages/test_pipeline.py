"""The whole recipe on a tiny model: uncut, and with kill -9 in every stage; both end in the same report."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recipe import STAGES, write_recipe
from support import REPOSITORY, read_rows, run_command, run_here, write_config, write_rows

from tiebreak.command.pipeline import PipelineConfig, stage_words


def test_data_may_not_contain_what_the_recipe_evaluates_on(tmp_path: Path) -> None:
    """The test set of another evaluation is kept out of the training data; that of the data itself has a split."""
    shared = "Why do the lower leaves of my lettuce turn yellow after ten days of rain in May?"
    write_rows(tmp_path / "bench.jsonl", [{"prompt": shared}])
    asked = [shared, *(f"How often do I feed crop number {n} in summer?" for n in range(9))]
    own = write_rows(tmp_path / "own.jsonl", [{"prompt": text} for text in asked])
    output = tmp_path / "prepare"
    steps = {"steps": ["contamination"], "demonstrations": [], "tracking": {"mode": "disabled"}}
    write_config(tmp_path / "prepare.yaml", output=output, prompts=[str(own)], **steps)
    stages = [{"stage": "prepare", "config": str(tmp_path / "prepare.yaml")}]
    for n, prompts in enumerate((tmp_path / "bench.jsonl", output, own)):
        keys = {"output": tmp_path / f"evaluate-{n}", "policies": {"sft": "m"}, "prompts": prompts}
        file = write_config(tmp_path / f"evaluate-{n}.yaml", **keys)
        stages.append({"stage": "evaluate", "config": str(file)})
    config = PipelineConfig.model_validate({"name": "n", "stages": stages})
    words = stage_words(config.stages[0], config)
    assert words[2:] == ["--contamination.against", json.dumps([str(tmp_path / "bench.jsonl")])]
    assert stage_words(config.stages[1], config) == ["--config", stages[1]["config"]]
    status, message = run_here("prepare", *words)
    assert status == 0, message
    [dropped] = read_rows(output / "final" / "dropped.jsonl")
    assert shared in json.dumps(dropped)
    assert "bench.jsonl" in json.dumps(dropped)


def start(recipe: Path) -> subprocess.Popen[bytes]:
    with (recipe.parent / "killed.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tiebreak.command.cli", "run", "--config", str(recipe)],
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )


def kill_once_there(recipe: Path, marker: str) -> bool:
    """Start the recipe and kill -9 all of it as soon as a file like `marker` is there; False if it ended first."""
    process = start(recipe)
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        if any((recipe.parent / "runs").glob(marker)):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    raise TimeoutError(f"{marker} never came: {(recipe.parent / 'killed.log').read_text()[-3000:]}")


def report(folder: Path) -> dict[str, object]:
    values = json.loads((folder / "runs" / "compare" / "report.json").read_text())
    values.pop("timings")
    return values


def test_the_report_has_every_policy(finished_recipe: Path) -> None:
    policies = json.loads((finished_recipe / "runs" / "compare" / "report.json").read_text())["policies"]
    assert list(policies) == ["base", "sft", "dpo", "ppo"]
    for name, figures in policies.items():
        assert figures["n_prompts"] == 4
        assert 0.0 <= figures["rubric_mean"] <= 1.0
        assert (figures["win_rate_vs_sft"] is None) == (name == "sft")
    assert policies["sft"]["kl_per_sequence"] == pytest.approx(0.0, abs=1e-3)
    assert (finished_recipe / "runs" / "compare" / "report.html").stat().st_size > 10_000


def test_a_second_run_skips_every_stage_and_says_why(finished_recipe: Path) -> None:
    result = run_command("run", "--config", finished_recipe / "pipeline.yaml")
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stderr.count("up to date, skipped") == len(STAGES)
    assert result.stderr.count("saved: ") == 1, "the recipe's last lines alone: no stage was started"


def test_a_changed_key_is_not_overwritten_in_silence(
    finished_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "changed.yaml"
    recipe.write_text(
        (finished_recipe / "pipeline.yaml").read_text().replace("simulate.error_rate: 0.9", "simulate.error_rate: 0.8")
    )
    before = (finished_recipe / "runs" / "label" / "manifest.json").read_bytes()
    monkeypatch.chdir(REPOSITORY)
    status, message = run_here("run", "--config", recipe)
    assert status == 1
    assert "label" in message
    assert "--replace" in message
    assert (finished_recipe / "runs" / "label" / "manifest.json").read_bytes() == before


MARKERS = (
    "sft/checkpoints/checkpoint-1/COMPLETE",
    "sample/partial/*/00001.json",
    "label/run.json",
    "reward/checkpoints/checkpoint-2/COMPLETE",
    "dpo/checkpoints/checkpoint-1/trainer_state.json",
    "ppo/checkpoints/checkpoint-2/COMPLETE",
    "evaluate/partial/answers-of-dpo/*.json",
)


@pytest.mark.parametrize("stages", ["dpo and evaluate", pytest.param("all", marks=pytest.mark.proof)])
def test_kill_9_in_a_stage_ends_in_the_same_report(
    finished_recipe: Path, tmp_path: Path, tiny_model: Path, stages: str
) -> None:
    """While a checkpoint is written, and while answers are; `make kills` does it at random moments."""
    recipe = write_recipe(tmp_path, tiny_model)
    markers = MARKERS
    if stages != "all":
        markers = MARKERS[4::2]
        unfinished = shutil.ignore_patterns("dpo", "evaluate", "compare")
        shutil.copytree(finished_recipe / "runs", tmp_path / "runs", ignore=unfinished)
    killed = [marker for marker in markers if kill_once_there(recipe, marker)]
    assert len(killed) >= len(markers) - 1, f"only {killed} were cut off"
    result = run_command("run", "--config", recipe, timeout=1700)
    assert result.returncode == 0, result.stderr[-6000:]
    assert report(tmp_path) == report(finished_recipe)
