"""Rounds on a random two-layer model: three of them, one that is killed, raters who guess, and what is refused."""

from __future__ import annotations

import hashlib
import html
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import REPOSITORY, read_rows, run_here, write_config, write_rows

from tiebreak.config import StageConfig, TrackingConfig
from tiebreak.errors import RunError
from tiebreak.messages import Message, assistant
from tiebreak.records import Completion, ExportedJudgment, Judgment, Pair, Preference
from tiebreak.rounds import loop, rivals
from tiebreak.rounds.configuration import RoundsConfig, StopConfig
from tiebreak.rounds.joining import Judged, join_config, join_labels, preferences_of_judge, rows_of, share_pairs
from tiebreak.rounds.loop import State, run_round
from tiebreak.rounds.page import build_page
from tiebreak.rounds.results import read_evaluation, read_label
from tiebreak.rounds.rivals import across, rivals_of, write_pool
from tiebreak.rounds.stopping import why_distrust, why_stop, why_undecided
from tiebreak.runs.run import start_run

TRAINING = {
    "training.max_steps": 2,
    "training.per_device_batch_size": 2,
    "training.save_steps": 1,
    "training.learning_rate": 1e-3,
}
SHORT = {"sampling.max_new_tokens": 6}
ASK = (Message(role="user", content="q"),)


def write_rounds(
    folder: Path, recipe: Path, *, rounds: int = 3, label: dict[str, Any] | None = None, **keys: Any
) -> Path:
    """Rounds from the finished recipe's SFT policy, with the files of its recipe cut short."""
    (folder / "mine.py").write_text("def letters(prompt, answer):\n    return float(sum(answer.encode()) % 97)\n")
    overrides: dict[str, dict[str, Any]] = {
        "sample": {
            "max_prompts": 14,
            "batch_size": 16,
            "completions_per_prompt": 2,
            "sampling": [{"temperature": 1.0, "max_new_tokens": 6}],
        },
        "label": {
            "overlap": 2,
            "simulate.raters": 2,
            "simulate.yardstick": "mine:letters",
            "simulate.error_rate": 0.0,
            **(label or {}),
        },
        "reward": {**TRAINING, "garbage_prompts": 1},
        "dpo": {**TRAINING, **SHORT},
        "evaluate": {"max_prompts": 3, "batch_size": 4, "yardstick": "mine:letters", **SHORT},
    }
    write_config(
        folder / "select.yaml",
        output="unused",
        pairs="unused",
        selected_pairs=6,
        strategy="margin",
        reward_model="unused",
    )
    for stage in ("sample", "label", "reward", "dpo", "evaluate"):
        (folder / f"{stage}.yaml").write_text((recipe / "init" / f"{stage}.yaml").read_text())
    stages = [
        {
            "stage": stage,
            "config": folder / f"{stage}.yaml",
            "overrides": overrides.get(stage, {}),
        }
        for stage in ("sample", "select", "label", "reward", "dpo", "evaluate")
    ]
    runs = recipe / "runs"
    for entry in stages:
        if entry["stage"] in ("sample", "evaluate"):
            entry["overrides"] |= {"prompts": runs / "prepare"}
    values = {
        "name": "tiny",
        "root": folder / "rounds",
        "policy": runs / "sft",
        "rounds": rounds,
        "budget": 30,
        "tracking_mode": "disabled",
    }
    return write_config(folder / "rounds.yaml", **values, stages=stages, **keys)


