"""Lengths of rows in tokens, as training sees them. Rows longer than the limits are dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sft.configuration import PrepareConfig
from sft.duplicates import DroppedRow, Mask
from sft.steps.step import Row
from sft.store import RowFiles, RowPart, Store
from tiebreak.errors import DataError, HandoffError, counted
from tiebreak.records import Demonstration

if TYPE_CHECKING:
    from tiebreak.chat.chat import Chat
    from tiebreak.chat.together import Conversation

BATCH_ROWS = 500
"""rows whose texts are encoded together"""


@dataclass
class Lengths:
    """Lengths of the rows that are kept, and the rows that are not."""

    tokens: dict[str, NDArray[np.int64]]
    dropped: list[DroppedRow] = field(default_factory=list)


@dataclass
class _Measured:
    """The rows of one kind."""

    tokens: list[int] = field(default_factory=list)
    long: list[DroppedRow] = field(default_factory=list)
    unrendered: list[DroppedRow] = field(default_factory=list)


def drop_long(rows: RowFiles, keep: Mask, config: PrepareConfig, work: Store) -> Lengths:
    """Take the rows that are longer than the limits out of `keep`.

    Raises:
        DataError: lists every row that the chat template refuses (unless on_bad_row: drop); or none is left.
    """
    from tiebreak.models.find import find_model
    from tiebreak.models.tokenizers import load_chat

    chat = load_chat(find_model(config.policy, trust_remote_code=config.trust_remote_code), config.chat)
    opened = work.begin("measure")
    parts = opened.work(
        lambda task, stem: {"lengths": list(_lengths(task[0], task[1], chat))},
        ((part, keep[numbers]) for part, numbers in rows.slices()),
        len(rows),
        "rows measured",
        lambda task: len(task[0]),
    )
    prompts, shown = _Measured(), _Measured()
    for one, (_, numbers) in zip(parts, rows.slices(), strict=True):
        for number, length in zip(np.flatnonzero(keep[numbers]) + numbers.start, one["lengths"], strict=True):
            _sort(int(number), length, shown if isinstance(length, list) and len(length) > 1 else prompts, config)
    opened.complete({})
    unrendered = prompts.unrendered + shown.unrendered
    left = len(prompts.tokens) + len(shown.tokens)
    if unrendered and (config.on_bad_row == "refuse" or not left):
        wheres = {number: row.where for number, row in rows.at(one.number for one in unrendered)}
        faults = [f"{wheres[one.number]}: {one.reason}" for one in unrendered]
        raise DataError(f"{counted(len(faults), 'row')} cannot be rendered; nothing was written", faults)
    if not left:
        raise DataError("every row is longer than max_prompt_tokens or max_completion_tokens: raise them")
    dropped = prompts.long + shown.long + unrendered
    keep[[one.number for one in dropped]] = False
    return Lengths({"prompt_tokens": np.array(prompts.tokens), "completion_tokens": np.array(shown.tokens)}, dropped)


def _sort(number: int, length: Sequence[Any], measured: _Measured, config: PrepareConfig) -> None:
    """Enter a row by its length: [tokens], [tokens of the prompt, tokens after it], or the template's refusal last."""
    if isinstance(length[-1], str):
        measured.unrendered.append(DroppedRow(number, length[-1].replace("{", "{{").replace("}", "}}"), "prompt"))
        return
    if length[0] > config.max_prompt_tokens or (len(length) > 1 and length[1] > config.max_completion_tokens):
        reason = (
            f"the prompt has {length[0]} tokens, more than max_prompt_tokens ({config.max_prompt_tokens})"
            if len(length) == 1
            else f"{length[0]} + {length[1]} tokens, more than max_prompt_tokens or max_completion_tokens"
        )
        measured.long.append(DroppedRow(number, reason, "prompt"))
    else:
        measured.tokens.append(length[-1])


def _lengths(part: RowPart, keep: Mask, chat: Chat) -> Iterator[list[int | str]]:
    from tiebreak.chat.together import rendered_together

    rows = [row for row, kept in zip(part, keep, strict=True) if kept]
    for start in range(0, len(rows), BATCH_ROWS):
        batch = rows[start : start + BATCH_ROWS]
        together = rendered_together(chat, (conversation for row in batch for conversation in _conversations(row)))
        yield from (_length(row, together) for row in batch)


def _conversations(row: Row) -> Iterator[Conversation]:
    """What is encoded of a row."""
    yield row.prompt.messages, row.prompt.tools, True
    if row.answers:
        yield (*row.prompt.messages, *row.answers), row.prompt.tools, False


def _length(row: Row, chat: Chat) -> list[int | str]:
    """[tokens of the prompt], and in a demonstration [those, tokens after it]; a refusal is the last."""
    asked, tools = row.prompt.messages, row.prompt.tools
    try:
        before = len(chat.encode_prompt(asked, tools))
        if not isinstance(row.record, Demonstration):
            return [before]
        examples = chat.encode_conversation((*asked, *row.answers), True, tools, len(asked))
        return [before, max(len(example.input_ids) for example in examples) - before]
    except HandoffError as error:
        return [str(error)] if not isinstance(row.record, Demonstration) else [0, str(error)]
