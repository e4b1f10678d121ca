"""One adapter method through every stage that trains: three steps, saved, reloaded, compared.

Outcomes are those of outcomes.py: `refused` before anything was loaded; `wrong` where what was saved answers otherwise
than PEFT's own reading of it, or did not learn.
"""

from __future__ import annotations

import gc
import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from outcomes import Outcome, ask_here, outcome_of
from safetensors import safe_open
from support import read_rows, write_config, write_rows
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tiebreak.config import AdapterConfig
from tiebreak.models import load, precision
from tiebreak.models.reload import FreshProcess

STAGES = ("sft", "reward", "dpo", "kto", "ppo", "rloo", "grpo")
METHODS: Mapping[str, Mapping[str, Any]] = {
    "LoRA": {"r": 4, "alpha": 8},
    "rsLoRA": {"r": 4, "alpha": 8, "rslora": True},
    "DoRA": {"r": 4, "alpha": 8, "dora": True},
    "orthogonal": {"r": 4, "alpha": 8, "init": "orthogonal"},
    "EVA": {"r": 4, "alpha": 8, "init": "eva"},
    "PiSSA": {"r": 4, "alpha": 8, "init": "pissa"},
    "OLoRA": {"r": 4, "alpha": 8, "init": "olora"},
    "patterns": {"r": 4, "alpha": 8, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 16}},
    "LoRA and norms": {"r": 4, "alpha": 8, "modules_to_save": ["input_layernorm", "norm"]},
    "LoHa": {"method": "loha", "r": 4, "alpha": 8},
    "LoKr": {"method": "lokr", "r": 4, "alpha": 8},
    "VeRA": {"method": "vera", "shared_rank": 16},
    "OFT": {"method": "oft"},
    "BOFT": {"method": "boft"},
    "(IA)³": {"method": "ia3"},
    "norms": {"method": "norms"},
    "LoRA on NF4": {"r": 4, "alpha": 8, "quantize": "nf4"},
    "LoRA on FP4": {"r": 4, "alpha": 8, "quantize": "fp4"},
    "LoRA on int8": {"r": 4, "alpha": 8, "quantize": "int8"},
    "OFT on NF4": {"method": "oft", "quantize": "nf4"},
    "full": {"method": "full"},
    "full, 8-bit AdamW": {"method": "full"},
    "last layer": {"method": "full", "trainable_layers": 1},
    "full, then LoRA": {"method": "full"},
    "DoRA, merged, then LoRA": {"r": 4, "alpha": 8, "dora": True},
    "rsLoRA, LoRA stacked on it": {"r": 4, "alpha": 8, "rslora": True},
    "prompt": {"method": "prompt", "virtual_tokens": 4},
    "P-tuning": {"method": "ptuning", "virtual_tokens": 4},
    "prefix": {"method": "prefix", "virtual_tokens": 4},
}
THEN = {
    "full, then LoRA": {"r": 4, "alpha": 8},
    "DoRA, merged, then LoRA": {"start": "merge", "r": 4, "alpha": 8},
    "rsLoRA, LoRA stacked on it": {"start": "stack", "r": 4, "alpha": 8},
}
"""the method of the stages after SFT, where it is another"""
OPTIMIZERS = {"full, 8-bit AdamW": "adamw_8bit"}
LOGP = 1e-3
"""nats that another order of additions may differ by"""
TRAINING = {
    "seed": 0,
    "learning_rate": 1e-2,
    "per_device_batch_size": 4,
    "max_steps": 3,
    "warmup_share": 0.0,
    "max_length_tokens": 128,
    "precision": "float32",
}
GREEDY = {"temperature": 0.0, "max_new_tokens": 4}
ASKED = ["How often do I feed basil?", "And mint?", "Where do I put the lamp?", "Is kale pale?"]
SAID = ["Feed it daily.", "Once a week.", "Above the leaves.", "It is not."]
ELSE = ["Why?", "It drinks.", "In the dark.", "Yes."]


