"""Matrix products in float32 on a CPU: torch's own, or oneDNN's (`training.matrix_products`).

torch multiplies by MKL, which leaves AVX-512 unused on processors that are not Intel's. oneDNN, which torch has too, uses
it wherever it is: on an AMD EPYC (Zen 5), its products take half the time. It adds in another order, so the results
differ in the last digits.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tiebreak.errors import MachineError
from tiebreak.upstream import has_onednn, onednn_linear

Engine = Literal["torch", "onednn"]
_engine: ContextVar[Engine] = ContextVar("engine", default="torch")
"""what multiplies in this process: set for a stage before its model is built"""


def use_products(engine: Engine) -> None:
    """Multiply with an engine from now on.

    Raises:
        MachineError: this machine cannot.
    """
    if engine == "onednn" and (torch.cuda.is_available() or not has_onednn()):
        why = "this machine has a GPU" if torch.cuda.is_available() else "this torch was built without it"
        raise MachineError(
            f"training.matrix_products: onednn multiplies float32 on a CPU, and {why}; use matrix_products: torch"
        )
    _engine.set(engine)


def products_engine() -> Engine:
    """What multiplies in this process."""
    return _engine.get()


def by_onednn(like: Tensor) -> bool:
    """Whether oneDNN multiplies tensors such as this one."""
    return _engine.get() == "onednn" and like.dtype == torch.float32 and like.device.type == "cpu"


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """xWᵀ + bias. x of shape (N, inputs), W (outputs, inputs)."""
    return onednn_linear(x, weight, bias) if by_onednn(x) else linear(x, weight, bias)


def product(a: Tensor, b: Tensor) -> Tensor:
    """ab, of shapes (N, K) and (K, M)."""
    return onednn_linear(a, b.T) if by_onednn(a) else a @ b


def add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add ab to a total, in place; a and b of shapes (N, K) and (K, M)."""
    return total.add_(onednn_linear(a, b.T)) if by_onednn(a) else total.addmm_(a, b)


def tall_product(a: Tensor, b: Tensor) -> Tensor:
    """aᵀb for many rows and a narrow b, of shapes (N, K) and (N, r)."""
    return onednn_linear(b.T, a.T).T if by_onednn(a) else a.T @ b


class _Linear(torch.autograd.Function):
    """y = xWᵀ + bias, W and bias frozen or trained."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(flat if weight.requires_grad else None, weight)
        ctx.shape = x.shape
        return onednn_linear(flat, weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        flat, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        return (
            product(grad, weight).view(ctx.shape) if of_x else None,
            product(grad.T, flat) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )


def linear_forward(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer's forward by oneDNN, where it is the engine and the weights are whole and of x's format."""
    weight = layer.weight
    whole = type(weight) is nn.Parameter and not hasattr(weight, "ds_id")
    if not by_onednn(x) or not whole or weight.dtype != x.dtype or torch.is_autocast_enabled("cpu") or not x.numel():
        return linear(x, weight, layer.bias)
    made: Tensor = _Linear.apply(x, weight, layer.bias)
    return made
