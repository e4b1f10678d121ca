"""What the report claims: verdicts, where each policy came from, warnings of the training, a yardstick of any scale."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from test_compare import answer, hand_rows, report_of, write_evaluation, write_recipe, write_run

from evaluation.compare import summary_table
from evaluation.compare.lineage import Lineage, Origin
from evaluation.compare.reading import Answer, Evaluation, Link, PolicyFigures
from evaluation.compare.verdicts import (
    Verdict,
    Verdicts,
    _synthetic_caveats,
    find_verdicts,
    guard_decision,
    headline,
    verdict,
)
from evaluation.evaluate import to_metrics
from tiebreak.errors import HandoffError
from tiebreak.files import write_json


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows_against_sft(**outcomes: tuple[int, int, int]) -> list[dict[str, Any]]:
    """Policies by how often they win, tie and lose against SFT, which meets three of six criteria everywhere."""
    n = sum(next(iter(outcomes.values())))
    rows = [answer(prompt, "sft", 3, "a", 0.0, 0.0) for prompt in range(n)]
    for name, (wins, ties, _) in outcomes.items():
        met = [4 if prompt < wins else 3 if prompt < wins + ties else 2 for prompt in range(n)]
        rows += [answer(prompt, name, met[prompt], "b", 0.0, 1.0) for prompt in range(n)]
    return rows


def headline_of(folder: str, rows: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    headline: dict[str, Any] = report_of(write_evaluation(Path(folder), rows, {}), f"{folder}-report", **keys)[
        "headline"
    ]
    return headline


def evaluated(
    policies: dict[str, list[float]], baseline: str = "sft", inputs: dict[str, str] | None = None
) -> Evaluation:
    """Policies' values by prompt, with the ids of the runs or models that they are."""
    figures = {
        name: PolicyFigures(
            **dict.fromkeys(("yardstick_mean", "rubric_mean", "length_tokens_mean"), 1.0),
            **dict.fromkeys(("yardstick_interval", "rubric_interval"), None),
            n_prompts=len(values),
        )
        for name, values in policies.items()
    }
    answers = [
        Answer(prompt_id=str(n), messages=(), policy=name, text="", yardstick_score=value, length_tokens=1)
        for name, values in policies.items()
        for n, value in enumerate(values)
    ]
    ids = {f"policy_{name}": {"id": one, "source": one} for name, one in (inputs or {}).items()}
    return Evaluation(
        "evaluate", {"inputs": ids}, figures, baseline, "rubric", "Rubric score", (0, 1), {}, (), tuple(answers)
    )


def values_of(wins: int, ties: int, losses: int) -> list[float]:
    """Against a baseline that has ½ everywhere."""
    return [1.0] * wins + [0.5] * ties + [0.0] * losses


def against_sft(**outcomes: tuple[int, int, int]) -> Evaluation:
    n = sum(next(iter(outcomes.values())))
    return evaluated({"sft": [0.5] * n} | {name: values_of(*one) for name, one in outcomes.items()})


def link(stage: str, run: str = "", inputs: dict[str, str] | None = None, **manifest: Any) -> Link:
    """A finished run of this id."""
    named = {name: {"id": one, "source": f"runs/{one}"} for name, one in (inputs or {}).items()}
    return Link(f"runs/{run or stage}", {"stage": stage, "id": run or stage, "inputs": named, **manifest})


def caveats_of(links: list[Link], policies: dict[str, str] | None = None, kinds: tuple[str, ...] = ("human",)) -> Any:
    one = evaluated(dict.fromkeys(policies or {"sft": "sft"}, [0.5] * 30), inputs=policies)
    return headline({"one": one}, {"one": links}, kinds)["caveats"]


# --- verdicts ---


def test_the_words_of_an_interval_alone() -> None:
    assert [verdict(one) for one in ((0.51, 0.9), (0.1, 0.49), (0.4, 0.6), None)] == [
        "better",
        "worse",
        "undecided",
        "unknown",
    ]
    assert verdict((0.5, 0.9)) == verdict((0.1, 0.5)) == "undecided"  # an end on the even 50% does not exclude it


def test_what_a_verdict_says_in_the_report() -> None:
    assert Verdict("unknown").figures() == {"verdict": "unknown", "p_value": None, "comparisons": 1}
    assert Verdict("better", None, 0.03, 2).figures() == {"verdict": "better", "p_value": 0.03, "comparisons": 2}


@pytest.mark.parametrize(
    ("outcomes", "claim"),
    [
        ({"dpo": (30, 0, 0)}, "DPO wins more often than SFT"),
        ({"dpo": (30, 0, 0), "ppo": (29, 0, 1)}, "DPO and PPO win more often than SFT"),
        ({"dpo": (0, 0, 30)}, "DPO loses more often than it wins against SFT"),
        ({"dpo": (0, 0, 30), "x": (1, 0, 29)}, "DPO and x lose more often than they win against SFT"),
        ({"dpo": (15, 0, 15)}, "DPO shows no clear difference from SFT"),
        ({"a": (0, 30, 0), "b": (16, 0, 14), "c": (1, 29, 0)}, "a, b and c show no clear difference from SFT"),
        (
            {"a": (15, 0, 15), "b": (0, 0, 30), "c": (30, 0, 0)},
            "c wins more often than SFT; b loses more often than it wins against SFT; a shows no clear difference from SFT",
        ),
        ({"a": (29, 0, 0), "b": (0, 0, 29)}, "29 prompts are too few to compare a and b with SFT"),
        ({"a": (1, 0, 0)}, "1 prompt is too few to compare a with SFT"),
    ],
)
def test_claims_by_hand(outcomes: dict[str, tuple[int, int, int]], claim: str) -> None:
    assert headline({"one": against_sft(**outcomes)}, {"one": []}, ["human"])["claim"] == claim


def test_the_fewest_prompts_of_a_claim() -> None:
    """Policies may have been measured on other numbers of prompts."""
    one = evaluated({"sft": [0.5] * 29, "a": [1.0] * 20, "b": [1.0] * 29})
    assert (
        headline({"one": one}, {"one": []}, ["human"])["claim"] == "20 prompts are too few to compare a and b with SFT"
    )


def test_without_its_baseline_nothing_is_compared() -> None:
    one = evaluated({"dpo": [0.5] * 30, "ppo": [1.0] * 30}, baseline="sft")
    unknown = {"dpo": Verdict("unknown"), "ppo": Verdict("unknown")}
    assert find_verdicts({"one": one}, {"one": []}) == {"one": Verdicts(unknown, {})}
    found = headline({"one": one}, {"one": []}, ["human"])
    assert found["claim"] == "DPO and PPO were not compared with SFT"
    assert found["sentences"] == ["DPO: no win rate was measured.", "PPO: no win rate was measured."]
    assert headline({"one": evaluated({"dpo": [0.5]}, baseline="sft")}, {"one": []}, ["human"])["claim"] == (
        "DPO was not compared with SFT"
    )
    assert headline({"one": evaluated({"sft": [0.5]})}, {"one": []}, ["human"])["claim"] == "Only SFT was evaluated"


