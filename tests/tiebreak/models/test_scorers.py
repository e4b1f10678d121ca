"""Reward models on architectures for which transformers has no sequence classifier; what `all-linear` leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    CohereConfig,
    LlamaConfig,
    MambaConfig,
    ModernBertDecoderConfig,
    PretrainedConfig,
)

from tiebreak.config import AdapterConfig
from tiebreak.models.adapters.targets import ModelLayers
from tiebreak.models.scorers import scorer_class

SIZES = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "pad_token_id": 0, "num_labels": 2}
WIDE = {**SIZES, "intermediate_size": 32, "num_attention_heads": 4}
MISSING = {
    "Cohere": CohereConfig(**WIDE, num_key_value_heads=2),
    "Mamba": MambaConfig(**SIZES, state_size=4),
    "ModernBERT decoder": ModernBertDecoderConfig(
        **WIDE, bos_token_id=1, eos_token_id=2, sep_token_id=2, cls_token_id=1
    ),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_score_is_the_head_on_the_last_state_of_the_causal_models_layers(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(MISSING[name]).save_pretrained(tmp_path)
    made = scorer_class(MISSING[name])
    assert made is not None
    scorer = made.from_pretrained(tmp_path, num_labels=2).eval()
    layers = AutoModelForCausalLM.from_pretrained(tmp_path).eval().base_model
    row = torch.tensor([[7, 11, 3, 9]])
    expected = layers(input_ids=row).last_hidden_state[0, -1] @ scorer.score.weight.T
    found = scorer(input_ids=row, attention_mask=torch.ones_like(row)).logits
    assert torch.allclose(found[0], expected, atol=1e-6)


def test_a_score_is_read_at_the_last_token_that_is_not_masked() -> None:
    torch.manual_seed(0)
    config = MISSING["Cohere"]
    scorer = scorer_class(config)(config).eval()
    row, pad = torch.tensor([[7, 11, 3]]), torch.tensor([[5, 5]])
    alone = scorer(input_ids=row).logits
    right = scorer(input_ids=torch.cat([row, pad], 1), attention_mask=torch.tensor([[1, 1, 1, 0, 0]])).logits
    assert torch.allclose(right, alone, atol=1e-6)


def test_transformers_own_class_is_taken_where_it_reads_a_score() -> None:
    config: PretrainedConfig = LlamaConfig(**WIDE)
    assert scorer_class(config) is None
    assert hasattr(AutoModelForSequenceClassification.from_config(config), "score")


def test_all_linear_leaves_out_what_peft_refuses_and_a_name_given_is_not_left_out() -> None:
    mamba = AutoModelForCausalLM.from_config(MISSING["Mamba"])
    assert ModelLayers(mamba).left_out(AdapterConfig()) == ["conv1d", "out_proj"]
    assert ModelLayers(mamba).left_out(AdapterConfig(target_modules=["in_proj", "out_proj"])) is None
    cohere = AutoModelForCausalLM.from_config(MISSING["Cohere"])
    assert ModelLayers(cohere).left_out(AdapterConfig()) is None
