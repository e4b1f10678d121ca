"""Agreement and calibration in the comparison of runs, from the runs' own reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from study import finished

from evaluation.configuration import OverviewArguments
from evaluation.overview import read_overview
from evaluation.overview.model import Overview
from evaluation.overview.page import build_page
from reward.calibration import cross_fitted, measured
from tiebreak.measures.calibration import bins_by_confidence


def overview(folder: Path) -> Overview:
    return read_overview([str(folder)], OverviewArguments())


def test_reward_models_and_judges_show_whether_their_confidence_is_right(tmp_path: Path) -> None:
    differences, prompts = [2.0, 1.0, -0.5, 0.1], ["a", "b", "c", "d"]  # three of four pairs are right
    scaled = cross_fitted(differences, prompts)
    assert scaled is not None
    found: dict[str, Any] = {
        "temperature": 0.75,
        "before": measured(differences, prompts),
        "after": measured(scaled, prompts),
    }
    finished(
        tmp_path / "reward",
        "reward",
        {},
        {"report.json": {"accuracy": 0.75, "accuracy_interval": [0.3, 0.95], "calibration": found}},
    )
    bins = bins_by_confidence([0.6, 0.6, 0.9, 0.9, 0.9], [1, 0, 1, 1, 0], list("abcde"))
    people = {
        "accuracy": {"value": 0.5, "interval": [0.2, 0.8], "n": 6},  # one tie
        "accuracy_without_ties": {"value": 0.6, "interval": [0.2, 0.9], "n": 5},
        "calibration": {
            "n": 5,
            "ece": 0.18,
            "bins": [{**vars(one), "interval": list(one.interval or ())} for one in bins],
        },
    }
    finished(tmp_path / "judge", "judge", {}, {"report.json": {"people": people}})
    finished(tmp_path / "alone", "judge", {}, {"report.json": {"people": None}}, keys={"beta": 0.1})
    report = overview(tmp_path)
    by_run = {one.run: one for one in report.calibration}
    assert set(by_run) == {"reward", "judge"}
    reward, judge = by_run["reward"], by_run["judge"]
    assert (reward.pairs, reward.accuracy, reward.accuracy_interval) == (4, 0.75, (0.3, 0.95))
    assert (reward.ece, reward.ece_scaled) == (found["before"]["ece"], found["after"]["ece"])
    assert (reward.nll, reward.temperature) == (found["before"]["nll"], 0.75)
    assert (judge.pairs, judge.accuracy, judge.ece) == (5, 0.6, 0.18)
    assert (judge.temperature, judge.nll) == (None, None)
    page = build_page(report)
    assert "confidence 60%, right 50% of 2; confidence 90%, right 67% of 3" in page
    assert page.count("share in which it is right") == 2


def test_a_damaged_report_is_a_note_and_hides_no_other_run(tmp_path: Path) -> None:
    for name, stage, content in (("reward", "reward", "{"), ("label", "label", "[1]")):
        folder = finished(tmp_path / name, stage, {})
        (Path(folder) / "final" / "report.json").write_text(content)
    measures = {"percent_with_ties": {"value": 0.7, "n": 10, "interval": [0.5, 0.9]}}
    whole = {"judgments": {"raters": 3, "kinds": {"human": 10}}, "agreement": {"human": measures}}
    finished(tmp_path / "whole", "label", {}, {"report.json": whole}, keys={"beta": 0.1})
    report = overview(tmp_path)
    notes = {one.name: one.notes for one in report.runs}
    assert [one.run for one in report.agreement] == ["whole"]
    assert report.agreement[0].judgments == 10
    assert notes["whole"] == []
    for name, why in (("reward", "Expecting property name"), ("label", "an object is expected, not list")):
        (note,) = notes[name]
        assert str(tmp_path / name / "final" / "report.json") in note
        assert why in note
    assert "its report cannot be read" in build_page(report)
    assert json.loads(report.model_dump_json())["calibration"] == []
