"""Our training steps against TRL's, side by side in one run: time, memory, losses.

    make bench                                                  # everything: hours on two CPU cores
    python benchmarks/training.py --only "dpo, multi-turn" --rows 2 --steps 3

Every contestant of a case trains the same adapter on the same token ids, batch, seed and number format, in a process of
its own, in turn: ours, TRL's defaults, and TRL's best documented settings for speed and for memory (see CONTESTANTS).
A step's time is the median of the steps after the first; tokens a second count prompt and completion of both sides, none
of the padding, so they compare whatever is computed. Memory is the process's peak resident set.
Ours and TRL's defaults see the same batches in the same order, so their losses must agree; TRL's best settings group
rows by length, which gives other batches. Prints a table and writes benchmarks/results.json.

The share of the machine's matrix-product rate is that of the products torch's FlopCounterMode counts in one step (the
linear layers' and the head's; the rank-r ones of LoRA partly, attention's not), over the step's time, over the rate of a
large torch.mm in this very process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from tiebreak.chat import encode_preference
from tiebreak.config import TrainingConfig
from tiebreak.launch import MALLOC_SETTINGS
from tiebreak.records import Message, Preference
from tiebreak.runs import Run

MODEL = "bundled:smollm2-135m-instruct"
RESULTS = Path(__file__).with_name("results.json")
QA_FEEDBACK = Path(__file__).resolve().parents[2] / "shared" / "data" / "finegrained-qa-feedback"
LEARNING_RATE = 1e-4
AGREEMENT = 1e-3
MIB = 1024**2


# --- data


@dataclass(frozen=True)
class Pair:
    """Token ids."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def tokens(self) -> int:
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)


WORDS = (
    "basil light water root leaf lamp tray night day warm cold pale green feed litre degree week morning seed soil pump "
    "rinse drain measure raise lower keep open close add wait check turn clean dry wet small large early late slow"
).split()


def multi_turn(count: int, encode: Callable[[Preference], tuple[list[int], ...]]) -> list[Pair]:
    """Conversations made here: a prompt has 95 tokens on average, a completion 36, a row at most 256.

    Lengths are lognormal, as those of real conversations are: many short ones, some long.
    """
    chance = random.Random(0)

    def text(mean: float, sigma: float) -> str:
        words = max(1, round(chance.lognormvariate(0, sigma) * mean))
        return " ".join(chance.choices(WORDS, k=words))

    pairs: list[Pair] = []
    while len(pairs) < count:
        turns = chance.choice((1, 3, 3, 5))
        messages = tuple(
            Message(role="user" if turn % 2 == 0 else "assistant", content=text(39 / turns, 0.9))
            for turn in range(turns)
        )
        pair = _pair(encode, messages, text(26, 1.0), text(26, 1.0))
        if len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) <= 256:
            pairs.append(pair)
    return pairs


def questions(
    count: int, encode: Callable[[Preference], tuple[list[int], ...]], limit: int, passages: bool
) -> list[Pair]:
    """Human preferences among answers to questions, with or without the passages they rest on."""
    rows = [json.loads(line) for line in (QA_FEEDBACK / "pairs.jsonl").read_text().splitlines()]
    feedback = json.loads((QA_FEEDBACK / "dev_feedback.json").read_text())
    grounds = {
        row["question"]: "\n\n".join(text for _, *texts in row["passages"] for text in texts) for row in feedback
    }
    rows = [row for row in rows if not row["tie"]]
    random.Random(0).shuffle(rows)
    pairs: list[Pair] = []
    for row in rows:
        asked = f"{grounds[row['prompt']]}\n\n{row['prompt']}" if passages else row["prompt"]
        pair = _pair(encode, (Message(role="user", content=asked),), row["chosen"], row["rejected"])
        if len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) <= limit:
            pairs.append(pair)
        if len(pairs) == count:
            break
    return pairs


def _pair(
    encode: Callable[[Preference], tuple[list[int], ...]], prompt: tuple[Message, ...], chosen: str, rejected: str
) -> Pair:
    sides = (Message(role="assistant", content=side) for side in (chosen, rejected))
    good, bad = ((side,) for side in sides)
    return Pair(*encode(Preference(prompt=prompt, chosen=good, rejected=bad)))


# --- cases and contestants


@dataclass(frozen=True)
class Case:
    """What is trained, and what is asked of the ratio to TRL's defaults."""

    stage: str
    data: str
    throughput: float | None
    memory: float | None

    @property
    def name(self) -> str:
        return f"{self.stage}, {self.data}"


