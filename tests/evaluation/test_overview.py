"""Runs side by side: what is grouped, what differs, what may be compared, and the page in a real browser."""

from __future__ import annotations

import fcntl
import json
import math
import os
import resource
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study import curve, finished, logged, write_evaluation, write_seed, write_study
from support import run_here, succeed
from test_compare import CHROMIUM, CHROMIUM_FLAGS

from evaluation.compare.reading import read_evaluation
from evaluation.compare.summary import _refuse_incomparable
from evaluation.configuration import OverviewArguments
from evaluation.overview import read_overview, write_overview
from evaluation.overview.charts import mean_and_band, smooth
from evaluation.overview.model import SCHEMA, Overview, schema
from evaluation.overview.page import build_page
from evaluation.overview.policies import correct, find_comparable, make_fields
from evaluation.overview.reading import RunRecord, read_rows
from evaluation.overview.report import further_measures, tokens_of
from evaluation.overview.serve import LivePage, make_server
from tiebreak.errors import HandoffError, RunError
from tiebreak.measures.ratings import share_p_value
from tiebreak.measures.yardsticks.wording import refuses


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def report(study: Path) -> Overview:
    return overview(study)


def overview(*folders: Path, **keys: Any) -> Overview:
    return read_overview([str(one) for one in folders], OverviewArguments(**keys))


def test_seeds_are_grouped_and_betas_are_not(report: Overview) -> None:
    dpo = {one.name: one for one in report.groups if one.stage == "dpo"}
    assert {name: sorted(one.runs) for name, one in dpo.items()} == {
        "DPO, beta 0.1": ["seed-0/dpo-high", "seed-1/dpo-high"],
        "DPO, beta 0.5": ["seed-0/dpo-low", "seed-1/dpo-low"],
    }
    accuracy = dpo["DPO, beta 0.5"].figures["eval_rewards/accuracies"]
    assert (accuracy.mean, accuracy.n, accuracy.deviation) == (0.46, 2, 0.0)
    sft = next(one for one in report.groups if one.stage == "sft").figures["eval_loss"]
    assert (sft.mean, sft.deviation) == (pytest.approx(2.01), pytest.approx(0.02 / math.sqrt(2)))


def test_the_keys_that_differ_come_first_and_the_same_run_once(report: Overview) -> None:
    first = report.differences[0]
    assert first.stage == "dpo"
    assert next(iter(first.differing)) == "beta"
    assert dict(zip(first.runs, first.differing["beta"], strict=True))["seed-1/dpo-low"] == 0.5
    assert [key for key in first.differing if "seed" in key] == ["seed (and 3 more seeds)"]
    assert "learning_rate" in first.shared
    (why,) = report.left_out.values()  # both seeds prepared the same data
    assert "the same run as" in why


def test_the_best_policy_is_named_with_its_evidence(report: Overview) -> None:
    (field,) = report.fields
    assert [one.name for one in field.policies] == ["DPO, beta 0.1", "DPO, beta 0.5", "SFT", "smollm2-135m-instruct"]
    assert report.headline.claim == "DPO, beta 0.1 is the best of 4 policies"
    assert report.headline.sentences[-1] == (
        "By mean score (0.77 to 0.78 against 0.61 to 0.64), both seeds are ahead of DPO, beta 0.5."
    )
    assert any("dpo-low's implicit rewards are right about 46%" in one for one in report.headline.caveats)
    ours = next(m for m in field.matches if (m.policy, m.other) == ("DPO, beta 0.1", "SFT"))
    theirs = next(m for m in field.matches if (m.policy, m.other) == ("SFT", "DPO, beta 0.1"))
    assert (ours.outcome, theirs.outcome) == ("better", "worse")
    assert ours.win_rate == pytest.approx(1 - theirs.win_rate)
    assert ours.interval == pytest.approx((1 - theirs.interval[1], 1 - theirs.interval[0]))
    assert field.baseline == "SFT"
    assert field.policies[-1].refusals.mean == pytest.approx(0.1)
    kl = {one.name: (one.kl.mean if one.kl else None, one.kl_interval) for one in field.policies}
    assert kl["SFT"] == (0.0, None)  # the baseline's is exactly 0
    assert kl["DPO, beta 0.1"] == (pytest.approx(3.0), pytest.approx((3.0, 3.0)))  # the same for each prompt
    # SFT's answers are 2, 3 or 4 times "Lower the pH to 5.n and wait.": of 11, 18 or 25 runs of four words, 1, 4 or 7
    # came before.
    shares = [(1 / 11, 4 / 18, 7 / 25)[prompt % 3] for prompt in range(field.prompts)]
    assert field.policies[2].repetition is not None
    assert field.policies[2].repetition.mean == pytest.approx(sum(shares) / len(shares))


