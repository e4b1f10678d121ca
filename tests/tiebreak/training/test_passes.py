"""Training steps in passes, through TRL's trainers: what they log and learn is what TRL's own step does.

Run as a program, it writes what a training run logged and learned to files, for the test of two processes.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import ARCHITECTURES, PAD, VOCABULARY, Pair, build, random_pairs, words
from support import on_processes, on_two_processes, run_of
from transformers import AutoModelForSequenceClassification

from preference.dpo import CheckedDPOTrainer, DPOConfig, build_dpo_args
from preference.kto import AnswerCollator, CheckedKTOTrainer, EncodedAnswer, build_kto_args
from preference.kto import to_dataset as to_answer_dataset
from preference.pairs import PLAIN, EncodedPair, PairCollator
from preference.pairs import to_dataset as to_dpo_dataset
from preference.reference_free import build_arguments, trainer_of
from reward.train import EncodedPreference, PackedRewardTrainer, RewardConfig, build_reward_args
from reward.train import to_dataset as to_reward_dataset
from sft.train import PackedSFTTrainer, SFTConfig, build_sft_args
from sft.train import to_dataset as to_sft_dataset
from tiebreak.chat.chat import EncodedSequence
from tiebreak.config import TrainingConfig
from tiebreak.messages import Message
from tiebreak.packed.forward import pack_forward
from tiebreak.packed.parts import whole_model
from tiebreak.records import Preference
from tiebreak.training.labels import Label
from tiebreak.training.passes import Passes

TRAINING = TrainingConfig(
    learning_rate=1e-2, max_steps=10, per_device_batch_size=3, warmup_share=0.0, precision="float32"
)


def pairs_of_three_answers(prompts: int = 8) -> list[Pair]:
    """All three pairs among three answers to each prompt: 24 pairs."""
    three = [(pair.prompt, (pair.chosen, pair.rejected, [9, 9])) for pair in random_pairs(prompts)]
    return [Pair(prompt, a[i], a[j]) for prompt, a in three for i, j in ((0, 1), (0, 2), (1, 2))]


LAYOUTS: list[tuple[str, int]] = [("one pass", 1000), ("passes", 25)]
"""Three pairs have at most 75 tokens, so under a budget of 25 a step takes two passes or three."""


def losses(trainer: Any, together: int, tokens_per_pass: int | None) -> list[dict[str, float]]:
    """The rows that ten steps log; without a budget, by TRL's own padded forward."""
    steps: list[int] = []
    if tokens_per_pass is None:
        trainer.tokens_per_pass = 10**6
    else:
        trainer.tokens_per_pass = tokens_per_pass
        assert not pack_forward(trainer.model, together=together, tokens_per_pass=tokens_per_pass)
    step = trainer._step
    trainer._step = lambda *args: (steps.append(1), step(*args))[1]
    trainer.args.save_strategy = "no"
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 10
    assert len({row["loss"] for row in rows}) > 5  # it trains
    assert len(steps) > 12 if tokens_per_pass == 25 else len(steps) == 10
    return rows


def assert_same_rows(
    one: list[dict[str, float]], other: list[dict[str, float]], keys: list[str], allowed: float = 1e-3
) -> None:
    for step, (a, b) in enumerate(zip(one, other, strict=True)):
        for key in keys:
            assert a[key] == pytest.approx(b[key], abs=allowed, rel=allowed), f"{key} at step {step}"


def dpo_trainer(
    folder: Path,
    pairs: list[Pair] | None = None,
    loss_type: str = "sigmoid",
    training: TrainingConfig = TRAINING,
    prompt_by_prompt: bool = False,
    model: Any = None,
    labelled: bool = False,
) -> CheckedDPOTrainer:
    config = DPOConfig(
        output=str(folder), policy="", preferences="", training=training, beta=0.5, loss_type=[loss_type]
    )
    run = run_of(folder, "dpo", config)
    return CheckedDPOTrainer(
        model=model or build(ARCHITECTURES["llama"]()),
        args=build_dpo_args(config, run),
        train_dataset=to_dpo_dataset(
            [
                EncodedPair(p.prompt, p.chosen, p.rejected, None, label_number(n) if labelled else PLAIN)
                for n, p in enumerate(pairs or random_pairs())
            ],
            prompt_by_prompt=prompt_by_prompt,
        ),
        data_collator=PairCollator(pad_token_id=PAD),
        processing_class=words(),
    )


