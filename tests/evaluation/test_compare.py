"""The report: its figures against numbers worked by hand, its page in a real browser, and what it must refuse.

Every recipe here is made of real run folders, written through `runs.start_run` and `Run.finish`.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from evaluation.compare import CompareConfig, compare, summary_table
from evaluation.compare.charts import number, tick_labels, ticks
from evaluation.compare.curves import MAX_POINTS, read_panels, reward_against_kl, thin
from evaluation.compare.figures import distinct_names, verdict
from evaluation.compare.markup import el, visible
from evaluation.compare.page import embedded_json
from tiebreak import runs
from tiebreak.config import StageConfig
from tiebreak.errors import HandoffError, RunError
from tiebreak.records import write_json, write_jsonl
from tiebreak.statistics import bootstrap_interval

CHROMIUM = "/usr/bin/chromium"
CHROMIUM_FLAGS = (
    "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
).split()
CRITERIA = ("concrete", "actionable", "direct", "unrepeated", "length", "finished")
REPOSITORY = Path(__file__).parents[2]


class AnyConfig(StageConfig):
    """A stage's configuration, as far as a run folder needs one."""

    note: str = ""


def write_run(
    folder: Path,
    stage: str,
    inputs: dict[str, str],
    files: dict[str, Any],
    rows: list[dict[str, Any]] | None = None,
    **facts: Any,
) -> str:
    """A finished run folder; returns its path as other stages name it."""
    run = runs.start_run(AnyConfig(output=str(folder)), stage, inputs)
    for name, content in files.items():
        (write_jsonl if name.endswith(".jsonl") else write_json)(run.final / name, content)
    if rows:
        write_jsonl(run.metrics, rows)
    run.facts |= facts
    run.finish()
    return str(folder)


def answer(prompt: int, policy: str, met: int, text: str, score: float | None, kl: float | None) -> dict[str, Any]:
    """A row of completions.jsonl that meets the first `met` of the six criteria."""
    return {
        "prompt_id": f"prompt-{prompt:03d}",
        "messages": [{"role": "user", "content": f"Question {prompt}: my lettuce droops, what now?"}],
        "policy": policy,
        "text": text,
        "finished": met == 6,
        "rubric": {name: place < met for place, name in enumerate(CRITERIA)},
        "rubric_score": met / 6,
        "score": score,
        "kl": kl,
        "length_tokens": len(text.split()),
    }


def figures_of(rows: list[dict[str, Any]], baseline: list[dict[str, Any]] | None) -> dict[str, Any]:
    """A policy's figures as evaluate reports them."""
    scores = [row["rubric_score"] for row in rows]
    figures: dict[str, Any] = {
        "rubric_mean": sum(scores) / len(scores),
        "rubric_interval": bootstrap_interval(scores, resamples=500),
        "criteria": {c: sum(row["rubric"][c] for row in rows) / len(rows) for c in CRITERIA},
        "win_rate_vs_sft": None,
        "win_rate_interval": None,
        "score_mean": sum(row["score"] for row in rows) / len(rows),
        "score_interval": bootstrap_interval([row["score"] for row in rows], resamples=500),
        "kl_per_sequence": sum(row["kl"] for row in rows) / len(rows),
        "kl_per_token": 0.05,
        "length_tokens_mean": sum(row["length_tokens"] for row in rows) / len(rows),
        "unfinished_share": sum(not row["finished"] for row in rows) / len(rows),
        "repetition_mean": 0.04,
        "n_prompts": len(rows),
        "source": "runs/somewhere",
        "id": "0123456789abcdef01234567",
    }
    if baseline:
        wins = [
            0.5 + 0.5 * ((a := r["rubric_score"]) > (b := s["rubric_score"])) - 0.5 * (a < b)
            for r, s in zip(rows, baseline, strict=True)
        ]
        figures |= {
            "win_rate_vs_sft": sum(wins) / len(wins),
            "win_rate_interval": bootstrap_interval(wins, resamples=500),
        }
    return figures


def write_evaluation(folder: Path, rows: list[dict[str, Any]], inputs: dict[str, str], **changed: Any) -> str:
    """A finished *evaluate* run over `rows`."""
    names = list(dict.fromkeys(row["policy"] for row in rows))
    of = {name: [row for row in rows if row["policy"] == name] for name in names}
    policies = {name: figures_of(of[name], None if name == "sft" else of["sft"]) for name in names}
    report = {
        "policies": policies,
        "baseline": "sft",
        "sampling": {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "max_new_tokens": 96, "seed": 0},
        "yardstick": "rubric",
        "kinds": ["simulated"],
        **changed,
    }
    return write_run(
        folder, "evaluate", inputs, {"report.json": report, "completions.jsonl": rows}, kinds=["simulated"]
    )


