"""Modules of a package import one another in one direction, also within functions, and in short chains. import-linter
checks the folders."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("tiebreak", "sft", "labeling_ui", "reward", "preference", "evaluation")


FLOORS = {"tiebreak": 12, "labeling_ui": 13}
"""most modules in a chain of imports, those within functions left out; move what is shared into a module below"""


def imported(node: ast.AST, *, in_functions: bool) -> Iterator[tuple[str, str]]:
    """(module, name) of every import except those for types alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not in_functions:
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, "") for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from ((child.module or "", alias.name) for alias in child.names)
        else:
            yield from imported(child, in_functions=in_functions)


def imports_of(package: str, *, in_functions: bool) -> dict[str, set[str]]:
    """Module → those of its package that it imports."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / package).rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        found = {
            f"{module}.{what}" if f"{module}.{what}" in files else module
            for module, what in imported(ast.parse(path.read_text(encoding="utf-8")), in_functions=in_functions)
        }
        graph[name] = (found & files.keys()) - {name}
    assert sum(map(len, graph.values())) > len(graph) / 2, "imports are not found"
    return graph


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_have_no_circle(package: str) -> None:
    graphlib.TopologicalSorter(imports_of(package, in_functions=True)).prepare()  # raises CycleError with the circle


@pytest.mark.parametrize("package", FLOORS)
def test_chains_of_imports_are_short(package: str) -> None:
    graph = imports_of(package, in_functions=False)
    chains: dict[str, list[str]] = {}
    for name in graphlib.TopologicalSorter(graph).static_order():
        chains[name] = [name, *max((chains[below] for below in graph[name]), key=len, default=[])]
    longest = max(chains.values(), key=len)
    assert len(longest) <= FLOORS[package], " > ".join(longest)
