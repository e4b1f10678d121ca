"""Judgments that pull against the rest, in a campaign: which pairs are listed, and which raters answer for them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from label_support import make_pair, open_store, tiebreak, write_reward_report
from support import write_config, write_rows
from test_label_duels import judge_all

from labeling_ui.quality.pull_reports import PullReports
from labeling_ui.quality.pulls import MOST_SHOWN, LivePulls
from labeling_ui.store.answers import Submission
from labeling_ui.store.leads.rejecting import Selection
from tiebreak.errors import ConfigError

FIRST, SECOND = "first answer", "second answer"


def row(n: int, pull: float, chosen: str, **more: Any) -> dict[str, Any]:
    return {"pair_id": f"pair-{n}", "raters": ["r0", "r1", "r2"], "pull": pull, "chosen": chosen, **more}


def test_raters_answer_for_the_pairs_whose_chosen_answer_they_prefer(tmp_path: Path) -> None:
    """r0 and r1 prefer the first answer everywhere, r2 the second. By hand: r0's pairs are 0, 1 and 3, of which 0 and 3
    pull against the rest; r2's is 2. Pair 4 is a settled one, 9 is of another campaign, and 5 is withdrawn."""
    store = open_store(tmp_path, [make_pair(n) for n in range(7)], overlap=3, raters=3)
    for rater, vote in (("r0", 2), ("r1", 1), ("r2", -2)):
        judge_all(store, rater, vote)
    store.withdraw_pairs(["pair-5"], "typo")
    report = write_reward_report(
        tmp_path / "report",
        [
            row(0, -1.5, FIRST),
            row(1, 0.5, FIRST),
            row(2, -0.5, SECOND),
            row(3, -4.0, FIRST),
            row(4, -0.1, "settled", raters=["lead"], adjudicated=True),
            row(5, -9.0, FIRST),
            row(9, -9.0, FIRST),
        ],
    )
    live = LivePulls(store, PullReports([str(report)]))
    [found] = live()
    assert [(one["item_id"], one["pull"], one["raters"]) for one in found["rows"]] == [
        ("pair-3", -4.0, ["r0", "r1"]),
        ("pair-0", -1.5, ["r0", "r1"]),
        ("pair-2", -0.5, ["r2"]),
        ("pair-4", -0.1, ["lead"]),
    ]
    assert found["rows"][0]["prompt"] == "question 3?"
    assert (found["pairs"], found["against"]) == (7, 4)
    shares = {one["rater"]: (one["value"], one["n"]) for one in found["raters"]}
    assert shares == {"lead": (1.0, 1), "r0": (2 / 3, 3), "r1": (2 / 3, 3), "r2": (1.0, 1)}
    low, high = next(one["interval"] for one in found["raters"] if one["rater"] == "r0")
    assert (round(low, 3), round(high, 3)) == (0.208, 0.939)  # Wilson's interval of 2 in 3
    store.reject(Selection(rater_id="r2"), "asleep")
    assert [one["item_id"] for one in live()[0]["rows"]] == ["pair-3", "pair-0", "pair-4"], "r2's are rejected"


def test_a_ranked_or_edited_answer_is_its_raters_of_the_report(tmp_path: Path) -> None:
    store = open_store(tmp_path, [])
    store.add_pairs([make_pair(0, more=("third",))], overlap=1, seed=0, source="t", source_id="t", ranking=True)
    given = store.claim("r0")
    assert given is not None
    ranking = tuple((name,) for name in given.shown)
    store.submit("r0", Submission(client_id="c", pair_id=given.item_id, ranking=ranking))
    store.add_pairs([make_pair(1)], overlap=1, seed=0, source="u", source_id="u")
    report = write_reward_report(tmp_path / "report", [row(0, -1.0, FIRST), row(1, -0.5, "an edited text")])
    [found] = LivePulls(store, PullReports([str(report)]))()
    assert [one["raters"] for one in found["rows"]] == [["r0", "r1", "r2"]] * 2


def test_only_the_strongest_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    count = MOST_SHOWN + 5
    store = open_store(tmp_path, [make_pair(n) for n in range(count)])
    judge_all(store, "r0", 1)
    report = write_reward_report(tmp_path / "report", [row(n, -1.0 - n, FIRST) for n in range(count)])
    [found] = LivePulls(store, PullReports([str(report)]))()
    assert [one["pull"] for one in found["rows"]] == [-1.0 - n for n in range(count - 1, 4, -1)]
    assert found["against"] == count
    assert LivePulls(store, PullReports())() == []


def test_a_new_report_is_read_without_a_restart(tmp_path: Path) -> None:
    store = open_store(tmp_path, [make_pair(n) for n in range(3)])
    judge_all(store, "r0", 1)
    first, second = (tmp_path / name for name in ("first", "second"))
    config = tmp_path / "label.yaml"

    def name_reports(*folders: Path) -> None:
        config.write_text(yaml.safe_dump({"reward_reports": [str(folder) for folder in folders]}))

    def read_names() -> list[str]:
        try:
            found: list[str] = yaml.safe_load(config.read_text())["reward_reports"]
        except yaml.YAMLError as error:
            raise ConfigError("label.yaml: not YAML") from error
        return found

    name_reports(first)
    write_reward_report(first, [row(0, -1.0, FIRST)])
    live = LivePulls(store, PullReports([str(first)], config, read_names))

    def listed() -> list[tuple[list[str], str]]:
        return [([one["item_id"] for one in found["rows"]], found["problem"][:18]) for found in live()]

    assert listed() == [(["pair-0"], "")]
    shutil.rmtree(first)
    assert listed() == [(["pair-0"], "no finished run in")], "the earlier one stays until there is another"
    write_reward_report(first, [row(1, -1.0, FIRST)])
    assert listed() == [(["pair-1"], "")]
    write_reward_report(second, [row(2, -1.0, FIRST)])
    assert listed() == [(["pair-1"], "")]
    name_reports(first, second)
    assert listed() == [(["pair-1"], ""), (["pair-2"], "")]
    config.write_text("reward_reports: [")
    assert listed()[2] == ([], "label.yaml: not YA")
    name_reports(second)
    assert listed() == [(["pair-2"], "")]


@pytest.mark.parametrize(
    ("stage", "with_pulls", "words"),
    [("reward", True, "is a finished 'reward' run"), ("reward report", False, "--influence_pairs 1000")],
)
def test_what_is_no_report_with_pulls_is_refused(tmp_path: Path, stage: str, with_pulls: bool, words: str) -> None:
    report = write_reward_report(tmp_path / "report", [row(0, -1.0, FIRST)] if with_pulls else None, stage)
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "a?", "response_a": "x", "response_b": "y"}])
    config = write_config(tmp_path / "label.yaml", pairs=pairs, output=tmp_path / "label", reward_reports=[report])
    done = tiebreak("label", "--config", str(config), "--port", "7999", ok=False)
    assert done.returncode == 1
    assert f"reward_reports: {report}" in done.stderr
    assert words in done.stderr
