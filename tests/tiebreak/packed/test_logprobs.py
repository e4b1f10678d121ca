"""Log-probabilities and scores of many rows, packed or padded, against one plain row at a time."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tiebreak.packed.forward import packs
from tiebreak.packed.logprobs import (
    batches_by_length,
    completion_logps,
    completion_logps_in_batches,
    pad_right,
    scores_in_batches,
    selected_logps,
)

PAD = 0


@pytest.fixture(scope="module", params=["packed", "padded"])
def model(tiny_model: Path, request: pytest.FixtureRequest) -> Any:
    """Eager attention takes no packed rows, so it stands for the architectures that cannot."""
    from transformers import AutoModelForCausalLM

    attention = {"packed": "sdpa", "padded": "eager"}[request.param]
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation=attention)
    assert packs(model) == (request.param == "packed")
    return model.eval()


@pytest.fixture(scope="module")
def examples() -> list[tuple[list[int], list[int]]]:
    pick = random.Random(0)
    return [([pick.randrange(49152) for _ in range(p)], [pick.randrange(49152) for _ in range(c)]) for p, c in
            ((5, 7), (12, 1), (1, 9), (8, 3), (5, 7))]  # fmt: skip


@torch.no_grad()
def plain(model: Any, prompt: list[int], completion: list[int], temperature: float = 1.0) -> list[float]:
    """log_softmax of one unpadded row, in float64."""
    logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].double() / temperature
    table = torch.log_softmax(logits, -1)
    return [float(table[len(prompt) + t - 1, token]) for t, token in enumerate(completion)]


def test_selected_logps_are_log_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 11, generator=generator) * 5
    targets = torch.randint(11, (3, 4), generator=generator)
    expected = torch.log_softmax(logits.double(), -1).gather(-1, targets[..., None]).squeeze(-1)
    torch.testing.assert_close(selected_logps(logits, targets), expected.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_batch_says_what_single_rows_say(model: Any, examples: Any, temperature: float) -> None:
    with torch.no_grad():
        logps, mask = completion_logps(model, examples, PAD, temperature)
    assert mask.tolist() == [[1] * len(c) + [0] * (9 - len(c)) for _, c in examples]
    for (prompt, completion), row in zip(examples, logps.tolist(), strict=True):
        assert row[: len(completion)] == pytest.approx(plain(model, prompt, completion, temperature), abs=2e-5)
        assert row[len(completion) :] == [0.0] * (9 - len(completion))


def test_padding_changes_nothing_even_where_its_token_occurs_in_the_text(model: Any, examples: Any) -> None:
    prompt, completion = [5, PAD, 7], [PAD, 9, PAD]
    alone = completion_logps_in_batches(model, [(prompt, completion)], PAD, 1)[0]
    beside = completion_logps_in_batches(model, [*examples, (prompt, completion)], PAD, 6)[-1]
    other = completion_logps_in_batches(model, [*examples, (prompt, completion)], 777, 6)[-1]
    assert len(alone) == 3
    assert beside == pytest.approx(alone, abs=2e-5)
    assert other == pytest.approx(alone, abs=2e-5)


def test_batches_keep_the_examples_order(model: Any, examples: Any) -> None:
    whole = completion_logps_in_batches(model, examples, PAD, 2)
    assert [len(row) for row in whole] == [len(c) for _, c in examples]
    for row, (prompt, completion) in zip(whole, examples, strict=True):
        assert row == pytest.approx(plain(model, prompt, completion), abs=2e-5)
    assert list(batches_by_length([5, 1, 4, 1, 3], 2)) == [[1, 3], [4, 2], [0]]


def test_a_prompt_of_many_completions_is_read_as_often_as_alone(model: Any) -> None:
    """Eleven completions of one prompt are more than stand together in one tree; another prompt lies between them."""
    pick = random.Random(1)
    prompt, other = [[pick.randrange(49152) for _ in range(6)] for _ in range(2)]
    many = [(prompt, [pick.randrange(49152) for _ in range(1 + n % 4)]) for n in range(11)]
    many.insert(5, (other, many[0][1]))
    for row, (p, c) in zip(completion_logps_in_batches(model, many, PAD, 4), many, strict=True):
        assert row == pytest.approx(plain(model, p, c), abs=2e-5)


def test_gradients_reach_the_policy(model: Any, examples: Any) -> None:
    parameter = model.model.layers[0].self_attn.q_proj.weight
    logps, _ = completion_logps(model, examples, PAD)
    (gradient,) = torch.autograd.grad(logps.sum(), parameter)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_score_is_read_at_the_last_token_whatever_the_padding(tiny_model: Path, attention: str) -> None:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    judge = AutoModelForSequenceClassification.from_pretrained(
        tiny_model, num_labels=1, dtype=torch.float32, attn_implementation=attention
    ).eval()
    judge.config.pad_token_id = PAD
    sequences = [[4, 5, 6, 7], [9], [3, PAD, 8], [3, 9, PAD], [1] * 11]
    expected = []
    with torch.no_grad():
        for sequence in sequences:
            hidden = judge.model(input_ids=torch.tensor([sequence])).last_hidden_state
            expected.append(float(judge.score(hidden)[0, -1, 0]))
    assert len(set(expected)) == len(expected)
    for batch_size in (1, 2, 5):
        assert scores_in_batches(judge, sequences, PAD, batch_size) == pytest.approx(expected, abs=1e-5)


def test_padding_on_the_right_by_hand() -> None:
    ids, mask = pad_right([[7, 8, 9], [5]], 2)
    assert ids.tolist() == [[7, 8, 9], [5, 2, 2]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
