"""Our training steps against TRL's, side by side in one run: time, memory, losses.

    make bench                                                  # everything: hours on two CPU cores
    python benchmarks/training.py --only "dpo, multi-turn" --rows 2 --steps 3
    python benchmarks/training.py --only ppo --rollouts 3

Every contestant of a case trains the same adapter on the same token ids, batch, seed and number format, in a process of
its own, in turn: ours, TRL's defaults, and TRL's best documented settings for speed and for memory (see CONTESTANTS).
TRL's defaults run as Python starts them; all others have the allocator settings that our command line gives its processes
(tiebreak.process.settings.MALLOC_SETTINGS), which are worth a quarter of TRL's time in DPO.
PPO is measured beside TRL 1.12's, as Python starts it in an environment of its own, and beside our own SFT's memory: see
ppo.py.
A step's time is the mean of the steps after the first, and tokens a second are those steps' (their batches differ in
length, so a median would be another batch's than the tokens'); they count prompt and completion of both sides, none of
the padding, so they compare whatever is computed. Memory is the process's peak resident set.
Ours and TRL's defaults see the same batches in the same order, so their losses must agree; TRL's best settings group
rows by length, which gives other batches. Prints a table and writes benchmarks/results.json.

The share of the machine's matrix-product rate is that of the products torch's FlopCounterMode counts in one step more
(the linear layers' and the head's; the rank-r ones of LoRA partly, attention's not), scaled to the timed steps' tokens,
over their time, over the rate of a large torch.mm in this very process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ppo
import torch
from measuring import Clock, Measurement, product_rate, run_alone

from tiebreak.chat.build import build_chat
from tiebreak.config import TrainingConfig
from tiebreak.messages import Message
from tiebreak.packed.products import Engine, use_products
from tiebreak.records import Preference
from tiebreak.runs.run import Run, identify

MODEL = "bundled:smollm2-135m-instruct"
RESULTS = Path(__file__).with_name("results.json")
QA_FEEDBACK = Path(__file__).resolve().parents[2] / "shared" / "data" / "finegrained-qa-feedback"
LEARNING_RATE = 1e-4
AGREEMENT = 1e-3
Precision = Literal["float32", "bfloat16"]


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

    @property
    def longest(self) -> int:
        """Tokens of the longer side with its prompt."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


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
        pair = Pair(*encode(_preference(messages, text(26, 1.0), text(26, 1.0))))
        if pair.longest <= 256:
            pairs.append(pair)
    return pairs


def questions(
    count: int, encode: Callable[[Preference], tuple[list[int], ...]], limit: int, passages: bool
) -> list[Pair]:
    """Human preferences among answers to questions, with or without the passages they rest on."""
    chosen = read_questions(QA_FEEDBACK, passages)
    random.Random(0).shuffle(chosen)
    pairs: list[Pair] = []
    for _, preference in chosen:
        pair = Pair(*encode(preference))
        if pair.longest <= limit:
            pairs.append(pair)
        if len(pairs) == count:
            break
    return pairs


def read_questions(folder: Path, passages: bool) -> list[tuple[str, Preference]]:
    """(question, human preference among two answers to it), without ties; with the passages, they stand in its prompt."""
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    grounds = {}
    if passages:
        feedback = json.loads((folder / "dev_feedback.json").read_text())
        grounds = {
            row["question"]: "\n\n".join(text for _, *texts in row["passages"] for text in texts) for row in feedback
        }

    def prompt(question: str) -> tuple[Message, ...]:
        return (Message(role="user", content=f"{grounds[question]}\n\n{question}" if passages else question),)

    return [
        (row["prompt"], _preference(prompt(row["prompt"]), row["chosen"], row["rejected"]))
        for row in rows
        if not row["tie"]
    ]


def _preference(prompt: tuple[Message, ...], chosen: str, rejected: str) -> Preference:
    good, bad = ((Message(role="assistant", content=side),) for side in (chosen, rejected))
    return Preference(prompt=prompt, chosen=good, rejected=bad)


# --- cases and contestants


@dataclass(frozen=True)
class Case:
    """What is trained, and what is asked of the ratio to TRL's defaults: so many times as fast, in that share of memory."""

    stage: str
    data: str
    throughput: float
    memory: float
    theirs: str = "trl"
    """whose the ratio is to"""
    rows: int = 8
    """of the data in a step; with passages 2, as without activation checkpointing TRL's 4 would need some 28 GB"""

    @property
    def name(self) -> str:
        return f"{self.stage}, {self.data}"

    @property
    def contestants(self) -> tuple[str, ...]:
        """Those that this case knows."""
        if self.stage == "ppo":
            return ("ours", *PPO_CONTESTANTS)
        return ("ours", "trl", *BEST_OF_TRL, *(GROWN if self.name == "dpo, multi-turn" else ()))


CASES = (
    Case("dpo", "multi-turn", 3.5, 0.35),
    Case("dpo", "questions", 1.8, 0.5),
    Case("dpo", "questions with passages", 2.2, 0.45, rows=2),
    Case("reward", "multi-turn", 2.5, 0.4),
    Case("sft", "multi-turn", 2.5, 0.5),
    Case("ppo", "multi-turn", 2.5, 0.4, theirs=ppo.TRL),
)
OUR_SFT = "our sft"
PPO_CONTESTANTS = (ppo.TRL, OUR_SFT)
PPO_MEMORY_OVER_SFT = 1.3
"""what is asked"""
BEST_OF_TRL = {"trl fast": "throughput", "trl small": "memory"}
"""what each of TRL's best settings is best in"""
FASTER_THAN_BEST = {"dpo": 1.8, "reward": 1.5, "sft": 1.5}
"""is asked"""
GROWN = {"ours, 4 times the rows": 4, "ours, 16 times the rows": 16}
GROWN_TO = 32
"""times a step's rows that each of these takes in all; the second half is timed, which is the same rows for both"""
GROWTH = 1.1
"""what time a token and memory may grow by from the one to the other, as they should not at all: both have batches that
fill their passes"""
CONTESTANTS = {
    "ours": "Tiebreak, as its stages train; nothing kept from an earlier run",
    "trl": "TRL's trainer with its defaults, in float32, in a process as Python starts it",
    "trl fast": "rows grouped by length, no activation checkpointing; DPO: reference precomputed (its time is counted); "
    "with the allocator settings that our command line sets",
    "trl small": "as `trl fast`, with activation checkpointing",
    **dict.fromkeys(GROWN, "DPO: the time of a token and the memory must not grow with the batch"),
    ppo.TRL: "PPO: the trainer of the last TRL that has one, in float32; its value model is trained whole",
    OUR_SFT: "PPO: our SFT on the same conversations, for its memory",
}


def build_pairs(data: str, count: int, tokenizer: Any) -> list[Pair]:
    """The rows of a data set."""

    chat = build_chat(tokenizer)

    def encode(preference: Preference) -> tuple[list[int], ...]:
        chosen, rejected = chat.encode_preference(preference)
        return chosen.prompt, chosen.completion, rejected.completion

    if data == "multi-turn":
        return multi_turn(count, encode)
    passages = data.endswith("with passages")
    return questions(count, encode, 1024 if passages else 512, passages)


