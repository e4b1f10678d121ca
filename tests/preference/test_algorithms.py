"""Every loss on pairs, whole and in passes, against TRL's own trainers; first losses by hand; whole runs; refusals."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from small_models import ARCHITECTURES, PAD, build, random_pairs, words
from small_world import World, write_preferences
from support import run_here, run_of
from torch import Tensor
from transformers import AutoModelForCausalLM
from trl import DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.experimental.utils import DPODataCollatorWithPadding
from trl.trainer.dpo_trainer import DataCollatorForPreference

from preference.configuration import LOSSES_OF_BATCHES, LOSSES_OF_PAIRS, DPOConfig
from preference.dpo import CheckedDPOTrainer, build_dpo_args
from preference.losses import Batch, Pairs, length_desensitised, unlabelled_loss
from preference.pairs import EncodedPair, PairCollator, to_dataset, weigh
from preference.reference_free import build_arguments, trainer_of
from tiebreak.config import TrainingConfig
from tiebreak.errors import ConfigError, HandoffError
from tiebreak.runs.run import read_manifest, read_metrics
from tiebreak.training.labels import Label
from tiebreak.training.passes import Passes, _compute
from tiebreak.upstream import prepare_batch

TRAINING = TrainingConfig(
    learning_rate=1e-2, max_steps=3, per_device_batch_size=6, warmup_share=0.0, precision="float32"
)
ROWS = [EncodedPair(pair.prompt, pair.chosen, pair.rejected) for pair in random_pairs(18)]


def config(**values: Any) -> DPOConfig:
    return DPOConfig(output="x", policy="x", preferences="x", **{"training": TRAINING, "beta": 0.5, **values})


# --- against TRL's trainers


class AsDPO(DPOTrainer):
    """TRL's trainer, given token ids."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def scored_row(feature: dict[str, Any]) -> dict[str, Any]:
    """What TRL's experimental trainers make of a row of text."""
    row = {}
    for side in ("chosen", "rejected"):
        ids = feature["prompt_ids"] + feature[f"{side}_ids"]
        row[f"{side}_input_ids"], row[f"{side}_attention_mask"] = ids, [1] * len(ids)
        row[f"{side}_labels"] = [-100] * len(feature["prompt_ids"]) + feature[f"{side}_ids"]
    return {**row, "prompt_input_ids": feature["prompt_ids"], "prompt_attention_mask": [1] * len(feature["prompt_ids"])}


class AsCPO(CPOTrainer):
    def tokenize_row(self, feature: Any, model: Any = None) -> Any:
        return scored_row(feature)


class AsORPO(ORPOTrainer):
    def tokenize_row(self, feature: Any, model: Any = None) -> Any:
        return scored_row(feature)


def trainers(folder: Path, chosen: DPOConfig, moved: bool = True) -> tuple[Any, Any]:
    """(ours, TRL's), on the same rows in one order, of a policy that has left its reference."""
    made = []
    for name in ("ours", "trl"):
        run = run_of(folder / name, "dpo", chosen)
        args = (build_dpo_args if chosen.algorithm == "dpo" else build_arguments)(chosen, run)
        args.train_sampling_strategy, args.save_strategy, args.eval_strategy = "sequential", "no", "no"
        common = {"model": build(ARCHITECTURES["llama"]()), "args": args, "processing_class": words()}
        data = to_dataset(ROWS).remove_columns("length") if name == "trl" else to_dataset(ROWS)
        common |= {"train_dataset": data, "eval_dataset": data}
        if name == "trl":
            args.train_sampling_strategy = "sequential"
            kind = {"dpo": AsDPO, "orpo": AsORPO}.get(chosen.algorithm, AsCPO)
            collator = DataCollatorForPreference(pad_token_id=PAD) if kind is AsDPO else DPODataCollatorWithPadding(PAD)
            made.append(kind(**common, data_collator=collator))
        elif chosen.algorithm == "dpo":
            collator = PairCollator(pad_token_id=PAD)
            made.append(CheckedDPOTrainer(**common, data_collator=collator, passes=Passes(25)))
        else:
            kind, collator_of = trainer_of(chosen)
            made.append(kind(**common, data_collator=collator_of(pad_token_id=PAD), passes=Passes(25)))
        if moved:
            with torch.no_grad():
                for key, parameter in made[-1].model.named_parameters():
                    if ".default." in key and "lora_B" in key:
                        parameter.mul_(1.3)
    return made[0], made[1]


