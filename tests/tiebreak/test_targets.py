"""Which modules an adapter may be put on."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from small_models import ARCHITECTURES
from support import run_here
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tiebreak.config import AdapterConfig
from tiebreak.errors import ConfigError
from tiebreak.targets import require_frozen_head, require_targets


def llama() -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_config(ARCHITECTURES["llama"]())
    return model


def refused(model: nn.Module, targets: str | list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        require_targets(model, AdapterConfig(target_modules=targets))
    return str(caught.value)


def test_a_name_that_matches_nothing_is_refused_beside_one_that_does() -> None:
    message = refused(llama(), ["q_proj", "v_porj"])
    assert "LlamaForCausalLM has no module 'v_porj'" in message
    assert "did you mean v_proj" in message
    assert "q_proj'" not in message


def test_every_wrong_name_is_listed() -> None:
    message = refused(llama(), ["c_attn", "query_key_value"])
    assert "'c_attn'" in message
    assert "'query_key_value'" in message
    assert "down_proj" in message  # the names there are


def test_a_block_is_no_layer() -> None:
    message = refused(llama(), ["mlp"])
    assert "'mlp' names model.layers.0.mlp, a LlamaMLP" in message
    assert "its layers are down_proj, gate_proj, up_proj" in message


@pytest.mark.parametrize(
    "targets", [["q_proj", "v_proj"], r".*\.(q|v)_proj", "all-linear", ["layers.0.self_attn.q_proj"]]
)
def test_what_peft_takes_is_taken(targets: str | list[str]) -> None:
    require_targets(llama(), AdapterConfig(target_modules=targets))


def test_a_name_given_as_a_pattern() -> None:
    assert "give a list for names" in refused(llama(), "q_proj")
    assert "not a regular expression" in refused(llama(), "*_proj")


def test_the_head_is_refused_as_it_would_not_train() -> None:
    for targets in (["q_proj", "lm_head"], ".*head"):
        assert "names lm_head, the language-model head" in refused(llama(), targets)


def test_a_policy_with_an_adapter_on_its_head_is_not_trained_on() -> None:
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["lm_head"]))
    with pytest.raises(ConfigError, match="elsewhere has an adapter on its language-model head"):
        require_frozen_head(model, "elsewhere")
    require_frozen_head(get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"])), "elsewhere")


def test_a_reward_models_head_is_trained_whole() -> None:
    model = AutoModelForSequenceClassification.from_config(ARCHITECTURES["llama"]())
    assert "no module 'lm_head'" in refused(model, ["q_proj", "lm_head"])
    assert "'score' is the score head" in refused(model, ["q_proj", "score"])


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward"])
def test_through_the_command_line(stage: str, tiny_model: Path, raw_data: Path, tmp_path: Path) -> None:
    source = ("--demonstrations", "demonstrations.jsonl") if stage == "sft" else ("--preferences", "preferences.jsonl")
    status, message = run_here(
        *(stage, "--output", tmp_path / "out", "--policy", tiny_model, source[0], raw_data / source[1]),
        *("--tracking.mode", "disabled", "--adapter.target_modules", "[q_proj, v_porj]"),
    )
    assert status == 2
    assert "has no module 'v_porj'" in message
    assert "did you mean v_proj" in message
    assert not (tmp_path / "out" / "manifest.json").exists()
