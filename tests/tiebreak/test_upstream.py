"""Private names of other packages are in tiebreak.upstream alone, and what changes in one of them is an error by name."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peft.tuners.tuners_utils import BaseTunerLayer
from support import REPOSITORY, run_here, write_config
from trl import DPOTrainer

from tiebreak import upstream
from tiebreak.errors import UpstreamError
from tiebreak.stages import STAGES

PACKAGES = ("tiebreak", "sft", "labeling_ui", "reward", "preference", "evaluation")
DOCUMENTED = {"_exit", "_replace", "_make", "_fields", "_asdict"}
"""of os and of named tuples"""
UPSTREAM = ("trl", "transformers", "accelerate", "peft", "torch", "datasets")
PRIVATE = re.compile(r"_[A-Za-z]\w*")


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for package in PACKAGES:
        for file in (REPOSITORY / package).rglob("*.py"):
            yield file.relative_to(REPOSITORY), ast.parse(file.read_text())


def names_of_ours(trees: list[ast.Module]) -> set[str]:
    """All that our own code defines: functions, classes, variables and attributes."""
    names: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            own = isinstance(node, ast.Name) or (isinstance(node.value, ast.Name) and node.value.id == "self")
            names |= {node.id if isinstance(node, ast.Name) else node.attr} if own else set()
    return names


def private_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every private name that a module reads, sets, imports or writes as a string that could be one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and PRIVATE.fullmatch(node.attr):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom):
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from ((node.lineno, part) for part in parts if PRIVATE.fullmatch(part))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
            texts = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            yield from ((node.lineno, each) for each in texts if PRIVATE.fullmatch(each))


@pytest.mark.slow
def test_no_other_module_names_a_private_member_of_another_package() -> None:
    trees = {file: tree for file, tree in modules() if file != Path("tiebreak/upstream.py")}
    ours = names_of_ours(list(trees.values())) | DOCUMENTED
    found = [
        f"{file}:{line} {name}" for file, t in trees.items() for line, name in private_names(t) if name not in ours
    ]
    assert not found


def test_the_search_finds_what_it_looks_for() -> None:
    """Each form in which a private name was in our code before."""
    for line, name in {
        "trainer._save_checkpoint(model)": "_save_checkpoint",
        "layer._active_adapter = [1]": "_active_adapter",
        "from torch.nn.modules.dropout import _DropoutNd": "_DropoutNd",
        "getattr(config, '_attn_implementation', None)": "_attn_implementation",
        "class A(T):\n  def f(self): super()._compute_loss(1)": "_compute_loss",
    }.items():
        tree = ast.parse(line)
        assert [found for _, found in private_names(tree)] == [name]
        assert name not in names_of_ours([tree])


OUR_TRAINERS = (
    "sft.train:PackedSFTTrainer",
    "reward.trainer:PackedRewardTrainer",
    "preference.dpo:CheckedDPOTrainer",
    "preference.ppo.trainer:PPOTrainer",
    "preference.ppo.groups:OurRLOOTrainer",
    "preference.ppo.groups:OurGRPOTrainer",
)


def of_upstream(each: type) -> bool:
    return each.__module__.partition(".")[0] in UPSTREAM


@pytest.mark.parametrize("place", OUR_TRAINERS)
def test_our_trainers_have_no_private_name_that_is_theirs_already(place: str) -> None:
    """A method of ours that happens to be called as one of TRL's would be called by TRL."""
    module, _, name = place.partition(":")
    trainer = getattr(importlib.import_module(module), name)
    theirs: set[str] = set()
    for each in filter(of_upstream, trainer.__mro__):
        theirs |= vars(each).keys()
        theirs |= {
            name for value in vars(each).values() if inspect.isfunction(value) for name in value.__code__.co_names
        }
    for each in trainer.__mro__:
        if not of_upstream(each) and each.__module__ != "tiebreak.upstream":
            own = {*vars(each), *(n for f in vars(each).values() if inspect.isfunction(f) for n in sets(f))}
            assert not {n for n in own & theirs if PRIVATE.fullmatch(n)}, each


