"""What a recipe lays over its stages' files, and that it finds a stage's folder in the state that the stage finds it in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import REPOSITORY, run_here, write_config, write_rows

from tiebreak.command.pipeline import PipelineConfig, StageEntry, config_class, group_of, stage_state, stage_words
from tiebreak.config import load_config
from tiebreak.runs.run import read_manifest

MODEL = "bundled:smollm2-135m-instruct"
FILES: dict[str, dict[str, Any]] = {
    "prepare": {"output": "runs/a/prepare", "prompts": ["data/prompts.jsonl"]},
    "sft": {"output": "runs/a/sft", "policy": MODEL, "demonstrations": "runs/a/prepare"},
    "sample": {"output": "runs/a/sample", "policy": "runs/a/sft", "prompts": "runs/a/prepare"},
    "label": {
        "output": "runs/a/label",
        "pairs": "runs/a/sample",
        "store": "sqlite:///runs/a/labels.sqlite",
        "simulate": {"raters": 2},
    },
    "reward": {"output": "runs/a/reward", "policy": "runs/a/sft", "preferences": "runs/a/label"},
    "dpo": {
        "output": "runs/a/dpo",
        "policy": "./runs/a/sft/",
        "preferences": "runs/a/label",
        "guard": {"reward_model": "runs/a/reward"},
    },
    "ppo": {
        "output": "runs/a/ppo",
        "policy": "runs/a/sft",
        "prompts": "runs/a/prepare",
        "rewards": [{"model": "runs/a/reward"}, {"model": "runs/ab/reward", "weight": 0.5}],
    },
    "evaluate": {
        "output": "runs/a/evaluate",
        "policies": {"base": MODEL, "sft": "runs/a/sft", "dpo-2.1": "runs/a/dpo"},
        "prompts": "runs/a/prepare",
    },
    "compare": {"output": "runs/a/compare", "evaluation": "runs/a/evaluate", "against": ["runs/a/evaluate-2"]},
}
"""a file of each stage that names no seed"""


def resolved(folder: Path, stage: str, overrides: dict[str, Any] | None = None, **recipe: Any) -> dict[str, Any]:
    """A stage's configuration as the words of a recipe make it."""
    file = write_config(folder / f"{stage}.yaml", **FILES[stage])
    entry = StageEntry(stage=stage, config=str(file), overrides=overrides or {})
    config = PipelineConfig(name="test", stages=[entry], **recipe)
    return load_config(config_class(stage), stage_words(entry, config), stage).model_dump(mode="json")


def at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[int(part) if part.isdigit() and isinstance(values, list) else part]
    return values


SEEDS = {
    "sft": ["training.seed"],
    "sample": ["seed"],
    "label": ["seed", "simulate.seed"],
    "reward": ["training.seed"],
    "dpo": ["training.seed"],
    "ppo": ["training.seed"],
    "evaluate": ["seed"],
    "prepare": [],
    "compare": [],
}


@pytest.mark.parametrize("stage", FILES)
def test_the_seed_reaches_every_stage_whether_or_not_its_file_names_one(tmp_path: Path, stage: str) -> None:
    values, before = resolved(tmp_path, stage, seed=7), resolved(tmp_path, stage)
    for key in SEEDS[stage]:
        assert at(values, key) == 7, key
        assert at(before, key) == 0
    changed = json.dumps(values).count("7") - json.dumps(before).count("7")
    assert changed == len(SEEDS[stage])  # and nothing else


def test_the_seed_keeps_the_split_and_what_is_not_simulated(tmp_path: Path) -> None:
    """Two seeds hold out the same prompts, or their figures could not be compared; no raters are made up."""
    assert at(resolved(tmp_path, "prepare", seed=7), "split.seed") == 0
    assert resolved(tmp_path, "label", {"simulate": False}, seed=7)["simulate"]["enabled"] is False
    by_people = {key: value for key, value in FILES["label"].items() if key != "simulate"}
    file = write_config(tmp_path / "people.yaml", **by_people)
    entry = StageEntry(stage="label", config=str(file))
    words = stage_words(entry, PipelineConfig(name="test", stages=[entry], seed=7))
    assert load_config(config_class("label"), words, "label").model_dump()["simulate"] is None


