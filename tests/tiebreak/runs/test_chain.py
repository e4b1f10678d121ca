"""A run's inputs are found after its root was renamed, moved or copied; a chain that cannot be followed is an error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support import run_here

from tiebreak.config import StageConfig
from tiebreak.errors import HandoffError, RunError
from tiebreak.runs.chain import InputFinder, manifest_chain
from tiebreak.runs.run import read_manifest, start_run


class LinkConfig(StageConfig):
    """A stage that reads one thing."""

    data: str


def make(folder: Path | str, data: Path | str, content: str = "made") -> None:
    run = start_run(LinkConfig(output=str(folder), data=str(data)), Path(folder).name, {"data": str(data)})
    (run.final / "result.txt").write_text(content)
    run.finish()


def names(folder: Path | str) -> list[str]:
    return [Path(where).name for where, _ in manifest_chain(folder)]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/a: three runs, each made from the one before, by relative paths as recipes write them."""
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text("{}\n")
    make("runs/a/first", "data.jsonl")
    make("runs/a/second", "runs/a/first", "two")
    make("runs/a/third", "runs/a/second", "three")
    return tmp_path / "runs" / "a"


def forget_paths(root: Path) -> None:
    """As runs of before format 2 were written."""
    for manifest in root.glob("*/manifest.json"):
        record = json.loads(manifest.read_text())
        for one in record["inputs"].values():
            one.pop("path", None)
        manifest.write_text(json.dumps(record))


@pytest.mark.parametrize("older", [False, True])
def test_a_renamed_moved_or_copied_root_keeps_its_chain(root: Path, tmp_path: Path, older: bool) -> None:
    if older:
        forget_paths(root)
    whole = ["first", "second", "third"]
    assert names("runs/a/third") == whole
    root.rename("runs/renamed")
    assert manifest_chain("runs/renamed/third")[0][0] == "runs/renamed/first"
    (tmp_path / "elsewhere").mkdir()
    shutil.move("runs/renamed", tmp_path / "elsewhere" / "deep")
    assert names(tmp_path / "elsewhere" / "deep" / "third") == whole
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "copy")
    shutil.rmtree(tmp_path / "elsewhere")
    assert names(tmp_path / "copy" / "deep" / "third") == whole


def test_a_renamed_run_is_found_by_what_it_holds(root: Path) -> None:
    (root / "first").rename(root / "1st")
    assert names(root / "third") == ["1st", "second", "third"]
    (root.parent / "b").mkdir()
    (root / "1st").rename(root.parent / "b" / "moved")  # beside the root
    assert names("runs/a/third") == ["moved", "second", "third"]


def test_a_run_whose_place_was_taken_is_found_beside_it(root: Path) -> None:
    (root / "first").rename(root / "older")
    make("runs/a/first", "data.jsonl", "another")
    assert names("runs/a/third") == ["older", "second", "third"]
    shutil.rmtree(root / "older")
    with pytest.raises(
        HandoffError, match="runs/a/first now holds another run than the one that runs/a/second was made"
    ):
        manifest_chain("runs/a/third")


def test_a_lost_run_is_an_error_and_not_a_shorter_chain(root: Path) -> None:
    shutil.rmtree(root / "first")
    with pytest.raises(
        RunError, match=r"runs/a/second was made from runs/a/first \(.*its 'data'\), which is not there"
    ):
        manifest_chain("runs/a/third")
    found = manifest_chain("runs/a/third", as_far_as_known=True)
    assert [Path(where).name for where, _ in found] == ["second", "third"]
    status, _ = run_here("inspect", "runs/a/second")
    assert status == 1
    found = InputFinder().find("runs/a/second", *record_and_input("runs/a/second"))
    assert (found.state, found.place) == ("gone", None)


def record_and_input(folder: str) -> tuple[dict[str, object], dict[str, object]]:
    manifest = read_manifest(folder)
    return manifest, manifest["inputs"]["data"]


def test_inspect_says_where_an_input_lies_now(root: Path) -> None:
    from tiebreak.command.inspect import details, inspect_chain

    root.rename("runs/b")
    second = inspect_chain("runs/b/third")[1]
    assert not second.faults
    assert "runs/a/first  (run, " in "\n".join(details(second))
    assert ": same, now runs/b/first)" in "\n".join(details(second))


def test_the_report_of_a_moved_root_keeps_its_chain_and_its_caveats(finished_recipe: Path, tmp_path: Path) -> None:
    """Compared as figures, and with what was left behind gone: then there is no report."""
    moved = tmp_path / "moved"
    shutil.copytree(finished_recipe / "runs", moved, ignore=shutil.ignore_patterns("wandb", "merged", "checkpoints"))
    for manifest in moved.glob("*/manifest.json"):  # as if nothing were left where it was
        manifest.write_text(manifest.read_text().replace(f"{finished_recipe}/runs/", "/nowhere/runs/"))
    words = ("compare", "--evaluation", moved / "evaluate", "--tracking.mode", "disabled", "--output")
    assert run_here(*words, tmp_path / "compare")[0] == 0
    before, after = (
        json.loads((folder / "report.json").read_text())
        for folder in (finished_recipe / "runs" / "compare", tmp_path / "compare")
    )
    assert after["chain"] == before["chain"]
    assert after["headline"]["caveats"] == before["headline"]["caveats"]
    assert [one["stage"] for one in after["chain"]][:2] == ["prepare", "sft"]
    shutil.rmtree(moved / "reward")
    status, message = run_here(*words, tmp_path / "again")
    assert status == 1
    assert "/nowhere/runs/reward" in message
    assert not (tmp_path / "again").exists()