def test_what_an_interval_means_in_words() -> None:
    found = headline({"one": against_sft(a=(30, 0, 0), b=(0, 0, 30), c=(15, 0, 15))}, {"one": []}, ["human"])
    better, worse, even = found["sentences"]
    # all or none of 30: see test_statistics for the ends; the other side by symmetry
    assert (
        better == "a wins 100% of 30 held-out prompts against SFT (95% interval 86% to 100%, wholly above an even 50%)."
    )
    assert worse == "b wins 0% of 30 held-out prompts against SFT (95% interval 0% to 14%, wholly below an even 50%)."
    assert even.startswith("c wins 50% of 30 held-out prompts against SFT (95% interval ")
    assert even.endswith(", which includes an even 50%).")
    # 9 of 30 alone is below an even 50%, and of three comparisons p = .0446 · 2 is above 5%
    corrected = headline({"one": against_sft(a=(9, 0, 21), b=(15, 0, 15), c=(30, 0, 0))}, {"one": []}, ["human"])[
        "sentences"
    ][0]
    assert ", below an even 50% on its own, but not among 3 comparisons: p = 0.09 by Holm's correction)" in corrected


def test_several_evaluations_in_words() -> None:
    better, worse = against_sft(dpo=(30, 0, 0)), against_sft(dpo=(0, 0, 30))
    alone = headline({"x": better}, {"x": []}, ["human"])
    assert alone["claims"] == {}
    assert alone["sentences"][0].startswith("DPO wins 100%")
    assert (alone["verdicts"], alone["guards"]) == ({"dpo": "better"}, [])
    agreeing = headline({"x": better, "y": better}, {"x": [], "y": []}, ["human"])
    assert agreeing["claim"] == "In each of 2 evaluations: DPO wins more often than SFT"
    both = headline({"x": better, "y": worse}, {"x": [], "y": []}, ["human"])
    won, lost = "DPO wins more often than SFT", "DPO loses more often than it wins against SFT"
    assert both["claim"] == f"in x, {won}; in y, {lost}"
    assert both["claims"] == {"x": won, "y": lost}
    assert [sentence[:17] for sentence in both["sentences"]] == ["x: DPO wins 100% ", "y: DPO wins 0% of"]
    assert both["verdicts"] == {"dpo": "better"}  # the report's own


def test_below_thirty_prompts_there_is_no_verdict_however_clear_the_figures() -> None:
    few = headline_of("few", rows_against_sft(dpo=(29, 0, 0)))
    assert few["verdicts"] == {"dpo": "too few"}
    assert few["claim"] == "29 prompts are too few to compare DPO with SFT"
    # 92 prompts show a win rate of 65%, four times in five: see the test of needed_prompts
    assert few["sentences"][0].endswith(
        "; too few to tell: about 63 more would show a win rate of 65%, four times in five)."
    )
    assert "Only 29 prompts: a verdict takes 30 at least." in few["caveats"]
    enough = headline_of("enough", rows_against_sft(dpo=(30, 0, 0)))
    assert enough["claim"] == "DPO wins more often than SFT"
    assert enough["sentences"] == [
        "DPO wins 100% of 30 held-out prompts against SFT (95% interval 86% to 100%, wholly above an even 50%)."
    ]
    assert not any("prompts" in caveat for caveat in enough["caveats"])


def test_one_prompt_is_no_verdict_and_has_no_interval_of_zero_width() -> None:
    one = headline_of("one", rows_against_sft(dpo=(0, 0, 1)))
    assert one["claim"] == "1 prompt is too few to compare DPO with SFT"
    assert one["sentences"][0].startswith("DPO wins 0% of the 1 held-out prompt against SFT (95% interval 0% to 95%;")


def test_several_policies_against_one_baseline_are_held_to_a_stricter_level() -> None:
    # 21 wins to 9 losses: p = .0446, below 5% alone; of three such, the smallest is tripled
    alone = headline_of("alone", rows_against_sft(dpo=(21, 0, 9)))
    assert alone["verdicts"] == {"dpo": "better"}
    three = report_of(
        write_evaluation(Path("three"), rows_against_sft(dpo=(21, 0, 9), ppo=(9, 0, 21), more=(26, 0, 4)), {}),
        "three-report",
    )
    assert three["headline"]["verdicts"] == {"dpo": "undecided", "ppo": "undecided", "more": "better"}
    assert three["headline"]["claim"] == "more wins more often than SFT; DPO and PPO show no clear difference from SFT"
    assert three["headline"]["sentences"][0] == (
        "DPO wins 70% of 30 held-out prompts against SFT (95% interval 50.4% to 85%, above an even 50% on its own, but "
        "not among 3 comparisons: p = 0.09 by Holm's correction)."
    )
    figures = three["policies"]
    assert figures["dpo"]["p_value"] == pytest.approx(2 * 0.04461, abs=1e-4)
    assert figures["more"]["p_value"] == pytest.approx(3 * math.erfc(21 / math.sqrt(60)), rel=1e-9)
    assert (figures["dpo"]["comparisons"], figures["dpo"]["verdict"]) == (3, "undecided")
    assert figures["dpo"]["outcomes"] == {"wins": 21, "ties": 0, "losses": 9}
    page = Path("three-report/report.html").read_text(encoding="utf-8")
    assert "corrected for 3 comparisons with SFT (Holm)" in page
    assert '<small class="verdict">no clear difference, p 0.09</small>' in page


def test_comparisons_are_corrected_over_all_evaluations_of_a_report() -> None:
    """21 wins to 9 losses, p = .0446, is "better" in an evaluation of its own, and of two such p is .0892."""
    rows = rows_against_sft(dpo=(21, 0, 9))
    first, second = (write_evaluation(Path(name), rows, {}, kinds=[name]) for name in ("first", "second"))
    assert report_of(first, "alone")["headline"]["verdicts"] == {"dpo": "better"}
    report = report_of(first, "both", against=[second])
    assert report["headline"]["claim"] == "In each of 2 evaluations: DPO shows no clear difference from SFT"
    figures = [report["policies"], *(one["policies"] for one in report["against"]["evaluations"])]
    for row in (one["dpo"] for one in figures):
        assert row["p_value"] == pytest.approx(2 * 0.04461, abs=1e-4)
        assert (row["verdict"], row["comparisons"]) == ("undecided", 2)
    page = Path("both/report.html").read_text(encoding="utf-8")
    assert "p-values corrected for all 2 comparisons of the report (Holm)" in page
    assert "corrected for" not in Path("alone/report.html").read_text(encoding="utf-8")


