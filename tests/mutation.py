"""Do the tests notice? Small faults are put into the code that figures rest on, one at a time, and its tests are run.

    make mutation
    python tests/mutation.py tiebreak/measures/statistics.py evaluation/evaluate.py --workers 2
    python tests/mutation.py tiebreak/measures/statistics.py --again

A fault (mutant) is a turned comparison or sign, a number off by one, `and` for `or`, a lost `not`, a slice that is one
longer or shorter, `min` for `max`, a function that returns nothing, a statement left out. It is killed if a test fails.
Survivors must be explained in `tests/mutation.yaml`, or the command fails.

What became of a file's faults is kept in `docs/mutation/`, and the table of `docs/mutation.md` is made from all that is
there, so that files can be run one by one. `--again` runs survivors without an explanation, and the functions that have
changed since; `--page` runs nothing and writes the page. A run that was cut off resumes: what it killed is not run again.

The tests are collected and run once, which shows the lines that each executes. Each mutant is then a fork of that
process, in which the code of one function is exchanged; it runs the tests that execute the mutant's line, up to the first
that fails: those that killed other mutants of the function first, then the quickest. What survives without an
explanation, and what lies outside all functions, is run again in a process that imports the mutated module anew.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import contextlib
import copy
import functools
import gc
import hashlib
import importlib.machinery
import importlib.util
import inspect
import json
import math
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
EXPLANATIONS = REPOSITORY / "tests" / "mutation.yaml"
PAGE = REPOSITORY / "docs" / "mutation.md"
RESULTS = REPOSITORY / "docs" / "mutation"
PATIENCE_SECONDS = 30.0
"""A mutant may compute so long beyond three times what its tests take: one that loops for ever is killed by that."""
WAITING = 20
"""A mutant may take so many times its patience by the clock: a busy machine is slow, but one that sleeps for ever ends."""
PATIENCE_WITH_A_TEST = 5.0
"""A mutant may compute so long in one test of a fork beyond ten times what the test takes."""
FAILED = 100
"""A fork ends with this plus the number of the test that failed."""

_STDERR = os.dup(2)
"""Standard error as this process found it: pytest takes the other one."""

_DATA_SETS = [
    f"tests/tiebreak/data/test_{name}.py"
    for name in (
        "formats",
        "files",
        "splits",
        "odd_rows",
        "rows_by_hand",
        "pairs",
        "images",
        "command",
        "documents",
        "pieces",
    )
] + ["tests/data_sets/test_popular.py"]
_CHAT = [
    *("tests/tiebreak/chat/test_chat.py", "tests/tiebreak/chat/test_turns.py", "tests/models/test_templates.py"),
    "tests/stages/test_padded_vocabulary.py::test_ids_without_text_are_never_drawn",
]
_RECORDS = ["tests/tiebreak/test_records.py", "tests/tiebreak/test_messages.py", "tests/tiebreak/data/test_images.py"]
_EVALUATION = [
    "tests/evaluation/test_evaluate.py",
    "tests/evaluation/test_gate.py",
    "tests/evaluation/test_verdicts.py::test_a_manifest_has_each_figure_under_one_name",
    "tests/tiebreak/data/test_splits.py::test_every_run_behind_a_policy_is_looked_at",
    "tests/tiebreak/data/test_splits.py::test_evaluate_refuses_what_its_policy_was_trained_on",
]
_LONG_TESTS = (
    *("test_ppo_never_trains_on_a_held_out_prompt", "test_evaluate_refuses_what_its_policy_was_trained_on"),
    *("test_dpo_drops_bad_rows_lists_and_counts_them", "test_sft_reads_a_table_by_columns"),
    *("test_each_stage_refuses_the_row_by_its_name", "test_rows_with_images_can_be_dropped"),
    *("test_a_first_row_whose_ranking_has_a_fault_is_named", "test_reading_imports_no_torch"),
)
"""Tests of the data sets that train, or start a process, which has no mutant: left out unless they are named."""
TESTS = {
    "tiebreak/measures/statistics.py": ["tests/tiebreak/measures/test_statistics.py"],
    **{
        f"evaluation/{name}.py": [*_EVALUATION, "tests/evaluation/test_evaluate_yardsticks.py"]
        for name in ("evaluate", "yardstick_scores", "yardstick_figures")
    },
    "tiebreak/measures/yardstick.py": [
        "tests/tiebreak/measures/test_yardstick.py",
        "tests/evaluation/test_evaluate.py::test_what_is_no_measure_is_refused_by_name_on_the_first_answer",
    ],
    "evaluation/compare/verdicts.py": [
        "tests/evaluation/test_verdicts.py",
        "tests/evaluation/test_compare.py::test_a_guards_decision_in_words",
        "tests/evaluation/test_compare.py::test_a_guard_of_the_same_judgments_is_reported_as_one",
        "tests/evaluation/test_compare.py::test_a_reward_model_no_better_than_chance_is_reported_as_such",
        "tests/evaluation/test_compare.py::test_simulated_raters_are_named_even_if_only_a_stage_says_so",
        "tests/evaluation/test_compare.py::test_any_set_of_policies_makes_a_page",
        "tests/evaluation/test_canaries.py::test_the_report_and_the_gate_name_a_policy_that_memorised",
    ],
    "evaluation/compare/lineage.py": ["tests/evaluation/test_verdicts.py"],
    "preference/ppo/losses.py": ["tests/preference/test_ppo_losses.py"],
    "preference/policy/token_rewards.py": ["tests/preference/test_ppo_losses.py"],
    "reward/losses.py": ["tests/reward/test_reward_losses.py"],
    "tiebreak/training/labels.py": ["tests/reward/test_reward_losses.py"],
    **{f"tiebreak/chat/{name}.py": _CHAT for name in ("chat", "rendering", "build", "rows", "turns", "templates")},
    **{f"tiebreak/{name}.py": _RECORDS for name in ("records", "messages", "files")},
    **{f"tiebreak/data/{name}.py": _DATA_SETS for name in ("cells", "columns", "conversations", "reading", "shapes")},
    **{f"tiebreak/data/{name}.py": _DATA_SETS for name in ("sources", "splits", "text", "pairs")},
    **{f"tiebreak/data/rows/{name}.py": _DATA_SETS for name in ("content", "parts", "demonstrations", "preferences")},
    "tiebreak/data/trees.py": ["tests/data_sets/test_popular.py"],
}
"""The code, and the tests that answer for it: those that run in their own process alone."""


# --- mutants ---


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    file: str
    line: int
    function: str
    statement: str
    before: str
    after: str
    repeat: int = 1
    """from 2 where the function has the same fault in the same statement before"""

    @property
    def name(self) -> str:
        """What stays the same when lines move."""
        inside = "" if self.statement == self.before else f", in {self.statement}"
        return f"{self.file} {self.function}: {self.before} → {self.after}{inside}" + f" ({self.repeat})" * (
            self.repeat > 1
        )


Change = Callable[[ast.AST], ast.AST]

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Pow: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


def changes_of(node: ast.AST) -> Iterator[ast.AST]:
    """What a node can be turned into."""
    if isinstance(node, ast.Compare):
        for at, operator in enumerate(node.ops):
            for other in _COMPARISONS.get(type(operator), ()):
                turned = copy.deepcopy(node)
                turned.ops[at] = other()
                yield turned
    elif (isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS and not _is_text(node)) or (
        isinstance(node, ast.AugAssign) and type(node.op) in _OPERATORS and not _is_text(node.value)
    ):
        turned = copy.deepcopy(node)
        turned.op = _OPERATORS[type(node.op)]()
        yield turned
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        yield copy.deepcopy(node.operand)
    elif isinstance(node, ast.BoolOp):
        turned = copy.deepcopy(node)
        turned.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        yield turned
    elif isinstance(node, ast.Constant):
        yield from _other_constants(node)
    elif isinstance(node, ast.Slice):
        yield from _other_slices(node)
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)) and isinstance(
        node.test, (ast.Name, ast.Attribute, ast.Call)
    ):
        turned = copy.deepcopy(node)
        turned.test = ast.UnaryOp(ast.Not(), turned.test)
        yield turned
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _NAMES:
        turned = copy.deepcopy(node)
        turned.func = ast.Name(_NAMES[node.func.id], ast.Load())
        yield turned
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
    elif isinstance(node, (ast.Continue, ast.Break)):
        yield ast.Break() if isinstance(node, ast.Continue) else ast.Continue()


def _other_constants(node: ast.Constant) -> Iterator[ast.AST]:
    if isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node.value, int):
        yield ast.Constant(node.value + 1)
        yield ast.Constant(node.value - 1)
    elif isinstance(node.value, float):
        yield ast.Constant(node.value + 1.0)


def _other_slices(node: ast.Slice) -> Iterator[ast.AST]:
    for bound in ("lower", "upper"):
        value = getattr(node, bound)
        if value is not None and not isinstance(value, ast.Constant):
            for operator in (ast.Add(), ast.Sub()):
                turned = copy.deepcopy(node)
                setattr(turned, bound, ast.BinOp(copy.deepcopy(value), operator, ast.Constant(1)))
                yield turned


def _is_text(node: ast.AST) -> bool:
    return any(
        isinstance(one, ast.JoinedStr) or (isinstance(one, ast.Constant) and isinstance(one.value, (str, bytes)))
        for one in ast.walk(node)
    )


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def list_mutants(file: str) -> list[Mutant]:
    """All mutants of a file."""
    tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
    return [mutant for mutant, _, _, _ in _faults(file, tree)]


def mutants_of(file: str, names: Container[str]) -> list[tuple[Mutant, CodeType]]:
    """The mutants of a file that have these names, each with the module's code that has it."""
    path = REPOSITORY / file
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for mutant, place, node, changed in list(_faults(file, tree)):
        if mutant.name in names:
            _put(tree, place, ast.copy_location(changed, node) if hasattr(node, "lineno") else changed)
            found.append((mutant, compile(ast.fix_missing_locations(tree), str(path), "exec")))
            _put(tree, place, node)
    return found