def assert_a_batch_in_passes_is_trls(ours: Any, theirs: Any) -> None:
    """Loss and gradient of six pairs."""
    batch = prepare_batch(ours, ours.data_collator([ours.train_dataset[row] for row in range(6)]))
    ours.current_gradient_accumulation_steps = theirs.current_gradient_accumulation_steps = 1
    ours.model.eval()
    groups = ours._groups(batch)
    assert (len(groups) > 1) is not bool(ours.why_whole())
    found = _compute(ours, batch, groups)
    theirs.model.eval()
    other = theirs.data_collator([theirs.train_dataset[row] for row in range(6)])
    loss = theirs.compute_loss(theirs.model, prepare_batch(theirs, other))
    loss.backward()
    assert found.loss == pytest.approx(loss.item(), abs=1e-5, rel=1e-4)
    gradients = {name: p.grad for name, p in theirs.model.named_parameters() if p.grad is not None}
    assert len(gradients) > 10
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            found.gradients[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}"
        )


SMOOTHING = {"robust": 0.1, "exo_pair": 0.1, "aot": 0.1, "aot_unpaired": 0.1}
CASES: dict[str, dict[str, Any]] = {
    **{
        name: {"loss_type": [name], "label_smoothing": SMOOTHING.get(name, 0.0)}
        for name in (*LOSSES_OF_PAIRS, *LOSSES_OF_BATCHES)
    },
    "mpo": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    "ld_alpha": {"ld_alpha": 0.3},
    "ld_alpha with sft": {"ld_alpha": 0.0, "loss_type": ["ipo", "sft"]},
    "forward_kl": {"f_divergence_type": "forward_kl", "beta": 0.05},
    "js_divergence": {"f_divergence_type": "js_divergence"},
    "alpha_divergence": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3, "beta": 0.05},
    "orpo": {"algorithm": "orpo"},
    "simpo": {"algorithm": "simpo", "beta": 2.0},
    "simpo with nll": {"algorithm": "simpo", "cpo_alpha": 0.5, "label_smoothing": 0.1},
    "cpo": {"algorithm": "cpo", "label_smoothing": 0.1},
    "cpo hinge": {"algorithm": "cpo", "loss_type": ["hinge"]},
    "cpo ipo": {"algorithm": "cpo", "loss_type": ["ipo"], "cpo_alpha": 0.2},
}


@pytest.mark.parametrize("case", CASES)
def test_a_batch_in_passes_has_trls_loss_and_gradient(case: str, tmp_path: Path) -> None:
    assert_a_batch_in_passes_is_trls(*trainers(tmp_path, config(**CASES[case])))


