"""The planner's memory against the measured peak: four stages, two models.

    python benchmarks/plan.py                                   # ten minutes on two CPU cores
    python benchmarks/plan.py --only dpo --models 135m

Each stage runs through the command line, in a process of its own, for some steps on rows that fill its passes. Measured is
the peak resident set of that process minus that of the same command under --preflight-only, which has the same imports,
tokenizer and data, and no model; the check of the saved model is another process and is not counted. Prints a table and
writes benchmarks/plan.json, which docs/scaling.md shows: what is not measured again stays as it was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tiebreak.command.help import configuration_class
from tiebreak.command.table import COMMANDS
from tiebreak.config import load_config
from tiebreak.plan.devices import find_device
from tiebreak.plan.hardware import Hardware
from tiebreak.plan.planner import plan_stage
from tiebreak.process.settings import PROCESS_SETTINGS

RESULTS = Path(__file__).with_name("plan.json")
ORDER = ("sft", "reward", "dpo", "ppo")
TRAINING = {
    "learning_rate": 1e-5,
    "max_steps": 2,
    "per_device_batch_size": 6,
    "max_length_tokens": 256,
    "save_steps": 100,
    "precision": "float32",
}
SMALL = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 10, "num_attention_heads": 8}
WORDS = (
    "basil light water root leaf lamp tray night day warm cold pale green feed litre degree week morning seed".split()
)

PEAK = """
import sys
from tiebreak.command.cli import main
try:
    main(sys.argv[2:])
finally:
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM:")]
    open(sys.argv[1], "w").write(str(int(line.split()[1]) * 1024))
"""
"""getrusage would include what this process had when it started the other"""


@dataclass(frozen=True)
class Result:
    """One stage on one model, in bytes."""

    model: str
    stage: str
    measured: int
    planned: int
    idle: int

    @property
    def off(self) -> float:
        """The plan's error, as a share of the measured peak."""
        return self.planned / self.measured - 1


def measure(*words: str | Path) -> int:
    """The peak resident set of a `tiebreak` command's process, in bytes."""
    with tempfile.NamedTemporaryFile() as file:
        done = subprocess.run(
            [sys.executable, "-c", PEAK, file.name, *map(str, words)],
            env={**os.environ, **PROCESS_SETTINGS, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"},
            stdout=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{' '.join(map(str, words))} ended with status {done.returncode}; it says why above")
        return int(Path(file.name).read_text())


def build_model(folder: Path) -> Path:
    """A random Llama of about 50 million parameters with SmolLM2's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from tiebreak.models.bundled import SMOLLM2, load_bundled

    tokenizer = AutoTokenizer.from_pretrained(load_bundled(SMOLLM2))
    torch.manual_seed(0)
    config = LlamaConfig(
        **SMALL,
        vocab_size=len(tokenizer),
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_data(folder: Path) -> dict[str, Path]:
    """Rows with answers of about 100 words, so that a batch fills several passes."""
    chance = random.Random(0)

    def text(words: int) -> str:
        return " ".join(chance.choices(WORDS, k=words))

    rows = [{"prompt": text(40), "chosen": text(110), "rejected": text(100)} for _ in range(48)]
    files = {
        "demonstrations": [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows],
        "preferences": rows,
        "prompts": [{"prompt": row["prompt"]} for row in rows],
    }
    for name, content in files.items():
        split = [{**row, "split": "train"} for row in content]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in split))
    return {name: folder / f"{name}.jsonl" for name in files}


def stage_values(stage: str, model: str, data: dict[str, Path], folder: Path) -> dict[str, Any]:
    """The configuration of a measured run."""
    own: dict[str, dict[str, Any]] = {
        "sft": {"demonstrations": data["demonstrations"]},
        "reward": {"preferences": data["preferences"], "garbage_prompts": 0},
        "dpo": {"preferences": data["preferences"]},
        "ppo": {
            "prompts": data["prompts"],
            "reward_model": folder / "reward",
            "episodes_per_rollout": 24,
            "rollouts": 1,
            "ppo_epochs": 1,
            "sampling": {"temperature": 1.0, "max_new_tokens": 96},
            "max_validation_prompts": 0,
            "stop_when_all_cut_off": False,
        },
    }
    return {
        "output": folder / stage,
        "policy": model,
        "adapter": {"r": 16, "alpha": 32},
        "training": TRAINING,
        "tracking": {"mode": "disabled"},
        **own[stage],
    }


def run(model: str, name: str, stages: list[str], folder: Path) -> None:
    """Measure and plan a model's stages."""
    folder.mkdir(parents=True, exist_ok=True)
    data = write_data(folder)
    for stage in ORDER:
        if stage not in stages and not (stage == "reward" and "ppo" in stages):
            continue
        file = folder / f"{stage}.yaml"
        file.write_text(yaml.safe_dump(json.loads(json.dumps(stage_values(stage, model, data, folder), default=str))))
        words = (stage, "--config", file)
        idle, peak = measure(*words, "--preflight-only"), measure(*words)
        config: Any = load_config(configuration_class(COMMANDS[stage]), [*map(str, words[1:])], stage)  # type: ignore[type-var]
        plan = plan_stage(stage, config, Hardware(find_device("cpu")))
        result = Result(name, stage, peak - idle, round(plan.memory.total), idle)
        keep(result)
        print(f"{name:6} {stage:7} measured {(peak - idle) / 2**20:7.0f} MiB, planned {plan.memory.total / 2**20:7.0f} "
              f"MiB, {result.off:+.0%}; idle {idle / 2**20:.0f} MiB", flush=True)  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(ORDER), choices=ORDER)
    parser.add_argument("--models", nargs="+", default=["50m", "135m"], choices=["135m", "50m"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.models:
            here = Path(scratch) / name
            model = "bundled:smollm2-135m-instruct" if name == "135m" else str(build_model(here / "model"))
            run(model, name, options.only, here)


def keep(result: Result) -> None:
    """Put a result in place of an earlier one."""
    others = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    others = [one for one in others if (one["model"], one["stage"]) != (result.model, result.stage)]
    ordered = sorted([*others, asdict(result)], key=lambda one: (one["model"], ORDER.index(one["stage"])))
    RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")


if __name__ == "__main__":
    main()