def start(config: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tiebreak.command.cli", "rounds", "--config", str(config)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def hashes(root: Path) -> dict[str, str]:
    """What rounds made: rows and weights."""
    files = [*root.glob("round-*/*/final/*.jsonl"), *root.glob("round-*/*/final/*.safetensors")]
    return {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_three_rounds(tmp_path: Path, finished_recipe: Path) -> None:
    config, root = write_rounds(tmp_path, finished_recipe), tmp_path / "rounds"
    status, message = run_here("rounds", "--config", config)
    assert status == 0, message
    made = hashes(root)
    report = json.loads((root / "rounds.json").read_text())
    first, *later = report["rounds"]
    # 30 judgments of two raters a pair: 6 pairs, 6 pairs, and the 3 that are left
    assert [one["labels"] for one in report["rounds"]] == [12, 12, 6]
    assert report["bought"] == 30
    assert first["arms"] == {"random": 12}  # no reward model yet
    assert all(one["arms"]["margin"] > 0 and one["arms"]["random"] > 0 for one in later)
    assert all(one["agreement"]["value"] == 1.0 for one in report["rounds"])
    assert all(one["over_start"]["n"] == 3 and one["kl"] is not None for one in report["rounds"])
    joined = read_rows(root / "round-3" / "labels" / "final" / "preferences.jsonl")
    own = [read_rows(root / f"round-{n}" / "label" / "final" / "preferences.jsonl") for n in (1, 2, 3)]
    assert joined == [row for rows in own for row in rows]
    assert {row["kind"] for row in joined} == {"simulated"}
    manifest = json.loads((root / "round-3" / "dpo" / "manifest.json").read_text())
    assert manifest["inputs"]["policy"]["source"].endswith("round-2/dpo")
    assert manifest["kinds"] == ["simulated"]
    page = (root / "rounds.html").read_text()
    assert "The labels come from simulated raters" in page
    assert page.count("<polyline") >= 3
    # everything is there: the same command does nothing more
    assert run_here("rounds", "--config", config)[0] == 0
    assert hashes(root) == made


EVERYTHING: dict[str, Any] = {"against": ["previous", "sft", "base"], "compare_starts": True, "judge_cycles": 1}
KILLS = 10


def write_all_of_it(folder: Path, recipe: Path) -> Path:
    """Two rounds with rivals, both starts, and a cycle on a judge's verdicts."""
    folder.mkdir()
    config = write_rounds(folder, recipe, rounds=2, **EVERYTHING)
    values = yaml.safe_load(config.read_text())
    write_config(folder / "judge.yaml", output="unused", pairs="unused", function="mine:letters", injection_pairs=0)
    values["stages"].insert(1, {"stage": "judge", "config": str(folder / "judge.yaml")})
    return write_config(config, **values)


@pytest.mark.proof
def test_ten_kills_at_random_moments_end_in_the_same_hashes(tmp_path: Path, finished_recipe: Path) -> None:
    killed, uncut = (write_all_of_it(tmp_path / name, finished_recipe) for name in ("killed", "uncut"))
    started = time.monotonic()
    status, message = run_here("rounds", "--config", uncut)
    assert status == 0, message
    whole, chance = time.monotonic() - started, random.Random(0)
    made_of = tmp_path / "uncut" / "rounds"
    for _ in range(KILLS):
        process = start(killed)
        try:
            process.wait(timeout=chance.uniform(0.1, 1.0) * whole / 4)  # starts included, so that rounds get on
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    status, message = run_here("rounds", "--config", killed)
    assert status == 0, message
    made = hashes(tmp_path / "killed" / "rounds")
    assert made == hashes(made_of)
    assert {"round-2/pool/final/pairs.jsonl", "round-2/dpo-from-start/final/adapter_model.safetensors"} <= made.keys()
    pool = read_rows(made_of / "round-2" / "pool" / "final" / "pairs.jsonl")
    sampled = read_rows(made_of / "round-2" / "sample" / "final" / "pairs.jsonl")
    policies = {frozenset(one["policy"] for one in row["completions"]) for row in pool[len(sampled) :]}
    assert policies
    assert all(len(both) == 2 for both in policies)
    manifest = json.loads((made_of / "round-2" / "dpo" / "manifest.json").read_text())
    assert manifest["inputs"]["policy"]["source"].endswith("round-1/cycle-1-dpo")
    report = json.loads((made_of / "rounds.json").read_text())
    assert ["other_over_start" in one for one in report["rounds"]] == [False, True]
    assert "From the other start" in (made_of / "rounds.html").read_text()
    labels = read_rows(made_of / "round-1" / "cycle-1-labels" / "final" / "preferences.jsonl")
    assert {row["kind"] for row in labels} == {"model"}


def test_a_round_with_rivals_both_starts_and_a_judges_cycles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which stages run, in which order, on what; the stages themselves and what they write are left out."""
    ran: list[tuple[str, dict[str, Any]]] = []
    names = ["sample", "judge", "select", "label", "dpo", "evaluate"]
    for name in names:
        write_config(tmp_path / f"{name}.yaml", seed=3, **({"sampling": [{"n": 1}] * 3} if name == "sample" else {}))
    stages = [{"stage": name, "config": str(tmp_path / f"{name}.yaml")} for name in names]
    about = {"name": "r", "root": str(tmp_path / "rounds"), "policy": "runs/sft", "budget": 9, "stages": stages}
    config = RoundsConfig.model_validate({**about, **EVERYTHING, "replace": True})
    rate = {"value": 0.5, "n": 9, "interval": [0.4, 0.6]}
    labelled: dict[str, Any] = {
        "labels": 3,
        "decided": 2,
        "arms": {},
        "kinds": {},
        "agreement": {"value": None, "n": 0, "interval": None},
    }
    evaluated = {"over_start": rate, "over_previous": rate, "kl": 1.0, "score_gain": None}

    def run(*given: Any) -> None:
        keys = given[3]
        ran.append((keys["output"].removeprefix(f"{config.root}/"), keys))

    for name, stub in {
        "_run": run,
        "write_pool": lambda output, samples, replace: (
            ran.append(("pool", {"samples": samples, "replace": replace})) or str(output)
        ),
        "join_labels": lambda joined, replace: ran.append(("join", {"replace": replace})) or joined.output,
        "share_pairs": lambda _: False,
        "read_label": lambda *_: labelled,
        "read_evaluation": lambda *_: evaluated,
        "read_guard": lambda _: {},
    }.items():
        monkeypatch.setattr(loop, name, stub)
    monkeypatch.setattr(rivals, "base_of", lambda policy: f"base of {policy}")
    state = State("runs/sft")
    for number in (1, 2):
        assert run_round(config, number, state, 3, "g") == ""
    at, keys = [name for name, _ in ran], dict(ran)
    first = ["sample", "sample-base", "judge", "select", "label", "dpo"]
    cycle = ["cycle-1-sample", "cycle-1-judge", "cycle-1-dpo"]
    second = ["sample", "sample-previous", "sample-base", "judge", "select", "label", "dpo", *cycle, "dpo-from-start"]
    wanted = [f"round-1/{one}" for one in (*first, *cycle, "evaluate")] + [
        f"round-2/{one}" for one in (*second, "evaluate")
    ]
    assert [name for name in at if name not in ("pool", "join")] == wanted
    assert (at.count("pool"), at.count("join")) == (2, 4)  # each round's labels, and its cycle's
    assert all(keys["replace"] for name, keys in ran if name in ("pool", "join"))
    assert keys["round-1/sample-base"]["policy"] == "base of runs/sft"
    assert keys["round-2/sample"]["policy"].endswith("round-1/cycle-1-dpo")
    assert keys["round-2/sample-previous"]["policy"] == "runs/sft"
    assert len(keys["round-2/sample-base"]["sampling"]) == keys["round-2/sample-base"]["completions_per_prompt"] == 2
    assert keys["round-2/cycle-1-sample"]["seed"] == 1003
    assert keys["round-2/cycle-1-dpo"]["policy"].endswith("round-2/dpo")
    assert keys["round-2/dpo-from-start"]["policy"] == "runs/sft"
    assert keys["round-2/dpo"]["preferences"] == keys["round-2/dpo-from-start"]["preferences"]
    assert set(keys["round-2/evaluate"]["policies"]) == {"start", "previous", "current", "other"}
    assert set(keys["round-1/evaluate"]["policies"]) == {"start", "current"}
    labelled["decided"] = 0
    assert run_round(config, 3, state, 3, "g").startswith("round 3 is not trained on: none of its 3 judgments prefers")
    assert (ran[-1][0], state.figures[-1]["trained"]) == ("round-3/label", False)
    Path(config.root).mkdir()
    loop.write_report(config, state, "")
    assert json.loads((Path(config.root) / "rounds.json").read_text())["judge_cycles"] == 1


def test_pairs_across_two_policies_by_hand() -> None:
    def pair(policy: str, prompt: str, *texts: str) -> Pair:
        sides = tuple(Completion(id=f"{policy}-{text}", text=text, policy=policy) for text in texts)
        return Pair(id=f"{policy}-{prompt}", prompt_id=prompt, messages=ASK, completions=sides, split="validation")

    own = [pair("new", "p", "a", "b"), pair("new", "q", "c", "d")]
    found = list(across(own, [pair("old", "p", "b", "e")]))
    texts = [tuple(one.text for one in made.completions) for made in found]
    assert texts == [("a", "b"), ("a", "e"), ("b", "e")]  # b beside b is left out, and q has no rival
    assert {made.split for made in found} == {"validation"}
    assert len({made.id for made in found}) == 3


def test_a_policy_is_no_rival_of_itself_and_each_rival_counts_once() -> None:
    assert rivals_of(["previous", "sft"], "runs/sft", None, "runs/sft") == {}
    assert rivals_of(["previous", "sft"], "r1", "runs/sft", "runs/sft") == {"previous": "runs/sft"}
    assert rivals_of(["previous", "sft"], "r2", "r1", "runs/sft") == {"previous": "r1", "sft": "runs/sft"}


def test_raters_who_guess_stop_the_round_before_training(tmp_path: Path, finished_recipe: Path) -> None:
    guessing = {"simulate.error_rate": 0.5, "overlap": 3, "simulate.raters": 3}
    config = write_rounds(tmp_path, finished_recipe, label=guessing, stop={"judged_twice": 5})
    status, message = run_here("rounds", "--config", config)
    assert status == 0, message
    assert "round 1 is not trained on: the raters agree in" in message
    assert "not above chance (50%)" in message
    assert not (tmp_path / "rounds" / "round-1" / "dpo").exists()
    report = json.loads((tmp_path / "rounds" / "rounds.json").read_text())
    assert [one["trained"] for one in report["rounds"]] == [False]
    assert "No round has trained a policy yet" in (tmp_path / "rounds" / "rounds.html").read_text()


def test_people_are_waited_for(tmp_path: Path, finished_recipe: Path) -> None:
    config = write_rounds(tmp_path, finished_recipe, label={"simulate.enabled": False})
    status, message = run_here("rounds", "--config", config)
    assert status == 0, message
    assert (tmp_path / "rounds" / "round-1" / "select" / "manifest.json").is_file()
    assert not (tmp_path / "rounds" / "round-1" / "label").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"budget": 0}, "budget: input should be greater than or equal to 1, not 0"),
        ({"judge_cycles": 1}, "judge_cycles: needs the stages judge and dpo"),
        ({"against": ["sft", "sft"]}, "against: each name once"),
        (
            {"stages": ["sample", "label", "evaluate", "dpo"]},
            "in this order: sample, label, dpo, evaluate",
        ),
        ({"stages": ["sample", "label", "dpo", "evaluate"]}, "select: missing"),
        ({"stages": ["sample", "select", "label", "evaluate"]}, "a round trains by dpo or by ppo: name one of them"),
        ({"stages": ["sample", "select", "label", "ppo", "evaluate"]}, "reward: missing"),
        ({"stages": ["prepare", "sample"]}, "prepare: a round has sample"),
    ],
)
def test_what_cannot_be_rounds(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    names = keys.pop("stages", ["sample", "select", "label", "dpo", "evaluate"])
    stages = [{"stage": name, "config": f"configs/quickstart/{name}.yaml"} for name in names]
    config = write_config(
        tmp_path / "r.yaml", **{"name": "r", "root": "x", "policy": "p", "budget": 5, "stages": stages, **keys}
    )
    status, found = run_here("rounds", "--config", config)
    assert status == 2
    assert message in found


def test_a_budget_of_less_than_a_pair_is_refused(tmp_path: Path) -> None:
    folders = {"select": "rounds"}
    stages = [
        {"stage": name, "config": f"configs/{folders.get(name, 'quickstart')}/{name}.yaml"}
        for name in ("sample", "select", "label", "dpo", "evaluate")
    ]
    config = write_config(tmp_path / "r.yaml", name="r", root=str(tmp_path / "x"), policy="p", budget=2, stages=stages)
    status, found = run_here("rounds", "--config", config)
    assert (status, "budget: 2, but a pair takes 3 judgments (overlap of label)" in found) == (2, True), found
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("changed", "keys", "message"),
    [
        ("select", {"strategy": "margin"}, "every round would select at random: add a stage reward to the rounds"),
        ("select", {"strategy": "judge_unsure"}, "add a stage judge to the rounds"),
        ("evaluate", {"split": "train"}, "measures the policies on the prompts that rounds train on"),
    ],
)
def test_rounds_that_would_mislead_are_refused(
    tmp_path: Path, changed: str, keys: dict[str, Any], message: str
) -> None:
    folders = {"select": "rounds"}
    stages = [
        {
            "stage": name,
            "config": f"configs/{folders.get(name, 'quickstart')}/{name}.yaml",
            "overrides": keys if name == changed else {},
        }
        for name in ("sample", "select", "label", "dpo", "evaluate")
    ]
    config = write_config(tmp_path / "r.yaml", name="r", root=str(tmp_path / "x"), policy="p", budget=9, stages=stages)
    status, found = run_here("rounds", "--config", config)
    assert (status, message in found) == (2, True), found
    assert not (tmp_path / "x").exists()


def one_round(low: float, previous: float, kl: float = 1.0) -> dict[str, Any]:
    rate = {"value": 0.6, "n": 9, "interval": [low, 0.9]}
    return {"over_start": rate, "over_previous": {**rate, "interval": [previous, 0.9]}, "kl": kl}


def test_when_rounds_stop() -> None:
    """By hand: each rule at its edge."""
    gain, none = one_round(0.55, 0.51), one_round(0.55, 0.5)
    assert why_stop([gain], StopConfig()) == ""
    assert "its lower bound is 55%" in why_stop([gain], StopConfig(win_rate_above=0.54))
    assert why_stop([gain], StopConfig(win_rate_above=0.55)) == ""
    assert why_stop([none, gain, none], StopConfig(rounds_without_gain=2)) == ""
    assert (
        why_stop([gain, none, none], StopConfig(rounds_without_gain=2))
        == "no gain over the previous policy in 2 rounds"
    )
    assert why_stop([none], StopConfig(rounds_without_gain=2)) == ""
    assert "1.0 nats" in why_stop([gain], StopConfig(max_kl=0.9))
    assert why_stop([{**gain, "guard_step": 50}], StopConfig()) == ""
    assert "the guard kept the policy" in why_stop([{**gain, "guard_step": 0}], StopConfig())
    low = {"value": 0.52, "n": 40, "interval": [0.38, 0.66]}
    assert "agree in 52% of 40 pairs of votes (95% interval 38% to 66%)" in why_distrust(low, StopConfig())
    assert why_distrust({**low, "n": 29}, StopConfig()) == ""
    assert why_distrust({**low, "interval": [0.51, 0.8]}, StopConfig()) == ""
    assert why_distrust({"value": None, "n": 0, "interval": None}, StopConfig()) == ""


def test_rounds_in_one_store_count_and_learn_their_own_pairs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second round's export has the first one's three judgments too, and a duel's: bought were two and that of f, a
    corrected pair, and joined are three preferences and three, each once."""
    rows = {
        name: {"prompt": [{"role": "user", "content": name}], "chosen": [{"role": "assistant", "content": "good"}],
               "rejected": [{"role": "assistant", "content": "poor"}], "pair_id": name, "kind": "human"}
        for name in "abcdef"
    }  # fmt: skip
    two = tuple(Completion(id=f"c{n}", text=f"{n}") for n in (1, 2))
    vote = {"rater_id": "r", "left": "c1", "right": "c2", "answer": 1, "kind": "human"}
    labels, selected = [], []
    for number, (own, exported, judged) in enumerate([("abc", "abc", "abc"), ("de", "abcdef", "abcdefx")], start=1):
        label, select = tmp_path / f"label-{number}", tmp_path / f"select-{number}"
        pairs = [Pair(id=name, prompt_id=name, messages=ASK, completions=two).model_dump(mode="json") for name in own]
        for folder in (label, select):
            (folder / "final").mkdir(parents=True)
        write_rows(select / "final" / "pairs.jsonl", pairs)
        write_rows(label / "final" / "preferences.jsonl", [rows[name] for name in exported])
        write_rows(label / "final" / "judgments.jsonl", [{"pair_id": name, **vote} for name in judged])
        labels.append(str(label))
        selected.append(select)
    first, second = read_label(Path(labels[0]), selected[0]), read_label(Path(labels[1]), selected[1], labels[:1])
    assert [(one["labels"], one["decided"]) for one in (first, second)] == [(3, 3), (3, 3)]
    assert (share_pairs(labels[:1]), share_pairs(labels)) == (False, True)
    found: list[Any] = []
    monkeypatch.setattr(loop, "join_labels", lambda joined, _: found.append(joined) or "joined")
    assert (
        loop.join(RoundsConfig.model_construct(data="all", replace=False), tmp_path, State("p", labels=labels))
        == "joined"
    )
    assert [row.pair_id for row in rows_of(found[0], "preferences.jsonl")] == list("abcdef")
    of_round = RoundsConfig.model_construct(data="round", replace=False)
    assert loop.join(of_round, tmp_path, State("p", labels=labels[:1])) == labels[0]
    loop.join(of_round, tmp_path, State("p", labels=labels))
    assert [row.pair_id for row in rows_of(found[1], "preferences.jsonl")] == list("def")


def test_raters_that_the_labels_leave_out_do_not_end_the_rounds(tmp_path: Path) -> None:
    """Two raters agree on all pairs, and a third always takes the left, which is the other answer on every second pair."""
    label, select = (tmp_path / name for name in ("label", "select"))
    two = tuple(Completion(id=c, text=c) for c in "xy")
    pairs = [Pair(id=str(n), prompt_id=str(n), messages=ASK, completions=two) for n in range(60)]
    votes = [
        {"pair_id": str(n), "left": "x", "right": "y", "answer": -1 if rater == "lazy" or n % 2 else 1, "rater_id": rater,
         "kind": "human"}
        for n in range(60)
        for rater in ("r", "lazy")
    ]  # fmt: skip
    votes += [{**one, "rater_id": "s"} for one in votes if one["rater_id"] == "r"]
    write_rows(select / "final" / "pairs.jsonl", [pair.model_dump(mode="json") for pair in pairs])
    write_rows(label / "final" / "judgments.jsonl", votes)
    write_rows(label / "final" / "preferences.jsonl", [])
    (label / "manifest.json").write_text("{}")
    figures = read_label(label, select)
    assert (figures["labels"], figures["agreement"]["value"]) == (180, pytest.approx(2 / 3, abs=1e-6))
    (label / "final" / "report.json").write_text(json.dumps({"aggregation": {"exclude_raters": ["lazy"]}}))
    figures = read_label(label, select)
    assert (figures["labels"], figures["agreement"]["value"]) == (180, 1.0)


def test_a_round_of_ties_alone_is_not_trained_on(tmp_path: Path) -> None:
    """Exported both ways, ties have strength 0; a judge's preference does not count."""
    label, select = (tmp_path / name for name in ("label", "select"))
    for folder in (label, select):
        (folder / "final").mkdir(parents=True)
    pair = Pair(id="a", prompt_id="a", messages=ASK, completions=tuple(Completion(id=c, text=c) for c in "xy"))
    write_rows(select / "final" / "pairs.jsonl", [pair.model_dump(mode="json")])
    vote = {"pair_id": "a", "left": "x", "right": "y", "answer": 0}
    write_rows(label / "final" / "judgments.jsonl", [{**vote, "rater_id": r, "kind": "human"} for r in "rs"])
    sides = {"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": "x"}],
             "rejected": [{"role": "assistant", "content": "y"}], "pair_id": "a"}  # fmt: skip
    rows = [{**sides, "strength": 0, "kind": "human"}, {**sides, "strength": 2, "kind": "model"}]
    write_rows(label / "final" / "preferences.jsonl", rows)
    figures = read_label(label, select)
    assert (figures["labels"], figures["decided"]) == (2, 0)
    assert why_undecided(figures).startswith("none of its 2 judgments prefers an answer: ties")
    write_rows(label / "final" / "preferences.jsonl", [*rows, {**sides, "strength": 1, "kind": "human"}])
    assert why_undecided(read_label(label, select)) == ""


