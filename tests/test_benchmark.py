"""The benchmarks on a tiny model: contestants run, losses agree, tables and files say the same."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY, SHARED_DATA, write_rows


def run_benchmark(script: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """`python benchmarks/SCRIPT …`, which must end well."""
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", *map(str, words)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture
def reward_accuracy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import reward_accuracy

    return reward_accuracy


@pytest.mark.proof
def test_the_benchmark_measures_ours_beside_trls_in_fresh_processes(tiny_model: Path, tmp_path: Path) -> None:
    written = tmp_path / "results.json"
    words = ["--only", "dpo, multi-turn", "--rows", "2", "--steps", "3", "--contestants", "trl"]
    done = run_benchmark("training.py", *words, "--model", tiny_model, "--results", written)
    (result,) = json.loads(written.read_text())
    ours, theirs = result["contestants"]["ours"], result["contestants"]["trl"]
    assert ours["losses"][0] == pytest.approx(0.6931, abs=1e-3)  # ln 2
    assert len(set(ours["losses"])) == 3
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-3)
    assert result["losses_agree"]
    assert result["ours / trl"]["throughput"] == pytest.approx(
        (theirs["step_seconds"] + theirs["setup_seconds"]) / ours["step_seconds"]
    )
    assert ours["padded_tokens_a_row"] > ours["tokens_a_row"]
    assert 0 < ours["matrix_product_share"] < 1.2
    assert f"| {ours['peak_mib']:.0f} |" in " ".join(done.stdout.split("\n"))


def ppo_result(model: Path, written: Path, *others: str) -> tuple[dict[str, Any], str]:
    """What the case `ppo` writes of ours and of `others`, and what it prints: two rollouts of eight episodes."""
    words = ["--only", "ppo", "--rows", "2", "--rollouts", "2", "--contestants", *others]
    done = run_benchmark("training.py", *words, "--model", model, "--results", written)
    (result,) = json.loads(written.read_text())
    assert result["case"] == "ppo, multi-turn"
    return result, done.stdout


@pytest.mark.proof
def test_ppo_is_measured_a_rollout_at_a_time_and_its_memory_beside_sfts(tiny_model: Path, tmp_path: Path) -> None:
    result, printed = ppo_result(tiny_model, tmp_path / "results.json", "our sft")
    ours, sft = result["contestants"]["ours"], result["contestants"]["our sft"]
    assert len(ours["steps"]) == len(ours["losses"]) == 2
    assert ours["step_seconds"] == ours["steps"][1]
    assert set(ours["phases"]) == {"generate", "assess", "update"}
    assert min(ours["phases"].values()) > 0
    assert sum(ours["phases"].values()) == pytest.approx(ours["step_seconds"], rel=0.05)
    assert ours["first_rollout"]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert ours["first_rollout"]["score_deviation"] > 0.01
    assert ours["losses"][0] != ours["losses"][1]
    # completions are of 32 tokens, and SFT's conversations begin with the same prompts
    prompts = ours["tokens_a_row"] - 32
    assert 0 < prompts < sft["tokens_a_row"]
    assert ours["tokens_per_second"] * ours["step_seconds"] == pytest.approx(8 * (prompts + 32))
    assert len(sft["losses"]) == 4
    assert result["ours / our sft"] == {"memory": pytest.approx(ours["peak_mib"] / sft["peak_mib"])}
    met = result["ours / our sft"]["memory"] <= 1.3
    assert f"memory ÷ our sft ≤ 1.3: {'met' if met else 'MISSED'}" in printed


def test_ppo_and_trls_begin_alike(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same reward model (else a side refuses to train), no KL, scores of one mean; TRL pays for padding."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import ppo

    if not ppo.environment_is_made():
        pytest.skip("TRL 1.12's environment is not there: benchmarks/training.py --only ppo makes it")
    result, printed = ppo_result(tiny_model, tmp_path / "results.json", ppo.TRL)
    ours, theirs = result["contestants"]["ours"], result["contestants"][ppo.TRL]
    assert theirs["first_rollout"]["kl"] == pytest.approx(0.0, abs=1e-3)
    assert result["first_kls_are_zero"]
    assert result["first_scores_agree"]
    assert theirs["tokens_a_row"] == ours["tokens_a_row"] < theirs["padded_tokens_a_row"]
    assert len(theirs["steps"]) == 2
    assert sum(theirs["phases"].values()) == pytest.approx(theirs["step_seconds"], rel=0.05)
    ratio = theirs["step_seconds"] / ours["step_seconds"]
    assert result[f"ours / {ppo.TRL}"]["throughput"] == pytest.approx(ratio)
    assert f"| {ratio:.2f} |" in printed


def test_unlike_beginnings_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: deviations 3 and 4 over 25 episodes make a standard error of 1."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import ppo
    from measuring import Measurement
    from rollouts import Job, require_same_scores

    def began(kl: float, mean: float, deviation: float) -> Measurement:
        first = {"kl": kl, "score_mean": mean, "score_deviation": deviation}
        return Measurement([], 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, first_rollout=first)

    compared = ppo.first_rollouts({"ours": began(0.0, 2.0, 3.0), ppo.TRL: began(2e-6, 0.5, 4.0)}, 25)
    assert compared["first_scores_apart_in_standard_errors"] == pytest.approx(1.5)
    assert compared["first_kls_are_zero"]
    assert compared["first_scores_agree"]
    compared = ppo.first_rollouts({"ours": began(0.0, 5.0, 3.0), ppo.TRL: began(-0.2, 0.5, 4.0)}, 25)
    assert not compared["first_kls_are_zero"]
    assert not compared["first_scores_agree"]
    job = Job("", "", "", "", "", [[1], [2]], [0.5, -20.0], episodes_a_step=1, rollouts=2)
    require_same_scores([0.5005, -20.01], job)
    with pytest.raises(SystemExit, match=r"scores a prompt -20\.100000 here, and -20\.000000"):
        require_same_scores([0.5, -20.1], job)


def test_sft_reward_and_dpo_are_trained_as_the_stages_build_them(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step each, in this process. An adapter changes nothing before the first step: SFT's loss is then transformers' of
    the model itself, DPO's ln 2, and a random reward model's about ln 2."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import torch
    import training
    from transformers import AutoModelForCausalLM

    from tiebreak.models.find import find_model
    from tiebreak.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(find_model(str(tiny_model)))
    pairs = [training.Pair([5, 6, 7], [n, 9, 2], [n, 11, 12, 2]) for n in range(20, 24)]
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = [torch.tensor([pair.prompt + pair.chosen]) for pair in pairs[:2]]
    labels = [torch.tensor([[-100] * len(pair.prompt) + pair.chosen]) for pair in pairs[:2]]
    own = sum(float(model(input_ids=i, labels=answer).loss.detach()) for i, answer in zip(ids, labels, strict=True)) / 2
    for stage, loss, tolerance in (("sft", own, 1e-4), ("reward", math.log(2), 0.3), ("dpo", math.log(2), 1e-4)):
        budget = training.Budget(rows=2, steps=1)
        folder = tmp_path / stage
        trainer = training.build_contestant(stage, "ours", pairs, budget, str(tiny_model), tokenizer, str(folder))
        trainer.train()
        assert next(row["loss"] for row in trainer.state.log_history if "loss" in row) == pytest.approx(
            loss, abs=tolerance
        )


@pytest.mark.proof
def test_labelling_is_measured_in_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its parts in their smallest forms: nothing is lost, doubled or given to too many."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import labeling

    monkeypatch.setattr(labeling, "MANY", 2_000)
    rows = {
        part: labeling.measure(part, made_folder(tmp_path / part), 0.2, 1) for part in ("store", "kills", "million")
    }
    (store,), (kills,), (following, dashboard) = rows.values()
    assert store.measured.keys() == {"claims and submissions a second", "of one process"}  # else faults are among them
    assert kills.measured.keys() == {"kills", "acknowledged judgments"}
    assert kills.reached
    assert following.measured["n"] // 20 == dashboard.measured["n"] > 0
    assert "the first dashboard after a start took" in capsys.readouterr().out


def test_a_server_is_killed_only_after_it_has_acknowledged_a_judgment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while raters log in, it could lose nothing, and the benchmark would find nothing lost."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import labeling

    load = labeling.Load("http://127.0.0.1:1")
    living: list[subprocess.Popen[bytes]] = []
    starts: list[int] = []

    def start(*_: Any) -> subprocess.Popen[bytes]:
        starts.append(len(load.acknowledged))
        return subprocess.Popen(["sleep", "60"])

    async def acknowledge() -> None:
        for n in range(3):
            await asyncio.sleep(0.1)
            assert len(starts) == n + 1, "nothing is killed before the next judgment"
            load.acknowledged.add(f"judgment {n}")
            while len(starts) < n + 2:
                await asyncio.sleep(0.01)

    async def both() -> None:
        await asyncio.gather(labeling.kill_now_and_then(load, tmp_path, living, 1, 3), acknowledge())

    monkeypatch.setattr(labeling, "start_server", start)
    monkeypatch.setattr("random.uniform", lambda *_: 0.0)
    living.append(start())
    try:
        asyncio.run(both())
        assert starts == [0, 1, 2, 3]
        assert [one.poll() for one in living] == [-9, -9, -9, None]
    finally:
        living[-1].kill()
        living[-1].wait()


def made_folder(path: Path) -> Path:
    path.mkdir()
    return path


# --- what the reward model learns


def choices(folder: Path, questions: int = 40) -> Path:
    """Made choices in the files of the real ones: of each question's three answers the shorter is always the better one,
    and every question has a tie as well."""
    rows = []
    for n in range(questions):
        answers = [f"Lamp {n} needs" + " more light" * times + "." for times in (1, 4, 9)]
        pairs = [(0, 1, False), (0, 2, False), (1, 2, False), (2, 0, True)]
        rows += [
            {"prompt": f"What does lamp {n} need?", "chosen": answers[a], "rejected": answers[b], "tie": tie}
            for a, b, tie in pairs
        ]
    return write_rows(folder / "pairs.jsonl", rows).parent


@pytest.mark.proof
def test_ours_and_trls_learn_the_same_from_the_same_choices(tiny_model: Path, tmp_path: Path) -> None:
    written = tmp_path / "results.json"
    budget = ["--rows", "4", "--steps", "3", "--seeds", "5", "--learning-rate", "1e-3"]
    files = ["--data", choices(tmp_path), "--results", written]
    done = run_benchmark("reward_accuracy.py", *budget, *files, "--model", tiny_model)
    result = json.loads(written.read_text())
    assert result["data"] == {
        "train_pairs": 96,  # three without a tie of 32 questions
        "train_questions": 32,
        "held_out_pairs": 24,
        "held_out_questions": 8,
        "too_long": 0,
    }
    ours, theirs = (result["contestants"][name]["seeds"]["5"] for name in ("ours", "trl"))
    assert len(set(ours["losses"])) == 3
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-3)
    assert ours["mean"] == pytest.approx(theirs["mean"], abs=1 / 24)  # one pair whose scores are nearly equal
    assert theirs["plain_difference"] < 1e-3
    assert result["ours - trl"]["mean"] == pytest.approx(ours["mean"] - theirs["mean"])
    assert result["length"] == {"mean": 1.0, "interval": [1.0, 1.0], "prefers": "shorter", "train_accuracy": 1.0}
    low, high = ours["interval"]
    assert f"| ours, seed 5 | {ours['mean']:.3f} | {low:.3f} to {high:.3f} |" in done.stdout


def test_a_seed_is_of_head_adapter_and_order(reward_accuracy: Any, tiny_model: Path, tmp_path: Path) -> None:
    from tiebreak.models.find import find_model
    from tiebreak.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(find_model(str(tiny_model)))
    data = reward_accuracy.read_data(choices(tmp_path), tokenizer, False, 0.2)

    def start(seed: int) -> tuple[Any, Any, list[Any]]:
        budget = reward_accuracy.Budget(2, 4, seed)
        pairs = reward_accuracy.in_order(data.train, budget)
        trainer = reward_accuracy.build_contestant(
            "reward", "ours", pairs, budget, str(tiny_model), tokenizer, str(tmp_path)
        )
        weights = dict(trainer.model.named_parameters())
        head = next(weight for name, weight in weights.items() if ".score." in name)
        adapter = next(weight for name, weight in weights.items() if "lora_A" in name)
        return head, adapter, pairs

    (head, adapter, pairs), again, other = start(0), start(0), start(5)
    assert bool((head == again[0]).all())
    assert bool((adapter == again[1]).all())
    assert pairs == again[2]
    assert not bool((head == other[0]).any())
    assert not bool((adapter == other[1]).any())
    assert pairs != other[2]


def test_length_alone_is_judged_on_held_out_pairs_in_the_direction_of_the_others(reward_accuracy: Any) -> None:
    def choice(chosen: int, rejected: int) -> Any:
        return reward_accuracy.Choice("asked", reward_accuracy.Pair([1], [2] * chosen, [3] * rejected))

    # the longer is better in one, the shorter in three, one says nothing: (1 + ½)/5 for the longer, 3.5/5 for the shorter
    train = [choice(5, 2), choice(1, 3), choice(2, 4), choice(2, 3), choice(4, 4)]
    held_out = [choice(9, 1), choice(8, 2), choice(1, 6), choice(3, 3)]  # here the longer would have been right
    found = reward_accuracy.prefer_by_length(train, held_out)
    assert (found["prefers"], found["right"]) == ("shorter", [0.0, 0.0, 1.0, 0.5])
    assert found["train_accuracy"] == pytest.approx(0.7)
    found = reward_accuracy.prefer_by_length(held_out, train)
    assert (found["prefers"], found["right"]) == ("longer", [1.0, 0.0, 0.0, 0.0, 0.5])
    assert found["train_accuracy"] == pytest.approx(2.5 / 4)


def test_figures_of_two_seeds_by_hand(reward_accuracy: Any) -> None:
    """Three held-out pairs of two questions; ours is right in 1, ½ and 1 of them over the seeds, TRL's in ½, 0, 1."""
    module = reward_accuracy
    pairs = [module.Pair([1], [2] * n, [3]) for n in (3, 2, 1)]
    held_out = [module.Choice(question, pair) for question, pair in zip("aab", pairs, strict=True)]
    data = module.Data(held_out, held_out, 0)

    def learned(*seeds: list[float], loss: float) -> dict[int, Any]:
        return {n: module.TrainingResult([1.0, loss + n], values, 1.0, 1.0, None) for n, values in enumerate(seeds)}

    both = {
        "ours": learned([0.3, 0.1, 2.0], [0.2, -0.1, 1.0], loss=0.5),
        "trl": learned([0.3, -0.2, 2.0], [-0.2, -0.1, 1.0], loss=0.25),
    }
    result = module.summarise(data, module.prefer_by_length(held_out, held_out), both)
    assert result["contestants"]["ours"]["mean"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert result["contestants"]["trl"]["mean"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert [one["mean"] for one in result["contestants"]["ours"]["seeds"].values()] == pytest.approx([1, 2 / 3])
    assert result["ours - trl"]["mean"] == pytest.approx((0.5 + 0.5 + 0) / 3)
    # of the questions' four draws two hold both, one a alone (difference ½) and one b alone (0)
    assert result["ours - trl"]["interval"] == pytest.approx((0.0, 0.5))
    assert result["ours - trl"]["same_choice"] == pytest.approx(4 / 6)
    assert result["ours - trl"]["largest_loss_difference"] == pytest.approx(0.25)
    assert result["length"]["mean"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert result["ours - length"]["mean"] == pytest.approx((0 - 0.5 + 0.5) / 3)


def test_budget_beyond_the_data_sees_every_pair_again(reward_accuracy: Any) -> None:
    pairs = [reward_accuracy.Pair([n], [n], [n]) for n in range(5)]
    choices = [reward_accuracy.Choice("asked", pair) for pair in pairs]
    seen = [pair.prompt[0] for pair in reward_accuracy.in_order(choices, reward_accuracy.Budget(3, 4))]
    assert len(seen) == 12
    assert sorted(seen[:5]) == sorted(seen[5:10]) == list(range(5))
    assert seen[:5] != seen[5:10]


def test_no_question_is_on_both_sides_of_the_real_choices(reward_accuracy: Any, tiny_model: Path) -> None:
    folder = SHARED_DATA / "finegrained-qa-feedback"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    from tiebreak.models.find import find_model
    from tiebreak.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(find_model(str(tiny_model)))
    data = reward_accuracy.read_data(folder, tokenizer, False, 0.2)
    asked, examined = ({tuple(choice.pair.prompt) for choice in side} for side in (data.train, data.held_out))
    assert not asked & examined
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    assert len(data.train) + len(data.held_out) + data.too_long == sum(not row["tie"] for row in rows)
    assert len(examined) / (len(asked) + len(examined)) == pytest.approx(0.2, abs=1e-3)


def test_a_packed_score_that_is_not_the_models_own_is_refused(reward_accuracy: Any) -> None:
    from tiebreak.errors import HandoffError

    assert reward_accuracy.compare([1.0, -20.0], [1.0, -20.015]) == pytest.approx(0.015)  # of 20: rounding
    with pytest.raises(HandoffError, match=r"2\.0e-03 off"):
        reward_accuracy.compare([0.5, 0.1], [0.5, 0.102])
    with pytest.raises(HandoffError):
        reward_accuracy.compare([0.5], [float("nan")])


def test_without_the_data_the_benchmark_says_so(
    reward_accuracy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", ["…", "--data", str(tmp_path / "nowhere"), "--results", str(written)])
    reward_accuracy.main()
    assert "nowhere" in capsys.readouterr().err
    assert not written.exists()


@pytest.mark.proof
def test_prepare_killed_by_the_kernel_resumes_to_the_same_bytes(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "room"
    done = run_benchmark(
        "data_room.py", "--rows", "400", "--kill", "--compare", "300", "--policy", tiny_model, "--folder", folder
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["same_bytes_after_kill"] is True
    assert figures["kills"] == 1
    report = json.loads((tmp_path / "room" / "run" / "final" / "report.json").read_text())
    assert report["dropped"] == {"the same as": 19, "near duplicate of": 19}
    assert figures["rows"] == 400
    assert 0 < figures["peak_memory_gb"] < 2