METRICS = ["loss", "grad_norm", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"]


@pytest.mark.parametrize("case", ["orpo", "simpo with nll", "cpo", "mpo", "ld_alpha"])
def test_steps_log_what_trl_logs(case: str, tmp_path: Path) -> None:
    rows = []
    for trainer in trainers(tmp_path, config(**CASES[case]), moved=False):
        trainer.args.logging_steps = 1
        trainer.train()
        rows.append([row for row in trainer.state.log_history if "loss" in row])
        if type(trainer) in (AsDPO, AsCPO, AsORPO):  # whose evaluation is a mean over batches
            trainer.args.per_device_eval_batch_size = len(ROWS)
        rows[-1].append(
            {f"eval_{key}" if not key.startswith("eval_") else key: v for key, v in trainer.evaluate().items()}
        )
    keys = [*METRICS, *{"orpo": ["nll_loss", "log_odds_chosen"], "cpo": ["nll_loss"]}.get(case, [])]
    assert len(rows[0]) == TRAINING.max_steps + 1
    for number, (ours, theirs) in enumerate(zip(*rows, strict=True)):
        for key in keys if number < TRAINING.max_steps else [f"eval_{key}" for key in keys if key != "grad_norm"]:
            assert ours[key] == pytest.approx(theirs[key], abs=1e-3, rel=1e-3), f"{key} at step {number}"


# --- the first loss


def at_start(beta: float = 0.5, smoothing: float = 0.1) -> Batch:
    """Two pairs whose policy is the reference."""
    zero, logps = torch.zeros(2, dtype=torch.float64), torch.tensor([-4.0, -6.0], dtype=torch.float64)
    pairs = Pairs(zero, zero, torch.tensor([4.0, 6.0]), torch.tensor([5.0, 3.0]), zero, beta, smoothing)
    return Batch(pairs, logps, 2 * logps, logps, 2 * logps, logps)


FIRST = {
    **dict.fromkeys(("sigmoid", "sigmoid_norm", "robust", "aot", "aot_unpaired"), math.log(2)),
    **dict.fromkeys(("hinge", "apo_zero", "apo_down"), 1.0),
    "ipo": 1 / (4 * 0.5**2),
    "exo_pair": -math.log(2) - 0.5 * math.log(0.1 * 0.9),
    "nca_pair": 2 * math.log(2),
    "bco_pair": 2 * math.log(2),
    "sppo_hard": 1 / (2 * 0.5**2),
    "discopop": 0.5 * math.log(2) + 0.5,
    "sft": 10 / 10,
}
"""β = ½, ε = 0.1; the chosen answers have −10 nats in 10 tokens"""


@pytest.mark.parametrize("loss", [*LOSSES_OF_PAIRS, *LOSSES_OF_BATCHES])
def test_first_losses_by_hand(loss: str) -> None:
    assert unlabelled_loss([loss], at_start(), [1.0]).item() == pytest.approx(FIRST[loss])
    assert unlabelled_loss([loss, "hinge"], at_start(), [0.5, 2.0]).item() == pytest.approx(0.5 * FIRST[loss] + 2.0)


def test_a_longer_answers_tail_counts_alpha() -> None:
    """Two tokens against four: of the longer one, two count 1 and two 0.25."""
    mask = torch.tensor([[0, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    logps = mask * torch.tensor([[0.0, -1, -2, -4, -8]])
    assert length_desensitised(logps, mask, 0.25).tolist() == [-3.0, -3.0 - 3.0]
    assert length_desensitised(logps, mask, None).tolist() == [-3.0, -15.0]


@torch.no_grad()
def log_probabilities(model: Any, ids: list[int]) -> Tensor:
    """Of each token but the first, from the model's own logits."""
    logits = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


@pytest.mark.parametrize("case", ["orpo", "simpo", "cpo"])
def test_losses_without_a_reference_from_plain_log_probabilities(case: str, tmp_path: Path) -> None:
    """Hong et al. 2024, Eqs. 6 and 7; Meng et al. 2024, Eq. 6; Xu et al. 2024, Eq. 3, with its NLL."""
    settings = {**CASES[case], "label_smoothing": 0.0}
    ours, _ = trainers(tmp_path, config(**settings), moved=False)
    model = build(ARCHITECTURES["llama"]()).eval()
    expected, nll, count = 0.0, 0.0, 0
    for row in ROWS[:6]:
        start = len(row.prompt) - 1
        whole = [log_probabilities(model, row.prompt + answer) for answer in (row.chosen, row.rejected)]
        chosen, rejected = (values[start:] for values in whole)
        learned = whole[0] if case == "orpo" else chosen
        nll, count = nll - float(learned.sum()), count + len(learned)
        if case == "orpo":
            odds = [float(values.mean().exp() / (1 - values.mean().exp())) for values in (chosen, rejected)]
            expected += 0.5 * math.log1p(odds[1] / odds[0]) / 6
        elif case == "simpo":
            expected += math.log1p(math.exp(1.0 - 2.0 * float(chosen.mean() - rejected.mean()))) / 6
        else:
            expected += math.log1p(math.exp(-0.5 * float(chosen.sum() - rejected.sum()))) / 6
    expected += nll / count if case != "simpo" else 0.0
    batch = prepare_batch(ours, ours.data_collator([ours.train_dataset[row] for row in range(6)]))
    ours.model.eval()
    assert ours.compute_loss(ours.model, batch).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("case", ["hinge", "aot", "mpo", "cpo"])
def test_a_trainer_of_another_loss_is_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = trainers(tmp_path, config(**CASES[case]), moved=False)
    if case == "cpo":
        ours.model.train()
        monkeypatch.setattr(CPOTrainer, "cpo_loss", lambda self, a, b: ((a - b) * 0.9, a, b))
    else:
        inner = DPOTrainer._compute_loss
        monkeypatch.setattr(DPOTrainer, "_compute_loss", lambda *args: inner(*args) * 0.9)
    with pytest.raises(HandoffError, match=r"the first loss .*its formula gives"):
        ours.train()
    assert ours.state.global_step == 0


# --- whole runs


LORA = ("--adapter.r", "2", "--adapter.alpha", "4")


def start(world: World, data: Path, output: Path, *flags: str, adapter: tuple[str, ...] = LORA) -> tuple[int, str]:
    return run_here(
        *("dpo", "--output", output, "--policy", world.policy, "--preferences", data, "--tracking.mode", "disabled"),
        *adapter,
        *("--training.save-steps", "1", "--training.max-steps", "3"),
        *("--training.max-length-tokens", "32", "--training.learning-rate", "0.01", "--validation-share", "0.2"),
        *("--training.warmup-share", "0"),
        *("--training.per-device-batch-size", "4", "--sampling.max-new-tokens", "4", *flags),
    )


def restart_from_step_2(output: Path) -> dict[str, Tensor]:
    """As if the run had been killed after its second step; the weights that it ended with."""
    weights = load_file(output / "final" / "adapter_model.safetensors")
    (output / "manifest.json").unlink()
    shutil.rmtree(output / "final")
    shutil.rmtree(output / "checkpoints" / "checkpoint-3")
    return weights


RUNS = {
    "orpo": ("--algorithm", "orpo"),
    "simpo": ("--algorithm", "simpo"),
    "cpo": ("--algorithm", "cpo", "--loss-type", "hinge"),
    "mpo": ("--loss-type", "sigmoid", "bco_pair", "sft", "--loss-weights", "0.8", "0.2", "1.0", "--ld-alpha", "0.5"),
    "followed": ("--sync-ref-model", "true", "--ref-model-sync-steps", "2"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("orpo", "mpo") else pytest.mark.proof) for name in RUNS]
)
def test_three_steps_saved_reloaded_and_resumed(name: str, world: World, tmp_path: Path) -> None:
    data, output = write_preferences(tmp_path / "rows.jsonl", count=16), tmp_path / "out"
    status, message = start(world, data, output, *RUNS[name], "--training.eval-steps", "3")
    assert status == 0, message
    manifest, rows = read_manifest(output), read_metrics(output)
    assert (manifest["path"], manifest["probe_difference"] <= 1e-5) == ("packed", True)
    assert "one backward pass" not in message
    assert "Map" not in message, "progress bars of TRL's data preparation"
    assert "prediction_step is only implemented" not in message
    assert len([row for row in rows if "loss" in row]) == 3
    assert any("eval_rewards/margins" in row for row in rows)
    margins = [row["rewards/margins"] for row in rows if "rewards/margins" in row]
    if name == "followed":
        assert margins[0] == pytest.approx(0.0, abs=1e-4)
        assert abs(margins[1]) > 1e-3
        assert margins[2] == pytest.approx(0.0, abs=1e-4), "after two steps the reference is the policy again"
    weights = restart_from_step_2(output)
    status, message = start(world, data, output, *RUNS[name], "--training.eval-steps", "3")
    assert (status, "resuming from" in message) == (0, True), message
    resumed = load_file(output / "final" / "adapter_model.safetensors")
    assert all(torch.equal(weights[key], resumed[key]) for key in weights)


@pytest.mark.parametrize("name", ["cpo", *(pytest.param(name, marks=pytest.mark.proof) for name in ("orpo", "simpo"))])
def test_whole_weights_without_a_reference_are_what_transformers_reads(name: str, world: World, tmp_path: Path) -> None:
    """Three steps; the oracle is transformers alone on the saved folder, and the model that they started from."""
    data, output = write_preferences(tmp_path / "rows.jsonl", count=16), tmp_path / "out"
    status, message = start(world, data, output, *RUNS[name], adapter=("--adapter.method", "full"))
    assert status == 0, message
    manifest, probe = read_manifest(output), json.loads((output / "final" / "probe.json").read_text())
    assert (manifest["path"], manifest["probe_difference"] <= 1e-5) == ("packed", True)
    ids = torch.tensor([probe["input_ids"]])
    found, before = (
        AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=ids).logits[0, :-1].log_softmax(-1)
        for folder in (output / "final", world.policy)
    )
    answers = found.gather(-1, ids[0, 1:, None])[:, 0]
    assert answers.tolist() == pytest.approx(probe["values"], abs=1e-4)
    assert (found - before).abs().max() > 1e-3
    trained = load_file(next((output / "final").glob("model*.safetensors")))
    first = load_file(world.policy / "model.safetensors")
    assert all(not torch.equal(value, first[key]) for key, value in trained.items() if "layers" in key)


# --- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_weights": [1.0, 2.0]}, r"2 weights for 1 losses \(sigmoid\): give one for each"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [0.0, 0.0]}, "at least 0, and one of them above"),
        ({"ld_alpha": 1.5}, "less than or equal to 1"),
        (
            {"f_divergence_type": "js_divergence", "loss_type": ["apo_zero"]},
            "apo_zero cannot take js_divergence; sigmoid",
        ),
        ({"f_alpha_divergence_coef": 0.3}, "only f_divergence_type alpha_divergence reads this"),
        ({"ref_model_sync_steps": 5}, "without sync_ref_model the reference stays"),
        ({"sync_ref_model": True, "guard": {"reward_model": "x"}}, "the reference must stay"),
        ({"algorithm": "simpo", "sync_ref_model": True}, "sync_ref_model: --algorithm simpo has no such thing"),
        ({"algorithm": "orpo", "ld_alpha": 0.5}, "ld_alpha: --algorithm orpo has no such thing"),
        ({"algorithm": "orpo", "label_smoothing": 0.1}, "label_smoothing: --algorithm orpo has no such thing"),
        ({"algorithm": "cpo", "loss_type": ["hinge"], "label_smoothing": 0.1}, "TRL ignores it with CPO's loss hinge"),
        ({"algorithm": "cpo", "loss_type": ["robust"]}, "no 'robust' among CPO's losses: it is one of --algorithm dpo"),
        ({"algorithm": "simpo", "strength_as": "margin"}, "strength_as: --algorithm simpo has no such thing"),
        ({"simpo_gamma": 0.5}, "simpo_gamma: --algorithm dpo has no such thing"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DPOConfig(output="x", policy="x", preferences="x", **settings)


def test_each_algorithm_has_its_papers_defaults() -> None:
    def made(algorithm: str) -> DPOConfig:
        return DPOConfig.model_validate({"output": "x", "policy": "x", "preferences": "x", "algorithm": algorithm})

    assert (made("simpo").beta, made("simpo").simpo_gamma, made("simpo").cpo_alpha) == (2.0, 1.0, 0.0)
    assert (made("cpo").beta, made("cpo").cpo_alpha, made("cpo").loss_type) == (0.1, 1.0, ["sigmoid"])
    assert (made("orpo").beta, made("orpo").loss_type) == (0.1, ["orpo"])
    assert (made("dpo").beta, made("dpo").loss_type) == (0.1, ["sigmoid"])


@pytest.mark.parametrize("algorithm", ["orpo", "simpo", "cpo"])
def test_rows_that_count_differently_are_refused_without_a_reference(algorithm: str) -> None:
    rows = [EncodedPair([1], [2], [3], None, Label(weight=weight)) for weight in (1.0, 0.5)]
    chosen = DPOConfig(output="x", policy="x", preferences="x", algorithm=algorithm)
    with pytest.raises(ConfigError, match=f"algorithm: {algorithm} counts every pair alike.*use --algorithm dpo"):
        weigh(rows, chosen)
    assert len(weigh([replace(row, label=Label()) for row in rows], chosen)) == 2
