"""Packed sequences against the plain forward, one sequence at a time, and their size against a set of prefixes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_language import build_toy_policy, with_adapter
from transformers import AutoModelForCausalLM, PreTrainedModel

from preference.adapters import POLICY, merged_adapter
from preference.packing import ATTENTION, allow_packing, batches_by_tokens, pack, pad

CPU = torch.device("cpu")
SEQUENCES = [
    [1, 2, 3, 4, 5, 6, 7],
    [1, 2, 3, 4, 8],
    [1, 2, 3, 4, 5, 9, 9, 9, 9],
    [3, 1],
    [1, 2, 3, 4, 5],  # the beginning of another
    [1, 2, 3, 4, 8],  # a second time
    [2],
]
SMALL: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
GROUPED = SMALL | {"num_key_value_heads": 2}


def build(kind: str) -> PreTrainedModel:
    import transformers

    torch.manual_seed(0)
    own = {"Gemma": GROUPED | {"head_dim": 8}, "GPTNeoX": SMALL, "Mistral": GROUPED | {"sliding_window": None}}
    config = getattr(transformers, f"{kind}Config")(**own.get(kind, GROUPED))
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def plain_hidden(model: PreTrainedModel) -> list[torch.Tensor]:
    return [model.base_model(torch.tensor([s])).last_hidden_state[0] for s in SEQUENCES]


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3", "Gemma", "Mistral", "GPTNeoX", "Phi"])
def test_hidden_states_and_gradients_are_the_plain_forwards(kind: str) -> None:
    model = build(kind)
    plain = plain_hidden(model)
    weights = [torch.randn(h.shape, generator=torch.Generator().manual_seed(n)) for n, h in enumerate(plain)]
    sum((h * w).sum() for h, w in zip(plain, weights, strict=True)).backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert allow_packing(model) == ""
    assert model.config._attn_implementation == ATTENTION
    layout = pack(SEQUENCES, CPU)
    hidden = layout.hidden_states(model.base_model)
    packed = [hidden[places] for places in layout.places]
    for one, other in zip(packed, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.detach().abs().max()))
    sum((h * w).sum() for h, w in zip(packed, weights, strict=True)).backward()
    for name, parameter in model.named_parameters():
        if name in wanted:
            largest = float(wanted[name].abs().max())
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-5 * largest, msg=name)


def test_padded_and_plain_calls_go_on_as_before() -> None:
    """Sampling pads on the left and keeps a cache: what is not packed must get the mask it always got."""
    model = build("Llama")
    plain = plain_hidden(model)
    ids = torch.tensor([[0, 0, 1, 2, 3], [4, 5, 6, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    before = model(input_ids=ids, attention_mask=mask).logits[:, -1]
    assert allow_packing(model) == ""
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits[:, -1], before)
    layout = pad(SEQUENCES, 0, CPU)
    hidden = layout.hidden_states(model.base_model)
    for places, other in zip(layout.places, plain, strict=True):
        torch.testing.assert_close(hidden[places], other, rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_changes_nothing() -> None:
    model = build("Llama").train()
    assert allow_packing(model) == ""
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.activation_checkpointing_enable()
        model.zero_grad()
        pack(SEQUENCES, CPU).hidden_states(model.base_model).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_an_architecture_that_slides_over_a_window_is_left_alone() -> None:
    from transformers import MistralConfig

    config = MistralConfig(**GROUPED, sliding_window=4)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    assert "slides over a window" in allow_packing(model)
    assert model.config._attn_implementation == "sdpa"


tokens = st.lists(st.integers(0, 3), min_size=1, max_size=6)


@given(st.lists(tokens, min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_every_beginning_stands_once(sequences: list[list[int]]) -> None:
    """As many tokens as there are different beginnings, and each sequence can be read back at its own positions."""
    layout = pack(sequences, CPU)
    beginnings = {tuple(s[:n]) for s in sequences for n in range(1, len(s) + 1)}
    assert layout.input_ids.shape == (1, len(beginnings))
    for places, sequence in zip(layout.places, sequences, strict=True):
        assert layout.input_ids[0, places].tolist() == sequence
        assert layout.position_ids[0, places].tolist() == list(range(len(sequence)))
    assert layout.spans is not None
    assert [span.start for span in layout.spans[1:]] == [span.stop for span in layout.spans[:-1]]


@given(st.lists(tokens, min_size=1, max_size=8), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_batches_keep_to_their_budget(sequences: list[list[int]], budget: int) -> None:
    batches = list(batches_by_tokens(sequences, budget))
    assert sorted(row for batch in batches for row in batch) == list(range(len(sequences)))
    for batch in batches:
        assert len(batch) == 1 or sum(len(sequences[row]) for row in batch) <= budget


def test_a_merged_adapter_computes_what_the_active_one_does_and_leaves_every_bit() -> None:
    lm = with_adapter(build_toy_policy())
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    ids = torch.tensor([[2, 3, 4, 5]])
    before = {name: p.detach().clone() for name, p in lm.named_parameters()}
    active = lm(ids).logits
    with lm.disable_adapter():
        bare = lm(ids).logits
    with torch.no_grad(), merged_adapter(lm, POLICY):
        merged = lm(ids).logits
    torch.testing.assert_close(merged, active, rtol=1e-5, atol=1e-5)
    assert float((active - bare).abs().max()) > 0.01
    assert all(torch.equal(p, before[name]) for name, p in lm.named_parameters())
    torch.testing.assert_close(lm(ids).logits, active, rtol=0, atol=0)