def _faults(file: str, tree: ast.Module) -> Iterator[tuple[Mutant, Path_, ast.AST, ast.AST]]:
    seen: Counter[Mutant] = Counter()
    for path, node, function, statement in _places(tree, (), "the module", ""):
        line = getattr(node, "lineno", None) or min(
            (one.lineno for one in ast.walk(node) if hasattr(one, "lineno")), default=0
        )
        for changed in changes_of(node):
            mutant = Mutant(file, line, function, statement, _shown(node), _shown(changed))
            key = replace(mutant, line=0)
            seen[key] += 1
            yield replace(mutant, repeat=seen[key]), path, node, changed


Path_ = tuple[tuple[str, int | None], ...]


def _places(node: ast.AST, path: Path_, function: str, statement: str) -> Iterator[tuple[Path_, ast.AST, str, str]]:
    """Every node that may be mutated: no annotation, docstring, decorator, import, check or message."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_comment", "format_spec"):
            continue
        for at, child in enumerate(value) if isinstance(value, list) else ((None, value),):
            if not isinstance(child, ast.AST) or _is_left_out(child):
                continue
            if isinstance(child, ast.keyword) and child.arg == "strict" and ast.unparse(node).startswith("zip("):
                continue  # a check, as an assertion is
            inside = f"{function}.{child.name}" if isinstance(child, (ast.FunctionDef, ast.ClassDef)) else function
            inside = inside.removeprefix("the module.")
            here, around = (*path, (field, at)), _shown(child) if isinstance(child, ast.stmt) else statement
            yield here, child, inside, around
            yield from _places(child, here, inside, around)


def _is_left_out(node: ast.AST) -> bool:
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.Raise, ast.Assert, ast.JoinedStr)):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.If):
        shown = ast.unparse(node.test)
        return shown == "TYPE_CHECKING" or "__name__" in shown
    return isinstance(node, ast.FunctionDef) and node.name == "main"


def _put(tree: ast.AST, path: Path_, changed: ast.AST) -> None:
    *parents, (field, at) = path
    node: Any = tree
    for name, index in parents:
        node = getattr(node, name) if index is None else getattr(node, name)[index]
    if at is None:
        setattr(node, field, changed)
    else:
        getattr(node, field)[at] = changed


def _shown(node: ast.AST) -> str:
    text = ast.unparse(node).split("\n")[0]
    return text if len(text) <= 90 else f"{text[:90]}…"


# --- running ---


class _MutantLoader(importlib.machinery.SourceFileLoader):
    """Gives a module the mutated code."""

    code: CodeType

    def get_code(self, fullname: str) -> CodeType:
        return self.code


class _MutantFinder:
    """Finds the one module that is mutated."""

    def __init__(self, module: str, file: Path, code: CodeType) -> None:
        self.module, self.file, self.code = module, file, code

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> Any:
        if fullname != self.module:
            return None
        loader = _MutantLoader(fullname, str(self.file))
        loader.code = self.code
        return importlib.util.spec_from_file_location(fullname, self.file, loader=loader)


class _Session:
    """A pytest plugin that takes the place of pytest's loop: all tests once, then mutants against those that matter."""

    def __init__(
        self,
        file: str,
        mutants: Sequence[tuple[Mutant, CodeType]],
        workers: int,
        report: Path,
        note: Callable[[Result], None],
    ) -> None:
        self.path = str(REPOSITORY / file)
        self.file, self.mutants, self.workers, self.report, self.note = file, mutants, workers, report, note
        self.lines: dict[str, set[int]] = {}
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []
        self._now: set[int] = set()
        self._instrument()

    def _instrument(self) -> None:
        """The file is imported with a call before each statement of its functions, which says what a test executes: by
        whichever module comes first, conftest.py among them."""
        builtins.executes__ = self._executes  # type: ignore[attr-defined]
        tree = instrumented(ast.parse(Path(self.path).read_text(encoding="utf-8")))
        module = self.file.removesuffix(".py").replace("/", ".")
        sys.meta_path.insert(0, _MutantFinder(module, Path(self.path), compile(tree, self.path, "exec")))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_runtestloop(self, session: Any) -> bool:
        """Everything; the results are in the file `report` afterwards."""
        items = {item.nodeid: item for item in session.items}
        ordered = list(items.values())
        for at, item in enumerate(ordered):
            self._now = self.lines.setdefault(item.nodeid, set())
            after = ordered[at + 1] if at + 1 < len(ordered) else self._neighbour(item, ordered)
            started = time.process_time()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            self.seconds[item.nodeid] = time.process_time() - started
        if self.failed:
            self.report.write_text(json.dumps({"failed": self.failed}))
            return True
        original = _codes(compile(Path(self.path).read_text(encoding="utf-8"), self.path, "exec"))
        functions = _live_functions(self.path)
        for key, live in functions.items():
            for function in live:
                function.__code__ = original.get(key, function.__code__)
        fast, slow, unexecuted = [], [], []
        for number, (mutant, code) in enumerate(self.mutants):
            tests = self._tests_of(mutant)
            changed = _changed(original, _codes(code))
            if tests and changed and all(key in functions for key in changed):
                fast.append((number, changed, tests))
            elif tests or mutant.line in _definition_lines(self.file):
                slow.append(number)
            else:
                unexecuted.append(number)
        _say(f"{self.file}: {len(self.mutants)} mutants, {len(fast)} in forks, {len(slow)} imported anew")
        gc.collect()
        gc.freeze()  # a collection in a fork would touch, and so copy, all that is here
        survivors = share_out(fast, self.workers, lambda mine: self._in_forks(mine, functions, items))
        outcome = {
            "slow": slow,
            "unexecuted": unexecuted,
            "survivors": survivors,
            "tests": {n: self._tests_of(self.mutants[n][0]) or self._all_tests() for n in (*slow, *survivors)},
            "seconds": self.seconds,
        }
        self.report.write_text(json.dumps(outcome))
        return True

    def _tests_of(self, mutant: Mutant) -> list[str]:
        """The tests that execute its line, quickest first."""
        mine = [test for test, executed in self.lines.items() if mutant.line in executed]
        return sorted(mine, key=lambda test: self.seconds.get(test, 0.0))

    def _all_tests(self) -> list[str]:
        """Those that execute the file first, the quickest of them before others."""
        return sorted(self.lines, key=lambda test: (not self.lines[test], self.seconds.get(test, 0.0)))

    def _in_forks(self, mine: Sequence[Any], functions: dict[Any, list[Any]], items: dict[str, Any]) -> Iterator[int]:
        """The numbers of the mutants that survive."""
        kills: Counter[tuple[str, str]] = Counter()  # by function and test
        for number, changed, executing in mine:
            function = self.mutants[number][0].function
            tests = sorted(executing, key=lambda test: -kills[function, test])
            work = functools.partial(self._run_changed, changed, functions, [items[test] for test in tests])
            status = in_a_fork(work, patience(tests, self.seconds))
            self.note(Result(self.mutants[number][0], "survived" if status == 0 else "killed"))
            if status == 0:
                _say(f"  survived a fork: line {self.mutants[number][0].line}: {self.mutants[number][0].name}")
                yield number
            elif status is not None and FAILED <= status < FAILED + len(tests):
                kills[function, tests[status - FAILED]] += 1

    def _run_changed(self, changed: dict[Any, CodeType], functions: dict[Any, list[Any]], items: Sequence[Any]) -> int:
        for key, code in changed.items():
            for function in functions[key]:
                function.__code__ = code
        for cached in _caches(self.path):
            cached.cache_clear()
        self.failed.clear()
        state = items[0].session._setupstate
        for at, item in enumerate(items):
            signal.setitimer(signal.ITIMER_PROF, PATIENCE_WITH_A_TEST + 10 * self.seconds[item.nodeid])
            state.teardown_exact(item)
            after = items[at + 1] if at + 1 < len(items) else None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            if self.failed:
                return FAILED + min(at, 255 - FAILED)
        return 0

    @staticmethod
    def _neighbour(item: Any, items: Sequence[Any]) -> Any:
        """Another test of the same file, so that the file's fixtures are not torn down."""
        return next((other for other in items if other is not item and other.path == item.path), None)

    def _executes(self, first: int, last: int) -> None:
        self._now.update(range(first, last + 1))


