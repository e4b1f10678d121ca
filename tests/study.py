"""A small study's run folders, written without training: two seeds of one recipe, each with DPO at two betas."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from tiebreak.config import StageConfig
from tiebreak.files import write_json, write_jsonl
from tiebreak.runs import run as runs

BASE = "bundled:smollm2-135m-instruct"
MEANS = {"base": 0.35, "sft": 0.5, "dpo-low": 0.62, "dpo-high": 0.8}
"""share of the six criteria that a policy's answers meet"""
LENGTHS = {"base": 12, "sft": 20, "dpo-low": 24, "dpo-high": 36}
CRITERIA = ("concrete", "actionable", "direct", "unrepeated", "length", "finished")
SIMULATED = ("simulated",)


class StudyConfig(StageConfig):
    """A stage's keys, as far as a comparison needs some."""

    beta: float | None = None
    learning_rate: float = 1e-3
    seed: int = 0


def finished(
    folder: Path,
    stage: str,
    inputs: dict[str, str],
    files: dict[str, Any] | None = None,
    rows: list[dict[str, Any]] | None = None,
    *,
    keys: dict[str, Any] | None = None,
    **facts: Any,
) -> str:
    """A finished run folder; returns its path."""
    run = runs.start_run(StudyConfig(output=str(folder), **(keys or {})), stage, inputs)
    for name, content in (files or {"model.json": {"keys": keys, "inputs": inputs}}).items():
        (write_jsonl if name.endswith(".jsonl") else write_json)(run.final / name, content)
    if rows:
        write_jsonl(run.metrics, rows)
    run.facts |= facts
    run.finish()
    return str(folder)


def curve(steps: int, seed: int, start: float, end: float, noise: float = 0.02) -> list[float]:
    """From `start` towards `end`, with noise of the seed."""
    draw = random.Random(seed)
    return [end + (start - end) * math.exp(-3 * s / steps) + draw.gauss(0, noise) for s in range(steps)]


def logged(steps: int, **figures: list[float]) -> list[dict[str, Any]]:
    """Metrics rows; `__` in a name is a slash."""
    return [
        {"step": s + 1} | {name.replace("__", "/"): values[s] for name, values in figures.items()} for s in range(steps)
    ]


