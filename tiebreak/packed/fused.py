"""Layers over a frozen base, in fewer passes over memory.

Large matrix products run at a processor's full rate; the operations between them wait for memory. So a root-mean-square
norm and a gated MLP are one operation each here, besides the LoRA layers (tiebreak.packed.lora). The MLP stores its
input and the outputs of its gate and up projections for the backward pass, and computes the two products of those
again: it stores two of four tensors of the inner size.

Values and gradients equal the modules' own, up to the order of additions. A module is replaced only after a numerical
check, and calls that would differ (a trained base, autocast, quantised or sharded weights, an adapter with dropout) go
to the module's own forward.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tiebreak.packed.attention import TREE_ATTENTION
from tiebreak.packed.lora import Weights, fuse_lora, lora_forward, weights_of
from tiebreak.packed.parts import whole_model
from tiebreak.packed.products import linear_forward, products_engine
from tiebreak.upstream import attention_of, moves_weights, replace_forward, replaced_forward

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
"""transformers' names in Llama, Mistral, Qwen and similar models"""


@torch.no_grad()
def fuse_layers(model: nn.Module) -> dict[str, int]:
    """Fuse a model's norms, gated MLPs and LoRA layers; returns how many of each. With oneDNN's products, its other linear
    layers are computed by it too."""
    modules = list(model.modules())
    norms = [module for module in modules if _is_norm(module)]
    mlps = [module for module in modules if _is_gated_mlp(module)]
    linears = [m for m in modules if type(m) is nn.Linear] if products_engine() == "onednn" else []
    for module in linears:
        replace_forward(module, types.MethodType(linear_forward, module))
    for module in norms:
        replace_forward(module, types.MethodType(_norm_forward, module))
    for module in mlps:
        replace_forward(module, types.MethodType(_mlp_forward, module))
    return {"norms": len(norms), "MLPs": len(mlps), "LoRA layers": fuse_lora(model)}


@contextmanager
def own_forwards(model: nn.Module) -> Iterator[None]:
    """Within, a model's modules run their own code: for bitwise comparison with a freshly loaded model, even the order of
    additions must be the same."""
    before = [(module, replace_forward(module, None)) for module in _fused_modules(model)]
    try:
        yield
    finally:
        for module, forward in before:
            replace_forward(module, forward)


@contextmanager
def own_computation(model: nn.Module) -> Iterator[nn.Module]:
    """Within, a model uses only its own code; yields the model without PEFT's wrapper."""
    base = whole_model(model)
    packed = attention_of(base) == TREE_ATTENTION
    forward = replace_forward(base, None)
    if packed:
        base.set_attn_implementation("sdpa")
    try:
        with own_forwards(model):
            yield base
    finally:
        if packed:
            base.set_attn_implementation(TREE_ATTENTION)
        replace_forward(base, forward)


def unfuse_layers(model: nn.Module) -> None:
    """Let a model's modules run their own code again."""
    for module in _fused_modules(model):
        replace_forward(module, None)


def _fused_modules(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if getattr(replaced_forward(m), "__func__", None) in _FUSED]


# --- norms


class _RmsNorm(torch.autograd.Function):
    """y = weight · x / sqrt(mean(x²) + ε), with a frozen weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        size = x.shape[-1]
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(size).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        grad = grads[0] * weight
        along = torch.linalg.vecdot(grad, x).unsqueeze(-1).mul_(scale.pow(3)).div_(-x.shape[-1])
        return grad.mul_(scale).addcmul_(x, along), None, None


def _is_norm(module: Any) -> bool:
    """Whether a module is this norm: by its attributes and by a numerical check."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", None)
    if not isinstance(eps, float) or not isinstance(weight, Tensor) or weight.ndim != 1 or not _can_be_tried(module):
        return False
    x = _some_numbers(len(weight), weight)
    return weight.dtype == torch.float32 and _alike(_RmsNorm.apply(x, weight, eps), _own(module, x))


def _norm_forward(module: Any, x: Tensor) -> Tensor:
    weight = module.weight
    trains = weight.requires_grad or hasattr(weight, "ds_id")
    if trains or x.dtype != weight.dtype or torch.is_autocast_enabled(x.device.type):
        plain: Tensor = type(module).forward(module, x)
        return plain
    normed: Tensor = _RmsNorm.apply(x, weight, module.variance_epsilon)
    return normed


# --- gated MLPs


