"""Whose judgments figures about raters are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support import write_rows

from tiebreak.data.judgments import excluded_raters, of_people, read_judgments
from tiebreak.records import ExportedJudgment


def judgment(rater: str, kind: str = "human") -> dict[str, Any]:
    return {"pair_id": "p", "rater_id": rater, "left": "a", "right": "b", "answer": 1, "kind": kind}


def test_raters_that_an_export_left_out_are_left_out(tmp_path: Path) -> None:
    """An export writes everyone's judgments, so that they can be audited."""
    rows = [judgment("r"), judgment("spammer"), judgment("m", "model")]
    file = write_rows(tmp_path / "final" / "judgments.jsonl", rows)
    (tmp_path / "manifest.json").write_text("{}")
    assert excluded_raters(str(tmp_path)) == frozenset()
    (tmp_path / "final" / "report.json").write_text(json.dumps({"aggregation": {"exclude_raters": ["spammer"]}}))
    assert [one.rater_id for one in read_judgments(str(tmp_path))] == ["r", "m"]
    assert [one.rater_id for one in read_judgments(str(file))] == ["r", "spammer", "m"]


def test_simulated_raters_count_only_without_people() -> None:
    rows = [judgment(kind, kind) for kind in ("human", "simulated", "model")]
    found = [ExportedJudgment.model_validate(row) for row in rows]
    assert [one.kind for one in of_people(found)] == ["human"]
    assert [one.kind for one in of_people(found[1:])] == ["simulated"]
