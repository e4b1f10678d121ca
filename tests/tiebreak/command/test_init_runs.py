"""A recipe that `tiebreak init` writes runs to its report as it is.

The finished recipe of the other tests is one that it writes from prompts with answers, with simulated raters.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from support import run_here, write_rows
from transformers import AutoModelForCausalLM

from labeling_ui.configuration import LabelConfig
from labeling_ui.label import add_pairs, read_some_pairs
from labeling_ui.store.store import Store, Submission
from tiebreak.command.pipeline import PipelineConfig, StageEntry, config_class
from tiebreak.config import load_config

QUESTIONS = ("Why are my {} leaves pale?", "How often do I feed {}?")
CROPS = ("basil", "lettuce", "mint", "tomato", "pepper", "kale")


def rows(answered: bool) -> list[dict[str, str]]:
    asked = [{"prompt": text.format(crop)} for text in QUESTIONS for crop in CROPS]
    return [{**one, "completion": f"Light, {n}."} for n, one in enumerate(asked)] if answered else asked


def start_here(entry: StageEntry, words: list[str], _: dict[str, str]) -> int:
    """A stage, in this process, which has imported what stages import."""
    status, message = run_here(*words)
    assert status == 0, f"{entry.stage}: {message[-3000:]}"
    return status


def judge_all(config: LabelConfig) -> None:
    """As many raters as the recipe asks for, who all prefer the longer answer."""
    store = Store.open(config.store_url, create=True)
    add_pairs(store, config, read_some_pairs(config))
    for number in range(config.overlap):
        rater = store.add_rater(f"rater {number}").id
        while (given := store.claim(rater)) is not None:
            lengths = {one.id: len(one.text) for one in given.pair.completions}
            answer = 2 if lengths[given.right_id] > lengths[given.left_id] else -2
            store.submit(rater, Submission(client_id=given.item_id, pair_id=given.item_id, answer=answer))
    store.close()


@pytest.fixture
def terse(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with a large weight for the end of a turn: its answers end, at random, before they are cut off."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "terse"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[model.config.eos_token_id] *= 6
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("answered", "raters"),
    [
        (False, "people"),
        pytest.param(True, "people", marks=pytest.mark.proof),
        pytest.param(False, "simulated", marks=pytest.mark.proof),
    ],
)
def test_a_recipe_runs_to_its_report(
    answered: bool, raters: str, terse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tiebreak.command.pipeline._in_a_process", start_here)
    write_rows(Path("rows.jsonl"), rows(answered))
    assert run_here("init", "mine", "--data", "rows.jsonl", "--raters", raters, "--policy", terse)[0] == 0
    run = ("run", "--config", "mine/pipeline.yaml")
    status, message = run_here(*run)
    assert status == 0, message
    if raters == "people":
        assert not Path("runs/mine/label").exists()
        judge_all(load_config(LabelConfig, ["--config", "mine/label.yaml"], "label"))
        assert run_here("label", "export", "--config", "mine/label.yaml")[0] == 0
        status, message = run_here(*run)
        assert status == 0, message
        assert message.count("up to date, skipped") == 3 + answered  # prepare, sft if answered, sample and label
    report = json.loads(Path("runs/mine/compare/report.json").read_text())
    assert list(report["policies"]) == ["base", *["sft"] * answered, "dpo", "ppo"]
    assert Path("runs/mine/compare/report.html").is_file()


@pytest.mark.parametrize("raters", ["people", "simulated"])
@pytest.mark.parametrize("answered", [False, True])
def test_every_recipe_names_stages_that_take_their_files(
    answered: bool, raters: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(Path("rows.jsonl"), rows(answered))
    status, message = run_here("init", "mine", "--data", "rows.jsonl", "--raters", raters, "--policy", tiny_model)
    assert status == 0, message
    recipe = load_config(PipelineConfig, ["--config", "mine/pipeline.yaml"], "run")
    assert ("sft" in [entry.stage for entry in recipe.stages]) == answered
    assert {f"{entry.stage}.yaml" for entry in recipe.stages} == {file.name for file in Path("mine").iterdir()} - {
        "pipeline.yaml"
    }
    configs = {e.stage: load_config(config_class(e.stage), ["--config", e.config], e.stage) for e in recipe.stages}
    assert configs["label"].simulated == (raters == "simulated")
    status, message = run_here("prepare", "--config", "mine/prepare.yaml")
    assert status == 0, message
    made = "demonstrations" if answered else "prompts"
    assert len(Path(f"runs/mine/prepare/final/{made}.jsonl").read_text().splitlines()) == len(rows(answered))
