"""How many judgments a better policy costs, and which losses stand wrong ones, on the quickstart's world.

    python benchmarks/labels.py --plan                    # the cells that are not finished, and how long they take
    python benchmarks/labels.py                           # the budgets: about 40 minutes on two quiet CPU cores
    python benchmarks/labels.py --answers 2               # narrower intervals, for about 5 minutes more
    python benchmarks/labels.py --minutes 50              # start no cell that would end later; the same command continues
    python benchmarks/labels.py --case losses             # the losses: about 40 minutes
    python benchmarks/labels.py --table                   # tables of what is finished, and benchmarks/labels.json
    python benchmarks/labels.py --table --docs            # also into README.md and docs/benchmarks.md

Shared by all cells: the quickstart's prepare and SFT runs (--runs), three completions of each of 160 training prompts, and
four answers of SFT to each test prompt. A cell buys judgments of simulated raters, trains DPO from SFT for the same number
of optimizer steps, and answers each test prompt once (--answers); its figure is the rubric's win rate over SFT, of all
answers of a prompt against one another. On CPUs, oneDNN multiplies in DPO and in reward training, alike in all cells.

budgets: B judgments, one a pair (raters err in 10%). Training sees 160 pairs, a pair as often as it takes.
    random    B pairs at random. The pairs of a budget are among those of the next one.
    active    B/2 of them at random, a reward model on these, then B/2 by --strategy (a fifth of them at random).
    judge     B pairs at random, and 160 − B more from a judge that is wrong on 25% of the prompts. At 160 it is `random`.
losses: 120 pairs, three judgments each, of which 20% or 40% are wrong; one row a loss.

Seeds change the selection, the raters' errors and the training; SFT, the pool and the test prompts stay. Intervals are 95%,
over prompts, whose outcomes are means over seeds. They include the chance of drawing answers: with one a prompt they are
wider than with more.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiebreak.command.pipeline import PipelineConfig, StageEntry, run_pipeline
from tiebreak.errors import MachineError, counted
from tiebreak.measures.ratings import outcomes_of, share_interval
from tiebreak.process.ending import exit_with_message
from tiebreak.process.settings import quiet_upstream, settle_process
from tiebreak.process.stopping import heeding_signals
from tiebreak.rounds.joining import Judged, join_config, join_labels
from tiebreak.terminal import say

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("labels.json")
FOLDER = ROOT / ".bench" / "labels"
CONFIGS = ROOT / "configs" / "quickstart"
BUDGETS = (20, 40, 80, 160)
ARMS = ("random", "active", "judge")
STEPS, ROWS = 40, 4
"""optimizer steps of every DPO run, and pairs in each"""
REWARD_STEPS = 20
POOL_PROMPTS, COMPLETIONS = 160, 3
SFT_ANSWERS, ANSWERS = 4, 1
"""to each test prompt"""
STRATEGY = "largest_gap"
JUDGE_ERRS = 0.25
FLIPPED = (0.2, 0.4)
PAIRS_OF_LOSSES = 120
LOSSES: Mapping[str, Mapping[str, Any]] = {
    "plain": {"use_weights": False},
    "weights": {},
    "soft labels (cDPO)": {"soft_labels": True, "use_weights": False},
    "margin (ODPO)": {"strength_as": "margin", "use_weights": False},
    "robust": {"loss_type": ["robust"], "use_weights": False},
    "ipo": {"loss_type": ["ipo"], "use_weights": False},
    "rater_em": {"rater_em": True, "use_weights": False},
}
"""Keys of each. `robust` also gets the true share of wrong preferences: that of the majority of three votes"""
SECONDS = {"select": 2, "label": 2, "reward": 25, "dpo": 35, "evaluate": 13, "sample": 70, "judge": 3}
"""of the stages on two cores; the plan adds them up, and takes the mean of finished stages where there are any. Those of
reward, dpo and evaluate are estimates: 35, 50 and 22 were measured with torch's products and two answers"""
MORE_SECONDS = 9
"""of an evaluation, for each answer beyond one"""
SCORING_SECONDS = 18
"""more, of a selection that scores the pool"""
RESAMPLES = 2_000
SMALLEST_SLOPE = 1e-9
"""of the win rate by a doubling of the labels; below, labels do not help"""
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
    strategy: str = STRATEGY
    budgets: Sequence[int] = BUDGETS
    answers: int = ANSWERS
    """to each test prompt"""

    @property
    def pool(self) -> Path:
        return self.folder / "pool"

    def folder_of(self, cell: Cell) -> Path:
        """A cell's folder. Cells of another strategy, and of a judge with another number of pairs, are others."""
        if cell.arm == "active" and self.strategy != STRATEGY:
            return self.folder / f"{cell.name}-by-{self.strategy}"
        if cell.arm == "judge" and self.seen != max(BUDGETS):
            return self.folder / f"{cell.name}-of-{self.seen}"
        return self.folder / cell.name

    def evaluate_of(self, cell: Cell) -> Path:
        """The answers of a cell's policy, or of the one that is the same."""
        return self.folder_of(cell.trained_as(self)) / evaluate_name(self.answers)

    @property
    def error_rate(self) -> float:
        """A random model's answers are all alike to the rubric: only raters who err tell them apart."""
        return 0.9 if self.small else 0.1

    @property
    def seen(self) -> int:
        """Pairs that training sees: the largest budget."""
        return max(self.budgets)


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

    def trained_as(self, world: World) -> Cell:
        """The cell whose policy is this one's: a judge has nothing to add to the largest budget."""
        whole = self.case == "budgets" and self.arm == "judge" and int(self.size) == world.seen
        return Cell(self.case, "random", self.size, self.seed) if whole else self


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


