"""A stage's rows as token ids: those that a template refuses are reported, the encoded ones checked and shown."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from tiebreak.chat.chat import Chat, EncodedSequence
from tiebreak.errors import DataError, HandoffError, NoRowLeftError
from tiebreak.messages import Message
from tiebreak.records import Prompt
from tiebreak.runs.run import Run
from tiebreak.terminal import has_colours, is_main_process, paint, plain, say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = TypeVar("Row")


Encoding = TypeVar("Encoding")


UNRENDERED = "rows_not_rendered.txt"
"""In the run's folder: rows that the chat template refused, with reasons."""


def encode_each(
    rows: Sequence[Row], encode: Callable[[Row], Encoding], what: str, dropping: Run | None = None
) -> list[tuple[Row, Encoding]]:
    """Each row, and `encode` of it.

    Args:
        dropping: the run that drops rows that cannot be rendered, and lists them (`on_bad_row: drop`).

    Raises:
        DataError: with every row that the chat template cannot take.
        NoRowLeftError: none is left, though rows are dropped.
    """
    made: list[tuple[Row, Encoding]] = []
    faults: list[str] = []
    for number, row in enumerate(rows, start=1):
        try:
            made.append((row, encode(row)))
        except HandoffError as error:
            faults.append(f"row {number}{_beginning(row)}: {error}")
    if faults and (dropping is None or not made):
        kind = DataError if dropping is None else NoRowLeftError
        raise kind(f"{len(faults)} of {len(rows)} {what} cannot be rendered as they are", faults)
    if faults and dropping is not None:
        dropping.facts["rows_not_rendered"] = dropping.facts.get("rows_not_rendered", 0) + len(faults)
        say(f"{len(faults)} of {len(rows)} {what} dropped (on_bad_row: drop); the first: {faults[0]}")
        if is_main_process():
            with (dropping.folder / UNRENDERED).open("a", encoding="utf-8") as file:
                file.writelines(f"{what}: {fault}\n" for fault in faults)
    return made


def renderable(prompts: Iterable[Prompt], chat: Chat) -> Iterator[tuple[Prompt, list[int]]]:
    """The prompts that a chat template accepts, each with its token ids; `encode_each` has reported the others."""
    for prompt in prompts:
        with contextlib.suppress(HandoffError):
            yield prompt, chat.encode_prompt(prompt.messages, prompt.tools)


def _beginning(row: object) -> str:
    """The first words of a row's prompt, to find it in its file."""
    prompt = getattr(row, "prompt", row)
    messages = getattr(prompt, "messages", prompt)
    first = messages[0] if isinstance(messages, tuple) and messages else None
    return f" ({first.text[:40]!r})" if isinstance(first, Message) else ""


def check_encoded(encoded: EncodedSequence, chat: Chat, where: str) -> None:
    """Refuse an example without trained tokens, or with two end tokens in a row.

    Raises:
        HandoffError: naming the example.
    """
    if not any(encoded.loss_mask):
        raise HandoffError(f"{where}: no token is trained on; its loss mask is empty")
    for a, b in itertools.pairwise(encoded.input_ids):
        if a == b and a in chat.stop_ids:
            raise HandoffError(
                f"{where}: two end-of-sequence tokens follow one another; the answer's text ends with "
                f"{chat.tokenizer.decode([a])!r} already: remove it from the data"
            )


def coloured_mask(tokenizer: PreTrainedTokenizerBase, encoded: EncodedSequence, colour: bool | None = None) -> str:
    """The example as text: tokens that are trained on in green, or in ⟦brackets⟧.

    Args:
        colour: None: where standard error shows colours.
    """
    in_green = has_colours(sys.stderr) if colour is None else colour
    parts = []
    for trained, run in itertools.groupby(
        zip(encoded.input_ids, encoded.loss_mask, strict=True), key=lambda pair: bool(pair[1])
    ):
        text = plain(
            str(tokenizer.decode([token for token, _ in run]))
        )  # together: one character can be several tokens
        parts.append((paint(text, "green") if in_green else f"⟦{text}⟧") if trained else text)
    return "".join(parts)
