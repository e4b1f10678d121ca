"""One forward pass for both completions of a pair.

TRL lays a batch of pairs out as 2·B padded rows, so every prompt is computed twice and every short row is padded to the
longest. Here each pair is one row: the tokens that both sequences begin with, then the rest of the first, then the rest
of the second, with an attention mask under which neither rest sees the other, and with the position ids that each would
have had. Hidden states are those of the plain forward, and with them every log-probability, score and gradient.
(Shared-prefix training: arXiv 2410.20305.)

    share_prefixes(trainer.model)     # TRL's trainers go on as they are, losses and metrics included

What the language-model head makes of a hidden state is computed for completion tokens alone; see tiebreak.head.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tiebreak.head import logits_are_plain, token_logps
from tiebreak.runs import say


@dataclass(frozen=True)
class PackedPairs:
    """2·B rows of one layout as B rows of the other. L is the longest packed row, T the longest plain one."""

    input_ids: Tensor
    """shape (B, L)"""
    position_ids: Tensor
    """shape (B, L)"""
    may_attend: Tensor
    """bool, shape (B, 1, L, L)"""
    place: Tensor
    """where token t of plain row r stands in packed row r mod B; shape (2·B, T)"""

    def unpack(self, hidden: Tensor) -> Tensor:
        """Hidden states of shape (B, L, d) in the plain layout, (2·B, T, d)."""
        rows = hidden.repeat(2, 1, 1)
        return rows.gather(1, self.place[..., None].expand(-1, -1, hidden.shape[-1]))


def pack_pairs(input_ids: Tensor, attention_mask: Tensor, pad_id: int) -> PackedPairs:
    """Pack rows r and r + B, which are padded on the right, into one.

    Args:
        input_ids, attention_mask: shape (2·B, T), the first sequences of all pairs before the second ones.
    """
    pairs, width = input_ids.shape[0] // 2, input_ids.shape[1]
    lengths = attention_mask.sum(1)
    first, second = lengths[:pairs], lengths[pairs:]
    shared = shared_prefix_lengths(input_ids, lengths)
    total = first + second - shared
    longest = int(total.max())
    steps = torch.arange(longest, device=input_ids.device)
    in_first = steps < first[:, None]
    in_second = ~in_first & (steps < total[:, None])
    # where packed token s comes from: token s of the first row, or token s − first + shared of the second
    from_second = (steps - first[:, None] + shared[:, None]).clamp(0, width - 1)
    from_first = steps.clamp(max=width - 1).expand(pairs, -1)
    position_ids = torch.where(in_second, from_second, torch.where(in_first, from_first, 0))
    ids = torch.where(in_second, input_ids[pairs:].gather(1, from_second), input_ids[:pairs].gather(1, from_first))
    ids = torch.where(in_first | in_second, ids, pad_id)
    in_prefix = steps < shared[:, None]
    segment = torch.where(in_prefix, 0, torch.where(in_first, 1, torch.where(in_second, 2, 3)))
    same = (segment[:, :, None] == segment[:, None, :]) | in_prefix[:, None, :]
    may_attend = (same & (steps[:, None] >= steps))[:, None]
    plain = torch.arange(width, device=input_ids.device)
    beyond = plain - shared[:, None] + first[:, None]
    place = torch.cat([plain.expand(pairs, -1), torch.where(plain < shared[:, None], plain, beyond)])
    return PackedPairs(ids, position_ids, may_attend, place.clamp(max=longest - 1))


def shared_prefix_lengths(input_ids: Tensor, lengths: Tensor) -> Tensor:
    """How many tokens rows r and r + B begin with in common, shape (B,); one less than the shorter row at most."""
    pairs = input_ids.shape[0] // 2
    equal = (input_ids[:pairs] == input_ids[pairs:]).cumprod(1).sum(1)
    return torch.minimum(equal, torch.minimum(lengths[:pairs], lengths[pairs:]) - 1)


def why_not(model: nn.Module) -> str:
    """Why an architecture cannot take the packed form; empty if it can."""
    text = model.config.get_text_config()
    attention = getattr(model.config, "_attn_implementation", None)
    if attention not in ("sdpa", "eager"):
        return f"attention {attention} takes no mask of its own"
    if any(kind != "full_attention" for kind in getattr(text, "layer_types", None) or []):
        return "some of its layers do not attend to everything before them"
    if getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        return "its attention slides over a window"
    if not logits_are_plain(model):
        return "its logits are capped or scaled after the head"
    return ""


def share_prefixes(model: nn.Module) -> bool:
    """Let a model that one of TRL's pairwise trainers holds compute each pair in one row.

    A causal model keeps TRL's own contract (`fused_lm_head=True` returns log-probabilities of the labels); a sequence
    classifier returns a score a row. Calls of any other form, generation among them, go to the forward that was there.

    Returns:
        False, having said why, where the architecture cannot take it and the plain forward stays.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    reason = why_not(base)
    if reason:
        say(f"the plain forward stays: {type(base).__name__} cannot take pairs in one row, as {reason}")
        return False
    plain_forward = base.forward
    patched = _scores if hasattr(base, "score") else _log_probs
    base.forward = types.MethodType(lambda self, *args, **kwargs: patched(self, plain_forward, *args, **kwargs), base)
    return True


def _hidden_states(model: nn.Module, packed: PackedPairs) -> Tensor:
    mask = packed.may_attend
    if model.config._attn_implementation == "eager":
        dtype = next(model.parameters()).dtype
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    hidden: Tensor = model.base_model(
        input_ids=packed.input_ids, attention_mask=mask, position_ids=packed.position_ids, use_cache=False
    ).last_hidden_state
    return hidden


def _log_probs(model: nn.Module, plain_forward: Any, *args: Any, **kwargs: Any) -> Any:
    """TRL's fused forward: log-probabilities of `labels` that are not −100, in the plain layout."""
    if args or not kwargs.get("fused_lm_head") or kwargs["input_ids"].shape[0] % 2:
        return plain_forward(*args, **kwargs)
    from trl.trainer.utils import FusedCausalLMOutput

    labels = kwargs["labels"][:, 1:]
    packed = pack_pairs(kwargs["input_ids"], kwargs["attention_mask"], model.config.get_text_config().pad_token_id or 0)
    wanted = labels != -100
    rows, steps = wanted.nonzero(as_tuple=True)
    hidden = _hidden_states(model, packed)[rows % len(packed.input_ids), packed.place[rows, steps]]
    out = token_logps(hidden, model.get_output_embeddings(), labels[wanted])

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(wanted.shape).masked_scatter(wanted, values)

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


def _scores(model: nn.Module, plain_forward: Any, *args: Any, **kwargs: Any) -> Any:
    """A sequence classifier's logits, shape (2·B, 1), each read at its row's last token."""
    ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
    if args or ids is None or mask is None or ids.shape[0] % 2 or kwargs.get("labels") is not None:
        return plain_forward(*args, **kwargs)
    from transformers.modeling_outputs import SequenceClassifierOutputWithPast

    packed = pack_pairs(ids, mask, model.config.get_text_config().pad_token_id or 0)
    rows = torch.arange(len(ids), device=ids.device)
    last = packed.place[rows, mask.sum(1) - 1]
    hidden = _hidden_states(model, packed)[rows % len(packed.input_ids), last]
    return SequenceClassifierOutputWithPast(logits=model.score(hidden))
