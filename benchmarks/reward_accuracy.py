"""What our reward model learns from human preferences, beside TRL's RewardTrainer with the same budget, and beside length.

    python benchmarks/reward_accuracy.py                       # most of an hour on two quiet CPU cores
    python benchmarks/reward_accuracy.py --steps 16 --seeds 0 1 2
    python benchmarks/reward_accuracy.py --passages            # in the prompt: five times as long

The data are human choices among answers to questions (finegrained-qa-feedback, without ties), split by question: no
question has pairs on both sides. Ours and TRL's trainer, with its defaults, train the same adapter and score head on the
same token ids in the same order, with the same batch, steps, learning rate and seed, each in a process of its own.
All of them are then asked about the same held-out pairs. Scores of both are computed packed; TRL's model must give the
same to some answers by its own plain forward.

Intervals are 95%, of the cluster bootstrap over questions: pairs of one question are not independent, and seeds are no
further questions (with several seeds, a pair counts by its mean over them). The length-only baseline prefers the longer
answer, or the shorter one if that is right more often about all pairs that may be trained on. Prints a table and writes
benchmarks/reward_accuracy.json.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from training import LEARNING_RATE, MODEL, QA_FEEDBACK, Budget, Pair, answer_of, build_contestant, read_questions

from reward.calibration import correctness
from tiebreak.chat.build import build_chat
from tiebreak.errors import DataError, HandoffError, TiebreakError
from tiebreak.measures.statistics import bootstrap_interval
from tiebreak.packed.logprobs import scores_in_batches

RESULTS = Path(__file__).with_name("reward_accuracy.json")
CONTESTANTS = ("ours", "trl")
LIMIT_TOKENS = {False: 512, True: 1024}
"""By whether there are passages; a pair with a longer side is left out, and counted."""
CHECKED = 4
"""Held-out answers whose packed scores are compared with those of the plain forward."""
ALLOWED = 1e-3
"""How far they may be apart, as a share of the largest score where that is above 1."""


# --- data


@dataclass(frozen=True)
class Choice:
    """A human choice between two answers to a question."""

    question: str
    """its key: the text in one case and spacing"""
    pair: Pair

    @property
    def longer_by(self) -> int:
        """Tokens of the chosen answer, less those of the rejected one."""
        return len(self.pair.chosen) - len(self.pair.rejected)


@dataclass(frozen=True)
class Data:
    """The choices on either side of the split."""

    train: list[Choice]
    held_out: list[Choice]
    too_long: int
    """choices left out"""


def read_data(folder: Path, tokenizer: Any, passages: bool, share: float) -> Data:
    """The human choices, split by question: those whose hashes come first are held out.

    Raises:
        DataError: there is nothing on one side, or a question on both.
    """
    chat = build_chat(tokenizer)
    choices = []
    for question, preference in read_questions(folder, passages):
        chosen, rejected = chat.encode_preference(preference)
        pair = Pair(chosen.prompt, chosen.completion, rejected.completion)
        choices.append(Choice(" ".join(question.casefold().split()), pair))
    fitting = [choice for choice in choices if choice.pair.longest <= LIMIT_TOKENS[passages]]
    questions = sorted({choice.question for choice in choices}, key=lambda text: sha256(text.encode()).digest())
    apart = set(questions[: round(share * len(questions))])
    train = [choice for choice in fitting if choice.question not in apart]
    held_out = [choice for choice in fitting if choice.question in apart]
    if not train or not held_out:
        raise DataError(f"{folder}: {len(train)} pairs to train on, {len(held_out)} held out: give another --held-out")
    both = {choice.question for choice in train} & {choice.question for choice in held_out}
    if both:
        raise DataError(f"{folder}: a question is on both sides, so held-out figures would be false", sorted(both))
    return Data(train, held_out, len(choices) - len(fitting))


def in_order(choices: Sequence[Choice], budget: Budget) -> list[Pair]:
    """The pairs that a budget sees: all in random order, and again in another order if it sees more than all."""
    chance = random.Random(budget.seed)
    seen: list[Pair] = []
    while len(seen) < budget.rows * budget.steps:
        seen += [choice.pair for choice in chance.sample(choices, len(choices))]
    return seen[: budget.rows * budget.steps]


# --- contestants


@dataclass(frozen=True)
class TrainingResult:
    """What one process reports."""

    losses: list[float]
    differences: list[float]
    """score of the chosen answer less that of the rejected one, one a held-out pair"""
    train_seconds: float
    scoring_seconds: float
    plain_difference: float | None
    """of packed and plain scores, the largest among some; None where there is no plain forward to ask"""


def learn(contestant: str, data: Data, budget: Budget, model: str, tokenizer: Any) -> TrainingResult:
    """Train in this process, and score the held-out pairs."""
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        pairs = in_order(data.train, budget)
        trainer = build_contestant("reward", contestant, pairs, budget, model, tokenizer, folder)
        started = time.perf_counter()
        trainer.train()
        trained = time.perf_counter()
    trainer.model.eval()
    plain_difference = None
    if contestant != "ours":
        answers = list(dict.fromkeys(side for choice in data.held_out for side in sides(choice.pair)))[:CHECKED]
        plain = plain_scores(trainer.model, answers)  # first, as packed scores need another attention
        packed = scores_in_batches(trainer.model, answers, tokenizer.pad_token_id, budget.rows)
        plain_difference = compare(plain, packed)
    scoring = time.perf_counter()
    differences = score_differences(trainer.model, [choice.pair for choice in data.held_out], tokenizer.pad_token_id)
    return TrainingResult(
        losses=[entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        differences=differences,
        train_seconds=trained - started,
        scoring_seconds=time.perf_counter() - scoring,
        plain_difference=plain_difference,
    )


def sides(pair: Pair) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of the chosen answer and of the rejected one, each with its prompt."""
    return (*pair.prompt, *pair.chosen), (*pair.prompt, *pair.rejected)


