"""Every adapter method through every stage that trains: `make methods`, which writes docs/methods.md.

PYTHONPATH=tests:tests/methods python tests/methods/table.py             # all, and the page
PYTHONPATH=tests:tests/methods python tests/methods/table.py LoRA full   # some, printed
… --here                                                                # models are reloaded in this process: faster
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from method_cell import METHODS, STAGES, run_method
from outcomes import Outcome
from support import REPOSITORY, build_tiny_model

PAGE = REPOSITORY / "docs" / "methods.md"
MARK = "<!-- made by `make methods` -->"
NAMES = {"sft": "SFT", "reward": "reward", "dpo": "DPO", "kto": "KTO", "ppo": "PPO", "rloo": "RLOO", "grpo": "GRPO"}


def one_method(asked: tuple[str, bool]) -> dict[str, Outcome]:
    """How every stage of a method ends."""
    torch.set_num_threads(1)  # tiny matrices: threads cost more than they give
    method, fresh = asked
    folder = Path(tempfile.mkdtemp())
    try:
        model = build_tiny_model(folder / "model")
        return run_method(folder / "runs", model, method, fresh=fresh)
    finally:
        shutil.rmtree(folder)


def to_table(results: Mapping[str, Mapping[str, Outcome]]) -> str:
    """The matrix, and below it why some cells are refused or on a slower path."""
    lines = [
        "| method | " + " | ".join(NAMES[stage] for stage in STAGES) + " |",
        "|---|" + "---|" * len(STAGES),
    ]
    notes: dict[str, int] = {}
    for method, outcomes in results.items():
        cells = []
        for stage in STAGES:
            outcome = outcomes[stage]
            mark = f" [{notes.setdefault(outcome.note, len(notes) + 1)}]" if outcome.note else ""
            cells.append(f"{outcome.how}{mark}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"{number}. {note}" for note, number in notes.items())])


def main(words: list[str]) -> int:
    """Run the methods named, or all, a process a core, and write the page if it is all."""
    names = [word for word in words if not word.startswith("-")]
    wanted = [method for method in METHODS if not names or method in names]
    results = {}
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        each = pool.map(one_method, [(method, "--here" not in words) for method in wanted])
        for method, outcomes in zip(wanted, each, strict=True):
            results[method] = outcomes
            print(f"{method}: " + ", ".join(f"{stage} {outcomes[stage].how}" for stage in STAGES))
            for stage, outcome in outcomes.items():
                if outcome.note:
                    print(f"    {stage} {outcome.how}: {outcome.note}")
            sys.stdout.flush()
    faults = [name for name, outcomes in results.items() if any(outcome.is_fault for outcome in outcomes.values())]
    print(f"{len(results) - len(faults)} methods passed, {len(faults)} failed")
    if not names:
        before, _, _ = PAGE.read_text().partition(MARK)
        PAGE.write_text(f"{before}{MARK}\n\n{to_table(results)}\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
