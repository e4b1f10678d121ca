"""Our names of columns, and a configuration's names for them.

    columns: {prompt: question, message.content: text, kind: null}

renames a column, or a message's key, to ours, and ignores one that has our name but another meaning. `q.text` is the field
`text` of an object in the column `q`. Unused columns are ignored, and reported once per file.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from tiebreak.messages import Message

MESSAGE_PREFIX = "message."
TEXT_COLUMNS = (
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "messages",
    "response",
    "response_a",
    "response_b",
    "answers",
    "input",
    "reasoning_content",
)
"""Columns with a row's text."""
OUR_COLUMNS = (
    *TEXT_COLUMNS,
    "system",
    "tools",
    "preferred",
    "label",
    "score",
    "split",
    "source",
    "tags",
    "kind",
    "weight",
    "margin",
    "strength",
    "confidence",
    "agreement",
    "raters",
    "votes",
    "adjudicated",
    "pair_id",
)


def check_columns(columns: Mapping[str, str | None]) -> None:
    """Refuse unknown names of our columns.

    Raises:
        ValueError: names the nearest right one.
    """
    allowed = [*OUR_COLUMNS, *(MESSAGE_PREFIX + key for key in Message.model_fields)]
    for name in columns:
        if name not in allowed and columns[name] is not None:
            near = difflib.get_close_matches(name, allowed, n=1)
            raise ValueError(
                f"columns.{name}: Tiebreak has no such column; "
                + (f"did you mean {near[0]}?" if near else f"they are {', '.join(allowed)}")
            )