def score_differences(model: Any, pairs: Sequence[Pair], pad_id: int) -> list[float]:
    """Chosen less rejected of each pair. An answer that stands in several pairs is scored once."""
    both = [sides(pair) for pair in pairs]
    answers = list(dict.fromkeys(side for pair in both for side in pair))
    scores = dict(zip(answers, scores_in_batches(model, answers, pad_id, batch_size=8), strict=True))
    return [scores[chosen] - scores[rejected] for chosen, rejected in both]


@torch.no_grad()
def plain_scores(model: Any, answers: Sequence[Sequence[int]]) -> list[float]:
    """By the model's own forward, one answer at a time, so without padding."""
    device = next(model.parameters()).device
    rows = [torch.tensor([answer], device=device) for answer in answers]
    return [model(input_ids=row, attention_mask=torch.ones_like(row)).logits.float().item() for row in rows]


def compare(plain: Sequence[float], packed: Sequence[float]) -> float:
    """The largest difference.

    Raises:
        HandoffError: it is more than rounding.
    """
    differences = [abs(a - b) for a, b in zip(plain, packed, strict=True)]
    allowed = ALLOWED * max(1.0, *map(abs, plain))
    if not all(difference <= allowed for difference in differences):  # so too where one is not a number
        raise HandoffError(
            f"packed scores are {max(differences):.1e} off those of the model's own forward, so they would not measure it: "
            "see tiebreak.packed.forward.why_not"
        )
    return max(differences)


# --- what came of it


def prefer_by_length(train: Sequence[Choice], held_out: Sequence[Choice]) -> dict[str, Any]:
    """What length alone gets: the direction is chosen on `train`, and `right` is of every held-out pair."""
    longer = statistics.fmean(correctness([choice.longer_by for choice in train]))
    sign = 1 if longer >= 0.5 else -1
    return {
        "prefers": "longer" if sign == 1 else "shorter",
        "train_accuracy": max(longer, 1 - longer),
        "right": correctness([sign * choice.longer_by for choice in held_out]),
    }


def mean_and_interval(values: Sequence[float], questions: Sequence[str]) -> dict[str, Any]:
    """Over held-out pairs; the interval draws whole questions."""
    return {"mean": statistics.fmean(values), "interval": bootstrap_interval(values, groups=questions)}


def over_seeds(rows: Sequence[Sequence[float]]) -> list[float]:
    """Each pair's mean over the seeds."""
    return [statistics.fmean(values) for values in zip(*rows, strict=True)]