def test_a_policy_sampled_with_two_seeds_shows_the_noise_floor(report: Overview) -> None:
    (noise,) = report.fields[0].noise  # the base model is the same in both evaluations
    assert noise.policy == "seed-0: base"
    assert noise.seeds == [0, 1]
    assert abs(noise.win_rate - 0.5) < 0.15
    assert noise.interval[0] < noise.win_rate < noise.interval[1]
    assert noise.difference < 0.06


def test_other_prompts_yardsticks_and_sampling_stand_apart(tmp_path: Path) -> None:
    write_seed(tmp_path / "a", 0)
    write_seed(tmp_path / "b", 1, sampling={"temperature": 1.0, "max_new_tokens": 96})
    policies = {"base": "bundled:x", "sft": "bundled:y"}
    write_evaluation(tmp_path / "c" / "evaluate", policies, {}, seed=0, prompts=35)
    found = overview(tmp_path)
    first, *apart = found.fields
    assert first.evaluations == ["a"]
    assert {one.evaluations[0]: one.unlike for one in apart} == {
        "b": ["other sampling (temperature 0.7 and 1.0)"],
        "c": ["other prompts (35 of 35 are the same)"],
    }
    assert any("b and c cannot be compared with the rest" in one for one in found.headline.caveats)
    assert all(not one.noise for one in found.fields)
    page = build_page(found)
    assert page.count("Not comparable with the policies above") == 2 * 3  # policies, win rates, lengths


def test_pairs_are_corrected_over_all_that_the_page_compares(tmp_path: Path) -> None:
    """Two evaluations on other prompts: in each, a policy wins 21 prompts against the baseline and loses 9 (p = .0446),
    and a further yardstick that differs nowhere (p = 1). Of three comparisons, both p are .134."""
    for name, count in (("a", 30), ("b", 31)):
        write_evaluation(
            tmp_path / name / "evaluate", {"sft": "bundled:x", "dpo": f"bundled:{name}"}, {}, seed=0, prompts=count
        )
    folders = [str(tmp_path / name / "evaluate") for name in "ab"]
    read = {name: read_evaluation(folder) for name, folder in zip("ab", folders, strict=True)}
    for name, one in read.items():
        won = {f"prompt-{n:03d}": float(n < 21) if n < 30 else 0.5 for n in range(31)}
        answers = tuple(
            row.model_copy(update={"yardstick_score": won[row.prompt_id] if row.policy == "dpo" else 0.5})
            for row in one.answers
        )
        read[name] = replace(one, answers=answers)
    tied = {"outcomes": {"wins": 0, "ties": 30, "losses": 0}, "p_value": 1.0, "verdict": "undecided"}
    rows = {"rubric": {"mean": 0.5, "p_value": 0.01, "verdict": "better"}, "refusal": {"mean": 0.5, **tied}}
    figures = read["a"].policies["dpo"].model_copy(update={"yardsticks": rows})
    named = tuple({"source": source, "better": "lower"} for source in rows)
    read["a"] = replace(read["a"], policies={**read["a"].policies, "dpo": figures}, yardsticks=named)
    assert share_p_value(np.array([1.0] * 21 + [0.0] * 9)) == pytest.approx(0.04461, abs=1e-4)
    sets = find_comparable(read, {})
    corrected = correct(sets)
    assert [list(each) for each in corrected.pairs] == [[pytest.approx(3 * 0.04461, abs=3e-4)]] * 2
    assert (corrected.comparisons, corrected.further) == (3, {("a", "dpo", "refusal"): 1.0})
    fields = make_fields(sets, corrected, {}, {}, 0)
    assert {match.outcome for field in fields for match in field.matches} == {"no worse", "undecided"}
    further = further_measures("a", read["a"], corrected)
    assert further is not None
    assert further.policies["dpo"]["yardsticks"] == {"rubric": {"mean": 0.5}, "refusal": {"mean": 0.5, **tied}}


