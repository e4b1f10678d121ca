"""Attention within the trees of a packed row, as an attention of transformers' own interface.

Each tree attends by itself, so the cost is that of its own length, however many others share the row. Within a tree the
shared tokens attend causally among themselves, and then every rest to them and to itself. torch's
scaled_dot_product_attention does both, with the kernel it finds best. Measured on CPUs only: on a GPU the same calls
run, but were never timed.

A model keeps this attention once it has it: with gradient checkpointing a layer is computed again in the backward pass,
and must find it then. A call that brings no packed row goes to transformers' own sdpa attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tiebreak.packing import PackedRow

TREE_ATTENTION = "tiebreak_trees"
UNKNOWN_TERMS = ("softcap", "s_aux", "position_bias")
"""what some architectures add to their attention, and this one does not have"""


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_row: PackedRow | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' models call it.

    Args:
        query, key, value: shape (1, heads, N, head size), of fewer heads in key and value where they are grouped.
        packed_row: the row's trees; None goes to transformers' own sdpa attention.

    Returns:
        Shape (1, N, heads, head size).

    Raises:
        NotImplementedError: the architecture's attention has a term of its own.
    """
    if packed_row is None:
        window = {} if sliding_window is None else {"sliding_window": sliding_window}
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **window, **kwargs
        )
        return plain
    unknown = [name for name in UNKNOWN_TERMS if kwargs.get(name) is not None]
    if unknown:
        raise NotImplementedError(f"its attention has {' and '.join(unknown)}")
    groups = query.shape[1] // key.shape[1]
    sizes = [tree.tokens for tree in packed_row.trees]
    parts = zip(
        packed_row.trees,
        packed_row.masks(sliding_window),
        query.split(sizes, dim=2),
        repeat_kv(key, groups).split(sizes, dim=2),
        repeat_kv(value, groups).split(sizes, dim=2),
        strict=True,
    )
    outputs: list[Tensor] = []
    for tree, masks, q, k, v in parts:
        if not tree.rests:
            outputs.append(_attend(q, k, v, masks.shared, dropout, scaling))
            continue
        ours = slice(0, tree.shared)
        of_shared, of_rests = q.split([tree.shared, tree.tokens - tree.shared], dim=2)
        outputs.append(_attend(of_shared, k[:, :, ours], v[:, :, ours], masks.shared, dropout, scaling))
        if tree.tokens > tree.shared:
            outputs.append(_attend(of_rests, k, v, masks.rests, dropout, scaling))
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1), None


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scaling: float | None) -> Tensor:
    return scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
    )


AttentionInterface.register(TREE_ATTENTION, tree_attention)
AttentionMaskInterface.register(TREE_ATTENTION, sdpa_mask)
