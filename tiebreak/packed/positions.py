"""The number of positions a model supports: beyond it, a learned table has no row, and rotations are untrained.

Checked on the actual rows, before any of them is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tiebreak.errors import ConfigError


def position_limit(config: Any) -> int | None:
    """The longest row that a model supports; None if its positions are unlimited, or scaled beyond the limit."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1 or getattr(text, "alibi", False) or _is_scaled(text):
        return None
    return limit


def _is_scaled(text: Any) -> bool:
    """Whether rotations are scaled: `max_position_embeddings` may then be the unscaled limit."""
    parameters = getattr(text, "rope_parameters", None) or {}
    kinds = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return any(kind.get("rope_type", "default") != "default" for kind in kinds)


def require_room(config: Any, prompts: Iterable[Sequence[int]], max_new_tokens: int) -> None:
    """Refuse to sample if a prompt with its completion may exceed the model's positions.

    Raises:
        ConfigError: states the limit.
    """
    longest = max(map(len, prompts), default=0)
    require_positions(
        config, longest + max_new_tokens - 1, "a prompt and sampling.max_new_tokens"
    )  # the last token is not read


def require_positions(config: Any, tokens: int, what: str) -> None:
    """Refuse rows that exceed the model's positions.

    Args:
        config: the model's.
        tokens: length of the longest row.
        what: source of that row, for the message: "a prompt and sampling.max_new_tokens", say.

    Raises:
        ConfigError: states the limit.
    """
    limit = position_limit(config)
    if limit is not None and tokens > limit:
        raise ConfigError(
            f"{what} take {tokens} tokens, but this model has {limit} positions (max_position_embeddings in its "
            "config.json): shorten them, or use a model with more"
        )
