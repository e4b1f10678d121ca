"""The audit trail, over runs that stages wrote: every change of a line, a file or a run is found."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from study import finished
from support import read_rows, run_here

from tiebreak.command.audit import main as audit
from tiebreak.command.pipeline import _move_aside
from tiebreak.runs.audit import FIRST


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIEBREAK_COMMAND", "tiebreak sft --config a.yaml")
    root = tmp_path / "runs"
    assert run_here("audit", "begin", root)[0] == 0
    sft = finished(root / "sft", "sft", {"policy": "org/base"})
    finished(root / "round-1" / "dpo", "dpo", {"policy": sft})
    return root


def verified(root: Path, *words: str) -> tuple[int, str]:
    return run_here("audit", "verify", root, *words)


def test_stages_are_recorded_in_a_chain_that_is_recomputed_by_hand(root: Path) -> None:
    rows = read_rows(root / "audit.jsonl")
    assert [(row["event"], row.get("folder")) for row in rows] == [
        ("begun", None),
        ("started", "sft"),
        ("finished", "sft"),
        ("started", "round-1/dpo"),
        ("finished", "round-1/dpo"),
    ]
    assert {row.get("command") for row in rows[1:]} == {"tiebreak sft --config a.yaml"}
    before = FIRST
    for row in rows:
        stated = row.pop("hash")
        assert row["previous"] == before
        text = json.dumps(row, ensure_ascii=False, sort_keys=True)
        assert hashlib.sha256(text.encode()).hexdigest() == stated
        before = stated
    manifest = json.loads((root / "sft" / "manifest.json").read_text())
    assert (rows[2]["id"], rows[2]["outputs"]) == (manifest["id"], manifest["outputs"])
    assert rows[4]["inputs"] == {"policy": manifest["id"]}
    assert verified(root)[0] == verified(root, "--head", before)[0] == 0
    assert "no line has the hash abc" in verified(root, "--head", "abc")[1]


def test_every_change_is_found(root: Path) -> None:
    trail = root / "audit.jsonl"
    lines = trail.read_text().splitlines(keepends=True)
    head = json.loads(lines[-1])["hash"]
    for changed, words in (
        ([lines[0], lines[1].replace('"started"', '"resumed"'), *lines[2:]], "line 2 was changed"),
        ([*lines[:2], *lines[3:]], "line 3 does not follow"),
        ([lines[0], lines[2], lines[1], *lines[3:]], "line 2 does not follow"),
        ([*lines[:1], "nonsense\n", *lines[2:]], "line 2 is no event"),
        (lines[:3], f"no line has the hash {head}"),
    ):
        trail.write_text("".join(changed))
        status, message = verified(root, "--head", head)
        assert (status, words in message) == (1, True), message
    trail.write_text("".join(lines))
    output = root / "sft" / "final" / "model.json"
    kept = output.read_bytes()
    output.write_bytes(kept + b" ")
    assert "sft/final/model.json has changed since its stage finished" in verified(root)[1]
    output.write_bytes(kept)
    copied = shutil.copytree(root / "sft", root / "copied")
    assert "copied is a finished run that the trail does not have" in verified(root)[1]
    shutil.rmtree(copied)
    shutil.rmtree(root / "round-1")
    assert "round-1/dpo was finished as" in verified(root)[1]


def test_runs_that_were_there_are_taken_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are checked as the others are, at any depth that the trail records; so is a run after it is moved aside."""
    root = tmp_path / "runs"
    sft = finished(root / "sft", "sft", {"policy": "org/base"})
    finished(root / "rounds" / "round-1" / "dpo", "dpo", {"policy": sft})
    audit(["begin", str(root)])
    assert "after 2 finished runs that were there" in capsys.readouterr().out
    found = {row["folder"]: row for row in read_rows(root / "audit.jsonl") if row["event"] == "found"}
    manifest = json.loads((root / "sft" / "manifest.json").read_text())
    assert set(found) == {"sft", "rounds/round-1/dpo"}
    assert (found["sft"]["id"], found["sft"]["outputs"]) == (manifest["id"], manifest["outputs"])
    assert found["rounds/round-1/dpo"]["inputs"] == {"policy": manifest["id"]}
    audit(["verify", str(root)])
    assert "0 finished runs, 2 runs older than the trail, nothing changed" in capsys.readouterr().out
    copied = shutil.copytree(root / "sft", root / "rounds" / "round-1" / "sft")
    assert "rounds/round-1/sft is a finished run that the trail does not have" in verified(root)[1]
    shutil.rmtree(copied)
    (root / "rounds" / "round-1" / "dpo" / "final" / "model.json").write_text("{}")
    assert "rounds/round-1/dpo/final/model.json has changed" in verified(root)[1]


def test_a_run_that_is_moved_aside_is_known_there(root: Path) -> None:
    _move_aside(root / "sft")
    assert verified(root)[0] == 0
    finished(root / "sft", "sft", {"policy": "org/other"})
    assert verified(root)[0] == 0
    _move_aside(root / "sft")
    assert verified(root)[0] == 0
    (root / "sft.replaced-2" / "manifest.json").write_text("{")
    assert "sft.replaced-2 was finished as" in verified(root)[1]
    assert "its manifest.json cannot be read (JSONDecodeError" in verified(root)[1]


def test_without_a_trail_nothing_is_written_and_a_second_one_is_refused(root: Path, tmp_path: Path) -> None:
    finished(tmp_path / "elsewhere" / "sft", "sft", {"policy": "org/base"})
    assert not list(tmp_path.glob("elsewhere/**/audit.jsonl"))
    assert "exists: runs below" in run_here("audit", "begin", root)[1]
    assert "tiebreak audit begin" in verified(tmp_path / "elsewhere")[1]
    assert run_here("audit")[0] == 2
