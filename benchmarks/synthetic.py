"""What synthetic demonstrations are worth beside real ones, on the quickstart's world.

    python benchmarks/synthetic.py --plan            # the cells that are not finished, and how long they take
    python benchmarks/synthetic.py                   # all of them: about 20 minutes on two quiet CPU cores
    python benchmarks/synthetic.py --seeds 0 1       # twice the cells: a second draw of rows, a second training of each
    python benchmarks/synthetic.py --minutes 20      # begins no cell after 20 minutes; the same command continues
    python benchmarks/synthetic.py --table           # the table of what is finished, and benchmarks/synthetic.json
    python benchmarks/synthetic.py --table --docs    # also into docs/benchmarks.md

Real rows are the quickstart's training demonstrations. Synthetic ones are written by a local model, by default the bundled
one, from those; nobody reviewed them. A cell trains SFT from the base model on N real rows, on N synthetic ones, or on N of
each, for the same number of optimizer steps, and answers the test prompts; its figure is the rubric's mean. Seeds change
which rows are drawn and the training. Intervals are 95% bootstraps over prompts, whose values are means over seeds: with
one seed they leave out what another draw and another training would change. On CPUs, oneDNN multiplies.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tiebreak.errors import MachineError
from tiebreak.measures.statistics import bootstrap_interval
from tiebreak.messages import content_id
from tiebreak.packed.products import use_products
from tiebreak.terminal import say

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("synthetic.json")
FOLDER = ROOT / ".bench" / "synthetic"
CONFIGS = ROOT / "configs" / "quickstart"
SOURCES = ("real", "synthetic", "both")
SIZES = (27, 54, 108)
STEPS = 14
"""optimizer steps of every SFT run, of 8 rows: one epoch of the quickstart's 108"""
METHODS = {"self-instruct": 70, "persona": 40, "paraphrase": 40, "typos": 20}
"""rows that each method tries to make; some are dropped"""
SECONDS = {"synthesise": 150, "sft": 65, "evaluate": 40}
"""of the stages on two cores: 260 texts of up to 96 tokens; 14 steps of 8 rows; 64 answers of up to 80 tokens"""
PAGE = "docs/benchmarks.md"
BEGIN, END = "<!-- synthetic: begin -->", "<!-- synthetic: end -->"


@dataclass(frozen=True)
class World:
    """What all cells share, and how large they are."""

    prepared: Path
    """the quickstart's prepare run"""
    folder: Path
    writer: str
    sizes: Sequence[int] = SIZES
    small: bool = False
    """few steps and prompts, for the test"""
    policy: str = "bundled:smollm2-135m-instruct"

    @property
    def made(self) -> Path:
        return self.folder / "synthesise"


@dataclass(frozen=True)
class Cell:
    """One trained policy."""

    source: str
    size: int
    seed: int

    @property
    def name(self) -> str:
        """Its folder's name."""
        return f"{self.source}-{self.size}-seed-{self.seed}"


def cells_of(world: World, seeds: Sequence[int]) -> list[Cell]:
    """All cells, one seed after the other: a table of a part is of use."""
    return [Cell(source, size, seed) for seed in seeds for size in world.sizes for source in SOURCES]


# --- rows ---


def rows_of(cell: Cell, world: World) -> list[dict[str, Any]]:
    """The cell's training rows, and the real held-out ones, which are the same in every cell."""
    real = _read(world.prepared / "final" / "demonstrations.jsonl")
    synthetic = _read(world.made / "final" / "demonstrations.jsonl")
    rows = [row for row in real if row["prompt"]["split"] == "validation"]
    if cell.source in ("real", "both"):
        rows += drawn([row for row in real if row["prompt"]["split"] == "train"], cell)
    if cell.source in ("synthetic", "both"):
        rows += drawn(synthetic, cell)
    return rows


def drawn(rows: Sequence[dict[str, Any]], cell: Cell) -> list[dict[str, Any]]:
    """Some rows, by a hash: a smaller number is a part of a larger one.

    Raises:
        SystemExit: there are too few.
    """
    if len(rows) < cell.size:
        raise SystemExit(f"{cell.name}: only {len(rows)} rows: give smaller --sizes, or more rows in METHODS")
    return sorted(rows, key=lambda row: content_id("drawn", cell.seed, row["prompt"]["id"], row["completion"]))[
        : cell.size
    ]


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- stages ---


def synthesise(world: World) -> None:
    """The synthetic rows."""
    keys: dict[str, Any] = {
        "output": world.made,
        "demonstrations": [str(world.prepared)],
        "methods": dict.fromkeys(("typos", "self-instruct"), 6) if world.small else METHODS,
        "model": world.writer,
        "review": "none",
        "sampling": {"temperature": 0.9, "max_new_tokens": 8 if world.small else 96},
        "batch_size": 64,
        "training": products(),
    }
    run("synthesise", keys, world.folder)


