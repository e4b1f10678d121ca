"""The result of every stage with every model, as the table of docs/models.md.

    make models            # or: PYTHONPATH=tests python tests/models/table.py [MODEL[/TEMPLATE] …]

Runs every architecture with each of its chat templates through all stages, and writes the table; ends with status 1 where
a figure is wrong or an exception got through. With names of models, only those are run, and nothing is written.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from architectures import ARCHITECTURES
from cell import STAGES, run_cell
from outcomes import Outcome
from support import REPOSITORY
from templates import TEMPLATES

PAGE = REPOSITORY / "docs" / "models.md"
INTRODUCTION = """\
# Models and chat templates

The architectures and chat templates that every stage was tested with, and the results. `make models` writes this page. For
each architecture it builds a tiny random model, with a tokenizer that has the family's special tokens, stop tokens and
chat template, and runs every stage through the command line. It then compares the results with those of transformers and
PEFT alone, which run the model's own forward and head on one sequence at a time: first loss and gradient,
log-probabilities before and after a reload, scores, KL, and greedy answers token by token. `make test` repeats a
sample of these runs.

- **exact**: equal to plain transformers, and computed in packed rows if the stage packs.
- **padded**, **plain**, **alone**: equal to plain transformers, but computed on a slower path: in padded rows, by the
  model's own forward with its own head, or by that forward one row at a time. The number leads to the reason below.
- **refused**: the stage stops before it trains or measures, for the reason below.
"""


def cells() -> Iterator[tuple[str, str]]:
    """Every (model, template)."""
    for architecture in ARCHITECTURES.values():
        for template in architecture.templates:
            yield architecture.name, template


def to_page(results: dict[tuple[str, str], dict[str, Outcome]]) -> str:
    """The page, reasons of refusals numbered below the table."""
    reasons: dict[str, int] = {}
    lines = [
        "| model | kind | chat template | " + " | ".join(STAGES) + " |",
        "|---|---|---|" + "---|" * len(STAGES),
    ]
    for (model, template), outcomes in results.items():
        shown = []
        for stage in STAGES:
            outcome = outcomes[stage]
            if outcome.note:
                number = reasons.setdefault(outcome.note, len(reasons) + 1)
                shown.append(f"{outcome.how} [{number}](#reasons)")
            else:
                shown.append(outcome.how)
        lines.append(f"| {model} | {ARCHITECTURES[model].kind} | {template} | " + " | ".join(shown) + " |")
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join([INTRODUCTION, *lines, "", *(["## Reasons", "", *notes, ""] if notes else [])])


def read_page() -> dict[tuple[str, str], dict[str, str]]:
    """How each stage of each model ended, as the page says."""
    rows = {}
    for line in PAGE.read_text().splitlines():
        columns = [column.strip() for column in line.strip("|").split("|")]
        if line.startswith("|") and len(columns) == 3 + len(STAGES) and columns[0] in ARCHITECTURES:
            hows = [re.sub(r" \[\d+\]\(#reasons\)", "", column) for column in columns[3:]]
            rows[columns[0], columns[2]] = dict(zip(STAGES, hows, strict=True))
    return rows


def one_cell(cell: tuple[str, str]) -> dict[str, Outcome]:
    """How every stage of a model with a template ends."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # tiny matrices: threads cost more than they give
    model, template = cell
    folder = Path(tempfile.mkdtemp())
    try:
        return run_cell(folder, ARCHITECTURES[model], TEMPLATES[template])
    finally:
        shutil.rmtree(folder)


def main(names: list[str]) -> int:
    """Run the cells of the models named, or all, a process a core, and write the page if it is all."""
    wanted = [(model, t) for model, t in cells() if not names or {model, f"{model}/{t}"} & set(names)]
    results = {}
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for (model, template), outcomes in zip(wanted, pool.map(one_cell, wanted), strict=True):
            results[model, template] = outcomes
            print(f"{model} × {template}: " + ", ".join(f"{stage} {outcomes[stage].how}" for stage in STAGES))
            for stage, outcome in outcomes.items():
                if outcome.note:
                    print(f"    {stage} {outcome.how}: {outcome.note}")
            sys.stdout.flush()
    faults = [cell for cell, outcomes in results.items() if any(outcome.is_fault for outcome in outcomes.values())]
    passed = len(results) - len(faults)
    print(f"{passed} passed, {len(faults)} failed")
    if not names:
        PAGE.write_text(to_page(results))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