def summarise(data: Data, length: dict[str, Any], learned: dict[str, dict[int, TrainingResult]]) -> dict[str, Any]:
    """All figures.

    Args:
        learned: by contestant and seed.
    """
    questions = [choice.question for choice in data.held_out]
    right = {name: [correctness(one.differences) for one in runs.values()] for name, runs in learned.items()}
    means = {name: over_seeds(rows) for name, rows in right.items()} | {"length": length["right"]}
    seeds = {
        name: {
            str(seed): {
                **mean_and_interval(row, questions),
                **{key: value for key, value in asdict(one).items() if key != "differences"},
            }
            for (seed, one), row in zip(runs.items(), right[name], strict=True)
        }
        for name, runs in learned.items()
    }

    def less(other: str) -> dict[str, Any]:
        paired = [a - b for a, b in zip(means["ours"], means[other], strict=True)]
        return mean_and_interval(paired, questions)

    runs = list(zip(learned["ours"].values(), learned["trl"].values(), strict=True))
    same = [
        float(a * b > 0 or a == b)
        for ours, theirs in runs
        for a, b in zip(ours.differences, theirs.differences, strict=True)
    ]
    return {
        "data": {
            "train_pairs": len(data.train),
            "train_questions": len({choice.question for choice in data.train}),
            "held_out_pairs": len(data.held_out),
            "held_out_questions": len(set(questions)),
            "too_long": data.too_long,
        },
        "length": {
            **mean_and_interval(length["right"], questions),
            "prefers": length["prefers"],
            "train_accuracy": length["train_accuracy"],
        },
        "contestants": {name: {**mean_and_interval(means[name], questions), "seeds": seeds[name]} for name in learned},
        "ours - trl": {
            **less("trl"),
            "same_choice": statistics.fmean(same),
            "largest_loss_difference": max(
                abs(a - b) for ours, theirs in runs for a, b in zip(ours.losses, theirs.losses, strict=True)
            ),
        },
        "ours - length": less("length"),
    }


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    budget, data, paired = result["budget"], result["data"], result["ours - trl"]
    lines = [
        f"{budget['steps']} steps of {budget['rows']} pairs ({data['train_pairs']} pairs of {data['train_questions']} "
        f"questions to train on); {data['held_out_pairs']} held-out pairs of {data['held_out_questions']} other questions.",
        "",
        "| | held-out accuracy | 95% interval | training, s | scoring, s |",
        "|---|---|---|---|---|",
    ]
    for name, one in result["contestants"].items():
        for seed, run in one["seeds"].items():
            seconds = f"{run['train_seconds']:.0f} | {run['scoring_seconds']:.0f}"
            lines.append(f"| {name}, seed {seed} | {_shown(run)} | {seconds} |")
        if len(one["seeds"]) > 1:
            lines.append(f"| {name}, mean of {len(one['seeds'])} seeds | {_shown(one)} | | |")
    lines += [
        f"| length alone: the {result['length']['prefers']} | {_shown(result['length'])} | | |",
        f"| ours − TRL's | {_shown(paired, '+')} | | |",
        f"| ours − length alone | {_shown(result['ours - length'], '+')} | | |",
        "",
        f"Ours and TRL's prefer the same answer in {paired['same_choice']:.1%} of the pairs; their losses are at most "
        f"{paired['largest_loss_difference']:.1e} apart.",
    ]
    return "\n".join(lines)


def _shown(figure: dict[str, Any], sign: str = "") -> str:
    low, high = figure["interval"]
    return f"{figure['mean']:{sign}.3f} | {low:{sign}.3f} to {high:{sign}.3f}"


# --- the run


def main() -> None:
    """Parse, and measure."""
    try:
        measure(parse())
    except TiebreakError as error:
        sys.exit(str(error))


def measure(options: argparse.Namespace) -> None:
    """Every seed, both contestants, in turn; or in a fresh process one of them."""
    if not (options.data / "pairs.jsonl").is_file():
        print(f"left out, as {options.data / 'pairs.jsonl'} is not there", file=sys.stderr)
        return
    from tiebreak.models.find import find_model
    from tiebreak.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(find_model(options.model))
    data = read_data(options.data, tokenizer, options.passages, options.held_out)
    if options.measure:
        (seed,) = options.seeds
        budget = Budget(options.rows, options.steps, seed, options.learning_rate)
        learned = learn(options.measure, data, budget, options.model, tokenizer)
        options.answer.write_text(json.dumps(asdict(learned)))
        return
    length = prefer_by_length(data.train, data.held_out)
    measured: dict[str, dict[int, TrainingResult]] = {name: {} for name in CONTESTANTS}
    for seed in dict.fromkeys(options.seeds):
        for name in CONTESTANTS:
            print(f"seed {seed}: {name}", file=sys.stderr, flush=True)
            measured[name][seed] = in_fresh_process(name, seed, options)
        result = {"budget": describe(options), **summarise(data, length, measured)}
        options.results.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=_positive, default=8, help="pairs in a step")
    parser.add_argument("--steps", type=_positive, default=48)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="of adapter, score head and order of the rows"
    )
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--passages", action="store_true", help="what the answers rest on stands before the question")
    parser.add_argument("--held-out", type=float, default=0.2, help="share of the questions")
    parser.add_argument("--data", type=Path, default=QA_FEEDBACK)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--measure", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def describe(options: argparse.Namespace) -> dict[str, Any]:
    """What every contestant was given."""
    keys = ("model", "rows", "steps", "seeds", "learning_rate", "passages", "held_out")
    return {key: getattr(options, key) for key in keys} | {"threads": torch.get_num_threads()}


def in_fresh_process(contestant: str, seed: int, options: argparse.Namespace) -> TrainingResult:
    """`learn` there."""
    words = ["--measure", contestant, "--seeds", seed, *["--passages"] * options.passages]
    for key in ("rows", "steps", "learning_rate", "held_out", "data", "model"):
        words += [f"--{key.replace('_', '-')}", getattr(options, key)]
    return TrainingResult(**answer_of(Path(__file__), list(map(str, words))))


if __name__ == "__main__":
    main()
