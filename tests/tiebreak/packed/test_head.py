"""token_logps, against autograd on a float64 log_softmax."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tiebreak.packed import lm_head as head_module
from tiebreak.packed.lm_head import head_of, token_logps

TOKENS, HIDDEN, VOCABULARY = 7, 5, 13


def frozen_head(bias: bool, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(HIDDEN, VOCABULARY, bias=bias).requires_grad_(False)


def reference(hidden: Tensor, head: nn.Linear, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """(logps, entropy, mean logits) by the textbook, in float64."""
    bias = None if head.bias is None else head.bias.double()
    logits = nn.functional.linear(hidden, head.weight.double(), bias)
    table = torch.log_softmax(logits / temperature, -1)
    return table.gather(-1, targets[:, None]).squeeze(-1), -(table.exp() * table).sum(-1), logits.mean(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_autograds(bias: bool, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "CHUNK_TOKENS", 3)  # so that seven tokens make three chunks
    head = frozen_head(bias)
    generator = torch.Generator().manual_seed(1)
    hidden = (torch.randn(TOKENS, HIDDEN, generator=generator) * 3).requires_grad_()
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    weights = torch.randn(TOKENS, generator=generator)
    out = token_logps(hidden, head, targets, temperature)
    (gradient,) = torch.autograd.grad((out.logps * weights).sum(), hidden)

    exact = hidden.detach().double().requires_grad_()
    logps, entropy, means = reference(exact, head, targets, temperature)
    (expected,) = torch.autograd.grad((logps * weights.double()).sum(), exact)
    torch.testing.assert_close(out.logps, logps.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.entropy, entropy.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.mean_logits, means.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient, expected.float(), atol=1e-5, rtol=1e-4)
    assert not out.entropy.requires_grad


@pytest.mark.parametrize("trains", [False, True])
def test_a_chunks_tables_are_freed_before_the_next_chunks(trains: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table has a chunk's tokens times the vocabulary: of a real model, 50 MB."""
    monkeypatch.setattr(head_module, "CHUNK_TOKENS", 3)
    affine, alive = head_module.affine, []

    def counted(*arguments: Any) -> Tensor:
        tables = [one for one in gc.get_objects() if type(one) is Tensor and one.shape == (3, VOCABULARY)]
        alive.append(len(tables))
        return affine(*arguments)

    monkeypatch.setattr(head_module, "affine", counted)
    hidden = torch.randn(TOKENS, HIDDEN).requires_grad_(trains)
    token_logps(hidden, frozen_head(bias=True), torch.zeros(TOKENS, dtype=torch.long))
    assert alive == [0, 0, 0]


def test_the_likeliest_token_is_marked() -> None:
    head = frozen_head(bias=False)
    hidden = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(2))
    best = (hidden @ head.weight.T).argmax(-1)
    assert token_logps(hidden, head, best).is_top1.all()
    assert not token_logps(hidden, head, (best + 1) % VOCABULARY).is_top1.any()


def test_a_uniform_head_by_hand() -> None:
    head = nn.Linear(HIDDEN, VOCABULARY, bias=False).requires_grad_(False)
    nn.init.zeros_(head.weight)
    out = token_logps(torch.ones(2, HIDDEN), head, torch.tensor([0, 5]))
    log_v = torch.tensor(float(VOCABULARY)).log()
    torch.testing.assert_close(out.logps, -log_v.expand(2))
    torch.testing.assert_close(out.entropy, log_v.expand(2))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_entropy_has_autograds_gradient_where_it_is_asked_for(temperature: float) -> None:
    head = frozen_head(bias=True).double()
    start = torch.randn(5, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    targets, weights = torch.arange(5), torch.linspace(-1, 2, 5, dtype=torch.float64)
    ours, plain = start.clone().requires_grad_(), start.clone().requires_grad_()
    out = token_logps(ours, head, targets, temperature, entropy_gradient=True)
    (out.logps.sum() + (weights * out.entropy).sum()).backward()
    logps = (head(plain) / temperature).log_softmax(-1)
    entropy = -(logps.exp() * logps).sum(-1)
    (logps.gather(-1, targets[:, None]).sum() + (weights * entropy).sum()).backward()
    torch.testing.assert_close(ours.grad, plain.grad)
    assert not token_logps(ours, head, targets, temperature).entropy.requires_grad


def test_no_tokens_give_a_gradient_of_zero() -> None:
    hidden = torch.randn(0, HIDDEN, requires_grad=True)
    out = token_logps(hidden, frozen_head(bias=False), torch.zeros(0, dtype=torch.long))
    out.logps.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, HIDDEN)


def test_a_head_that_trains_is_refused() -> None:
    head = nn.Linear(HIDDEN, VOCABULARY)
    with pytest.raises(ValueError, match="no gradient"):
        token_logps(torch.ones(1, HIDDEN), head, torch.tensor([0]))
    with torch.no_grad():
        assert token_logps(torch.ones(1, HIDDEN), head, torch.tensor([0])).logps.shape == (1,)


