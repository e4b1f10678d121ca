"""LoRA that starts in the directions in which its layers' inputs vary most (EVA, Paischer et al. 2024).

A's rows are the first right singular vectors of each layer's inputs on training rows; B is 0, so a new adapter changes no
answer, and the base stays as it is. Every layer keeps its rank (the paper's ρ = 1): its redistribution of ranks would
make an adapter that `adapter.r` does not describe.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tiebreak.errors import ConfigError
from tiebreak.packed.fused import own_computation

TOKENS = 2048
"""of the training rows: directions settle within a few batches (Paischer et al. 2024, Section 4)"""
BLOCK = 256
"""tokens that are added at a time"""
MORE = 32
"""directions beyond the rank that are kept until the last block"""


class Directions:
    """The first right singular vectors of rows that come in blocks (Ross et al. 2008, without their mean)."""

    def __init__(self, rank: int) -> None:
        self._kept = max(2 * rank, rank + MORE)
        self._table: Tensor | None = None
        """singular values times vectors, shape (directions, columns)"""
        self._new: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Rows of shape (rows, columns)."""
        self._new.append(rows.double())
        if sum(map(len, self._new)) >= BLOCK:
            self._join()

    def _join(self) -> None:
        table = torch.cat([*([] if self._table is None else [self._table]), *self._new])
        self._new = []
        if len(table) <= table.shape[1]:  # of the smaller Gram matrix
            values, left = torch.linalg.eigh(table @ table.T)
            scaled = left.T @ table
        else:
            values, right = torch.linalg.eigh(table.T @ table)
            scaled = values.clamp(min=0).sqrt()[:, None] * right.T
        kept = values > values[-1] * 1e-12
        self._table = scaled[kept].flip(0)[: self._kept]

    def first(self, rank: int) -> Tensor:
        """Orthonormal, at most `rank` of them: as many as there were different rows. Shape (directions, columns)."""
        if self._new:
            self._join()
        assert self._table is not None
        first = self._table[:rank]
        return first / first.norm(dim=1, keepdim=True)


@torch.no_grad()
def start_from_inputs(model: Any, layers: Sequence[tuple[str, Any]], rows: Sequence[Sequence[int]]) -> None:
    """Give each LoRA layer's A the directions of its inputs.

    Args:
        layers: by name.
        rows: token ids.

    Raises:
        ConfigError: a layer is not a matrix.
    """
    found: dict[str, Directions] = {}
    hooks = []
    for name, layer in layers:
        base = layer.get_base_layer()
        if not isinstance(base, nn.Linear):
            raise ConfigError(
                f"adapter.init: eva reads the inputs of linear layers, and {name} is a {type(base).__name__}"
            )
        found[name] = Directions(layer.r["default"])
        hooks.append(layer.register_forward_pre_hook(partial(_note, found[name])))
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        with own_computation(model):
            for ids in _cut(rows):
                batch = torch.tensor([list(ids)], device=device)
                model(input_ids=batch, attention_mask=torch.ones_like(batch), use_cache=False)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    for name, layer in layers:
        weight = layer.lora_A["default"].weight
        first = found[name].first(len(weight))
        weight[: len(first)] = first.to(weight)


def _note(directions: Directions, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    directions.add(inputs[0].detach().flatten(0, -2))


def _cut(rows: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """The first rows, of at most `TOKENS` tokens together."""
    chosen: list[Sequence[int]] = []
    left = TOKENS
    for row in rows:
        if left <= 0:
            break
        chosen.append(row[:left])
        left -= len(row)
    return chosen
