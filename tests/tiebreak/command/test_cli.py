"""The command line's face: quick, light, and helpful to whoever mistypes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
from support import REPOSITORY, run_command, run_here

from tiebreak import __version__
from tiebreak.command.cli import help_page
from tiebreak.command.table import COMMANDS
from tiebreak.stages import STAGES

HEAVY = ("torch", "transformers", "trl", "peft", "gradio", "fastapi", "wandb", "datasets", "numpy", "pydantic", "yaml")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from tiebreak.command.cli import main; main(['--help']); "
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "HEAVY []"
    assert all(f"  {name} " in shown.stdout for name in COMMANDS)


@pytest.mark.parametrize("words", [(), ("-h",), ("help",)])
def test_help_by_other_names(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    from tiebreak.command.cli import main

    main(words)
    assert capsys.readouterr().out.strip() == help_page().strip()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from tiebreak.command.cli import main

    main(["--version"])
    assert capsys.readouterr().out.strip() == __version__


def test_an_unknown_command_is_answered_with_the_nearest() -> None:
    result = run_command("evalaute", "--config", "x.yaml")
    assert result.returncode == 2
    assert (
        result.stderr.strip()
        == "error: no such command: evalaute; did you mean evaluate? ('tiebreak --help' lists them)"
    )
    assert result.stdout == ""
    assert "did you mean" not in run_command("zzzz").stderr


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("label", "exprot"), "label exprot; did you mean label export? ('tiebreak label --help' lists them)"),
        (("raters", "zzzz"), "raters zzzz ('tiebreak raters --help' lists them)"),
    ],
)
def test_an_unknown_subcommand_too(words: tuple[str, ...], answer: str) -> None:
    status, printed = run_here(*words)
    assert (status, printed.strip()) == (2, f"error: no such command: {answer}")


def test_the_help_page_is_in_groups() -> None:
    groups = {part.splitlines()[0]: part.splitlines()[1:] for part in help_page().split("\n\n")}
    assert [line.split()[0] for line in groups["recipes"]] == ["init", "run", "rounds"]
    assert [line.split()[0] for line in groups["stages"]] == list(STAGES)
    assert groups["other commands"]


def test_every_command_has_its_module() -> None:
    for command in COMMANDS.values():
        assert importlib.util.find_spec(command.module) is not None, command


def test_accelerate_is_for_stages_that_run_on_several_devices() -> None:
    result = run_command("prepare", "--config", "x.yaml", "--accelerate", "cpu")
    assert (result.returncode, result.stdout) == (2, "")
    assert "runs in one process" in result.stderr
    result = run_command("dpo", "--accelerate", "zero9", "--config", "configs/quickstart/dpo.yaml")
    assert result.returncode == 2
    assert "no accelerate configuration 'zero9': expected cpu, cpu_zero1" in result.stderr
    for words in (["--accelerate"], ["--accelerate", "--beta", "1"], ["--accelerate="]):
        assert "--accelerate needs a name: one of cpu, " in run_command("dpo", *words).stderr


def test_the_readme_names_every_command() -> None:
    readme = REPOSITORY / "README.md"
    if not readme.exists():
        pytest.skip("no README.md yet")
    text = readme.read_text()
    assert [name for name in COMMANDS if f"tiebreak {name}" not in text and f"`{name}`" not in text] == []
