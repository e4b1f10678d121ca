"""A training stage under FSDP2 on two CPU processes:  torchrun --nproc-per-node 2 tests/sharded/fsdp2.py STAGE …

accelerate enters FSDP on accelerators only. Here its state says so of two gloo processes, since PyTorch's `fully_shard`
itself works on them; the rest is what a GPU would run.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

os.environ.update(
    ACCELERATE_USE_FSDP="true",
    FSDP_VERSION="2",
    FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
    FSDP_RESHARD_AFTER_FORWARD="true",
    FSDP_CPU_RAM_EFFICIENT_LOADING="false",
    FSDP_STATE_DICT_TYPE="FULL_STATE_DICT",
)


def main() -> None:
    """Start the stage with accelerate's state changed."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    begin = PartialState.__init__

    def as_accelerators(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        if self._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = as_accelerators  # type: ignore[method-assign]
    from tiebreak.stages import STAGES

    importlib.import_module(STAGES[sys.argv[1]].module).main(sys.argv[2:])


if __name__ == "__main__":
    main()
