"""The step `perplexity`: values against the model's own loss, limits by hand, and through the stage."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from support import read_rows, write_rows

from sft.configuration import PrepareConfig
from sft.prepare import prepare
from sft.steps.perplexity import EDGES, facts_of, limits_of, log_perplexities

TEXTS = [f"The lamp number {n} {'flickers again and again ' * (n % 5 + 1)}since {n * n} o'clock." for n in range(30)]


def test_limits_by_hand() -> None:
    """Median 4, distances 3 2 1 0 1 2 …: median distance 2, so a standard deviation is 2.9652."""
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0] * 3
    assert limits_of(values, 2) == pytest.approx((4 - 2 * 2.9652, 4 + 2 * 2.9652))
    assert limits_of(values[:19], 2) == (-math.inf, math.inf)  # too few
    assert limits_of([1.0] * 15 + [9.0] * 6, 2) == (-math.inf, math.inf)  # most are the same


def test_the_picture_counts_every_row_once() -> None:
    facts = facts_of([math.log(2), math.log(5), math.log(5000)], -math.inf, math.inf)
    assert facts["counts"][1] == facts["counts"][len(EDGES)] == 1  # from 2 to 3; 4096 and over
    assert sum(facts["counts"]) == facts["measured"] == 3
    assert facts["median"] == 5
    assert "low" not in facts


def losses(model_folder: Path, texts: list[str], max_tokens: int) -> list[float]:
    """transformers' own loss: the mean over all tokens but the first."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    found = []
    for text in texts:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"][:max_tokens]])
        with torch.no_grad():
            found.append(float(model(input_ids=ids, labels=ids).loss))
    return found


def test_values_are_the_models_loss_whatever_the_batch(tiny_model: Path) -> None:
    from tiebreak.config import LoadingConfig
    from tiebreak.models.find import find_model
    from tiebreak.models.load import load_frozen_policy
    from tiebreak.models.tokenizers import load_chat

    source = find_model(str(tiny_model))
    chat, model = load_chat(source), load_frozen_policy(source, LoadingConfig())
    found = log_perplexities(model, chat, [*TEXTS[:6], "Short."], 24)
    assert found[:-1] == pytest.approx(losses(tiny_model, TEXTS[:6], 24), abs=2e-4)
    assert found[-1] is None
    assert log_perplexities(model, chat, TEXTS[3:4], 24) == found[3:4]


def test_rows_beyond_the_limits_are_flagged_and_kept(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"prompt": text, "completion": "See the manual."} for text in TEXTS]
    values: dict[str, Any] = {
        "output": str(tmp_path / "run"),
        "policy": str(tiny_model),
        "demonstrations": [str(write_rows(tmp_path / "rows.jsonl", rows))],
        "near_duplicate": 1,
        "steps": ["perplexity"],
        "perplexity": {"deviations": 1.0, "max_tokens": 64},
    }
    prepare(PrepareConfig.model_validate(values))
    final = tmp_path / "run" / "final"
    expected = losses(tiny_model, [f"{text}\n\nSee the manual." for text in TEXTS], 64)
    low, high = limits_of(expected, 1.0)
    far = [f"rows.jsonl:{n + 1}" for n, one in enumerate(expected) if not low <= one <= high]
    flagged = read_rows(final / "flagged.jsonl")
    assert [row["where"] for row in flagged] == far != []
    assert all(row["reason"].startswith("perplexity ") for row in flagged)
    assert len(read_rows(final / "demonstrations.jsonl")) == len(TEXTS)
    facts = json.loads((final / "report.json").read_text())["steps"][0]["facts"]["perplexity"]
    assert facts["measured"] == sum(facts["counts"]) == len(TEXTS)
    assert facts["high"] == pytest.approx(math.exp(high), rel=1e-3)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Rows by perplexity" in page
    assert f"high {facts['high']:g} are flagged" in page.replace(f"low {facts['low']:g} and ", "").replace(
        "(", ""
    ).replace(")", "")