def test_further_yardsticks_count_among_the_comparisons() -> None:
    """Of 21:9 (p = .0446), 22:8 (.0176) and 26:4 (.00013), Holm multiplies the smallest by 3 and the next by 2; the largest
    stays. The base's refusals are compared too, but its rubric is not: SFT was trained from it."""
    rows = rows_against_sft(dpo=(22, 0, 8))
    rows = [{**row, "policy": "base"} for row in rows if row["policy"] == "sft"] + rows
    counts = {"base": (9, 0, 21), "dpo": (26, 0, 4)}
    named = [{"source": one, "title": one, "better": "lower", "scale": [0, 1]} for one in ("rubric", "over_refusal")]
    folder = Path(write_evaluation(Path("e"), rows, {}))
    policies = json.loads((folder / "final" / "report.json").read_text())["policies"]
    for name, row in policies.items():
        mean = {"mean": 0.5, "interval": None, "n_prompts": 30}
        own = dict(zip(("wins", "ties", "losses"), counts.get(name, ()), strict=False))
        against = {"outcomes": own, "p_value": 0.9, "verdict": "undecided", "difference": 0.1} if own else {}
        row["yardsticks"] = {
            "rubric": {**mean, **({"p_value": 0.8} if own else {})},
            "over_refusal": {**mean, **against},
        }
    folder = Path(write_evaluation(Path("several"), rows, {}, yardsticks=named, policies=policies))
    report = report_of(str(folder), "several-report")
    dpo, base = (report["policies"][name]["yardsticks"]["over_refusal"] for name in ("dpo", "base"))
    assert (report["comparisons"], report["policies"]["dpo"]["comparisons"]) == (3, 3)
    assert dpo["p_value"] == pytest.approx(3 * math.erfc(21 / math.sqrt(60)), rel=1e-9)
    assert report["policies"]["dpo"]["p_value"] == pytest.approx(2 * math.erfc(13 / math.sqrt(60)), rel=1e-9)
    assert base["p_value"] == pytest.approx(math.erfc(11 / math.sqrt(60)), rel=1e-9)
    assert (dpo["verdict"], base["verdict"], report["policies"]["dpo"]["verdict"]) == ("better", "worse", "better")


def test_identical_policies_are_seldom_called_better_in_a_report_over_eight_evaluations() -> None:
    """60 reports on coin flips, 24 comparisons each: a false verdict in at most 5% of the reports, within chance. With a
    correction in each evaluation alone, about 17 reports have one."""
    pick = random.Random(1)
    false = 0
    for _ in range(60):
        evaluations = {
            str(n): evaluated(
                {name: [float(pick.random() < 0.5) for _ in range(40)] for name in ("sft", "a", "b", "c")}
            )
            for n in range(8)
        }
        found = find_verdicts(evaluations, dict.fromkeys(evaluations, ()))
        false += any(one.outcome != "undecided" for each in found.values() for one in each.policies.values())
    assert false <= 8  # of 60 at 5%, more come by chance once in three hundred


def test_the_verdict_and_the_interval_agree_where_there_is_one_comparison() -> None:
    for wins in range(10, 22):
        headline = headline_of(f"w{wins}", rows_against_sft(dpo=(wins, 3, 29 - wins)))
        low, high = (
            float(edge) / 100 for edge in re.findall(r"interval ([\d.]+)% to ([\d.]+)%", headline["sentences"][0])[0]
        )
        assert headline["verdicts"]["dpo"] == verdict((low, high)), wins
        phrase = {"better": "wholly above", "worse": "wholly below", "undecided": "which includes"}
        assert phrase[headline["verdicts"]["dpo"]] in headline["sentences"][0]


def test_an_older_reports_own_interval_is_not_what_the_verdict_rests_on() -> None:
    """Older evaluations hold percentile bootstraps: 0% to 0% of one prompt. The wins are counted from the answers."""
    report = report_of(write_evaluation(Path("old"), rows_against_sft(dpo=(0, 0, 40)), {}), "old-report")
    assert report["policies"]["dpo"]["win_rate_interval"] == pytest.approx([0.0, 0.1085], abs=1e-3)
    assert report["policies"]["dpo"]["win_rate_vs_baseline"] == report["policies"]["dpo"]["win_rate_vs_sft"] == 0.0
    assert (
        report["policies"]["dpo"]["yardstick_mean"] == report["policies"]["dpo"]["rubric_mean"] == pytest.approx(1 / 3)
    )


# --- where a policy came from ---


def test_origins_by_hand() -> None:
    links = [
        link("sft", "s1", {"policy": "model"}),
        link("dpo", "d1", {"policy": "s1"}),
        link("ppo", "p1", {"policy": "d1", "reward_model": "r1"}),
        link("reward", "r1", {"policy": "s1"}),
    ]
    names = {"base": "model", "sft": "s1", "dpo": "d1", "ppo": "p1"}

    def lineage(*policies: str, baseline: str = "sft") -> Lineage:
        inputs = {name: names[name] for name in policies}
        return Lineage(evaluated({key: [1.0] for key in policies}, baseline, inputs), links)

    every = lineage("base", "sft", "dpo", "ppo")
    assert [every.origin_of(name) for name in ("sft", "dpo", "ppo")] == [
        Origin("base", True),
        Origin("sft", True),
        Origin("dpo", True),
    ]
    assert every.origin_of("base") is None
    assert (every.run_of("ppo"), every.run_of("base")) == (links[2], None)
    assert every.subjects() == ["dpo", "ppo"]
    # stages that were not evaluated, in the order of training
    assert lineage("base", "ppo", baseline="base").origin_of("ppo") == Origin("base", True, ("sft", "dpo"))
    assert lineage("sft", "ppo").origin_of("ppo") == Origin("sft", True, ("dpo",))
    # all that was evaluated is what the baseline was trained from
    assert lineage("base", "sft").subjects() == ["base"]
    assert lineage("base", "sft", "dpo", "ppo", baseline="ppo").subjects() == ["base", "sft", "dpo"]
    assert lineage("ppo", "sft", "base", baseline="ppo").subjects() == ["sft", "base"]
    # nothing before it was evaluated: held against the baseline, where that stands before it
    assert lineage("sft", "ppo", baseline="ppo").origin_of("sft") is None
    assert lineage("ppo", "sft", baseline="ppo").origin_of("sft") == Origin("ppo", False)


