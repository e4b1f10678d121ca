"""One unpadded forward pass for all completions of a prompt, instead of the model's own.

TRL arranges a batch of pairs as 2·B padded rows: every prompt is computed twice, and every short row is as long as the
longest. Here a batch is packed (tiebreak.packed.packing), each prompt once, and split into passes of at most
`tokens_per_pass` tokens, so time and memory depend only on the tokens. Hidden states equal those of the plain forward,
and so do all log-probabilities, scores and gradients.

    pack_forward(trainer.model, together=2)     # TRL's trainers work unchanged, with the same losses and metrics

The language-model head runs on completion tokens only (tiebreak.packed.lm_head), and LoRA layers in fewer passes over
memory (tiebreak.packed.lora).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache

from tiebreak.packed.attention import TREE_ATTENTION
from tiebreak.packed.fused import fuse_layers
from tiebreak.packed.lm_head import Head, HeadOutput, head_of, own_head
from tiebreak.packed.packing import PackedRow, Packing, pack_padded, pack_sequences
from tiebreak.packed.parts import layers_of, whole_model
from tiebreak.packed.sharding import most_of_all
from tiebreak.upstream import attention_of, fused_output, replace_forward

TOKENS_PER_PASS = 1024
"""per pass without a backward pass; enough to keep a processor's matrix products at their full rate"""
REFUSED = "_tiebreak_refuses_packing"
"""attribute of a model whose packed batch differed from its own forward: the difference"""


def pack_forward(model: nn.Module, *, together: int, tokens_per_pass: int = TOKENS_PER_PASS) -> str:
    """Compute the batches of a TRL trainer's model packed.

    A causal model keeps TRL's contract (`fused_lm_head=True` returns log-probabilities of the labels); a sequence
    classifier returns one score per row. All other calls, such as generation, go to the previous forward.

    Args:
        together: rows of a batch with the same prompt: 2 in TRL's batches of pairs, 1 otherwise.
        tokens_per_pass: larger batches are computed in several passes. In training, each pass is then computed again
            for its gradient, which costs a forward; tiebreak.training.passes avoids that where the loss allows.

    Returns:
        Why the architecture does not support it, and the previous forward stays; empty if it does.
    """
    base = whole_model(model)
    reason = why_not(base)
    if reason:
        return reason
    base.set_attn_implementation(TREE_ATTENTION)
    fuse_layers(model)
    plain_forward = base.forward
    packed = (
        partial(_scores, base, plain_forward, together, tokens_per_pass)
        if hasattr(base, "score")
        else partial(_log_probs, base, plain_forward, together, tokens_per_pass, head_of(base))
    )

    def forward(*args: Any, **kwargs: Any) -> Any:
        ids = kwargs.get("input_ids")
        if args or ids is None or kwargs.get("attention_mask") is None or ids.shape[0] % together:
            return plain_forward(*args, **kwargs)
        return packed(kwargs)

    replace_forward(base, forward)
    return ""


def packs(model: nn.Module) -> bool:
    """Whether a model supports `hidden_states`; if so, it attends within trees from now on."""
    if attention_of(model) == TREE_ATTENTION:
        return True
    able = not why_not(model)
    if able:
        model.set_attn_implementation(TREE_ATTENTION)
    return able


def why_not(model: nn.Module) -> str:
    """Why an architecture does not support packed rows; empty if it does. The model is restored.

    What its configuration does not show is tested: a few tokens, packed and plain.
    """
    before = attention_of(model)
    if REFUSED in model.__dict__:
        return str(model.__dict__[REFUSED])
    if getattr(model.config.get_text_config(), "attention_chunk_size", None):
        return "its attention is chunked"
    if before not in ("sdpa", TREE_ATTENTION):
        return f"attention {before} is not torch's own (sdpa)"
    model.set_attn_implementation(TREE_ATTENTION)
    if attention_of(model) != TREE_ATTENTION:
        return "its attention cannot be replaced"
    try:
        reason: str = _differs(model)
        if not reason and not hasattr(model, "score"):
            head_of(model)
    except NotImplementedError as error:
        return str(error)
    finally:
        model.set_attn_implementation(before)
    return reason