def evaluate_name(answers: int) -> str:
    """The folder of so many answers to each test prompt."""
    return f"evaluate-{answers}"


def cells_of(case: str, world: World, seeds: Sequence[int]) -> list[Cell]:
    """A case's cells, the smallest first: a table of a part is of use."""
    if case == "budgets":
        return [Cell(case, arm, str(size), seed) for seed in seeds for size in world.budgets for arm in ARMS]
    return [Cell(case, name, f"{share:g}", seed) for seed in seeds for share in FLIPPED for name in LOSSES]


# --- stages ---


def shared_stages(world: World) -> list[Stage]:
    """The pool of completions, and the answers of SFT."""
    sampled = {
        "output": world.pool,
        "policy": world.runs / "sft",
        "prompts": world.runs / "prepare",
        "splits": ["train"],
        "max_prompts": 12 if world.small else POOL_PROMPTS,
        "completions_per_prompt": COMPLETIONS,
        **({"sampling": [{"temperature": 1.0, "max_new_tokens": 6}]} if world.small else {}),
    }
    return [Stage("sample", sampled), answered(world, world.folder / "sft", "sft", world.runs / "sft", SFT_ANSWERS)]


def answered(world: World, output: Path, name: str, policy: Path, answers: int) -> Stage:
    """A policy's answers to the test prompts."""
    keys = {
        "output": output,
        "policies": {name: policy},
        "baseline": name,
        "prompts": world.runs / "prepare",
        "max_prompts": 3 if world.small else None,
        "samples_per_prompt": answers,
        "reward_model": None,
        **({"split": "validation", "sampling.max_new_tokens": 6} if world.small else {}),
    }
    return Stage("evaluate", keys)


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
    dpo = {
        "output": folder / "dpo",
        "policy": world.runs / "sft",
        "preferences": preferences,
        "training.seed": seed,
        "training.max_steps": 2 if world.small else STEPS,
        "training.per_device_batch_size": ROWS,
        **({"sampling.max_new_tokens": 6} if world.small else {}),
        **products(),
        **keys,
    }
    answers = answered(world, folder / evaluate_name(world.answers), "dpo", folder / "dpo", world.answers)
    return [Stage("dpo", dpo), answers]


