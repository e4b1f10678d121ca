"""Choice of the forward path for training, verified on a batch of its own data beforehand.

    packed    no padding, common beginnings once, our head and fused layers (tiebreak.packed.forward, .lm_head, .fused)
    padded    TRL's head on the model's layers, rows padded to one length
    plain     the model's own forward, with its own head and all logits
    alone     the same, one row at a time

The first path whose values and gradient equal those of the model's own forward is used. So an architecture whose head or
attention the faster paths do not support is trained correctly, only more slowly, and the run says why.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from tiebreak.errors import ModelError
from tiebreak.packed.attention import TREE_ATTENTION
from tiebreak.packed.forward import REFUSED, pack_forward
from tiebreak.packed.fused import own_computation, unfuse_layers
from tiebreak.packed.lm_head import read_logits
from tiebreak.packed.parts import whole_model
from tiebreak.terminal import say
from tiebreak.upstream import attention_of, fused_output, replace_forward, replaced_forward

TOKENS_CHECKED = 256
"""size of the compared batch: some seconds of a 135M model on two cores"""
VALUES_APART = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.02}
"""Largest allowed difference of log-probabilities or scores, relative to 1 + their size: the maximum in float32, the
mean in half precision, where rounding alone moves single tokens further."""
GRADIENTS_APART = {torch.float64: 1e-3, torch.float32: 5e-3, torch.float16: 0.1, torch.bfloat16: 0.2}
"""Largest allowed norm of the difference, relative to the gradient's norm."""
ROUTED_SHARE = 0.9
"""share of a mixture of experts' tokens that may differ: rounding alone sometimes sends one to another expert"""
ROUTED_GRADIENTS_APART = 0.1
FAILURES = (TypeError, ValueError, KeyError, IndexError, RuntimeError, NotImplementedError, AttributeError)
"""Exceptions of a forward that the architecture does not support."""


class ForwardPath(StrEnum):
    """See the module."""

    PACKED = "packed"
    PADDED = "padded"
    PLAIN = "plain"
    ALONE = "alone"


@dataclass(frozen=True)
class BatchResult:
    """A model's results for a batch."""

    values: Tensor
    """log-probabilities of tokens, or scores; shape (values,)"""
    loss: float
    gradients: Mapping[str, Tensor | None]
    """gradients of the loss by parameter name; None: unused"""


@dataclass(frozen=True)
class Proof:
    """The path of a run, and its difference from the model's own forward."""

    path: ForwardPath
    difference: float
    """largest difference between log-probabilities of a token, or scores"""
    gradient_difference: float
    """relative to the gradient's norm"""
    refused: tuple[str, ...] = ()
    """why the faster paths are not used"""

    def facts(self) -> dict[str, Any]:
        """Entries for the manifest."""
        facts: dict[str, Any] = {"path": str(self.path), "path_difference": self.difference}
        return facts | ({"path_reason": "; ".join(self.refused)} if self.refused else {})


