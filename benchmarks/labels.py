"""How many judgments a better policy costs, and which losses stand wrong ones, on the quickstart's world.

    python benchmarks/labels.py --plan                    # the cells that are not finished, and how long they take
    python benchmarks/labels.py                           # all of them: three to four hours on two quiet CPU cores
    python benchmarks/labels.py --case budgets --seeds 0  # a part; stop at any time, and the same command continues
    python benchmarks/labels.py --table                   # tables of what is finished, and benchmarks/labels.json
    python benchmarks/labels.py --table --docs            # also into README.md and docs/benchmarks.md

Shared by all cells: the quickstart's prepare and SFT runs (--runs), four completions of each training prompt, and a judge's
verdicts on the pool. A cell buys judgments of simulated raters, trains DPO from SFT for the same number of optimizer steps,
and answers the test prompts; its figure is the rubric's win rate over SFT.

budgets: B judgments, one a pair (raters err in 10%).
    random    B pairs at random.
    active    the B/2 of `random`, a reward model on them, then B/2 more by --strategy (a fifth of them at random).
    judge     B pairs at random; a judge that is wrong on 25% of the prompts labels the rest of the pool.
losses: 120 pairs, three judgments each, of which 20% or 40% are wrong; one row a loss.

Seeds change the selection, the raters' errors and the training; SFT, the pool and the test prompts stay. Intervals are 95%,
over prompts, whose outcomes are means over seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from tiebreak.measures.ratings import outcomes_of, share_interval
from tiebreak.rounds.joining import Judged, join_config, join_labels
from tiebreak.terminal import say

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("labels.json")
FOLDER = ROOT / ".bench" / "labels"
CONFIGS = ROOT / "configs" / "quickstart"
BUDGETS = (40, 80, 160, 320)
ARMS = ("random", "active", "judge")
STEPS = 40
"""optimizer steps of every DPO run, of 8 pairs"""
JUDGE_ERRS = 0.25
FLIPPED = (0.2, 0.4)
PAIRS_OF_LOSSES = 120
LOSSES: Mapping[str, Mapping[str, Any]] = {
    "sigmoid": {},
    "soft labels (cDPO)": {"soft_labels": True},
    "robust": {"loss_type": ["robust"]},
    "ipo": {"loss_type": ["ipo"]},
    "rater_em": {"rater_em": True, "use_weights": False},
}
"""Keys of each. `robust` also gets the true share of wrong preferences: that of the majority of three votes"""
SECONDS = {"select": 4, "label": 3, "reward": 60, "dpo": 85, "evaluate": 70, "sample": 130, "judge": 5, "join": 1}
"""of the stages on two cores, from the quickstart; the plan adds them up"""
RESAMPLES = 2_000
PAGES = ("README.md", "docs/benchmarks.md")
BEGIN, END = "<!-- labels: begin -->", "<!-- labels: end -->"
"""in the pages, around the tables"""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """What all cells share, and how large they are."""

    runs: Path
    """with finished prepare and sft runs"""
    folder: Path
    small: bool = False
    """few steps and prompts, for the test"""
    strategy: str = "largest_gap"
    budgets: Sequence[int] = BUDGETS

    @property
    def pool(self) -> Path:
        return self.folder / "pool"

    @property
    def error_rate(self) -> float:
        """A random model's answers are all alike to the rubric: only raters who err tell them apart."""
        return 0.9 if self.small else 0.1

    @property
    def judge(self) -> Path:
        return self.folder / "judge"


@dataclass(frozen=True)
class Cell:
    """One trained policy."""

    case: str
    arm: str
    size: str
    """the budget, or the share of wrong votes"""
    seed: int

    @property
    def name(self) -> str:
        """Its folder's name."""
        slug = "".join(one if one.isalnum() else "-" for one in self.arm).strip("-")
        return f"{self.case}/{slug}-{self.size}-seed-{self.seed}"


