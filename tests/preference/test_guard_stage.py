"""The guard through the command line: runs that over-optimise are stopped, and what they keep is the best they had.

A policy is paid for each time it says "more"; the held-out judge likes it said twice. So the judge's score first rises
with the training's own, and then falls.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from polite_rewards import wants_more
from small_world import WORDS, World, build_judge, build_model, twice_is_best
from support import end_process, read_rows, run_here, write_config, write_rows
from torch import Tensor

from tiebreak.chat.build import build_chat
from tiebreak.config import SamplingConfig, TrainingConfig
from tiebreak.data.reading import Rules, read_prompts
from tiebreak.models.find import find_model
from tiebreak.models.load import load_frozen_policy, load_trained_reward_model
from tiebreak.models.tokenizers import load_tokenizer
from tiebreak.packed.generation import SampledCompletion, row_seed, sample_completions
from tiebreak.packed.logprobs import scores_in_batches
from tiebreak.runs.run import read_manifest, read_metrics

QUIET = {"mode": "disabled"}
SAMPLING = {"temperature": 1.0, "max_new_tokens": 8}
TRAINING = {
    "learning_rate": 3e-3,
    "lr_scheduler": "constant_with_warmup",
    "warmup_share": 0.0,
    "per_device_batch_size": 8,
    "max_length_tokens": 32,
    "save_steps": 4,
    "precision": "float32",
}
ADAPTER = {"r": 8, "alpha": 8}


def ppo_config(folder: Path, world: World, **changed: Any) -> Path:
    values = {
        **world.ppo,
        "output": folder / "ppo",
        "adapter": ADAPTER,
        "training": TRAINING,
        "validation_share": 0.4,
        "episodes_per_rollout": 16,
        "rollouts": 20,
        "ppo_epochs": 2,
        "kl_coef": 0.0,
        "missing_eos_penalty": 0.0,
        "stop_when_all_cut_off": False,
        "sampling": SAMPLING,
        "guard": {"reward_model": world.judge, "eval_every_steps": 8, "patience": 3},
    }
    return write_config(folder / "ppo.yaml", **values | changed)


def dpo_config(folder: Path, world: World, judge: Path) -> Path:
    return write_config(
        folder / "dpo.yaml",
        output=folder / "dpo",
        policy=world.policy,
        preferences=world.preferences,
        adapter=ADAPTER,
        training={**TRAINING, "learning_rate": 1e-3, "epochs": 40},
        validation_share=0.4,
        prompt_by_prompt=False,  # in that order the held-out score of this small world rises before it falls
        sampling=SAMPLING,
        guard={"reward_model": judge, "eval_every_steps": 4, "patience": 2},
        tracking=QUIET,
    )


@dataclass(frozen=True)
class GuardRun:
    """A finished run, and its output."""

    folder: Path
    message: str

    @property
    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.folder)

    @property
    def guard(self) -> dict[str, Any]:
        guard: dict[str, Any] = self.manifest["guard"]
        return guard


@pytest.fixture(scope="module")
def ppo(world: World, tmp_path_factory: pytest.TempPathFactory) -> GuardRun:
    folder = tmp_path_factory.mktemp("guarded")
    status, message = run_here("ppo", "--config", ppo_config(folder, world))
    assert status == 0, message
    return GuardRun(folder / "ppo", message)


def assert_stopped_by_patience(run: GuardRun, patience: int, planned_steps: int) -> None:
    """The run's end, read from its numbers alone."""
    guard = run.guard
    steps, scores, own = ([verdict[key] for verdict in guard["history"]] for key in ("step", "score", "training_score"))
    assert guard["stopped_at_step"] == steps[-1] < planned_steps
    assert all(later < earlier for earlier, later in itertools.pairwise(scores[-patience - 1 :]))
    assert own[-1] > own[-patience - 1]
    assert 0 < guard["kept"]["step"] < steps[-1]
    assert guard["kept"]["score"] == max(scores) > scores[0]
    assert f"stopped at step {steps[-1]}: the held-out score has fallen {patience} times in a row" in run.message
    assert f"kept the policy of step {guard['kept']['step']}: held-out score {max(scores):.3f}" in run.message
    rows = {row["step"]: row for row in read_metrics(run.folder) if "guard/score" in row}
    assert [rows[step]["guard/score"] for step in steps] == scores
    assert max(row["step"] for row in read_metrics(run.folder)) == steps[-1]


def draw_from(policy: str, prompts: list[list[int]]) -> list[SampledCompletion]:
    source = find_model(policy)
    return sample_completions(
        load_frozen_policy(source, TrainingConfig(precision="float32")),
        prompts,
        [row_seed(0, "guard", number) for number in range(len(prompts))],
        SamplingConfig(**SAMPLING),
        stop_ids=[1],
        pad_id=0,
        batch_size=len(prompts),
    )


def test_ppo_is_stopped_once_the_judge_turns_away(ppo: GuardRun) -> None:
    assert_stopped_by_patience(ppo, patience=3, planned_steps=80)