def answers_of(policy: str, seed: int, prompts: int, mean: float) -> list[dict[str, Any]]:
    """Rows of completions.jsonl: the prompt decides half of how good an answer is."""
    rows = []
    for prompt in range(prompts):
        ease = random.Random(prompt).gauss(0, 0.12)
        met = round(6 * min(max(mean + ease + random.Random(f"{policy} {seed} {prompt}").gauss(0, 0.12), 0), 1))
        text = "I'm sorry, but I can't say. " if policy == "base" and prompt % 10 == 0 else ""
        text += " ".join(f"Lower the pH to 5.{n} and wait." for n in range(LENGTHS.get(policy, 20) // 7 + prompt % 3))
        rows.append(
            {
                "prompt_id": f"prompt-{prompt:03d}",
                "messages": [{"role": "user", "content": f"Question {prompt}: my lettuce droops, what now?"}],
                "policy": policy,
                "text": text,
                "finished": met > 2,
                "rubric": {name: place < met for place, name in enumerate(CRITERIA)},
                "yardstick_score": met / 6,
                "score": met / 3 - 1,
                "kl": 0.0 if policy == "sft" else 10 * abs(mean - 0.5),
                "length_tokens": len(text.split()),
            }
        )
    return rows


def write_evaluation(
    folder: Path, policies: dict[str, str], inputs: dict[str, str], *, seed: int, prompts: int, **changed: Any
) -> str:
    """A finished *evaluate* run on policies, by name."""
    rows = [row for name in policies for row in answers_of(name, seed, prompts, MEANS.get(name, 0.5))]
    figures = {}
    for name in policies:
        mine = [row for row in rows if row["policy"] == name]
        mean = {key: sum(row[key] for row in mine) / len(mine) for key in ("yardstick_score", "score", "kl")}
        figures[name] = {
            "yardstick_mean": mean["yardstick_score"],
            "yardstick_interval": None,
            "score_mean": mean["score"],
            "score_interval": [mean["score"] - 0.2, mean["score"] + 0.2],
            "kl_per_sequence": mean["kl"],
            "length_tokens_mean": 20.0,
            "n_prompts": prompts,
            "id": policies[name],
        }
    report = {
        "policies": changed.pop("figures", figures),
        "baseline": "sft",
        "sampling": {"temperature": 0.7, "max_new_tokens": 96},
        "yardstick": "rubric",
        "kinds": list(SIMULATED),
        **changed,
    }
    named = {f"policy_{name}": source for name, source in policies.items()}
    files = {"report.json": report, "completions.jsonl": rows}
    return finished(folder, "evaluate", named | inputs, files, keys={"seed": seed}, kinds=list(SIMULATED))


def write_seed(root: Path, seed: int, prompts: int = 40, steps: int = 40, **changed: Any) -> str:
    """One seed's recipe with DPO at two betas; returns the evaluate run's folder.

    Args:
        changed: in the evaluation's report.
    """
    keys = {"seed": seed}
    held_out = [{"id": f"p{n}", "messages": [{"role": "user", "content": "Q?"}], "split": "train"} for n in range(20)]
    prepare = finished(root / "prepare", "prepare", {}, {"prompts.jsonl": held_out}, counts={"kept": 20})
    loss = curve(steps, seed, 3.5, 1.9)
    sft_rows = [
        *logged(steps, loss=loss, mean_token_accuracy=curve(steps, seed, 0.4, 0.62)),
        {"step": steps, "eval_loss": 2.0},
    ]
    sft = finished(
        root / "sft",
        "sft",
        {"policy": BASE, "demonstrations": prepare},
        rows=sft_rows,
        keys=keys,
        metrics={"loss": loss[-1], "eval_loss": 2.0 + seed / 50},
    )
    pairs = finished(
        root / "sample", "sample", {"policy": sft, "prompts": prepare}, {"pairs.jsonl": [{"n": seed}]}, keys=keys
    )
    judged = [
        {"pair_id": f"pair-{seed}-{n}", "rater_id": f"rater-{n % 3}", "guideline_version": "g1", "kind": "simulated"}
        for n in range(12)
    ]
    learned = [
        {"pair_id": row["pair_id"], "raters": [row["rater_id"]], "kind": "simulated"}
        for row in judged
        if row["pair_id"][-1] != "5"
    ]
    agreement = {"percent_with_ties": {"value": 0.83, "n": 12, "interval": [0.55, 0.95]}}
    label_report = {
        "judgments": {"total": 12, "kinds": {"simulated": 12}, "ties": 2, "raters": 3},
        "preferences": {"total": len(learned)},
        "agreement": {"simulated": agreement},
    }
    label = finished(
        root / "label",
        "label",
        {"pairs": pairs},
        {"judgments.jsonl": judged, "preferences.jsonl": learned, "report.json": label_report},
        keys=keys,
        kinds={"simulated": 12},
        judgments=12,
        preferences=len(learned),
    )
    learnt = {"preferences": label, "policy": sft}
    reward = finished(
        root / "reward",
        "reward",
        learnt,
        rows=logged(steps, loss=curve(steps, seed, 0.69, 0.4)),
        keys=keys,
        kinds=list(SIMULATED),
        metrics={"held_out_accuracy": 0.8, "held_out_accuracy_interval": [0.65, 0.9]},
    )
    policies = {"base": BASE, "sft": sft}
    for name, beta in (("dpo-low", 0.5), ("dpo-high", 0.1)):
        low = 0.5 if beta == 0.1 else 0.62
        rows = logged(
            steps,
            loss=curve(steps, seed, math.log(2), low),
            rewards__accuracies=curve(steps, seed, 0.5, 0.85),
            rewards__margins=curve(steps, seed, 0, 1 - beta),
        )
        policies[name] = finished(
            root / name,
            "dpo",
            learnt,
            rows=rows,
            keys={"beta": beta, **keys},
            kinds=list(SIMULATED),
            metrics={"loss": low, "eval_loss": low + 0.05, "eval_rewards/accuracies": 0.46 if beta == 0.5 else 0.8},
            counts={"train": 100, "validation": 40},
        )
    used = {"reward_model": reward, "policy": sft, "prompts": prepare}
    rollouts = logged(
        steps,
        objective__kl=curve(steps, seed, 0, 4, 0.1),
        objective__scores=curve(steps, seed, -0.2, 0.7, 0.05),
        objective__rlhf_reward=curve(steps, seed, -0.2, 0.5, 0.05),
    )
    finished(root / "ppo", "ppo", used, rows=rollouts, keys=keys, kinds=list(SIMULATED))
    return write_evaluation(
        root / "evaluate", policies, {"prompts": prepare, "reward_model": reward}, seed=seed, prompts=prompts, **changed
    )


def write_study(root: Path, prompts: int = 40) -> Path:
    """Two seeds below a folder; returns it."""
    for seed in (0, 1):
        write_seed(root / f"seed-{seed}", seed, prompts)
    return root
