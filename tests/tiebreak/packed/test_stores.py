"""Sampling from models that remember more than keys and values, or only some of them: as transformers' own generation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import SIZES, VOCABULARY
from transformers import AutoConfig, AutoModelForCausalLM

from tiebreak.config import SamplingConfig
from tiebreak.errors import ConfigError
from tiebreak.packed.generation import STORES, _OwnCaches, find_store, sample_completions
from tiebreak.packed.positions import position_limit, require_positions

STATE: dict[str, Any] = {"state_size": 4, "expand": 2, "conv_kernel": 4, "num_key_value_heads": None}
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "a window that prompts exceed": ("mistral", {"sliding_window": 4}, 0),
    "windows in every other layer": (
        "gemma2",
        {"sliding_window": 4, "query_pre_attn_scalar": 4, "final_logit_softcapping": 5.0},
        0,
    ),
    "experts that count for the loss": (
        "mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True},
        0,
    ),
    "convolutions": ("lfm2", {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}, 1),
    "linear attention": (
        "qwen3_next",
        {
            "layer_types": ["linear_attention", "full_attention"],
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 4,
            "linear_value_head_dim": 4,
        },
        1,
    ),
    "chunks": ("llama4_text", {"attention_chunk_size": 8, "num_local_experts": 2, "intermediate_size_mlp": 32}, 1),
    "no attention": ("mamba", STATE, 1),
    "a state that is not given back": (
        "recurrent_gemma",
        {"lru_width": 16, "attention_window_size": 8, "block_types": ["recurrent", "attention"]},
        2,
    ),
}
"""Model type, its settings, and which of the stores is right for it."""


def build(model_type: str, settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    values = {**SIZES, "num_key_value_heads": 2, "head_dim": 4, **settings}
    values = {key: value for key, value in values.items() if value is not None or key.endswith("_id")}
    config = AutoConfig.for_model(model_type, **values)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    model.generation_config.eos_token_id = None
    return model


def generated(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": count, "pad_token_id": 0}
    made = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    written: list[int] = made[0, len(prompt) :].tolist()
    return written


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_transformers_own(name: str) -> None:
    """Seven prompts of five lengths through three places: rows are read, written and released at different times."""
    model_type, settings, store = MODELS[name]
    model = build(model_type, settings)
    assert find_store(model, 0) is STORES[store]
    chance = torch.Generator().manual_seed(1)
    prompts = [torch.randint(2, VOCABULARY, (n,), generator=chance).tolist() for n in (9, 14, 9, 3, 11, 9, 3)]
    expected = [generated(model, prompt, 10) for prompt in prompts]
    stop = expected[0][4]  # so that some rows end before others
    cut = [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in expected]
    assert len(set(map(len, cut))) > 1
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=10)
    sampled = sample_completions(model, prompts, [0] * 7, sampling, stop_ids=[stop], pad_id=0, batch_size=3)
    assert [one.ids for one in sampled] == cut
    assert [one.finished for one in sampled] == [stop in ids for ids in expected]


def test_a_slower_store_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    model = build(*MODELS["convolutions"][:2])
    assert find_store(model, 0) is _OwnCaches
    assert "sampling uses its own cache, and is slower" in capsys.readouterr().err
    find_store(model, 0)
    assert not capsys.readouterr().err


# --- positions


@pytest.mark.parametrize(
    ("model_type", "settings", "limit"),
    [
        ("gpt2", {}, 64),
        ("opt", {"ffn_dim": 32, "word_embed_proj_dim": 16}, 64),
        ("llama", {}, 64),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, None),
        ("bloom", {"max_position_embeddings": None}, None),
        ("mamba", {**STATE, "max_position_embeddings": None}, None),
    ],
)
def test_how_many_positions_a_model_has(model_type: str, settings: dict[str, Any], limit: int | None) -> None:
    config = build(model_type, settings).config
    assert position_limit(config) == limit
    require_positions(config, 64, "a row")
    if limit is not None:
        with pytest.raises(ConfigError, match="a row take 65 tokens, but this model has 64 positions"):
            require_positions(config, 65, "a row")


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
def test_sampling_beyond_the_positions_is_refused_before_it_starts(model_type: str) -> None:
    model = build(model_type, {"ffn_dim": 32, "word_embed_proj_dim": 16} if model_type == "opt" else {})
    options: dict[str, Any] = {"stop_ids": [], "pad_id": 0, "batch_size": 2}
    prompt = [2 + n % 20 for n in range(60)]
    with pytest.raises(ConfigError, match=r"a prompt and sampling\.max_new_tokens take 65 tokens"):
        sample_completions(model, [prompt], [0], SamplingConfig(max_new_tokens=6), **options)
    (made,) = sample_completions(model, [prompt], [0], SamplingConfig(max_new_tokens=5), **options)
    assert len(made.ids) == 5