def test_a_report_without_its_policies_inputs_lists_a_base_before_its_baseline() -> None:
    lineage = Lineage(evaluated({key: [1.0] for key in ("base", "sft", "dpo")}), [])
    assert lineage.origin_of("sft") == Origin("base", True)
    assert lineage.origin_of("dpo") == Origin("sft", False)
    assert lineage.origin_of("base") is None
    assert lineage.subjects() == ["dpo"]
    first = Lineage(evaluated({key: [1.0] for key in ("sft", "dpo")}), [])
    assert (first.origin_of("sft"), first.subjects()) == (None, ["dpo"])
    recorded = Lineage(evaluated({key: [1.0] for key in ("base", "sft")}, inputs={"base": "model"}), [])
    assert recorded.origin_of("sft") is None
    other = Lineage(evaluated({key: [1.0] for key in ("base", "dpo")}), [])
    assert (other.origin_of("dpo"), other.subjects()) == (None, ["base", "dpo"])


def test_a_policys_input_by_either_name() -> None:
    one = evaluated({"sft": [1.0], "dpo": [1.0]}, inputs={"sft": "s1"})
    one.manifest["inputs"]["policies.dpo"] = {"id": "d1", "source": "runs/d1"}
    links = [link("sft", "s1"), link("dpo", "d1", {"policy": "s1"})]
    assert Lineage(one, links).origin_of("dpo") == Origin("sft", True)


def trained(folder: str, stage: str, policy: str, seconds: float, **facts: Any) -> str:
    """A finished training run that took so long; its adapter is its folder's name."""
    write_run(Path(folder), stage, {"policy": policy}, {"adapter.json": {"name": folder}}, **facts)
    manifest = json.loads((Path(folder) / "manifest.json").read_text())
    write_json(Path(folder) / "manifest.json", {**manifest, "seconds": seconds})
    return folder


def evaluation_of(folder: str, met: dict[str, int], policies: dict[str, str], n: int = 4) -> str:
    """Policies, each with the number of criteria that it meets on every prompt."""
    rows = [answer(prompt, name, met[name], name, 0.0, 0.0) for name in met for prompt in range(n)]
    return write_evaluation(Path(folder), rows, {f"policy_{name}": source for name, source in policies.items()})


def test_each_policy_is_held_against_the_one_it_was_trained_from() -> None:
    start = "bundled:smollm2-135m-instruct"
    sources = {"base": start, "sft": trained("sft0", "sft", start, 100)}
    sources["sft-1"] = trained("sft1", "sft", start, 200)
    sources["dpo"] = trained("dpo0", "dpo", "sft0", 300)
    sources["dpo-1"] = trained("dpo1", "dpo", "sft1", 400)
    met = {"base": 1, "sft": 2, "sft-1": 4, "dpo": 3, "dpo-1": 6}
    report = report_of(evaluation_of("evaluate", met, sources))
    changes = {row["policy"]: row for row in report["changes"]}
    origins = {name: row["from"] for name, row in changes.items()}
    assert origins == {"sft": "base", "sft-1": "base", "dpo": "sft", "dpo-1": "sft-1"}
    assert all(row["trained_from"] for row in changes.values())
    differences = {name: row["yardstick_difference"] for name, row in changes.items()}
    assert differences == pytest.approx({"sft": 1 / 6, "sft-1": 3 / 6, "dpo": 1 / 6, "dpo-1": 2 / 6})
    seconds = {row["id"]: row["seconds"] for row in report["timings"]["stages"]}
    assert {name: seconds[row["run"]] for name, row in changes.items()} == {
        "sft": 100,
        "sft-1": 200,
        "dpo": 300,
        "dpo-1": 400,
    }
    page = Path("runs/report/report.html").read_text(encoding="utf-8")
    rows = re.findall(r"<tr>(.*?)</tr>", page[page.index('id="changes"') : page.index("Share of answers")], re.DOTALL)[
        1:
    ]
    shown = [
        (re.sub("<[^>]+>", "", re.findall("<th.*?</th>", row)[0]), re.findall(r"\d min \d\d s", row)) for row in rows
    ]
    assert shown == [
        ("SFT from base", ["1 min 40 s"]),
        ("sft-1 from base", ["3 min 20 s"]),
        ("DPO from SFT", ["5 min 00 s"]),
        ("dpo-1 from sft-1", ["6 min 40 s"]),
    ]


def test_a_second_dpo_run_is_held_against_the_first_or_through_it_against_sft() -> None:
    first = trained("dpo-a", "dpo", trained("sft", "sft", "some/base", 1), 2)
    second = trained("dpo-b", "dpo", first, 3)
    both = {"sft": "sft", "first": first, "second": second}
    report = report_of(evaluation_of("evaluate", {"sft": 1, "first": 2, "second": 4}, both))
    assert [(row["policy"], row["from"], row["through"]) for row in report["changes"]] == [
        ("first", "sft", []),
        ("second", "first", []),
    ]
    skipped = report_of(evaluation_of("skipping", {"sft": 1, "second": 4}, {"sft": "sft", "second": second}), "skipped")
    assert [(row["policy"], row["from"], row["through"]) for row in skipped["changes"]] == [("second", "sft", ["dpo"])]
    assert "from SFT, through DPO</small>" in Path("skipped/report.html").read_text(encoding="utf-8")


def test_what_no_manifest_shows_is_held_against_the_baseline_and_says_so() -> None:
    sft = trained("sft", "sft", "some/base", 1)
    rows = {"sft": 2, "elsewhere": 4}
    report = report_of(evaluation_of("evaluate", rows, {"sft": sft, "elsewhere": "another/model"}))
    (row,) = report["changes"]
    assert (row["policy"], row["from"], row["trained_from"], row["run"]) == ("elsewhere", "sft", False, None)
    page = Path("runs/report/report.html").read_text(encoding="utf-8")
    assert " against SFT</small>" in page
    assert "No manifest shows what elsewhere was trained from: compared with the baseline." in page


def test_verdicts_do_not_depend_on_the_order_of_the_policies() -> None:
    """All but the baseline and what it was trained from get one, wherever they are listed."""
    start = "bundled:smollm2-135m-instruct"
    sft = trained("sft", "sft", start, 1)
    sources = {"dpo": trained("dpo", "dpo", sft, 2), "base": start, "sft": sft, "ppo": trained("ppo", "ppo", sft, 3)}
    for at, names in enumerate((["dpo", "base", "sft", "ppo"], ["sft", "ppo", "dpo", "base"])):
        met = {name: {"dpo": 6, "ppo": 1, "sft": 3, "base": 2}[name] for name in names}
        report = report_of(evaluation_of(f"e{at}", met, {n: sources[n] for n in names}, n=30), f"r{at}")
        assert report["headline"]["verdicts"] == {"dpo": "better", "ppo": "worse"}


