"""The registry of stages: every entry is whole, and what a stage reads is recorded under the names that old runs have."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from support import REPOSITORY

from tiebreak.command.help import configuration_class
from tiebreak.command.table import COMMANDS
from tiebreak.config import read_yaml
from tiebreak.config.keys import keys_of
from tiebreak.errors import ConfigError
from tiebreak.stages import STAGES, Stage

GUARD = {"reward_model": "runs/guard"}
INPUTS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "prepare": (
        {"prompts": ["p", "q"], "demonstrations": ["d"]},
        {"data_0": "p", "data_1": "q", "data_2": "d"},
    ),
    "synthesise": (
        {"methods": {"self-instruct": 1}, "demonstrations": ["d"], "against": ["t"], "model": "m"},
        {"demonstrations_0": "d", "test_set_0": "t", "model": "m"},
    ),
    "sft": ({"policy": "m", "demonstrations": "d"}, {"policy": "m", "demonstrations": "d"}),
    "sample": ({"policy": "m", "prompts": "p"}, {"policy": "m", "prompts": "p"}),
    "judge": (
        {"pairs": "p", "model": "m", "people": "l"},
        {"pairs": "p", "model": "m", "people": "l"},
    ),
    "select": (
        {"pairs": "p", "selected_pairs": 1, "strategy": "judge_unsure", "judges": ["j"], "judged": ["l"]},
        {"pairs": "p", "judges.0": "j", "judged.0": "l"},
    ),
    "label": ({"pairs": "p", "judges": ["j", "k"]}, {"pairs": "p", "judges.0": "j", "judges.1": "k"}),
    "reward": ({"policy": "m", "preferences": "p"}, {"policy": "m", "preferences": "p"}),
    "dpo": (
        {"policy": "m", "preferences": "p", "guard": GUARD},
        {"policy": "m", "preferences": "p", "guard.reward_model": "runs/guard"},
    ),
    "ppo": (
        {
            "policy": "m",
            "prompts": "p",
            "rewards": [{"model": "a"}, {"function": "x:y"}, {"model": "b"}],
            "value_head": "v",
        },
        {"policy": "m", "prompts": "p", "rewards.0": "a", "rewards.2": "b", "value_head": "v"},
    ),
    "evaluate": (
        {"policies": {"sft": "a", "b.c": "b"}, "prompts": "p", "reward_model": "r"},
        {"prompts": "p", "policy_sft": "a", "policy_b.c": "b", "reward_model": "r"},
    ),
    "compare": (
        {"evaluation": "e", "runs": ["a"], "against": ["b", "c"]},
        {"evaluation": "e", "runs.0": "a", "against.0": "b", "against.1": "c"},
    ),
    "duel": ({"evaluation": "e"}, {"evaluation": "e"}),
}
"""A configuration, and the names of its inputs as manifests of the first versions have them."""


@pytest.mark.parametrize("stage", STAGES)
def test_inputs_are_named_as_manifests_have_them(stage: str) -> None:
    values, expected = INPUTS[stage]
    config = configuration_class(STAGES[stage]).model_validate({"output": "o", **values})
    assert STAGES[stage].inputs_of(config) == expected


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_an_entry_names_what_there_is(stage: Stage) -> None:
    model: Any = configuration_class(stage)
    paths = {key.path.replace(".N.", ".") for key in keys_of(model)}
    assert set(stage.inputs) <= paths
    assert {setting.key for setting in stage.settings} <= paths
    assert {key for setting in stage.settings for key in setting.where} <= paths
    assert {step.stage for step in stage.next} <= STAGES.keys()
    if stage.by_people_unless:
        assert hasattr(model, stage.by_people_unless)
    assert callable(importlib.import_module(stage.module).main)
    training = model.model_fields.get("training")
    trains = training is not None and "learning_rate" in training.annotation.model_fields
    assert stage.trains == trains
    assert not stage.trains or (stage.metrics and stage.figures)


def test_commands_are_the_stages_in_order_and_what_stands_beside_them() -> None:
    names = list(COMMANDS)
    beside = [
        "plan",
        "raters",
        "data",
        "inspect",
        "lineage",
        "chat",
        "explain",
        "export",
        "push",
        "card",
        "audit",
        "serve",
        "wandb",
        "track",
    ]
    assert names == ["init", "run", "rounds", *STAGES, *beside]
    recipe = read_yaml(REPOSITORY / "configs/quickstart/pipeline.yaml")
    stages = [entry["stage"] for entry in recipe["stages"]]
    assert len(stages) == 9
    assert stages == [name for name in STAGES if name in stages]


@pytest.mark.parametrize(
    ("name", "advice"),
    [("dop", "did you mean dpo"), ("raters", f"there are {', '.join(STAGES)}$"), ("x", "there are prepare, ")],
)
def test_a_recipe_names_stages_alone(name: str, advice: str) -> None:
    from tiebreak.command.pipeline import PipelineConfig, StageEntry, run_pipeline

    config = PipelineConfig(name="r", group="g", stages=[StageEntry(stage=name, config="c.yaml")])
    with pytest.raises(ConfigError, match=f"no such stage: {name}; {advice}"):
        run_pipeline(config)