@dataclass
class Cell:
    """A method's runs, all below `folder`."""

    folder: Path
    model: Path
    method: str
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def output(self, stage: str) -> Path:
        return self.folder / stage

    def finished(self, stage: str) -> bool:
        return (self.output(stage) / "manifest.json").is_file()


def run_method(
    folder: Path, model: Path, method: str, stages: tuple[str, ...] = STAGES, *, fresh: bool = False
) -> dict[str, Outcome]:
    """Stages of a method: SFT on a base model, and the others from its policy where there is one.

    Args:
        fresh: reload in a process of its own; otherwise here, from disk, without its 5 s of imports.
    """
    cell = Cell(folder, model, method)
    write_data(folder)
    here = mock.patch.object(FreshProcess, "ask", ask_here)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not fresh:
            here.start()
        try:
            for stage in stages:
                cell.outcomes[stage] = run_stage(cell, stage)
                gc.collect()
        finally:
            if not fresh:
                here.stop()
    return cell.outcomes


def write_data(folder: Path) -> None:
    """Demonstrations, preferences and prompts, in TRL's formats."""
    ask = [[{"role": "user", "content": text}] for text in ASKED]
    say = [[{"role": "assistant", "content": text}] for text in SAID]
    other = [[{"role": "assistant", "content": text}] for text in ELSE]
    write_rows(folder / "demonstrations.jsonl", [{"prompt": p, "completion": c} for p, c in zip(ask, say, strict=True)])
    write_rows(
        folder / "preferences.jsonl",
        [{"prompt": p, "chosen": c, "rejected": r, "split": "train"} for p, c, r in zip(ask, say, other, strict=True)],
    )
    answers = [(p, c, True) for p, c in zip(ask, say, strict=True)]
    answers += [(p, c, False) for p, c in zip(ask, other, strict=True)]
    write_rows(
        folder / "answers.jsonl",
        [{"prompt": p, "completion": c, "label": good, "split": "train"} for p, c, good in answers],
    )
    write_rows(folder / "prompts.jsonl", [{"prompt": p} for p in ask])


def run_stage(cell: Cell, stage: str) -> Outcome:
    """A stage by its command, then what it saved. A refusal comes before a model is loaded."""
    command = {"kto": "dpo", "rloo": "ppo", "grpo": "ppo"}.get(stage, stage)
    config = write_config(cell.folder / f"{stage}.yaml", output=cell.output(stage), **configuration(cell, stage))
    loaded: list[str] = []
    real = load.load_base

    def counted(*args: Any, **kwargs: Any) -> Any:
        loaded.append("base")
        return real(*args, **kwargs)

    with mock.patch.object(load, "load_base", counted):
        outcome = outcome_of(command, config, cell.output(stage), lambda: CHECKS.get(stage, check_policy)(cell, stage))
    if outcome.how == "refused" and loaded:
        return Outcome("wrong", f"loaded before: {outcome.note}")
    return outcome


def configuration(cell: Cell, stage: str) -> dict[str, Any]:
    """A stage from the SFT policy, or a method that SFT refused from the base model."""
    continued = stage != "sft" and cell.finished("sft")
    start = {
        "policy": cell.output("sft") if continued else cell.model,
        "adapter": THEN.get(cell.method) if continued else METHODS[cell.method],
        "training": {**TRAINING, "optimizer": OPTIMIZERS.get(cell.method, "adamw")},
    }
    if stage == "sft":
        return {
            **start,
            "demonstrations": cell.folder / "demonstrations.jsonl",
            "validation_share": 0.0,
            "sampling": GREEDY,
        }
    if stage == "reward":
        return {**start, "preferences": cell.folder / "preferences.jsonl", "garbage_prompts": 0}
    if stage == "kto":
        return {
            **start,
            "algorithm": "kto",
            "preferences": cell.folder / "answers.jsonl",
            "sampling": GREEDY,
        }
    if stage == "dpo":
        return {
            **start,
            "preferences": cell.folder / "preferences.jsonl",
            "sampling": GREEDY,
            "cache_reference": False,
        }
    group = {} if stage == "ppo" else {"algorithm": stage, "completions_per_prompt": 2}
    reward = {"reward_model": cell.output("reward")} if cell.finished("reward") else {"rewards": [BRIEF]}
    return {
        **start,
        **reward,
        **group,
        "prompts": cell.folder / "prompts.jsonl",
        "validation_share": 0.0,
        "episodes_per_rollout": 4,
        "rollouts": 3,
        "ppo_epochs": 1,
        "stop_when_all_cut_off": False,
        "sampling": {"temperature": 1.0, "max_new_tokens": 4},
    }


