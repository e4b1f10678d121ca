"""`require: anonymised`: what is behind the pairs must have been through the step, all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import write_rows

from labeling_ui.configuration import LabelConfig
from labeling_ui.label import read_some_pairs
from sft.configuration import PrepareConfig
from sft.prepare import prepare
from tiebreak.errors import HandoffError
from tiebreak.runs.requirements import require
from tiebreak.runs.run import read_manifest


def prepared(folder: Path, policy: Path, **values: Any) -> str:
    """A prepare run."""
    folder.mkdir()
    rows = write_rows(folder / "rows.jsonl", [{"prompt": "write to a@example.org", "completion": "ok"}])
    prepare(
        PrepareConfig.model_validate(
            {"output": str(folder / "run"), "policy": str(policy), "demonstrations": [str(rows)], **values}
        )
    )
    return str(folder / "run")


def test_a_prepare_run_with_the_step_passes_and_its_manifest_says_how(tmp_path: Path, tiny_model: Path) -> None:
    run = prepared(tmp_path / "a", tiny_model, steps=["anonymise"])
    require(["anonymised"], run)
    assert read_manifest(run)["anonymised"]["mode"] == "tag"
    assert read_manifest(run)["anonymised"]["names"].startswith("names of people were not looked for")


def test_one_without_it_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    run = prepared(tmp_path / "a", tiny_model)
    require([], run)
    with pytest.raises(HandoffError, match=r"was prepared without the step anonymise: prepare the rows with 'steps: "):
        require(["anonymised"], run)


def test_a_file_is_refused_before_anyone_sees_it(tmp_path: Path) -> None:
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "a?", "response_a": "b", "response_b": "c"}])
    values = {"output": str(tmp_path / "label"), "pairs": str(pairs)}
    assert len(read_some_pairs(LabelConfig.model_validate(values))) == 1
    with pytest.raises(HandoffError, match="is not a finished run, so nobody knows what is in it"):
        read_some_pairs(LabelConfig.model_validate({**values, "require": ["anonymised"]}))


def test_the_chain_is_followed_down_to_the_rows(finished_recipe: Path) -> None:
    with pytest.raises(HandoffError, match="prepare was prepared without the step anonymise"):
        require(["anonymised"], str(finished_recipe / "runs" / "sample"))
