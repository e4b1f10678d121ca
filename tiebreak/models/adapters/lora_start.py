"""LoRA that starts from the weights themselves (PiSSA, OLoRA), on a base that stays as it is.

PEFT takes the start B₀A₀ out of the base weights, so the adapter no longer fits the base on disk, a reference without the
adapter is another model, and a second adapter would start from weights that are changed already. Here the adapter has
twice the rank: its first half, A and B, starts as A₀ and B₀ and trains; its second half holds A₀ and −B₀ and never
changes. The layer computes

    W x + s (B A − B₀ A₀) x,

which is PiSSA's (W − s B₀A₀) x + s B A x, with the same gradients of A and B. A new adapter changes no answer, and on disk
it is plain LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tiebreak.config import AdapterConfig
from tiebreak.errors import ConfigError
from tiebreak.models.adapters.eva import start_from_inputs

FROM_WEIGHTS = ("pissa", "olora")


@torch.no_grad()
def start(model: Any, adapter: AdapterConfig, rows: Sequence[Sequence[int]] = ()) -> None:
    """Give a new LoRA adapter its first values, as `adapter.init` says. PEFT has drawn those of the other kinds.

    Args:
        rows: token ids of training rows, for `eva`.

    Raises:
        ConfigError: a layer is not a matrix.
    """
    if adapter.method != "lora" or adapter.init == "default":
        return
    model.peft_config["default"].init_lora_weights = True  # a copy is not a new start
    from peft.tuners.lora import LoraLayer

    if adapter.init == "eva":
        layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]
        start_from_inputs(model, layers, rows)
    if adapter.init not in FROM_WEIGHTS:
        return
    from peft.utils.integrations import dequantize_module_weight

    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        base = layer.get_base_layer()
        if not isinstance(base, nn.Linear):
            raise ConfigError(
                f"adapter.init: {adapter.init} decomposes linear layers, and {name} is a {type(base).__name__}"
            )
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        rank = a.shape[0] // 2
        most = min(base.in_features, base.out_features)
        if rank > most:
            raise ConfigError(f"adapter.r: {name} has {most} singular values for init: {adapter.init}, not {rank}")
        weight = dequantize_module_weight(base).float()
        first_b, first_a = FIRST[adapter.init](weight, rank, layer.scaling["default"])
        a.copy_(torch.cat([first_a, first_a]))
        b.copy_(torch.cat([first_b, -first_b], dim=1))
        a.register_hook(lambda grad, rank=rank: torch.cat([grad[:rank], torch.zeros_like(grad[rank:])]))
        b.register_hook(lambda grad, rank=rank: torch.cat([grad[:, :rank], torch.zeros_like(grad[:, rank:])], dim=1))


def pissa(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """(B₀, A₀) with s·B₀A₀ the weight's best approximation of a rank. Meng et al. 2024, Eq. 2 and 3.

    Args:
        weight: shape (outputs, inputs).
    """
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    root = (values[:rank] / scaling).sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def olora(weight: Tensor, rank: int, _: float) -> tuple[Tensor, Tensor]:
    """(B₀, A₀), the first columns of Q and rows of R of W = QR. Büyükakyüz 2024, Algorithm 1.

    Args:
        weight: shape (outputs, inputs).
    """
    q, r = torch.linalg.qr(weight)
    return q[:, :rank], r[:rank]


FIRST = {"pissa": pissa, "olora": olora}