def test_shares_of_judgments_against_two_baselines_are_apart(tmp_path: Path) -> None:
    """The same judgments' folder and the same prompts, and two policies of the name sft."""
    judged = {"yardstick": "people:runs/label", "yardstick_name": "Preferred by people"}
    for name, baseline in (("a", "bundled:x"), ("b", "bundled:y"), ("c", "bundled:x")):
        policies = {"sft": baseline, "dpo-low": f"bundled:{name}"}
        write_evaluation(tmp_path / name / "evaluate", policies, {}, seed=0, prompts=30, **judged)
    found = overview(tmp_path)
    first, apart = found.fields
    assert (first.evaluations, first.against_baseline) == (["a", "c"], True)
    assert (apart.evaluations, apart.unlike) == (["b"], ["judged against another baseline"])
    assert "two other policies were compared through it" in build_page(found)
    a, b, c = (read_evaluation(str(tmp_path / name / "evaluate")) for name in "abc")
    _refuse_incomparable(a, c)
    with pytest.raises(HandoffError, match="judged against two baselines, both named sft"):
        _refuse_incomparable(a, b)


def test_levels_of_runs_on_other_data_are_marked_and_scores_of_other_reward_models_have_charts_of_their_own(
    report: Overview,
) -> None:
    warnings = {(one.stage, one.title): one.warning for one in report.panels}
    assert warnings["dpo", "Loss"] == "Different preferences: compare the shapes, not the levels."
    assert warnings["sft", "Loss"] == ""  # the same demonstrations
    assert "Different policy" in warnings["ppo", "KL from the SFT policy"]
    assert [one.reward_model for one in report.reward_against_kl] == ["seed-0/reward", "seed-1/reward"]
    kinds = [trail.kind for trail in report.reward_against_kl[0].trails]
    assert kinds.count("evaluated") == 4
    assert kinds.count("rollouts") == 1


def test_figures_of_one_chart_are_apart_and_their_held_out_twins_are_not(tmp_path: Path) -> None:
    rows = logged(4, rewards__chosen=[1.0] * 4, rewards__rejected=[0.0] * 4, objective__scores=[1.0] * 4)
    rows.append({"step": 4, "eval_rewards/chosen": 0.9, "eval_rewards/rejected": 0.1})
    finished(tmp_path / "dpo", "dpo", {}, rows=rows)
    finished(tmp_path / "ppo", "ppo", {}, rows=[*rows, {"step": 4, "eval/score": 1.0}])
    keys = {(one.stage, one.title): [curve.key for curve in one.curves] for one in overview(tmp_path).panels}
    assert keys["dpo", "Implicit rewards: rewards/chosen"] == ["rewards/chosen", "eval_rewards/chosen"]
    assert keys["dpo", "Implicit rewards: rewards/rejected"] == ["rewards/rejected", "eval_rewards/rejected"]
    assert keys["ppo", "Score of the reward model"] == ["objective/scores", "eval/score"]


