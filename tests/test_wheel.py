"""The wheel holds all packages and can be imported from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from recipe import without_training_packages
from support import REPOSITORY

from tiebreak.extras import INSTALL, TRAINING_PACKAGES

PACKAGES = ("tiebreak", "sft", "labeling_ui", "reward", "preference", "evaluation")


def build_wheel(folder: Path) -> Path:
    """The wheel, built into a folder."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(REPOSITORY)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.skipif("BARE_INSTALL" not in os.environ, reason="a minute of installing: 'make wheel' runs it")
def test_the_wheel_alone_labels_exports_and_compares(finished_recipe: Path, tmp_path: Path) -> None:
    wheel, environment = build_wheel(tmp_path), tmp_path / "venv"
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    constraints = ["--constraint", str(REPOSITORY / "constraints.txt")]
    install = [python, "-m", "pip", "install", "--quiet", *constraints, str(wheel)]
    subprocess.run(install, env=variables, check=True)
    listing = [python, "-m", "pip", "list"]
    installed = subprocess.run(listing, env=variables, check=True, capture_output=True, text=True).stdout
    assert not {line.split()[0].lower() for line in installed.splitlines()} & set(TRAINING_PACKAGES)

    def start(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [environment / "bin" / "tiebreak", *map(str, words)],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )

    without_training_packages(start, finished_recipe / "runs", tmp_path)
    refused = start("dpo", "--config", "configs/quickstart/dpo.yaml")
    assert (refused.returncode, refused.stderr.count(INSTALL)) == (1, 1)


def test_the_wheel_is_whole(tmp_path: Path) -> None:
    (REPOSITORY / "data" / "hydroponics" / "__pycache__").mkdir(exist_ok=True)
    wheel = build_wheel(tmp_path)
    elsewhere = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(elsewhere)
        names = archive.namelist()
    assert any(name.endswith("LICENSE") for name in names)
    assert not any(name.startswith("tests/") or "__pycache__" in name for name in names)
    files = [
        p for p in elsewhere.rglob("*.py") if "shipped" not in p.parts
    ]  # a yardstick among the data is not a module
    modules = [".".join(p.relative_to(elsewhere).with_suffix("").parts) for p in files]
    modules = sorted(m.removesuffix(".__init__") for m in modules if not m.endswith("__main__"))
    code = (
        f"import sys, importlib; sys.path.insert(0, {str(elsewhere)!r})\n"
        f"for name in {modules!r}:\n"
        "    module = importlib.import_module(name)\n"
        f"    assert module.__file__.startswith({str(elsewhere)!r}), module.__file__\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert {m.partition(".")[0] for m in modules} == set(PACKAGES)
    assert (elsewhere / "evaluation").is_dir()
    shipped = {
        p.relative_to(REPOSITORY)
        for name in PACKAGES
        for p in (REPOSITORY / name).rglob("*")
        if p.suffix in (".html", ".css", ".js")
    }
    assert all((elsewhere / path).is_file() for path in shipped)
    ours = [
        p.relative_to(REPOSITORY)
        for name in ("configs", "data")
        for p in (REPOSITORY / name).rglob("*")
        if p.is_file() and p.suffix != ".pyc"
    ]
    assert len(ours) > 15
    assert all(
        (elsewhere / "tiebreak" / "shipped" / path).read_bytes() == (REPOSITORY / path).read_bytes() for path in ours
    )
    code = (
        f"import sys; sys.path.insert(0, {str(elsewhere)!r})\n"
        "from tiebreak.command.cli import main\n"
        "main(['prepare', '--config', 'configs/quickstart/prepare.yaml', '--tracking.mode', 'disabled'])\n"
        "main(['init', 'mine'])\n"
        "main(['dpo', '--config', 'mine/dpo.yaml', '--accelerate', 'zero9'])\n"
    )
    work = tmp_path / "work"
    work.mkdir()
    result = subprocess.run([sys.executable, "-c", code], cwd=work, capture_output=True, text=True, check=False)
    assert "no accelerate configuration 'zero9': expected cpu, cpu_zero1, " in result.stderr, result.stderr[-3000:]
    assert (work / "runs" / "quickstart" / "prepare" / "manifest.json").is_file()
    assert (work / "mine" / "pipeline.yaml").is_file()
