"""The language-model head, only on completion tokens, in chunks, without storing logits for the backward pass.

The gradient of a token's log-probability with respect to its hidden state h is (W[y] − Σ_v p_v·W[v])/T, a vector that
the forward pass can compute from the token's logits. Storing that vector, of the hidden size, instead of the logits, of
the vocabulary's size, costs no extra operation and makes memory independent of the vocabulary.

Some architectures scale their logits, z = s·(W·h + b), and some cap them, c·tanh(z/c) (Gemma Team 2024, section 2): then
row v of W is weighted by s·(1 − tanh²(z_v/c)). Any other head (with an additional layer, or an adapter) runs its own
code, differentiated by autograd in chunks that are computed again for their gradient. `head_of` tests which of the two a
model needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tiebreak.packed.parts import layers_of
from tiebreak.packed.products import affine, product
from tiebreak.packed.sharding import gathered, gathers_by_module
from tiebreak.upstream import replace_forward

CHUNK_TOKENS = 256
SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier")
"""names of the logits' factor in architectures' configurations"""
FOUND = "_tiebreak_head"
"""attribute of a model whose head was tested"""


@dataclass(frozen=True)
class HeadOutput:
    """One value per token, each of shape (tokens,), in float32, or float64 for such a model.

    Only `logps` has a gradient, and `entropy` if requested.
    """

    logps: Tensor
    entropy: Tensor
    """in nats"""
    mean_logits: Tensor
    is_top1: Tensor
    """whether the token is the most likely one"""


@dataclass(frozen=True)
class Head:
    """How a causal language model computes logits from its last hidden states."""

    model: nn.Module
    linear: nn.Linear | None
    """None: the model's own code"""
    scale: float = 1.0
    cap: float | None = None

    def token_logps(
        self, hidden: Tensor, targets: Tensor, temperature: float = 1.0, *, entropy_gradient: bool = False
    ) -> HeadOutput:
        """Log-probabilities of `targets` under softmax(logits/temperature).

        Args:
            hidden: final hidden states, shape (tokens, hidden).
            targets: token ids, shape (tokens,).
            entropy_gradient: give the entropy a gradient too, for one more matrix product.
        """
        trains = self.linear is not None and self.linear.weight.requires_grad and torch.is_grad_enabled()
        if self.linear is None or trains:
            return _own_token_logps(self.model, hidden, targets, temperature, entropy_gradient)
        return token_logps(
            hidden,
            self.linear,
            targets,
            temperature,
            scale=self.scale,
            cap=self.cap,
            entropy_gradient=entropy_gradient,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states, (tokens, hidden) to (tokens, vocabulary)."""
        if self.linear is None:
            return own_logits(self.model, hidden)
        logits: Tensor = self.linear(hidden)
        return _shaped(logits, self.scale, self.cap)


def _shaped(logits: Tensor, scale: float, cap: float | None) -> Tensor:
    """Scaled, then capped."""
    if scale != 1.0:
        logits = logits * scale
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _of_chunk(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    scale: float,
    cap: float | None,
    sloped: bool,
    entropy_sloped: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """`HeadOutput`'s values of some tokens, and the slopes of log-probability and entropy by the hidden states.

    A function of its own, so that a chunk's tables of logits are freed before the next one's are made.
    """
    logits = affine(hidden, weight, bias)
    logits = _shaped(logits.to(torch.promote_types(logits.dtype, torch.float32)), scale, cap)
    means, top = logits.mean(-1), logits.argmax(-1) == targets
    steep = None if cap is None or not sloped else 1 - (logits / cap).square_()  # d cap·tanh(z/cap) / dz
    if temperature != 1.0:
        logits /= temperature
    log_probabilities = logits.log_softmax(-1)
    del logits
    picked = log_probabilities.gather(-1, targets[:, None]).squeeze(-1)
    probabilities = log_probabilities.exp()
    entropy = -torch.linalg.vecdot(probabilities, log_probabilities)
    slope = entropy_slope = None
    if sloped:
        pulled, own = probabilities, weight[targets].to(picked.dtype)
        if steep is not None:
            pulled, own = probabilities * steep, own * steep.gather(-1, targets[:, None])
        slope = (own - product(pulled.to(weight.dtype), weight).to(picked.dtype)) / (temperature / scale)
    if entropy_sloped:  # dH/dlogit_v = −p_v·(log p_v + H)
        pull = probabilities * (log_probabilities + entropy[:, None])
        if steep is not None:
            pull = pull * steep
        entropy_slope = product(pull.to(weight.dtype), weight).to(picked.dtype) / -(temperature / scale)
    return picked, entropy, means, top, slope, entropy_slope


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        scale: float,
        cap: float | None,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0]
        chunks = zip(hidden.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True)
        made = [
            _of_chunk(h, weight, bias, y, temperature, scale, cap, wanted, entropy_gradient and wanted)
            for h, y in chunks
        ]
        outputs, slopes = [chunk[:4] for chunk in made], [chunk[4] for chunk in made]
        entropy_slopes = [chunk[5] for chunk in made]
        logps, entropy, means, top = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        if wanted:
            ctx.save_for_backward(*(torch.cat(parts) for parts in (slopes, entropy_slopes) if parts[0] is not None))
        ctx.dtype = hidden.dtype
        ctx.mark_non_differentiable(*(() if entropy_gradient else (entropy,)), means, top)
        return logps, entropy, means, top

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradient = sum(slopes * grad[:, None] for slopes, grad in zip(ctx.saved_tensors, grads[:2], strict=False))
        return gradient.to(ctx.dtype), None, None, None, None, None, None, None


def token_logps(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    temperature: float = 1.0,
    *,
    scale: float = 1.0,
    cap: float | None = None,
    entropy_gradient: bool = False,
) -> HeadOutput:
    """Log-probabilities of `targets` under softmax(f(head(hidden))/temperature), f of `scale` and `cap`.

    Args:
        hidden: final hidden states, shape (tokens, hidden).
        head: a frozen linear layer from hidden to vocabulary.
        targets: token ids, shape (tokens,).
        scale: factor of the head's outputs.
        cap: bound of the scaled outputs, by cap·tanh(z/cap); None: no bound.
        entropy_gradient: give the entropy a gradient too, for one more matrix product.

    Raises:
        ValueError: the head is trained, which this gradient does not cover.
    """
    weight, bias = head.weight, getattr(head, "bias", None)
    if torch.is_grad_enabled() and weight.requires_grad:
        raise ValueError("the language-model head is trained, but token_logps gives it no gradient")
    with gathered([p for p in (weight, bias) if p is not None]):  # ZeRO-3's hooks react to module calls, not to weights
        if not len(targets):
            return _of_nothing(hidden)
        logps, entropy, means, top = _TokenLogps.apply(
            hidden, weight, bias, targets, temperature, scale, cap, entropy_gradient
        )
    return HeadOutput(logps, entropy, means, top)


def _of_nothing(hidden: Tensor) -> HeadOutput:
    """No tokens, but part of the backward pass."""
    zero = hidden.sum() * 0.0
    empty = hidden.new_zeros(0, dtype=torch.float32)
    return HeadOutput(empty + zero, empty, empty, empty.bool())


# --- the model's own head


def head_of(model: nn.Module) -> Head:
    """How a model computes its logits: a linear layer with scale and cap, if that is all; otherwise its own code.

    Args:
        model: a causal language model without PEFT's wrapper, with its adapters.

    Raises:
        NotImplementedError: its head cannot be separated from its forward.
    """
    linear = model.get_output_embeddings()
    found: tuple[nn.Module, Head] | None = model.__dict__.get(FOUND)
    if found is None or found[0] is not linear:  # PEFT may replace it
        found = (linear, _try_head(model, linear))
        model.__dict__[FOUND] = found
    return found[1]


@torch.no_grad()
def _try_head(model: nn.Module, linear: nn.Module) -> Head:
    text = model.config.get_text_config()
    scale, cap = _scale_of(text), getattr(text, "final_logit_softcapping", None)
    if type(linear) is nn.Linear and scale and _is_own(model, Head(model, linear, scale, cap)):
        return Head(model, linear, scale, cap)
    own_logits(model, _some_states(model)[0])  # raises if it cannot be called
    return Head(model, None)


def _scale_of(text: Any) -> float:
    """The factor of the logits, from the names in transformers' configurations."""
    for name in SCALES:
        if getattr(text, name, None) is not None:
            return float(getattr(text, name))
    divisor = getattr(text, "logits_scaling", None)
    if divisor is None:
        return 1.0
    return float(divisor) if text.model_type == "hyperclovax" else 1.0 / divisor


@torch.no_grad()
def _is_own(model: nn.Module, head: Head) -> bool:
    """Whether a head agrees with the model's own code, on small and large numbers."""
    weight = model.get_output_embeddings().weight
    if weight.is_meta or (hasattr(weight, "ds_id") and not gathers_by_module(model)):  # assumed: it was tested before
        return True
    for hidden in _some_states(model):
        ours, theirs = head.logits(hidden).float(), own_logits(model, hidden).float()
        allowed = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 0.02
        if not bool((ours - theirs).abs().max() <= allowed * theirs.abs().max()):
            return False
    return True


def _some_states(model: nn.Module) -> list[Tensor]:
    """Hidden states, shape (3, hidden), small and large, without a generator: small ones do not show a cap."""
    weight = model.get_output_embeddings().weight
    size = getattr(weight, "ds_shape", weight.shape)[-1]  # of the whole weight, where ZeRO-3 has sharded it
    steps = torch.arange(3 * size, device=weight.device, dtype=torch.float32).view(3, size)
    return [(magnitude * torch.sin(steps)).to(weight.dtype) for magnitude in (1.0, 30.0)]


def own_logits(model: nn.Module, hidden: Tensor, **options: Any) -> Tensor:
    """The logits of a model's own forward for last hidden states, (tokens, hidden) to (tokens, vocabulary)."""
    logits: Tensor = own_head(model, hidden, **options).logits
    return logits[0]


def own_head(model: nn.Module, hidden: Tensor, outputs: dict[str, Any] | None = None, **options: Any) -> Any:
    """A model's own forward, applied to last hidden states: all of its code except the layers.

    Args:
        hidden: shape (tokens, hidden).
        outputs: further outputs of the layers, such as router logits.
        options: of the forward.

    Raises:
        NotImplementedError: its forward does not call its layers as one module.
    """
    ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
    output = _LayersOutput(hidden[None], outputs or {})
    with _layers_return(layers_of(model), output) as calls:
        made = type(model).forward(model, input_ids=ids, use_cache=False, **options)
    if not calls:
        raise NotImplementedError(f"the head of {type(model).__name__} cannot be called separately")
    return made


class _LayersOutput:
    """The layers' output, as far as the head reads it."""

    def __init__(self, hidden: Tensor, outputs: dict[str, Any]) -> None:
        self.last_hidden_state = hidden
        self.__dict__.update(outputs)

    def __getitem__(self, place: Any) -> Any:
        return (self.last_hidden_state,)[place]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _layers_return(layers: nn.Module, output: _LayersOutput) -> Iterator[list[int]]:
    """Makes the layers, and any inner model that the head may call instead, return `output`; counts the calls."""
    from transformers import PreTrainedModel

    calls: list[int] = []

    def forward(*_: Any, **__: Any) -> _LayersOutput:
        calls.append(1)
        return output

    stubbed = [layers, *(child for child in layers.children() if isinstance(child, PreTrainedModel))]
    before = [(module, replace_forward(module, forward)) for module in stubbed]
    try:
        yield calls
    finally:
        for module, own in before:
            replace_forward(module, own)


def _own_token_logps(
    model: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, entropy_gradient: bool
) -> HeadOutput:
    if not len(targets):
        return _of_nothing(hidden)

    def chunk(h: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return read_logits(own_logits(model, h), y, temperature)

    made = [
        checkpoint(chunk, h, y, use_reentrant=False) if torch.is_grad_enabled() else chunk(h, y)
        for h, y in zip(hidden.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True)
    ]
    logps, entropy, means, top = (torch.cat(parts) for parts in zip(*made, strict=True))
    return HeadOutput(logps, entropy if entropy_gradient else entropy.detach(), means.detach(), top)


def read_logits(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities of `targets`, entropies, mean logits, and whether each target is the most likely token.

    Args:
        logits: shape (…, vocabulary).
        targets: shape (…), as is each result.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probabilities = (logits / temperature).log_softmax(-1)
    picked = log_probabilities.gather(-1, targets[..., None]).squeeze(-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
    return picked, entropy, logits.mean(-1), logits.argmax(-1) == targets
