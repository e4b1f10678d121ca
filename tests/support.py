"""What tests share: the command line as users run it, files of rows, and a two-layer random model."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "disabled",  # 2 s of a stage's start; the finished recipe sends its runs to W&B, and tests read them back
    "TOKENIZERS_PARALLELISM": "false",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",  # tiny matrices: threads cost more than they give
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
}
os.environ.update(ENVIRONMENT)
ADDITIONS_PER_SECOND = 2e7
"""of Python on the machine on which bounds in seconds were set"""


def seconds_here(bound: float) -> float:
    """A bound in seconds as this machine would keep it: longer where Python adds more slowly, and never shorter."""

    def add(n: int = 100_000) -> float:
        total, begun = 0, time.process_time()
        for one in range(n):
            total += one
        return (time.process_time() - begun) * ADDITIONS_PER_SECOND / n

    return bound * max(1.0, min(add() for _ in range(3)))


def run_command(
    *words: str | Path, cwd: Path = REPOSITORY, environment: dict[str, str] | None = None, timeout: float = 900
) -> subprocess.CompletedProcess[str]:
    """`tiebreak …` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tiebreak.command.cli", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def succeed(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """`tiebreak …`, which must end well."""
    result = run_command(*words, **options)
    assert result.returncode == 0, (
        f"tiebreak {' '.join(map(str, words))}\n{result.stdout[-2000:]}\n{result.stderr[-6000:]}"
    )
    return result


def run_here(*words: str | Path) -> tuple[int, str]:
    """`tiebreak …` in this process, which has imported torch already: (exit status, standard error)."""
    from tiebreak.command.cli import main

    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        try:
            main([str(word) for word in words])
        except SystemExit as stopped:
            return int(stopped.code or 0), stderr.getvalue()
    return 0, stderr.getvalue()


DEEPSPEED = {
    "zero2": "configs/accelerate/cpu_zero2.yaml",
    "zero3": "tests/sharded/cpu_zero3.yaml",
    "zero3_sharded_load": "tests/sharded/cpu_zero3_sharded_load.yaml",
}


def on_two_processes(launcher: str, script: str, *words: str | Path) -> None:
    """A script, which must end well on both. `launcher`: ddp, or one of `DEEPSPEED`."""
    on_processes(2, launcher, script, *words)


def on_processes(number: int, launcher: str, script: str, *words: str | Path) -> None:
    """Run a script on several processes; it must succeed on each."""
    from prepared import deepspeed_environment, run_launch

    environment = dict(os.environ) if launcher == "ddp" else deepspeed_environment(DEEPSPEED[launcher])
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        statuses = run_launch(number, str(REPOSITORY / script), list(map(str, words)), environment, errors)
        errors.seek(0)
        assert statuses == [0] * number, errors.read()[-12000:]


def run_of(folder: Path, stage: str, config: Any) -> Any:
    """A stage's run as a trainer sees it, of no inputs."""
    from tiebreak.runs.run import Run, identify

    return Run(folder, identify(config, stage, {}))


def end_process(output: Path) -> None:
    """What the end of a failed command's process does to its folder, after `run_here`: nobody holds it any more."""
    (output / "run.lock").unlink(missing_ok=True)


def write_checkpoint(folder: Path, step: int, last: int = 100) -> Path:
    """A complete checkpoint as versions before 2 left it: its marker is empty."""
    import torch
    from safetensors.torch import save_file

    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": last}))
    save_file({"weight": torch.full((8,), float(step))}, checkpoint / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"step": step}, checkpoint / name)
    (checkpoint / "COMPLETE").touch()
    return checkpoint


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with what it holds; W&B's service writes its own logs on after the stage has ended."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not ("wandb" in path.parts and path.suffix == ".log")
    }


def write_config(path: Path, **values: Any) -> Path:
    """A configuration file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(json.loads(json.dumps(values, default=str)), sort_keys=False))
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A JSON Lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """A JSON Lines file's rows."""
    return [json.loads(line) for line in path.read_text().splitlines()]


TINY_TRAINING = {
    "seed": 0,
    "learning_rate": 1e-3,
    "per_device_batch_size": 2,
    "max_length_tokens": 128,
    "save_steps": 1,
}


def build_tiny_model(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """A random two-layer Llama with SmolLM2's tokenizer, saved as safetensors."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from tiebreak.models.bundled import SMOLLM2, load_bundled

    tokenizer = AutoTokenizer.from_pretrained(load_bundled(SMOLLM2))
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def wait_for(condition: Callable[[], Any]) -> Any:
    """Its value once that is true; fails after five minutes, which a busy machine may need."""
    give_up = time.monotonic() + 600
    while not (found := condition()):
        assert time.monotonic() < give_up
        time.sleep(0.05)
    return found


def offline_copy(folder: Path) -> list[dict[str, Any]]:
    """The records of the one offline run in a folder, as W&B's own reader prints them."""
    (path,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]