def hand_rows() -> list[dict[str, Any]]:
    """Four prompts. Criteria met: base 2 2 2 2, sft 3 3 3 3, dpo 6 6 4 3, ppo 3 4 3 2."""
    met = {"base": (2, 2, 2, 2), "sft": (3, 3, 3, 3), "dpo": (6, 6, 4, 3), "ppo": (3, 4, 3, 2)}
    kl = {"base": 9.0, "sft": 0.0, "dpo": 4.0, "ppo": 2.0}
    return [
        answer(
            prompt,
            policy,
            met[policy][prompt],
            "Lower the pH to 5.8. " * (prompt + 1),
            met[policy][prompt] / 2,
            kl[policy],
        )
        for policy in met
        for prompt in range(4)
    ]


def write_recipe(root: Path, rows: list[dict[str, Any]] | None = None, steps: int = 12) -> str:
    """A whole recipe's folders under `root`; returns the evaluate run's."""
    prompt = [{"role": "user", "content": "Question?"}]
    prompts = [{"id": f"p{n}", "messages": prompt, "split": "test" if n % 4 == 0 else "train"} for n in range(20)]
    prepare = write_run(
        root / "prepare",
        "prepare",
        {},
        {"prompts.jsonl": prompts},
        counts={"kept": 20, "dropped": {"near_duplicate": 3}},
    )
    decay = [math.exp(-step / steps) for step in range(steps)]
    sft = write_run(
        root / "sft", "sft", {"demonstrations": prepare, "policy": "bundled:smollm2-135m-instruct"}, {"adapter.json": {"stage": "sft"}},
        [{"step": s + 1, "step_seconds": 0.8, "loss": 1.4 + d, "mean_token_accuracy": 0.7 - 0.2 * d, "learning_rate": 1e-4 * d, "grad_norm": 2 * d}
         for s, d in enumerate(decay)] + [{"step": steps, "eval_loss": 1.9, "eval_mean_token_accuracy": 0.61, "eval_runtime": 3.2}],
        metrics={"eval_loss": 1.9, "train_runtime": 12.5},
    )  # fmt: skip
    sample = write_run(
        root / "sample", "sample", {"policy": sft, "prompts": prepare}, {"pairs.jsonl": [{"n": n} for n in range(14)]}
    )
    label = write_run(
        root / "label", "label", {"pairs": sample},
        {"judgments.jsonl": [{"kind": "simulated"}] * 28, "preferences.jsonl": [{"kind": "simulated"}] * 11}, kinds={"simulated": 28},
    )  # fmt: skip
    reward = write_run(
        root / "reward", "reward", {"preferences": label, "policy": sft}, {"head.json": {"stage": "reward"}},
        [{"step": s + 1, "loss": 0.3 + 0.39 * d, "accuracy": 0.85 - 0.35 * d, "margin": 1 - d} for s, d in enumerate(decay)],
        kinds=["simulated"],
    )  # fmt: skip
    dpo = write_run(
        root / "dpo", "dpo", {"preferences": label, "policy": sft}, {"adapter.json": {"stage": "dpo"}},
        [{"step": s + 1, "loss": math.log(2) - 0.4 * (1 - d), "rewards/accuracies": 0.9 - 0.4 * d, "rewards/margins": 1 - d,
          "rewards/chosen": 0.4 * (1 - d), "rewards/rejected": -0.6 * (1 - d), "logps/chosen": -80 + 4 * d, "logps/rejected": -88 + 9 * d}
         for s, d in enumerate(decay)], kinds=["simulated"],
    )  # fmt: skip
    ppo = write_run(
        root / "ppo", "ppo", {"reward_model": reward, "policy": sft, "prompts": prepare}, {"adapter.json": {"stage": "ppo"}},
        [{"step": s + 1, "objective/kl": 2.1 * (1 - d), "objective/scores": 1.4 + 0.5 * (1 - d) + 0.05 * (s % 3), "objective/rlhf_reward": 1.4 + 0.4 * (1 - d),
          "policy/clipfrac_avg": 0.05 + 0.05 * d, "loss/policy_avg": -0.01 * d, "loss/value_avg": 0.3 * d, "val/ratio": 1 + 0.01 * d,
          "eval/scores": 1.5, "strange_metric": 3.0, "objective/entropy": float("nan") if s == 2 else 40 - d} for s, d in enumerate(decay)],
        kinds=["simulated"],
    )  # fmt: skip
    inputs = {"prompts": prepare, "policies.sft": sft, "policies.dpo": dpo, "policies.ppo": ppo, "reward_model": reward}
    return write_evaluation(root / "evaluate", rows or hand_rows(), inputs)
