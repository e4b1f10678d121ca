"""The examples in docstrings say what happens."""

from __future__ import annotations

import doctest
import importlib

import pytest
from support import REPOSITORY

PACKAGES = ("tiebreak", "sft", "labeling_ui", "reward", "preference", "evaluation")
WITH_EXAMPLES = [
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    for package in PACKAGES
    for path in sorted((REPOSITORY / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples(module: str) -> None:
    messages: list[str] = []
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder().find(importlib.import_module(module)):
        runner.run(example, out=messages.append)
    assert runner.tries > 0
    assert not runner.failures, "".join(messages)