def test_ppos_rollouts_are_drawn_where_their_kl_and_score_are_the_evaluations() -> None:
    """Its KL is from the policy that it began with: beside policies whose KL is from another one it has no place."""
    rows = [{"step": n, "objective/kl": float(n), "objective/scores": n / 2} for n in range(1, 5)]
    judge = trained("reward", "reward", "some/base", 1)
    sft, other = trained("sft", "sft", "some/base", 1), trained("dpo", "dpo", "sft", 1)
    for start, drawn in ((sft, True), (other, False)):
        files = {"adapter.json": {"from": start}}
        ppo = write_run(Path(f"ppo-{start}"), "ppo", {"policy": start, "reward_model": judge}, files, rows)
        policies = {"policy_sft": sft, "policy_dpo": other, "policy_further": ppo, "reward_model": judge}
        answers = [
            answer(p, name, 3, name, 0.5 * n, 2.0 * n)
            for n, name in enumerate(("sft", "dpo", "further"))
            for p in range(4)
        ]
        report_of(write_evaluation(Path(f"e-{start}"), answers, policies), f"r-{start}")
        page = Path(f"r-{start}/report.html").read_text(encoding="utf-8")
        assert ("further&#x27;s rollouts on training prompts" in page) == drawn
        assert (
            "rollouts are left out: their KL is from the policy that it was trained from, not from SFT" in page
        ) != drawn
        assert "KL from SFT, nats per answer" in page


# --- several evaluations ---


def test_the_headline_speaks_of_every_evaluation() -> None:
    better = write_evaluation(Path("runs/seed0/evaluate"), rows_against_sft(dpo=(24, 3, 3)), {})
    other = write_evaluation(Path("runs/seed1/evaluate"), rows_against_sft(dpo=(14, 3, 13)), {})
    report = report_of(better, against=[other])
    headline = report["headline"]
    assert (
        headline["claim"] == "in seed0, DPO wins more often than SFT; in seed1, DPO shows no clear difference from SFT"
    )
    assert headline["claims"] == {
        "seed0": "DPO wins more often than SFT",
        "seed1": "DPO shows no clear difference from SFT",
    }
    assert [sentence.partition(" wins")[0] for sentence in headline["sentences"]] == ["seed0: DPO", "seed1: DPO"]
    assert [one["policies"]["dpo"]["verdict"] for one in report["against"]["evaluations"]] == ["better", "undecided"]
    same = write_evaluation(Path("runs/seed2/evaluate"), rows_against_sft(dpo=(25, 3, 2)), {})
    agreeing = report_of(better, "agreeing", against=[same])["headline"]
    assert agreeing["claim"] == "In each of 2 evaluations: DPO wins more often than SFT"


def test_the_warnings_of_another_evaluations_training_are_heard_too() -> None:
    metrics = {"eval_loss": 0.75, "eval_rewards/accuracies": 0.458}
    sft = trained("sft", "sft", "some/base", 1)
    weak = trained("dpo-1", "dpo", sft, 1, metrics=metrics, counts={"validation": 48}, kinds=["model"])
    first = evaluation_of(
        "runs/seed0/evaluate", {"sft": 3, "dpo": 4}, {"sft": sft, "dpo": trained("dpo-0", "dpo", sft, 1)}
    )
    second = evaluation_of("runs/seed1/evaluate", {"sft": 3, "dpo": 4}, {"sft": sft, "dpo": weak})
    report = report_of(first, against=[second])
    assert any(
        caveat.startswith("seed1: DPO's loss on held-out preferences is 0.750")
        for caveat in report["headline"]["caveats"]
    )
    assert any("loss on held-out preferences is 0.750" in caveat for caveat in report["headline"]["caveats"])
    assert "model" in report["kinds"]
    assert {link["id"] for link in report["chain"]} >= {
        json.loads(Path(f"dpo-{n}/manifest.json").read_text())["id"] for n in (0, 1)
    }


def test_yardsticks_that_differ_in_their_source_never_stand_side_by_side() -> None:
    for name, source in (("a", "one"), ("b", "two")):
        Path(f"{name}.py").write_text(source)
        write_evaluation(Path(name), hand_rows(), {"yardstick": f"{name}.py"}, yardstick="mine:grade")
    with pytest.raises(HandoffError, match="the function mine:grade has changed"):
        report_of("a", against=["b"])


# --- the training's own warnings ---

SIMULATED = (
    "preferences come from simulated raters, not from people: this shows how far training follows the raters' written "
    "rule, not what people would prefer."
)
BY_MODEL = "Judgments made by a model are among the preferences."


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("human",), []),
        (("simulated",), [f"The {SIMULATED}"]),
        (("human", "simulated"), [f"Part of the {SIMULATED}"]),
        (("model", "simulated"), [f"Part of the {SIMULATED}", BY_MODEL]),
        (("human", "model"), [BY_MODEL]),
        ((), ["The data does not say who judged."]),
        (("unstated",), ["The data does not say who judged."]),
        (("human", "unstated"), []),
    ],
)
def test_who_judged_in_words(kinds: tuple[str, ...], expected: list[str]) -> None:
    assert caveats_of([], kinds=kinds) == expected


def test_the_fewest_prompts_of_any_evaluation() -> None:
    def caveats(*counts: int) -> list[str]:
        each = {str(n): evaluated({"sft": [0.5] * n}) for n in counts}
        found: list[str] = headline(each, {key: [] for key in each}, ["human"])["caveats"]
        return found

    assert caveats(30, 40) == []
    assert caveats(40, 29) == ["Only 29 prompts: a verdict takes 30 at least."]
    assert caveats(1, 40) == ["Only 1 prompt: a verdict takes 30 at least."]


def reward_link(interval: list[float] | None, loss: float | None, run: str = "reward", **config: Any) -> Link:
    metrics = {"held_out_accuracy": 0.58, "held_out_accuracy_interval": interval, "eval_loss": loss}
    return link("reward", run, metrics=metrics, config={"strength_as": "weight", **config})


CHANCE = "which does not exclude chance): read its scores with care."
COIN = "above the 0.693 (ln 2) of chance: it is overconfident."


