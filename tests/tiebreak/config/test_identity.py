"""The configuration's part in a run's identity. A changed one would give every existing run another id: a finished recipe
would be run again, and an interrupted run refused."""

from __future__ import annotations

from typing import Any

import pytest
from support import REPOSITORY

from tiebreak.command.help import configuration_class
from tiebreak.command.table import COMMANDS
from tiebreak.config import AdapterConfig, load_config
from tiebreak.hashing import hash_json

OF_QUICKSTART = {
    "prepare": "28d8a1d9945af9a8f44041f3",
    "sft": "f25883c650f6bd442300a7b7",
    "sample": "982df6727a8e2a410ef5f60e",
    "label": "1baf663ced49238cf1fa8876",
    "reward": "ce1afd27be05ccf709298f06",
    "dpo": "685d0540d2f436af3c1148b3",
    "ppo": "c1ee90a4a7cbe922f35e604e",
    "evaluate": "5e41c41d5c33f51571f50efe",
    "compare": "3043d59809d2bdedcf611436",
}
"""of the quickstart's files; a key that is added later is left out of the record where it has its default"""


@pytest.mark.parametrize("stage", OF_QUICKSTART)
def test_new_keys_at_their_defaults_change_no_runs_identity(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    model: Any = configuration_class(COMMANDS[stage])
    config = load_config(model, ["--config", f"configs/quickstart/{stage}.yaml"], stage)
    values = config.model_dump(mode="json", exclude={"output", "tracking"})
    assert hash_json(values) == OF_QUICKSTART[stage]


def test_a_new_key_of_an_adapter_is_not_written_at_its_default() -> None:
    class WithMore(AdapterConfig):
        frequencies: int = 100

    assert WithMore().model_dump() == AdapterConfig().model_dump()
    assert WithMore(frequencies=5).model_dump() == {**AdapterConfig().model_dump(), "frequencies": 5}
