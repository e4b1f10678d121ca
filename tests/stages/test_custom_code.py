"""A model with Python code of its own, for weights and tokenizer, through every stage and process; off by default."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY, TINY_TRAINING, run_here, write_config
from transformers import AutoModelForCausalLM

from preference.answer import load_policy as load_answering_policy
from tiebreak.config import TrainingConfig
from tiebreak.errors import HandoffError, ModelError
from tiebreak.models.find import find_model
from tiebreak.models.load import load_frozen_policy
from tiebreak.models.probe import probe_values
from tiebreak.models.tokenizers import load_chat, load_tokenizer
from tiebreak.runs.run import read_manifest

MODELING = """
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel, LlamaPreTrainedModel

class TwistedConfig(LlamaConfig):
    model_type = "twisted"

class TwistedForCausalLM(LlamaForCausalLM):
    config_class = TwistedConfig

    def forward(self, *args, **kwargs):
        found = super().forward(*args, **kwargs)
        if found.logits is not None:
            found.logits = found.logits * 0.5
        return found

class TwistedForSequenceClassification(LlamaForSequenceClassification):
    config_class = TwistedConfig

    def __init__(self, config):
        LlamaPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()
"""
TOKENIZATION = """
from transformers import PreTrainedTokenizerFast

class TwistedTokenizer(PreTrainedTokenizerFast):
    pass
