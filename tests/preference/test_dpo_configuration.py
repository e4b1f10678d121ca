"""What DPO refuses before it loads anything: losses that it does not have, and settings that go with none of them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from support import run_here
from trl import DPOConfig as DPOArguments

from preference.configuration import LOSSES_OF_BATCHES, LOSSES_OF_PAIRS, DPOConfig, PPOConfig
from reward.configuration import RewardConfig


def config(**values: Any) -> DPOConfig:
    return DPOConfig(output="x", policy="x", preferences="x", **values)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["sigmiod"], "no 'sigmiod' among DPO's losses; did you mean sigmoid"),
        (["simpo"], "--algorithm simpo"),
        (["orpo"], "--algorithm orpo"),
        (["cpo"], "without a reference policy: --algorithm cpo"),
        (["KTO"], "--algorithm kto"),
        (["apo_zero_unpaired"], "it is one of --algorithm kto"),
        (["grpo"], "tiebreak ppo --algorithm grpo"),
        (["dpo"], "called sigmoid"),
        (["sigmoid", "hinge", "sigmoid"], "sigmoid is listed twice"),
        (["zzz"], "which are sigmoid, hinge, ipo"),
        ([], "at least one"),
    ],
)
def test_losses_that_dpo_does_not_have(asked: list[str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(loss_type=asked)


def test_both_of_two_wrong_losses_are_named() -> None:
    with pytest.raises(ValidationError, match=r"'simpo'.*'sigmiod'"):
        config(loss_type=["simpo", "sigmiod"])


def test_exo_pair_needs_smoothing() -> None:
    """Its loss has log(label_smoothing) in it."""
    with pytest.raises(ValidationError, match="exo_pair takes its logarithm"):
        config(loss_type=["exo_pair"])
    config(loss_type=["exo_pair"], label_smoothing=0.001)


def test_every_loss_of_trl_is_in_one_of_the_two_families() -> None:
    """TRL names its losses in the help of its own argument."""
    import dataclasses
    import re

    (field,) = (field for field in dataclasses.fields(DPOArguments) if field.name == "loss_type")
    named = set(re.findall(r"'(\w+)'", field.metadata["help"]))
    assert named == set(LOSSES_OF_PAIRS) | set(LOSSES_OF_BATCHES)


@pytest.mark.parametrize("kind", ["dpo", "ppo", "reward"])
def test_dropout_is_refused_where_it_would_be_switched_off(kind: str) -> None:
    """TRL switches it off in DPO and reward training, PPO does itself."""
    data = {"prompts": "x", "reward_model": "x"} if kind == "ppo" else {"preferences": "x"}
    model = {"dpo": DPOConfig, "ppo": PPOConfig, "reward": RewardConfig}[kind]
    with pytest.raises(ValidationError, match="trains without dropout"):
        model(output="x", policy="x", adapter={"dropout": 0.1}, **data)


def test_from_the_command_line(tmp_path: Any) -> None:
    words = ("dpo", "--output", tmp_path / "out", "--policy", "nowhere", "--preferences", "nowhere")
    status, message = run_here(*words, "--loss_type", "sigmiod", "--beta", "0.2")
    assert status == 2
    assert "there is no 'sigmiod' among DPO's losses; did you mean sigmoid" in message
    assert not (tmp_path / "out").exists()