def test_what_ppo_saved_is_the_policy_that_was_kept(ppo: GuardRun, world: World) -> None:
    """Reloaded, it writes answers whose scores, by the reloaded judge and by the function, are the kept verdict's."""
    tokenizer = load_tokenizer(find_model(str(world.policy)))
    asked = read_prompts(str(world.prompts), ["validation"], Rules(validation_share=0.4))
    prompts = [build_chat(tokenizer).encode_prompt(prompt.messages) for prompt in asked]
    assert len(prompts) == ppo.guard["prompts"] > 3
    drawn = draw_from(str(ppo.folder), prompts)
    judge = load_trained_reward_model(find_model(str(world.judge), kind="reward"), TrainingConfig(precision="float32"))
    scores = scores_in_batches(judge, [[*p, *one.ids] for p, one in zip(prompts, drawn, strict=True)], 0, 4)
    assert ppo.guard["kept"]["score"] == pytest.approx(sum(scores) / len(scores), abs=1e-4)
    texts = [[{"role": "assistant", "content": build_chat(tokenizer).decode_completion(one.ids)}] for one in drawn]
    assert ppo.guard["kept"]["training_score"] == pytest.approx(sum(wants_more(texts)) / len(texts))


def test_the_manifest_speaks_of_the_kept_policy_and_the_whole_run(ppo: GuardRun) -> None:
    manifest, kept = ppo.manifest, ppo.guard["kept"]["step"]
    rows = read_metrics(ppo.folder)
    evaluated = [row for row in rows if "eval_loss" in row]
    assert evaluated[-1]["step"] == kept
    assert manifest["metrics"]["eval_objective/scores"] == evaluated[-1]["eval_objective/scores"]
    trained = [row for row in rows if "loss" in row and row["step"] <= kept]
    assert manifest["metrics"]["objective/scores"] == trained[-1]["objective/scores"]
    assert manifest["counts"]["episodes"] == ppo.guard["stopped_at_step"] / 4 * 16
    assert manifest["kinds"] == ["human"]  # the judge's: no other model had a part in it


def test_the_report_says_and_draws_what_the_guard_decided(ppo: GuardRun, world: World, tmp_path: Path) -> None:
    evaluated = write_config(
        tmp_path / "evaluate.yaml",
        output=tmp_path / "evaluate",
        policies={"sft": world.policy, "ppo": ppo.folder},
        prompts=world.prompts,
        split="train",
        reward_model=world.judge,
        sampling=SAMPLING,
        tracking=QUIET,
    )
    assert run_here("evaluate", "--config", evaluated)[0] == 0
    words = ("compare", "--evaluation", tmp_path / "evaluate", "--output", tmp_path / "compare")
    status, message = run_here(*words, "--tracking.mode", "disabled")
    assert status == 0, message
    report = json.loads((tmp_path / "compare" / "report.json").read_text())
    (stage,) = [row for row in report["stages"] if row["stage"] == "ppo"]
    assert stage["guard"]["history"] == ppo.guard["history"]
    page = (tmp_path / "compare" / "report.html").read_text()
    kept, stopped = ppo.guard["kept"]["step"], ppo.guard["stopped_at_step"]
    assert f"It scored the policy of step {kept} highest, which was kept" in page
    assert f"Training was stopped at step {stopped}: that score had fallen 3 times in a row" in page
    assert f"step {kept}, kept" in page
    assert "rollouts are left out: it went by other rewards" in page  # a function's figures lie on a scale of their own


def test_dpo_is_stopped_too_by_a_judge_with_another_tokenizer(world: World, tmp_path: Path) -> None:
    """It reads the text: its words stand in another order, so the policy's token ids mean nothing to it."""
    other = build_model(tmp_path / "other", words=tuple(sorted(WORDS)), seed=3)
    judge = build_judge(other, tmp_path / "judge", twice_is_best)
    status, message = run_here("dpo", "--config", dpo_config(tmp_path, world, judge))
    assert status == 0, message
    run = GuardRun(tmp_path / "dpo", message)
    assert_stopped_by_patience(run, patience=2, planned_steps=80)
    first = run.guard["history"][0]
    assert (first["training_score"], first["kl"]) == (0.0, pytest.approx(0.0, abs=1e-5))


def refusing(model: Path, condition: str) -> None:
    """Let a model's chat template refuse some prompts."""
    file = model / "chat_template.jinja"
    file.write_text(f"{{% if {condition} %}}{{{{ raise_exception('no') }}}}{{% endif %}}" + file.read_text())