"""
IDS = [1, 520, 9531, 198, 77, 4093, 2]


@pytest.fixture(scope="module")
def twisted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model under an architecture that transformers does not know: its logits are half as large."""
    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("code") / "twisted"))
    (folder / "modeling_twisted.py").write_text(MODELING)
    (folder / "tokenization_twisted.py").write_text(TOKENIZATION)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "Config", "AutoModelForCausalLM": "ForCausalLM"}
    names["AutoModelForSequenceClassification"] = "ForSequenceClassification"
    config |= {
        "model_type": "twisted",
        "architectures": ["TwistedForCausalLM"],
        "auto_map": {auto: f"modeling_twisted.Twisted{name}" for auto, name in names.items()},
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {
        "tokenizer_class": "TwistedTokenizer",
        "auto_map": {"AutoTokenizer": [None, "tokenization_twisted.TwistedTokenizer"]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def stage(name: str, folder: Path, *, trusted: bool = True, **values: Any) -> tuple[int, str]:
    steps = {} if name in ("sample", "evaluate") else {**TINY_TRAINING, "max_steps": 1}
    training = {**steps, "trust_remote_code": trusted}
    config = write_config(folder.with_suffix(".yaml"), output=folder, training=training, **values)
    return run_here(name, "--config", config)


@pytest.fixture(scope="module")
def trained(twisted: Path, raw_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished SFT run on it, with a merged copy."""
    folder = tmp_path_factory.mktemp("runs") / "sft"
    data = {"demonstrations": raw_data / "demonstrations.jsonl", "sampling": {"max_new_tokens": 4}}
    status, message = stage("sft", folder, policy=twisted, adapter={"r": 2, "alpha": 4}, merge=True, **data)
    assert status == 0, message[-3000:]
    return folder


def test_what_is_not_trusted_is_not_run(twisted: Path, trained: Path, raw_data: Path, tmp_path: Path) -> None:
    status, message = stage(
        "sft", tmp_path / "sft", trusted=False, policy=twisted, demonstrations=raw_data / "demonstrations.jsonl"
    )
    assert status == 1
    assert "needs its own Python code" in message
    assert "set training.trust_remote_code: true" in message
    with pytest.raises(HandoffError, match=r"was trained with code from .*twisted: read it, and set"):
        find_model(str(trained))


def test_a_model_with_code_of_its_own_is_trained_verified_and_sampled(trained: Path, twisted: Path) -> None:
    """The fresh process ran the same code: it answers as the training process did, and its copy as both."""
    assert read_manifest(trained)["probe_difference"] <= 1e-5
    assert len((trained / "samples.jsonl").read_text().splitlines()) > 0
    assert {one["state"] for one in json.loads((trained / "reports.json").read_text()).values()} == {"done"}
    saved = json.loads((trained / "final" / "probe.json").read_text())
    merged = AutoModelForCausalLM.from_pretrained(trained / "final" / "merged", trust_remote_code=True)
    assert type(merged).__name__ == "TwistedForCausalLM"
    assert probe_values(merged, saved["input_ids"]) == pytest.approx(saved["values"], abs=1e-4)
    source = find_model(str(trained), trust_remote_code=True)
    frozen = load_frozen_policy(source, TrainingConfig())
    assert probe_values(frozen, saved["input_ids"]) == pytest.approx(saved["values"], abs=1e-4)
    assert type(load_chat(source).tokenizer).__name__ == "TwistedTokenizer"
    plain = json.loads((twisted / "config.json").read_text())
    assert plain["model_type"] == "twisted"


def test_every_stage_runs_it(trained: Path, raw_data: Path, tmp_path: Path) -> None:
    short = {"sampling": {"max_new_tokens": 4, "temperature": 1.0}}
    preferences = {"policy": trained, "preferences": raw_data / "preferences.jsonl"}
    assert stage("dpo", tmp_path / "dpo", **preferences, **short)[0] == 0
    status, message = stage("reward", tmp_path / "reward", **preferences, garbage_prompts=1)
    assert status == 0, message[-2000:]
    judged = {"reward_model": tmp_path / "reward", "prompts": raw_data / "prompts.jsonl"}
    rollout = {"episodes_per_rollout": 2, "rollouts": 1, "ppo_epochs": 1, "stop_when_all_cut_off": False}
    status, message = stage("ppo", tmp_path / "ppo", policy=trained, **judged, **rollout, **short)
    assert status == 0, message[-2000:]
    policies = {"sft": str(trained), "ppo": str(tmp_path / "ppo")}
    answered = {"policies": policies, "split": "train", "max_prompts": 2, "sampling": {"max_new_tokens": 4}}
    status, message = stage("evaluate", tmp_path / "evaluate", **judged, **answered)
    assert status == 0, message[-2000:]
    drawn = {"prompts": raw_data / "prompts.jsonl", "max_prompts": 2, "sampling": [{"max_new_tokens": 4}]}
    assert stage("sample", tmp_path / "sample", policy=trained, **drawn)[0] == 0
    config = write_config(
        tmp_path / "report.yaml", output=tmp_path / "report", reward_model=tmp_path / "reward", trust_remote_code=True
    )
    status, message = run_here("reward", "report", "--config", config)
    assert status == 0, message[-2000:]
    assert load_answering_policy(str(trained), trust_remote_code=True).model is not None
    with pytest.raises(HandoffError, match="was trained with code from"):
        load_answering_policy(str(trained))


def test_other_code_is_another_model(trained: Path, twisted: Path) -> None:
    path = twisted / "modeling_twisted.py"
    path.write_text(MODELING.replace("0.5", "2.0"))
    try:
        with pytest.raises(HandoffError, match="is not the code it was trained with"):
            find_model(str(trained), trust_remote_code=True)
    finally:
        path.write_text(MODELING)


def test_code_is_fetched_from_the_hub_where_it_is_trusted(twisted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def download(_: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(twisted)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    find_model("someone/twisted")
    find_model("someone/twisted", trust_remote_code=True)
    assert ["*.py" in patterns for patterns in asked] == [False, True]
    with pytest.raises(ModelError, match="needs its own Python code"):
        load_tokenizer(find_model("someone/twisted"))


def test_a_forked_process_runs_it_too(trained: Path, raw_data: Path, tmp_path: Path) -> None:
    """As users start a stage: its fresh process is forked before anything is loaded."""
    training = {**TINY_TRAINING, "max_steps": 1, "trust_remote_code": True}
    config = write_config(
        tmp_path / "dpo.yaml",
        output=tmp_path / "dpo",
        policy=trained,
        preferences=raw_data / "preferences.jsonl",
        training=training,
        sampling={"max_new_tokens": 4},
    )
    command = [sys.executable, "-m", "tiebreak.command.cli", "dpo", "--config", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert read_manifest(tmp_path / "dpo")["probe_difference"] <= 1e-5
