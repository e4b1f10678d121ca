"""A spread of architectures and chat templates through every stage; `make models` runs all of them, see docs/models.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from architectures import ARCHITECTURES
from cell import run_cell
from table import read_page
from templates import TEMPLATES

SPREAD = [
    ("Llama", "llama3"),
    ("Qwen3", "qwen3"),
    ("Gemma 3", "gemma3"),
    ("Phi-3", "phi3_5"),
    ("OLMo 3", "olmo"),
    ("Mistral", "mistral"),
    ("StableLM", "zephyr"),
    ("Cohere", "cohere"),
    ("Mixtral, auxiliary loss", "mistral"),
    ("gpt-oss", "gptoss"),
    ("Qwen3.5", "qwen3_5_think"),
    ("ModernBERT decoder", "smollm2"),
]
"""dense, windows, scaled logits, mixtures with and without an auxiliary loss, a hybrid, a dense layer before the head"""


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("model", "template"), SPREAD)
def test_every_stage_agrees_with_plain_transformers(tmp_path: Path, model: str, template: str) -> None:
    outcomes = run_cell(tmp_path, ARCHITECTURES[model], TEMPLATES[template])
    assert not {stage: outcome for stage, outcome in outcomes.items() if outcome.is_fault}
    assert {stage: outcome.how for stage, outcome in outcomes.items()} == read_page()[model, template]
