"""Episodes laid out for a pass, against the plain forward of one at a time; and adapters merged for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_language import PAD, build_toy_backbone, build_toy_policy, with_adapter

from preference.policy.adapters import POLICY
from preference.policy.layout import batches_by_tokens, pad
from tiebreak.models.adapters.adapter import Adapter

SYSTEM = [2, 7, 6, 2, 4, 5, 3, 3, 6, 7]
PROMPTS = [[*SYSTEM, 3, 4], [*SYSTEM, 5], [*SYSTEM, 3, 4], [*SYSTEM, 3, 4, 6]]
COMPLETIONS = [[5, 1], [6, 7, 2, 1], [5, 6, 6], [1]]


def randomise(module: torch.nn.Module, name: str) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if name in key:
                parameter.normal_(std=0.2)


@pytest.mark.parametrize("packs", [True, False])
def test_log_probabilities_values_and_gradients_are_the_plain_forwards(packs: bool) -> None:
    """One pass of four episodes, two of one prompt and all of one system message, against each in a batch of its own."""
    backbone = build_toy_backbone(build_toy_policy())
    randomise(backbone, "lora_B")
    randomise(backbone, "value_head")
    assert backbone.packs
    backbone.packs = packs
    batch = backbone.to_batch(PROMPTS, COMPLETIONS)
    if batch.layout.row is not None:
        assert batch.layout.row.input_ids.shape[1] < sum(map(len, PROMPTS + COMPLETIONS)) - 2 * len(SYSTEM)
    logps, values, _ = backbone(batch, 0.7)
    (logps.sum() + (values**2).sum()).backward()
    ours = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    backbone.zero_grad()
    total: Any = 0.0
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        ids = torch.tensor([[*prompt, *completion]])
        out = backbone.lm(ids, output_hidden_states=True)
        at = slice(len(prompt) - 1, ids.shape[1] - 1)
        plain = (out.logits[0, at] / 0.7).log_softmax(-1).gather(-1, ids[0, len(prompt) :, None]).squeeze(-1)
        value = backbone.value_head(out.hidden_states[-1][0, at]).squeeze(-1)
        torch.testing.assert_close(logps[row, : len(completion)], plain, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(values[row, : len(completion)], value, rtol=1e-5, atol=1e-5)
        assert not logps[row, len(completion) :].any()
        total = total + plain.sum() + (value**2).sum()
    total.backward()
    for name, parameter in backbone.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_padding_has_no_part_in_it() -> None:
    layout = pad(PROMPTS, COMPLETIONS, PAD)
    assert layout.padded is not None
    ids = layout.padded[0].flatten()
    for places, prompt, completion in zip(layout.places, PROMPTS, COMPLETIONS, strict=True):
        assert ids[places].tolist() == prompt + completion


tokens = st.lists(st.integers(0, 3), min_size=1, max_size=6)


@given(st.lists(tokens, min_size=1, max_size=8), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_batches_keep_to_their_budget(sequences: list[list[int]], budget: int) -> None:
    batches = list(batches_by_tokens(sequences, budget))
    assert sorted(row for batch in batches for row in batch) == list(range(len(sequences)))
    for batch in batches:
        assert len(batch) == 1 or sum(len(sequences[row]) for row in batch) <= budget


def test_a_merged_adapter_computes_what_the_active_one_does_and_leaves_every_bit() -> None:
    lm = with_adapter(build_toy_policy())
    randomise(lm, "lora_B")
    ids = torch.tensor([[2, 3, 4, 5]])
    before = {name: p.detach().clone() for name, p in lm.named_parameters()}
    active = lm(ids).logits
    with lm.disable_adapter():
        bare = lm(ids).logits
    with torch.no_grad(), Adapter(lm, POLICY).merged():
        merged = lm(ids).logits
    torch.testing.assert_close(merged, active, rtol=1e-5, atol=1e-5)
    assert float((active - bare).detach().abs().max()) > 0.01
    assert all(torch.equal(p, before[name]) for name, p in lm.named_parameters())
    torch.testing.assert_close(lm(ids).logits, active, rtol=0, atol=0)
