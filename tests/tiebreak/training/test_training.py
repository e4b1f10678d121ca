"""What the trained stages share, by hand."""

from __future__ import annotations

from tiebreak.config import TrainingConfig
from tiebreak.training.stage import evaluation_rows


def test_evaluation_takes_rows_at_even_distances_and_always_the_same() -> None:
    rows = list("abcdefghij")
    assert evaluation_rows(rows, TrainingConfig()) == rows
    assert evaluation_rows(rows, TrainingConfig(eval_rows=10)) == rows
    assert evaluation_rows(rows, TrainingConfig(eval_rows=4)) == ["a", "c", "f", "h"]
    assert evaluation_rows(rows, TrainingConfig(eval_rows=1)) == ["a"]
    assert evaluation_rows([], TrainingConfig(eval_rows=4)) == []
