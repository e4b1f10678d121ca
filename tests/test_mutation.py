"""The mutation run's own rules: which faults it puts in, what is run again, and what the page counts."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutation
import pytest
from mutation import Mutant, Outcome, Result

SOURCE = '''
LEVEL = 0.5

def better(one: int = 1, *, strict: bool) -> bool:
    """Not 1, but text."""
    if strict and one > 2:
        raise ValueError(f"{one + 1}")
    both = dict(zip([one], [one], strict=True))
    return one > LEVEL and one > LEVEL

class Kept:
    share = 2

    def all(self) -> list[int]:
        return [n for n in self.rows[self.start:] if not n]
'''


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "code.py").write_text(SOURCE)
    monkeypatch.setattr(mutation, "REPOSITORY", tmp_path)
    return "code.py"


def test_faults_by_hand(file: str) -> None:
    names = [one.name.removeprefix("code.py ") for one in mutation.list_mutants(file)]
    last = ", in return one > LEVEL and one > LEVEL"
    shown = ", in return [n for n in self.rows[self.start:] if not n]"
    assert names == [
        "the module: 0.5 → 1.5, in LEVEL = 0.5",
        "better: 1 → 2, in def better(one: int=1, *, strict: bool) -> bool:",
        "better: 1 → 0, in def better(one: int=1, *, strict: bool) -> bool:",
        "better: strict and one > 2 → strict or one > 2, in if strict and one > 2:",
        "better: one > 2 → one >= 2, in if strict and one > 2:",
        "better: one > 2 → one <= 2, in if strict and one > 2:",
        "better: 2 → 3, in if strict and one > 2:",
        "better: 2 → 1, in if strict and one > 2:",
        "better: return one > LEVEL and one > LEVEL → return None",
        f"better: one > LEVEL and one > LEVEL → one > LEVEL or one > LEVEL{last}",
        f"better: one > LEVEL → one >= LEVEL{last}",
        f"better: one > LEVEL → one <= LEVEL{last}",
        f"better: one > LEVEL → one >= LEVEL{last} (2)",  # names tell faults apart
        f"better: one > LEVEL → one <= LEVEL{last} (2)",
        "Kept: 2 → 3, in share = 2",
        "Kept: 2 → 1, in share = 2",
        "Kept.all: return [n for n in self.rows[self.start:] if not n] → return None",
        f"Kept.all: self.start: → self.start + 1:{shown}",
        f"Kept.all: self.start: → self.start - 1:{shown}",
        f"Kept.all: not n → n{shown}",
    ]
    full = [f"code.py {name}" for name in names]
    mutants = mutation.mutants_of(file, full)
    assert [one.name for one, _ in mutants] == full
    assert [one.name for one, _ in mutation.mutants_of(file, full[3:5])] == full[3:5]
    original = compile(SOURCE, str(mutation.REPOSITORY / file), "exec")
    assert len({original, *(code for _, code in mutants)}) == len(mutants) + 1  # each is put in, and is taken out again


def test_what_changed_is_run_again_and_the_rest_is_kept(file: str, tmp_path: Path) -> None:
    """A line that moves, a comment and a docstring change no fault; a statement changes those of its function."""
    mutants = mutation.list_mutants(file)
    first = mutation.current(file, mutants)
    assert {name: one.faults for name, one in first.items()} == {
        "the module": 1,
        "better": 13,
        "Kept": 2,
        "Kept.all": 4,
    }
    alive = next(one for one in mutants if one.function == "Kept.all")
    results = [Result(one, "survived" if one == alive else "killed") for one in mutants]
    stored = mutation.merged({}, first, results)
    assert {name: one.alive for name, one in stored.items() if one.alive} == {"Kept.all": {alive.name: "survived"}}
    assert mutation.to_run_again(mutants, stored, first, {}) == {alive.name}
    assert mutation.to_run_again(mutants, stored, first, {alive.name: "why"}) == set()
    assert mutation.table_row(file, stored, first, {}) == "| `code.py` | 20 | 19 | 0 | 1 | 0 |"
    assert mutation.table_row(file, stored, first, {alive.name: "why"}) == "| `code.py` | 20 | 19 | 1 | 0 | 0 |"

    moved = SOURCE.replace("Not 1, but text.", "Other words.").replace("class", "# a comment\n\nclass")
    (tmp_path / file).write_text(moved)
    assert mutation.current(file, mutation.list_mutants(file)) == mutation.current(file, mutants) == first

    (tmp_path / "another.py").write_text(SOURCE)
    assert mutation.current("another.py", mutation.list_mutants("another.py")) == first

    (tmp_path / file).write_text(SOURCE.replace("[one], [one]", "[one], [two]"))
    changed = mutation.list_mutants(file)
    now = mutation.current(file, changed)
    again = mutation.to_run_again(changed, stored, now, {})
    assert again == {alive.name} | {one.name for one in changed if one.function == "better"}
    assert mutation.table_row(file, stored, now, {}) == "| `code.py` | 20 | 6 | 0 | 1 | 13 |"
    # a part of the changed function's faults says nothing of it; all of them do, and what is killed now is alive no more
    some = [Result(one, "killed") for one in changed if one.name in again][:-2]
    assert set(mutation.merged(stored, mutation.current(file, changed), some)) == {"the module", "Kept", "Kept.all"}
    every = [Result(one, "killed") for one in changed if one.name in again]
    found = mutation.merged(stored, mutation.current(file, changed), every)
    assert mutation.table_row(file, found, now, {}) == "| `code.py` | 20 | 20 | 0 | 0 | 0 |"


def test_a_run_that_was_cut_off_resumes(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it killed is not run again, unless the function has changed; what survived is."""
    monkeypatch.setattr(mutation, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(mutation, "EXPLANATIONS", tmp_path / "explained.yaml")
    names = [mutant.name for mutant in mutation.list_mutants(file)]
    alive, shown = names[14], names[17]
    ran: list[list[str]] = []

    def cut_off(*given: Any) -> list[Result]:
        _, _, mutants, _, note = given
        ran.append([mutant.name for mutant, _ in mutants])
        for mutant, _ in mutants[1:17]:
            note(Result(mutant, "survived" if mutant.name == alive else "killed"))
        raise KeyboardInterrupt

    monkeypatch.setattr(mutation, "run_file", cut_off)
    with pytest.raises(KeyboardInterrupt):
        mutation.examine(file, 1, "", again=False, quick=False)
    assert mutation.examine(file, 1, "no such fault", again=False, quick=False) == []  # stores what is there

    def table(reasons: dict[str, str]) -> str:
        mutants = mutation.list_mutants(file)
        return mutation.table_row(file, mutation.stored(file, mutants), mutation.current(file, mutants), reasons)

    assert table({}) == "| `code.py` | 20 | 14 | 0 | 1 | 5 |"  # `better` and the class are complete

    def whole(*given: Any) -> list[Result]:
        _, _, mutants, *_ = given
        ran.append([mutant.name for mutant, _ in mutants])
        return [Result(mutant, "survived" if mutant.name == shown else "killed") for mutant, _ in mutants]

    (tmp_path / file).write_text(SOURCE.replace("[one], [one]", "[one], [two]"))
    monkeypatch.setattr(mutation, "run_file", whole)
    [line] = mutation.examine(file, 1, "", again=False, quick=False)
    assert line.endswith(shown)
    assert ran == [names, [*names[:14], alive, *names[17:]]]
    assert table({shown: "why"}) == "| `code.py` | 20 | 19 | 1 | 0 | 0 |"
    mutation.examine(file, 1, "", again=False, quick=False)
    assert ran[2] == names  # a run that was finished leaves nothing to resume


def test_the_lines_that_a_test_executes() -> None:
    """Of a statement all its lines, of one with a body its head; what a test does not reach is not among them."""
    source = """
def outer(n):
    \"\"\"Text.\"\"\"
    def inner(
        k,
    ):
        return k + \\
            1
    for one in range(
        n
    ):
        if one > 5:
            return None
        elif one == 0:
            continue
    else:
        n += 1
    try:
        return inner(n) / 0
    except ZeroDivisionError:
        return 7
class Kept:
    share = 2
    def half(self):
        return self.share / 2
"""
    found: list[tuple[int, int]] = []
    names: dict[str, Any] = {"executes__": lambda first, last: found.append((first, last))}
    exec(compile(mutation.instrumented(ast.parse(source)), "x", "exec"), names)
    assert found == []
    assert names["outer"](1) == 7
    assert found == [(4, 6), (9, 11), (12, 12), (14, 14), (15, 15), (17, 17), (18, 18), (19, 19), (7, 8), (21, 21)]
    assert names["outer"].__doc__ == "Text."
    assert names["outer"].__code__.co_firstlineno == 2
    found.clear()
    assert names["Kept"]().half() == 1
    assert found == [(25, 25)]


def test_a_file_that_was_not_run_says_so(file: str) -> None:
    now = mutation.current(file, mutation.list_mutants(file))
    assert mutation.table_row(file, {}, now, {}) == "| `code.py` | 20 | | | | 20 |"


def _compute_for_ever() -> int:
    while True:
        pass


def _sleep(seconds: float) -> Callable[[], int]:
    def work() -> int:
        time.sleep(seconds)
        return 7

    return work


def test_a_mutants_patience_is_processor_time() -> None:
    """One that waits for others on a busy machine is not killed by that; one that loops or sleeps for ever is."""
    assert mutation.in_a_fork(lambda: 100, 30) == 100
    assert mutation.in_a_fork(lambda: 1 // 0, 30) == 70
    assert mutation.in_a_fork(_sleep(0.5), 0.1) == 7  # five times its patience by the clock, and no processor time
    assert mutation.in_a_fork(_compute_for_ever, 1) is None
    assert mutation.in_a_fork(_sleep(3600), 0.01) is None


RUN = """
import json
from pathlib import Path
import mutation
import pytest  # forks have it at once
mutation.REPOSITORY, mutation.TESTS = Path.cwd(), {"grow.py": ["test_grow.py"]}
mutation.EXPLANATIONS, mutation.PATIENCE_WITH_A_TEST = Path("explained.yaml"), 0.2
mutants = mutation.mutants_of("grow.py", {mutant.name for mutant in mutation.list_mutants("grow.py")})
print(json.dumps({one.mutant.name: one.outcome for one in mutation.run_file("grow.py", 2, mutants)}))
"""
GROW = """
STEP = 1

def grown(n):
    return n + STEP if n > 0 else 7

def counted(n):
    while n:
        n -= 1
    return n

def unused(x):
    return -x
"""
TESTS_OF_GROW = """
from grow import counted, grown

def test_of_a_loop():
    assert counted(3) == 0

def test_of_5():
    assert grown(5) == 6

def test_of_a_debt():
    assert grown(-5) == 7
"""


def _run(folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    (folder / "grow.py").write_text(GROW)
    (folder / "test_grow.py").write_text(tests)
    paths = os.pathsep.join([str(Path(mutation.__file__).parent), str(folder)])
    return subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_by_hand(tmp_path: Path) -> None:
    """5 and -5 do not tell `>` from `>=`, nor 0 from 1 and -1; the step is outside all functions; one is never called."""
    line, other = "in return n + STEP if n > 0 else 7", "return -x"
    (tmp_path / "explained.yaml").write_text(json.dumps([{"mutant": f"grow.py grown: 0 → 1, {line}", "why": "so"}]))
    run = _run(tmp_path, TESTS_OF_GROW)
    assert run.returncode == 0, run.stderr
    assert "17 mutants, 13 in forks, 2 imported anew" in run.stderr
    assert "4 to be imported anew" in run.stderr  # and two that survive a fork without an explanation
    assert json.loads(run.stdout) == {
        "grow.py the module: 1 → 2, in STEP = 1": "killed",
        "grow.py the module: 1 → 0, in STEP = 1": "killed",
        "grow.py grown: return n + STEP if n > 0 else 7 → return None": "killed",
        f"grow.py grown: n > 0 → n >= 0, {line}": "survived",
        f"grow.py grown: n > 0 → n <= 0, {line}": "killed",
        f"grow.py grown: 0 → 1, {line}": "survived",
        f"grow.py grown: 0 → -1, {line}": "survived",
        f"grow.py grown: n + STEP → n - STEP, {line}": "killed",
        f"grow.py grown: 7 → 8, {line}": "killed",
        f"grow.py grown: 7 → 6, {line}": "killed",
        "grow.py counted: while n: → while not n:": "killed",
        "grow.py counted: n -= 1 → n += 1": "killed",  # for ever
        "grow.py counted: 1 → 2, in n -= 1": "killed",  # for ever, of 3
        "grow.py counted: 1 → 0, in n -= 1": "killed",  # for ever
        "grow.py counted: return n → return None": "killed",
        f"grow.py unused: {other} → return None": "not executed",
        f"grow.py unused: -x → x, in {other}": "not executed",
    }


def test_a_test_that_fails_without_a_fault_ends_the_run(tmp_path: Path) -> None:
    run = _run(tmp_path, TESTS_OF_GROW.replace("== 6", "== 5"))
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == "these fail without a mutant: test_grow.py::test_of_5"


def test_every_file_has_its_tests() -> None:
    for file, tests in mutation.TESTS.items():
        for path in (file, *(one.partition("::")[0] for one in tests)):
            assert (mutation.REPOSITORY / path).is_file(), path
    assert {Outcome("x", 1, {}).code, Mutant("f", 1, "g", "s", "a", "b").name} == {"x", "f g: a → b, in s"}


def test_every_test_of_a_file_under_mutation_exists() -> None:
    """A renamed one would end the file's run before its first fault."""
    for name in {test for tests in mutation.TESTS.values() for test in tests}:
        file, _, function = name.partition("::")
        tree = ast.parse((mutation.REPOSITORY / file).read_text())
        found = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        assert not function or function.partition("[")[0] in found, name
