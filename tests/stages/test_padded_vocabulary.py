"""A model with more embeddings than its tokenizer has tokens, as Qwen's: ids without text are never drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import TINY_TRAINING, read_rows, run_here, write_config, write_rows

from tiebreak.models.find import find_model
from tiebreak.models.tokenizers import load_chat

EXTRA = 37
QUIET: dict[str, Any] = {"tracking": {"mode": "disabled"}}


@pytest.fixture(scope="module")
def padded_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with further rows, which have nearly all of the probability."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    size = model.config.vocab_size
    model.resize_token_embeddings(size + EXTRA, mean_resizing=False)
    with torch.no_grad():
        rows = torch.randn(EXTRA, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
        model.get_output_embeddings().weight[size:] = 40 * rows
    folder = tmp_path_factory.mktemp("padded") / "model"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def test_ids_without_text_are_never_drawn(padded_model: Path, tmp_path: Path) -> None:
    chat = load_chat(find_model(str(padded_model)))
    size = len(chat.tokenizer)
    assert chat.textless_ids == tuple(range(size, size + EXTRA))
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Question {n}?"} for n in range(4)])
    config = write_config(
        tmp_path / "sample.yaml",
        output=tmp_path / "sample",
        policy=padded_model,
        prompts=prompts,
        validation_share=0.0,
        sampling=[{"max_new_tokens": 12}],
        **QUIET,
    )
    status, err = run_here("sample", "--config", config)
    assert status == 0, err
    assert f"{EXTRA} of the model's ids have no token in its tokenizer and " in err
    ids = [i for row in read_rows(tmp_path / "sample/final/pairs.jsonl") for c in row["completions"] for i in c["ids"]]
    assert len(ids) > 50
    assert max(ids) < size


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_no_policy_is_trained_on_another_distribution_than_it_draws_from(
    algorithm: str, padded_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "constant.py").write_text("def score(prompts, completions, **_):\n    return [0.0] * len(prompts)\n")
    config = write_config(
        tmp_path / "ppo.yaml",
        output=tmp_path / "ppo",
        algorithm=algorithm,
        policy=padded_model,
        prompts=write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Question {n}?"} for n in range(4)]),
        rewards=[{"function": "constant:score"}],
        validation_share=0.0,
        episodes_per_rollout=4,
        rollouts=1,
        ppo_epochs=1,
        stop_when_all_cut_off=False,
        sampling={"max_new_tokens": 4},
        training={**TINY_TRAINING, "per_device_batch_size": 4},
        adapter={"r": 2, "alpha": 4},
        **QUIET,
    )
    status, err = run_here("ppo", "--config", config)
    assert status == 1, err
    assert f"{EXTRA} of the model's ids have no token in its tokenizer and up to " in err
    assert "cut its embeddings to the tokenizer's tokens (transformers' resize_token_embeddings)" in err
