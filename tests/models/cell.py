"""One architecture with one chat template through every stage, each figure held against plain transformers.

A stage's outcome is `exact`, or `padded`, `plain` or `alone` (exact too, on one of the slower paths of
tiebreak.packed.proof); or as in outcomes.py.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import plain
from architectures import Architecture
from outcomes import Outcome, ask_here, outcome_of
from plain import Row
from rows import PREFERRED, SHOWN, TAUGHT, write_data
from support import read_rows, write_config
from templates import Template
from torch import nn

from tiebreak.models.reload import FreshProcess

STAGES = ("sft", "reward", "dpo", "ppo", "sample", "evaluate")
RANK, ALPHA = 4, 8
NEW_TOKENS = 32
LOGP = 2e-3
"""nats a sequence that float32 may differ by: other kernels add in another order"""
TRAINING = {
    "seed": 0,
    "learning_rate": 1e-3,
    "per_device_batch_size": 4,
    "max_steps": 1,
    "warmup_share": 0.0,
    "max_length_tokens": 1024,
}
GREEDY = {"temperature": 0.0, "max_new_tokens": NEW_TOKENS}
HEATS = (1.5, 2.0, 3.0)
"""temperatures at which a model that is sure of its answer gives another, closed thought and all"""


@dataclass
class Cell:
    """A model's folder, its data and the stages' outputs, all below `folder`."""

    folder: Path
    architecture: Architecture
    template: Template
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @cached_property
    def tokenizer(self) -> Any:
        return self.template.tokenizer()

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def output(self, stage: str) -> Path:
        return self.folder / "runs" / stage

    def final(self, stage: str) -> Path:
        return self.output(stage) / "final"

    def finished(self, stage: str) -> bool:
        return (self.output(stage) / "manifest.json").is_file()

    @property
    def policy(self) -> Path:
        """What the stages after SFT start from."""
        return self.output("sft") if self.finished("sft") else self.model

    def row(self, question: str, answer: str) -> Row:
        return plain.row(self.template, self.tokenizer, question, answer)

    def sequence(self, question: str, answer: str) -> list[int]:
        prompt, written = self.row(question, answer)
        return prompt + written

    def first_metrics(self, stage: str) -> dict[str, Any]:
        return read_rows(self.output(stage) / "metrics.jsonl")[0]

    def load(self, stage: str) -> nn.Module:
        """The policy that a stage wrote, by PEFT; `base`: the one that there was before."""
        return plain.load(self.model, self.final(stage) if self.finished(stage) else None)


def run_cell(folder: Path, architecture: Architecture, template: Template) -> dict[str, Outcome]:
    """Every stage, as far as the ones before it let it."""
    cell = Cell(folder, architecture, template)
    plain.build_model(cell.model, architecture, template, TAUGHT)
    write_data(folder / "data")
    with mock.patch.object(FreshProcess, "ask", ask_here):
        for stage in STAGES:
            cell.outcomes[stage] = run_stage(cell, stage)
            gc.collect()
    return cell.outcomes


def run_stage(cell: Cell, stage: str) -> Outcome:
    """A stage by its command, then its oracle."""
    values = {"output": cell.output(stage), **CONFIGURATIONS[stage](cell)}
    if cell.template.arguments:
        values["template_arguments"] = dict(cell.template.arguments)
    config = write_config(cell.folder / f"{stage}.yaml", **values)
    outcome = outcome_of(stage, config, cell.output(stage), lambda: list(ORACLES[stage](cell)))
    return Outcome("exact") if outcome.how == "packed" else outcome


# --- what each stage is asked to do ---


def configure_sft(cell: Cell) -> dict[str, Any]:
    return {
        "policy": cell.model,
        "demonstrations": cell.folder / "data" / "demonstrations.jsonl",
        "adapter": {"r": RANK, "alpha": ALPHA},
        "validation_share": 0.0,
        "training": TRAINING,
        "sampling": GREEDY,
    }


def configure_reward(cell: Cell) -> dict[str, Any]:
    return {**_preferences(cell), "garbage_prompts": 0}


def configure_dpo(cell: Cell) -> dict[str, Any]:
    return {**_preferences(cell), "sampling": GREEDY, "cache_reference": False}


def _preferences(cell: Cell) -> dict[str, Any]:
    new = None if cell.finished("sft") else {"r": RANK, "alpha": ALPHA}
    preferences = cell.folder / "data" / "preferences.jsonl"
    return {"policy": cell.policy, "preferences": preferences, "adapter": new, "training": TRAINING}


def configure_ppo(cell: Cell) -> dict[str, Any]:
    reward = (
        {"reward_model": cell.output("reward")}
        if cell.finished("reward")
        else {"rewards": [{"function": "rows:brief"}]}
    )
    return {
        "policy": cell.policy,
        **reward,
        "prompts": cell.folder / "data" / "prompts.jsonl",
        "validation_share": 0.0,
        "training": {key: value for key, value in TRAINING.items() if key != "max_steps"},
        "adapter": None if cell.finished("sft") else {"r": RANK, "alpha": ALPHA},
        "episodes_per_rollout": 4,
        "rollouts": 1,
        "ppo_epochs": 1,
        "sampling": {"temperature": 1.0, "max_new_tokens": NEW_TOKENS},
    }


def configure_sample(cell: Cell) -> dict[str, Any]:
    return {
        "policy": cell.policy,
        "prompts": cell.folder / "data" / "questions.jsonl",
        "batch_size": 2,  # the others take the places of those that are done
        "completions_per_prompt": 1 + len(HEATS),
        "sampling": [GREEDY, *({**GREEDY, "temperature": heat} for heat in HEATS)],
    }


def configure_evaluate(cell: Cell) -> dict[str, Any]:
    policies = {"base": cell.model, **{s: cell.output(s) for s in ("sft", "dpo", "ppo") if cell.finished(s)}}
    return {
        "policies": policies,
        "baseline": _baseline(cell),
        "prompts": cell.folder / "data" / "taught_prompts.jsonl",
        "split": "train",  # the answers that were learned are looked for
        "reward_model": cell.output("reward") if cell.finished("reward") else None,
        "sampling": GREEDY,
    }


def _baseline(cell: Cell) -> str:
    return "sft" if cell.finished("sft") else "base"


CONFIGURATIONS: dict[str, Callable[[Cell], dict[str, Any]]] = {
    "sft": configure_sft,
    "reward": configure_reward,
    "dpo": configure_dpo,
    "ppo": configure_ppo,
    "sample": configure_sample,
    "evaluate": configure_evaluate,
}


# --- what plain transformers makes of the same; each yields what differs ---


def near(what: str, found: float | None, wanted: float, tolerance: float) -> str:
    """Empty where two figures are equal."""
    if found is not None and math.isfinite(found) and abs(found - wanted) <= tolerance:
        return ""
    return f"{what} {found if found is None else format(found, '.6g')}, plain {wanted:.6g}"


def check_sft(cell: Cell) -> list[str]:
    """The first loss and the norm of its gradient; then what was saved, loaded by Tiebreak and by PEFT."""
    rows = [cell.row(question, answer) for question, answer in SHOWN]
    model = plain.adapted(cell.model, cell.final("sft"), TRAINING["seed"])
    loss, norm = plain.loss_and_gradient(model, rows)
    first = cell.first_metrics("sft")
    begins = [
        near("first loss", first["loss"], loss, 2e-4 * loss),
        near("gradient norm", first["grad_norm"], norm, 2e-3 * norm),
    ]
    return [*([] if cell.architecture.drops_out else begins), *check_logps(cell, "sft", rows)]


def check_logps(cell: Cell, stage: str, rows: list[Row]) -> list[str]:
    """Log-probabilities of a finished policy."""
    import torch

    from tiebreak.config import TrainingConfig
    from tiebreak.models.find import find_model
    from tiebreak.models.load import load_frozen_policy
    from tiebreak.packed.logprobs import completion_logps_in_batches

    ours = load_frozen_policy(find_model(str(cell.output(stage))), TrainingConfig())
    found = completion_logps_in_batches(ours, rows, pad_id=0, batch_size=4)
    with torch.no_grad():
        theirs = [plain.logps(cell.load(stage), *row).tolist() for row in rows]
    worst = max(abs(a - b) for x, y in zip(found, theirs, strict=True) for a, b in zip(x, y, strict=True))
    return [near("log-probability of a reloaded token, off by", worst, 0.0, LOGP)]


def check_reward(cell: Cell) -> list[str]:
    """Scores of the held-out answers."""
    model = plain.load_scorer(cell.model, cell.final("reward"))
    rows = read_rows(cell.final("reward") / "validation_scores.jsonl")
    found = sorted((row["chosen"], row["rejected"]) for row in rows)
    held_out = PREFERRED[4:]
    wanted = sorted(
        tuple(plain.score(model, cell.sequence(question, answer)) for answer in (chosen, rejected))
        for question, chosen, rejected in held_out
    )
    return [near("score", a, b, LOGP) for x, y in zip(found, wanted, strict=True) for a, b in zip(x, y, strict=True)]


def check_dpo(cell: Cell) -> list[str]:
    """ln 2, and the log-probabilities that it comes from."""
    import torch

    first = cell.first_metrics("dpo")
    model = plain.load(cell.model, cell.final("sft") if cell.finished("sft") else None)
    rows = {at: [cell.row(each[0], each[at]) for each in PREFERRED[:4]] for at in (1, 2)}
    with torch.no_grad():
        balance = float(plain.balance(model, rows[1] + rows[2]))
        sums = {at: sum(float(plain.logps(model, *row).sum()) for row in rows[at]) / len(rows[at]) for at in rows}
    return [
        near("first loss", first["loss"], math.log(2) + balance, 1e-4),
        near("logps/chosen", first["logps/chosen"], sums[1], 1e-4 * abs(sums[1])),
        near("logps/rejected", first["logps/rejected"], sums[2], 1e-4 * abs(sums[2])),
    ]


def check_ppo(cell: Cell) -> list[str]:
    """No divergence before the first update, from the reference or from what sampled."""
    first = cell.first_metrics("ppo")
    return [
        near("objective/kl", first["objective/kl"], 0.0, LOGP),
        near("val/ratio", first["val/ratio"], 1.0, LOGP),
        near("policy/approxkl_avg", first["policy/approxkl_avg"], 0.0, 1e-5),
    ]


def check_sample(cell: Cell) -> list[str]:
    """Greedy answers, token by token those of `generate`; and what was taught."""
    model = cell.load("sft")
    pairs = {pair["messages"][-1]["content"]: pair for pair in read_rows(cell.final("sample") / "pairs.jsonl")}
    faults = [] if pairs.keys() & dict(TAUGHT).keys() else ["no pair for what was taught"]
    for question, pair in pairs.items():
        prompt, written = cell.row(question, "")
        wanted = plain.greedy(model, prompt, NEW_TOKENS, end_id=written[-1])
        greedy = [c for c in pair["completions"] if c["sampling"]["temperature"] == 0.0]
        if not greedy:  # an empty answer is in no pair
            empty = not cell.tokenizer.decode(wanted, skip_special_tokens=True).strip()
            faults += [] if empty else [f"no greedy answer to {question!r}"]
            continue
        [drawn] = greedy
        if drawn.get("ids", wanted) != wanted:
            faults.append(f"drew {cell.tokenizer.decode(drawn['ids'])!r}, generate {cell.tokenizer.decode(wanted)!r}")
        if question in dict(TAUGHT):
            faults += _answer(dict(TAUGHT)[question], drawn["text"], drawn["finished"])
    return faults


def _answer(wanted: str, text: str, finished: bool) -> list[str]:
    """What a taught model says, and that it stops there."""
    if finished and text.endswith(wanted):
        return []
    return [f"answered {text!r}{'' if finished else ', unfinished'}; taught {wanted!r}"]


def check_evaluate(cell: Cell) -> list[str]:
    """Answers, their scores, and their KL to the baseline."""
    import torch

    scorer = None
    if cell.finished("reward"):
        scorer = plain.load_scorer(cell.model, cell.final("reward"))
    baseline = cell.load(_baseline(cell))
    models: dict[str, nn.Module] = {}
    faults = []
    for row in read_rows(cell.final("evaluate") / "completions.jsonl"):
        question, policy = row["messages"][-1]["content"], row["policy"]
        answer = dict(TAUGHT)[question]
        faults += [f"{policy} {fault}" for fault in _answer(answer, row["text"], row["finished"])]
        prompt, written = cell.row(question, answer)
        if faults or row["length_tokens"] != len(written):
            continue
        model = models.setdefault(policy, cell.load(policy))
        with torch.no_grad():
            kl = float(plain.logps(model, prompt, written).sum() - plain.logps(baseline, prompt, written).sum())
        faults.append(near(f"{policy} kl", row["kl"], kl, LOGP))
        if scorer is not None:
            faults.append(near(f"{policy} score", row["score"], plain.score(scorer, [*prompt, *written]), LOGP))
    report = json.loads((cell.final("evaluate") / "report.json").read_text())
    faults.append(near("unfinished share", report["policies"]["base"]["unfinished_share"], 0.0, 0.0))
    return faults


ORACLES: dict[str, Callable[[Cell], list[str]]] = {
    "sft": check_sft,
    "reward": check_reward,
    "dpo": check_dpo,
    "ppo": check_ppo,
    "sample": check_sample,
    "evaluate": check_evaluate,
}