def test_what_the_reward_models_held_out_preferences_say_against_it() -> None:
    by_chance = f"The reward model is right about 58% of held-out preferences (95% interval 44% to 71%, {CHANCE}"
    on_the_edge = f"The reward model is right about 58% of held-out preferences (95% interval 50% to 71%, {CHANCE}"
    sure = f"The reward model's loss on held-out preferences is 0.900, {COIN}"
    ln2 = math.log(2)
    for one, expected in (
        (reward_link([0.44, 0.71], 0.6), [by_chance]),
        (reward_link([0.5, 0.71], 0.6), [on_the_edge]),
        (reward_link([0.51, 0.71], 0.6), []),
        (reward_link(None, None), []),
        (reward_link([0.44, 0.71], 0.9), [by_chance, sure]),
        (reward_link(None, 0.9), [sure]),
        (reward_link(None, ln2 + 5e-4), []),  # what is printed of it is ln 2
        (reward_link(None, 0.9, strength_as="margin"), []),  # a coin's loss is not ln 2 there
        (reward_link(None, 0.9, soft_labels=True), []),
        (link("reward", metrics={"eval_loss": 0.9}), []),  # margins are the default
        (link("reward", metrics=None), []),
        (link("sft", metrics=reward_link([0.44, 0.71], 0.9).manifest["metrics"], config={"strength_as": "weight"}), []),
    ):
        assert caveats_of([one]) == expected, one
    two = caveats_of([reward_link([0.44, 0.71], 0.9, "a1"), reward_link([0.51, 0.71], 0.6, "b2"), link("sft")])
    assert two == [by_chance.replace("model is", "model a1 is"), sure.replace("model's", "model a1's")]
    assert caveats_of([reward_link([0.44, 0.71], 0.6), link("sft"), link("dpo")]) == [by_chance]


def dpo_link(run: str = "d1", n: int | None = 48, **metrics: float) -> Link:
    return link("dpo", run, {"policy": "s1"}, metrics=metrics, counts={"validation": n})


def test_a_dpo_runs_own_warnings_bear_the_name_of_its_policy() -> None:
    sft = link("sft", "s1", {"policy": "model"}, metrics={"eval_loss": 0.9})
    one, other = dpo_link("d1", eval_loss=0.9), dpo_link("d2", eval_loss=0.8)
    fault = (
        "'s loss on held-out preferences is {}, above the 0.693 (ln 2) of the policy that it began with: what it learned "
        "does not carry over to them."
    )
    names = {"sft": "s1", "mine": "d1"}
    assert caveats_of([sft, one], names) == ["mine" + fault.format("0.900")]
    assert caveats_of([sft, one, other], names) == ["mine" + fault.format("0.900"), "DPO d2" + fault.format("0.800")]
    assert caveats_of([sft, other], names) == ["DPO" + fault.format("0.800")]
    assert caveats_of([sft, link("dpo", "d1"), link("dpo", "d2", metrics=None, counts=None)], names) == []
    each = {where: evaluated(dict.fromkeys(names, [0.5] * 30), inputs=names) for where in ("x", "y")}
    caveats = headline(each, {"x": [sft, one], "y": [sft]}, ["human"])["caveats"]
    assert caveats == ["x: mine" + fault.format("0.900")]


@pytest.mark.parametrize(
    ("accuracy", "n", "config", "expected"),
    [
        # Wilson's intervals by formula: 24 of 48: 50% ± 13.6%; 30 of 48: 48% to 75%; 31 of 48: 50.4% to 77%
        (0.5, 48, {}, "50% of 48 held-out preferences (95% interval 36% to 64%, which includes chance)"),
        (31 / 48, 48, {}, None),
        (30 / 48, 48, {}, "62% of 48 held-out preferences (95% interval 48% to 75%, which includes chance)"),
        (0.1, 40, {}, "10% of 40 held-out preferences (95% interval 4% to 23%, which lies below chance)"),
        # evaluated on the first 12 of them: 9 of 12 is 47% to 91%
        (0.75, 48, {"training": {"eval_rows": 12}}, "75% of 12 held-out preferences (95% interval 47% to 91%, which"),
        (0.75, 48, {"training": {"eval_rows": 400}}, None),
        (0.75, 48, {"training": {"eval_rows": None}}, None),
        (0.75, 48, {"training": None}, None),
        # float32 means that rounding carries past 0 and 1
        (1 + 1e-4, 40_000, {}, None),
        (-1e-4, 40_000, {}, "0% of 40000 held-out preferences (95% interval 0% to 0%, which lies below chance)"),
        (0.1, None, {}, None),
        (0.1, 0, {}, None),
    ],
)
def test_implicit_rewards_against_chance(
    accuracy: float, n: int | None, config: dict[str, Any], expected: str | None
) -> None:
    one = dpo_link(n=n, **{"eval_rewards/accuracies": accuracy})
    found = caveats_of([Link(one.folder, {**one.manifest, "config": config})])
    assert len(found) == (expected is not None)
    assert all(caveat.startswith(f"DPO's implicit rewards are right about {expected}") for caveat in found)


def test_a_loss_that_is_not_the_sigmoids_is_held_against_no_ln_2() -> None:
    one = dpo_link(eval_loss=0.9)
    for loss_type, warned in ((["sigmoid"], 1), (["ipo"], 0), (["sigmoid", "sft"], 0), (("sigmoid",), 1)):
        found = caveats_of([Link(one.folder, {**one.manifest, "config": {"loss_type": loss_type}})])
        assert len(found) == warned, loss_type
    for weights, warned in (([1.0], 1), ([2.0], 0), (None, 1)):
        found = caveats_of([Link(one.folder, {**one.manifest, "config": {"loss_weights": weights}})])
        assert len(found) == warned, weights
    assert len(caveats_of([Link(one.folder, {**one.manifest, "config": {}})])) == 1
    assert caveats_of([dpo_link(eval_loss=math.log(2) + 5e-4)]) == []


def guard_in_words(kept: int, scores: list[float], stopped: int | None = None, patience: int = 1) -> str:
    history = [{"step": 10 * n, "score": score, "kl": 0.5 * n} for n, score in enumerate(scores)]
    guard = {"kept": history[kept], "history": history, "prompts": 64, "stopped_at_step": stopped, "patience": patience}
    return guard_decision("ppo", guard)


def test_a_guards_decision_by_hand() -> None:
    start = (
        "PPO was guarded by a reward model that its training did not see, which scored the answers to 64 validation "
        "prompts at 4 steps."
    )
    scores = [0.1, 0.4, 0.3, 0.2]
    assert guard_in_words(1, scores) == (
        f"{start} It scored the policy of step 10 highest, which was kept: its score rose from 0.100 to 0.400, at a KL of "
        "0.500 nats per answer. Training ran to its end, step 30."
    )
    assert guard_in_words(3, [0.1, 0.2, 0.3, 0.4]) == (
        f"{start} It scored the last policy of step 30 highest, which was kept: its score rose from 0.100 to 0.400, at a "
        "KL of 1.50 nats per answer. Training ran to its end, step 30."
    )
    unmoved = "It scored no policy higher than the initial one, so PPO is the initial policy, unchanged."
    went_by = "while the training score rose."
    assert guard_in_words(0, [0.4, 0.3, 0.2, 0.1], stopped=30, patience=3) == (
        f"{start} {unmoved} Training was stopped at step 30: that score had fallen 3 times in a row, to 0.100, {went_by}"
    )
    assert guard_in_words(0, [0.4, 0.3, 0.2, 0.1], stopped=20).endswith(
        f"Training was stopped at step 20: that score had fallen once, to 0.100, {went_by}"
    )