def run_cell(cell: Cell, world: World) -> None:
    """Train and evaluate; what is finished is skipped."""
    folder = world.folder / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "rows.jsonl"
    if not rows.exists():
        text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows_of(cell, world))
        rows.write_text(text, encoding="utf-8")
    base = yaml.safe_load((CONFIGS / "sft.yaml").read_text(encoding="utf-8"))
    training = {**base["training"], "seed": cell.seed, "epochs": 100, "max_steps": 2 if world.small else STEPS}
    training |= products()
    sft = {**base, "output": folder / "sft", "policy": world.policy, "demonstrations": rows, "training": training}
    run("sft", sft, folder)
    evaluate: dict[str, Any] = {
        "output": folder / "evaluate",
        "policies": {"sft": str(folder / "sft")},
        "baseline": "sft",
        "prompts": world.prepared,
        "split": "test",
        "max_prompts": 3 if world.small else 64,
        "sampling": {"temperature": 0.7, "max_new_tokens": 6 if world.small else 80},
        "batch_size": 64,
        "training": products(),
    }
    run("evaluate", evaluate, folder)


def products() -> dict[str, str]:
    """The keys that multiply by oneDNN, where it can."""
    try:
        use_products("onednn")
    except MachineError:
        return {}
    return {"matrix_products": "onednn"}


def run(stage: str, keys: Mapping[str, Any], folder: Path) -> None:
    """Run a stage, unless it is finished.

    Raises:
        SystemExit: it failed.
    """
    if (Path(keys["output"]) / "manifest.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f"{stage}.yaml"
    values = json.loads(json.dumps({**keys, "tracking": {"mode": "disabled"}}, default=str))
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [sys.executable, "-m", "tiebreak.command.cli", stage, "--config", str(config)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


# --- figures ---


def by_prompt(cell: Cell, world: World) -> dict[str, float] | None:
    """A finished cell's values by prompt; None of one that is not finished."""
    evaluate = world.folder / cell.name / "evaluate"
    if not (evaluate / "manifest.json").is_file():
        return None
    return {row["prompt_id"]: row["yardstick_score"] for row in _read(evaluate / "final" / "completions.jsonl")}


def summarise(world: World, seeds: Sequence[int]) -> dict[str, Any]:
    """The means of finished cells, with their intervals."""
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for cell in cells_of(world, seeds):
        if (values := by_prompt(cell, world)) is not None:
            found.setdefault((cell.source, cell.size), []).append(values)
    return {"writer": world.writer, **products(), "cells": [_figures(*key, values) for key, values in found.items()]}


def _figures(source: str, size: int, seeds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    means = [statistics.fmean(one[prompt] for one in seeds) for prompt in sorted(seeds[0])]
    low, high = bootstrap_interval(means)
    return {
        "source": source,
        "size": size,
        "mean": round(statistics.fmean(means), 4),
        "interval": [round(low, 4), round(high, 4)],
        "seeds": [round(statistics.fmean(one.values()), 4) for one in seeds],
        "prompts": len(means),
    }


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """A Markdown table: a row for each size, a column for each source."""
    cells = {(one["source"], one["size"]): one for one in found["cells"]}
    yield "| rows of each kind | real alone | synthetic alone | both |"
    yield "|---|---|---|---|"
    for size in sorted({size for _, size in cells}):
        yield f"| {size} | {' | '.join(_shown(cells.get((source, size))) for source in SOURCES)} |"


def _shown(cell: Mapping[str, Any] | None) -> str:
    return "–" if cell is None else "{:.3f} [{:.3f}, {:.3f}]".format(cell["mean"], *cell["interval"])


def write_page(page: Path, lines: Sequence[str]) -> None:
    """Replace what is between the page's marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} has no marks {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{chr(10).join(lines)}\n\n{END}{after}", encoding="utf-8")


# --- the command ---


def plan(world: World, seeds: Sequence[int]) -> str:
    """What is left to do."""
    left = [cell for cell in cells_of(world, seeds) if by_prompt(cell, world) is None]
    seconds = len(left) * (SECONDS["sft"] + SECONDS["evaluate"])
    seconds += 0 if (world.made / "manifest.json").is_file() else SECONDS["synthesise"]
    return f"{len(left)} cells, about {seconds / 60:.0f} minutes on two quiet cores"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "quickstart", help="with a finished prepare run")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--writer", default="bundled:smollm2-135m-instruct", help="the model that writes")
    parser.add_argument("--policy", default="bundled:smollm2-135m-instruct", help="the base model")
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after so many minutes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true", help="few steps and prompts")
    parser.add_argument("--plan", action="store_true", help="only print what is left to do")
    parser.add_argument("--table", action="store_true", help="only print what is finished")
    parser.add_argument("--docs", action="store_true", help="also write the table into the docs")
    given = parser.parse_args()
    began, prepared = time.monotonic(), (given.runs / "prepare").resolve()
    world = World(prepared, given.folder.resolve(), given.writer, given.sizes, given.small, given.policy)
    say(plan(world, given.seeds))
    if given.plan:
        return
    if not given.table:
        keys = {
            "prompts": ["data/hydroponics/prompts.jsonl"],
            "demonstrations": ["data/hydroponics/demonstrations.jsonl"],
        }
        run(
            "prepare",
            yaml.safe_load((CONFIGS / "prepare.yaml").read_text()) | keys | {"output": prepared},
            world.folder,
        )
        synthesise(world)
        for cell in cells_of(world, given.seeds):
            if time.monotonic() - began > 60 * given.minutes:
                say(f"stopped after {given.minutes:g} minutes; the same command continues")
                break
            run_cell(cell, world)
    found = summarise(world, given.seeds)
    given.results.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    lines = list(table(found))
    print("\n".join(lines))
    if given.docs:
        write_page(ROOT / PAGE, lines)


if __name__ == "__main__":
    main()
