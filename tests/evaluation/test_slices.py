"""Figures by slice, by hand; test_evaluate_yardsticks.py has them in a report and on its page."""

from __future__ import annotations

import pytest

from evaluation import slices
from evaluation.slices import figures_by_slice, find_slices
from tiebreak.measures.statistics import win_interval
from tiebreak.messages import Message
from tiebreak.records import Prompt


def asked(n: int, *tags: str, source: str = "") -> Prompt:
    return Prompt(id=f"p{n}", messages=(Message(role="user", content=f"{n}?"),), tags=tags, source=source)


def test_a_slice_is_a_tag_or_a_source_of_ten_prompts_or_more() -> None:
    prompts = [
        asked(n, "lamp" if n < 12 else "shade", "all", f"pair:{n // 2}", source="kb" if n else "rare")
        for n in range(20)
    ]
    drawn = [one for one in prompts for _ in range(2)]  # two answers each
    found = find_slices(drawn)
    assert {name: len(ids) for name, ids in found.items()} == {
        "kb": 19,
        "lamp": 12,
    }  # shade has 8; all prompts are not a slice
    assert found["lamp"] == [f"p{n}" for n in range(12)]


def test_the_largest_slices_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "MOST", 2)
    monkeypatch.setattr(slices, "FEWEST", 1)
    prompts = [asked(0, "b", "a"), asked(1, "b", "c"), asked(2, "c"), asked(3)]
    assert list(find_slices(prompts)) == ["b", "c"]


def test_figures_of_a_slice_by_hand() -> None:
    """On the lamps, dpo wins six of ten prompts, ties three and loses one; on the rest it loses everywhere."""
    prompts = [asked(n, *(["lamp"] if n < 10 else [])) for n in range(15)]
    outcomes = [1.0] * 6 + [0.5] * 3 + [0.0] * 6
    values = {"sft": {f"p{n}": 0.5 for n in range(15)}, "dpo": {f"p{n}": one for n, one in enumerate(outcomes)}}
    found = figures_by_slice(prompts, values, "sft", 0)
    lamp = found["dpo"]["lamp"]
    assert (lamp["n_prompts"], lamp["yardstick_mean"], lamp["win_rate_vs_baseline"]) == (10, 0.75, 0.75)
    assert lamp["win_rate_interval"] == win_interval(6, 3, 1)
    assert lamp["yardstick_interval"][0] < 0.75 < lamp["yardstick_interval"][1]
    assert found["sft"]["lamp"] == {"n_prompts": 10, "yardstick_mean": 0.5, "yardstick_interval": None}
