"""A new judge is a module (toy_judge.py) and an entry among the stages: its judgments reach training as a model's."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import read_rows, run_here, write_rows
from toy_judge import JUDGE

from tiebreak.data.reading import read_preferences
from tiebreak.runs.run import read_manifest
from tiebreak.stages import STAGES

SHORT, LONG = "No.", "No: light is what it lacks."


def test_its_judgments_become_preferences_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, JUDGE.name, JUDGE)
    asked = [f"Is mint {number} thirsty?" for number in range(3)]
    sides = [(SHORT, LONG), (LONG, SHORT), (SHORT, SHORT + "!")]
    rows = [{"prompt": p, "response_a": a, "response_b": b} for p, (a, b) in zip(asked, sides, strict=True)]
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    run = ("longest", "--pairs", pairs, "--output", tmp_path / "judged", "--tracking.mode", "disabled")
    status, message = run_here(*run)
    assert status == 0, message
    assert read_manifest(tmp_path / "judged")["kinds"] == {"model": 3}
    judged = {one.prompt[0].text: one for one in read_preferences(str(tmp_path / "judged"))}
    assert {text: one.chosen[0].text for text, one in judged.items()} == dict(
        zip(asked, [LONG, LONG, SHORT + "!"], strict=True)
    )
    assert {one.kind for one in judged.values()} == {"model"}
    assert [row["rater_id"] for row in read_rows(tmp_path / "judged" / "final" / "judgments.jsonl")] == ["length"] * 3
    status, message = run_here(*run)
    assert (status, "nothing to do" in message) == (0, True)