def hidden_states(model: nn.Module, row: PackedRow, cache: Cache | None = None) -> Tensor:
    """Last hidden states of a packed row, shape (N, hidden), from a model that `packs`.

    Args:
        cache: an empty one, to be filled with the row's keys and values.
    """
    hidden: Tensor = _layers(model, row, past_key_values=cache, use_cache=cache is not None).last_hidden_state
    return hidden[0]


def _layers(model: nn.Module, row: PackedRow, **options: Any) -> Any:
    """The output of a model's layers for a packed row."""
    causal = row.input_ids.new_ones(1, 1, 1, 1, dtype=torch.bool)  # 4D: transformers makes no mask
    return layers_of(model)(
        input_ids=row.input_ids, attention_mask=causal, position_ids=row.position_ids, packed_row=row, **options
    )


@torch.no_grad()
def _differs(model: nn.Module) -> str:
    """Why packed rows have other hidden states than plain ones, tested on sequences with a shared prefix; empty if not."""
    window = _window(model)
    vocabulary = model.config.get_text_config().vocab_size
    ids = [number % vocabulary for number in (7, 11, 3, 9, 5, 13, 8, 4, 6, 12, 10, 2)]
    # two of one prompt, and a third with the same beginning
    sequences = [ids[:11], [*ids[:9], ids[11]], [*ids[:8], ids[3], ids[1]]]
    packing = pack_sequences(sequences, [[0, 1], [2]], device=next(model.parameters()).device)
    with _evaluating(model):
        try:
            packed = hidden_states(model, packing.rows[0])
        except (TypeError, ValueError, KeyError, RuntimeError, NotImplementedError, AttributeError) as error:
            return f"a test of it failed: {str(error).splitlines()[0]}"
        for number, sequence in enumerate(sequences):
            row = packing.rows[0].input_ids.new_tensor([sequence])
            plain = layers_of(model)(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False)[0][0]
            steps = torch.arange(len(sequence), device=row.device)
            there = packed[packing.place(torch.full_like(steps, number), steps)]
            allowed = 1e-3 if plain.dtype in (torch.float32, torch.float64) else 0.05
            if not bool((there - plain).abs().max() <= allowed * plain.abs().max()):
                return "in a test, its hidden states differed from those of plain rows"
    if window is not None and window not in packing.rows[0].windows:
        return "its attention has a sliding window that its configuration does not name"
    return ""


def _window(model: nn.Module) -> int | None:
    """The sliding window of the model's attention, if any."""
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
    """`compute` for each tuple, whose first item is a row; with several rows and gradients, no activations are stored.

    Other processes may need more passes. Where processes synchronise in every pass, this one repeats its last and discards
    the result as slices of length 0, so that it takes part in the backward pass.
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
    model: nn.Module, plain_forward: Any, together: int, tokens_per_pass: int, head: Head, kwargs: dict[str, Any]
) -> Any:
    """TRL's fused forward: log-probabilities of `labels` other than −100, in the plain layout."""
    if not kwargs.get("fused_lm_head"):
        return plain_forward(**kwargs)
    labels, mask = kwargs["labels"][:, 1:], kwargs["attention_mask"]
    wanted = labels != -100
    routed = bool(kwargs.get("output_router_logits"))
    packing = pack_padded(kwargs["input_ids"], mask, together, tokens_per_pass, last=routed)
    rows, steps = wanted.nonzero(as_tuple=True)
    lengths = mask.sum(1) if routed else None
    out = packed_log_probs(model, packing, rows, steps, labels[wanted], head=head, lengths=lengths)

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(wanted.shape).index_put((out.sequence, out.step), values)

    return fused_output(
        loss=-out.head.logps.sum() / wanted.sum().clamp(min=1),
        log_probs=spread(out.head.logps),
        entropy=spread(out.head.entropy),
        log_sum_sq_probs=None,
        mean_logits=spread(out.head.mean_logits),
        is_top1=spread(out.head.is_top1),
        label_mask=wanted,
        aux_loss=None if out.routers is None else auxiliary_loss(model, out.routers),
    )