def guarded(stage: str, inputs: dict[str, str], judge: str | None = "judge") -> Link:
    history = [{"step": 0, "score": 0.1, "kl": 0.0}, {"step": 5, "score": 0.2, "kl": 1.0}]
    guard = {"kept": history[1], "history": history, "prompts": 64, "stopped_at_step": None, "patience": 1}
    return link(stage, "p1", inputs | ({"guard.reward_model": judge} if judge else {}), guard=guard)


def test_a_guard_that_shares_the_trainings_judgments() -> None:
    """By the ids of the preferences, whichever input they reach the training through."""
    mine, others = link("reward", "r1", {"preferences": "mine"}), link("reward", "r2", {"preferences": "others"})
    same, apart = link("reward", "judge", {"preferences": "mine"}), link("reward", "judge", {"preferences": "others"})
    for stage, inputs in (
        ("ppo", {"reward_model": "r1"}),
        ("ppo", {"rewards.helpful": "r1"}),
        ("ppo", {"rewards.harmless": "r2", "rewards.helpful": "r1"}),
        ("dpo", {"preferences": "mine"}),
    ):
        links = [mine, others, guarded(stage, inputs)]
        name = stage.upper()
        assert caveats_of([same, *links]) == [
            f"{name}'s guard learned from the same preferences as {name}'s training: it shares their errors and may miss "
            "what one of another share of the judgments would see."
        ]
        assert len(headline({"one": against_sft(dpo=(30, 0, 0))}, {"one": [same, *links]}, ["human"])["guards"]) == 1
        assert (caveats_of([apart, *links]) == []) == ("rewards.harmless" not in inputs)
    # the reward model is not a reward of the training; the runs' preferences are unknown; there is no guard
    assert caveats_of([same, mine, others, guarded("ppo", {"reward_model": "r2", "policy": "r1"})]) == []
    assert caveats_of([link("reward", "judge"), link("reward", "r1"), guarded("ppo", {"reward_model": "r1"})]) == []
    assert caveats_of([mine, guarded("ppo", {"reward_model": "r1"}, judge=None)]) == []
    unguarded = link("ppo", "p1", {"reward_model": "r1", "guard.reward_model": "judge"})
    assert caveats_of([same, mine, unguarded]) == []


@pytest.mark.parametrize(
    ("metrics", "config", "expected"),
    [
        (
            {"eval_loss": 0.75, "eval_rewards/accuracies": 0.458},
            {},
            [
                "DPO's loss on held-out preferences is 0.750, above the 0.693 (ln 2) of the policy that it began with: "
                "what it learned does not carry over to them.",
                "DPO's implicit rewards are right about 46% of 48 held-out preferences (95% interval 33% to 60%, which "
                "includes chance).",
            ],
        ),
        ({"eval_loss": 0.6, "eval_rewards/accuracies": 0.75}, {}, []),
        (
            {"eval_loss": 0.6, "eval_rewards/accuracies": 0.75},
            {"training": {"eval_rows": 12}},
            ["12 held-out preferences"],
        ),
        ({"eval_loss": 0.6, "eval_rewards/accuracies": 0.1}, {}, ["which lies below chance"]),
        ({"eval_loss": 0.75, "eval_rewards/accuracies": 0.75}, {"loss_type": ["ipo"]}, []),
        ({"eval_loss": 0.6932, "eval_rewards/accuracies": 0.75}, {}, []),
        ({"loss": 0.9}, {}, []),
    ],
)
def test_what_dpos_own_held_out_preferences_say_stands_beside_the_headline(
    metrics: dict[str, Any], config: dict[str, Any], expected: list[str]
) -> None:
    sft = trained("sft", "sft", "some/base", 1)
    dpo = trained("dpo", "dpo", sft, 1, metrics=metrics, counts={"validation": 48})
    manifest = json.loads(Path("dpo/manifest.json").read_text())
    write_json(Path("dpo/manifest.json"), {**manifest, "config": {**manifest["config"], **config}})
    report = report_of(evaluation_of("evaluate", {"sft": 3, "dpo": 4}, {"sft": sft, "dpo": dpo}, n=30))
    caveats = [caveat for caveat in report["headline"]["caveats"] if "DPO's" in caveat]
    assert len(caveats) == len(expected)
    assert all(phrase in caveat for phrase, caveat in zip(expected, caveats, strict=True))
    page = Path("runs/report/report.html").read_text(encoding="utf-8")
    head = page[: page.index("<section")]
    assert all(f'<p class="caveat">{caveat.replace(chr(39), "&#x27;")}</p>' in head for caveat in caveats)


def test_a_reward_model_that_is_surer_than_it_is_right() -> None:
    metrics = {"eval_loss": 0.9, "held_out_accuracy": 0.8, "held_out_accuracy_interval": [0.7, 0.9]}
    trained("reward", "reward", "some/base", 1, metrics=metrics)
    manifest = json.loads(Path("reward/manifest.json").read_text())
    for strength, warned in (("weight", True), ("margin", False)):
        write_json(
            Path("reward/manifest.json"), {**manifest, "config": {**manifest["config"], "strength_as": strength}}
        )
        evaluation = write_evaluation(Path(f"by-{strength}"), hand_rows(), {"reward_model": "reward"})
        caveats = report_of(evaluation, f"report-{strength}")["headline"]["caveats"]
        phrase = "The reward model's loss on held-out preferences is 0.900, above the 0.693 (ln 2) of chance"
        assert any(caveat.startswith(phrase) for caveat in caveats) == warned


