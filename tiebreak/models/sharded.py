"""Weights that are sharded as they load: DeepSpeed ZeRO-3 with `zero3_init_flag: true` in the accelerate file.

DeepSpeed's engine gathers a layer's weights when the layer is called, but it is built when training starts, and the checks
before training call the model earlier. Until then the hooks below gather a module's own weights for its call, and again for
its gradient, so no process holds more than its shards and one module. The adapter on these weights stays whole until the
engine takes it. All processes check the same rows, so they gather the same modules in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tiebreak.errors import ModelError
from tiebreak.models.adapters.adapter import probe_ids
from tiebreak.models.precision import format_held
from tiebreak.models.probe import PROBE_TOLERANCE_ELSEWHERE, probe_values
from tiebreak.packed.parts import whole_model
from tiebreak.packed.proof import FAILURES, coarsest_dtype, is_routed
from tiebreak.packed.sharding import GATHERS, gathered
from tiebreak.terminal import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def shard(model: PreTrainedModel, whole: Sequence[nn.Module] = ()) -> None:
    """Shard a loaded model's weights over the processes, one after the other, and gather each when its module is called.

    transformers maps a file in the format of training into memory, where all processes share its pages, so only the shards
    and the weight at hand are a process's own. All processes must call it.

    Args:
        whole: modules that stay whole, since they train.

    Raises:
        ModelError: its file holds quantised weights; or the sharded model answers otherwise, as where a module reads
            another's weights.
    """
    import deepspeed
    from accelerate import PartialState

    if held := format_held(model):
        raise ModelError(
            f"the model's own weights are quantised ({held.name}), which zero3_init_flag: true does not shard as they "
            "load. Set zero3_init_flag: false in the accelerate file"
        )

    ids = probe_ids(model)
    answers = probe_values(model, ids)
    PartialState(cpu=not torch.cuda.is_available())  # connects the processes, as the training arguments do later
    kept = {id(parameter) for module in whole for parameter in module.parameters()}
    weights: list[Any] = [parameter for parameter in model.parameters() if id(parameter) not in kept]
    for weight in weights:
        weight.data = weight.data.clone()  # DeepSpeed writes process 0's values into it, not into the file's pages
        if weight is weights[0]:
            deepspeed.zero.Init(module=nn.ParameterList([weight]), config_dict_or_path=_configuration(model.dtype))
        else:
            weights[0].convert_to_zero_parameters(param_list=[weight])
    for other in [*(parameter for module in whole for parameter in module.parameters()), *model.buffers()]:
        other.data = other.data.to(weights[0].device)
    model.__dict__[GATHERS] = list(_gather_when_called(model))
    _require_answers(model, ids, answers)
    here = sum(weight.ds_tensor.numel() for weight in weights)
    together = sum(weight.ds_numel for weight in weights)
    say(f"sharded as it loads: each process holds {here / 1e9:.2g} of {together / 1e9:.2g} billion weights")


def _configuration(dtype: torch.dtype) -> dict[str, Any]:
    """What DeepSpeed reads to shard weights, from the accelerate file. The trainer fills in `auto` later."""
    from accelerate import DeepSpeedPlugin

    stated = DeepSpeedPlugin().deepspeed_config
    zero = {key: value for key, value in stated["zero_optimization"].items() if value != "auto"}
    return {
        "zero_optimization": zero,
        **({"aio": stated["aio"]} if "aio" in stated else {}),
        # required, and used for nothing here
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
    }


def _require_answers(model: PreTrainedModel, ids: list[int], wanted: Sequence[float]) -> None:
    """The sharded model answers as the whole one did: a module that reads another's weights finds them empty."""
    try:
        found = probe_values(model, ids)
    except FAILURES as error:
        fault = (str(error).strip() or type(error).__name__).splitlines()[0]
    else:
        if not all(map(math.isfinite, wanted)):  # nothing to compare: the first loss stops its training
            return
        apart = sorted(abs(a - b) / max(1.0, abs(b)) for a, b in zip(found, wanted, strict=True))
        measured = apart[len(apart) // 2] if is_routed(model) else apart[-1]
        if measured <= PROBE_TOLERANCE_ELSEWHERE[coarsest_dtype(model)]:
            return
        fault = f"its answers differ by {measured:.2g}"
    raise ModelError(
        f"{type(model).__name__} cannot be sharded as it loads (zero3_init_flag: true): {fault}. Probably a module reads "
        "another's weights, which are empty then; set zero3_init_flag: false in the accelerate file"
    )


def hand_to_engine(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Before DeepSpeed's engine is built: end the gathering by module, which the engine's own hooks do from now on.

    Args:
        model: a trainer's; nothing happens if it was not sharded as it loaded.
        dtype: the format of a training in 16 bits. The engine holds what it shards itself in that format, so it is brought
            to it here, since it leaves a model alone that is sharded already; None: float32.
    """
    hooks = whole_model(model).__dict__.pop(GATHERS, None)
    if hooks is None:
        return
    for hook in hooks:
        hook.remove()
    for parameter in model.parameters():
        if dtype is not None and parameter.is_floating_point() and not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.to(dtype)


# --- gathering by module


def _gather_when_called(model: nn.Module) -> Iterator[Any]:
    """Hooks on every module with sharded weights of its own; yields their handles."""
    for module in model.modules():
        own = [parameter for parameter in module.parameters(recurse=False) if hasattr(parameter, "ds_id")]
        if own:
            gathering = _Gathering(own)
            yield module.register_forward_pre_hook(gathering.begin)
            yield module.register_forward_hook(gathering.end, always_call=True)


class _Gathering:
    """A module's own weights: whole while it computes, and for its gradient."""

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self._weights = weights
        self._calls: list[ExitStack] = []
        """a module may call itself"""

    def begin(self, _module: nn.Module, _inputs: Any) -> None:
        """Before its forward."""
        call = ExitStack()
        self._calls.append(call)
        call.enter_context(gathered(self._weights))
        call.enter_context(torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack))

    def end(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        """After its forward, or its failure."""
        self._calls.pop().close()

    def _pack(self, saved: Tensor) -> Tensor | _Part:
        """What autograd keeps of a saved tensor: of a sharded weight, its place."""
        for weight in self._weights:
            first = weight.storage_offset()
            same = saved.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
            if same and first <= saved.storage_offset() < first + weight.numel():
                return _Part(weight, saved.shape, saved.stride(), saved.storage_offset() - first)
        return saved


@dataclass(frozen=True)
class _Part:
    """A view of a weight."""

    weight: nn.Parameter
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


def _unpack(saved: Tensor | _Part) -> Tensor:
    """The tensor again, for the gradient; a weight's memory is free after its use."""
    if isinstance(saved, Tensor):
        return saved
    with gathered([saved.weight]):
        whole = saved.weight.data
    return whole.as_strided(saved.shape, saved.stride, whole.storage_offset() + saved.offset)
