"""Sequences laid end to end in rows without padding, with the common beginning of a group laid only once.

In the plain layout, a batch is as wide as its longest row, and repeats a prompt for each of its completions. Here a group
of sequences with a common beginning is a tree: the shared tokens, then the rest of each; and trees follow each other in
rows of limited length. Groups with a common prompt become one tree, and a repeated sequence is laid once: pairs of K
answers to a prompt cost K answers, not 2 per pair. The beginning of all sequences of a batch, such as a chat template's
system message, is laid once per row, in its first tree, and borrowed by the others. tiebreak.packed.attention separates
trees, and the rests within one, so each token's hidden state is the same as in a row of its own. (Shared-prefix
training: arXiv 2410.20305; all comparisons of a prompt in one batch element: Ouyang et al. 2022, 3.5.)
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

LEAST_BORROWED = 8
"""Below this many tokens, borrowing costs more in copying than it saves."""
MOST_RESTS = 8
LEAST_SAVED = 0.1
"""Groups are joined into trees of at most this many rests, if that saves this share of their tokens: attention within a
tree grows with the square of the rests' tokens, so prompts with only a common first word are better left apart."""
WHOLE_TOKENS = 384
"""A tree of at most this many tokens attends in one call, under one mask, and its gradient needs no assembly. Several
short trees in one such call were no faster: their tokens do not see each other, which costs as much as a call."""


@dataclass(frozen=True)
class Tree:
    """Sequences with a common beginning: the shared tokens, then the rest of each."""

    shared: int
    """number of shared tokens, including borrowed ones"""
    rests: tuple[int, ...]
    """number of tokens of each rest"""
    borrowed: int = 0
    """number of first tokens that are at the beginning of the row, in the first tree"""

    @property
    def tokens(self) -> int:
        """Its own tokens in the row."""
        return self.shared - self.borrowed + sum(self.rests)


@dataclass(frozen=True)
class TreeMasks:
    """Attention masks of one tree; None: causal."""

    shared: Tensor | None
    """bool, shape (shared, shared)"""
    rests: Tensor
    """bool, shape (tokens of all rests, shared tokens and those)"""
    whole: Tensor | None
    """bool, shape (tokens, tokens), for a tree too short to split into two parts"""


@dataclass(frozen=True)
class PackedRow:
    """Trees end to end. N is the number of tokens."""

    input_ids: Tensor
    """shape (1, N)"""
    position_ids: Tensor
    """position of each token in its own sequence; shape (1, N)"""
    trees: tuple[Tree, ...]
    _masks: dict[int | None, list[TreeMasks]] = field(default_factory=dict)

    def masks(self, window: int | None) -> list[TreeMasks]:
        """Masks of every tree, for attention to the last `window` positions; built once for all layers."""
        if window not in self._masks:
            positions = self.position_ids[0].split([tree.tokens for tree in self.trees])
            whole = [torch.cat([positions[0][: t.borrowed], p]) for t, p in zip(self.trees, positions, strict=True)]
            self._masks[window] = [_tree_masks(t, p, window) for t, p in zip(self.trees, whole, strict=True)]
        return self._masks[window]

    @property
    def windows(self) -> set[int | None]:
        """The windows requested so far."""
        return set(self._masks)


@dataclass(frozen=True)
class Packing:
    """All sequences of a batch, in rows within the token budget. S sequences."""

    rows: tuple[PackedRow, ...]
    row: Tensor
    """each sequence's row; shape (S,)"""
    shared: Tensor
    """number of its tokens that are shared; shape (S,)"""
    borrowed: Tensor
    """number of those at the beginning of the row; shape (S,)"""
    origin: Tensor
    """position in the row of its first shared token that is not borrowed; shape (S,)"""
    rest: Tensor
    """position in the row of its first own token; shape (S,)"""

    def place(self, sequence: Tensor, step: Tensor) -> Tensor:
        """Position in its row of a sequence's token `step`."""
        shared, borrowed = self.shared[sequence], self.borrowed[sequence]
        in_tree = torch.where(step < shared, self.origin[sequence] - borrowed, self.rest[sequence] - shared)
        return step + torch.where(step < borrowed, 0, in_tree)


