"""`tiebreak reward` and `tiebreak reward report` on a tiny model: an ensemble, its scale, its report, and refusals."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from support import TINY_TRAINING, read_rows, run_here, write_config, write_rows

from reward.examples import EncodedPreference
from reward.train import RewardConfig, label
from reward.trainer import LabelCollator
from tiebreak.chat.build import build_chat
from tiebreak.config import AdapterConfig, TrainingConfig
from tiebreak.data.reading import read_preferences
from tiebreak.errors import DataError
from tiebreak.models.find import find_model
from tiebreak.models.load import load_trained_reward_model
from tiebreak.models.scores import combine_scores, read_score_scale, score_spread
from tiebreak.models.tokenizers import load_tokenizer
from tiebreak.packed.logprobs import member_scores_in_batches, scores_in_batches
from tiebreak.runs.run import read_manifest, read_metrics

MEMBERS = 3


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, raw_data: Path) -> Path:
    """The folder of a finished reward run of three members, with soft labels, weights, margins and samples."""
    folder = tmp_path_factory.mktemp("ensemble")
    rows = read_rows(raw_data / "preferences.jsonl")
    labels = [{"agreement": 1.0, "weight": 1.0}, {"agreement": 2 / 3, "weight": 0.5}, {"margin": 0.25, "weight": 2.0}]
    rows = [
        {**row, **labels[n // 6 % 3], "raters": ["ann", "bo", "cy"], "tags": [f"t{n // 6 % 2}"]}
        for n, row in enumerate(rows)
    ]
    answers = ["Once a week.", "Twice a day, at dawn.", "Only when the tips turn brown."]
    pair = {
        "id": "pair-1",
        "prompt_id": "prompt-1",
        "messages": [{"role": "user", "content": "How often?"}],
        "completions": [{"id": f"c{n}", "text": text, "policy": "sft"} for n, text in enumerate(answers)],
    }
    config = write_config(
        folder / "reward.yaml",
        output=folder / "reward",
        policy=tiny_model,
        adapter={"r": 4, "alpha": 8},
        preferences=write_rows(folder / "preferences.jsonl", rows),
        samples=write_rows(folder / "pairs.jsonl", [pair]),
        members=MEMBERS,
        soft_labels=True,
        garbage_prompts=2,
        training={**TINY_TRAINING, "max_steps": 3},
    )
    status, message = run_here("reward", "--config", config)
    assert status == 0, message
    return folder / "reward"


def test_an_ensemble_trains_and_is_verified_in_a_fresh_process(ensemble: Path) -> None:
    manifest = read_manifest(ensemble)
    assert manifest["probe_difference"] <= 1e-5
    assert len(json.loads((ensemble / "final" / "probe.json").read_text())["values"]) == MEMBERS
    rows = [row for row in read_metrics(ensemble) if "loss" in row]
    assert len(rows) == 3
    assert all(math.isfinite(row["loss"]) and row["spread"] > 0 for row in rows)
    assert any("eval_spread" in row for row in read_metrics(ensemble))


def test_members_reload_and_agree_with_what_was_reported(ensemble: Path) -> None:
    source = find_model(str(ensemble), kind="reward")
    model, tokenizer = load_trained_reward_model(source, TrainingConfig()), load_tokenizer(source)
    sequences = [tokenizer(text)["input_ids"] for text in ("one text", "another, longer text")]
    members = member_scores_in_batches(model, sequences, tokenizer.pad_token_id, 2)
    assert [len(row) for row in members] == [MEMBERS, MEMBERS]
    assert len({round(score, 6) for score in members[0]}) == MEMBERS  # heads of their own
    means = scores_in_batches(model, sequences, tokenizer.pad_token_id, 2)
    assert means == pytest.approx([statistics.fmean(row) for row in members])
    for row in read_rows(ensemble / "final" / "validation_scores.jsonl"):
        assert row["chosen"] == pytest.approx(statistics.fmean(row["chosen_members"]))


def test_the_scale_is_that_of_the_samples(ensemble: Path) -> None:
    scale = read_score_scale(ensemble / "final")
    source = find_model(str(ensemble), kind="reward")
    model, tokenizer = load_trained_reward_model(source, TrainingConfig()), load_tokenizer(source)
    texts = ("Once a week.", "Twice a day, at dawn.", "Only when the tips turn brown.")
    rendered = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "How often?"}, {"role": "assistant", "content": text}], tokenize=False
        ).rstrip("\n")
        for text in texts
    ]
    scores = scores_in_batches(model, [tokenizer(t)["input_ids"] for t in rendered], tokenizer.pad_token_id, 4)
    assert scale.samples == 3
    assert scale.score_mean == pytest.approx(statistics.fmean(scores), abs=1e-5)
    assert scale.score_std == pytest.approx(statistics.pstdev(scores), abs=1e-5)
    assert len(scale.offsets) == MEMBERS
    assert sum(scale.offsets) == pytest.approx(0.0, abs=1e-6)


def test_the_report_is_written_beside_the_run(ensemble: Path) -> None:
    report = json.loads((ensemble / "report.json").read_text())
    assert report == json.loads((ensemble / "final" / "report.json").read_text())
    assert report["n"] == 4
    assert report["spread"]["members"] == MEMBERS
    assert [row["rater"] for row in report["raters"]] == ["ann", "bo", "cy"]
    by = {one["name"]: {row["value"]: row["n"] for row in one["rows"]} for one in report["slices"]}
    assert by["Agreement of the raters"] == {"all of them": 2, "fewer": 1, "not known": 1}
    assert by["Tag of the prompt"] == {"t0": 2, "t1": 2}
    assert {row["kind"] for row in report["garbage"]["kinds"]} >= {"empty", "repeated", "copied"}
    assert read_score_scale(ensemble / "final").temperature == report["calibration"]["temperature"]
    assert "final/report.json" in read_manifest(ensemble)["outputs"]
    assert str(ensemble) in (ensemble / "report.html").read_text()
    assert str(ensemble) not in (ensemble / "final" / "report.json").read_text()


def test_the_command_writes_the_same_figures_again_and_refuses_rows_it_was_trained_on(
    ensemble: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    words = ("reward", "report", "--reward-model", ensemble, "--output", again, "--garbage-prompts", "2")
    status, message = run_here(*words)
    assert status == 0, message
    first, second = (json.loads((folder / "report.json").read_text()) for folder in (ensemble, again))
    assert second["accuracy"] == first["accuracy"]
    assert second["calibration"]["before"]["nll"] == pytest.approx(first["calibration"]["before"]["nll"], abs=1e-5)
    assert "report: file://" in message
    trained_on = [row for row in read_rows(ensemble.parent / "preferences.jsonl") if row["split"] == "train"]
    seen = write_rows(tmp_path / "seen.jsonl", trained_on)
    words = ("reward", "report", "--reward-model", ensemble, "--preferences", seen, "--output", tmp_path / "x")
    status, message = run_here(*words)
    assert status == 1
    assert "\nerror: " in message
    assert "has no preference whose prompt" in message


def test_scores_combine_by_mean_and_spread() -> None:
    """Mean (1 + 2 + 6)/3 = 3, deviation √((4 + 1 + 9)/3)."""
    members = torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]])
    deviation = math.sqrt(14 / 3)
    assert combine_scores(members).tolist() == pytest.approx([3.0, 5.0])
    assert combine_scores(members, 0.5).tolist() == pytest.approx([3.0 - 0.5 * deviation, 5.0])
    assert score_spread(members, torch.tensor([-2.0, -1.0, 3.0])).tolist()[0] == pytest.approx(0.0)
    assert combine_scores(torch.tensor([[4.0]]), 2.0).tolist() == [4.0]


def test_labels_follow_the_configuration(raw_data: Path, tmp_path: Path) -> None:
    """strength 2 of 3, margin of its own, a kept tie, and neither: by each way to use them."""
    rows = read_rows(raw_data / "preferences.jsonl")[:4]
    columns: list[dict[str, Any]] = [
        {"strength": 2, "agreement": 0.75, "raters": list("abcd"), "weight": 1.0},
        {"strength": None, "margin": 0.25, "confidence": 0.9, "weight": 2.0},
        {"strength": 0, "confidence": 0.5, "weight": 0.5},
        {"strength": None, "weight": 0.5},
    ]
    source = write_rows(tmp_path / "p.jsonl", [{**row, **one} for row, one in zip(rows, columns, strict=True)])
    examples = [EncodedPreference([1], [2], [3], 0.0, p) for p in read_preferences(str(source))]

    def labels(**changes: Any) -> tuple[list[float], list[float], list[float]]:
        config = RewardConfig(output="x", policy="y", preferences="z", **changes)
        found = label(examples, config)
        return [e.margin for e in found], [e.target for e in found], [e.weight[0] for e in found]

    margins, targets, weights = labels()
    assert margins == pytest.approx([2 / 3, 0.25, 0, 0])
    assert targets == [1, 1, 0.5, 1]  # a tie is one in any case
    assert weights == [1, 2, 0.5, 0.5]  # their mean is 1 already
    margins, targets, weights = labels(strength_as="weight", soft_labels=True, use_weights=False)
    assert margins == [0, 0, 0, 0]
    assert targets == pytest.approx([3.5 / 5, 0.9, 0.5, 1])
    assert weights == pytest.approx([8 / 5, 4 / 5, 4 / 5, 4 / 5])  # 2, 1, 1, 1 over their mean
    assert labels(margin_scale=2.0)[0] == pytest.approx([4 / 3, 0.5, 0, 0])


def test_nothing_with_any_weight_is_refused(tmp_path: Path, raw_data: Path) -> None:
    rows: list[Any] = [{**row, "weight": 0.0} for row in read_rows(raw_data / "preferences.jsonl")]
    preferences = read_preferences(str(write_rows(tmp_path / "p.jsonl", rows)))
    examples = [EncodedPreference([1], [2], [3], 0.0, p) for p in preferences]
    config = RewardConfig(output="x", policy="y", preferences="z")
    with pytest.raises(DataError, match="every preference has weight 0"):
        label(examples, config)
    assert [e.weight for e in label(examples, config.model_copy(update={"use_weights": False}))][:1] == [(1.0,)]


def test_ppo_mounts_every_member_and_knows_the_scale(ensemble: Path, tiny_model: Path) -> None:
    from preference.policy.backbone import load_backbone
    from preference.policy.rewards import Conversations, MountedReward, load_reward, saved_scale

    training = TrainingConfig(precision="float32")
    policy, reward = find_model(str(tiny_model)), find_model(str(ensemble), kind="reward")
    tokenizer = load_tokenizer(policy)
    backbone = load_backbone(policy, training, AdapterConfig(r=4, alpha=8), tokenizer)
    seen = Conversations(build_chat(tokenizer), {})
    mounted = load_reward(reward, 1.0, backbone, policy, seen, training, "reward", spread_penalty=0.5)
    assert isinstance(mounted, MountedReward)
    backbone.eval()
    prompts, completions = [[40, 41], [50]], [[42, 43, 44], [51, 52]]
    sequences = [p + c for p, c in zip(prompts, completions, strict=True)]
    alone = member_scores_in_batches(load_trained_reward_model(reward, training), sequences, tokenizer.pad_token_id, 2)
    assert [len(row) for row in alone] == [MEMBERS, MEMBERS]
    scale = read_score_scale(ensemble / "final")
    expected = [
        statistics.fmean(row) - 0.5 * statistics.pstdev([s - o for s, o in zip(row, scale.offsets, strict=True)])
        for row in alone
    ]
    assert mounted.scores(prompts, completions) == pytest.approx(expected, abs=1e-5)
    assert saved_scale(mounted) is None  # the saved figures are those of the plain mean
    assert saved_scale(dataclasses.replace(mounted, spread_penalty=0.0)) == (scale.score_mean, scale.score_std)


def test_rows_with_trls_columns_alone_are_certain_and_equal() -> None:
    batch = LabelCollator(pad_token_id=0)([{"chosen_ids": [1, 2], "rejected_ids": [3]}] * 2)
    assert batch["input_ids"].tolist() == [[1, 2], [1, 2], [3, 0], [3, 0]]
    assert [batch[name].tolist() for name in ("margin", "target", "weight")] == [[0, 0], [1, 1], [[1], [1]]]