def label_number(n: int) -> Label:
    """Pairs with different weights; some are ties or need a margin."""
    return Label(margin=0.25 * (n % 2), target=0.5 if n % 5 == 0 else 1.0, weight=0.5 + n % 3)


def dpo_rows(
    folder: Path, tokens_per_pass: int | None, loss_type: str = "sigmoid", pairs: list[Pair] | None = None
) -> list[dict[str, float]]:
    return losses(dpo_trainer(folder, pairs, loss_type, prompt_by_prompt=pairs is not None), 2, tokens_per_pass)


@pytest.fixture(scope="module")
def plain_dpo(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    return dpo_rows(tmp_path_factory.mktemp("dpo"), None)


PAIR_METRICS = ["loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "grad_norm"]


@pytest.mark.parametrize(("layout", "tokens_per_pass"), LAYOUTS)
def test_dpo_logs_what_trl_logs(
    plain_dpo: list[dict[str, float]], tmp_path: Path, layout: str, tokens_per_pass: int
) -> None:
    of_tokens = ["logits/chosen", "logits/rejected", "entropy", "mean_token_accuracy"]
    assert_same_rows(dpo_rows(tmp_path / layout, tokens_per_pass), plain_dpo, PAIR_METRICS + of_tokens)


def test_labels_in_passes_are_those_of_the_batch(tmp_path: Path) -> None:
    """Weights, margins and ties: losses and gradients are those of the batch as a whole."""
    plain = losses(dpo_trainer(tmp_path / "plain", labelled=True), 2, None)
    for layout, tokens_per_pass in LAYOUTS:
        found = losses(dpo_trainer(tmp_path / layout, labelled=True), 2, tokens_per_pass)
        assert_same_rows(found, plain, ["loss", "grad_norm", "rewards/margins"])


@pytest.mark.parametrize(
    ("prompt", "tokens_per_pass", "pairs_a_pass"),
    [(100, 400, [2] * 4), (100, 399, [1] * 8), (220, None, [2] * 4), (221, None, [1] * 8)],
)
def test_what_stands_in_a_pass(
    tmp_path: Path, prompt: int, tokens_per_pass: int | None, pairs_a_pass: list[int]
) -> None:
    """A pair of 100 + 50 + 50 tokens counts 200, for its prompt is computed once; null is 640 tokens on the CPU."""
    trainer = dpo_trainer(tmp_path)
    assert trainer.args.device.type == "cpu"
    trainer.compute_in_passes(tokens_per_pass, packed=True)
    tokens = torch.randint(2, VOCABULARY, (16, prompt + 50), generator=torch.Generator().manual_seed(0))
    tokens[8:, :prompt] = tokens[:8, :prompt]
    tokens[8:, prompt] = (tokens[:8, prompt] + 1) % VOCABULARY  # the completions differ from their first token on
    passes = trainer._parts({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
    assert sorted((len(part["input_ids"]) // 2 for part in passes), reverse=True) == pairs_a_pass


def test_a_loss_that_ties_the_pairs_of_a_batch_is_cut_within_the_forward(tmp_path: Path) -> None:
    """`aot` sorts the batch's log-ratios. The step stays one, and its forward is cut instead."""
    plain = dpo_rows(tmp_path / "plain", None, "aot")
    trainer = dpo_trainer(tmp_path, loss_type="aot")
    trainer.tokens_per_pass = 25
    assert not pack_forward(trainer.model, together=2, tokens_per_pass=25)
    trainer.args.save_strategy = "no"
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert_same_rows(rows, plain, PAIR_METRICS)


def test_a_loss_that_nobody_listed_is_computed_whole_and_says_so(
    plain_dpo: list[dict[str, float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As a new one of TRL's would be: a batch of three passes' tokens is one step."""
    monkeypatch.setattr(CheckedDPOTrainer, "losses_that_add_up", frozenset({"hinge"}))
    trainer = dpo_trainer(tmp_path)
    trainer.compute_in_passes(25, packed=True)
    assert "each batch has one backward pass, as the loss sigmoid is not among those" in capsys.readouterr().err
    trainer.args.save_strategy = "no"
    steps: list[int] = []
    step = trainer._step
    monkeypatch.setattr(trainer, "_step", lambda *args: (steps.append(1), step(*args))[1])
    trainer.train()
    assert len(steps) == 10
    assert_same_rows([row for row in trainer.state.log_history if "loss" in row], plain_dpo, PAIR_METRICS)


def reward_trainer(
    folder: Path, own: list[Pair] | None = None, training: TrainingConfig = TRAINING, model: Any = None
) -> PackedRewardTrainer:
    config = RewardConfig(output=str(folder), policy="", preferences="", training=training)
    run = run_of(folder, "reward", config)
    source = Preference(
        prompt=(Message(role="user", content="x"),),
        chosen=(Message(role="assistant", content="y"),),
        rejected=(Message(role="assistant", content="z"),),
    )
    rows = own or random_pairs()
    pairs = [EncodedPreference(p.prompt, p.chosen, p.rejected, n % 3 / 3, source) for n, p in enumerate(rows)]
    return PackedRewardTrainer(
        model=model or build(ARCHITECTURES["llama"](), AutoModelForSequenceClassification),
        args=build_reward_args(config, run),
        train_dataset=to_reward_dataset(pairs),
        processing_class=words(),
    )


def reward_rows(folder: Path, tokens_per_pass: int | None, own: list[Pair] | None = None) -> list[dict[str, float]]:
    return losses(reward_trainer(folder, own), 2, tokens_per_pass)


def test_reward_training_logs_what_trl_logs(tmp_path: Path) -> None:
    plain = reward_rows(tmp_path / "plain", None)
    keys = ["loss", "margin", "mean_reward", "min_reward", "max_reward", "accuracy", "grad_norm"]
    for layout, tokens_per_pass in LAYOUTS:
        assert_same_rows(reward_rows(tmp_path / layout, tokens_per_pass), plain, keys)


def test_pairs_of_a_prompt_train_as_trl_trains_on_them(tmp_path: Path) -> None:
    """Three pairs of three answers in a batch: each answer computed once, and losses and gradients as if it were not."""
    pairs = pairs_of_three_answers()
    plain = dpo_rows(tmp_path / "dpo", None, pairs=pairs)
    assert_same_rows(dpo_rows(tmp_path / "dpo packed", 1000, pairs=pairs), plain, [*PAIR_METRICS, "entropy"])
    plain = reward_rows(tmp_path / "reward", None, pairs)
    keys = ["loss", "margin", "accuracy", "grad_norm"]
    assert_same_rows(reward_rows(tmp_path / "reward packed", 1000, pairs), plain, keys)


@pytest.mark.parametrize("together", [True, False])
def test_trainers_take_the_pairs_of_a_prompt_side_by_side_if_rows_say_which(together: bool, tmp_path: Path) -> None:
    """Eight prompts of three pairs each, in batches of three: each batch is of one prompt. Rows without numbers are not."""
    trainer = dpo_trainer(tmp_path, pairs_of_three_answers(), prompt_by_prompt=together)
    prompts = [
        {
            tuple(row[mask.bool() & ~completion.bool()].tolist())
            for row, mask, completion in zip(
                batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
            )
        }
        for batch in trainer.get_train_dataloader()
    ]
    assert len(prompts) == 8
    assert all(len(of_batch) == 1 for of_batch in prompts) is together


def sft_trainer(
    folder: Path, pairs: list[Pair] | None = None, training: TrainingConfig = TRAINING, model: Any = None
) -> PackedSFTTrainer:
    config = SFTConfig(output=str(folder), policy="", demonstrations="", training=training)
    run = run_of(folder, "sft", config)
    rows = [
        EncodedSequence(p.prompt + p.chosen, [0] * len(p.prompt) + [1] * len(p.chosen)) for p in pairs or random_pairs()
    ]
    return PackedSFTTrainer(
        model=model or build(ARCHITECTURES["llama"]()),
        args=build_sft_args(config, run),
        train_dataset=to_sft_dataset(rows),
        processing_class=words(),
    )


def sft_rows(folder: Path, tokens_per_pass: int | None, accumulation: int) -> list[dict[str, float]]:
    training = TRAINING.model_copy(
        update={"per_device_batch_size": 6 // accumulation, "gradient_accumulation_steps": accumulation, "epochs": 3}
    )
    trainer = sft_trainer(folder, training=training)
    if accumulation > 1:
        assert not pack_forward(trainer.model, together=1)
        trainer.args.save_strategy = "no"
        trainer.train()
        return [row for row in trainer.state.log_history if "loss" in row]
    return losses(trainer, 1, tokens_per_pass)


def test_sft_logs_what_trl_logs(tmp_path: Path) -> None:
    """Alone, in passes, and accumulated over batches: the mean is over the tokens of the whole step in each."""
    plain = sft_rows(tmp_path / "plain", None, 1)
    for layout, tokens_per_pass in LAYOUTS:
        assert_same_rows(sft_rows(tmp_path / layout, tokens_per_pass, 1), plain, ["loss", "grad_norm"])
    # TRL logs the sum of the accumulated batches' losses here, each divided by the tokens of the step
    assert len(sft_rows(tmp_path / "accumulated", 1000, 3)) == 10


@pytest.mark.parametrize("build_trainer", [dpo_trainer, reward_trainer])
def test_an_accumulated_step_of_fewer_rows_is_their_mean(tmp_path: Path, build_trainer: Any) -> None:
    """Of ten pairs in steps of six, the last has four: as batches of three they are three and one."""

    def trained(size: int, accumulation: int) -> list[dict[str, float]]:
        changes = {
            "per_device_batch_size": size,
            "gradient_accumulation_steps": accumulation,
            "max_steps": -1,
            "epochs": 2,
        }
        training = TRAINING.model_copy(update=changes)
        trainer = build_trainer(tmp_path / f"{size}", random_pairs(10), training=training)
        trainer.compute_in_passes(25, packed=True)
        trainer.args.save_strategy = "no"
        trainer.train()
        return [row for row in trainer.state.log_history if "loss" in row]

    whole, accumulated = trained(6, 1), trained(3, 2)
    assert len(whole) == 4
    assert_same_rows(accumulated, whole, ["loss", "grad_norm"], allowed=1e-5)


# --- on two processes

STEPS = 6
BUILDERS: dict[str, Any] = {
    "sft": sft_trainer,
    "reward": reward_trainer,
    "dpo": partial(dpo_trainer, labelled=True),
    "aot": partial(dpo_trainer, loss_type="aot"),
}
METRICS = {
    "sft": ["loss", "grad_norm"],
    "reward": ["loss", "grad_norm", "margin", "min_reward", "max_reward", "mean_reward", "accuracy"],
    "dpo": ["loss", "grad_norm", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"],
}
"""Not those that TRL averages over tokens of a micro-batch: over several they are averages weighted otherwise."""

EVALUATED: dict[str, dict[str, Any]] = {
    "sft": {},
    "reward": {},
    "dpo": {},
    "mpo": {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.8, 1.0]},
    "kto": {"algorithm": "kto"},
    "orpo": {"algorithm": "orpo"},
    "simpo": {"algorithm": "simpo", "cpo_alpha": 0.5},
    "cpo": {"algorithm": "cpo"},
}
ROWS_EVALUATED = 7


def trainer_to_evaluate(folder: Path, name: str) -> Any:
    """Of a policy that has left its reference, with seven held-out rows of different lengths."""
    rows, spares = random_pairs(ROWS_EVALUATED), random_pairs(10)
    if name in ("sft", "reward"):
        return BUILDERS[name](folder, rows)
    settings = {"training": TRAINING, "beta": 0.5, **EVALUATED[name]}
    config = DPOConfig(output=str(folder), policy="", preferences="", **settings)
    kind, collator, arguments = CheckedDPOTrainer, PairCollator(pad_token_id=PAD), build_dpo_args
    data = to_dpo_dataset([EncodedPair(p.prompt, p.chosen, p.rejected) for p in rows])
    if name == "kto":
        kind, collator, arguments = CheckedKTOTrainer, AnswerCollator(pad_token_id=PAD), build_kto_args
        answers = [EncodedAnswer(p.prompt, p.chosen if n % 3 else p.rejected, n % 3 > 0) for n, p in enumerate(rows)]
        others = [EncodedAnswer(p.prompt, p.chosen, True).row() for p in spares]
        data = to_answer_dataset(answers, spares=others)
    elif name != "dpo" and name != "mpo":
        kind, collator_of = trainer_of(config)
        collator, arguments = collator_of(pad_token_id=PAD), build_arguments
    trainer = kind(
        model=build(ARCHITECTURES["llama"]()),
        args=arguments(config, run_of(folder, "dpo", config)),
        train_dataset=data,
        data_collator=collator,
        processing_class=words(),
        passes=Passes(1000),
    )
    with torch.no_grad():
        for key, parameter in trainer.model.named_parameters():
            if ".default." in key and "lora_B" in key:
                parameter.mul_(-2.0)
    return trainer


def evaluate_all(folder: Path, size: int) -> dict[str, dict[str, float]]:
    """What every trainer finds on its held-out rows, in batches of a size."""
    from accelerate.state import AcceleratorState, GradientState

    found = {}
    for name in EVALUATED:
        AcceleratorState._reset_state()
        GradientState._reset_state()
        trainer = trainer_to_evaluate(folder / name, name)
        trainer.args.per_device_eval_batch_size = size
        figures = trainer.evaluate(trainer.train_dataset)
        found[name] = {key: value for key, value in figures.items() if not key.endswith(("time", "per_second"))}
    return found


@pytest.fixture(scope="module")
def evaluated_in_twos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    return evaluate_all(tmp_path_factory.mktemp("evaluated"), 2)


def assert_same_figures(found: dict[str, dict[str, float]], expected: dict[str, dict[str, float]]) -> None:
    for name, figures in expected.items():
        assert found[name].keys() == figures.keys()
        for key, value in figures.items():
            assert found[name][key] == pytest.approx(value, rel=1e-5, abs=1e-5), f"{key} of {name}"


def test_held_out_figures_do_not_depend_on_the_batches(
    evaluated_in_twos: dict[str, dict[str, float]], tmp_path: Path
) -> None:
    """Of seven rows, batches of seven and of two, the last of which has one: every row counts alike, and every token of a
    mean over tokens."""
    assert_same_figures(evaluate_all(tmp_path, 7), evaluated_in_twos)
    assert evaluated_in_twos["kto"]["eval_kl"] > 0
    for name, few in (("sft", 3), ("orpo", 9)):
        assert len(evaluated_in_twos[name]) > few


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.proof)])
def test_held_out_figures_do_not_depend_on_the_processes(
    processes: int,
    evaluated_in_twos: dict[str, dict[str, float]],
    trained_by_two: Callable[[str, str], Path],
    tmp_path: Path,
) -> None:
    """Of seven rows, two processes take two each, then one each, and both the seventh; three take two each."""
    if processes == 2:
        folder = trained_by_two("ddp", HELD_OUT)
    else:
        on_processes(3, "ddp", __file__, tmp_path, HELD_OUT)
        folder = tmp_path / HELD_OUT
    for rank in range(processes):
        assert_same_figures(json.loads((folder / f"process-{rank}.json").read_text()), evaluated_in_twos)


HELD_OUT = "held out"
CASES = {
    "ddp": ["dpo-2", "sft-1", "reward-1", "aot-1", "sft-1-34", HELD_OUT],
    "zero2": ["dpo-1", "sft-2"],
    "zero3": ["dpo-2", "reward-1", "aot-1"],
}
"""what two processes train one after another, so that a launcher starts once: stage, batches that it accumulates, and how
many rows if not 36"""


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The folder of a case under a launcher."""
    folder = tmp_path_factory.mktemp("two")

    def find(launcher: str, case: str) -> Path:
        if not (folder / launcher).exists():
            on_two_processes(launcher, __file__, folder / launcher, *CASES[launcher])
        return folder / launcher / case

    return find


def written_by(folder: Path) -> list[dict[str, Any]]:
    """What each of the two processes wrote."""
    return [json.loads((folder / f"process-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(
    ("launcher", "case"),
    [
        pytest.param(launcher, case, marks=[] if launcher == "ddp" else pytest.mark.proof)
        for launcher, cases in CASES.items()
        for case in cases
        if case[-2] == "-" and case[:3] != "aot"
    ],
)
def test_two_processes_are_one(
    tmp_path: Path, trained_by_two: Callable[[str, str], Path], launcher: str, case: str
) -> None:
    """Six rows on one process, three on each of two: the same losses, metrics, gradients and weights, step by step.

    Of 64 tokens, three long rows (20 to begin with, and more) need two passes and three short ones (2, and at most 14)
    one; both processes take two, and compute none twice.
    """
    stage, accumulation = case.split("-")
    two = trained_by_two(launcher, case)
    write_trained(tmp_path, stage, 6 * int(accumulation))
    processes = written_by(two)
    rows_a_pair = 1 if stage == "sft" else 2
    for each in processes:
        assert each["passes"] == [2 * rows_a_pair, rows_a_pair] * STEPS * int(accumulation)
        assert each["forwards"] == len(each["passes"])
    alone = json.loads((tmp_path / "process-0.json").read_text())
    assert len(alone["rows"]) == STEPS
    assert_same_rows(processes[0]["rows"], alone["rows"], METRICS[stage], allowed=1e-5)
    evaluated = [f"eval_{name}" for name in METRICS[stage] if name != "grad_norm"]
    assert_same_rows([processes[0]["evaluated"]], [alone["evaluated"]], evaluated, allowed=1e-5)
    assert_same_weights(tmp_path, two)


def test_two_processes_are_one_in_a_last_step_of_fewer_rows(
    tmp_path: Path, trained_by_two: Callable[[str, str], Path]
) -> None:
    """Of 34 rows the sixth step takes four: two long ones on one process, a long and a short one on the other."""
    two = trained_by_two("ddp", "sft-1-34")
    write_trained(tmp_path, "sft", 6, rows=34)
    alone = json.loads((tmp_path / "process-0.json").read_text())
    assert len(alone["rows"]) == STEPS
    assert_same_rows(written_by(two)[0]["rows"], alone["rows"], METRICS["sft"], allowed=1e-5)
    assert_same_weights(tmp_path, two)


def test_a_process_may_cut_its_forward_in_more_parts_than_another(trained_by_two: Callable[[str, str], Path]) -> None:
    """`aot` needs its batch whole, and one process has the longer rows."""
    processes = written_by(trained_by_two("ddp", "aot-1"))
    assert processes[0]["passes"] == processes[1]["passes"] == [6] * STEPS
    assert processes[0]["forwards"] > processes[1]["forwards"]


@pytest.mark.proof
def test_processes_that_cut_the_forward_wait_for_one_another(trained_by_two: Callable[[str, str], Path]) -> None:
    """Where every weight is sharded, each part is a meeting of both processes; under DDP none is. The weights are equal."""
    assert_same_weights(*(trained_by_two(launcher, "aot-1") for launcher in ("ddp", "zero3")))


def assert_same_weights(one: Path, other: Path) -> None:
    weights, others = (load_file(folder / "weights.safetensors") for folder in (one, other))
    assert weights.keys() == others.keys()
    assert len(weights) == 28
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def write_trained(folder: Path, stage: str, batch: int, accumulation: int = 1, rows: int = 36) -> None:
    """Train on rows, three long, three short, and so on; metrics and weights are written to files."""
    pairs = random_pairs(36)[:rows]
    pairs = [replace(p, prompt=[2 + n % 29] * (20 if n % 6 < 3 else 2)) for n, p in enumerate(pairs)]
    update = {"per_device_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": STEPS}
    trainer = BUILDERS[stage](folder, pairs, training=TRAINING.model_copy(update=update))
    trainer.args.train_sampling_strategy = "sequential"
    trainer.args.save_strategy = "no"
    trainer.args.per_device_eval_batch_size = batch
    trainer.compute_in_passes(64, packed=True)
    passes: list[int] = []
    forwards: list[bool] = []
    step = trainer._step
    trainer._step = lambda *args: (passes.append(len(args[1]["input_ids"])), step(*args))[1]
    layers = whole_model(trainer.model).base_model
    layers.register_forward_pre_hook(lambda *_: forwards.append(torch.is_grad_enabled()))  # the reference has none
    trainer.train()
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    written = {
        "rows": [row for row in trainer.state.log_history if "loss" in row],
        "passes": passes,
        "forwards": sum(forwards),
        "evaluated": trainer.evaluate(trainer.train_dataset),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"process-{trainer.accelerator.process_index}.json").write_text(json.dumps(written))
    if trainer.is_world_process_zero():
        learned = {name.removeprefix("module."): weight.clone() for name, weight in weights.items()}
        learned = {name: weight for name, weight in learned.items() if "lora" in name and ".ref." not in name}
        save_file(learned, folder / "weights.safetensors")


def write_all(folder: Path, cases: list[str]) -> None:
    """On each of two processes: the cases one after another, each as if it were the process's first."""
    from accelerate.state import AcceleratorState, GradientState

    for case in cases:
        if case == HELD_OUT:
            found = evaluate_all(folder / case, 2)
            rank = int(os.environ["RANK"])
            (folder / case / f"process-{rank}.json").write_text(json.dumps(found))
            continue
        stage, accumulation, *rows = case.split("-")
        write_trained(folder / case, stage, 3, int(accumulation), *map(int, rows))
        torch.distributed.barrier()
        AcceleratorState._reset_state()
        GradientState._reset_state()
        gc.collect()  # a trainer, by which transformers takes a later model for one of its own ZeRO-3


if __name__ == "__main__":
    write_all(Path(sys.argv[1]), sys.argv[2:])
    torch.distributed.destroy_process_group()