def instrumented(tree: ast.Module) -> ast.Module:
    """The module with a call of `executes__(first line, last line)` before each statement of its functions."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for holder in {node: None for function in functions for node in ast.walk(function)}:
        for name in ("body", "orelse", "finalbody"):
            if isinstance(statements := getattr(holder, name, None), list) and not isinstance(holder, ast.ClassDef):
                setattr(holder, name, [one for statement in statements for one in _instrumented(statement)])
    return ast.fix_missing_locations(tree)


def _instrumented(statement: ast.stmt) -> Iterator[ast.stmt]:
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if isinstance(body, list) else statement.end_lineno or 0
    lines = (ast.Constant(statement.lineno), ast.Constant(max(statement.lineno, last)))
    call = ast.Expr(ast.Call(ast.Name("executes__", ast.Load()), [*lines], []))
    is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    yield from [statement] if is_text else [ast.copy_location(call, statement), statement]


CodeKey = tuple[str, int]


def _codes(code: CodeType) -> dict[CodeKey, CodeType]:
    """A module's functions by their name and line, those inside others with the outer ones alone."""
    found: dict[CodeKey, CodeType] = {}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_flags & inspect.CO_OPTIMIZED:  # a function
                found[constant.co_qualname, constant.co_firstlineno] = constant
            else:  # a class's body
                found |= _codes(constant)
                found[f"the body of {constant.co_qualname}", constant.co_firstlineno] = constant
    found["the module", 0] = code
    return found


