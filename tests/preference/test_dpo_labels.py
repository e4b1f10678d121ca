"""What rows' weights, confidences and margins do in DPO: TRL's losses, hand-worked numbers, and runs without the rows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_world import World, write_preferences
from support import read_rows, run_here, run_of, write_rows
from toy_language import build_toy_policy, toy_tokenizer, with_adapter

from preference.configuration import LOSSES_OF_PAIRS, DPOConfig
from preference.dpo import CheckedDPOTrainer, build_dpo_args
from preference.losses import PAIR_LOSSES, Pairs, labelled_loss
from preference.pairs import EncodedPair, PairCollator, weigh
from preference.pairs import to_dataset as to_rows
from tiebreak.config import TrainingConfig
from tiebreak.errors import ConfigError, DataError
from tiebreak.records import Preference
from tiebreak.training.labels import Label, unused_columns

SMOOTHING = {"robust": 0.1, "exo_pair": 0.1}


def config(**values: Any) -> DPOConfig:
    return DPOConfig(output="x", policy="x", preferences="x", **values)


ROWS = [
    EncodedPair([2, 3, 4], [5, 6, 1], [7, 1]),
    EncodedPair([4, 5], [3, 1], [2, 2, 6, 1]),
    EncodedPair([6, 2], [4, 4, 7, 3, 1], [5, 1]),
]


def build_trainer(folder: Path, rows: list[EncodedPair] = ROWS, **settings: Any) -> CheckedDPOTrainer:
    """On a policy whose adapter is not at its start."""
    chosen = config(**{"training": TrainingConfig(precision="float32", per_device_batch_size=3), **settings})
    lm = with_adapter(build_toy_policy(), rank=4)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return CheckedDPOTrainer(
        model=lm,
        args=build_dpo_args(chosen, run_of(folder, "dpo", chosen)),
        train_dataset=to_rows(rows),
        processing_class=toy_tokenizer(),
        data_collator=PairCollator(pad_token_id=0),
    )


def pairs_of(chosen: list[float], rejected: list[float], margin: float = 0.0, beta: float = 0.5) -> Pairs:
    count = len(chosen)
    return Pairs(
        torch.tensor(chosen, dtype=torch.float64, requires_grad=True),
        torch.tensor(rejected, dtype=torch.float64, requires_grad=True),
        torch.full((count,), 4.0),
        torch.full((count,), 5.0),
        torch.full((count,), margin, dtype=torch.float64),
        beta=beta,
        smoothing=0.1,
    )


@pytest.mark.parametrize("loss", LOSSES_OF_PAIRS)
def test_a_label_that_says_nothing_gives_trls_loss(loss: str, tmp_path: Path) -> None:
    """Value and gradient, of a policy that has left its reference."""
    trainer = build_trainer(tmp_path, loss_type=[loss], beta=0.5, label_smoothing=SMOOTHING.get(loss, 0.0))
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if ".default." in name and "lora_B" in name:
                parameter.mul_(1.3)
    trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(3)])
    labels = {"margin": torch.zeros(3), "target": torch.ones(3), "weight": torch.ones(3)}
    found = []
    for inputs in (dict(batch), {**batch, **labels}):
        value = trainer._compute_loss(trainer.model, inputs, return_outputs=False)
        value.backward()
        found.append((value.detach(), [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]))
        trainer.model.zero_grad()
    torch.testing.assert_close(found[1][0], found[0][0])
    assert len(found[0][1]) > 10
    for ours, theirs in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_every_loss_of_pairs_has_its_function() -> None:
    assert set(PAIR_LOSSES) == set(LOSSES_OF_PAIRS)


def test_a_weight_counts_as_so_many_rows() -> None:
    """Weights 1, 2, 1 of mean 4/3: as if the second row stood there twice."""
    ones = torch.ones(4, dtype=torch.float64)
    weights = torch.tensor([0.75, 1.5, 0.75], dtype=torch.float64)
    for name in LOSSES_OF_PAIRS:
        weighted = labelled_loss([name], pairs_of([0.2, -1.0, 3.0], [0.1, 0.4, -2.0]), ones[:3], weights)
        repeated = labelled_loss([name], pairs_of([0.2, -1.0, -1.0, 3.0], [0.1, 0.4, 0.4, -2.0]), ones, ones)
        assert weighted.item() == pytest.approx(repeated.item()), name


def test_margins_and_uncertain_labels_by_hand() -> None:
    """β·Δ = 0.5·(3 − 1) = 1. A margin of 1 reduces it to 0; a label of ¾ weighs both directions."""
    one = torch.ones(1, dtype=torch.float64)
    assert labelled_loss(["sigmoid"], pairs_of([3.0], [1.0], margin=1.0), one, one).item() == pytest.approx(math.log(2))
    soft = labelled_loss(["sigmoid"], pairs_of([3.0], [1.0]), 0.75 * one, one).item()
    assert soft == pytest.approx(0.75 * math.log1p(math.exp(-1)) + 0.25 * math.log1p(math.exp(1)))
    a_token = labelled_loss(["sigmoid_norm"], pairs_of([4.0], [5.0], margin=0.5), one, one).item()
    assert a_token == pytest.approx(math.log1p(math.exp(0.5)))  # 4/4 − 5/5 = 0
    added = labelled_loss(["hinge", "ipo"], pairs_of([3.0], [1.0]), one, one).item()
    assert added == pytest.approx(0.0 + (3 / 4 - 1 / 5 - 1) ** 2)


@pytest.mark.parametrize("loss", [name for name in LOSSES_OF_PAIRS if name != "apo_down"])
@pytest.mark.parametrize("target", [1.0, 0.5])
def test_a_tie_kept_both_ways_has_no_gradient_at_the_start(loss: str, target: float) -> None:
    """Two rows of weight ½, in either direction, whether their confidence of ½ is learned or not.

    Not apo_down, which lowers the chosen answer too.
    """
    tie = replace(
        pairs_of([0.0, 0.0], [0.0, 0.0]),
        chosen_tokens=torch.tensor([4.0, 5.0]),
        rejected_tokens=torch.tensor([5.0, 4.0]),
    )
    half = torch.full((2,), 0.5, dtype=torch.float64)
    labelled_loss([loss], tie, torch.full_like(half, target), half).backward()
    assert tie.chosen.grad is not None
    assert tie.rejected.grad is not None
    answers = tie.chosen.grad + tie.rejected.grad.flip(0)  # the second row has the same answers, swapped
    assert answers.abs().max() < 1e-12


# --- rows


def example(weight: float, margin: float = 0.0) -> EncodedPair:
    return EncodedPair([1], [2], [3], None, Label(margin, 1.0, weight))


def test_weights_are_brought_to_mean_one_and_rows_of_no_weight_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    weighed = weigh([example(2.0), example(0.0), example(1.0), example(0.0)], config())
    assert [one.label.weight for one in weighed] == pytest.approx([4 / 3, 2 / 3])
    assert "2 of 4 preferences have weight 0" in capsys.readouterr().err
    with pytest.raises(DataError, match="every preference has weight 0"):
        weigh([example(0.0)], config())
    assert weigh([example(0.0)], config(), needed=False) == []


@pytest.mark.parametrize("loss", ["aot", "aot_unpaired", "sft"])
def test_losses_of_whole_batches_refuse_rows_that_count_differently(loss: str) -> None:
    with pytest.raises(ConfigError, match=f"loss_type: {loss} compares a batch as a whole.*use sigmoid, hinge"):
        weigh([example(1.0), example(0.5)], config(loss_type=["sigmoid", loss]))
    assert len(weigh([example(0.5), example(0.5), example(0.0)], config(loss_type=[loss]))) == 2
    ties = [EncodedPair([1], [2], [3], None, Label(target=0.5)), example(1.0)]
    with pytest.raises(ConfigError, match="leave ties"):
        weigh(ties, config(loss_type=[loss]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"strength_as": "margin", "loss_type": ["ipo"]},
            "strength_as: margin: ipo cannot take it; sigmoid, sigmoid_norm",
        ),
        ({"strength_as": "weight", "loss_type": ["aot"]}, "strength_as: weight: aot cannot take it"),
        (
            {"soft_labels": True, "loss_type": ["sigmoid", "nca_pair"]},
            "soft_labels: nca_pair cannot take it; sigmoid",
        ),
    ],
)
def test_a_loss_that_a_column_has_no_meaning_for(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_a_column_that_is_not_used_is_named() -> None:
    answer = {"role": "assistant", "content": "x"}
    row = {"prompt": [{"role": "user", "content": "y"}], "chosen": [answer], "rejected": [{**answer, "content": "z"}]}

    def of(**columns: Any) -> list[Preference]:
        return [Preference.model_validate({**row, **columns})]

    assert unused_columns(of(), config()) == ""
    assert unused_columns(of(margin=0.5, confidence=0.9), config()) == (
        "margin (strength_as: margin), confidence (soft_labels: true)"
    )
    assert unused_columns(of(margin=0.5, confidence=0.9), config(strength_as="margin", soft_labels=True)) == ""


def test_rows_without_labels_bring_no_columns() -> None:
    """So that TRL's own loss is computed, to its very bits."""
    plain, labelled = [example(1.0), example(1.0)], [example(1.5), example(0.5)]
    assert "weight" not in to_rows(plain).column_names
    rows = to_rows(labelled)
    batch = PairCollator(pad_token_id=0)([rows[0], rows[1]])
    assert batch["weight"].tolist() == [1.5, 0.5]
    assert batch["target"].tolist() == [1.0, 1.0]


