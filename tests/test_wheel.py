"""The wheel holds all packages and can be imported from another folder."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from support import REPOSITORY

PACKAGES = ("tiebreak", "sft", "labeling_ui", "reward", "preference", "evaluation")


def test_the_wheel_is_whole(tmp_path: Path) -> None:
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            str(tmp_path),
            str(REPOSITORY),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    elsewhere = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(elsewhere)
        names = archive.namelist()
    assert any(name.endswith("LICENSE") for name in names)
    assert not any(name.startswith("tests/") for name in names)
    modules = [".".join(p.relative_to(elsewhere).with_suffix("").parts) for p in elsewhere.rglob("*.py")]
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
        p.relative_to(REPOSITORY) for name in ("configs", "data") for p in (REPOSITORY / name).rglob("*") if p.is_file()
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
    assert "no accelerate configuration 'zero9': one of cpu, cpu_zero2, " in result.stderr, result.stderr[-3000:]
    assert (work / "runs" / "quickstart" / "prepare" / "manifest.json").is_file()
    assert (work / "mine" / "pipeline.yaml").is_file()
