"""Nothing of a model is random in training once its noise is switched off: modules, functions, and routers of experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import SIZES, VOCABULARY
from transformers import AutoConfig, AutoModelForCausalLM

from tiebreak.training.noise import switch_off_noise

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "a module": ("gpt2", {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}),
    "a function": ("opt", {"ffn_dim": 32, "word_embed_proj_dim": 16, "dropout": 0.3, "layerdrop": 0.5}),
    "an attention": (
        "seed_oss",
        {"attention_dropout": 0.3, "residual_dropout": 0.3, "head_dim": 4, "num_key_value_heads": 4},
    ),
    "a router": (
        "phimoe",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "input_jitter_noise": 0.3, "num_key_value_heads": 4},
    ),
    "experts": (
        "mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.3, "num_key_value_heads": 4},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_training_computes_what_evaluation_does(name: str) -> None:
    model_type, settings = MODELS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **{**SIZES, "num_key_value_heads": 4, **settings})
    )
    ids = torch.randint(2, VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(0))

    def logits(*, training: bool) -> torch.Tensor:
        model.train(training)
        with torch.no_grad():
            made: torch.Tensor = model(input_ids=ids).logits
        return made

    evaluated = logits(training=False)
    assert not torch.allclose(logits(training=True), evaluated, atol=1e-4)
    switch_off_noise(model)
    for _ in range(3):
        torch.testing.assert_close(logits(training=True), evaluated)
    torch.testing.assert_close(logits(training=False), evaluated)