def measure(
    case: Case,
    contestant: str,
    rows: int,
    steps: int,
    model: str = MODEL,
    precision: Precision = "float32",
    tokens_per_pass: int | None = None,
    matrix_products: Engine = "torch",
) -> Measurement:
    """Train in this process."""
    from tiebreak.models.find import find_model
    from tiebreak.models.tokenizers import load_tokenizer

    warnings.filterwarnings("ignore")
    tokenizer = load_tokenizer(find_model(model))
    untimed = steps // 2 if contestant in GROWN else 1
    taken = steps + (contestant not in GROWN)  # the last one to count operations
    pairs = build_pairs(case.data, rows * taken, tokenizer)
    if contestant in BEST_OF_TRL:
        pairs = _grouped_by_length(pairs, rows)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        budget = Budget(
            rows, taken, precision=precision, tokens_per_pass=tokens_per_pass, matrix_products=matrix_products
        )
        trainer = build_contestant(case.stage, contestant, pairs, budget, model, tokenizer, folder)
        built = time.perf_counter() - started
        clock = Clock(steps)
        trainer.add_callback(clock)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    seconds = statistics.fmean(clock.seconds[untimed:])
    precomputing = "trl " in contestant and case.stage == "dpo"
    setup = built / taken if precomputing else 0.0
    tokens = [pair.tokens if case.stage != "sft" else len(pair.prompt) + len(pair.chosen) for pair in pairs]
    computed = [sum(tokens[n : n + rows]) for n in range(0, len(tokens), rows)]
    if contestant != "ours" and contestant not in GROWN:
        computed = _padded(case, pairs, rows)
    longer = statistics.fmean(computed[untimed:steps]) / computed[-1]  # the timed steps than the counted one
    return Measurement(
        losses=losses[:steps],
        step_seconds=seconds,
        setup_seconds=setup,
        tokens_per_second=sum(tokens[rows * untimed : rows * steps]) / (steps - untimed) / (seconds + setup),
        peak_mib=clock.peak_mib,
        padded_tokens_a_row=sum(_padded(case, pairs, rows)) / len(pairs),
        tokens_a_row=statistics.fmean(tokens),
        matrix_product_share=clock.products * longer / seconds / product_rate() if clock.products else None,
        steps=clock.seconds,
    )


def _padded(case: Case, pairs: Sequence[Pair], rows: int) -> list[int]:
    """Tokens that TRL's layout computes in each step."""
    totals = []
    for start in range(0, len(pairs), rows):
        batch = pairs[start : start + rows]
        sides = ("chosen",) if case.stage == "sft" else ("chosen", "rejected")
        longest = max(len(pair.prompt) + len(getattr(pair, side)) for pair in batch for side in sides)
        totals.append(longest * len(sides) * len(batch))
    return totals


def _grouped_by_length(pairs: list[Pair], rows: int) -> list[Pair]:
    """Whole batches of like length, in random order: what transformers' group_by_length comes to on a short run."""
    ordered = sorted(pairs, key=lambda pair: pair.longest)
    batches = [ordered[start : start + rows] for start in range(0, len(ordered), rows)]
    random.Random(0).shuffle(batches)
    return [pair for batch in batches for pair in batch]


def _adapter(task: str) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type=task)


@dataclass(frozen=True)
class Budget:
    """What every contestant is given alike."""

    rows: int
    """of the data in a step"""
    steps: int
    seed: int = 0
    """of the adapter, and of a reward model's head"""
    learning_rate: float = LEARNING_RATE
    precision: Precision = "float32"
    tokens_per_pass: int | None = None
    """ours; None: the device's default"""
    matrix_products: Engine = "torch"
    """ours"""


def build_contestant(
    stage: str, contestant: str, pairs: list[Pair], budget: Budget, model: str, tokenizer: Any, folder: str
) -> Any:
    """A contestant's trainer, which takes the pairs in their order; weights at the start are those of every other."""
    base = _base(stage, model, budget)
    if contestant == "ours" or contestant in GROWN:
        return _ours(stage, base, pairs, budget, tokenizer, folder)
    return _theirs(stage, contestant, base, pairs, budget, tokenizer, folder)


def _base(stage: str, model: str, budget: Budget) -> Any:
    from tiebreak.models.find import find_model
    from tiebreak.models.load import load_base

    kind: Any = "reward" if stage == "reward" else "policy"
    torch.manual_seed(budget.seed)
    base = load_base(find_model(model), TrainingConfig(precision=budget.precision), kind=kind)
    if kind == "reward":
        torch.manual_seed(budget.seed)
        torch.nn.init.normal_(base.score.weight, std=0.04)
    torch.manual_seed(budget.seed)
    return base