def test_another_pool_and_other_labels_are_refused_or_moved_aside(tmp_path: Path) -> None:
    """After a changed file, --replace runs the stages again: what was pooled and joined of the old ones goes aside too."""
    rows = {"sample": "pairs.jsonl", "label": "preferences.jsonl"}
    made = {}
    for name in ("sample-1", "sample-2", "label-1", "label-2"):
        stage = name.split("-")[0]
        config = StageConfig(output=str(tmp_path / name), tracking=TrackingConfig(mode="disabled"))
        with start_run(config, stage, {}) as run:
            (run.final / rows[stage]).write_text("")
            (run.final / "judgments.jsonl").write_text(f'{{"made": "{name}"}}')  # so that the two differ
            run.finish()
        made[name] = str(run.folder)

    def pool(n: int, replace: bool) -> str:
        return write_pool(tmp_path / "pool", [made[f"sample-{n}"]], replace)

    def join(n: int, replace: bool) -> str:
        return join_labels(join_config(tmp_path / "labels", [made[f"label-{n}"]], []), replace)

    for write, name in ((pool, "pool"), (join, "labels")):
        assert write(1, False) == write(1, True) == str(tmp_path / name)
        with pytest.raises(RunError, match=rf"{name} holds another run, .* Give --replace to move it aside"):
            write(2, False)
        assert not (tmp_path / f"{name}.replaced-1").exists()
        assert write(2, True) == str(tmp_path / name)
        assert (tmp_path / f"{name}.replaced-1" / "manifest.json").is_file()