@cache
def products() -> dict[str, str]:
    """The key that multiplies by oneDNN, where it can."""
    from tiebreak.packed.products import use_products  # imports torch, which a plan needs not

    try:
        use_products("onednn")
    except MachineError:
        return {}
    return {"training.matrix_products": "onednn"}


def run_cell(cell: Cell, world: World) -> None:
    """Its stages; what is finished is skipped."""
    folder = world.folder_of(cell)
    if cell.case == "losses":
        run_losses(cell, world, folder)
    elif cell.arm == "active":
        labels = buy_actively(cell, world, folder, int(cell.size))
        run(trained(world, folder, labels, cell.seed))
    else:
        base = world.folder_of(Cell(cell.case, "random", cell.size, cell.seed))
        run(bought(world, base, int(cell.size), cell.seed))
        labels = base / "label" if cell.arm == "random" else add_judge(cell, world, folder, base)
        run(trained(world, folder, labels, cell.seed))


def add_judge(cell: Cell, world: World, folder: Path, base: Path) -> Path:
    """The pairs of the largest budget, of which people judge the first ones and a judge the rest."""
    rest = world.folder / cell.case / f"rest-{world.seen}-seed-{cell.seed}"
    selected, _ = bought(world, rest, world.seen, cell.seed)
    keys = {"output": rest / "judge", "pairs": rest / "select", "function": "erring_judge:erring", "injection_pairs": 0}
    run([selected, Stage("judge", keys, write_judge(world))])
    judged = Judged(judge=str(rest / "judge"), pool=str(rest / "select"), selected=str(base / "select"))
    return Path(join_labels(join_config(folder / "labels", [str(base / "label")], [judged])))


