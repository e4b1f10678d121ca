"""The reference's log-probabilities: computed once, kept, and never believed when damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import run_of
from toy_language import build_toy_policy, toy_preferences, toy_rewards, toy_tokenizer, with_adapter

from preference.dpo import CheckedDPOTrainer, DPOConfig, build_dpo_args
from preference.pairs import EncodedPair, to_dataset
from preference.reference import ReferenceLogps
from tiebreak.config import TrainingConfig
from tiebreak.packed.forward import pack_forward

FACTS = {"base": "a", "adapter": None}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TIEBREAK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def batch(*pairs: tuple[list[int], list[int], list[int]]) -> dict[str, Any]:
    """Pairs in TRL's layout, padded to six tokens."""
    rows = [(p, c) for p, c, _ in pairs] + [(p, r) for p, _, r in pairs]
    return {
        "input_ids": torch.tensor([[*p, *c, *[0] * (6 - len(p) - len(c))] for p, c in rows]),
        "attention_mask": torch.tensor([[1] * (len(p) + len(c)) + [0] * (6 - len(p) - len(c)) for p, c in rows]),
        "completion_mask": torch.tensor([[0] * len(p) + [1] * len(c) + [0] * (6 - len(p) - len(c)) for p, c in rows]),
    }


ONE, OTHER = ([5, 6], [7], [8, 9]), ([5], [6, 7], [4])


class CountingModel:
    """Answers a pair with functions of its ids, and remembers how often it was asked."""

    def __init__(self) -> None:
        self.pairs = 0

    def __call__(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        self.pairs += len(inputs["input_ids"]) // 2
        sums = -(inputs["input_ids"] * inputs["completion_mask"]).sum(1).float() / 3
        chosen, rejected = sums.chunk(2)
        return chosen, rejected


EXPECTED = ([-7 / 3, -13 / 3], [-17 / 3, -4 / 3])


def ask(facts: dict[str, Any] = FACTS) -> tuple[CountingModel, ReferenceLogps, tuple[list[float], list[float]]]:
    compute, reference = CountingModel(), ReferenceLogps(facts)
    chosen, rejected = reference.of(batch(ONE, OTHER), compute)
    return compute, reference, (chosen.tolist(), rejected.tolist())


def test_pairs_are_computed_once_and_found_by_the_next_run() -> None:
    compute, reference, values = ask()
    assert values == (pytest.approx(EXPECTED[0]), pytest.approx(EXPECTED[1]))
    assert compute.pairs == reference.computed == 2
    again, _, same = ask()
    assert again.pairs == 0
    assert same == values  # to the last bit


def test_another_model_another_mask_and_swapped_sides_are_other_pairs() -> None:
    ask()
    assert ask({"base": "b", "adapter": None})[0].pairs == 2
    compute, reference = CountingModel(), ReferenceLogps(FACTS)
    prompt, chosen, rejected = ONE
    reference.of(batch((prompt, rejected, chosen)), compute)
    reference.of(batch((prompt[:1], prompt[1:] + chosen, prompt[1:] + rejected)), compute)
    assert compute.pairs == 2
    reference.of(batch(OTHER), compute)
    assert compute.pairs == 2


THREE = ([5, 6], [7], [8, 9], [4])
"""a prompt with three answers"""


def test_all_answers_of_a_prompt_are_computed_with_the_first_of_its_pairs() -> None:
    """Three answers are two pairs of TRL's layout, the odd one its own partner; the other pairs find them."""
    prompt, one, two, three = THREE
    pairs = [(prompt, one, two), (prompt, one, three), (prompt, three, two)]
    for order in (pairs, pairs[::-1]):  # the data set is the same
        compute, reference = CountingModel(), ReferenceLogps({"order": order}, pairs=pairs)
        for pair in order:
            chosen, rejected = reference.of(batch(pair), compute)
            assert chosen.tolist() == pytest.approx([-sum(pair[1]) / 3])
            assert rejected.tolist() == pytest.approx([-sum(pair[2]) / 3])
        assert compute.pairs == 2
        assert reference.computed == 1
    again = CountingModel()
    ReferenceLogps({"order": pairs[::-1]}, pairs=pairs[::-1][1:]).of(batch(pairs[0]), again)
    assert again.pairs == 2  # of another data set: the answers stand in another order, so the group is another


def test_answers_that_the_data_set_lacks_are_computed_as_the_pair_they_come_in() -> None:
    compute = CountingModel()
    reference = ReferenceLogps(FACTS, pairs=[ONE])
    chosen, rejected = reference.of(batch(ONE, OTHER), compute)
    assert (chosen.tolist(), rejected.tolist()) == (pytest.approx(EXPECTED[0]), pytest.approx(EXPECTED[1]))
    assert reference.computed == 2


def cut_off(data: bytes) -> bytes:
    return data[:-5]


def flip_a_digit(data: bytes) -> bytes:
    place = data.index(b"-2.33")
    return data[: place + 1] + b"3" + data[place + 2 :]


def fill_with_zeros(data: bytes) -> bytes:
    return data[: len(data) // 2] + b"\0" * (len(data) - len(data) // 2)


@pytest.mark.parametrize("damage", [cut_off, flip_a_digit, fill_with_zeros])
def test_a_damaged_line_is_computed_again_and_the_others_are_kept(damage: Callable[[bytes], bytes]) -> None:
    """As after `kill -9` in the middle of a write, a flipped bit, or a file system that lost the tail."""
    _, reference, values = ask()
    reference.path.write_bytes(damage(reference.path.read_bytes()))
    compute, _, same = ask()
    assert compute.pairs == 1
    assert same == values
    assert ask()[0].pairs == 0  # and the file is whole again


def build(folder: Path, beta: float, epochs: int) -> CheckedDPOTrainer:
    training = TrainingConfig(
        learning_rate=1e-2, epochs=epochs, per_device_batch_size=8, precision="float32", max_length_tokens=16
    )
    config = DPOConfig(output=str(folder), policy="", preferences="", training=training, beta=beta)
    args = build_dpo_args(config, run_of(folder, "dpo", config))
    args.save_strategy, args.disable_tqdm = "no", True
    rows = [EncodedPair(*row) for row in toy_preferences(toy_rewards(), rivals=1)[:32]]
    trainer = CheckedDPOTrainer(
        model=with_adapter(build_toy_policy()),
        args=args,
        train_dataset=to_dataset(rows),
        eval_dataset=to_dataset(rows[:8]),
        processing_class=toy_tokenizer(),
    )
    assert not pack_forward(trainer.model, together=2)
    return trainer


def losses(trainer: CheckedDPOTrainer) -> list[float]:
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_trl_trains_on_the_kept_values_as_on_its_own(tmp_path: Path) -> None:
    """A second epoch, an evaluation and a second beta compute nothing, and the losses are TRL's."""
    plain = build(tmp_path / "plain", beta=0.5, epochs=2)
    expected = losses(plain)
    trainer = build(tmp_path / "kept", beta=0.5, epochs=2)
    trainer.reference = ReferenceLogps(FACTS)
    assert losses(trainer) == pytest.approx(expected, abs=1e-5)
    distinct = trainer.reference.computed
    assert 0 < distinct <= 32
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], abs=1e-5)
    assert trainer.reference.computed == distinct
    other = build(tmp_path / "other", beta=2.0, epochs=1)
    other.reference = ReferenceLogps(FACTS)
    losses(other)
    assert other.reference.computed == 0
