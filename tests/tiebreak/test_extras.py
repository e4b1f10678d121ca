"""`pip install tiebreak` alone serves raters, exports and compares: without the training packages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from recipe import without_training_packages
from support import REPOSITORY

from tiebreak.extras import INSTALL, TRAINING_PACKAGES, missing_training_package

WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys(%r))
runpy.run_module("tiebreak", run_name="__main__", alter_sys=True)
"""


def bare(*words: str | Path, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """`tiebreak …` in a process that cannot import a training package."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT % (TRAINING_PACKAGES,), *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_labels_are_made_exported_and_compared(finished_recipe: Path, tmp_path: Path) -> None:
    without_training_packages(lambda *words: bare(*words), finished_recipe / "runs", tmp_path)


def test_other_commands_that_hold_no_model(finished_recipe: Path, tmp_path: Path) -> None:
    runs = finished_recipe / "runs"
    store = f"sqlite:///{shutil.copytree(runs / 'label', tmp_path / 'label')}/store/labels.sqlite"
    for words in (
        ["--help"],
        ["dpo", "--help"],
        ["init", tmp_path / "mine"],
        ["inspect", runs / "compare", "--chain"],
        ["label", "status", "--store", store],
        ["label", "verify", "--store", store],
        ["raters", "list", "--store", store],
    ):
        result = bare(*words)
        assert (result.returncode, result.stderr) == (0, ""), words
    shown = bare("data", "data/hydroponics/prompts.jsonl")
    assert shown.returncode == 0
    assert f"not rendered: that takes the training packages: {INSTALL}" in shown.stdout


@pytest.mark.parametrize("stage", ["sft", "sample", "reward", "dpo", "ppo", "evaluate"])
def test_a_stage_with_a_model_says_in_a_sentence_what_to_install(stage: str, tmp_path: Path) -> None:
    result = bare(stage, "--config", f"configs/quickstart/{stage}.yaml", "--output", tmp_path / stage)
    assert result.returncode == 1
    assert result.stderr == (
        f"error: 'tiebreak {stage}' needs the training packages, which are not installed: {INSTALL}\n"
    )
    assert not (tmp_path / stage).exists()


def test_a_package_that_is_missed_only_later(tmp_path: Path) -> None:
    words = ("--prompts", "data/hydroponics/prompts.jsonl", "--output", tmp_path / "run", "--tracking.mode", "disabled")
    result = bare("prepare", *words)
    assert result.returncode == 1
    assert re.search(rf"^error: \w+ is not installed: {re.escape(INSTALL)}$", result.stderr, re.MULTILINE)


def test_a_missing_package_of_another_kind_is_another_fault() -> None:
    assert missing_training_package(ModuleNotFoundError("No module named 'x'", name="x")) == ""
    assert missing_training_package(ImportError("torch is broken")) == ""
    deep = ModuleNotFoundError("No module named 'torch.x'", name="torch.x")
    assert missing_training_package(deep) == f"torch is not installed: {INSTALL}"


def test_the_extra_is_the_list() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=;~ ]", entry)[0] for entry in project["optional-dependencies"]["train"]}
    assert names | {"tokenizers"} == set(TRAINING_PACKAGES)  # tokenizers comes with transformers
    assert not names & {re.split(r"[<>=;~ \[]", entry)[0] for entry in project["dependencies"]}