def test_a_guards_decision_stands_beside_the_headline_once(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(write_recipe(Path("runs/a")))
    (decision,) = report["headline"]["guards"]
    assert decision.startswith("PPO was guarded by a reward model")
    assert capsys.readouterr().out.count(decision) == 1
    page = Path("runs/report/report.html").read_text(encoding="utf-8")
    assert decision in page[: page.index("<section")]


# --- settings ---


def test_hyperparameters_stand_in_the_report() -> None:
    sft = trained("sft", "sft", "some/base", 1)
    training = {"learning_rate": 5e-5, "epochs": 2.0, "max_steps": None, "per_device_batch_size": 4, "seed": 7}
    config = {"beta": 0.3, "loss_type": ["ipo"], "training": {**training, "gradient_accumulation_steps": 8}}
    adapter = {"method": "lora", "r": 24, "alpha": 48, "dropout": 0.0, "target_modules": "all-linear"}
    dpo = trained("dpo", "dpo", sft, 1, model={"adapter": adapter})
    manifest = json.loads(Path("dpo/manifest.json").read_text())
    write_json(Path("dpo/manifest.json"), {**manifest, "config": config})
    report = report_of(evaluation_of("evaluate", {"sft": 3, "dpo": 4}, {"sft": sft, "dpo": dpo}))
    settings = next(stage["settings"] for stage in report["stages"] if stage["stage"] == "dpo")
    assert settings == {
        "beta": 0.3,
        "loss": ["ipo"],
        "learning rate": 5e-5,
        "epochs": 2.0,
        "batch": 32,
        "seed": 7,
        "adapter": "lora",
        "adapter r": 24,
        "adapter alpha": 48,
        "adapter dropout": 0.0,
        "adapted modules": "all-linear",
    }
    page = Path("runs/report/report.html").read_text(encoding="utf-8")
    section = page[page.index('id="settings"') :]
    rows = dict(re.findall(r'<tr><th scope="row">(.*?)</th><td class="n">(.*?)</td></tr>', section))
    assert (rows["beta"], rows["loss"], rows["learning rate"], rows["adapter r"]) == ("0.3", "ipo", "5e-05", "24")


# --- any scale ---


def scaled_evaluation(folder: str, factor: float, offset: float, scale: list[float] | None) -> str:
    """With a yardstick of one's own, under both names of its value."""
    rows = []
    for row in hand_rows():
        value = offset + factor * row["rubric_score"]
        rows.append({**row, "rubric": {}, "rubric_score": value, "yardstick_score": value})
    named = {"yardstick": "mine:grade", "yardstick_name": "Clarity", "yardstick_scale": scale}
    return write_evaluation(Path(folder), rows, {}, **named)


@pytest.mark.parametrize(
    ("factor", "offset", "scale", "ends"),
    [
        (100, 0, [0, 100], ("0", "100")),
        (6, 44, None, ("46", "50")),
        (-3, 0.5, None, ("−3", "0")),
        (1e-3, 0, None, ("0", "1.0e−3")),
        (1e6, 0, None, ("0", "1.0e6")),
    ],
)
def test_a_yardstick_of_any_scale_is_drawn_within_its_axis(
    factor: float, offset: float, scale: list[float] | None, ends: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    report_of(scaled_evaluation("evaluate", factor, offset, scale))
    page = Path("runs/report/report.html").read_text(encoding="utf-8")
    visible = re.sub(r"<style>.*?</style>", "", page[: page.index('<script type="application/json"')], flags=re.DOTALL)
    assert "ubric" not in visible
    assert "Yardstick <b>Clarity (mine:grade)</b>" in visible
    head = re.findall(r"<th[^>]*>Clarity<.*?</th>", visible)[0]
    shown = re.findall(r"<text[^>]*>(.*?)</text>", head)
    assert (shown[0], shown[-1]) == ends
    # whiskers lie between the ends of their axis, 8 and 142, and those of DPO's values, which differ, have a width
    places = re.findall(r'class="whisker tone-(\w+)" x1="([\d.]+)" y1="11.0" x2="([\d.]+)" y2="11.0"', visible)
    assert len(places) == 4 + 3 + 3  # values, win rates, changes; base is before the baseline
    assert all(8.0 <= float(a) <= float(b) <= 142.0 for _, a, b in places)
    assert [float(b) - float(a) > 5 for tone, a, b in places if tone == "dpo"] == [True, True, True]
    out = capsys.readouterr().out
    assert "Clarity" in out
    assert "ubric" not in out


def test_a_value_that_is_no_number_is_refused_by_name() -> None:
    rows = hand_rows()
    rows[3]["rubric_score"] = float("nan")
    evaluation = write_evaluation(Path("evaluate"), hand_rows(), {})
    broken = Path("evaluate/final/completions.jsonl")
    manifest = json.loads(Path("evaluate/manifest.json").read_text())
    broken.write_text("".join(json.dumps(row) + "\n" for row in rows))
    from tiebreak.hashing import hash_file

    manifest["outputs"]["final/completions.jsonl"] = hash_file(broken)
    write_json(Path("evaluate/manifest.json"), manifest)
    with pytest.raises(HandoffError, match="yardstick_score: Input should be a valid number"):
        report_of(evaluation)


def test_ten_policies_have_ten_marks() -> None:
    names = [f"dpo-{n}" for n in range(9)]
    rows = rows_against_sft(**dict.fromkeys(names, (15, 0, 15)))
    report_of(write_evaluation(Path("evaluate"), rows, {}))
    page = Path("runs/report/report.html").read_text(encoding="utf-8")
    table = page[page.index('id="figures"') : page.index('id="changes"')]
    marks = re.findall(r'<svg class="inline swatch"[^>]*>(.*?)</svg>', table)
    assert len(set(marks)) == 10


def test_a_report_with_the_older_names_prints_the_same_table_as_one_with_todays() -> None:
    today = {
        "yardstick_mean": 0.75,
        "yardstick_interval": [0.5, 1.0],
        "win_rate_vs_baseline": 0.625,
        "win_rate_interval": [0.5, 0.75],
        "score_mean": None,
        "kl_per_sequence": 1.5,
        "length_tokens_mean": 20.0,
        "n_prompts": 8,
    }
    older_names = {
        "yardstick_mean": "rubric_mean",
        "yardstick_interval": "rubric_interval",
        "win_rate_vs_baseline": "win_rate_vs_sft",
    }
    older = {older_names.get(name, name): value for name, value in today.items()}
    tables = [summary_table({"policies": {"dpo": row}, "baseline": "sft"}) for row in (today, older)]
    assert tables[0] == tables[1]
    assert "0.75" in tables[0][1]
    assert "62%" in tables[0][1]


def test_a_manifest_has_each_figure_under_one_name() -> None:
    figures = {"yardstick_mean": 0.5, "rubric_mean": 0.5, "win_rate_vs_baseline": None, "win_rate_vs_sft": None}
    assert to_metrics({"policies": {"dpo": figures}}) == {"dpo": {"yardstick_mean": 0.5, "win_rate_vs_baseline": None}}


def test_synthetic_rows_are_stated_for_each_training_with_how_many_people_reviewed() -> None:
    def link(stage: str, **synthetic: int) -> Link:
        return cast(Link, SimpleNamespace(stage=stage, manifest={"synthetic": synthetic} if synthetic else {}))

    made = link("synthesise", rows=9, of=9, reviewed=0)
    assert _synthetic_caveats([made, link("sft", rows=4, of=10, reviewed=4), link("reward")]) == [
        "4 of the 10 rows of sft are synthetic, all of them reviewed."
    ]
    assert _synthetic_caveats([link("dpo", rows=3, of=7, reviewed=1)]) == [
        "3 of the 7 rows of dpo are synthetic, 2 of them reviewed by nobody (review: none)."
    ]
