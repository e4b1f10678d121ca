"""ZeRO-3's sharded weights: gathered where they are read or written, and processes kept in step through a model's
layers, or released from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from tiebreak.upstream import without_engine_hooks

GATHERS = "_tiebreak_gathers"
"""attribute of a model whose modules gather their own weights when they are called (`tiebreak.models.sharded`): the handles
of its hooks"""
_apart: ContextVar[bool] = ContextVar("apart", default=False)
"""whether this process calls modules without the others"""


@contextmanager
def gathered(parameters: Sequence[nn.Parameter], written: bool = False) -> Iterator[None]:
    """Whole parameters where ZeRO-3 has sharded them; nothing elsewhere.

    Parameters that an outer context or a module's hook has gathered are left alone: gathering twice is an error.

    Args:
        written: write changes back into the shards, as process 0 made them; otherwise they are lost. Small parameters
            that DeepSpeed keeps whole between steps have shards too, which the next forward may use. So all are gathered,
            and an outer context that holds one of them is an error.
    """
    sharded = [p for p in parameters if hasattr(p, "ds_id") and (written or p.ds_status.name == "NOT_AVAILABLE")]
    if sharded:
        import deepspeed

        with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if written else None):
            yield
    else:
        yield


def unsharded(parameter: Tensor) -> Tensor:
    """A parameter's values: FSDP2's shards put together (every process must call it); any other as it is."""
    full: Tensor = parameter.full_tensor() if in_shards_of_fsdp(parameter) else parameter
    return full


def in_shards_of_fsdp(parameter: Tensor) -> bool:
    """Whether FSDP2 holds a parameter as a DTensor, which is so outside its module's forward."""
    return hasattr(parameter, "full_tensor")


@contextmanager
def at_own_pace(wrapped: nn.Module, model: nn.Module) -> Iterator[None]:
    """Under ZeRO-3, gather every shard once and call the modules directly, without gathering at each step.

    Processes sample different numbers of tokens, so the collectives of a sharded forward pass would hang.

    Args:
        wrapped: the model's engine.
    """
    parameters = list(model.parameters())
    if not are_sharded(parameters):
        yield
        return
    with gathered(parameters), without_engine_hooks(wrapped):
        token = _apart.set(True)
        try:
            yield
        finally:
            _apart.reset(token)


def most_of_all(model: nn.Module, calls: int, device: torch.device) -> int:
    """The largest number of model calls that any process needs now; `calls`, this one's number, if it runs at its own pace.

    ZeRO-3 gathers a layer's weights when all processes call it: one that calls its layers once more than the others would
    wait forever.

    Args:
        device: where processes exchange tensors.
    """
    if _apart.get() or not are_sharded(list(model.parameters())):
        return calls
    most = torch.tensor(calls, device=device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return int(most)


def gathers_by_module(model: nn.Module) -> bool:
    """Whether a model sharded as it loaded can be called though DeepSpeed's engine is not built yet.

    Args:
        model: without PEFT's wrapper.
    """
    return GATHERS in model.__dict__


def are_sharded(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether ZeRO-3 manages these."""
    return any(hasattr(parameter, "ds_id") for parameter in parameters)