def test_a_judge_labels_what_people_did_not_get() -> None:
    ask = (Message(role="user", content="q"),)

    def pair(name: str) -> Pair:
        two = tuple(Completion(id=f"{name}{n}", text=f"{name} {n}") for n in (1, 2))
        return Pair(id=name, prompt_id=name, messages=ask, completions=two)

    def said(name: str, answer: int) -> Judgment:
        return Judgment(pair_id=name, rater_id="j", left=f"{name}2", right=f"{name}1", answer=answer, kind="model")

    pool = [pair(name) for name in "abc"]
    with_people = [pool[0].model_copy(update={"id": "other"})]
    found = preferences_of_judge(pool, [said("a", 2), said("b", -3), said("c", 0)], with_people)
    [one] = found  # a is with people, c is a tie
    assert (one.chosen_text, one.rejected_text, one.strength, one.margin, one.kind) == ("b 2", "b 1", 3.0, 1.0, "model")


def test_a_judges_verdicts_are_training_pairs_that_no_round_gave_to_people(tmp_path: Path) -> None:
    """Round 1 gives a to people; round 2's pool has a and b again, c, and h, which is held out. The judge labels b and c,
    each once."""

    def made(stage: str, name: str, **files: list[Any]) -> str:
        config = StageConfig(output=str(tmp_path / name), tracking=TrackingConfig(mode="disabled"))
        with start_run(config, stage, {}) as run:
            for file, rows in files.items():
                write_rows(run.final / f"{file}.jsonl", [row.model_dump(mode="json") for row in rows])
            run.finish()
        return str(run.folder)

    def pair(name: str, number: int) -> Pair:
        two = tuple(Completion(id=f"{name}{side}-{number}", text=f"{name} {side}") for side in "xy")
        split: Any = "validation" if name == "h" else "train"
        return Pair(id=f"{name}{number}", prompt_id=name, messages=ASK, completions=two, split=split)

    def verdict(one: Pair) -> ExportedJudgment:
        left, right = (side.id for side in one.completions)
        return ExportedJudgment(pair_id=one.id, rater_id="j", left=left, right=right, answer=1, kind="model")

    judged = []
    for number, names, given in ((1, "ab", "a"), (2, "abch", "")):
        pool = [pair(name, number) for name in names]
        judge = made("judge", f"judge-{number}", judgments=[verdict(one) for one in pool])
        people = [one for one in pool if one.prompt_id in given]
        source = made("sample", f"pool-{number}", pairs=pool)
        judged.append({"judge": judge, "pool": source, "selected": made("select", f"select-{number}", pairs=people)})
    label = made(
        "label",
        "label",
        judgments=[],
        preferences=[Preference(prompt=ASK, chosen=assistant("a x"), rejected=assistant("a y"))],
    )
    config = join_config(tmp_path / "labels", [label], [Judged.model_validate(one) for one in judged])
    rows = read_rows(Path(join_labels(config)) / "final" / "preferences.jsonl")
    assert [(row["kind"], row["chosen"][0]["content"]) for row in rows[1:]] == [("model", "b y"), ("model", "c y")]
    alone = join_config(tmp_path / "cycle", [], [Judged(judge=judged[1]["judge"], pool=judged[1]["pool"])])
    assert (
        len(read_rows(Path(join_labels(alone)) / "final" / "preferences.jsonl")) == 4
    )  # a cycle has no other held-out


