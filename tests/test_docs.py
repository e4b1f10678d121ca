"""The documentation says what the code does: its commands parse, its links lead somewhere, its reference is current."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from support import REPOSITORY, read_rows

from tiebreak import __version__
from tiebreak.command.hardware import take_launch_flags, take_preflight
from tiebreak.command.help import configuration_class
from tiebreak.command.reference import FOLDER, INDEX, reference_pages
from tiebreak.command.table import COMMANDS, find_command
from tiebreak.config import take_config_flag
from tiebreak.config.flags import group_flags, lay_over
from tiebreak.shipped import find_shipped

PACKAGES = ("tiebreak", "sft", "labeling_ui", "reward", "preference", "evaluation")
BESIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
PAGES = [*(REPOSITORY / name for name in BESIDE), *sorted((REPOSITORY / "docs").rglob("*.md"))]
GENERATED = REPOSITORY / FOLDER
INLINE = re.compile(r"(?<!`)`(tiebreak [^`]+)`")
PLACEHOLDERS = re.compile(r"\b(COMMAND|SUBCOMMAND|STAGE)\b|…|\|")


def commands_in(page: Path) -> Iterator[str]:
    """The `tiebreak …` lines of a page's code blocks, and those inside its sentences; none with parts left open."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"\\\n +", "", text)
    lines = [line.strip().removeprefix("$ ") for line in text.splitlines()]
    found = [line.split("  #")[0] for line in lines if line.startswith("tiebreak ")]
    found += [" ".join(one.split()) for one in INLINE.findall(text)]
    yield from dict.fromkeys(one.strip() for one in found if not PLACEHOLDERS.search(one))


COMMAND_LINES = [
    pytest.param(line, id=f"{page.name}: {line}")
    for page in PAGES
    if page.parent != GENERATED
    for line in commands_in(page)
]


def launch_faults(name: str | None) -> list[str]:
    """Whether accelerate's configuration of that name is shipped."""
    if not name or find_shipped(Path("configs/accelerate") / f"{name}.yaml").is_file():
        return []
    return [f"no such accelerate configuration: {name}"]


def without_positional(names: str, words: list[str]) -> list[str]:
    """A command's words less its positional ones. `names`: as in help; with … at its end, any number of them."""
    bare = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
    return words[len(bare) if names.endswith("…") else min(len(names.split()), len(bare)) :]


def refused(line: str) -> list[str]:
    """What the parser finds wrong with a command: the command itself, its flags, its files."""
    words = shlex.split(line)[1:]
    if words[0] not in COMMANDS:
        return [] if words[0] in ("--help", "--version") else [f"no such command: {words[0]}"]
    name, command, rest = find_command(words)
    if "--help" in rest or not command.configuration:
        return []
    path, rest = take_config_flag(rest, name)
    if name == "compare" and rest and not rest[0].startswith("--"):  # compare RUNS… is compare overview RUNS…
        name, command, rest = find_command([name, "overview", *rest])
    rest = without_positional(command.positional, rest)
    faults = []
    if path is not None and path.parts[0] == "configs" and not find_shipped(path).is_file():
        faults.append(f"no such file: {path}")
    if command.trains or name == "run":
        rest = take_preflight(rest)[1]
    if command.trains:
        launch, rest = take_launch_flags(rest)
        faults += launch_faults(launch.accelerate)
    for flag, values in group_flags(rest):
        if fault := lay_over({}, configuration_class(command), flag, values):
            faults.append(f"--{flag}: {fault}")
    return faults


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_commands_are_taken_by_the_parser(line: str) -> None:
    assert refused(line) == []


def test_a_wrong_command_would_be_noticed() -> None:
    """The check itself, on commands with one error each."""
    assert refused("tiebreak dpo --betta 1") == ["--betta: no such key; did you mean --beta?"]
    assert refused("tiebreak dpoo") == ["no such command: dpoo"]
    assert refused("tiebreak sft --config configs/quickstart/stf.yaml") == ["no such file: configs/quickstart/stf.yaml"]
    assert refused("tiebreak dpo --accelerate zero9") == ["no such accelerate configuration: zero9"]
    assert refused("tiebreak evaluate --accelerate zero2") != []


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", REPOSITORY / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path, hooks: ModuleType) -> None:
    assert list(hooks.broken_links(page)) == []


