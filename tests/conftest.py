"""Fixtures that tests share: a two-layer random model with the real tokenizer, and small raw data."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import build_tiny_model, write_rows


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random two-layer model."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def raw_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small raw data in TRL's formats: prompts, demonstrations and preferences."""
    folder = tmp_path_factory.mktemp("data")
    crops = [
        "basil",
        "lettuce",
        "mint",
        "tomato",
        "pepper",
        "kale",
        "chard",
        "cress",
        "dill",
        "rocket",
        "thyme",
        "sage",
    ]
    ask = ["Why are my {} leaves pale?", "How often should I feed {} in summer?"]
    prompts = [q.format(c) for c in crops for q in ask]
    write_rows(folder / "prompts.jsonl", [{"prompt": [{"role": "user", "content": p}]} for p in prompts])
    write_rows(
        folder / "demonstrations.jsonl",
        [
            {
                "prompt": [{"role": "user", "content": f"What does {c} need at night?"}],
                "completion": [
                    {"role": "assistant", "content": f"Keep the {c} at {n + 15} degrees and dark for 8 hours."}
                ],
            }
            for n, c in enumerate(crops)
        ],
    )
    write_rows(
        folder / "preferences.jsonl",
        [
            {
                "prompt": [{"role": "user", "content": p}],
                "chosen": [{"role": "assistant", "content": f"Add {n + 1} ml of feed per litre today."}],
                "rejected": [{"role": "assistant", "content": "It depends on many things." + " Really." * (n % 3)}],
                "strength": 1 + n % 3,
                "split": "validation" if n % 6 == 0 else "train",
            }
            for n, p in enumerate(prompts)
        ],
    )
    return folder