def _changed(original: dict[CodeKey, CodeType], mutated: dict[CodeKey, CodeType]) -> dict[CodeKey, CodeType]:
    """The functions that differ; the module and class bodies count where they differ in more than these."""
    changed = {key: code for key, code in mutated.items() if key in original and original[key] != code}
    functions = {key for key in changed if not _is_body(key)}
    for key in [key for key in changed if _is_body(key)]:
        if _without_functions(changed[key]) == _without_functions(original[key]) and functions:
            del changed[key]
    return changed


def _is_body(key: CodeKey) -> bool:
    return key[0] == "the module" or key[0].startswith("the body of ")


def _without_functions(code: CodeType) -> tuple[bytes, tuple[object, ...]]:
    return code.co_code, tuple(repr(one) for one in code.co_consts if not isinstance(one, CodeType))


def _live_functions(path: str) -> dict[CodeKey, list[Any]]:
    found: dict[CodeKey, list[Any]] = {}
    gc.unfreeze()  # what was imported by a stage is frozen, and not listed
    for one in gc.get_objects():
        if type(one) is FunctionType and one.__code__.co_filename == path:
            found.setdefault((one.__code__.co_qualname, one.__code__.co_firstlineno), []).append(one)
    return found


def _caches(path: str) -> list[Any]:
    """The cached functions of a file: what they returned before the fault must be computed again."""
    wrapper = type(functools.cache(len))
    found = (one for one in gc.get_objects() if type(one) is wrapper)
    return [one for one in found if getattr(getattr(one.__wrapped__, "__code__", None), "co_filename", "") == path]


