"""On two processes: the second one's loss is NaN, and both stop with its rows."""

from __future__ import annotations

import math
import os

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState

from tiebreak.training.finite import NotFiniteLossError, StepLosses


def main() -> None:
    PartialState(cpu=True)
    rank = dist.get_rank()
    losses = StepLosses()
    batch = {"input_ids": torch.tensor([[rank, 5]]), "attention_mask": torch.ones(1, 2)}
    losses.add(torch.tensor(1.0), batch)
    losses.require_finite(1, 2)
    losses.add(torch.tensor(math.nan if rank else 1.0), batch)
    with pytest.raises(NotFiniteLossError) as refused:
        losses.require_finite(2, 2)
    assert refused.value.sequences == [[1, 5]]


if __name__ == "__main__":
    main()
    dist.barrier()
    os._exit(0)  # a thread of the communication may abort the interpreter's end
