"""Attention within the trees of a packed row, through transformers' attention interface.

Each tree attends separately, so its cost depends on its own length, not on the row's. Within a tree, the shared tokens
attend causally among themselves, and every rest attends to them and to itself. Tokens that a tree borrows are prepended
to its own, for attention only. Both use torch's scaled_dot_product_attention. Timed on CPUs only; on a GPU the same calls
run, but were never timed.

A model keeps this attention once it is set: with gradient checkpointing, the backward pass computes layers again and
must find it. Calls without a packed row go to transformers' own sdpa attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tiebreak.packed.packing import PackedRow, Tree, TreeMasks

TREE_ATTENTION = "tiebreak_trees"
UNKNOWN_TERMS = ("softcap", "s_aux", "position_bias")
"""additions of some architectures' attention that this one lacks"""


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
        query, key, value: shape (1, heads, N, head size), with fewer heads in key and value if they are grouped.
        packed_row: the row's trees; None goes to transformers' own sdpa attention.

    Returns:
        Shape (1, N, heads, head size).

    Raises:
        NotImplementedError: the architecture's attention has an additional term.
    """
    groups = query.shape[1] // key.shape[1]
    unknown = [name for name in UNKNOWN_TERMS if kwargs.get(name) is not None]
    if packed_row is None and query.shape[2] == 1 and groups > 1 and attention_mask is not None and not unknown:
        return _attend_one(query, key, value, attention_mask, dropout, scaling), None
    if packed_row is None:
        window = {} if sliding_window is None else {"sliding_window": sliding_window}
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **window, **kwargs
        )
        return plain
    if unknown:
        raise NotImplementedError(f"its attention has {' and '.join(unknown)}")
    sizes = [tree.tokens for tree in packed_row.trees]
    parts = [whole.split(sizes, dim=2) for whole in (query, repeat_kv(key, groups), repeat_kv(value, groups))]
    outputs: list[Tensor] = []
    for number, (tree, masks) in enumerate(zip(packed_row.trees, packed_row.masks(sliding_window), strict=True)):
        if tree.tokens:
            q, k, v = (_whole_tree(tree, part[number], part[0]) for part in parts)
            output = _attend_within(tree, masks, q, k, v, dropout, scaling)
            outputs += [each[:, :, tree.borrowed :] if n == 0 else each for n, each in enumerate(output)]
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1), None


def _attend_one(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, scaling: float | None
) -> Tensor:
    """Attention of one new token per row, shape (rows, 1, heads, head size). Heads that share a key head are treated as
    several queries, so keys and values need not be copied for each head."""
    rows, heads, _, size = query.shape
    grouped = query.view(rows, key.shape[1], -1, size)
    attended = _attend(grouped, key, value, mask.expand(-1, -1, grouped.shape[2], -1), dropout, scaling)
    return attended.reshape(rows, 1, heads, size)


def _whole_tree(tree: Tree, own: Tensor, first: Tensor) -> Tensor:
    """A tree's tokens, preceded by those it borrows from the row's first tree."""
    return torch.cat([first[:, :, : tree.borrowed], own], dim=2) if tree.borrowed else own


def _attend_within(
    tree: Tree, masks: TreeMasks, q: Tensor, k: Tensor, v: Tensor, dropout: float, scaling: float | None
) -> list[Tensor]:
    """Attention of the shared tokens, then of the rests."""
    if not tree.rests or masks.whole is not None:
        return [_attend(q, k, v, masks.shared if masks.whole is None else masks.whole, dropout, scaling)]
    of_shared, of_rests = q[:, :, : tree.shared], q[:, :, tree.shared :]
    ours = slice(0, tree.shared)
    shared = _attend(of_shared, k[:, :, ours], v[:, :, ours], masks.shared, dropout, scaling)
    return [shared, _attend(of_rests, k, v, masks.rests, dropout, scaling)] if of_rests.shape[2] else [shared]


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scaling: float | None) -> Tensor:
    return scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
    )


AttentionInterface.register(TREE_ATTENTION, tree_attention)
AttentionMaskInterface.register(TREE_ATTENTION, sdpa_mask)