def preload() -> None:
    """Import what takes long, and nothing of ours: a fork has it at once."""
    for folder in (REPOSITORY, REPOSITORY / "tests"):
        sys.path.insert(0, str(folder))
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import support  # noqa: F401 - sets the environment of tests
    import torch  # noqa: F401
    import transformers
    import trl  # noqa: F401

    for name in ("AutoModelForCausalLM", "AutoTokenizer", "LlamaForCausalLM", "PreTrainedTokenizerFast"):
        getattr(transformers, name)
    with contextlib.suppress(ImportError):
        import scipy.optimize
        import scipy.stats  # noqa: F401
    for name in ("peft", "datasets", "accelerate", "pydantic", "wandb"):
        importlib.import_module(name)


def in_a_fork(work: Callable[[], int], seconds: float) -> int | None:
    """`work`'s status in a fork without input and output; None if it took too long.

    Args:
        seconds: limit of processor time, so that other programs on the machine kill no mutant; by the clock a multiple.
    """
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        limit = math.ceil(seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        with open(os.devnull, "r+b") as nothing:
            for descriptor in (0, 1, 2):
                os.dup2(nothing.fileno(), descriptor)
        try:
            status = work()
        except BaseException as error:  # noqa: BLE001 - a mutant may do anything
            if os.environ.get("MUTATION_DEBUG"):
                _say(repr(error))
            status = 70
        os._exit(status)
    deadline = time.monotonic() + WAITING * seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return None if code == -signal.SIGKILL else code
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.01)