def test_held_out_prompts_that_a_template_refuses_are_dropped_from_guard_and_samples_too(
    world: World, tmp_path: Path
) -> None:
    """One by the policy's template, one by the judge's."""
    rows = read_rows(world.preferences)
    for number, row in enumerate(rows):
        row["split"] = "train" if number < 16 else "validation"
    rows[17]["prompt"].insert(0, {"role": "system", "content": "warm"})
    preferences = write_rows(tmp_path / "preferences.jsonl", rows)
    first, second = (rows[number]["prompt"][-1]["content"] for number in (16, 17))
    policy = Path(shutil.copytree(world.policy, tmp_path / "policy"))
    refusing(policy, f"messages[0].content == '{first}'")
    other = build_model(tmp_path / "other", words=tuple(sorted(WORDS)), seed=3)
    refusing(other, "messages[0].role == 'system'")
    judge = build_judge(other, tmp_path / "judge", twice_is_best)
    changed = {"policy": policy, "on_bad_row": "drop", "training": {**TRAINING, "epochs": 2, "save_steps": 2}}

    guard = {"reward_model": judge, "eval_every_steps": 2}
    config = yaml.safe_load(dpo_config(tmp_path, world, judge).read_text())
    config |= {**changed, "preferences": preferences, "guard": guard}
    status, message = run_here("dpo", "--config", write_config(tmp_path / "dpo.yaml", **config))
    assert status == 0, message
    assert f"prompts, as {judge} reads them, dropped" in message
    assert read_manifest(tmp_path / "dpo")["rows_not_rendered"] == 2
    asked = [row["prompt"] for row in read_rows(tmp_path / "dpo" / "samples.jsonl")]
    assert first not in asked
    assert second in asked  # the policy takes it

    changed |= {"prompts": preferences, "rollouts": 1, "guard": guard, "training": TRAINING}
    status, message = run_here("ppo", "--config", ppo_config(tmp_path, world, **changed))
    assert status == 0, message
    assert read_manifest(tmp_path / "ppo")["rows_not_rendered"] == 2
    assert read_manifest(tmp_path / "ppo")["counts"]["prompts"] == 16


@pytest.mark.parametrize("stage", ["ppo", "dpo"])
def test_a_run_that_is_cut_off_after_the_guard_stopped_it_decides_the_same_again(
    stage: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut before anything is saved. The step it was stopped at left no checkpoint: one would train on from there."""
    ends: list[tuple[Any, dict[str, Tensor]]] = []

    def cut(trainer: Any, *_: Any, facts: dict[str, Any], **__: Any) -> None:
        weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        ends.append((facts, weights))
        raise KeyboardInterrupt

    monkeypatch.setattr("tiebreak.training.skeleton.finish_adapter", cut)
    config = ppo_config(tmp_path, world) if stage == "ppo" else dpo_config(tmp_path, world, world.judge)
    results = []
    for _ in range(2):
        results.append(run_here(stage, "--config", config))
        end_process(tmp_path / stage)
    assert [status for status, _ in results] == [130, 130]
    (facts, weights), (again, after) = ends
    stopped = facts["guard"]["stopped_at_step"]
    assert f"resuming from {tmp_path / stage}/checkpoints/checkpoint-{stopped - 4}" in results[1][1]
    assert facts == again
    assert all(torch.equal(weight, after[name]) for name, weight in weights.items())


# --- what a guard refuses


def refused(ended: tuple[int, str], *parts: str, status: int = 2) -> None:
    found, message = ended[0], ended[1].rpartition("error: ")[2]
    assert found == status, ended[1]
    for part in parts:
        assert part in message


def nothing_was_made(folder: Path) -> bool:
    return not (folder / "manifest.json").exists() and not any((folder / "checkpoints").glob("*"))


CASES: Mapping[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "seldom": (
        {"guard": {"eval_every_steps": 81}},
        ("guard.eval_every_steps (81) is more than the 80 optimizer steps", "lower it, or set guard: null"),
    ),
    "no prompts": (
        {"max_validation_prompts": 0},
        ("no validation prompt for it to score", "max_validation_prompts", "or set guard: null"),
    ),
    "no judge": ({"guard": {"reward_model": "runs/nowhere"}}, ("no such input: runs/nowhere",)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_guard_that_could_guard_nothing_is_refused(name: str, world: World, tmp_path: Path) -> None:
    changed, message = CASES[name]
    guard = {"reward_model": world.judge, **changed.get("guard", {})}
    result = run_here("ppo", "--config", ppo_config(tmp_path, world, **{**changed, "guard": guard}))
    refused(result, *message, status=1 if name == "no judge" else 2)
    assert nothing_was_made(tmp_path / "ppo")


def test_a_base_model_is_no_judge(world: World, tmp_path: Path) -> None:
    result = run_here("ppo", "--config", ppo_config(tmp_path, world, guard={"reward_model": world.policy}))
    refused(result, "is a base model", status=1)
    assert nothing_was_made(tmp_path / "ppo")


def test_the_training_reward_cannot_guard_under_another_path(world: World, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.symlink_to(world.judge, target_is_directory=True)
    config = ppo_config(tmp_path, world, reward_model=world.judge, rewards=[], guard={"reward_model": again})
    message = (f"{again} is the same run as reward_model", "another seed and another share of the judgments")
    refused(run_here("ppo", "--config", config), *message)
    assert nothing_was_made(tmp_path / "ppo")


def test_dpo_without_validation_prompts_has_no_guard(world: World, tmp_path: Path) -> None:
    words = ("--output", tmp_path / "dpo", "--policy", world.policy, "--preferences", world.preferences)
    judged = ("--guard.reward-model", world.judge, "--validation-share", "0", "--tracking.mode", "disabled")
    refused(run_here("dpo", *words, *judged), "no validation prompt for it to score", "raise validation_share")
    assert nothing_was_made(tmp_path / "dpo")
