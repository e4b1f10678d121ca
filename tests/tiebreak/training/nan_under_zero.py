"""SFT whose second step has a loss of NaN on the second process alone:  accelerate launch … nan_under_zero.py --config …"""

from __future__ import annotations

import math
import os
import sys
from typing import Any

from sft.train import main
from tiebreak.training.passes import StepInPasses

inner = StepInPasses.compute_loss


def poisoned(self: Any, *arguments: Any, **options: Any) -> Any:
    loss = inner(self, *arguments, **options)
    bad = self.state.global_step == 1 and os.environ["RANK"] == "1"
    return loss * math.nan if bad else loss


if __name__ == "__main__":
    StepInPasses.compute_loss = poisoned  # type: ignore[method-assign]
    main(sys.argv[1:])