def test_several_answers_to_a_prompt_count_as_their_mean(tmp_path: Path) -> None:
    """Means: the current policy .5 and 1, the start 0 and .5: both prompts are won. Answer by answer it is .75 of 4."""
    values = {"current": {"p": [1, 0], "q": [1, 1]}, "start": {"q": [1, 0], "p": [0, 0]}}
    rows = [
        {"policy": policy, "prompt_id": prompt, "yardstick_score": value}
        for policy, prompts in values.items()
        for prompt, each in prompts.items()
        for value in each
    ]
    write_rows(tmp_path / "final" / "completions.jsonl", rows)
    figures = {"score_mean": None, "n_prompts": 2, "kl_per_sequence": 1.0}
    report = {"policies": dict.fromkeys(values, figures), "yardstick": "rubric"}
    (tmp_path / "final" / "report.json").write_text(json.dumps(report))
    found = read_evaluation(tmp_path)
    assert (found["over_start"]["value"], found["over_start"]["n"]) == (1.0, 2)


def test_agreement_on_copies_of_a_comparison_is_no_surer(tmp_path: Path) -> None:
    """Eight prompts, on six of which the raters agree: three pairs at each prompt leave the interval as it is."""
    two = tuple(Completion(id=name, text=name) for name in "ab")

    def measured(copies: int) -> dict[str, Any]:
        final = tmp_path / str(copies) / "final"
        ids = [f"{n}-{k}" for n in range(8) for k in range(copies)]
        pairs = [Pair(id=name, prompt_id=name[0], messages=ASK, completions=two) for name in ids]
        votes = [
            ExportedJudgment(pair_id=name, rater_id=rater, left="a", right="b", answer=answer, kind="human")
            for name in ids
            for rater, answer in (("r", 1), ("s", 1 if int(name[0]) < 6 else -1))
        ]
        written: dict[str, list[Any]] = {"pairs": pairs, "judgments": votes, "preferences": []}
        for file, rows in written.items():
            write_rows(final / f"{file}.jsonl", [row.model_dump(mode="json") for row in rows])
        figure = read_label(final.parent, final.parent)["agreement"]
        assert isinstance(figure, dict)
        return figure

    one, three = measured(1), measured(3)
    assert (one["value"], one["n"], three["value"], three["n"]) == (0.75, 8, 0.75, 24)
    assert three["interval"] == pytest.approx(one["interval"], abs=2e-6)


def test_the_page_names_simulated_raters_and_unlike_starts() -> None:
    rate = {"value": 0.6, "n": 9, "interval": [0.4, 0.8]}
    figures = {"round": 1, "labels": 3, "arms": {}, "kinds": {"human": 1, "simulated": 2}, "trained": True, "kl": 1.0}
    figures |= {
        "agreement": rate,
        "over_start": rate,
        "over_previous": rate,
        "other_over_start": rate,
        "score_gain": 0.1,
    }
    report = {"name": "r", "start": "s", "budget": 9, "bought": 3, "stopped": "", "rounds": [figures]}
    page, with_cycles = (html.unescape(build_page(one)) for one in (report, {**report, "judge_cycles": 1}))
    assert "Part of the labels come from simulated raters" in page
    assert "a higher score alone" in page
    assert "had no judge cycles" not in page
    assert "had no judge cycles" in with_cycles
