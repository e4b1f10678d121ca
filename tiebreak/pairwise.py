"""One forward pass for all completions of a prompt, with no padding, in place of a model's own.

TRL lays a batch of pairs out as 2·B padded rows: every prompt is computed twice, and every short row as far as the
longest. Here a batch is packed (tiebreak.packing), each prompt once, and cut into passes of at most `tokens_per_pass`
tokens, so time and memory follow the tokens there are. Hidden states are those of the plain forward, and with them
every log-probability, score and gradient.

    pack_forward(trainer.model, together=2)     # TRL's trainers go on as they are, losses and metrics included

What the language-model head makes of a hidden state is computed for completion tokens alone (tiebreak.head), and what
LoRA adds to a linear layer in fewer passes over memory (tiebreak.lora).
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache

from tiebreak.attention import TREE_ATTENTION
from tiebreak.fused import fuse_layers
from tiebreak.head import HeadOutput, logits_are_plain, token_logps
from tiebreak.packing import PackedRow, Packing, pack_padded, pack_sequences
from tiebreak.runs import say
from tiebreak.sharding import most_of_all

TOKENS_PER_PASS = 1024
"""of a pass without its backward. Enough to keep a processor's matrix products at their full rate."""


def pack_forward(model: nn.Module, *, together: int, tokens_per_pass: int = TOKENS_PER_PASS) -> bool:
    """Let a model that one of TRL's trainers holds compute its batches packed.

    A causal model keeps TRL's own contract (`fused_lm_head=True` returns log-probabilities of the labels); a sequence
    classifier returns a score a row. Calls of any other form, generation among them, go to the forward that was there.

    Args:
        together: how many rows of a batch have the same prompt: 2 in TRL's batches of pairs, 1 where rows are their own.
        tokens_per_pass: where a batch has more, it is computed in several passes. While training, a pass is then
            computed again for its gradient, which costs a forward; tiebreak.passes avoids that where the loss allows.

    Returns:
        False, having said why, where the architecture cannot take it and the plain forward stays.
    """
    base = whole_model(model)
    reason = why_not(base)
    if reason:
        say(f"the plain forward stays: {type(base).__name__} cannot take packed rows, as {reason}")
        return False
    base.set_attn_implementation(TREE_ATTENTION)
    fuse_layers(model)
    plain_forward = base.forward
    patched = _scores if hasattr(base, "score") else _log_probs

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        ids = kwargs.get("input_ids")
        if args or ids is None or kwargs.get("attention_mask") is None or ids.shape[0] % together:
            return plain_forward(*args, **kwargs)
        return patched(self, plain_forward, together, tokens_per_pass, kwargs)

    base.forward = types.MethodType(forward, base)
    return True


def whole_model(model: nn.Module) -> nn.Module:
    """The model under a PEFT wrapper, its adapters still in it."""
    base: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base


def packs(model: nn.Module) -> bool:
    """Whether `hidden_states` may be asked of a model; if so, it attends within trees from now on."""
    if model.config._attn_implementation == TREE_ATTENTION:
        return True
    able = not why_not(model)
    if able:
        model.set_attn_implementation(TREE_ATTENTION)
    return able


def why_not(model: nn.Module) -> str:
    """Why an architecture cannot take packed rows; empty if it can. The model is left as it was.

    What cannot be read from its configuration is tried: a few tokens, packed and plain.
    """
    before = getattr(model.config, "_attn_implementation", None)
    if before not in ("sdpa", TREE_ATTENTION):
        return f"attention {before} is not torch's own (sdpa)"
    if not hasattr(model, "score") and not logits_are_plain(model):
        return "its logits are capped or scaled after the head"
    model.set_attn_implementation(TREE_ATTENTION)
    if model.config._attn_implementation != TREE_ATTENTION:
        return "its attention cannot be exchanged"
    try:
        reason: str = _differs(model)
    finally:
        model.set_attn_implementation(before)
    return reason


def hidden_states(model: nn.Module, row: PackedRow, cache: Cache | None = None) -> Tensor:
    """Last hidden states of a packed row, shape (N, hidden), by a model that `packs`.

    Args:
        cache: an empty one, to be given the row's keys and values.
    """
    causal = row.input_ids.new_ones(1, 1, 1, 1, dtype=torch.bool)  # of four dimensions: transformers makes no mask then
    hidden: Tensor = model.base_model(
        input_ids=row.input_ids,
        attention_mask=causal,
        position_ids=row.position_ids,
        packed_row=row,
        past_key_values=cache,
        use_cache=cache is not None,
    ).last_hidden_state
    return hidden[0]


@torch.no_grad()
def _differs(model: nn.Module) -> str:
    """Why packed rows give other hidden states than plain ones, on sequences that share some tokens; empty if not."""
    window = _window(model)
    vocabulary = model.config.get_text_config().vocab_size
    ids = [number % vocabulary for number in (7, 11, 3, 9, 5, 13, 8, 4, 6, 12, 10, 2)]
    # two of one prompt, and a third that begins alike
    sequences = [ids[:11], [*ids[:9], ids[11]], [*ids[:8], ids[3], ids[1]]]
    packing = pack_sequences(sequences, [[0, 1], [2]], device=next(model.parameters()).device)
    with _evaluating(model):
        try:
            packed = hidden_states(model, packing.rows[0])
        except (TypeError, ValueError, KeyError, RuntimeError, NotImplementedError, AttributeError) as error:
            return f"it was tried and failed: {str(error).splitlines()[0]}"
        for number, sequence in enumerate(sequences):
            row = packing.rows[0].input_ids.new_tensor([sequence])
            plain = model.base_model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False)[0][0]
            steps = torch.arange(len(sequence), device=row.device)
            there = packed[packing.place(torch.full_like(steps, number), steps)]
            allowed = 1e-3 if plain.dtype in (torch.float32, torch.float64) else 0.05
            if not bool((there - plain).abs().max() <= allowed * plain.abs().max()):
                return "it was tried, and its hidden states were others than those of plain rows"
    if window is not None and window not in packing.rows[0].windows:
        return "its attention slides over a window that it does not name"
    return ""