def buy_actively(cell: Cell, world: World, folder: Path, size: int) -> Path:
    """Half of the budget at random, the rest by a strategy that reads a reward model of the first half."""
    half = folder / "half"
    run(bought(world, half, size // 2, cell.seed))
    reward = {
        "output": folder / "reward",
        "policy": world.runs / "sft",
        "preferences": half / "label",
        "training.seed": cell.seed,
        "validation_share": 0.1,
        "training.max_steps": 2 if world.small else REWARD_STEPS,
        "training.per_device_batch_size": ROWS,
        "garbage_prompts": 1,
        **products(),
    }
    run([Stage("reward", reward)])
    by_score = {"strategy": world.strategy, "reward_model": folder / "reward", "judged": [str(half / "label")]}
    run(bought(world, folder, size - size // 2, cell.seed, **by_score))
    labels = [str(half / "label"), str(folder / "label")]
    return Path(join_labels(join_config(folder / "labels", labels, [])))


def run_losses(cell: Cell, world: World, folder: Path) -> None:
    """The same wrong votes for every loss."""
    share, pairs = float(cell.size), 8 if world.small else PAIRS_OF_LOSSES
    wrong = world.error_rate if world.small else share
    base = world.folder / cell.case / f"votes-{cell.size}-seed-{cell.seed}"
    selected, _ = bought(world, base, pairs, cell.seed)
    run([selected, labelled(base, cell.seed, overlap=3, error_rate=wrong, votes=True)])
    keys = dict(LOSSES[cell.arm])
    if cell.arm == "robust":
        keys["label_smoothing"] = round(share**2 * (3 - 2 * share), 4)
    run(trained(world, folder, base / "label", cell.seed, **keys))


def run(stages: Sequence[Stage]) -> None:
    """Run stages as a recipe, unless all are finished. This process has imported what they need, and forks them."""
    if all(stage.finished for stage in stages):
        return
    entries = [
        StageEntry(
            stage=stage.stage,
            config=str(stage.config or CONFIGS / f"{stage.stage}.yaml"),
            overrides=json.loads(json.dumps(dict(stage.keys), default=str)),
        )
        for stage in stages
    ]
    run_pipeline(PipelineConfig(name="labels", group="labels", tracking_mode="disabled", stages=entries))


def write_judge(world: World) -> Path:
    """The judge as a file beside its configuration: the rubric, and on a share of the prompts its opposite."""
    folder = world.folder / "judge"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "erring_judge.py").write_text(
        '"""The rubric of the quickstart\'s world, turned around for a share of prompts, by a hash."""\n'
        "from tiebreak.measures.yardstick import find_yardstick\n"
        "from tiebreak.messages import content_id\n\n"
        'RUBRIC = find_yardstick("rubric")\n\n\n'
        "def erring(prompt, answer):\n"
        '    value = RUBRIC.measure(prompt, answer, "an answer").value\n'
        f'    errs = int(content_id("errs", prompt)[-6:], 16) / 16**6 < {JUDGE_ERRS}\n'
        "    return 1 - value if errs else value\n"
    )
    (folder / "judge.yaml").write_text("output: unused\npairs: unused\n")
    return folder / "judge.yaml"


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
    """A cell's outcome at each prompt, the mean over all answers of both policies; None until it is finished."""
    own = _scores(world.evaluate_of(cell))
    theirs = _scores(world.folder / "sft")
    if own is None or theirs is None:
        return None
    return np.array(
        [outcomes_of(*np.meshgrid(own[prompt], theirs[prompt])).mean() for prompt in sorted(own)], dtype=np.float64
    )


def _scores(evaluate: Path) -> dict[str, list[float]] | None:
    """The rubric's scores of a policy's answers, by prompt; None until they are finished."""
    if not (evaluate / "manifest.json").is_file():
        return None
    found: dict[str, list[float]] = {}
    for line in (evaluate / "final" / "completions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["prompt_id"], []).append(row["yardstick_score"])
    return found


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
    if slope < SMALLEST_SLOPE:
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
        "answers": world.answers,
        "steps": STEPS,
        "pairs": world.seen,
        "judge_errs": JUDGE_ERRS,
        "missing": missing(world, seeds),
        "budgets": [row.as_json() for row in budgets],
        "saved": [one for one in saved if one is not None],
        "losses": [row.as_json() for row in gather("losses", world, seeds)],
    }


def missing(world: World, seeds: Sequence[int]) -> list[str]:
    """The cells without figures, of the cases that were begun."""
    unfinished = []
    for case in ("budgets", "losses"):
        cells = cells_of(case, world, seeds)
        without = [cell.name for cell in cells if read_outcomes(cell, world) is None]
        unfinished += without if len(without) < len(cells) else []
    return unfinished


def tables(found: Mapping[str, Any]) -> list[str]:
    """Markdown tables, for README and docs."""
    names = {"random": "random", "active": f"active ({found['strategy']})", "judge": "random + judge on the rest"}
    lines = [] if not found["missing"] else [f"Not finished, and so not counted: {', '.join(found['missing'])}.", ""]
    lines += list(_table("judgments", found["budgets"], names, lambda size: size))
    for one in found["saved"]:
        low, high = ("–" if edge is None else f"{edge:.0%}" for edge in one["interval"])
        lines.append(
            f"{names[one['arm']]}: {one['saved']:.0%} of the judgments saved at an equal win rate ({low} to {high})."
        )
    losses = {row["arm"]: row["arm"] for row in found["losses"]}
    lines += ["", *_table("votes wrong", found["losses"], losses, lambda size: f"{float(size):.0%}")]
    prompts = " or ".join(map(str, sorted({row["prompts"] for row in (*found["budgets"], *found["losses"])})))
    if prompts:
        lines.append(
            f"{counted(found['answers'], 'answer')} of each policy to each of {prompts} test prompts, against "
            f"{SFT_ANSWERS} of SFT; 95% intervals over prompts, which include the chance of drawing answers."
        )
    return lines


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


@dataclass(frozen=True)
class Plan:
    """What is left to do, and how long each part takes."""

    shared_seconds: float
    cells: list[tuple[Cell, float]]
    """with seconds"""

    def line(self) -> str:
        seconds = self.shared_seconds + sum(each for _, each in self.cells)
        return f"{counted(len(self.cells), 'cell')}, about {seconds / 60:.0f} minutes on two quiet cores"


def plan(cases: Sequence[str], world: World, seeds: Sequence[int]) -> Plan:
    """The cells that are not finished, in order. Cells that share a policy count once."""
    more = SECONDS["evaluate"] + MORE_SECONDS * (world.answers - 1)
    seconds = {**SECONDS, "evaluate": more, **measured_seconds(world)}
    shared = sum(seconds[one.stage] for one in shared_stages(world) if not one.finished)
    left = [cell for case in cases for cell in cells_of(case, world, seeds) if read_outcomes(cell, world) is None]
    left = list(dict.fromkeys(cell.trained_as(world) for cell in left))
    return Plan(shared, [(cell, _seconds(cell, seconds)) for cell in left])


def _seconds(cell: Cell, seconds: Mapping[str, float]) -> float:
    stages = ["select", "label", "dpo", "evaluate"]
    stages += ["select", "label", "reward"] if cell.arm == "active" else []
    return sum(seconds[stage] for stage in stages) + SCORING_SECONDS * (cell.arm == "active")


def measured_seconds(world: World) -> dict[str, float]:
    """The mean time of finished DPO runs, of so many of their answers and of reward runs."""
    found: dict[str, list[float]] = {}
    for manifest in world.folder.glob("*/*/*/manifest.json"):
        facts = json.loads(manifest.read_text(encoding="utf-8"))
        if facts["stage"] in ("dpo", "reward") or manifest.parent.name == evaluate_name(world.answers):
            found.setdefault(facts["stage"], []).append(facts["seconds"])
    return {stage: sum(each) / len(each) for stage, each in found.items()}


def run_cells(cases: Sequence[str], world: World, seeds: Sequence[int], results: Path, ends: float) -> None:
    """Run what is not finished, and write the figures after each cell.

    Args:
        ends: on the monotonic clock; no cell starts that would end later.
    """
    run(shared_stages(world))
    while left := plan(cases, world, seeds).cells:
        cell, seconds = left[0]
        if time.monotonic() + seconds > ends:
            say(f"time is up: {len(left)} cells are left, and the same command continues with {cell.name}")
            return
        started = time.monotonic()
        run_cell(cell, world)
        write(results, summarise(world, seeds))
        say(f"{cell.name}: {time.monotonic() - started:.0f} s; {plan(cases, world, seeds).line()} left")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "quickstart", help="finished prepare and sft runs")
    parser.add_argument("--folder", type=Path, help="for its runs; default: .bench/labels, or .bench/labels-small")
    parser.add_argument("--case", choices=("budgets", "losses"), nargs="*", default=["budgets"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--budgets", type=int, nargs="*", default=list(BUDGETS))
    parser.add_argument("--strategy", choices=("largest_gap", "margin", "disagreement"), default=STRATEGY)
    parser.add_argument("--answers", type=int, choices=(1, 2, 4), default=ANSWERS, help="to each test prompt")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no cell that would end later")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true", help="few steps and prompts")
    parser.add_argument("--plan", action="store_true", help="only print what is left to do")
    parser.add_argument("--table", action="store_true", help="only print what is finished")
    parser.add_argument("--docs", action="store_true", help="also write the tables into README and docs")
    given = parser.parse_args()
    folder = given.folder or (FOLDER.with_name("labels-small") if given.small else FOLDER)
    world = World(given.runs.resolve(), folder.resolve(), given.small, given.strategy, given.budgets, given.answers)
    say(plan(given.case, world, given.seeds).line())
    if given.plan:
        return
    if not given.table:
        settle_process()  # before torch is imported
        quiet_upstream()
        ends = time.monotonic() + 60 * given.minutes
        with heeding_signals():
            exit_with_message(lambda: run_cells(given.case, world, given.seeds, given.results, ends))
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