def _ours(stage: str, base: Any, pairs: list[Pair], budget: Budget, tokenizer: Any, folder: str) -> Any:
    """The stage's own trainer, with the arguments the stage builds."""
    from peft import get_peft_model

    training = TrainingConfig(
        seed=budget.seed,
        learning_rate=budget.learning_rate,
        max_steps=budget.steps,
        per_device_batch_size=budget.rows,
        max_length_tokens=1024,
        warmup_share=0.0,
        precision=budget.precision,
        tokens_per_pass=budget.tokens_per_pass,
        matrix_products=budget.matrix_products,
    )
    use_products(training.matrix_products)
    model = get_peft_model(base, _adapter("SEQ_CLS" if stage == "reward" else "CAUSAL_LM"))
    model.config.pad_token_id = tokenizer.pad_token_id
    trainer = _BUILD[stage](model, pairs, training, tokenizer, Path(folder))
    trainer.compute_in_passes(training.tokens_per_pass, packed=True)
    return trainer


def _in_order(args: Any) -> Any:
    args.train_sampling_strategy, args.save_strategy = "sequential", "no"
    return args


def _our_dpo(model: Any, pairs: list[Pair], training: TrainingConfig, tokenizer: Any, folder: Path) -> Any:
    from preference.dpo import CheckedDPOTrainer, DPOConfig, build_dpo_args
    from preference.pairs import EncodedPair, to_dataset
    from preference.reference import ReferenceLogps

    config = DPOConfig(output="", policy="", preferences="", training=training)
    return CheckedDPOTrainer(
        model=model,
        args=_in_order(build_dpo_args(config, Run(folder, identify(config, "dpo", {})))),
        train_dataset=to_dataset([EncodedPair(**asdict(pair)) for pair in pairs]),
        processing_class=tokenizer,
        cache=lambda _: ReferenceLogps({}, folder),
    )


def _our_reward(model: Any, pairs: list[Pair], training: TrainingConfig, tokenizer: Any, folder: Path) -> Any:
    from datasets import Dataset

    from reward.train import PackedRewardTrainer, RewardConfig, build_reward_args

    config = RewardConfig(output="", policy="", preferences="", training=training, centering=0.0)
    return PackedRewardTrainer(
        model=model,
        args=_in_order(build_reward_args(config, Run(folder, identify(config, "reward", {})))),
        train_dataset=Dataset.from_list([_reward_row(pair) for pair in pairs]),
        processing_class=tokenizer,
    )


def _our_sft(model: Any, pairs: list[Pair], training: TrainingConfig, tokenizer: Any, folder: Path) -> Any:
    from datasets import Dataset

    from sft.train import PackedSFTTrainer, SFTConfig, build_sft_args

    config = SFTConfig(output="", policy="", demonstrations="", training=training)
    return PackedSFTTrainer(
        model=model,
        args=_in_order(build_sft_args(config, Run(folder, identify(config, "sft", {})))),
        train_dataset=Dataset.from_list([_sft_row(pair) for pair in pairs]),
        processing_class=tokenizer,
    )


_BUILD: dict[str, Callable[..., Any]] = {"dpo": _our_dpo, "reward": _our_reward, "sft": _our_sft}


def _reward_row(pair: Pair) -> dict[str, list[int]]:
    return {"chosen_ids": pair.prompt + pair.chosen, "rejected_ids": pair.prompt + pair.rejected}


def _sft_row(pair: Pair) -> dict[str, list[int]]:
    return {"input_ids": pair.prompt + pair.chosen, "labels": [-100] * len(pair.prompt) + pair.chosen}


