"""Log-probabilities of completions under a policy, and scores under a reward model, of any number of examples.

They are computed packed (tiebreak.packed.forward): without padding, the common beginning of a prompt's completions
once, the head on completion tokens only. Architectures that do not support this use padded batches, whose masks come
from lengths and never from token ids, so a padding token within a text does no harm.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from tiebreak.packed.forward import TOKENS_PER_PASS, packed_log_probs, packed_scores, packs
from tiebreak.packed.fused import fuse_layers
from tiebreak.packed.packing import pack_sequences
from tiebreak.packed.parts import layers_of, whole_model

Example = tuple[Sequence[int], Sequence[int]]
"""(prompt ids, completion ids)"""


def pad_right(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """(ids, attention mask), each of shape (rows, longest)."""
    width = max(map(len, rows))
    ids = torch.tensor([list(r) + [pad_id] * (width - len(r)) for r in rows], device=device)
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows], device=device)
    return ids, mask


def selected_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(logits)[target]. Logits of shape (…, vocabulary), targets (…); in float32."""
    logits = logits.float()
    return logits.gather(-1, targets[..., None]).squeeze(-1) - logits.logsumexp(-1)


def completion_logps(
    model: nn.Module, examples: Sequence[Example], pad_id: int, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Per-token log-probabilities of completions under softmax(logits / temperature).

    Returns:
        (logps, mask), each of shape (examples, longest completion): token t of completion i is logps[i, t].
    """
    device = next(model.parameters()).device
    ids, mask = pad_right([[*p, *c] for p, c in examples], pad_id, device)
    keep = ids.shape[1] - min(len(p) for p, _ in examples) + 1  # no logits before the first completion token
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits
    first = ids.shape[1] - keep
    lengths = torch.tensor([len(c) for _, c in examples], device=device)
    starts = torch.tensor([len(p) for p, _ in examples], device=device)
    steps = torch.arange(int(lengths.max()), device=device)
    completion_mask = steps < lengths[:, None]
    at = (starts[:, None] + steps).clamp(max=ids.shape[1] - 1)
    rows = torch.arange(len(examples), device=device)[:, None]
    logps = selected_logps(logits[rows, at - 1 - first] / temperature, ids[rows, at])
    return logps * completion_mask, completion_mask


@torch.no_grad()
def completion_logps_in_batches(
    model: nn.Module,
    examples: Sequence[Example],
    pad_id: int,
    batch_size: int,
    temperature: float = 1.0,
) -> list[list[float]]:
    """`completion_logps` of many examples; one list of floats each, in the examples' order.

    Args:
        pad_id, batch_size: for padded batches, if the model needs them.
    """
    whole = whole_model(model)
    results: list[list[float]] = [[] for _ in examples]
    if not packs(whole):
        for rows in batches_by_length([len(p) + len(c) for p, c in examples], batch_size):
            logps, _ = completion_logps(model, [examples[r] for r in rows], pad_id, temperature)
            for row, values in zip(rows, logps.tolist(), strict=True):
                results[row] = values[: len(examples[row][1])]
        return results
    fuse_layers(model)
    device = next(model.parameters()).device
    sequences = [[*p, *c] for p, c in examples]
    packing = pack_sequences(sequences, None, TOKENS_PER_PASS, device)
    cells = [(row, len(p) + t - 1, token) for row, (p, c) in enumerate(examples) for t, token in enumerate(c)]
    numbers, steps, targets = torch.tensor(cells, dtype=torch.long, device=device).reshape(-1, 3).unbind(1)
    out = packed_log_probs(whole, packing, numbers, steps, targets, temperature)
    for row, value in zip(out.sequence.tolist(), out.head.logps.tolist(), strict=True):
        results[row].append(value)
    return results


def scores_in_batches(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    pad_id: int,
    batch_size: int,
) -> list[float]:
    """A reward model's score of each sequence (prompt and completion), read at its last token; the mean of an ensemble.

    Args:
        pad_id, batch_size: for padded batches, if the model needs them.
    """
    return [statistics.fmean(members) for members in member_scores_in_batches(model, sequences, pad_id, batch_size)]


@torch.no_grad()
def member_scores_in_batches(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    pad_id: int,
    batch_size: int,
) -> list[list[float]]:
    """The scores of each sequence by each member of a reward model: one score unless it is an ensemble."""
    if not sequences:
        return []
    device = next(model.parameters()).device
    whole = whole_model(model)
    if packs(whole):
        fuse_layers(model)
        packing = pack_sequences(sequences, None, TOKENS_PER_PASS, device)
        last = torch.tensor([len(sequence) - 1 for sequence in sequences], device=device)
        scored: list[list[float]] = packed_scores(whole, packing, last).float().tolist()
        return scored
    results: list[list[float]] = [[] for _ in sequences]
    for rows in batches_by_length([len(s) for s in sequences], batch_size):
        ids, mask = pad_right([sequences[r] for r in rows], pad_id, device)
        hidden = layers_of(whole)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(rows), device=device), mask.sum(1) - 1]
        scores = whole.score(last)  # the classifier's own forward reads at the last id that is not padding
        for row, score in zip(rows, scores.float().tolist(), strict=True):
            results[row] = score
    return results


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Row indices in batches of similar length."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