@dataclass(frozen=True)
class PackedOutput:
    """The model's values of the requested tokens, in the order of the passes."""

    head: HeadOutput
    sequence: Tensor
    """each value's sequence; shape (tokens,)"""
    step: Tensor
    """each value's step in its sequence; shape (tokens,)"""
    routers: Tensor | None = None
    """router logits of every token of every sequence, shape (all tokens, layers, experts); None: not requested"""


def packed_log_probs(
    model: nn.Module,
    packing: Packing,
    sequence: Tensor,
    step: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    head: Head | None = None,
    lengths: Tensor | None = None,
) -> PackedOutput:
    """The head's values for token `step` of `sequence` against `targets`, each of shape (tokens,).

    Args:
        head: the model's; None: found automatically.
        lengths: of the sequences, to also get the router logits of a mixture of experts; shape (sequences,).
    """
    head = head or head_of(model)
    whole = _all_tokens(packing, lengths)

    def one_pass(row: PackedRow, at: Tensor, wanted: Tensor, everywhere: Tensor | None) -> tuple[Tensor, ...]:
        different, which = torch.stack([at, wanted]).unique(dim=1, return_inverse=True)  # sequences may repeat
        made = _layers(model, row, use_cache=False, **({} if everywhere is None else {"output_router_logits": True}))
        out = head.token_logps(made.last_hidden_state[0][different[0]], different[1], temperature)
        values = tuple(values[which] for values in (out.logps, out.entropy, out.mean_logits, out.is_top1))
        return values if everywhere is None else (*values, torch.stack(tuple(made.router_logits), dim=1)[everywhere])

    chosen = [(packing.row[sequence] == number).nonzero().squeeze(1) for number in range(len(packing.rows))]
    arguments = [
        (row, packing.place(sequence[picked], step[picked]), targets[picked], everywhere)
        for row, picked, everywhere in zip(packing.rows, chosen, whole, strict=True)
    ]
    columns = [torch.cat(column) for column in zip(*_in_passes(model, one_pass, arguments), strict=True)]
    order = torch.cat(chosen)
    routers = None if lengths is None else columns[4]
    return PackedOutput(HeadOutput(*columns[:4]), sequence[order], step[order], routers)


def _all_tokens(packing: Packing, lengths: Tensor | None) -> list[Tensor | None]:
    """For each row, the positions of every token of every sequence: a shared token appears once per sequence."""
    if lengths is None:
        return [None] * len(packing.rows)
    steps = torch.arange(int(lengths.max()), device=lengths.device)
    sequence, step = (steps < lengths[:, None]).nonzero(as_tuple=True)
    places = packing.place(sequence, step)
    return [places[packing.row[sequence] == number] for number in range(len(packing.rows))]


def auxiliary_loss(model: nn.Module, routers: Tensor) -> Tensor:
    """The load-balancing loss of a mixture of experts, by its own code.

    Args:
        routers: router logits, shape (tokens, layers, experts).

    Raises:
        NotImplementedError: its forward does not compute it from router logits.
    """
    hidden = next(model.parameters()).new_zeros(1, model.config.get_text_config().hidden_size)
    made = own_head(model, hidden, {"router_logits": routers.unbind(1)}, output_router_logits=True)
    if made.aux_loss is None:
        raise NotImplementedError("its forward computes no auxiliary loss from router logits")
    loss: Tensor = made.aux_loss
    return loss


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
