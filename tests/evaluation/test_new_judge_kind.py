"""A new kind of judge is a module, and an entry of KINDS with its key: help, errors and the stage follow from them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support import REPOSITORY, read_rows, run_command, succeed, write_rows

from tiebreak.runs.run import read_manifest

MODULE = '''
"""Prefers the answer that holds a word more often."""

from evaluation.judging.questions import Reply


class WordJudge:
    prompt_version = model_id = ""

    def __init__(self, config, instruction):
        self.model = config.word

    def ask(self, run, questions, what):
        counts = [(q.left.text.count(self.model), q.right.text.count(self.model)) for q in questions]
        return [Reply(max(-3, min(3, right - left))) for left, right in counts]
'''
ENTRY = '    "word": JudgeKind("word", "evaluation.judging.word:WordJudge"),\n'
KEY = '''    word: str | None = None
    """judge: a word, of which the better answer has more"""
'''


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, str]:
    """Where Python finds an `evaluation` with the kind."""
    package = tmp_path / "with_kind" / "evaluation"
    shutil.copytree(REPOSITORY / "evaluation", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "judging" / "word.py").write_text(MODULE, encoding="utf-8")
    file = package / "judging" / "configuration.py"
    before, table = file.read_text(encoding="utf-8").split("KINDS = {\n")
    entries, key, fields = table.partition("    function: str | None = None\n")
    file.write_text(f"{before}KINDS = {{\n{ENTRY}{entries}{KEY}{key}{fields}", encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join(map(str, (package.parent, REPOSITORY)))}


def test_it_judges_and_errors_name_it(tmp_path: Path, paths: dict[str, str]) -> None:
    sides = [("mint", "mint, mint"), ("mint, mint, mint", "sage"), ("sage", "thyme")]
    rows = [{"prompt": f"herb {n}?", "response_a": a, "response_b": b} for n, (a, b) in enumerate(sides)]
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    words = ("judge", "--pairs", pairs, "--word", "mint", "--output", tmp_path / "out", "--injection-pairs", "0")
    refused = run_command(*words, "--function", "rubric", cwd=tmp_path, environment=paths).stderr
    assert "exactly one judge is needed, of word, function, reward_model, model and endpoint: " in refused
    assert "there are word and function" in refused
    succeed(*words, "--tracking.mode", "disabled", cwd=tmp_path, environment=paths)
    assert read_manifest(tmp_path / "out")["judge"]["rater"] == "judge-word-mint"
    judged = read_rows(tmp_path / "out" / "final" / "judgments.jsonl")
    assert sorted(abs(row["answer"]) for row in judged) == [0, 1, 3]
