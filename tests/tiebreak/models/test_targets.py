"""Which modules an adapter may be put on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from small_models import ARCHITECTURES, SIZES
from support import TINY_TRAINING, run_here, write_config
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    MambaConfig,
    MambaForCausalLM,
)

from tiebreak.config import AdapterConfig
from tiebreak.config.adapter import lora_config
from tiebreak.errors import ConfigError
from tiebreak.models.adapters.targets import ModelLayers, require_frozen_head, require_targets
from tiebreak.runs.run import read_manifest


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


def adapted(model_type: str, **settings: Any) -> set[str]:
    """The last parts of the names of what `all-linear` adapts."""
    values = {**SIZES, "num_key_value_heads": 2, "head_dim": 4, **settings}
    values = {key: value for key, value in values.items() if value is not None or key.endswith("_id")}
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values))
    model = get_peft_model(base, LoraConfig(**lora_config(AdapterConfig(r=2), "CAUSAL_LM", ModelLayers(base))))
    model(input_ids=torch.tensor([[3, 4, 5]]))
    return {
        name.rpartition(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_A" in name
    }


def test_all_linear_leaves_out_what_peft_cannot_adapt() -> None:
    """A router that returns two tensors; a projection that a kernel reads without calling it."""
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    llama4 = adapted("llama4_text", intermediate_size_mlp=32, attention_chunk_size=8, **experts)
    assert "q_proj" in llama4
    assert "router" not in llama4
    assert "query_key_value" in adapted("falcon", head_dim=None)  # whose linear layers are a kind of their own
    mamba = {"state_size": 4, "expand": 2, "conv_kernel": 4}
    assert adapted("mamba", **mamba) == {"in_proj", "x_proj", "dt_proj"}
    assert ModelLayers(llama()).left_out(AdapterConfig()) is None


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


def trains(policy: Path, targets: list[str] | str, raw_data: Path, folder: Path) -> tuple[int, str]:
    """Two steps of SFT into folder/out: status and messages."""
    config = write_config(
        folder / "sft.yaml",
        output=folder / "out",
        policy=policy,
        demonstrations=raw_data / "demonstrations.jsonl",
        adapter={"r": 2, "alpha": 4, "target_modules": targets},
        training={**TINY_TRAINING, "learning_rate": 1e-2, "max_steps": 2},
        tracking={"mode": "disabled"},
    )
    return run_here("sft", "--config", config)


@pytest.mark.slow
def test_an_adapter_on_the_embeddings_is_trained_saved_and_read_again(
    tiny_model: Path, raw_data: Path, tmp_path: Path
) -> None:
    """PEFT names the matrices of embeddings otherwise, and starts A at zero: what is saved has left it."""
    status, message = trains(tiny_model, ["q_proj", "embed_tokens"], raw_data, tmp_path)
    assert status == 0, message
    assert read_manifest(tmp_path / "out")["probe_difference"] <= 1e-5
    saved = load_file(tmp_path / "out" / "final" / "adapter_model.safetensors")
    (matrix,) = (weight for name, weight in saved.items() if "embed_tokens" in name and "embedding_A" in name)
    assert matrix.abs().max() > 1e-4


@pytest.mark.slow
def test_a_model_without_attention_trains_or_says_which_layers_it_can_have_an_adapter_on(
    tiny_model: Path, raw_data: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokens = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, state_size=4, **tokens)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    tokenizer.save_pretrained(tmp_path / "mamba")
    (tmp_path / "refused").mkdir()
    status, message = trains(tmp_path / "mamba", ["in_proj", "out_proj"], raw_data, tmp_path / "refused")
    assert status == 2
    assert "PEFT cannot adapt MambaForCausalLM" in message
    assert "'out_proj' is incompatible" in message
    status, message = trains(tmp_path / "mamba", "all-linear", raw_data, tmp_path)
    assert status == 0, message
    assert "not planned: " in message
    assert "a model of type 'mamba' has none" in message
    assert read_manifest(tmp_path / "out")["probe_difference"] <= 1e-5