def patience(tests: Sequence[str], seconds: dict[str, float]) -> float:
    """The limit of a mutant's processor time."""
    return PATIENCE_SECONDS + 3 * sum(seconds.get(test, 1.0) for test in tests)


def share_out(queue: Sequence[Any], workers: int, work: Callable[[Iterable[Any]], Iterable[int]]) -> list[int]:
    """What `work` yields of a part of the queue; several forks of this process each do a part at once.

    Raises:
        RuntimeError: a fork failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for worker in range(workers):
            child = os.fork()
            if child == 0:
                try:
                    found = list(work(_with_progress(queue[worker::workers], worker == 0)))
                    Path(folder, str(worker)).write_text(json.dumps(found))
                    os._exit(0)
                finally:
                    _say(traceback.format_exc())
                    os._exit(1)
            children.append(child)
        statuses = [os.waitpid(child, 0)[1] for child in children]
        if any(statuses):
            raise RuntimeError("a worker failed")
        return sorted(number for part in Path(folder).iterdir() for number in json.loads(part.read_text()))


def run_tests(tests: Sequence[str], plugins: Sequence[object] = ()) -> int:
    """pytest's status, in this process, in a temporary folder that is removed."""
    import pytest

    scratch = tempfile.mkdtemp(prefix="mutant-")
    try:
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header"]
        options += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
        if not any(name in test for test in tests for name in _LONG_TESTS):
            options += ["-k", " and ".join(f"not {name}" for name in _LONG_TESTS)]
        return int(pytest.main([*options, f"--basetemp={scratch}/pytest", *tests], plugins=list(plugins)))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True)
class Result:
    """What became of a mutant: killed, survived, or not executed by any test."""

    mutant: Mutant
    outcome: str


def run_mutant(mutant: Mutant, code: CodeType, tests: Sequence[str], seconds: float) -> Result:
    """Run the tests on the mutated module."""
    module = mutant.file.removesuffix(".py").replace("/", ".")
    path = REPOSITORY / mutant.file

    def work() -> int:
        sys.meta_path.insert(0, _MutantFinder(module, path, code))
        return run_tests(tests)

    return Result(mutant, "survived" if in_a_fork(work, seconds) == 0 else "killed")


