"""Users' functions: where they are looked for, and what is refused before any work is done."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiebreak.errors import ConfigError
from tiebreak.measures.functions import load_function, require_arguments, where_raised


@pytest.fixture(autouse=True)
def untouched_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The current folder is empty, and what a test imports is forgotten."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(folder: Path, name: str, source: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(source)
    return folder / name


def test_a_function_is_found_beside_the_configuration_then_in_the_current_folder(tmp_path: Path) -> None:
    here = write(Path.cwd(), "grades.py", "def grade(prompt, answer):\n    return 1.0\n")
    found = load_function("grades:grade", "yardstick", tmp_path / "configs")
    assert (found.call("", ""), found.file) == (1.0, str(here))
    beside = write(tmp_path / "configs", "grades.py", "def grade(prompt, answer):\n    return 2.0\n")
    found = load_function("grades:grade", "yardstick", tmp_path / "configs")
    assert (found.call("", ""), found.file) == (2.0, str(beside))
    write(
        tmp_path / "configs", "grades.py", "def grade(prompt, answer):\n    return 3.0\n"
    )  # as long, in the same second
    assert load_function("grades:grade", "yardstick", tmp_path / "configs").call("", "") == 3.0


def test_a_module_finds_its_neighbours_and_is_executed_once(tmp_path: Path) -> None:
    write(tmp_path, "neighbour.py", "POINTS = 4.0\n")
    source = "import neighbour\nfrom pathlib import Path\nfile = Path('loads')\n"
    source += "file.write_text(file.read_text() + 'x' if file.exists() else 'x')\n"
    write(tmp_path, "with_neighbour.py", source + "def grade(p, a):\n    return neighbour.POINTS\n")
    for _ in range(2):
        assert load_function("with_neighbour:grade", "yardstick", tmp_path).call("", "") == 4.0
    assert Path("loads").read_text() == "x"


def test_a_package_and_a_class_are_places_too(tmp_path: Path) -> None:
    source = "class Judge:\n    def __call__(self, prompt, answer):\n        return 5.0\n    @staticmethod\n"
    source += "    def plain(prompt, answer):\n        return 6.0\njudge = Judge()\n"
    file = write(tmp_path / "measures", "judges.py", source)
    write(tmp_path / "measures", "__init__.py", "")
    found = load_function("measures.judges:judge", "yardstick", tmp_path)
    assert (found.call("", ""), found.file) == (5.0, str(file))
    assert load_function("measures.judges:Judge.plain", "yardstick", tmp_path).call("", "") == 6.0


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        (
            "absent:grade",
            None,
            r"no module .absent. for absent:grade, neither beside the config.*nor in the cur",
        ),
        (
            "broken:grade",
            "import no_such_package\n",
            "importing broken for broken:grade needs the module 'no_such_pack",
        ),
        ("broken:grade", "def grade(:\n", r"raised SyntaxError: .*broken.py, line 1\)"),
        ("broken:grade", "\nPOINTS = 1 / 0\n", r"raised ZeroDivisionError: division by zero \(.*broken.py, line 2\)"),
        ("broken:grade", "raise SystemExit(3)\n", r"raised SystemExit: 3 \(.*broken.py, line 1\)"),
        (
            "broken:grade",
            "def grades(p, a): ...\n",
            r"broken has no function 'grade'; is it 'grades'\? \(.*broken.py\)",
        ),
        ("broken:grade", "grade = 3\n", "broken:grade is not a function, but a int"),
        (
            "statistics:grade",
            "def grade(p, a): ...\n",
            "the module name .statistics. of .* is taken by .*: rename",
        ),
    ],
)
def test_what_cannot_be_loaded_is_refused_by_name(name: str, source: str | None, message: str, tmp_path: Path) -> None:
    if source is not None:
        write(tmp_path, f"{name.partition(':')[0]}.py", source)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        load_function(name, "yardstick", tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def grade(answer): ...", r"grade\(answer\) cannot be called as grade\(prompt, answer\): too many positional"),
        ("def grade(p, a, *, model): ...", "missing a required (keyword-only )?argument: 'model'"),
        ("async def grade(p, a): ...", "is asynchronous: give a plain function"),
    ],
)
def test_a_function_that_takes_other_arguments_is_refused(source: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, "arguments.py", source + "\n")
    function = load_function("arguments:grade", "yardstick", tmp_path)
    with pytest.raises(ConfigError, match=message):
        require_arguments(function, "yardstick", "grade(prompt, answer)", "", "")


def test_an_exception_is_placed_in_the_functions_own_file(tmp_path: Path) -> None:
    write(tmp_path, "reader.py", "import json\n\ndef grade(p, a):\n    return json.loads(a)\n")
    function = load_function("reader:grade", "yardstick", tmp_path)
    with pytest.raises(ValueError, match="Expecting value") as caught:
        function.call("", "no JSON")
    assert where_raised(function.call, caught.value) == f"{tmp_path / 'reader.py'}, line 4"