CASES = (
    Case("dpo", "multi-turn", 3.5, 0.35),
    Case("dpo", "questions", 1.8, 0.5),
    Case("dpo", "questions with passages", 2.2, 0.45),
    Case("reward", "multi-turn", 2.5, 0.4),
    Case("sft", "multi-turn", 2.5, 0.5),
)
CONTESTANTS = {
    "ours": "Tiebreak, as its stages train; nothing kept from an earlier run",
    "trl": "TRL's trainer with its defaults, in float32",
    "trl fast": "rows grouped by length, no activation checkpointing; DPO: reference precomputed (its time is counted)",
    "trl small": "as `trl fast`, with activation checkpointing",
}


@dataclass(frozen=True)
class Measured:
    """What one process reports."""

    losses: list[float]
    step_seconds: float
    setup_seconds: float
    """what an epoch pays once, as a share of this run's steps: TRL's precomputed reference"""
    tokens_per_second: float
    peak_mib: float
    padded_tokens_a_row: float
    tokens_a_row: float
    matrix_product_share: float
    steps: list[float] = field(default_factory=list)


def build_pairs(data: str, count: int, tokenizer: Any) -> list[Pair]:
    """The rows of a data set."""

    def encode(preference: Preference) -> tuple[list[int], ...]:
        return encode_preference(tokenizer, preference)

    if data == "multi-turn":
        return multi_turn(count, encode)
    passages = data.endswith("with passages")
    return questions(count, encode, 1024 if passages else 512, passages)


def measure(case: Case, contestant: str, rows: int, steps: int, model: str = MODEL) -> Measured:
    """Train in this process."""
    from tiebreak.models import find_model, load_tokenizer

    warnings.filterwarnings("ignore")
    tokenizer = load_tokenizer(find_model(model))
    pairs = build_pairs(case.data, rows * steps, tokenizer)
    if contestant not in ("ours", "trl"):
        pairs = _grouped_by_length(pairs, rows)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        base = _base(case, model)
        build = _ours if contestant == "ours" else _theirs
        trainer = build(case, contestant, base, pairs, rows, steps, tokenizer, folder)
        built = time.perf_counter() - started
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    seconds = statistics.median(clock.seconds[1:])
    precomputing = "trl " in contestant and case.stage == "dpo"
    setup = built / steps if precomputing else 0.0
    tokens = sum(pair.tokens if case.stage != "sft" else len(pair.prompt) + len(pair.chosen) for pair in pairs)
    return Measured(
        losses=losses,
        step_seconds=seconds,
        setup_seconds=setup,
        tokens_per_second=tokens / steps / (seconds + setup),
        peak_mib=peak,
        padded_tokens_a_row=_padded(case, pairs, rows),
        tokens_a_row=tokens / len(pairs),
        matrix_product_share=clock.products / seconds / product_rate(),
        steps=clock.seconds,
    )


def product_rate(size: int = 1536, repeats: int = 8) -> float:
    """Floating-point operations a second of a large torch.mm, the best of some."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = 0.0
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(a, b)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def _padded(case: Case, pairs: Sequence[Pair], rows: int) -> float:
    """Tokens that TRL's layout computes for a row of the data."""
    total = 0
    for start in range(0, len(pairs), rows):
        batch = pairs[start : start + rows]
        sides = ("chosen",) if case.stage == "sft" else ("chosen", "rejected")
        longest = max(len(pair.prompt) + len(getattr(pair, side)) for pair in batch for side in sides)
        total += longest * len(sides) * len(batch)
    return total / len(pairs)


def _grouped_by_length(pairs: list[Pair], rows: int) -> list[Pair]:
    """Whole batches of like length, in random order: what transformers' group_by_length comes to on a short run."""
    ordered = sorted(pairs, key=lambda pair: len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)))
    batches = [ordered[start : start + rows] for start in range(0, len(ordered), rows)]
    random.Random(0).shuffle(batches)
    return [pair for batch in batches for pair in batch]