def test_a_broken_link_would_be_noticed(hooks: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title, of words\n\n[a](gone.md) [b](#a-title-of-words) [c](#gone) [d](https://x.invalid/y)\n")
    assert list(hooks.broken_links(page)) == ["gone.md", "#gone"]


def test_the_configuration_reference_is_current() -> None:
    pages = {path.name: path.read_text(encoding="utf-8") for path in GENERATED.glob("*.md") if path.name != INDEX}
    stale = [name for name, text in reference_pages().items() if pages.pop(name, None) != text]
    assert stale + list(pages) == [], "run 'python -m tiebreak.command.reference' and commit docs/configuration"


def test_the_reference_has_every_key_with_meaning_default_and_range() -> None:
    pages = reference_pages()
    assert (
        "| `beta` | number > 0 | `0.1` | Weight of the KL to the reference; 0.1 as in Rafailov et al. 2023. orpo:"
        in pages["dpo.md"]
    )
    assert "| `training.learning_rate` | number > 0 | `3e-06` |" in pages["ppo.md"]  # the stage's own default
    assert "| `adapter.method` | `lora`, `qlora`" in pages["sft.md"]
    rows = [line for text in pages.values() for line in text.splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.count(" | ") != 3 or row.endswith("|  |")] == []


def texts_of_the_code() -> list[str]:
    """Every string of the packages, the fixed parts of formatted ones among them."""
    files = [file for package in PACKAGES for file in sorted((REPOSITORY / package).rglob("*.py"))]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_messages_in_troubleshooting_are_those_of_the_code() -> None:
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    tables = page[page.index("## Configuration (") : page.index("## Raters report")]
    cells = [line.split(" | ")[0] for line in tables.splitlines() if line.startswith("| `")]
    quoted = [part.strip() for cell in cells for one in re.findall(r"`([^`]+)`", cell) for part in one.split("…")]
    texts = texts_of_the_code()
    assert len(quoted) > 50
    assert [part for part in quoted if not any(part in text for text in texts)] == []


def figures_of(recipe: Path) -> set[str]:
    """Every name that a finished recipe logs, and that its reports hold for a policy, a change and a reward model."""
    names = set()
    for stage in ("sft", "reward", "dpo", "ppo"):
        names |= {name for row in read_rows(recipe / "runs" / stage / "metrics.jsonl") for name in row}
    compared = json.loads((recipe / "runs" / "compare" / "report.json").read_text(encoding="utf-8"))
    for row in [*compared["policies"].values(), *compared["changes"]]:
        names |= set(row)
    report = json.loads((recipe / "runs" / "reward" / "report.json").read_text(encoding="utf-8"))
    names |= set(report) | set(report["garbage"]) | set(report["calibration"])
    return names


def test_every_figure_is_in_the_glossary(finished_recipe: Path) -> None:
    page = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    listed = {part for code in re.findall(r"`([^`]+)`", page) for part in (code, *code.split("."))}
    names = figures_of(finished_recipe)
    assert len(names) > 80
    assert {name for name in names if not {name, name.removeprefix("eval_")} & listed} == set()


def test_places_that_the_architecture_names_are_there() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.(?:py|js|md))(?:: (\w+))?`", page)
    files = [file for folder in (*PACKAGES, "tests", "docs") for file in (REPOSITORY / folder).rglob("*.*")]
    assert len(named) > 30
    for path, name in named:
        found = [file for file in files if f"/{file.relative_to(REPOSITORY)}".endswith(f"/{path}")]
        assert found, path
        defined = rf"^ *(?:async )?(?:def|class) {name}\b|^{name}\b.* = "
        assert not name or any(re.search(defined, file.read_text("utf-8"), re.MULTILINE) for file in found), (
            path,
            name,
        )


def test_the_citation_names_this_version() -> None:
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(cited["version"]) == __version__


def test_the_site_builds_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    """In strict mode: links between pages, anchors, links of the files beside docs/, and pages outside the navigation."""
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
        pytest.skip("the site is not built here: MkDocs Material is missing (pip install 'tiebreak[docs]')")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    loaded = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//[^\">\s]+")
    assert [found for page in pages for found in loaded.findall(page.read_text(encoding="utf-8"))] == []


def test_every_test_that_a_page_names_exists() -> None:
    defined = {
        name
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    named = {
        (page.name, name)
        for page in PAGES
        for name in re.findall(r"`(test_\w+_\w+_\w+)`", page.read_text(encoding="utf-8"))
    }
    assert len(named) > 40
    assert not {(page, name) for page, name in named if name not in defined}
