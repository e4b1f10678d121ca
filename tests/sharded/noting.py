"""A stage that notes how many of its weights are whole when DeepSpeed's engine takes them:  … noting.py FILE STAGE …"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from tiebreak.stages import STAGES
from tiebreak.training import stage

hand_to_engine = stage.hand_to_engine


def noting(model: Any, *arguments: Any) -> None:
    hand_to_engine(model, *arguments)
    whole = sum(
        weight.numel() for name, weight in model.named_parameters() if "lora_" not in name and "score" not in name
    )
    Path(f"{sys.argv[1]}.{os.environ['RANK']}").write_text(str(whole))


if __name__ == "__main__":
    stage.hand_to_engine = noting
    importlib.import_module(STAGES[sys.argv[2]].module).main(sys.argv[3:])
