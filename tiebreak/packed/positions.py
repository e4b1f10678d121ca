"""How many positions a model has: beyond them a learned table has no row, and a rotation no training.

Checked on the rows that are really there, before any of them is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tiebreak.errors import ConfigError


def position_limit(config: Any) -> int | None:
    """The longest row that a model was made for; None where its positions have no end, or are scaled beyond it."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1 or getattr(text, "alibi", False) or _is_scaled(text):
        return None
    return limit


def _is_scaled(text: Any) -> bool:
    """Whether rotations are stretched: `max_position_embeddings` may be what they were before that."""
    parameters = getattr(text, "rope_parameters", None) or {}
    kinds = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return any(kind.get("rope_type", "default") != "default" for kind in kinds)


def require_room(config: Any, prompts: Iterable[Sequence[int]], max_new_tokens: int) -> None:
    """Refuse to sample where a prompt and its completion may be longer than a model has positions.

    Raises:
        ConfigError: saying how long they may be.
    """
    longest = max(map(len, prompts), default=0)
    require_positions(
        config, longest + max_new_tokens - 1, "a prompt and sampling.max_new_tokens"
    )  # the last is not read


def require_positions(config: Any, tokens: int, what: str) -> None:
    """Refuse rows that are longer than a model has positions.

    Args:
        config: the model's.
        tokens: of the longest row.
        what: makes that row: "a prompt and sampling.max_new_tokens", say.

    Raises:
        ConfigError: saying how long it may be.
    """
    limit = position_limit(config)
    if limit is not None and tokens > limit:
        raise ConfigError(
            f"{what} take {tokens} tokens, and this model has {limit} positions (max_position_embeddings in its "
            "config.json): shorten them, or take a model with more"
        )
