"""What can be trained on weights that are sharded as they load (`tiebreak.models.sharded`).

Torch is not imported here: a plan needs none.
"""

from __future__ import annotations

from collections.abc import Iterator

from tiebreak.config import AdapterConfig
from tiebreak.errors import ConfigError

ALGORITHMS = ("sft", "reward", "dpo")
"""whose checks before training run on sharded weights"""
FROM_WEIGHTS = ("pissa", "olora", "eva")
"""starts of an adapter that are computed from whole weights, or from all layers' inputs"""


def require_shardable(
    adapter: AdapterConfig, algorithm: str, *, brought: AdapterConfig | None = None, guarded: bool = False
) -> None:
    """Refuse what needs whole weights before DeepSpeed's engine is built.

    Args:
        adapter: the one that trains.
        algorithm: the stage, or which of its algorithms.
        brought: the adapter that the policy brings, to be continued or stacked on; None: it brings none.
        guarded: whether a reward model is put on the policy.

    Raises:
        ConfigError: says what, and what can be done.
    """
    for reason in obstacles(adapter, algorithm, brought=brought, guarded=guarded):
        raise ConfigError(
            f"zero3_init_flag: true shards the base weights as they load, and {reason}. "
            "Set zero3_init_flag: false in the accelerate file, as configs/accelerate/zero3.yaml has it"
        )


def obstacles(
    adapter: AdapterConfig, algorithm: str, *, brought: AdapterConfig | None = None, guarded: bool = False
) -> Iterator[str]:
    """What needs whole weights, as `require_shardable` says it; nothing: the stage can load in shards."""
    if algorithm not in ALGORITHMS:
        yield f"{algorithm} checks its models on whole ones; {', '.join(ALGORITHMS)} do not need them"
    yield from _reading_weights(adapter)
    if brought is None and adapter.init in FROM_WEIGHTS:
        yield f"adapter.init: {adapter.init} starts from whole ones; default does not"
    if adapter.start == "merge":
        yield "adapter.start: merge writes a whole model first; stack does not"
    elif brought is not None:
        yield from (f"the policy's {reason}" for reason in _reading_weights(brought))
    if guarded:
        yield "the guard's reward model is compared on whole ones"


def _reading_weights(adapter: AdapterConfig) -> Iterator[str]:
    if adapter.quantize != "none":
        yield f"adapter.quantize: {adapter.quantize} needs whole weights to quantize"
    if adapter.method != "lora":
        yield f"adapter.method: {adapter.method} trains or reads them before training; lora does not"
    if adapter.dora:
        yield "adapter.dora: true reads them outside their layers' calls"
    if adapter.modules_to_save:
        yield "adapter.modules_to_save copies whole modules"