class Clock(TrainerCallback):
    """Times steps, and counts the operations of the first one's matrix products, which is not among the timed."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.products = 0.0
        self._started = 0.0
        self._counter: Any = None

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not self.seconds:
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()
        self._started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._started)
        if len(self.seconds) == 1:
            self._counter.__exit__(None, None, None)
            self.products = float(self._counter.get_total_flops())


def _adapter(task: str) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type=task)


def _base(case: Case, model: str) -> Any:
    from tiebreak.models import find_model, load_base

    kind: Any = "reward" if case.stage == "reward" else "policy"
    torch.manual_seed(0)
    base = load_base(find_model(model), TrainingConfig(precision="float32"), kind=kind)
    if kind == "reward":
        torch.manual_seed(0)
        torch.nn.init.normal_(base.score.weight, std=0.04)
    torch.manual_seed(0)
    return base


def _ours(case: Case, _: str, base: Any, pairs: list[Pair], rows: int, steps: int, tokenizer: Any, folder: str) -> Any:
    """The stage's own trainer, with the arguments the stage builds."""
    from peft import get_peft_model

    training = TrainingConfig(
        learning_rate=LEARNING_RATE,
        max_steps=steps,
        per_device_batch_size=rows,
        max_length_tokens=1024,
        warmup_share=0.0,
        precision="float32",
    )
    model = get_peft_model(base, _adapter("SEQ_CLS" if case.stage == "reward" else "CAUSAL_LM"))
    model.config.pad_token_id = tokenizer.pad_token_id
    trainer = _BUILD[case.stage](model, pairs, training, tokenizer, Path(folder))
    trainer.compute_in_passes(training.tokens_per_pass, packed=True)
    return trainer


def _in_order(args: Any) -> Any:
    args.train_sampling_strategy, args.save_strategy = "sequential", "no"
    return args


def _our_dpo(model: Any, pairs: list[Pair], training: TrainingConfig, tokenizer: Any, folder: Path) -> Any:
    from preference.dpo import CheckedDPOTrainer, DPOConfig, EncodedPair, build_dpo_args, to_dataset
    from preference.reference import ReferenceLogps

    config = DPOConfig(output="", policy="", preferences="", training=training)
    trainer = CheckedDPOTrainer(
        model=model,
        args=_in_order(build_dpo_args(config, Run(folder, "dpo", config, {}, ""))),
        train_dataset=to_dataset([EncodedPair(**asdict(pair)) for pair in pairs]),
        processing_class=tokenizer,
    )
    trainer.reference = ReferenceLogps({}, folder)
    return trainer


def _our_reward(model: Any, pairs: list[Pair], training: TrainingConfig, tokenizer: Any, folder: Path) -> Any:
    from datasets import Dataset

    from reward.train import PackedRewardTrainer, RewardConfig, build_reward_args

    config = RewardConfig(output="", policy="", preferences="", training=training, centering=0.0)
    return PackedRewardTrainer(
        model=model,
        args=_in_order(build_reward_args(config, Run(folder, "reward", config, {}, ""))),
        train_dataset=Dataset.from_list([_reward_row(pair) for pair in pairs]),
        processing_class=tokenizer,
    )


def _our_sft(model: Any, pairs: list[Pair], training: TrainingConfig, tokenizer: Any, folder: Path) -> Any:
    from datasets import Dataset

    from sft.train import PackedSFTTrainer, SFTConfig, build_sft_args

    config = SFTConfig(output="", policy="", demonstrations="", training=training)
    return PackedSFTTrainer(
        model=model,
        args=_in_order(build_sft_args(config, Run(folder, "sft", config, {}, ""))),
        train_dataset=Dataset.from_list([_sft_row(pair) for pair in pairs]),
        processing_class=tokenizer,
    )


_BUILD: dict[str, Callable[..., Any]] = {"dpo": _our_dpo, "reward": _our_reward, "sft": _our_sft}


def _reward_row(pair: Pair) -> dict[str, list[int]]:
    return {"chosen_ids": pair.prompt + pair.chosen, "rejected_ids": pair.prompt + pair.rejected}


def _sft_row(pair: Pair) -> dict[str, list[int]]:
    return {"input_ids": pair.prompt + pair.chosen, "labels": [-100] * len(pair.prompt) + pair.chosen}