def test_runs_in_progress_failed_and_broken_are_shown_as_such(tmp_path: Path) -> None:
    done = finished(tmp_path / "done", "dpo", {}, rows=logged(8, loss=[0.7] * 8), keys={"beta": 0.1})
    part = tmp_path / "part"
    finished(part, "dpo", {}, rows=logged(8, loss=[float("nan")] * 8), keys={"beta": 0.2})
    (part / "manifest.json").unlink()
    with (part / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # torn
    failed = tmp_path / "failed"
    shutil.copytree(part, failed)
    (failed / "metrics.jsonl").unlink()
    (failed / "error.txt").write_text("Traceback")
    broken = tmp_path / "broken"
    shutil.copytree(done, broken)
    (broken / "manifest.json").write_text("{")
    old = tmp_path / "old"
    finished(old, "dpo", {}, keys={"beta": 0.3})
    manifest = json.loads((old / "manifest.json").read_text())
    for key in ("format", "processes"):
        del manifest[key]
    del manifest["config"]["learning_rate"]
    (old / "manifest.json").write_text(json.dumps(manifest))

    found = overview(tmp_path)
    states = {one.name: one.state for one in found.runs}
    assert states == {"done": "finished", "failed": "failed", "old": "finished", "part": "interrupted"}
    assert list(found.left_out) == [str(broken)]
    assert "older version" in next(one for one in found.runs if one.name == "old").notes[0]
    loss = next(one for one in found.panels if one.title == "Loss")
    assert [curve.run for curve in loss.curves] == ["done"]  # a curve of NaN is not drawn
    notes = {one.name: one.notes for one in found.runs}
    assert notes["part"] == ["loss is not a finite number at step 1 and at 7 later steps"]
    assert notes["done"] == []
    assert "interrupted; figures are of what is done" in " ".join(found.headline.caveats)
    assert "1 of DPO" not in found.headline.claim
    assert found.headline.claim == "4 runs: 4 of DPO"
    build_page(found)


def test_hostile_text_and_odd_rows_make_a_page(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    run = finished(tmp_path / "a <b>", "dpo", {}, rows=logged(3, loss=[0.7, 0.6, 0.5]), keys={"beta": 0.1})
    with (Path(run) / "metrics.jsonl").open("a") as file:
        for row in (
            {"step": float("nan"), "loss": 1},
            {"step": "4", "loss": None},
            {"step": 5, evil: 1.0},
            ["step"],
            {"loss": 2},
        ):
            file.write(json.dumps(row) + "\n")
    page = build_page(overview(tmp_path, title=evil))
    assert "<script>alert" not in page
    assert "<img" not in page
    json.loads(page.split('id="report">')[1].split("</script>")[0])  # no NaN, which a browser refuses


def test_copies_and_equal_names_get_distinct_labels(tmp_path: Path) -> None:
    finished(tmp_path / "a" / "dpo", "dpo", {}, keys={"beta": 0.1})
    finished(tmp_path / "b" / "dpo", "dpo", {}, keys={"beta": 0.2})
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    found = overview(tmp_path)
    assert [one.name for one in found.runs] == ["a/dpo", "b/dpo"]
    assert list(found.left_out) == [str(tmp_path / "c" / "dpo")]


def test_keys_of_a_stage_that_some_runs_lack_name_no_group(tmp_path: Path) -> None:
    sft = finished(tmp_path / "sft", "sft", {})
    ppo = finished(tmp_path / "ppo", "ppo", {"policy": sft}, keys={"beta": 0.2})
    finished(tmp_path / "one", "evaluate", {"policy_a": sft}, keys={"learning_rate": 0.1})
    finished(tmp_path / "two", "evaluate", {"policy_a": sft, "policy_b": ppo}, keys={"learning_rate": 0.2})
    finished(tmp_path / "three", "sample", {"policy": sft})
    finished(tmp_path / "four", "sample", {"policy": ppo})
    groups = {one.name: one.group for one in overview(tmp_path).runs}
    assert (groups["one"], groups["two"]) == ("evaluate, learning rate 0.1", "evaluate, learning rate 0.2")
    assert (groups["three"], groups["four"]) == ("sample (2)", "sample (1)")


def test_the_tokens_of_sampled_answers_are_counted_where_every_row_was_read(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "episode": 8.0, "completions/mean_length": 10.0},
        {"step": 2, "episode": 8.0, "completions/mean_length": 10.0},  # the same rollout
        {"step": 3, "episode": 16.0, "completions/mean_length": 12.5},
    ]
    one = RunRecord(str(tmp_path), "ppo", "finished", {}, rows)
    assert tokens_of(one) == 8 * 10 + 8 * 12.5
    assert tokens_of(replace(one, every=2)) is None
    assert tokens_of(replace(one, rows=[{"step": 1, "loss": 1.0}])) is None
    assert tokens_of(replace(one, rows=[*rows, {"step": 4, "num_tokens": 7}])) == 7


def test_the_command_writes_both_files_and_refuses_what_it_must(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, message = run_here("compare", study / "seed-0", study / "seed-1", "--output", "out", "--samples", "5")
    assert status == 0, message
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(Overview.model_validate(content).fields[0].samples) == 5
    for words, expected in (
        (["nowhere"], "no such run folder: nowhere"),
        ([tmp_path / "out"], "no runs in"),
        ([study, "--output", study / "seed-0" / "sft"], "is a run folder, and nothing is written into one"),
        (["overview"], "takes run folders"),
    ):
        status, message = run_here("compare", *words)
        assert status != 0
        assert expected in message


def test_the_schema_is_that_of_the_report(report: Overview) -> None:
    assert SCHEMA.read_text() == schema()
    old = report.model_dump(mode="json")
    for key in ("nodes", "edges", "agreement", "left_out", "reward_against_kl"):
        del old[key]  # as a report that lacks later parts
    assert build_page(Overview.model_validate(old))


def test_long_logs_are_read_in_part_and_held_out_rows_whole(tmp_path: Path) -> None:
    rows = [{"step": n, "loss": 1.0} | ({"eval_loss": 2.0} if n % 500 == 0 else {}) for n in range(1, 5001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    found, every, of_held_out = read_rows(tmp_path, 1000)
    assert (every, of_held_out) == (6, 1)
    assert len(found) < 900
    assert sum("eval_loss" in row for row in found) == 10
    assert found[-1]["step"] == 5000
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps({**row, "eval_loss": 2.0}) for row in rows))
    found, every, of_held_out = read_rows(tmp_path, 1000)  # where every row has one, as guards' do
    assert (every, of_held_out) == (5, 5)
    assert len(found) == 1002  # every fifth, and the last two
    assert found[-1]["step"] == 5000


def test_smoothing_keeps_constants_and_bands_span_their_curves() -> None:
    assert smooth([(s, 3.0) for s in range(5)], 0.9) == [(s, 3.0) for s in range(5)]
    assert smooth([(1, 4.0), (2, 8.0)], 0.5) == [(1, 4.0), (2, pytest.approx((0.25 * 4 + 0.5 * 8) / 0.75))]
    low, mean, high = mean_and_band([[(0, 0.0), (10, 10.0)], [(5, 9.0), (20, 9.0)]]) or ([], [], [])
    assert low[0] == (5.0, 5.0)
    assert high[0] == (5.0, 9.0)
    assert mean[-1] == (10.0, 9.5)
    assert mean_and_band([[(0, 1.0), (1, 1.0)], [(2, 1.0), (3, 1.0)]]) is None


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I cannot recommend a dose.", True),
        ("Unfortunately, I am unable to say.", True),
        ("You can't overfeed them in a week.", False),
        ("I can see why: the pump is blocked.", False),
        ("", False),
    ],
)
def test_refusals(text: str, refusal: bool) -> None:
    assert refuses(text) == refusal


