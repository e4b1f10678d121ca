"""Matrix products in float32 on a CPU: torch's own, or oneDNN's (`training.matrix_products`).

torch multiplies by MKL, which leaves AVX-512 unused on processors that are not Intel's. oneDNN, which torch has too, uses
it wherever it is: on an AMD EPYC (Zen 5), its products take half the time. It adds in another order, so the results
differ in the last digits.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor
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