def test_half_precision_hidden_states_get_gradients_of_their_own_kind() -> None:
    head = frozen_head(bias=False).to(torch.bfloat16)
    hidden = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16).requires_grad_()
    out = token_logps(hidden, head, torch.tensor([0, 1, 2, 3]))
    out.logps.sum().backward()
    assert out.logps.dtype == torch.float32
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16


# --- scaled, capped and other heads


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("scale", "cap"), [(0.25, None), (1.0, 4.0), (2.0, 3.0)])
def test_scaled_and_capped_logits_have_autograds_values_and_gradients(
    scale: float, cap: float | None, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cap·tanh(scale·z/cap), of logits well beyond the cap."""
    monkeypatch.setattr(head_module, "CHUNK_TOKENS", 3)
    head = frozen_head(bias=True).double()
    start = 5 * torch.randn(TOKENS, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    targets, weights = torch.arange(TOKENS), torch.linspace(-1, 2, TOKENS, dtype=torch.float64)
    ours, plain = start.clone().requires_grad_(), start.clone().requires_grad_()
    out = token_logps(ours, head, targets, temperature, scale=scale, cap=cap, entropy_gradient=True)
    ((weights * out.logps).sum() + (weights.flip(0) * out.entropy).sum()).backward()
    logits = scale * head(plain)
    if cap is not None:
        assert logits.abs().max() > cap
        logits = cap * torch.tanh(logits / cap)
    logps = (logits / temperature).log_softmax(-1)
    entropy = -(logps.exp() * logps).sum(-1)
    picked = logps.gather(-1, targets[:, None]).squeeze(-1)
    ((weights * picked).sum() + (weights.flip(0) * entropy).sum()).backward()
    torch.testing.assert_close(out.logps, picked)
    torch.testing.assert_close(out.entropy, entropy)
    torch.testing.assert_close(out.mean_logits, logits.mean(-1))
    torch.testing.assert_close(ours.grad, plain.grad)


HEADS: dict[str, tuple[str, dict[str, Any], tuple[bool, float, float | None]]] = {
    "plain": ("llama", {}, (True, 1.0, None)),
    "capped": ("gemma2", {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 4}, (True, 1.0, 5.0)),
    "scaled": ("cohere", {"logit_scale": 0.25}, (True, 0.25, None)),
    "divided": ("granite", {"logits_scaling": 8.0}, (True, 0.125, None)),
    "multiplied": ("hyperclovax", {"logits_scaling": 3.0}, (True, 3.0, None)),
    "called through its decoder": ("opt", {"ffn_dim": 32, "word_embed_proj_dim": 16}, (True, 1.0, None)),
    "a layer and a norm first": (
        "modernbert-decoder",
        dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1),
        (False, 1.0, None),
    ),
}
"""Model type, its settings, and (whether the head is a linear layer, its scale, its cap)."""


def small(model_type: str, settings: dict[str, Any]) -> Any:
    from small_models import SIZES
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SIZES, "head_dim": 4, **settings})
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


@pytest.mark.parametrize("name", HEADS)
def test_a_models_head_is_its_own(name: str) -> None:
    """Its log-probabilities, and their gradient by the hidden states, are those of the model's own forward of tokens."""
    model_type, settings, expected = HEADS[name]
    model = small(model_type, settings)
    head = head_of(model)
    assert (head.linear is not None, head.scale, head.cap) == expected
    ids = torch.randint(2, 31, (1, 9), generator=torch.Generator().manual_seed(0))
    states: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Tensor]) -> None:
        states.append(inputs[0].requires_grad_())
        inputs[0].retain_grad()

    model.lm_head.register_forward_pre_hook(catch)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    logps = (logits / 0.8).log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
    (logps * torch.linspace(-1, 1, 8)).sum().backward()
    hidden = states[0].detach()[0, :-1].clone().requires_grad_()
    out = head.token_logps(hidden, ids[0, 1:], 0.8)
    (out.logps * torch.linspace(-1, 1, 8)).sum().backward()
    torch.testing.assert_close(out.logps, logps, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(hidden.grad, states[0].grad[0, :-1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(head.logits(hidden), logits, atol=1e-5, rtol=1e-5)


def test_an_adapter_on_the_head_gets_its_gradient() -> None:
    """As autograd has it through the module: a head with an adapter is not a plain layer."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(small("llama", {}), LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))
    head = head_of(model.get_base_model())
    assert head.linear is None
    hidden = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(6)
    head.token_logps(hidden, targets).logps.sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    logits = model.get_base_model().lm_head(hidden)
    logits.log_softmax(-1).gather(-1, targets[:, None]).sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) == len(expected) == 2
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda text, n=name: f"{n}: {text}")