@dataclass(frozen=True)
class Stage:
    """A stage of a cell: an entry of a recipe."""

    stage: str
    keys: Mapping[str, Any]
    config: Path | None = None

    @property
    def output(self) -> Path:
        return Path(self.keys["output"])

    @property
    def finished(self) -> bool:
        return (self.output / "manifest.json").is_file()


def cells_of(case: str, world: World, seeds: Sequence[int]) -> list[Cell]:
    """A case's cells, the smallest first: a table of a part is of use."""
    if case == "budgets":
        return [Cell(case, arm, str(size), seed) for seed in seeds for size in world.budgets for arm in ARMS]
    return [Cell(case, name, f"{share:g}", seed) for seed in seeds for share in FLIPPED for name in LOSSES]


# --- stages ---


def shared_stages(world: World) -> list[Stage]:
    """The pool of completions, and the judge's verdicts on it."""
    sampled = {
        "output": world.pool,
        "policy": world.runs / "sft",
        "prompts": world.runs / "prepare",
        "splits": ["train"],
        "max_prompts": 12 if world.small else None,
        "completions_per_prompt": 4,
        **({"sampling": [{"temperature": 1.0, "max_new_tokens": 6}]} if world.small else {}),
    }
    judged = {"output": world.judge, "pairs": world.pool, "function": "erring_judge:erring", "injection_pairs": 0}
    return [Stage("sample", sampled), Stage("judge", judged, world.folder / "judge.yaml")]


def bought(world: World, folder: Path, pairs: int, seed: int, **selection: Any) -> list[Stage]:
    """Select pairs, and have each judged once."""
    select = {"output": folder / "select", "pairs": world.pool, "selected_pairs": pairs, "seed": seed, **selection}
    select_file = ROOT / "configs" / "rounds" / "select.yaml"
    return [Stage("select", select, select_file), labelled(folder, seed, overlap=1, error_rate=world.error_rate)]


def labelled(folder: Path, seed: int, *, overlap: int, error_rate: float, votes: bool = False) -> Stage:
    """Simulated judgments of what a folder's selection holds."""
    keys = {
        "output": folder / "label",
        "pairs": folder / "select",
        "overlap": overlap,
        "simulate.error_rate": error_rate,
        "simulate.seed": seed,
        **({"aggregation.votes": True} if votes else {}),
    }
    return Stage("label", keys)


def trained(world: World, folder: Path, preferences: Path, seed: int, **keys: Any) -> list[Stage]:
    """DPO from SFT on the labels, and its answers to the test prompts."""
    short = {"sampling.max_new_tokens": 6} if world.small else {}
    dpo = {
        "output": folder / "dpo",
        "policy": world.runs / "sft",
        "preferences": preferences,
        "training.seed": seed,
        "training.max_steps": 2 if world.small else STEPS,
        **short,
        **keys,
    }
    evaluate = {
        "output": folder / "evaluate",
        "policies": {"sft": world.runs / "sft", "dpo": folder / "dpo"},
        "prompts": world.runs / "prepare",
        "max_prompts": 3 if world.small else None,
        **({"split": "validation"} if world.small else {}),
        "reward_model": None,
        **short,
    }
    return [Stage("dpo", dpo), Stage("evaluate", evaluate)]


def run_cell(cell: Cell, world: World) -> None:
    """Its stages; what is finished is skipped."""
    folder = world.folder / cell.name
    if cell.case == "losses":
        run_losses(cell, world, folder)
        return
    size = int(cell.size)
    base = world.folder / Cell(cell.case, "random", cell.size, cell.seed).name
    run(bought(world, base, size, cell.seed), base)
    preferences = base / "label"
    if cell.arm == "judge":
        judged = [Judged(judge=str(world.judge), pool=str(world.pool), selected=str(base / "select"))]
        preferences = Path(join_labels(join_config(folder / "labels", [str(base / "label")], judged)))
    elif cell.arm == "active":
        preferences = buy_actively(cell, world, folder, size)
    run(trained(world, folder, preferences, cell.seed), folder)


