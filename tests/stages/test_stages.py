"""Every training stage through the command line on a tiny random model, alone and under DeepSpeed on two processes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import REPOSITORY, offline_copy, read_rows, run_command, run_here, succeed, wait_for
from transformers import AutoModelForCausalLM

from tiebreak.command.pipeline import StageEntry, stage_state
from tiebreak.config import TrainingConfig
from tiebreak.models.find import find_model
from tiebreak.models.load import load_frozen_policy, load_trained_reward_model
from tiebreak.models.tokenizers import load_tokenizer
from tiebreak.packed.logprobs import completion_logps
from tiebreak.runs.chain import manifest_chain
from tiebreak.runs.run import read_manifest, read_metrics
from tiebreak.tracking.recorder import is_copied

STAGES = ("sft", "reward", "dpo", "ppo")


def output(recipe: Path, stage: str) -> Path:
    return recipe / "runs" / stage


def config_of(recipe: Path, stage: str) -> Path:
    """The configuration of a stage of the recipe, every key of it."""
    return output(recipe, stage) / "config.resolved.yaml"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_finishes_with_a_manifest_and_a_row_a_step(finished_recipe: Path, stage: str) -> None:
    folder = output(finished_recipe, stage)
    manifest = read_manifest(folder)
    assert manifest["stage"] == stage
    assert manifest["probe_difference"] <= 1e-5  # reloaded in a fresh process
    rows = read_metrics(folder)
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == ([2, 4, 6] if stage == "ppo" else [1, 2, 3])  # PPO logs a row a rollout, here of two steps
    assert all(row["step_seconds"] > 0 and math.isfinite(row["loss"]) for row in rows if "loss" in row)
    assert any("eval_loss" in row for row in rows)


def test_the_chain_of_manifests_leads_back_to_the_data(finished_recipe: Path) -> None:
    stages = [manifest["stage"] for _, manifest in manifest_chain(output(finished_recipe, "ppo"))]
    assert stages == ["prepare", "sft", "sample", "label", "reward", "ppo"]
    inputs = read_manifest(output(finished_recipe, "prepare"))["inputs"]
    assert {one["kind"] for one in inputs.values() if one["source"].endswith(".jsonl")} == {"file"}


def test_dpo_starts_at_ln_2_and_ppo_at_no_divergence(finished_recipe: Path) -> None:
    first = read_metrics(output(finished_recipe, "dpo"))[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-4)
    assert read_metrics(output(finished_recipe, "ppo"))[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)


def test_ppo_logs_trls_names(finished_recipe: Path) -> None:
    names = set(read_metrics(output(finished_recipe, "ppo"))[0])
    assert {
        "objective/kl",
        "objective/entropy",
        "objective/non_score_reward",
        "objective/rlhf_reward",
        "objective/scores",
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "loss/policy_avg",
        "loss/value_avg",
        "val/clipfrac_avg",
        "val/ratio",
        "val/num_eos_tokens",
        "episode",
    } <= names


def test_a_manifest_has_the_class_and_the_size_of_the_model(finished_recipe: Path) -> None:
    """Counted anew on the loaded base, and on the tensors of the adapter's file."""
    base = AutoModelForCausalLM.from_pretrained(find_model(str(output(finished_recipe, "sft"))).base_path)
    for stage in ("sft", "reward", "dpo", "ppo"):
        manifest = read_manifest(output(finished_recipe, stage))
        assert manifest["base_model"] == {"class": type(base).__name__, "parameters": base.num_parameters()}
        adapter = load_file(output(finished_recipe, stage) / "final" / "adapter_model.safetensors")
        assert manifest["saved_parameters"] == sum(tensor.numel() for tensor in adapter.values())


@pytest.mark.parametrize("stage", ["dpo", "ppo"])
def test_training_moved_the_policy_and_left_the_base_alone(finished_recipe: Path, stage: str) -> None:
    before, after = find_model(str(output(finished_recipe, "sft"))), find_model(str(output(finished_recipe, stage)))
    assert before.base_sha256 == after.base_sha256
    tokenizer = load_tokenizer(after)
    example = [(tokenizer("a prompt of some words")["input_ids"], tokenizer("and an answer")["input_ids"])]
    logps = [completion_logps(load_frozen_policy(s, TrainingConfig()), example, 0)[0] for s in (before, after)]
    assert not torch.allclose(logps[0], logps[1], atol=1e-6)


def test_the_reward_report_is_of_the_saved_model(finished_recipe: Path) -> None:
    folder = output(finished_recipe, "reward")
    report = json.loads((folder / "final" / "report.json").read_text())
    rows = read_rows(folder / "final" / "validation_scores.jsonl")
    preferences = read_rows(output(finished_recipe, "label") / "final" / "preferences.jsonl")
    assert report["n"] == len(rows) == sum(row["split"] == "validation" for row in preferences) > 1
    assert report["accuracy"] == sum(row["chosen"] > row["rejected"] for row in rows) / len(rows)
    low, high = report["accuracy_interval"]
    assert low < report["accuracy"] < high or report["accuracy"] in (0.0, 1.0)
    load_trained_reward_model(find_model(str(folder), kind="reward"), TrainingConfig())


def test_the_same_command_again_does_nothing(finished_recipe: Path) -> None:
    before = (output(finished_recipe, "ppo") / "manifest.json").read_bytes()
    status, message = run_here("ppo", "--config", config_of(finished_recipe, "ppo"))
    assert status == 0
    assert "nothing to do" in message
    assert (output(finished_recipe, "ppo") / "manifest.json").read_bytes() == before


def test_wandb_offline_run_reads_back(finished_recipe: Path) -> None:
    folder = output(finished_recipe, "dpo")
    wait_for(lambda: is_copied(folder))  # on a busy machine, it outlives its stage
    records = offline_copy(folder)
    message = json.dumps(records)
    assert "train/rewards/margins" in message
    assert "samples" in message
    losses = [row["loss"] for row in read_metrics(folder) if "loss" in row]
    assert any(str(loss)[:10] in message for loss in losses)


@pytest.mark.parametrize(
    ("stage", "figures"),
    [
        ("prepare", ["counts/prompts/train", "counts/dropped"]),
        ("sample", ["counts/completions", "counts/pairs"]),
        ("label", ["report/judgments/ties", "report/preferences/by_split/train"]),
        ("evaluate", ["dpo/outcomes/wins", "ppo/score_mean", "completions"]),
        ("compare", ["report/policies/dpo/win_rate_vs_baseline", "verdicts/dpo"]),
    ],
)
def test_stages_that_train_nothing_send_their_figures(finished_recipe: Path, stage: str, figures: list[str]) -> None:
    folder = output(finished_recipe, stage)
    wait_for(lambda: is_copied(folder))
    copied = json.dumps(offline_copy(folder))
    assert [figure for figure in figures if f'"{figure}"' not in copied] == []


EVERY_DAY = (("reward", "cpu_zero2"), ("ppo", "cpu_zero3"))
"""ZeRO with whole and with sharded weights; DPO is under ZeRO-3 below and in test_passes.py, and `make proofs` runs the
others"""


@pytest.mark.parametrize(
    ("stage", "zero"),
    [
        pytest.param(stage, zero, marks=[] if (stage, zero) in EVERY_DAY else pytest.mark.proof)
        for stage in STAGES
        for zero in ("cpu_zero1", "cpu_zero2", "cpu_zero3")
    ],
)
def test_deepspeed_on_two_processes(finished_recipe: Path, tmp_path: Path, stage: str, zero: str) -> None:
    """Three steps under ZeRO; what was saved answers the same on one process (the stage's own fresh reload)."""
    folder = tmp_path / stage
    words = (stage, "--config", config_of(finished_recipe, stage), "--output", folder, "--accelerate", zero)
    result = succeed(*words, timeout=600)
    assert "built successfully" not in result.stdout + result.stderr  # nothing that needs a compiler
    manifest = read_manifest(folder)
    assert manifest["probe_difference"] <= 1e-5
    placed = [manifest[key] for key in ("processes", "distributed", "global_batch")]
    assert placed == [2, zero.removeprefix("cpu_"), 4]
    # a recipe, which goes by the accelerate file, takes it for what it is
    config = str(config_of(finished_recipe, stage))
    entry = StageEntry(stage=stage, config=config, accelerate=str(REPOSITORY / f"configs/accelerate/{zero}.yaml"))
    assert stage_state(entry, ["--config", config, "--output", str(folder)])[1] == "finished"
    assert [row["step"] for row in read_metrics(folder) if "loss" in row] == [1, 2, 3]
    source = find_model(str(folder), kind="reward" if stage == "reward" else "policy")
    if stage == "reward":
        load_trained_reward_model(source, TrainingConfig())
    else:
        load_frozen_policy(source, TrainingConfig())


