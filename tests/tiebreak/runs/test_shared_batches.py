"""Batches that several processes share out, and the stages that do so: the result is that of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import run_here, succeed, write_rows

from tiebreak.runs.run import read_manifest

SCRIPT = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from tiebreak.runs.run import Run, in_batches

folder, made = Path(sys.argv[1]), []
run = Run(folder, SimpleNamespace(record=lambda _: {}))
if sys.argv[2] == "main":
    run.note_seconds()

def compute(batch, advance):
    made.append(batch)
    return [key * key for key in batch]

results = in_batches(run, list(range(7)), 2, compute, "squares")
print(json.dumps([made, results]))
"""


def test_each_process_computes_its_share_and_all_have_all(tmp_path: Path) -> None:
    """Seven keys in batches of two: the first process makes the first and the third, the second the others."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, tmp_path, "main" if rank == 0 else "other"],
            env={**os.environ, "WORLD_SIZE": "2", "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (1, 0)  # the second waits until the main one has opened the folder
    ]
    other, main = (json.loads(process.communicate(timeout=600)[0]) for process in processes)
    assert main[0] == [[0, 1], [4, 5]]
    assert other[0] == [[2, 3], [6]]
    assert main[1] == other[1] == [n * n for n in range(7)]


@pytest.mark.proof
def test_two_processes_judge_as_one_does(tiny_model: Path, tmp_path: Path) -> None:
    """A base model by the letters A and B: 12 questions in four batches, then the injections."""
    rows = [{"prompt": f"why {n}?", "response_a": f"because {n}", "response_b": "no " * (n + 1)} for n in range(6)]
    words = (
        *("judge", "--pairs", write_rows(tmp_path / "pairs.jsonl", rows), "--model", tiny_model, "--batch-size", "3"),
        *("--answers-by", "letters", "--tracking.mode", "disabled", "--output"),
    )
    status, message = run_here(*words, tmp_path / "one")
    assert status == 0, message
    succeed(*words, tmp_path / "two", "--accelerate", "cpu", "--num_processes", "2")
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    assert read_manifest(tmp_path / "one")["id"] == read_manifest(tmp_path / "two")["id"]


def test_an_endpoint_is_asked_by_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "why?", "response_a": "so", "response_b": "no"}])
    words = ("--endpoint.url", "http://127.0.0.1:9/v1", "--endpoint.model", "m", "--output", tmp_path / "out")
    status, message = run_here("judge", "--pairs", pairs, *words, "--tracking.mode", "disabled")
    assert status == 2
    assert "endpoint: one process asks it" in message


@pytest.mark.parametrize("stage", ["sample", pytest.param("evaluate", marks=pytest.mark.proof)])
def test_two_processes_make_what_one_makes(stage: str, tiny_model: Path, tmp_path: Path) -> None:
    """Nine prompts in four batches: the same bytes, and so the same id."""
    rows = [{"prompt": f"water {n}", "split": "train" if stage == "sample" else "test"} for n in range(9)]
    given = {"sample": ["--policy", tiny_model], "evaluate": ["--policies.base", tiny_model, "--baseline", "base"]}
    words = (
        *(stage, "--prompts", write_rows(tmp_path / "prompts.jsonl", rows), *given[stage], "--batch-size", "1"),
        *("--sampling.0.max-new-tokens" if stage == "sample" else "--sampling.max-new-tokens", "8"),
        *("--tracking.mode", "disabled", "--output"),
    )
    status, message = run_here(*words, tmp_path / "one")
    assert status == 0, message
    succeed(*words, tmp_path / "two", "--accelerate", "cpu", "--num_processes", "2")
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    assert read_manifest(tmp_path / "one")["id"] == read_manifest(tmp_path / "two")["id"]
    for file in (tmp_path / "one" / "final").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / "final" / file.name).read_bytes()