def _theirs(
    stage: str, contestant: str, base: Any, pairs: list[Pair], budget: Budget, tokenizer: Any, folder: str
) -> Any:
    """TRL's trainer, given the same token ids."""
    import trl
    from datasets import Dataset

    common: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": budget.rows,
        "max_steps": budget.steps,
        "learning_rate": budget.learning_rate,
        "lr_scheduler_type": "linear",
        "seed": budget.seed,
        "bf16": budget.precision == "bfloat16",
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
    if stage == "dpo":
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
    if stage == "reward":
        return trl.RewardTrainer(
            model=base,
            args=trl.RewardConfig(**common),
            train_dataset=Dataset.from_list([_reward_row(pair) for pair in pairs]),
            processing_class=tokenizer,
            peft_config=_adapter("SEQ_CLS"),
        )
    padding_free = contestant != "trl" and has_flash_attention()
    if padding_free:
        base.set_attn_implementation("flash_attention_2")
    return trl.SFTTrainer(
        model=base,
        args=trl.SFTConfig(**common, padding_free=padding_free, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=Dataset.from_list([_sft_row(pair) for pair in pairs]),
        processing_class=tokenizer,
        peft_config=_adapter("CAUSAL_LM"),
    )


def has_flash_attention() -> bool:
    """Whether TRL can leave out padding: it needs flash attention, in half precision on a GPU."""
    return torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None


# --- the run


def in_fresh_process(
    case: Case, contestant: str, rows: int, steps: int, model: str, matrix_products: Engine = "torch"
) -> Measurement:
    """`measure` there."""
    words = ["--measure", contestant, "--only", case.name, "--rows", str(rows), "--steps", str(steps)]
    words += ["--matrix-products", matrix_products]
    return Measurement(**answer_of(Path(__file__), [*words, "--model", model], settled=contestant != "trl"))


def answer_of(script: Path, words: Sequence[str], settled: bool = True) -> Any:
    """What a script in a fresh process writes to the file after `--answer`, as JSON; see `run_alone`.

    Raises:
        SystemExit: it failed, having said why.
    """
    with tempfile.NamedTemporaryFile(suffix=".json") as answer:
        run_alone(sys.executable, str(script), *words, "--answer", answer.name, settled=settled)
        return json.loads(Path(answer.name).read_text())


def measure_ppo(
    contestants: Sequence[str], rows: int, rollouts: int, model: str, matrix_products: Engine = "torch"
) -> dict[str, Measurement]:
    """Rollouts in which a step takes `rows` episodes; SFT learns the conversations that their prompts are of."""
    from tiebreak.models.find import find_model
    from tiebreak.models.tokenizers import load_tokenizer

    pairs = build_pairs("multi-turn", rows * ppo.MINIBATCHES, load_tokenizer(find_model(model)))
    optimising = [name for name in contestants if name != OUR_SFT]
    prompts = [pair.prompt for pair in pairs]
    measured = ppo.measure_contestants(optimising, prompts, rows, rollouts, model, matrix_products)
    if OUR_SFT in contestants:
        print(f"ppo, multi-turn: {OUR_SFT}", file=sys.stderr, flush=True)
        sft = next(case for case in CASES if case.name == "sft, multi-turn")
        measured[OUR_SFT] = in_fresh_process(sft, "ours", rows, ppo.MINIBATCHES, model, matrix_products)
    return measured


def summarise(case: Case, rows: int, steps: int, measured: dict[str, Measurement]) -> dict[str, Any]:
    """A case's figures, the ratios, and those that are asked for, met or not."""
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
    if ppo.TRL in measured:
        summary |= ppo.first_rollouts(measured, rows * ppo.MINIBATCHES)
    for name, other in measured.items():
        if name != "ours":
            ratios = {"memory": ours.peak_mib / other.peak_mib}
            if name != OUR_SFT:  # whose tokens are another work's
                ratios["throughput"] = ours.tokens_per_second / other.tokens_per_second
            summary[f"ours / {name}"] = ratios
    summary["asked"] = asked(case, summary)
    return summary


def asked(case: Case, summary: dict[str, Any]) -> dict[str, bool]:
    """Which of the ratios that are asked for are met, of those that were measured."""
    theirs, sft = summary.get(f"ours / {case.theirs}"), summary.get(f"ours / {OUR_SFT}")
    few, many = (summary["contestants"].get(name) for name in GROWN)
    met = {}
    if theirs:
        met[f"throughput ÷ {case.theirs} ≥ {case.throughput}"] = theirs["throughput"] >= case.throughput
        met[f"memory ÷ {case.theirs} ≤ {case.memory}"] = theirs["memory"] <= case.memory
    for name in BEST_OF_TRL:
        if best := summary.get(f"ours / {name}"):
            least = FASTER_THAN_BEST[case.stage]
            met[f"throughput ÷ {name} ≥ {least}"] = best["throughput"] >= least
            met[f"memory ÷ {name} ≤ 1"] = best["memory"] <= 1.0
    if few and many:
        growth = {name: many[name] / few[name] for name in ("tokens_per_second", "peak_mib")}
        met[f"time a token, 16 times the rows ÷ 4 times ≤ {GROWTH}"] = 1 / growth["tokens_per_second"] <= GROWTH
        met[f"memory, 16 times the rows ÷ 4 times ≤ {GROWTH}"] = growth["peak_mib"] <= GROWTH
    if sft:
        met[f"memory ÷ {OUR_SFT} ≤ {PPO_MEMORY_OVER_SFT}"] = sft["memory"] <= PPO_MEMORY_OVER_SFT
    return met


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| case | contestant | s/step | tokens/s | peak MiB | of torch.mm | ours ÷ it: speed | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for name, one in result["contestants"].items():
            ratio = result.get(f"ours / {name}")
            speed = f"{ratio['throughput']:.2f}" if ratio and "throughput" in ratio else ""
            shown = f"{speed} | {ratio['memory']:.2f}" if ratio else " | "
            seconds = one["step_seconds"] + one["setup_seconds"]
            share = "" if one["matrix_product_share"] is None else f"{one['matrix_product_share']:.0%}"
            lines.append(
                f"| {result['case']} | {name} | {seconds:.1f} | {one['tokens_per_second']:.0f} | {one['peak_mib']:.0f} "
                f"| {share} | {shown} |"
            )
        if "largest_loss_difference" in result:
            verdict = "agree" if result["losses_agree"] else "DIFFER"
            lines.append(f"| | losses {verdict}: at most {result['largest_loss_difference']:.1e} apart | | | | | | |")
        lines += [f"| | {remark} | | | | | | |" for remark in ppo.remarks(result)]
        for wanted, met in result.get("asked", {}).items():
            lines.append(f"| | {wanted}: {'met' if met else 'MISSED'} | | | | | | |")
    return "\n".join(lines)


def main() -> None:
    """Every case, every contestant, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="rows of the data in a step, rather than the case's own number")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rollouts", type=int, default=3, help="PPO's, which has no --steps; the first is not timed")
    parser.add_argument("--only", action="append", help="a case by name, or a stage's cases; may be given again")
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=list(CONTESTANTS))
    parser.add_argument("--matrix-products", choices=["torch", "onednn"], default="torch", help="ours")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min(options.steps, options.rollouts) < 2:
        sys.exit("--steps, --rollouts: two at least, as the first is not timed")
    cases = [case for case in CASES if not options.only or {case.name, case.stage} & set(options.only)]
    if not cases:
        sys.exit(f"no such case: {options.only}; there are: {', '.join(case.name for case in CASES)}")
    if options.measure:
        rows = options.rows or cases[0].rows
        one = measure(
            cases[0], options.measure, rows, options.steps, options.model, matrix_products=options.matrix_products
        )
        options.answer.write_text(json.dumps(asdict(one)))
        return
    results = {row["case"]: row for row in json.loads(options.results.read_text())} if options.results.is_file() else {}
    for case in cases:
        if case.data != "multi-turn" and not QA_FEEDBACK.is_dir():
            print(f"{case.name}: left out, as {QA_FEEDBACK} is not there", file=sys.stderr)
            continue
        names = [name for name in case.contestants if name in ("ours", *options.contestants)]
        batch = options.rows or case.rows
        if case.stage == "ppo":
            measured = measure_ppo(names, batch, options.rollouts, options.model, options.matrix_products)
        else:
            measured = {}
            for name in names:
                print(f"{case.name}: {name}", file=sys.stderr, flush=True)
                times = GROWN.get(name)
                rows, steps = (batch * times, GROWN_TO // times) if times else (batch, options.steps)
                measured[name] = in_fresh_process(case, name, rows, steps, options.model, options.matrix_products)
        steps = options.rollouts if case.stage == "ppo" else options.steps
        results[case.name] = summarise(case, batch, steps, measured)
        options.results.write_text(json.dumps(list(results.values()), indent=1) + "\n")
    print(table([results[case.name] for case in cases if case.name in results]))


if __name__ == "__main__":
    main()