BRIEF = {"function": "method_cell:brief"}


def brief(completions: list[list[dict[str, Any]]], **_: Any) -> list[float]:
    """A reward for methods that have no reward model."""
    return [-float(len(completion[0]["content"])) for completion in completions]


# --- what PEFT makes of what was saved


def check_policy(cell: Cell, stage: str) -> list[str]:
    """Its answers by PEFT alone are those before it was saved, and others than those of the model it started from."""
    final = cell.output(stage) / "final"
    probe = json.loads((final / "probe.json").read_text())
    before = cell.output("sft") / "final" if stage != "sft" and cell.finished("sft") else None
    found, start = (logps(cell.model, folder, probe["input_ids"]) for folder in (final, before))
    faults = [] if apart(found, probe["values"]) <= tolerance(final) else ["PEFT reads another model"]
    if apart(found, start) < 1e-6:
        faults.append("nothing was learned")
    first = read_rows(cell.output(stage) / "metrics.jsonl")[0]
    rounding = 1e-2 if tolerance(final) > LOGP else 1e-4
    if stage == "dpo" and abs(first["loss"] - math.log(2)) > rounding:
        faults.append(f"the first loss is {first['loss']}")
    if stage == "ppo" and abs(first["objective/kl"]) > 10 * rounding:
        faults.append(f"the first KL is {first['objective/kl']}")
    return faults


def check_reward(cell: Cell, stage: str) -> list[str]:
    """Its score by PEFT alone."""
    final = cell.output(stage) / "final"
    probe = json.loads((final / "probe.json").read_text())
    model = open_model(cell.model, final, AutoModelForSequenceClassification, num_labels=1)
    with torch.no_grad():
        score = float(model(input_ids=torch.tensor([probe["input_ids"]])).logits[0, 0])
    return [] if apart([score], probe["values"]) <= tolerance(final) else ["PEFT reads another model"]


CHECKS: dict[str, Callable[[Cell, str], list[str]]] = {"reward": check_reward}


def apart(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def tolerance(final: Path) -> float:
    """4- and 8-bit products round as the number of rows has it."""
    return 0.25 if json.loads((final / "model.json").read_text())["quantized"] else LOGP


def logps(model: Path, final: Path | None, ids: list[int]) -> list[float]:
    """Log-probabilities of ids[1:]."""
    policy = open_model(model, final, AutoModelForCausalLM)
    with torch.no_grad():
        logits = policy(input_ids=torch.tensor([ids])).logits[0]
    logits = logits[-len(ids) :]  # after virtual tokens
    return [float(x) for x in logits[:-1].float().log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]]


def open_model(model: Path, final: Path | None, kind: Any, **options: Any) -> Any:
    """By transformers and PEFT alone."""
    from peft import PeftModel

    if final is None:
        return kind.from_pretrained(model, **options).eval()
    if not (final / "adapter_config.json").is_file():
        return kind.from_pretrained(final, **options).eval()
    pinned = json.loads((final / "model.json").read_text())
    if pinned["quantized"]:
        saved = AdapterConfig.model_validate(pinned["adapter"])
        held = precision.WeightFormat(saved.quantize, saved.double_quantize)
        options["quantization_config"] = precision.quantization(held, torch.float32)
    config = json.loads((final / "adapter_config.json").read_text())
    model = Path(config["base_model_name_or_path"])
    with safe_open(final / "adapter_model.safetensors", framework="pt") as tensors:
        assert not any(".base_layer." in key for key in tensors.keys())  # noqa: SIM118
    return PeftModel.from_pretrained(kind.from_pretrained(model, dtype=torch.float32, **options), final).eval()
