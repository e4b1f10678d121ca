"""The language-model head on the tokens that count, in chunks, with no logits kept for the backward pass.

The gradient of a token's log-probability with respect to its hidden state h is (W[y] − Σ_v p_v·W[v])/T, a vector that
the forward pass can form while the token's logits are at hand. Keeping that vector, of the hidden size, in place of the
logits, of the vocabulary's, costs no operation more and makes memory independent of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tiebreak.sharding import gathered

CHUNK_TOKENS = 256


@dataclass(frozen=True)
class HeadOutput:
    """One value a token, each of shape (tokens,), in float32, or float64 of such a model.

    Only `logps` has a gradient, and `entropy` where it was asked for.
    """

    logps: Tensor
    entropy: Tensor
    """in nats"""
    mean_logits: Tensor
    is_top1: Tensor
    """whether the token is the likeliest"""


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        outputs: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        slopes: list[Tensor] = []
        entropy_slopes: list[Tensor] = []
        wanted = ctx.needs_input_grad[0]
        for h, y in zip(hidden.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True):
            logits = nn.functional.linear(h, weight, bias)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            means, top = logits.mean(-1), logits.argmax(-1) == y
            if temperature != 1.0:
                logits /= temperature
            log_probabilities = logits.log_softmax(-1)
            del logits
            picked = log_probabilities.gather(-1, y[:, None]).squeeze(-1)
            probabilities = log_probabilities.exp()
            entropy = -torch.linalg.vecdot(probabilities, log_probabilities)
            if wanted:
                slope = weight[y].to(picked.dtype) - (probabilities.to(weight.dtype) @ weight).to(picked.dtype)
                slopes.append(slope / temperature)
            if wanted and entropy_gradient:  # dH/dlogit_v = −p_v·(log p_v + H)
                pull = probabilities * (log_probabilities + entropy[:, None])
                entropy_slopes.append((pull.to(weight.dtype) @ weight).to(picked.dtype) / -temperature)
            outputs.append((picked, entropy, means, top))
        logps, entropy, means, top = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        if wanted:
            ctx.save_for_backward(*(torch.cat(parts) for parts in (slopes, entropy_slopes) if parts))
        ctx.dtype = hidden.dtype
        ctx.mark_non_differentiable(*(() if entropy_gradient else (entropy,)), means, top)
        return logps, entropy, means, top

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradient = sum(slopes * grad[:, None] for slopes, grad in zip(ctx.saved_tensors, grads[:2], strict=False))
        return gradient.to(ctx.dtype), None, None, None, None, None


def token_logps(
    hidden: Tensor, head: nn.Module, targets: Tensor, temperature: float = 1.0, *, entropy_gradient: bool = False
) -> HeadOutput:
    """Log-probabilities of `targets` under softmax(head(hidden)/temperature).

    Args:
        hidden: final hidden states, shape (tokens, hidden).
        head: a frozen linear layer from hidden to vocabulary.
        targets: token ids, shape (tokens,).
        entropy_gradient: let the entropy have a gradient too, for one matrix product more.

    Raises:
        ValueError: the head is being trained, which this gradient leaves out.
    """
    weight, bias = head.weight, getattr(head, "bias", None)
    if torch.is_grad_enabled() and weight.requires_grad:
        raise ValueError("the language-model head is trained here, and token_logps gives it no gradient")
    with gathered([p for p in (weight, bias) if p is not None]):  # ZeRO-3's hooks see modules called, not weights used
        if not len(targets):
            zero = hidden.sum() * 0.0
            empty = hidden.new_zeros(0, dtype=torch.float32)
            return HeadOutput(empty + zero, empty, empty, empty.bool())
        logps, entropy, means, top = _TokenLogps.apply(hidden, weight, bias, targets, temperature, entropy_gradient)
    return HeadOutput(logps, entropy, means, top)


def logits_are_plain(model: nn.Module) -> bool:
    """Whether logits are head(hidden) and nothing more: no soft cap, no scale, as in most architectures."""
    text = model.config.get_text_config()
    capped = getattr(text, "final_logit_softcapping", None)
    scales = [
        getattr(text, name, None)
        for name in ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
    ]
    return capped is None and all(scale in (None, 1, 1.0) for scale in scales)