def run_file(
    file: str,
    workers: int,
    mutants: Sequence[tuple[Mutant, CodeType]],
    quick: bool = False,
    note: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Mutants of one file.

    Args:
        quick: what is explained counts as a survivor without being run, and what survives a fork without a fresh import.
        note: called with each result as soon as it is there.

    Raises:
        SystemExit: a test fails without any mutant.
    """
    reasons = explained()
    skipped = [Result(mutant, "survived") for mutant, _ in mutants if quick and mutant.name in reasons]
    for result in skipped:
        note(result)
    mutants = [one for one in mutants if not (quick and one[0].name in reasons)]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "session.json"
        in_a_fork(lambda: run_tests(TESTS[file], [_Session(file, mutants, workers, report, note)]), 24 * 3600)
        session = json.loads(report.read_text()) if report.exists() else {"failed": TESTS[file]}
    if "failed" in session:
        raise SystemExit(f"these fail without a mutant: {' '.join(session['failed'])}")
    outcomes = dict.fromkeys(session["unexecuted"], "not executed")
    believed = {n for n in session["survivors"] if quick or mutants[n][0].name in reasons}
    again = [n for n in (*session["slow"], *session["survivors"]) if n not in believed]
    _say(f"  {len(again)} to be imported anew")

    def imported_anew(numbers: Iterable[int]) -> Iterator[int]:
        for number in numbers:
            (mutant, code), tests = mutants[number], session["tests"][str(number)]
            result = run_mutant(mutant, code, tests, patience(tests, session["seconds"]))
            note(result)
            if result.outcome == "survived":
                _say(f"  survived: line {mutant.line}: {mutant.name}")
                yield number

    outcomes |= dict.fromkeys([*believed, *share_out(again, workers, imported_anew)], "survived")
    return [*skipped, *(Result(mutant, outcomes.get(number, "killed")) for number, (mutant, _) in enumerate(mutants))]


def _definition_lines(file: str) -> set[int]:
    """Lines outside all functions."""
    tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
    inside = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for line in range(node.body[0].lineno, (node.end_lineno or 0) + 1)
    }
    return set(range(1, 100_000)) - inside


def _with_progress(items: Sequence[Any], aloud: bool) -> Iterator[Any]:
    started = time.monotonic()
    for number, item in enumerate(items):
        if aloud and number % 10 == 0:
            _say(f"  {number} of {len(items)} on the first worker, {time.monotonic() - started:.0f} s")
        yield item


# --- results ---


def explained() -> dict[str, str]:
    """Mutant → why no test can or need tell it from the code."""
    rows = yaml.safe_load(EXPLANATIONS.read_text(encoding="utf-8")) if EXPLANATIONS.exists() else None
    return {str(row["mutant"]): str(row["why"]) for row in rows or []}


@dataclass
class Outcome:
    """What became of the faults of one function, or of what is outside all functions."""

    code: str
    """a hash of its source"""
    faults: int
    alive: dict[str, str]
    """the faults that no test noticed: survived, or not executed"""


Outcomes = dict[str, Outcome]


def stored(file: str, mutants: Sequence[Mutant]) -> Outcomes:
    """What earlier runs found, by function, of the faults that are still put in."""
    path = _store_of(file)
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    names = {mutant.name for mutant in mutants}
    found = {function: Outcome(**row) for function, row in rows.items()}
    for one in found.values():
        one.alive = {name: outcome for name, outcome in one.alive.items() if name in names}
    return found


def store(file: str, outcomes: Outcomes) -> None:
    """Keep what became of a file's faults."""
    RESULTS.mkdir(exist_ok=True)
    rows = {function: asdict(outcomes[function]) for function in sorted(outcomes)}
    _store_of(file).write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _store_of(file: str) -> Path:
    return RESULTS / f"{file.removesuffix('.py').replace('/', '.')}.json"


def current(file: str, mutants: Sequence[Mutant]) -> Outcomes:
    """The functions as they are now, as though all their faults were killed."""
    sources = _sources(file)
    found: Outcomes = {}
    for mutant in mutants:
        one = found.setdefault(mutant.function, Outcome(sources.get(mutant.function, ""), 0, {}))
        one.faults += 1
        one.code += "" if mutant.function in sources else mutant.name.removeprefix(f"{file} ")  # which may move
    for one in found.values():
        one.code = hashlib.sha256(one.code.encode()).hexdigest()[:12]
    return found


def _sources(file: str) -> dict[str, str]:
    """Function → its code without comments and docstring."""
    tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
    sources = {}
    for _, node, function, _ in _places(tree, (), "the module", ""):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            sources[function] = "\n".join(ast.unparse(part) for part in (node.args, *body))
    return sources


def to_run_again(mutants: Sequence[Mutant], earlier: Outcomes, now: Outcomes, reasons: dict[str, str]) -> set[str]:
    """The names of mutants that were alive without an explanation, and of those in functions that have changed since."""
    same = {function for function, one in now.items() if function in earlier and earlier[function].code == one.code}
    return {
        m.name for m in mutants if m.function not in same or m.name in {*earlier[m.function].alive} - reasons.keys()
    }


def merged(earlier: Outcomes, now: Outcomes, results: Sequence[Result]) -> Outcomes:
    """Earlier results of functions that are the same, with the new ones in their place.

    A function that has changed is left out unless all its mutants were run.
    """
    run: dict[str, list[Result]] = {}
    for result in results:
        run.setdefault(result.mutant.function, []).append(result)
    found: Outcomes = {}
    for function, one in now.items():
        before, mine = earlier.get(function), run.get(function, [])
        alive = {result.mutant.name: result.outcome for result in mine if result.outcome != "killed"}
        if before is not None and before.code == one.code:
            names = {result.mutant.name for result in mine}
            alive |= {name: outcome for name, outcome in before.alive.items() if name not in names}
        elif len(mine) < one.faults:
            continue
        found[function] = replace(one, alive=alive)
    return found


def _notes_of(file: str) -> Path:
    return REPOSITORY / "build" / "mutation" / f"{_store_of(file).stem}.jsonl"


def note(result: Result, now: Outcomes) -> None:
    """Add a result to the notes of a run, from which one that was cut off resumes."""
    path = _notes_of(result.mutant.file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps([result.mutant.name, now[result.mutant.function].code, result.outcome]) + "\n")


def noted(file: str, mutants: Sequence[Mutant], now: Outcomes) -> list[Result]:
    """The notes of a run that was cut off, of functions that are the same."""
    path = _notes_of(file)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    outcomes = {(name, code): outcome for name, code, outcome in rows}
    found = [(mutant, outcomes.get((mutant.name, now[mutant.function].code))) for mutant in mutants]
    return [Result(mutant, outcome) for mutant, outcome in found if outcome is not None]


def table_row(file: str, outcomes: Outcomes, now: Outcomes, reasons: dict[str, str]) -> str:
    """One line of docs/mutation.md."""
    faults = sum(one.faults for one in now.values())
    alive = [name for function, one in outcomes.items() if function in now for name in one.alive]
    left = sum(name not in reasons for name in alive)
    not_run = sum(
        one.faults for function, one in now.items() if function not in outcomes or outcomes[function].code != one.code
    )
    if not outcomes:
        return f"| `{file}` | {faults} | | | | {faults} |"
    return f"| `{file}` | {faults} | {faults - not_run - len(alive)} | {len(alive) - left} | {left} | {not_run} |"


def write_page() -> None:
    """docs/mutation.md: all files, from what is stored of them."""
    reasons = explained()
    rows = []
    for file in TESTS:
        mutants = list_mutants(file)
        now = current(file, mutants)
        outcomes = {
            name: one for name, one in stored(file, mutants).items() if name in now and now[name].code == one.code
        }
        rows.append(table_row(file, outcomes, now, reasons))
    text = (
        "# Mutation\n\n"
        "`make mutation` puts small faults into the code that figures rest on, one at a time (`tests/mutation.py` says\n"
        "which), and runs the tests that execute the line. A fault is killed if one of them fails. What survives is\n"
        "explained in `tests/mutation.yaml`: such a fault changes nothing that can be seen, or no figure. Faults in\n"
        "functions that have changed since they were last run count as not run.\n\n"
        "| file | faults | killed | explained | neither | not run |\n|---|---|---|---|---|---|\n"
    )
    PAGE.write_text(text + "".join(f"{row}\n" for row in rows), encoding="utf-8")


def _say(text: str) -> None:
    os.write(_STDERR, f"{text}\n".encode())


def main() -> None:
    """Run the mutants of the files given, or of all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="*", help=f"of {', '.join(TESTS)}")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--only", default="", help="mutants whose name holds this text")
    parser.add_argument(
        "--again", action="store_true", help="unexplained survivors, and functions that have changed since"
    )
    parser.add_argument("--quick", action="store_true", help="believe explanations, and what survives a fork")
    parser.add_argument("--list", action="store_true", help="list the mutants and run none")
    parser.add_argument("--page", action="store_true", help="run none, write docs/mutation.md")
    options = parser.parse_args()
    files = options.files or list(TESTS)
    unknown = [file for file in files if file not in TESTS]
    if unknown:
        parser.error(f"no tests are named for {', '.join(unknown)}")
    if options.list:
        for file in files:
            for mutant in list_mutants(file):
                print(f"{mutant.line}: {mutant.name}")
        return
    os.chdir(REPOSITORY)
    left: list[str] = []
    if not options.page:
        preload()
        for file in files:
            left += examine(file, options.workers, options.only, options.again, options.quick)
    write_page()
    names = {mutant.name for file in TESTS for mutant in list_mutants(file)}
    left += [f"explained, but not a fault of the code: {name}" for name in explained() if name not in names]
    print("\n".join(left))
    raise SystemExit(1 if left else 0)


def examine(file: str, workers: int, chosen: str, again: bool, quick: bool) -> list[str]:
    """Run a file's mutants, and store what became of them. Returns those that are neither killed nor explained."""
    every, reasons = list_mutants(file), explained()
    earlier, now = stored(file, every), current(file, every)
    names = {mutant.name for mutant in every if chosen in mutant.name}
    if again:
        names &= to_run_again(every, earlier, now, reasons)
    before = noted(file, every, now)
    names -= {result.mutant.name for result in before if result.outcome == "killed"}
    results: list[Result] = []
    if names:
        results = run_file(file, workers, mutants_of(file, names), quick, functools.partial(note, now=now))
    latest = {result.mutant.name: result for result in (*before, *results)}
    store(file, merged(earlier, now, list(latest.values())))
    if names and not chosen:
        _notes_of(file).unlink(missing_ok=True)
    fresh = [one for one in results if one.outcome != "killed" and one.mutant.name not in reasons]
    return [f"{one.outcome}: line {one.mutant.line}: {one.mutant.name}" for one in fresh]


if __name__ == "__main__":
    main()