ROOTED = {
    "prepare": {"output": "b/prepare", "prompts.0": "data/prompts.jsonl"},
    "sft": {"output": "b/sft", "policy": MODEL, "demonstrations": "b/prepare"},
    "sample": {"output": "b/sample", "policy": "b/sft", "prompts": "b/prepare"},
    "label": {"output": "b/label", "pairs": "b/sample", "store": "sqlite:///b/labels.sqlite"},
    "reward": {"output": "b/reward", "policy": "b/sft", "preferences": "b/label"},
    "dpo": {"output": "b/dpo", "policy": "b/sft", "guard.reward_model": "b/reward"},
    "ppo": {"rewards.0.model": "b/reward", "rewards.1.model": "runs/ab/reward", "rewards.1.weight": 0.5},
    "compare": {"output": "b/compare", "evaluation": "b/evaluate", "against.0": "b/evaluate-2"},
}


@pytest.mark.parametrize("stage", ROOTED)
def test_the_root_moves_every_path_and_nothing_else(tmp_path: Path, stage: str) -> None:
    values = resolved(tmp_path, stage, root="b", from_root="runs/a")
    assert {key: at(values, key) for key in ROOTED[stage]} == ROOTED[stage]
    assert "runs/a/" not in json.dumps(values)


def test_the_root_moves_mappings_and_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policies = resolved(tmp_path, "evaluate", root="b", from_root="runs/a/")["policies"]
    assert policies == {"base": MODEL, "sft": "b/sft", "dpo-2.1": "b/dpo"}
    monkeypatch.chdir(tmp_path)
    inside = {"policy": str(tmp_path / "runs" / "a" / "sft")}
    monkeypatch.setitem(FILES, "sft", FILES["sft"] | inside)
    assert resolved(tmp_path, "sft", root="b", from_root="runs/a")["policy"] == "b/sft"


def test_an_override_wins_over_seed_and_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FILES, "sft", FILES["sft"] | {"training": {"learning_rate": 0.5}})
    chosen = {"policy": "runs/a/other", "training": {"seed": 3, "max_steps": 5}}
    values = resolved(tmp_path, "sft", chosen, root="b", from_root="runs/a", seed=7)
    assert values["policy"] == "runs/a/other"
    assert values["demonstrations"] == "b/prepare"
    assert values["training"]["seed"] == 3
    assert values["training"]["max_steps"] == 5
    assert values["training"]["learning_rate"] == 0.5  # a section's other keys stay as the file has them
    policies = resolved(tmp_path, "evaluate", {"policies.sft": "mine"}, root="b", from_root="runs/a")["policies"]
    assert policies == {"base": MODEL, "sft": "mine", "dpo-2.1": "b/dpo"}


def test_a_root_needs_something_to_take_the_place_of(tmp_path: Path) -> None:
    file = write_config(tmp_path / "prepare.yaml", **FILES["prepare"])
    recipe = write_config(tmp_path / "recipe.yaml", name="r", stages=[{"stage": "prepare", "config": file}])
    status, message = run_here("run", "--config", recipe, "--root", tmp_path / "b")
    assert status == 2
    assert "from_root: missing" in message


def test_stages_of_one_process_are_refused_before_any_has_run(tmp_path: Path, raw_data: Path) -> None:
    prepare = {"output": tmp_path / "prepare", "prompts": [raw_data / "prompts.jsonl"]}
    stages = [
        {"stage": "prepare", "config": write_config(tmp_path / "prepare.yaml", **prepare)},
        {"stage": "label", "config": write_config(tmp_path / "l.yaml", **FILES["label"]), "accelerate": "cpu_zero2"},
    ]
    recipe = write_config(tmp_path / "recipe.yaml", name="r", stages=stages)
    status, message = run_here("run", "--config", recipe)
    assert status == 2
    assert "'label' runs in one process" in message
    assert not (tmp_path / "prepare").exists()


# --- a folder's state ------------------------------------------------------------------------------------------------


@pytest.fixture
def moved_recipe(finished_recipe: Path, tmp_path: Path) -> Path:
    """The finished recipe's runs, copied to another root. Its raw data and model stay."""
    shutil.copytree(finished_recipe / "runs", tmp_path / "b", ignore=shutil.ignore_patterns("wandb", "merged"))
    return tmp_path / "b"


