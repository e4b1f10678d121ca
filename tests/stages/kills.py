"""Kill a recipe and all its processes at random moments, give its command again each time, and compare with an uncut run.

    make kills                                             # 40 kills, half of them under ZeRO-2 and ZeRO-3: an hour or two
    PYTHONPATH=tests python tests/stages/kills.py --kills 4 --seed 1

A kill is SIGKILL to every process of the recipe. Once a recipe has come to its end between its kills, what its stages wrote
must have the hashes of the uncut run; then another one is begun, until there were enough kills.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from recipe import write_recipe
from support import REPOSITORY, build_tiny_model, write_config

SHARDED = ("cpu_zero2", "cpu_zero3")
COMPARED = ("prepare", "sft", "sample", "label", "reward", "dpo", "ppo", "evaluate")


@dataclass(frozen=True)
class UninterruptedRun:
    """A recipe that ran to its end without a break."""

    outputs: dict[str, dict[str, str]]
    """by stage: hashes of its files"""
    seconds: float


def outputs_of(runs: Path) -> dict[str, dict[str, str]]:
    """Hashes of what each stage wrote."""
    found = {stage: runs / stage / "manifest.json" for stage in COMPARED}
    return {stage: json.loads(file.read_text())["outputs"] for stage, file in found.items() if file.is_file()}


def sharded_recipe(folder: Path, whole: Path, accelerate: str) -> Path:
    """SFT, DPO and PPO on two processes, on the data of a finished recipe."""
    runs = folder / "runs"
    overrides = {
        "sft": {"merge": False},
        "dpo": {"policy": str(runs / "sft")},
        "ppo": {"policy": str(whole / "runs" / "sft")},  # the reward model is mounted on it
    }
    stages = [
        {
            "stage": stage,
            "config": whole / "runs" / stage / "config.resolved.yaml",
            "accelerate": accelerate,
            "overrides": {"output": str(runs / stage), **own},
        }
        for stage, own in overrides.items()
    ]
    return write_config(folder / "pipeline.yaml", name="kills", group="kills", stages=stages)


def start(recipe: Path) -> subprocess.Popen[bytes]:
    """The recipe's command."""
    return subprocess.Popen(
        [sys.executable, "-m", "tiebreak.command.cli", "run", "--config", str(recipe)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=(recipe.parent / "stderr.txt").open("ab"),
        start_new_session=True,
    )


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and all below it."""
    below = psutil.Process(process.pid).children(recursive=True)
    for one in (psutil.Process(process.pid), *below):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(below, timeout=30)


def finish(recipe: Path) -> None:
    """Run to the end."""
    status = start(recipe).wait(timeout=1800)
    assert status == 0, (recipe.parent / "stderr.txt").read_text()[-5000:]


def run_uncut(recipe: Path) -> UninterruptedRun:
    """Run a recipe without a break."""
    began = time.monotonic()
    finish(recipe)
    return UninterruptedRun(outputs_of(recipe.parent / "runs"), time.monotonic() - began)


class Kills:
    """Recipes of one kind, killed."""

    def __init__(self, name: str, folder: Path, whole: Path, model: Path) -> None:
        self.name, self._folder, self._whole, self._model = name, folder, whole, model
        self.count = self.ends = 0
        self.uncut = run_uncut(self._recipe("uncut")) if name else UninterruptedRun(outputs_of(whole / "runs"), 0.0)

    def _recipe(self, name: str) -> Path:
        folder = self._folder / (self.name or "plain") / name
        folder.mkdir(parents=True)
        return sharded_recipe(folder, self._whole, self.name) if self.name else write_recipe(folder, self._model)

    def run(self, kills: int, seconds: float, moments: random.Random) -> None:
        """Kill so many times, each at a moment of so many seconds; at last, run to the end and compare."""
        recipe = self._recipe(f"recipe-{self.ends}")
        while self.count < kills:
            process = start(recipe)
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(timeout=moments.uniform(0.5, seconds))
                assert status == 0, (recipe.parent / "stderr.txt").read_text()[-5000:]
                self.compare(recipe)
                recipe = self._recipe(f"recipe-{self.ends}")
                continue
            kill_all(process)
            self.count += 1
            print(f"{self.name or 'one process'}: kill {self.count} of {kills}", flush=True)
        finish(recipe)
        self.compare(recipe)

    def compare(self, recipe: Path) -> None:
        """An ended recipe wrote what the uncut one did."""
        found = outputs_of(recipe.parent / "runs")
        apart = [stage for stage, files in self.uncut.outputs.items() if found.get(stage) != files]
        assert not apart, f"{recipe.parent}: {', '.join(apart)} differ from the uncut run"
        self.ends += 1


def run_kills(folder: Path, kills: int, seed: int = 0, kinds: tuple[str, ...] = ("", *SHARDED)) -> int:
    """How many recipes were killed; each ended as an uncut one."""
    model = build_tiny_model(folder / "tiny")
    whole = folder / "whole"
    whole.mkdir()
    seconds = run_uncut(write_recipe(whole, model)).seconds
    moments = random.Random(seed)
    made = 0
    for kind, share in zip(kinds, (kills - kills // 2, kills // 4, kills // 2 - kills // 4), strict=False):
        killed = Kills(kind, folder, whole, model)
        killed.run(share, killed.uncut.seconds or seconds, moments)
        made += killed.count
        print(
            f"{kind or 'one process'}: {killed.count} kills, {killed.ends} recipes with the uncut run's hashes",
            flush=True,
        )
    return made


def main() -> None:
    """`make kills`"""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        print(f"{run_kills(Path(folder), given.kills, given.seed)} kills, and every recipe ended as the uncut one")


if __name__ == "__main__":
    main()