class _GatedMlp(torch.autograd.Function):
    """down(silu(gate(x)) · up(x)); after x, the `Weights` of the three in this order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Any) -> Tensor:
        gate, up, down = _three(weights)
        flat = x.reshape(-1, x.shape[-1])
        gated, gate_low = gate.forward(flat)
        upped, up_low = up.forward(flat)
        y, down_low = down.forward(silu(gated).mul_(upped))
        weights = (gate.weight, gate.a, gate.b, up.weight, up.a, up.b, down.weight, down.a, down.b)
        ctx.save_for_backward(flat, gated, upped, gate_low, up_low, down_low, *weights)
        ctx.scalings, ctx.shape = (gate.scaling, up.scaling, down.scaling), x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, gated, upped, gate_low, up_low, down_low, *weights = ctx.saved_tensors
        gate, up, down = (
            Weights(weights[3 * n], None, weights[3 * n + 1], weights[3 * n + 2], scaling)
            for n, scaling in enumerate(ctx.scalings)
        )
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        activated = silu(gated)
        inner, down_a, down_b = down.backward(grad, activated * upped, down_low)
        if inner is None:
            raise RuntimeError("the gradient of an MLP's inner tensor was not computed")
        up_grad = activated.mul_(inner)
        gate_grad = torch.ops.aten.silu_backward(inner.mul_(upped), gated)
        of_x = ctx.needs_input_grad[0]
        into, gate_a, gate_b = gate.backward(gate_grad, flat, gate_low, of_x=of_x)
        grad_x, up_a, up_b = up.backward(up_grad, flat, up_low, into, of_x=of_x)
        each = ((gate_a, gate_b), (up_a, up_b), (down_a, down_b))
        return (
            None if grad_x is None else grad_x.view(ctx.shape),
            *(given for a, b in each for given in (None, None, a, b, None)),
        )


def _three(flat: tuple[Any, ...]) -> tuple[Weights, Weights, Weights]:
    size = len(Weights._fields)
    return Weights(*flat[:size]), Weights(*flat[size : 2 * size]), Weights(*flat[2 * size :])


def _is_gated_mlp(module: Any) -> bool:
    """Whether a module is this MLP: by its attributes and by a numerical check."""
    layers = [getattr(module, name, None) for name in (*PROJECTIONS, "act_fn")]
    if not all(isinstance(layer, nn.Module) for layer in layers) or not _can_be_tried(module):
        return False
    like = next(module.parameters())
    x = _some_numbers(getattr(module.gate_proj, "in_features", 1), like)
    weights = _mlp_weights(module, x)
    return (
        weights is not None
        and _alike(silu(x), _own(module.act_fn, x))
        and _alike(_GatedMlp.apply(x, *weights), _own(module, x))
    )


def _mlp_weights(module: Any, x: Tensor) -> tuple[Any, ...] | None:
    """The arguments after x; None if a layer has more than `Weights` holds."""
    found: list[Any] = []
    for name in PROJECTIONS:
        weights = weights_of(getattr(module, name), x)
        if weights is None:
            return None
        found += weights
    return tuple(found)


def _mlp_forward(module: Any, x: Tensor) -> Tensor:
    weights = _mlp_weights(module, x)
    if weights is None:
        plain: Tensor = type(module).forward(module, x)
        return plain
    fused: Tensor = _GatedMlp.apply(x, *weights)
    return fused


_FUSED = (_norm_forward, _mlp_forward, lora_forward, linear_forward)


# --- numerical checks


def _can_be_tried(module: nn.Module) -> bool:
    """Whether a module takes one tensor, and its weights are loaded, whole and not offloaded."""
    taken = list(inspect.signature(type(module).forward).parameters.values())
    if len(taken) != 2 or taken[1].kind not in (taken[1].POSITIONAL_ONLY, taken[1].POSITIONAL_OR_KEYWORD):
        return False  # an additional gate, for example
    return not any(moves_weights(part) for part in module.modules()) and all(
        weight.is_floating_point() and not weight.is_meta and not hasattr(weight, "ds_id")
        for weight in module.parameters()
    )


def _own(module: nn.Module, x: Tensor) -> Any:
    """A module's own output for a tensor; None if it cannot be called so."""
    try:
        return type(module).forward(module, x)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return None


def _some_numbers(size: int, like: Tensor) -> Tensor:
    """Numbers from -3 to 3, shape (3, size), always the same, independent of training's generators."""
    steps = torch.arange(3 * size, device=like.device, dtype=torch.float32)
    return 3 * torch.sin(steps).view(3, size).to(like.dtype)


def _alike(ours: Tensor, theirs: Any) -> bool:
    if (
        not isinstance(theirs, Tensor) or theirs.shape != ours.shape
    ):  # a mixture's layer also returns its router's logits
        return False
    allowed = 1e-4 if theirs.dtype in (torch.float32, torch.float64) else 0.05
    return bool((ours - theirs).abs().max() <= allowed * theirs.abs().max())