def test_a_moved_root_is_finished_for_the_recipe_and_for_each_stage(
    finished_recipe: Path, moved_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    recipe = finished_recipe / "pipeline.yaml"
    status, message = run_here("run", "--config", recipe, "--root", moved_recipe)
    assert status == 0, message
    assert message.count("up to date, skipped") == 9
    judge = (
        f"tiebreak label --config {finished_recipe}/init/label.yaml --simulate false "
        f"--pairs {finished_recipe}/runs/sample"
    )
    assert message.splitlines()[-2:] == [
        f"saved: {moved_recipe}/compare/report.html",
        f"next: {judge} --output {finished_recipe}/runs/label-by-hand",
    ]
    given = yaml.safe_load(recipe.read_text())
    config = PipelineConfig.model_validate(given | {"root": str(moved_recipe)})
    (sft,) = (entry for entry in config.stages if entry.stage == "sft")
    status, message = run_here("sft", *stage_words(sft, config))
    assert status == 0
    assert "nothing to do" in message


def test_a_recipe_has_a_stage_make_what_its_finished_run_lacks(
    finished_recipe: Path, moved_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the stage itself does: a kill between the manifest and the reports loses none."""
    file = moved_recipe / "dpo" / "reports.json"
    reports = json.loads(file.read_text())
    reports["samples"]["state"] = "planned"
    file.write_text(json.dumps(reports))
    started: list[str] = []
    monkeypatch.setattr("tiebreak.command.pipeline._start", lambda entry, *_: started.append(entry.stage))
    monkeypatch.chdir(REPOSITORY)
    status, message = run_here("run", "--config", finished_recipe / "pipeline.yaml", "--root", moved_recipe)
    assert (status, started) == (0, ["dpo"]), message
    assert "is finished, and lacks samples" in message


def test_a_run_of_before_processes_were_recorded_is_one_of_one_process(
    moved_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = moved_recipe / "sft"
    manifest = read_manifest(folder)
    for key in ("format", "processes", "distributed", "global_batch"):
        del manifest[key]
    for one in manifest["inputs"].values():
        one.pop("path", None)
    del manifest["config"]["validation_share"]  # a key that came later, at its default
    manifest["config"]["forgotten"] = True  # and one that is gone
    (folder / "manifest.json").write_text(json.dumps(manifest))
    words = ("sft", "--config", folder / "config.resolved.yaml", "--output", folder)
    status, message = run_here(*words)
    assert (status, "nothing to do" in message) == (0, True), message
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, message = run_here(*words)
    assert status == 1
    assert "it was made on 1 process with 2 rows a step, and this command has 2 processes (ddp) with 4" in message


def test_a_finished_run_of_one_process_is_not_that_of_two(finished_recipe: Path) -> None:
    """Asked by a recipe, from the accelerate file; a launched stage finds the same by its environment (test_stages.py)."""
    folder = finished_recipe / "runs" / "sft"
    words = ["--config", str(folder / "config.resolved.yaml"), "--output", str(folder)]
    entry = StageEntry(stage="sft", config=words[1])
    assert stage_state(entry, words)[1] == "finished"
    launched = entry.model_copy(update={"accelerate": str(REPOSITORY / "configs" / "accelerate" / "cpu_zero2.yaml")})
    _, state, why = stage_state(launched, words)
    assert state == "other"
    assert "2 processes (zero2) with 4" in why


def test_replace_moves_a_cut_off_run_of_another_configuration_aside(tmp_path: Path, raw_data: Path) -> None:
    output = tmp_path / "prepare"
    config = write_config(tmp_path / "prepare.yaml", output=output, prompts=[raw_data / "prompts.jsonl"])
    recipe = write_config(tmp_path / "recipe.yaml", name="r", stages=[{"stage": "prepare", "config": config}])
    assert run_here("prepare", "--config", config, "--max-prompt-tokens", 99)[0] == 0
    (output / "manifest.json").unlink()
    (output / "run.lock").unlink()
    (output / "partial").mkdir()
    (output / "partial" / "work").touch()
    status, message = run_here("run", "--config", recipe)
    assert status == 1
    assert "max_prompt_tokens (99 there, 384 now)" in message
    status, message = run_here("run", "--config", recipe, "--replace")
    assert status == 0, message
    assert (tmp_path / "prepare.replaced-1" / "partial" / "work").is_file()
    assert read_manifest(output)["config"]["max_prompt_tokens"] == 384
    saved, following = message.splitlines()[-2:]
    assert saved.startswith(f"saved: {output}/final (")
    assert following.startswith(f"next: tiebreak sample --prompts {output} --policy ")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").touch()
    assert run_here("run", "--config", recipe, "--replace", "--stages", "[]")[0] == 2
    write_config(config, output=mine, prompts=[raw_data / "prompts.jsonl"])
    status, message = run_here("run", "--config", recipe, "--replace")
    assert status == 1
    assert "is no run folder" in message
    assert (mine / "thesis.txt").is_file()


def test_every_trial_of_a_sweep_has_a_folder_of_its_own(tmp_path: Path, raw_data: Path) -> None:
    config = write_config(
        tmp_path / "prepare.yaml", output=tmp_path / "sweep-{trial}", prompts=[raw_data / "prompts.jsonl"]
    )
    for share in (0.1, 0.2, 0.1):
        assert run_here("prepare", "--config", config, "--split.validation", share)[0] == 0
    folders = list(tmp_path.glob("sweep-*"))
    assert {read_manifest(folder)["config"]["split"]["validation"] for folder in folders} == {0.1, 0.2}
    assert len(folders) == 2
    assert "nothing to do" in run_here("prepare", "--config", folders[0] / "config.resolved.yaml")[1]


def test_a_conflict_in_a_sweep_says_how_trials_get_folders(
    tmp_path: Path, raw_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path / "prepare.yaml", output=tmp_path / "p", prompts=[raw_data / "prompts.jsonl"])
    assert run_here("prepare", "--config", config)[0] == 0
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    status, message = run_here("prepare", "--config", config, "--split.validation", 0.2)
    assert status == 1
    assert "write {trial} in output" in message


def test_a_yardstick_counts_by_its_source(tmp_path: Path, moved_recipe: Path) -> None:
    (tmp_path / "measures.py").write_text("def length(prompt, answer):\n    return len(answer)\n")
    values = yaml.safe_load((moved_recipe / "evaluate" / "config.resolved.yaml").read_text())
    config = write_config(tmp_path / "evaluate.yaml", **values | {"yardstick": "measures:length"})
    words = ["--config", str(config), "--output", str(tmp_path / "evaluate")]
    entry = StageEntry(stage="evaluate", config=str(config))
    assert run_here("evaluate", *words)[0] == 0
    assert stage_state(entry, words)[1] == "finished"
    (tmp_path / "measures.py").write_text("def length(prompt, answer):\n    return -len(answer)\n")
    _, state, why = stage_state(entry, words)
    assert state == "other"
    assert "(yardstick)" in why
    status, message = run_here("evaluate", *words)
    assert status == 1
    assert "its inputs are not (yardstick)" in message


def test_data_that_changed_are_seen_by_both(tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"Question {n} about plants?"}]} for n in range(20)]
    data = write_rows(tmp_path / "prompts.jsonl", rows)
    config = write_config(tmp_path / "prepare.yaml", output=tmp_path / "p", prompts=[data])
    assert run_here("prepare", "--config", config)[0] == 0
    write_rows(data, rows[:-1])
    _, state, why = stage_state(StageEntry(stage="prepare", config=str(config)), ["--config", str(config)])
    status, message = run_here("prepare", "--config", config)
    assert (state, status) == ("other", 1)
    assert why in message


def test_a_recipe_without_a_root_keeps_its_group_beside_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing in the folder that it is started from."""
    monkeypatch.chdir(tmp_path)
    stages = [
        StageEntry(stage=name, config=str(write_config(tmp_path / f"{name}.yaml", **FILES[name]))) for name in FILES
    ]
    before = {*tmp_path.iterdir()}
    recipe = PipelineConfig(name="mine", stages=stages)
    group = group_of(recipe)
    assert group.startswith("mine-")
    assert (tmp_path / "runs" / "a" / "group").read_text() == group == group_of(recipe)
    assert {*tmp_path.iterdir()} - before == {tmp_path / "runs"}
    assert group_of(PipelineConfig(name="one", stages=stages[1:2])) == group  # the same folder
