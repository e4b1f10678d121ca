"""Sequences laid end to end in one row, without padding, and what sequences of a group begin with laid there once.

A batch in the plain layout is as wide as its longest row, and repeats a prompt for every completion of it. Here a group
of sequences that begin alike is a tree: the tokens all of them begin with, then the rest of each; and trees follow one
another in a row of at most so many tokens. Groups that have a prompt in common become one tree, and a sequence that
comes twice is laid once: the pairs that raters made of K answers to a prompt cost K answers, not 2 a pair. What every
sequence of a batch begins with, as a chat template's system message, is laid once a row, in its first tree, and
borrowed by the others. tiebreak.packed.attention keeps trees, and the rests within one, from seeing one another, so
each token's hidden state is what it would be in a row of its own. (Shared-prefix training: arXiv 2410.20305; all
comparisons of a prompt in one batch element: Ouyang et al. 2022, 3.5.)
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

LEAST_BORROWED = 8
"""Fewer tokens are not worth the copying that borrowing them takes."""
MOST_RESTS = 8
LEAST_SAVED = 0.1
"""Groups are joined to trees of so many rests at most, and where that saves such a share of their tokens: within a tree
attention grows with the square of the rests' tokens, so prompts that begin with one word alike are better left alone."""
WHOLE_TOKENS = 384
"""A tree of so many tokens attends in one call, under a mask of all of them, and no gradient has to be put together.
Several short trees in one such call were no faster: their tokens do not see one another, which costs what a call does."""


@dataclass(frozen=True)
class Tree:
    """Sequences that begin alike: what they share, then what follows it in each."""

    shared: int
    """tokens, those borrowed among them"""
    rests: tuple[int, ...]
    """tokens of each"""
    borrowed: int = 0
    """its first tokens stand at the beginning of the row, in the first tree"""

    @property
    def tokens(self) -> int:
        """How many of its own it has in the row."""
        return self.shared - self.borrowed + sum(self.rests)


@dataclass(frozen=True)
class TreeMasks:
    """Who may attend to whom in one tree; None: causal, as it stands."""

    shared: Tensor | None
    """bool, shape (shared, shared)"""
    rests: Tensor
    """bool, shape (tokens of all rests, shared tokens and those)"""
    whole: Tensor | None
    """bool, shape (tokens, tokens), of a tree so short that its two parts are not worth taking apart"""


@dataclass(frozen=True)
class PackedRow:
    """Trees end to end. N is the number of tokens."""

    input_ids: Tensor
    """shape (1, N)"""
    position_ids: Tensor
    """where each token stands in its own sequence; shape (1, N)"""
    trees: tuple[Tree, ...]
    _masks: dict[int | None, list[TreeMasks]] = field(default_factory=dict)

    def masks(self, window: int | None) -> list[TreeMasks]:
        """Those of every tree, under attention to the last `window` positions alone; made once, for all layers."""
        if window not in self._masks:
            positions = self.position_ids[0].split([tree.tokens for tree in self.trees])
            whole = [torch.cat([positions[0][: t.borrowed], p]) for t, p in zip(self.trees, positions, strict=True)]
            self._masks[window] = [_tree_masks(t, p, window) for t, p in zip(self.trees, whole, strict=True)]
        return self._masks[window]

    @property
    def windows(self) -> set[int | None]:
        """Which have been asked for."""
        return set(self._masks)


@dataclass(frozen=True)
class Packing:
    """All sequences of a batch, in as many rows as the token budget makes of them. S sequences."""

    rows: tuple[PackedRow, ...]
    row: Tensor
    """which row a sequence is in; shape (S,)"""
    shared: Tensor
    """how many of its tokens it shares; shape (S,)"""
    borrowed: Tensor
    """how many of those stand at the beginning of the row; shape (S,)"""
    origin: Tensor
    """where its first shared token that is not borrowed stands in the row; shape (S,)"""
    rest: Tensor
    """where its first own token stands in the row; shape (S,)"""

    def place(self, sequence: Tensor, step: Tensor) -> Tensor:
        """Where token `step` of a sequence stands in its row."""
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
        groups: numbers of sequences that begin alike and must be in one row, every sequence in one group; None: each
            by itself. Those of one prompt are joined where that leaves fewer tokens.
        tokens_per_row: start another row rather than exceed it, except for a tree that is longer by itself.
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
    """`pack_sequences` of rows padded on the right, in TRL's order: of B groups, row b + k·B is the k-th of group b.

    Args:
        input_ids, attention_mask: shape (together·B, T).
        last: whether a row's last token is wanted too; where a row is read for the tokens that follow, it is not.
    """
    lengths = (attention_mask.sum(1) - int(not last)).clamp(min=1).tolist()
    sequences = [row[:length] for row, length in zip(input_ids.tolist(), lengths, strict=True)]
    count = len(sequences) // together
    groups = [[group + count * k for k in range(together)] for group in range(count)]
    return pack_sequences(sequences, groups, tokens_per_row, input_ids.device)


def _without_strangers(sequences: Sequence[Sequence[int]], groups: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """The groups, those whose sequences share nothing taken apart: each of them is a tree that needs no mask."""
    apart: list[Sequence[int]] = []
    for group in groups:
        alike = _shared_prefix([sequences[number] for number in group]) > 0
        apart += [group] if alike else [[number] for number in group]
    return apart


def _joined(
    groups: Sequence[Sequence[int]], sequences: Sequence[Sequence[int]], beginning: int, tokens_per_row: int | None
) -> list[Sequence[int]]:
    """The groups in their order, those of one prompt joined where that leaves fewer tokens to compute."""
    joined: list[tuple[Sequence[int], int]] = []  # a group, and its tokens
    for group in sorted(groups, key=lambda group: tuple(sequences[group[0]])):  # like ones stand side by side
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
    """Each sequence once."""
    return list(dict.fromkeys(map(tuple, sequences)))


def _shared_prefix(members: Sequence[Sequence[int]]) -> int:
    """How many tokens all of them begin with: those that the first and the last of them in dictionary order do."""
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
