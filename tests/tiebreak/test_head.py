"""token_logps, against autograd on a float64 log_softmax."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tiebreak import head as head_module
from tiebreak.head import logits_are_plain, token_logps

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


def test_capped_or_scaled_logits_are_told_apart() -> None:
    from transformers import Gemma2Config, LlamaConfig

    class Holder(nn.Module):
        def __init__(self, config: object) -> None:
            super().__init__()
            self.config = config

    assert logits_are_plain(Holder(LlamaConfig()))
    assert not logits_are_plain(Holder(Gemma2Config()))  # caps its logits at 30