@pytest.mark.proof
def test_under_zero3_the_saved_policy_is_the_one_that_the_guard_kept(finished_recipe: Path, tmp_path: Path) -> None:
    """Where each process has a shard of every weight: what is put back must reach the shards.

    At this learning rate weights change and answers do not. So all policies are liked alike, and the first is kept.
    """
    folder = tmp_path / "dpo"
    words = ("dpo", "--config", config_of(finished_recipe, "dpo"), "--output", folder, "--accelerate", "cpu_zero3")
    guard = ("--guard.reward_model", output(finished_recipe, "reward"), "--guard.eval_every_steps", 1)
    succeed(*words, *guard, "--training.learning_rate", 1e-7, timeout=600)
    assert read_manifest(folder)["guard"]["kept"]["step"] == 0
    first, last, saved = (
        load_file(place / "adapter_model.safetensors")
        for place in (
            output(finished_recipe, "sft") / "final",
            folder / "checkpoints" / "checkpoint-3",
            folder / "final",
        )
    )
    assert saved.keys() == first.keys() == last.keys()
    assert not all(torch.equal(last[name], weight) for name, weight in first.items())
    for name, weight in first.items():
        assert torch.equal(saved[name], weight), name


def test_qlora_on_the_cpu(finished_recipe: Path, tmp_path: Path) -> None:
    """4-bit base weights, one key of the configuration: SFT trains, saves, reloads."""
    folder = tmp_path / "sft"
    words = ("sft", "--config", config_of(finished_recipe, "sft"), "--output", folder, "--merge", "false")
    status, message = run_here(*words, "--adapter.method", "qlora")
    assert status == 0, message
    manifest = read_manifest(folder)
    assert manifest["model"]["quantized"] is True
    losses = [row["loss"] for row in read_metrics(folder) if "loss" in row]
    assert all(map(math.isfinite, losses))
    model = load_frozen_policy(find_model(str(folder)), TrainingConfig())
    assert any(type(module).__name__ == "Linear4bit" for module in model.modules())


def test_a_merged_model_is_a_plain_model(finished_recipe: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = output(finished_recipe, "sft")
    merged = AutoModelForCausalLM.from_pretrained(folder / "final" / "merged").eval()
    apart = load_frozen_policy(find_model(str(folder)), TrainingConfig())
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(merged(ids).logits, apart(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_killed_run_ends_in_the_same_weights(
    finished_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run cut off after its second checkpoint, sent to W&B, resumes to the very bytes of an uncut one."""
    folder = tmp_path / "sft"
    shutil.copytree(output(finished_recipe, "sft"), folder)
    whole = (folder / "final" / "adapter_model.safetensors").read_bytes()
    (folder / "manifest.json").unlink()
    (
        folder / "checkpoints" / "checkpoint-3" / "COMPLETE"
    ).unlink()  # as if the kill had come while it was being written
    words = ("sft", "--config", config_of(finished_recipe, "sft"), "--output", folder)
    monkeypatch.setenv("WANDB_MODE", "offline")
    status, message = run_here(*words)
    assert status == 0, message
    assert f"resuming from {folder / 'checkpoints' / 'checkpoint-2'}" in message
    assert (folder / "final" / "adapter_model.safetensors").read_bytes() == whole
    assert [row["step"] for row in read_metrics(folder) if "loss" in row] == [1, 2, 3]
    counted = [[row.get("num_tokens") for row in read_metrics(f)] for f in (folder, output(finished_recipe, "sft"))]
    assert counted[0] == counted[1]  # the count continues where it was


def test_inspect_reads_a_run(finished_recipe: Path) -> None:
    result = run_command("inspect", output(finished_recipe, "ppo"), "--all")
    assert result.returncode == 0, result.stderr
    assert read_manifest(output(finished_recipe, "ppo"))["id"] in result.stdout