def pack_sequences(
    sequences: Sequence[Sequence[int]],
    groups: Sequence[Sequence[int]] | None = None,
    tokens_per_row: int | None = None,
    device: torch.device | str = "cpu",
) -> Packing:
    """Lay sequences into rows.

    Args:
        sequences: token ids; none may be empty.
        groups: indices of sequences with a common beginning that must be in one row, each sequence in one group; None: one
            group per sequence. Groups of one prompt are joined if that leaves fewer tokens.
        tokens_per_row: start another row rather than exceed it, except for a single longer tree.
    """
    rows: list[PackedRow] = []
    where: dict[int, tuple[int, int, int, int, int]] = {}
    everywhere = _shared_prefix(sequences)
    beginning = everywhere if everywhere >= LEAST_BORROWED else 0
    ids: list[int] = []
    positions: list[int] = []
    trees: list[Tree] = []

    def close() -> None:
        row_ids, row_positions = torch.tensor([ids, positions], dtype=torch.long, device=device).split(1)
        rows.append(PackedRow(row_ids, row_positions, tuple(trees)))
        ids.clear()
        positions.clear()
        trees.clear()

    alone = [[number] for number in range(len(sequences))]
    apart = alone if groups is None else _without_strangers(sequences, groups)
    for group in _joined(apart, sequences, beginning, tokens_per_row):
        members = _different(sequences[number] for number in group)
        shared = _shared_prefix(members)
        rests = tuple(len(member) - shared for member in members) if len(members) > 1 else ()
        tree = Tree(shared, rests, beginning if ids else 0)
        if ids and tokens_per_row is not None and len(ids) + tree.tokens > tokens_per_row:
            close()
            tree = Tree(shared, rests)
        origin = len(ids)
        ids += members[0][tree.borrowed : shared]
        positions += range(tree.borrowed, shared)
        rest: dict[tuple[int, ...], int] = {}
        for member in members:
            rest[member] = len(ids)
            ids += member[shared:]
            positions += range(shared, len(member))
        for number in group:
            where[number] = (len(rows), shared, tree.borrowed, origin, rest[tuple(sequences[number])])
        trees.append(tree)
    close()
    columns = torch.tensor([where[number] for number in range(len(sequences))], dtype=torch.long, device=device)
    return Packing(tuple(rows), *columns.unbind(1))


def pack_padded(
    input_ids: Tensor, attention_mask: Tensor, together: int, tokens_per_row: int | None = None, last: bool = True
) -> Packing:
    """`pack_sequences` of right-padded rows in TRL's order: with B groups, row b + k·B is the k-th of group b.

    Args:
        input_ids, attention_mask: shape (together·B, T).
        last: whether each row's last token is needed; it is not if rows are read for their following tokens.
    """
    lengths = (attention_mask.sum(1) - int(not last)).clamp(min=1).tolist()
    sequences = [row[:length] for row, length in zip(input_ids.tolist(), lengths, strict=True)]
    count = len(sequences) // together
    groups = [[group + count * k for k in range(together)] for group in range(count)]
    return pack_sequences(sequences, groups, tokens_per_row, input_ids.device)


def _without_strangers(sequences: Sequence[Sequence[int]], groups: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """The groups, splitting those whose sequences share nothing: each is then a tree without a mask."""
    apart: list[Sequence[int]] = []
    for group in groups:
        alike = _shared_prefix([sequences[number] for number in group]) > 0
        apart += [group] if alike else [[number] for number in group]
    return apart


def _joined(
    groups: Sequence[Sequence[int]], sequences: Sequence[Sequence[int]], beginning: int, tokens_per_row: int | None
) -> list[Sequence[int]]:
    """The groups in order, those of one prompt joined if that leaves fewer tokens to compute."""
    joined: list[tuple[Sequence[int], int]] = []  # group, number of its tokens
    for group in sorted(groups, key=lambda group: tuple(sequences[group[0]])):  # puts similar ones side by side
        tokens = _tree_tokens(group, sequences)
        if joined:
            before, tokens_before = joined[-1]
            both = [*before, *group]
            together = _tree_tokens(both, sequences)
            fits = tokens_per_row is None or together <= max(tokens_per_row, tokens)
            few = len(_different(sequences[number] for number in both)) <= MOST_RESTS
            if fits and few and together <= (1 - LEAST_SAVED) * (tokens_before + tokens - beginning):
                joined[-1] = (both, together)
                continue
        joined.append((group, tokens))
    return sorted((group for group, _ in joined), key=min)


def _tree_tokens(group: Sequence[int], sequences: Sequence[Sequence[int]]) -> int:
    members = _different(sequences[number] for number in group)
    shared = _shared_prefix(members)
    return shared + sum(len(member) - shared for member in members)


def _different(sequences: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
    """Distinct sequences."""
    return list(dict.fromkeys(map(tuple, sequences)))


def _shared_prefix(members: Sequence[Sequence[int]]) -> int:
    """Length of their common beginning: that of the first and last in dictionary order."""
    first, last = min(map(tuple, members)), max(map(tuple, members))
    return bisect.bisect_left(range(min(len(first), len(last))), True, key=lambda n: first[: n + 1] != last[: n + 1])


def _tree_masks(tree: Tree, positions: Tensor, window: int | None) -> TreeMasks:
    branches = torch.repeat_interleave(
        torch.arange(len(tree.rests) + 1, device=positions.device),
        torch.tensor((tree.shared, *tree.rests), device=positions.device),
    )
    behind = positions[:, None] - positions
    sees = (behind >= 0) & ((branches == 0) | (branches == branches[:, None]))
    if window is not None:
        sees &= behind < window
    whole = window is None or window >= tree.shared
    return TreeMasks(
        shared=None if whole else sees[: tree.shared, : tree.shared],
        rests=sees[tree.shared :],
        whole=sees if tree.rests and len(positions) <= WHOLE_TOKENS else None,
    )
