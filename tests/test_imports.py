"""Modules of a package import one another in one direction, also within functions. import-linter checks the folders."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("tiebreak", "sft", "labeling_ui", "reward", "preference", "evaluation")


def imported(node: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) of every import but those for types alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, "") for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from ((child.module or "", alias.name) for alias in child.names)
        else:
            yield from imported(child)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_have_no_circle(package: str) -> None:
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / package).rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        found = {
            f"{module}.{what}" if f"{module}.{what}" in files else module
            for module, what in imported(ast.parse(path.read_text(encoding="utf-8")))
        }
        graph[name] = (found & files.keys()) - {name}
    assert sum(map(len, graph.values())) > len(graph) / 2, "imports are not found"
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle
