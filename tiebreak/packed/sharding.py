"""Weights of which ZeRO-3 leaves every process a shard: made whole where they are read or written, and processes that go
through a model's layers kept in step with one another, or let go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

from tiebreak.upstream import without_engine_hooks

_apart: ContextVar[bool] = ContextVar("apart", default=False)
"""whether this process calls modules that no others need to call"""


@contextmanager
def gathered(parameters: Sequence[nn.Parameter], written: bool = False) -> Iterator[None]:
    """Whole parameters where ZeRO-3 has sharded them; nothing elsewhere.

    What an outer context or a module's own hook holds whole already is left to them: gathering twice is an error.

    Args:
        written: what is written into them goes back into the shards, as process 0 wrote it; else it is lost. Small
            parameters, that DeepSpeed keeps whole between steps, have shards too, and the next forward may go by those.
            So all are gathered, and an outer context that holds one of them is an error.
    """
    sharded = [p for p in parameters if hasattr(p, "ds_id") and (written or p.ds_status.name == "NOT_AVAILABLE")]
    if sharded:
        import deepspeed

        with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if written else None):
            yield
    else:
        yield


@contextmanager
def at_own_pace(wrapped: nn.Module, model: nn.Module) -> Iterator[None]:
    """Under ZeRO-3, gather every shard once and call the modules plainly, with no gathering step by step.

    Processes sample different numbers of tokens, so the collective that a sharded forward pass needs would hang.

    Args:
        wrapped: the engine that holds the model.
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
    """How often the process that needs it most calls a model now; `calls`, this one's own, where it may go its own pace.

    ZeRO-3 gathers the weights of a layer when it is called, by all processes: one that calls its layers once more than
    the others waits for ever.

    Args:
        device: where processes exchange tensors.
    """
    if _apart.get() or not are_sharded(list(model.parameters())):
        return calls
    most = torch.tensor(calls, device=device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return int(most)


def are_sharded(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether ZeRO-3 has these in its care."""
    return any(hasattr(parameter, "ds_id") for parameter in parameters)