def buy_actively(cell: Cell, world: World, folder: Path, size: int) -> Path:
    """Half of the budget at random, the rest by a strategy that reads a reward model of the first half."""
    half = folder / "half"
    run(bought(world, half, size // 2, cell.seed), half)
    reward = {
        "output": folder / "reward",
        "policy": world.runs / "sft",
        "preferences": half / "label",
        "training.seed": cell.seed,
        "validation_share": 0.1,
        **({"training.max_steps": 2, "garbage_prompts": 1} if world.small else {}),
    }
    run([Stage("reward", reward)], folder)
    by_score = {"strategy": world.strategy, "reward_model": folder / "reward", "judged": [str(half / "label")]}
    run(bought(world, folder, size - size // 2, cell.seed, **by_score), folder)
    labels = [str(half / "label"), str(folder / "label")]
    return Path(join_labels(join_config(folder / "labels", labels, [])))


def run_losses(cell: Cell, world: World, folder: Path) -> None:
    """The same wrong votes for every loss."""
    share, pairs = float(cell.size), 8 if world.small else PAIRS_OF_LOSSES
    wrong = world.error_rate if world.small else share
    base = world.folder / cell.case / f"votes-{cell.size}-seed-{cell.seed}"
    selected, _ = bought(world, base, pairs, cell.seed)
    run([selected, labelled(base, cell.seed, overlap=3, error_rate=wrong, votes=True)], base)
    keys = dict(LOSSES[cell.arm])
    if cell.arm == "robust":
        keys["label_smoothing"] = round(share**2 * (3 - 2 * share), 4)
    run(trained(world, folder, base / "label", cell.seed, **keys), folder)


def run(stages: Sequence[Stage], folder: Path) -> None:
    """Run stages as a recipe, unless all are finished.

    Raises:
        SystemExit: one failed.
    """
    if all(stage.finished for stage in stages):
        return
    entries = [
        {
            "stage": stage.stage,
            "config": str(stage.config or CONFIGS / f"{stage.stage}.yaml"),
            "overrides": json.loads(json.dumps(dict(stage.keys), default=str)),
        }
        for stage in stages
    ]
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / f"{stages[0].stage}-recipe.yaml"
    recipe.write_text(
        yaml.safe_dump({"name": "labels", "group": "labels", "tracking_mode": "disabled", "stages": entries})
    )
    command = [sys.executable, "-m", "tiebreak.command.cli", "run", "--config", str(recipe)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def write_judge(world: World) -> None:
    """The judge as a file beside its configuration: the rubric, and in a share of comparisons its opposite."""
    world.folder.mkdir(parents=True, exist_ok=True)
    (world.folder / "erring_judge.py").write_text(
        '"""The rubric of the quickstart\'s world, turned around for a share of prompts, by a hash."""\n'
        "from tiebreak.measures.yardstick import find_yardstick\n"
        "from tiebreak.records import content_id\n\n"
        'RUBRIC = find_yardstick("rubric")\n\n\n'
        "def erring(prompt, answer):\n"
        '    value = RUBRIC.measure(prompt, answer, "an answer").value\n'
        f'    errs = int(content_id("errs", prompt)[-6:], 16) / 16**6 < {JUDGE_ERRS}\n'
        "    return 1 - value if errs else value\n"
    )
    (world.folder / "judge.yaml").write_text("output: unused\npairs: unused\n")


# --- figures ---


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of one arm and size over SFT: shape (seeds, prompts)."""

    arm: str
    size: str
    values: Floats
    labels: int

    @property
    def by_prompt(self) -> Floats:
        return np.asarray(self.values.mean(axis=0))

    def as_json(self) -> dict[str, Any]:
        low, high = share_interval(self.by_prompt)
        return {
            "arm": self.arm,
            "size": self.size,
            "judgments": self.labels,
            "win_rate": round(float(self.values.mean()), 4),
            "interval": [round(low, 4), round(high, 4)],
            "seeds": [round(float(one.mean()), 4) for one in self.values],
            "prompts": self.values.shape[1],
        }


def read_outcomes(cell: Cell, world: World) -> Floats | None:
    """A finished cell's outcomes, by prompt; None of one that is not finished."""
    evaluate = world.folder / cell.name / "evaluate"
    if not (evaluate / "manifest.json").is_file():
        return None
    values: dict[str, dict[str, float]] = {"sft": {}, "dpo": {}}
    for line in (evaluate / "final" / "completions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        values[row["policy"]][row["prompt_id"]] = row["yardstick_score"]
    prompts = sorted(values["sft"])
    return outcomes_of(*(np.array([values[name][prompt] for prompt in prompts]) for name in ("dpo", "sft")))


def gather(case: str, world: World, seeds: Sequence[int]) -> list[Outcomes]:
    """The finished cells by arm and size."""
    found: dict[tuple[str, str], list[Floats]] = {}
    for cell in cells_of(case, world, seeds):
        if (outcomes := read_outcomes(cell, world)) is not None:
            found.setdefault((cell.arm, cell.size), []).append(outcomes)
    judgments = {"losses": 3 * PAIRS_OF_LOSSES}
    return [
        Outcomes(arm, size, np.stack(each), judgments.get(case) or int(size)) for (arm, size), each in found.items()
    ]


def labels_saved(rows: Sequence[Outcomes], arm: str) -> dict[str, Any] | None:
    """The share of judgments that an arm saves at an equal win rate, with its interval.

    Least squares of the win rates on log₂ of the budget with one slope and an intercept for each of the two arms: an arm
    that is higher by c is worth 2^(c/slope) times as many random labels, and saves 1 − 2^(−c/slope). Resampled over
    prompts, whose outcomes of all cells go together. None unless both arms have two budgets and labels help at all.
    """
    both = [row for row in rows if row.arm in ("random", arm)]
    if any(len({row.size for row in both if row.arm == name}) < 2 for name in ("random", arm)):
        return None
    design = np.array([[1.0, math.log2(int(row.size)), float(row.arm == arm)] for row in both])
    outcomes = np.stack([row.by_prompt for row in both])
    solve = np.linalg.pinv(design)
    _, slope, gain = solve @ outcomes.mean(axis=1)
    if slope <= 0:
        return None
    chance = np.random.default_rng(0)
    drawn = chance.integers(0, outcomes.shape[1], size=(RESAMPLES, outcomes.shape[1]))
    fits = solve @ outcomes[:, drawn].mean(axis=2)
    # Where labels do not help in a resample, any saving is possible: it counts as the extreme of its sign.
    shares = np.where(
        fits[1] > 0, 1 - 2.0 ** (-fits[2] / np.maximum(fits[1], 1e-6)), np.where(fits[2] > 0, 1.0, -np.inf)
    )
    low, high = np.quantile(shares, (0.025, 0.975), method="nearest")
    value = 1 - 2.0 ** (-gain / slope)
    return {"arm": arm, "saved": round(float(value), 4), "interval": [_finite(low), _finite(high)]}


def _finite(share: float) -> float | None:
    return round(float(share), 4) if np.isfinite(share) else None


def summarise(world: World, seeds: Sequence[int]) -> dict[str, Any]:
    """All figures of finished cells."""
    budgets = gather("budgets", world, seeds)
    saved = [labels_saved(budgets, arm) for arm in ARMS[1:]]
    return {
        "strategy": world.strategy,
        "steps": STEPS,
        "judge_errs": JUDGE_ERRS,
        "budgets": [row.as_json() for row in budgets],
        "saved": [one for one in saved if one is not None],
        "losses": [row.as_json() for row in gather("losses", world, seeds)],
    }


def tables(found: Mapping[str, Any]) -> list[str]:
    """Markdown tables, for README and docs."""
    names = {"random": "random", "active": f"active ({found['strategy']})", "judge": "random + judge on the rest"}
    lines = list(_table("judgments", found["budgets"], names, lambda size: size))
    for one in found["saved"]:
        low, high = ("–" if edge is None else f"{edge:.0%}" for edge in one["interval"])
        lines.append(
            f"{names[one['arm']]}: {one['saved']:.0%} of the judgments saved at an equal win rate ({low} to {high})."
        )
    losses = {row["arm"]: row["arm"] for row in found["losses"]}
    return [*lines, "", *_table("votes wrong", found["losses"], losses, lambda size: f"{float(size):.0%}")]


def _table(first: str, rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], shown: Any) -> Iterator[str]:
    arms = [arm for arm in names if any(row["arm"] == arm for row in rows)]
    if not arms:
        return
    yield f"| {first} | {' | '.join(names[arm] for arm in arms)} |"
    yield f"|---|{'---|' * len(arms)}"
    by_cell = {(row["arm"], row["size"]): row for row in rows}
    for size in sorted({row["size"] for row in rows}, key=float):
        cells = []
        for arm in arms:
            row = by_cell.get((arm, size))
            cells.append("–" if row is None else "{:.2f} [{:.2f}, {:.2f}]".format(row["win_rate"], *row["interval"]))
        yield f"| {shown(size)} | {' | '.join(cells)} |"
    yield ""


# --- the command ---


@dataclass
class Plan:
    """What is left to do."""

    cells: int = 0
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)


def plan(cases: Sequence[str], world: World, seeds: Sequence[int]) -> Plan:
    """The cells that are not finished, and the time of their stages."""
    found = Plan(seconds=sum(SECONDS[one.stage] for one in shared_stages(world) if not one.finished))
    for case in cases:
        for cell in cells_of(case, world, seeds):
            if read_outcomes(cell, world) is not None:
                continue
            stages = ["select", "label", "dpo", "evaluate"]
            stages += ["select", "label", "reward"] if cell.arm == "active" else []
            found.cells += 1
            found.seconds += sum(SECONDS[stage] for stage in stages)
    found.lines.append(f"{found.cells} cells, about {found.seconds / 60:.0f} minutes on two quiet cores")
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "quickstart", help="finished prepare and sft runs")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--case", choices=("budgets", "losses"), nargs="*", default=["budgets", "losses"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--budgets", type=int, nargs="*", default=list(BUDGETS))
    parser.add_argument("--strategy", choices=("largest_gap", "margin", "disagreement"), default="largest_gap")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true", help="few steps and prompts")
    parser.add_argument("--plan", action="store_true", help="only print what is left to do")
    parser.add_argument("--table", action="store_true", help="only print what is finished")
    parser.add_argument("--docs", action="store_true", help="also write the tables into README and docs")
    given = parser.parse_args()
    world = World(given.runs.resolve(), given.folder.resolve(), given.small, given.strategy, given.budgets)
    say(*plan(given.case, world, given.seeds).lines)
    if given.plan:
        return
    if not given.table:
        write_judge(world)
        run(shared_stages(world), world.folder)
        for case in given.case:
            for cell in cells_of(case, world, given.seeds):
                run_cell(cell, world)
                write(given.results, summarise(world, given.seeds))
    found = summarise(world, given.seeds)
    write(given.results, found)
    print("\n".join(tables(found)))
    if given.docs:
        for page in PAGES:
            write_tables(ROOT / page, tables(found))


def write_tables(page: Path, lines: Sequence[str]) -> None:
    """Replace what is between the page's marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} has no marks {BEGIN} and {END}")
    text = "\n".join(lines).strip()
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def write(file: Path, found: Mapping[str, Any]) -> None:
    """The figures so far."""
    file.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