# --- the page ---


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not os.path.exists(CHROMIUM):
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield opened
        opened.close()


def test_an_evaluation_that_cannot_be_read_is_named_beside_the_claim(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "study")
    file = tmp_path / "study" / "seed-0" / "evaluate" / "final" / "completions.jsonl"
    file.write_text(file.read_text()[:-40])
    found = overview(tmp_path / "study").headline
    assert any(
        one.startswith("seed-0/evaluate is not among the figures:") and "has changed since the run finished" in one
        for one in found.caveats
    )
    assert found.sentences[-1] == "Only one seed of DPO, beta 0.1 was evaluated: another seed may change the order."


def slowness() -> float:
    """How many times as slow this machine is now as one that adds up a million numbers in 0.05 s; at least 1."""
    began, total = time.process_time(), 0
    for number in range(1_000_000):
        total += number
    return max(1.0, (time.process_time() - began) / 0.05)


@pytest.mark.proof
def test_200_runs_of_10_000_steps_take_less_than_10_seconds(tmp_path: Path) -> None:
    """By the command line, in a process of its own: 40 configurations of DPO with 5 seeds each, with 4 figures a row. The
    limit is on processor time, on a machine of usual speed; the clock of this one is printed beside it."""
    slower = slowness()
    rows = logged(
        10_000, **{name: curve(10_000, 0, 1.0, 0.3) for name in ("loss", "eval_loss", "rewards__margins", "kl")}
    )
    text = "\n".join(json.dumps(row) for row in rows)
    for number in range(200):
        keys = {"beta": 0.1 + number // 5 / 100, "seed": number % 5}
        folder = Path(finished(tmp_path / "runs" / f"dpo-{number}", "dpo", {}, keys=keys, metrics={"loss": 0.3}))
        (folder / "metrics.jsonl").write_text(text)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    succeed("compare", tmp_path / "runs", "--output", tmp_path / "out")
    after, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    size = (tmp_path / "out" / "report.html").stat().st_size
    slower = (slower + slowness()) / 2
    print(
        f"{worked:.1f} s of processor time, {clock:.1f} s by the clock, {size / 1e6:.2f} MB; {slower:.1f} times as slow"
    )
    assert worked / slower < 10
    assert size < 5_000_000


def test_a_page_of_5_policies_and_200_prompts_is_below_5_mb(tmp_path: Path) -> None:
    runs = {f"p{n}": finished(tmp_path / f"p{n}", "dpo", {}, keys={"beta": 0.1 + n / 10}) for n in range(4)}
    write_evaluation(tmp_path / "evaluate", {"sft": "bundled:x", **runs}, {}, seed=0, prompts=200)
    page, found = write_overview([str(tmp_path)], OverviewArguments(output=str(tmp_path / "out")))
    assert (len(found.fields[0].policies), found.fields[0].prompts) == (5, 200)
    assert page.stat().st_size < 5_000_000


def test_the_page_works_without_a_network_and_fits_a_phone(study: Path, browser: Any, tmp_path: Path) -> None:
    page_file, _ = write_overview([str(study)], OverviewArguments(output=str(tmp_path / "out")))
    assert page_file.stat().st_size < 5_000_000
    for scheme, width in (("light", 1280), ("dark", 390)):
        page = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme).new_page()
        problems: list[str] = []
        page.on("console", lambda message, found=problems: found.append(message.text))
        page.on("pageerror", lambda error, found=problems: found.append(str(error)))
        page.on("request", lambda r, found=problems: found.append(r.url) if not r.url.startswith("file:") else None)
        page.goto(page_file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert problems == []
        if width == 1280:
            _use_controls(page)
        page.context.close()


def _use_controls(page: Any) -> None:
    page.locator("#curves svg[data-panel]").first.scroll_into_view_if_needed()
    line = page.locator("#curves polyline.mean").first
    before = line.get_attribute("points")
    page.locator("#smoothing").fill("0.96")
    assert line.get_attribute("points") != before
    page.locator("#run-search").fill("seed-0")
    assert page.locator("#runs th[data-run]:visible").count() == len(
        [name for name in page.locator("#runs th[data-run] .run-name").all_inner_texts() if name.startswith("seed-0")]
    )
    page.locator("#run-search").fill("")
    page.locator("#search").fill("Question 7:")
    assert page.locator("#sample-list article:visible").count() == 1
    page.locator("#marked").select_option("SFT")
    assert page.locator("#sample-list article:visible .answer[data-policy^=DPO] mark").count() > 0
    assert page.locator("#sample-list article:visible .answer[data-policy=SFT] mark").count() == 0
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    assert page.locator("nav").bounding_box()["y"] == 0  # sticky


def test_served_pages_follow_the_runs_on_this_machine_alone(tmp_path: Path) -> None:
    run = finished(tmp_path / "a", "dpo", {}, rows=logged(3, loss=[0.7, 0.6, 0.5]), keys={"beta": 0.1})
    live = LivePage([str(tmp_path)], OverviewArguments())
    with make_server(live, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"

        def get(path: str, **headers: str) -> str:
            with urllib.request.urlopen(urllib.request.Request(address + path, headers=headers)) as answer:
                return str(answer.read().decode())

        before, page = get("/version"), get("/")
        assert f'data-live="{before}"' in page
        assert "connect-src &#x27;self&#x27;" in page
        with (Path(run) / "metrics.jsonl").open("a") as file:
            file.write('{"step": 4, "loss": 0.4}\n')
        assert get("/version") != before
        assert '"points": [[1.0, 0.7], [2.0, 0.6], [3.0, 0.5], [4.0, 0.4]]' in get("/")
        for path, headers, status in (("/etc", {}, 404), ("/", {"Host": "elsewhere.example:80"}, 403)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                get(path, **headers)
            assert refused.value.code == status
            refused.value.close()
        server.shutdown()


def test_a_training_in_progress_shows_its_answers_and_the_time_left(tmp_path: Path) -> None:
    """Ten steps of 40 done at 3 s each, one of them slow: 30 times 3 s."""
    rows = [row | {"step_seconds": 3.0 + 100 * (row["step"] == 4)} for row in logged(10, loss=[0.7] * 10)]
    folder = Path(finished(tmp_path / "part", "dpo", {}, rows=rows, keys={"beta": 0.2}))
    record = json.loads((folder / "manifest.json").read_text()) | {"steps": 40}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "manifest.json").unlink()
    answers = [(0, "Hm.", "Hm."), (5, "Hm.", "Feed."), (10, "Hm.", "Feed <b>daily</b>.")]
    (folder / "completions.jsonl").write_text(
        "".join(
            json.dumps({"step": step, "prompt_id": "p", "prompt": "How?", "before_training": before, "completion": now})
            + "\n"
            for step, before, now in answers
        )
    )
    with (folder / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as its process does
        found = overview(tmp_path)
    (row,) = found.runs
    assert (row.state, row.steps, row.seconds_left) == ("running", 40, 90.0)
    page = build_page(found)
    assert "running at step 10 of 40, about 1 min 30 s left" in page
    (shown,) = found.training_answers
    assert (shown.step, [one["completion"] for one in shown.rows]) == (10, ["Feed <b>daily</b>."])
    assert "Feed &lt;b&gt;daily&lt;/b&gt;." in page
    assert overview(tmp_path).runs[0].seconds_left is None  # its process has ended


def test_further_yardsticks_and_benchmarks_of_an_evaluation(tmp_path: Path) -> None:
    policies, drawn = {"base": "a", "sft": "b"}, {"seed": 0, "prompts": 40}
    plain = Path(write_evaluation(tmp_path / "plain", policies, {}, **drawn))
    figures = json.loads((plain / "final" / "report.json").read_text())["policies"]
    named = [
        {"source": one, "title": one.title(), "better": "higher", "scale": [0, 1]} for one in ("rubric", "refusal")
    ]
    mean = {"mean": 0.25, "interval": [0.2, 0.3], "n_prompts": 40}
    for row in figures.values():
        row["yardsticks"] = {"rubric": mean, "refusal": mean}
        row["benchmarks"] = {"leaves": {"acc": 0.625, "acc_stderr": 0.125}}
    folder = write_evaluation(tmp_path / "several", policies, {}, **drawn, yardsticks=named, figures=figures)
    found = overview(Path(folder))
    (further,) = found.further
    assert [one["source"] for one in further.yardsticks] == ["rubric", "refusal"]
    assert further.policies["sft"]["benchmarks"]["leaves"]["acc"] == 0.625
    page = build_page(found)
    assert "Other yardsticks" in page
    assert "0.625" in page
    assert "± 0.125" in page


def test_serving_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no runs in"):
        LivePage([str(tmp_path)], OverviewArguments()).page()