# --- whole runs


def reversed_rows(rows: list[dict[str, Any]], **columns: Any) -> list[dict[str, Any]]:
    return [{**row, "chosen": row["rejected"], "rejected": row["chosen"], **columns} for row in rows]


def trained(stage: str, world: World, folder: Path, rows: list[dict[str, Any]]) -> bytes:
    data = write_rows(folder / "rows.jsonl", rows)
    status, message = run_here(
        *(stage, "--output", folder / "out", "--policy", world.policy, "--preferences", data),
        *("--validation-share", "0", "--tracking.mode", "disabled", "--adapter.r", "2", "--adapter.alpha", "4"),
        *("--training.max-length-tokens", "32", "--training.learning-rate", "0.01", "--training.max-steps", "3"),
    )
    assert status == 0, message
    return (folder / "out" / "final" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("stage", ["dpo", "reward"])
def test_rows_of_weight_0_are_as_if_they_were_not_there(stage: str, world: World, tmp_path: Path) -> None:
    """To the bit: every preference once more in reverse, of weight 0, trains the weights of a run without those rows."""
    rows = read_rows(write_preferences(tmp_path / "preferences.jsonl", count=12))
    both = [one for pair in zip(rows, reversed_rows(rows, weight=0.0), strict=True) for one in pair]
    alone = trained(stage, world, tmp_path / "alone", rows)
    assert trained(stage, world, tmp_path / "both", both) == alone
    assert trained(stage, world, tmp_path / "unweighted", [{**row, "weight": 1.0} for row in both]) != alone
