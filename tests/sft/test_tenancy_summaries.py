"""The tenancy summaries: what they are made of, and their recipe in small."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY, read_rows, run_here

FOLDER = REPOSITORY / "data" / "tenancy-summaries"
CONFIGS = REPOSITORY / "configs" / "tenancy-summaries"
ROWS = read_rows(FOLDER / "demonstrations.jsonl")


def module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_file_is_the_one_that_its_script_writes() -> None:
    compose = module(FOLDER / "compose.py")
    assert [compose.compose(number) for number in range(compose.DOCUMENTS)] == ROWS


def test_documents_have_about_600_words_and_summaries_state_only_what_is_in_them() -> None:
    score = module(CONFIGS / "summary.py").score
    for row in ROWS:
        assert 500 < len(row["prompt"].split()) < 650
        assert set(re.findall(r"\d+", row["completion"])) <= set(re.findall(r"\d+", row["prompt"]))
        assert score(row["prompt"], row["completion"]) == 1.0
        assert score(row["prompt"], "The rent is 9999 pounds") <= 0.2
    assert len({row["prompt"] for row in ROWS}) == len(ROWS)


def test_the_recipe_in_small_measures_rouge_against_the_reference_summaries(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    ours = ("--policies", json.dumps({"sft": str(model)}), "--max-prompts", "2", "--sampling.max-new-tokens", "4")
    for stage, flags in (("prepare", ("--policy", model)), ("evaluate", ours)):
        status, err = run_here(stage, "--config", f"configs/tenancy-summaries/{stage}.yaml", *flags)
        assert status == 0, err
    kept = json.loads((tmp_path / "runs" / "tenancy-summaries" / "prepare" / "final" / "report.json").read_text())
    assert kept["counts"]["demonstrations"] == {"test": 12, "train": 32, "validation": 4}
    assert kept["lengths"]["completion_tokens"]["max"] <= 200
    answers = "".join(
        path.read_text() for path in (tmp_path / "runs" / "tenancy-summaries" / "evaluate").rglob("*.json*")
    )
    found = re.findall(r'"rouge[^"]*": ([0-9.]+)', answers)
    assert found
    assert all(0 <= float(share) <= 1 for share in found)
