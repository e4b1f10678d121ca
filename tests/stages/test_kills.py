"""A handful of `make kills`."""

from __future__ import annotations

from pathlib import Path

import pytest
from kills import run_kills


@pytest.mark.proof
def test_recipes_killed_at_random_moments_end_as_an_uncut_one(tmp_path: Path) -> None:
    assert run_kills(tmp_path, kills=4, kinds=("", "cpu_zero2")) == 3