def _window(model: nn.Module) -> int | None:
    """The window that some layer's attention slides over."""
    text = model.config.get_text_config()
    window: int | None = getattr(text, "sliding_window", None)
    layers = getattr(text, "layer_types", None)
    slides = "sliding_attention" in layers if layers else getattr(text, "use_sliding_window", True)
    return window if slides else None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _in_passes(model: nn.Module, compute: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """`compute` of each, a row first; where there are several and gradients are wanted, none keeps its activations.

    Other processes may need more passes. Where they meet in every one, this one computes its last again and keeps
    nothing of it: slices of no length, so that it has a part in the backward pass.
    """

    def idle(*each: Any) -> Any:
        made = compute(*each)
        return made[:0] if isinstance(made, Tensor) else tuple(values[:0] for values in made)

    more = most_of_all(model, len(arguments), arguments[0][0].input_ids.device) - len(arguments)
    calls = [(compute, each) for each in arguments] + [(idle, arguments[-1])] * more
    if len(calls) == 1 or not torch.is_grad_enabled():
        return [call(*each) for call, each in calls]
    return [checkpoint(call, *each, use_reentrant=False) for call, each in calls]


def _log_probs(
    model: nn.Module, plain_forward: Any, together: int, tokens_per_pass: int, kwargs: dict[str, Any]
) -> Any:
    """TRL's fused forward: log-probabilities of `labels` that are not −100, in the plain layout."""
    if not kwargs.get("fused_lm_head") or kwargs.get("output_router_logits"):
        return plain_forward(**kwargs)
    from trl.trainer.utils import FusedCausalLMOutput

    labels = kwargs["labels"][:, 1:]
    wanted = labels != -100
    packing = pack_padded(kwargs["input_ids"], kwargs["attention_mask"], together, tokens_per_pass, last=False)
    rows, steps = wanted.nonzero(as_tuple=True)
    out, cells = packed_log_probs(model, packing, rows, steps, labels[wanted])

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(wanted.shape).index_put(cells, values)

    return FusedCausalLMOutput(
        loss=-out.logps.sum() / wanted.sum().clamp(min=1),
        log_probs=spread(out.logps),
        entropy=spread(out.entropy),
        log_sum_sq_probs=None,
        mean_logits=spread(out.mean_logits),
        is_top1=spread(out.is_top1),
        label_mask=wanted,
        aux_loss=None,
    )


def packed_log_probs(
    model: nn.Module, packing: Packing, sequence: Tensor, step: Tensor, targets: Tensor, temperature: float = 1.0
) -> tuple[HeadOutput, tuple[Tensor, Tensor]]:
    """What the head makes of token `step` of `sequence` for `targets`, each of shape (tokens,).

    Returns:
        It, and the (sequence, step) that each value is of: their order is that of the passes.
    """

    def one_pass(row: PackedRow, at: Tensor, wanted: Tensor) -> tuple[Tensor, ...]:
        different, which = torch.stack([at, wanted]).unique(dim=1, return_inverse=True)  # of sequences that come twice
        out = token_logps(
            hidden_states(model, row)[different[0]], model.get_output_embeddings(), different[1], temperature
        )
        return tuple(values[which] for values in (out.logps, out.entropy, out.mean_logits, out.is_top1))

    chosen = [(packing.row[sequence] == number).nonzero().squeeze(1) for number in range(len(packing.rows))]
    arguments = [
        (row, packing.place(sequence[picked], step[picked]), targets[picked])
        for row, picked in zip(packing.rows, chosen, strict=True)
    ]
    columns = zip(*_in_passes(model, one_pass, arguments), strict=True)
    order = torch.cat(chosen)
    return HeadOutput(*(torch.cat(column) for column in columns)), (sequence[order], step[order])


def _scores(model: nn.Module, plain_forward: Any, together: int, tokens_per_pass: int, kwargs: dict[str, Any]) -> Any:
    """A sequence classifier's logits, shape (rows, 1), each read at its row's last token."""
    if kwargs.get("labels") is not None:
        return plain_forward(**kwargs)
    from transformers.modeling_outputs import SequenceClassifierOutputWithPast

    mask = kwargs["attention_mask"]
    packing = pack_padded(kwargs["input_ids"], mask, together, tokens_per_pass)
    return SequenceClassifierOutputWithPast(logits=packed_scores(model, packing, mask.sum(1) - 1))


def packed_scores(model: nn.Module, packing: Packing, last: Tensor) -> Tensor:
    """A sequence classifier's score of every sequence, read at its token `last`; shape (sequences, labels)."""

    def one_pass(row: PackedRow, at: Tensor) -> Tensor:
        scores: Tensor = model.score(hidden_states(model, row)[at])
        return scores

    numbers = torch.arange(len(last), device=last.device)
    chosen = [numbers[packing.row == number] for number in range(len(packing.rows))]
    arguments = [(row, packing.place(picked, last[picked])) for row, picked in zip(packing.rows, chosen, strict=True)]
    scores = torch.cat(_in_passes(model, one_pass, arguments))
    return scores[torch.cat(chosen).argsort()]