def prove(
    model: nn.Module,
    candidates: Sequence[ForwardPath],
    truth: BatchResult,
    compute: Callable[[ForwardPath], BatchResult],
) -> Proof:
    """Use the first candidate that agrees with the model's own forward.

    Args:
        truth: the own forward's results for a batch.
        compute: installs a path and computes the same batch with it.

    Raises:
        ModelError: none does.
    """
    base = whole_model(model)
    refused: list[str] = []
    for path in candidates:
        try:
            found = compute(path)
        except FAILURES as error:
            refused.append(f"{path}: {_first_line(error)}")
            continue
        fault = fault_of(found, truth, coarsest_dtype(model), routed=is_routed(base))
        if not fault:
            proof = Proof(
                path, _largest(found.values, truth.values), _gradient_difference(found, truth), tuple(refused)
            )
            for reason in refused:
                say(f"{type(base).__name__} is not computed {reason}")
            say(
                f"computed {path}, which agrees with the model's own forward: values differ by at most "
                f"{proof.difference:.1e}, gradients by "
                f"{proof.gradient_difference:.1e} of their size"
            )
            return proof
        refused.append(f"{path}: {fault}")
        if path == ForwardPath.PACKED:
            refuse_packing(model, fault)
    raise ModelError(
        f"{type(base).__name__} cannot be trained here: no path agrees with its own forward, one row at a time "
        f"({'; '.join(refused)}); nothing was trained"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def fault_of(found: BatchResult, truth: BatchResult, dtype: torch.dtype, *, routed: bool = False) -> str:
    """How a batch's values, loss or gradient differ from the model's own by more than rounding; empty if they agree."""
    apart = (found.values - truth.values).abs() / (1 + truth.values.abs())
    allowed = VALUES_APART[dtype]
    exact = dtype in (torch.float32, torch.float64)
    measured = apart.mean() if not exact else apart.quantile(ROUTED_SHARE) if routed else apart.max()
    if not float(measured) <= allowed:
        largest = _largest(found.values, truth.values)
        return f"its values differ from the model's own forward (by {largest:.2g})"
    if not abs(found.loss - truth.loss) <= allowed * (1 + abs(truth.loss)):
        return f"its loss is {found.loss:.6f}, but {truth.loss:.6f} with the model's own forward"
    idle = [name for name, own in truth.gradients.items() if _moves(own) and not _moves(found.gradients[name])]
    if idle:
        return f"{idle[0]} would not train: it has a gradient only with the model's own forward"
    gradient = _gradient_difference(found, truth)
    if not gradient <= max(GRADIENTS_APART[dtype], ROUTED_GRADIENTS_APART if routed else 0.0):
        return f"its gradient differs from the model's own forward (by {gradient:.1e} of its size)"
    return ""


def _moves(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.any())


def _largest(ours: Tensor, own: Tensor) -> float:
    return float((ours - own).abs().max()) if len(own) else 0.0


def _gradient_difference(found: BatchResult, truth: BatchResult) -> float:
    """‖g − g_own‖/‖g_own‖ over all trained parameters."""
    apart, size = 0.0, 0.0
    for name, own in truth.gradients.items():
        ours = found.gradients[name]
        if own is not None:
            size += float(own.double().square().sum())
        if own is not None or ours is not None:
            difference = (0.0 if ours is None else ours.double()) - (0.0 if own is None else own.double())
            apart += float(torch.as_tensor(difference).square().sum())
    return (apart / size) ** 0.5 if size else 0.0


def coarsest_dtype(model: nn.Module) -> torch.dtype:
    """The model's coarsest dtype; bfloat16 for quantised weights."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if any(not parameter.is_floating_point() for parameter in model.parameters()):  # quantised
        dtypes.add(torch.bfloat16)
    return max(dtypes, key=lambda dtype: VALUES_APART.get(dtype, VALUES_APART[torch.bfloat16]))


def is_routed(model: nn.Module) -> bool:
    """Whether a model is a mixture of experts."""
    text = model.config.get_text_config()
    return any(getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))


@torch.no_grad()
def has_auxiliary_loss(model: nn.Module) -> bool:
    """Whether a mixture of experts adds a router loss to its own: TRL adds one wherever it finds router logits."""
    device = next(model.parameters()).device
    ids = torch.tensor([[1, 2, 3]], device=device)
    with own_computation(model) as base:
        made = base(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, output_router_logits=True)
    return getattr(made, "aux_loss", None) is not None


def gradients_of(loss: Tensor, model: nn.Module) -> dict[str, Tensor | None]:
    """The gradient of a loss by parameter name, for those that train; `.grad` is not touched."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {name: None if grad is None else grad.detach() for name, grad in zip(trained, found, strict=True)}


# --- installing a path


@dataclass(frozen=True)
class Forwards:
    """The possible forwards of a TRL trainer's model."""

    model: nn.Module
    """under PEFT's wrapper"""
    trl: Any
    """TRL's forward; None if TRL set none"""
    together: int = 1
    """see tiebreak.packed.forward.pack_forward"""
    tokens_per_pass: int = 0
    temperature: float = 1.0
    fused: bool = False
    """whether its layers were already verified and stay as they are: only the head is in question"""

    @classmethod
    def of(cls, model: nn.Module, **options: Any) -> Forwards:
        """Those of a model in its current state, with TRL's forward."""
        return cls(model, replaced_forward(whole_model(model)), **options)

    def take(self, path: ForwardPath) -> None:
        """Use a path from now on.

        Raises:
            NotImplementedError: the model does not support it.
        """
        base = whole_model(self.model)
        if path == ForwardPath.PACKED:
            self._restore(base)
            reason = pack_forward(self.model, together=self.together, tokens_per_pass=self.tokens_per_pass)
            if reason:
                raise NotImplementedError(reason)
            return
        if not self.fused:
            take_own_layers(self.model)
        self._restore(base)
        if path in (ForwardPath.PLAIN, ForwardPath.ALONE):
            replace_forward(base, _own_forward(base, self.temperature, alone=path == ForwardPath.ALONE))

    def _restore(self, base: nn.Module) -> None:
        replace_forward(base, self.trl)


def take_own_layers(model: nn.Module) -> None:
    """Use the own code of a model's layers from now on."""
    base = whole_model(model)
    if attention_of(base) == TREE_ATTENTION:
        base.set_attn_implementation("sdpa")
    unfuse_layers(model)


def own_logps(model: nn.Module, rows: Sequence[Sequence[int]], starts: Sequence[int], temperature: float) -> Tensor:
    """Log-probabilities after each row's start, by the model's own code, one row at a time; shape (tokens,)."""
    device = next(model.parameters()).device
    found = []
    with own_computation(model) as base:
        for row, start in zip(rows, starts, strict=True):
            ids = torch.tensor([list(row)], device=device)
            logits = base(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            found.append(read_logits(logits[0, start - 1 : -1], ids[0, start:], temperature)[0])
    return torch.cat(found)


def weighted_sum(values: Tensor, model: nn.Module) -> BatchResult:
    """Values with the gradient of their weighted sum; the weights differ, so that errors cannot cancel."""
    shares = torch.linspace(-1, 1, len(values), device=values.device)
    loss = (values * shares).mean()
    return BatchResult(values.detach().float(), float(loss.detach()), gradients_of(loss, model))


def refuse_packing(model: nn.Module, reason: str) -> None:
    """Never compute a model packed again."""
    whole_model(model).__dict__[REFUSED] = reason


def _own_forward(base: nn.Module, temperature: float, *, alone: bool) -> Callable[..., Any]:
    """The model's own forward under TRL's contract: log-probabilities of labels if `fused_lm_head` requests them."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        if kwargs.pop("fused_lm_head", False):
            return _own_log_probs(base, kwargs, temperature, alone=alone)
        if alone and hasattr(base, "score") and not args and kwargs.get("attention_mask") is not None:
            return _own_scores(base, kwargs)
        return type(base).forward(base, *args, **kwargs)

    return forward


def _own_log_probs(base: Any, kwargs: dict[str, Any], temperature: float, *, alone: bool) -> Any:
    options = dict(kwargs)
    labels, ids, mask = (options.pop(name) for name in ("labels", "input_ids", "attention_mask"))
    wanted = labels[:, 1:] != -100
    shape = wanted.shape
    cells: list[tuple[Tensor, ...]] = []
    auxiliary: Tensor | None = None
    if alone:
        for row in range(len(ids)):
            real = mask[row].bool()
            made = type(base).forward(base, input_ids=ids[row][real][None], **options)
            at, following = real.nonzero().squeeze(1)[1:] - 1, labels[row][real][1:]
            scored = following != -100
            values = read_logits(made.logits[0, :-1][scored], following[scored], temperature)
            cells.append((torch.full_like(at[scored], row), at[scored], *values))
    else:
        if not bool(mask[:, 0].all()) and "position_ids" in inspect.signature(type(base).forward).parameters:
            options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)  # left-padded
        made = type(base).forward(base, input_ids=ids, attention_mask=mask, **options)
        rows, at = wanted.nonzero(as_tuple=True)
        cells.append((rows, at, *read_logits(made.logits[:, :-1][wanted], labels[:, 1:][wanted], temperature)))
        auxiliary = getattr(made, "aux_loss", None)
    rows, at, logps, entropy, means, top = (torch.cat(parts) for parts in zip(*cells, strict=True))

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(shape).index_put((rows, at), values)

    return fused_output(
        loss=-logps.sum() / wanted.sum().clamp(min=1),
        log_probs=spread(logps),
        entropy=spread(entropy),
        log_sum_sq_probs=None,
        mean_logits=spread(means.detach()),
        is_top1=spread(top),
        label_mask=wanted,
        aux_loss=auxiliary,
    )


def _own_scores(base: Any, kwargs: dict[str, Any]) -> Any:
    from transformers.modeling_outputs import SequenceClassifierOutputWithPast

    options = dict(kwargs)
    ids, mask = options.pop("input_ids"), options.pop("attention_mask").bool()
    rows = [row[real][None] for row, real in zip(ids, mask, strict=True)]
    scores = [type(base).forward(base, input_ids=row, **options).logits for row in rows]
    return SequenceClassifierOutputWithPast(logits=torch.cat(scores))
