"""The packed forward's attention with torch's FlexAttention, to compare with the calls of SDPA that Tiebreak makes.

    model.set_attn_implementation(TREES_IN_FLEX)       # then tiebreak.packed.forward.hidden_states as usual

One block mask for a whole row, in place of one call or two for each of its trees. On a GPU it is compiled; on a CPU it is
not, and has no gradients: right, and slow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from tiebreak.packed.packing import PackedRow

TREES_IN_FLEX = "tiebreak_trees_in_flex"
_LAST: list[tuple[PackedRow, BlockMask]] = []
"""of the last row: built once for all layers"""


def flex_trees(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    packed_row: PackedRow,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' models call it, of a packed row; shapes as in tiebreak.packed.attention."""
    if not _LAST or _LAST[0][0] is not packed_row:
        _LAST[:] = [(packed_row, block_mask(packed_row))]
    mask = _LAST[0][1]
    grouped = key.shape[1] != query.shape[1]
    attend = _compiled() if query.is_cuda else flex_attention
    attended: Tensor = attend(query, key, value, block_mask=mask, scale=scaling, enable_gqa=grouped)
    return attended.transpose(1, 2), None


def block_mask(row: PackedRow) -> BlockMask:
    """A token sees the earlier ones of its sequence: those of its tree that are shared or in its rest, and those that the
    tree borrows from the row's first."""
    device = row.input_ids.device
    trees, branches, borrowed = (torch.tensor(column, device=device) for column in zip(*_places(row), strict=True))
    positions = row.position_ids[0]

    def sees(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        own = (trees[k] == trees[q]) & ((branches[k] == 0) | (branches[k] == branches[q]))
        beginning = (trees[k] == 0) & (branches[k] == 0) & (positions[k] < borrowed[q])
        return (own | beginning) & (positions[k] <= positions[q])

    tokens = row.input_ids.shape[1]
    return create_block_mask(sees, None, None, tokens, tokens, device=str(device))


def _places(row: PackedRow) -> list[tuple[int, int, int]]:
    """(tree, branch: 0 if shared, tokens that the tree borrows) of each token."""
    places: list[tuple[int, int, int]] = []
    for number, tree in enumerate(row.trees):
        places += [(number, 0, tree.borrowed)] * (tree.shared - tree.borrowed)
        for branch, tokens in enumerate(tree.rests, start=1):
            places += [(number, branch, tree.borrowed)] * tokens
    return places


_COMPILED: list[Any] = []


def _compiled() -> Any:
    if not _COMPILED:
        _COMPILED.append(torch.compile(flex_attention, dynamic=True))
    return _COMPILED[0]


AttentionInterface.register(TREES_IN_FLEX, flex_trees)
AttentionMaskInterface.register(TREES_IN_FLEX, sdpa_mask)
