"""The benchmark on a tiny model: its contestants run, its losses agree, its table and its file say the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import REPOSITORY


def test_the_benchmark_measures_ours_beside_trls_in_fresh_processes(tiny_model: Path, tmp_path: Path) -> None:
    written = tmp_path / "results.json"
    words = ["--only", "dpo, multi-turn", "--rows", "2", "--steps", "3", "--contestants", "trl"]
    done = subprocess.run(
        [sys.executable, "benchmarks/training.py", *words, "--model", str(tiny_model), "--results", str(written)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = json.loads(written.read_text())
    ours, theirs = result["contestants"]["ours"], result["contestants"]["trl"]
    assert ours["losses"][0] == pytest.approx(0.6931, abs=1e-3)  # ln 2
    assert len(set(ours["losses"])) == 3
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-3)
    assert result["losses_agree"]
    assert result["ours / trl"]["throughput"] == pytest.approx(
        (theirs["step_seconds"] + theirs["setup_seconds"]) / ours["step_seconds"]
    )
    assert ours["padded_tokens_a_row"] > ours["tokens_a_row"]
    assert 0 < ours["matrix_product_share"] < 1.2
    assert f"| {ours['peak_mib']:.0f} |" in " ".join(done.stdout.split("\n"))