def _theirs(
    case: Case, contestant: str, base: Any, pairs: list[Pair], rows: int, steps: int, tokenizer: Any, folder: str
) -> Any:
    """TRL's trainer, given the same token ids."""
    import trl
    from datasets import Dataset

    common: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": rows,
        "max_steps": steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "linear",
        "seed": 0,
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        "max_length": None,
    }
    if contestant != "trl":
        common["activation_checkpointing"] = contestant == "trl small"
        common["gradient_checkpointing"] = None
    if case.stage == "dpo":
        fast = {"precompute_ref_log_probs": True} if contestant != "trl" else {}

        class DPOTrainer(trl.DPOTrainer):
            def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
                return dataset  # token ids already

        ids = [{f"{side}_ids": values for side, values in asdict(pair).items()} for pair in pairs]
        return DPOTrainer(
            model=base,
            args=trl.DPOConfig(**common, **fast),
            train_dataset=Dataset.from_list(ids),
            processing_class=tokenizer,
            peft_config=_adapter("CAUSAL_LM"),
        )
    if case.stage == "reward":
        return trl.RewardTrainer(
            model=base,
            args=trl.RewardConfig(**common),
            train_dataset=Dataset.from_list([_reward_row(pair) for pair in pairs]),
            processing_class=tokenizer,
            peft_config=_adapter("SEQ_CLS"),
        )
    return trl.SFTTrainer(
        model=base,
        args=trl.SFTConfig(**common, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=Dataset.from_list([_sft_row(pair) for pair in pairs]),
        processing_class=tokenizer,
        peft_config=_adapter("CAUSAL_LM"),
    )


# --- the run


def in_fresh_process(case: Case, contestant: str, rows: int, steps: int, model: str) -> Measured:
    """`measure` there, with the allocator settings that our command line sets, for all contestants alike."""
    with tempfile.NamedTemporaryFile(suffix=".json") as answer:
        words = ["--measure", contestant, "--only", case.name, "--rows", str(rows), "--steps", str(steps)]
        subprocess.run(
            [sys.executable, __file__, *words, "--model", model, "--answer", answer.name],
            env={**MALLOC_SETTINGS, **os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return Measured(**json.loads(Path(answer.name).read_text()))


def summarise(case: Case, rows: int, steps: int, measured: dict[str, Measured]) -> dict[str, Any]:
    """A case's figures, and the ratios that are asked for, met or not."""
    ours = measured["ours"]
    summary: dict[str, Any] = {
        "case": case.name,
        "rows_a_step": rows,
        "steps": steps,
        "threads": torch.get_num_threads(),
        "contestants": {name: asdict(one) for name, one in measured.items()},
    }
    if "trl" in measured:
        compared = list(zip(ours.losses[:10], measured["trl"].losses[:10], strict=True))
        summary["largest_loss_difference"] = max(abs(a - b) for a, b in compared)
        summary["losses_agree"] = summary["largest_loss_difference"] <= AGREEMENT
    for name, other in measured.items():
        if name != "ours":
            ratios = {
                "throughput": ours.tokens_per_second / other.tokens_per_second,
                "memory": ours.peak_mib / other.peak_mib,
            }
            summary[f"ours / {name}"] = ratios
    return summary


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| case | contestant | s/step | tokens/s | peak MiB | of torch.mm | ours ÷ it: speed | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for name, one in result["contestants"].items():
            ratio = result.get(f"ours / {name}")
            shown = f"{ratio['throughput']:.2f} | {ratio['memory']:.2f}" if ratio else " | "
            seconds = one["step_seconds"] + one["setup_seconds"]
            lines.append(
                f"| {result['case']} | {name} | {seconds:.1f} | {one['tokens_per_second']:.0f} | {one['peak_mib']:.0f} "
                f"| {one['matrix_product_share']:.0%} | {shown} |"
            )
        if "largest_loss_difference" in result:
            verdict = "agree" if result["losses_agree"] else "DIFFER"
            lines.append(f"| | losses {verdict}: at most {result['largest_loss_difference']:.1e} apart | | | | | | |")
    return "\n".join(lines)


def main() -> None:
    """Every case, every contestant, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8, help="rows of the data in a step")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--only", action="append", help="a case by name; may be given again")
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=list(CONTESTANTS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps < 2:
        sys.exit("--steps: two at least, as the first is not timed")
    cases = [case for case in CASES if not options.only or case.name in options.only]
    if not cases:
        sys.exit(f"no such case: {options.only}; there are: {', '.join(case.name for case in CASES)}")
    if options.measure:
        one = measure(cases[0], options.measure, options.rows, options.steps, options.model)
        options.answer.write_text(json.dumps(asdict(one)))
        return
    results = {row["case"]: row for row in json.loads(options.results.read_text())} if options.results.is_file() else {}
    for case in cases:
        if case.data != "multi-turn" and not QA_FEEDBACK.is_dir():
            print(f"{case.name}: left out, as {QA_FEEDBACK} is not there", file=sys.stderr)
            continue
        measured = {}
        for name in dict.fromkeys(["ours", *options.contestants]):
            print(f"{case.name}: {name}", file=sys.stderr, flush=True)
            measured[name] = in_fresh_process(case, name, options.rows, options.steps, options.model)
        results[case.name] = summarise(case, options.rows, options.steps, measured)
        options.results.write_text(json.dumps(list(results.values()), indent=1) + "\n")
    print(table([results[case.name] for case in cases if case.name in results]))


if __name__ == "__main__":
    main()