def sets(function: Any) -> set[str]:
    """The attributes of itself that a method sets."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }


def test_what_rests_on_each_name_is_there() -> None:
    for name in (name for names in upstream.NAMES.values() for name in names):
        module, _, what = name.serves.rpartition(".")
        assert hasattr(importlib.import_module(module), what), name.serves
        assert name.why


def test_versions_are_those_of_the_constraints_and_of_the_ranges() -> None:
    pinned = dict(
        line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if "==" in line
    )
    assert {package: pinned[package] for package in upstream.TESTED} == dict(upstream.TESTED)
    needed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]["train"]
    ranges = {re.split(r"[~><=;]", one)[0]: one for one in needed}
    for package in ("trl", "transformers", "peft", "accelerate"):  # the next minor version may rename what is private
        minor = ".".join(upstream.TESTED[package].split(".")[:2])
        assert ranges[package] == f"{package}~={minor}.0"


def test_the_command_reports_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        upstream.main()
    assert not ended.value.code
    assert capsys.readouterr().out.endswith("every private name is as expected\n")


# --- a package that changed


def _two_arguments(self: Any, model: Any, batch: Any) -> None:
    """In place of DPOTrainer._compute_loss."""


def test_a_stage_whose_trainer_changed_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(DPOTrainer, "_compute_loss", _two_arguments)
    monkeypatch.delitem(sys.modules, "preference.dpo", raising=False)
    config = write_config(tmp_path / "dpo.yaml", output=tmp_path / "dpo", policy="nobody", preferences="none.jsonl")
    status, message = run_here("dpo", "--config", config)
    assert status == 1
    assert message == (
        f"error: trl {upstream.installed('trl')} is not what Tiebreak was written for\n"
        "  trl.trainer.dpo_trainer:DPOTrainer._compute_loss takes (self, model, batch), not (self, model, inputs, "
        "return_outputs): preference.dpo.CheckedDPOTrainer depends on it\n"
        "  Tiebreak is tested with trl 1.16.0: pip install 'trl==1.16.0'\n"
    )


@pytest.mark.parametrize(
    "module", [stage.module for stage in STAGES.values() if stage.trains or stage.name in ("sample", "evaluate")]
)
def test_a_module_that_cannot_be_imported_ends_in_a_message(module: str, tmp_path: Path) -> None:
    """As `accelerate launch -m preference.dpo` runs it: its imports come before its `main`."""
    raising = "from tiebreak.errors import UpstreamError\n\nraise UpstreamError('torch 9 is not what is needed')\n"
    for package in ("torch", "transformers", "trl"):
        (tmp_path / f"{package}.py").write_text(raising)
    paths = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    command = [sys.executable, "-m", module.removesuffix(".train") if module.endswith("ppo.train") else module]
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (1, "error: torch 9 is not what is needed\n")


def test_a_name_that_is_gone_is_refused_where_it_is_used_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "_right", set())
    for each in BaseTunerLayer.__mro__[:1]:
        monkeypatch.delattr(each, "_active_adapter")
        monkeypatch.delattr(each, "active_adapter")
        monkeypatch.delattr(each, "set_adapter")
        monkeypatch.delattr(each, "delete_adapter")
    gone = r"peft\.tuners\.tuners_utils:BaseTunerLayer\._active_adapter is gone: \S+\.Adapter depends on it"
    with pytest.raises(UpstreamError, match=gone), upstream.adapters_set([], ["default"]):
        pass


def _more(self: Any, given: Any, needed: Any) -> None:
    """A method that needs an argument more."""


def _optional(self: Any, given: Any, wished: Any = None, **others: Any) -> None:
    """A method with an argument more that has a default."""


@pytest.mark.parametrize(
    ("method", "takes", "right"),
    [
        (_more, ("self", "given"), False),
        (_more, ("self", "given", "…"), True),
        (_optional, ("self", "given"), True),
        (_optional, ("self", "wished"), False),
        (_optional, ("self", "given", "wished", "further"), False),
    ],
)
def test_a_method_is_right_where_our_call_is(
    monkeypatch: pytest.MonkeyPatch, method: Any, takes: tuple[str, ...], right: bool
) -> None:
    monkeypatch.setattr(DPOTrainer, "compute_loss", method)
    name = upstream.Name("trl.trainer.dpo_trainer:DPOTrainer.compute_loss", "a.b", "", takes)
    assert (not upstream.fault_of(name)) == right
