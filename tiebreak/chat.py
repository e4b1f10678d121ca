"""The only code that turns conversations into token ids and loss masks.

One rule everywhere: the prompt is the template's text up to where the assistant begins to write, and a completion is
what the assistant writes there, its end-of-sequence token included. What a template appends after that token (ChatML's
newline) is not written by the policy, so it is neither trained on nor scored. An answer that was cut off has no
end-of-sequence token, so that no stage teaches the policy to stop in the middle of a sentence.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tiebreak.errors import HandoffError
from tiebreak.records import Message, Messages, Preference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """Token ids, and which of them the policy writes."""

    input_ids: list[int]
    loss_mask: list[int]
    """1 on tokens the assistant writes, its end-of-sequence token included; same length as `input_ids`."""


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation up to where the assistant begins to write."""
    return _encode(tokenizer, _render(tokenizer, messages, add_generation_prompt=True))


def encode_completion(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], text: str, finished: bool = True
) -> tuple[list[int], list[int]]:
    """(prompt ids, completion ids) of one answer. An unfinished answer has no end-of-sequence token.

    Raises:
        HandoffError: the chat template renders the prompt differently once the answer follows it, or the answer holds
            an end-of-sequence token of its own.
    """
    before = _render(tokenizer, messages, add_generation_prompt=True)
    after = _render(tokenizer, (*messages, Message(role="assistant", content=text)))
    prompt, whole = _encode(tokenizer, before), _encode(tokenizer, after)
    if whole[: len(prompt)] == prompt:
        rest = whole[len(prompt) :]
    elif after.startswith(before):
        rest = _encode(tokenizer, after[len(before) :])  # the answer's first blanks would merge with the prompt's last
    else:
        raise HandoffError(
            "the chat template renders a prompt differently once the answer follows it, so the policy would be trained "
            "on a context it never sees when it writes: use a template whose generation prompt is a prefix of the whole"
        )
    completion = _up_to_eos(tokenizer, rest, text)
    return prompt, completion if finished else completion[:-1]


def encode_preference(
    tokenizer: PreTrainedTokenizerBase, preference: Preference
) -> tuple[list[int], list[int], list[int]]:
    """(prompt ids, chosen ids, rejected ids)."""
    prompt, chosen = encode_completion(tokenizer, preference.prompt, preference.chosen_text, preference.chosen_finished)
    _, rejected = encode_completion(
        tokenizer, preference.prompt, preference.rejected_text, preference.rejected_finished
    )
    return prompt, chosen, rejected


def encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: Messages, last_only: bool = False) -> Encoded:
    """A whole conversation with the loss mask on what the assistant writes: every turn, or the last one alone."""
    if not messages or messages[-1].role != "assistant":
        raise ValueError("a conversation to learn from ends with the assistant's answer")
    prompt, completion = encode_completion(tokenizer, messages[:-1], messages[-1].content)
    ids = prompt + completion
    mask = [0] * len(prompt) + [1] * len(completion)
    if not last_only:
        for turn, message in enumerate(messages[:-1]):
            if message.role == "assistant":
                before, written = encode_completion(tokenizer, messages[:turn], message.content)
                if ids[len(before) : len(before) + len(written)] == written:
                    mask[len(before) : len(before) + len(written)] = [1] * len(written)
    return Encoded(ids, mask)


def decode_completion(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of sampled ids, without special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], add_generation_prompt: bool = False
) -> str:
    return str(
        tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    )


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise HandoffError("the chat template writes two beginning-of-sequence tokens: mend the template")
    return ids


def _up_to_eos(tokenizer: PreTrainedTokenizerBase, rest: list[int], text: str) -> list[int]:
    """What the assistant writes, up to and with its end-of-sequence token."""
    eos = tokenizer.eos_token_id
    if eos not in rest:
        return [*rest, int(eos)]  # a template that closes a turn with no token of its own
    if rest.count(eos) > 1:
        raise HandoffError(
            f"two end-of-sequence tokens ({tokenizer.eos_token!r}) in one answer, so the policy would learn to stop at "
            f"the first: remove it from the data, or mend the template if the text has none: {text[:80]!r}"
        )
    return rest[: rest.index(eos) + 1]


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer that would train in silence on the wrong thing.

    Raises:
        HandoffError: no chat template, no end-of-sequence token, or padding that looks like the end of a sequence.
    """
    if not tokenizer.chat_template:
        raise HandoffError(f"{name}: the tokenizer has no chat template; use an instruction-tuned model or add one")
    if tokenizer.eos_token_id is None:
        raise HandoffError(f"{name}: the tokenizer has no end-of-sequence token, so no answer would ever be finished")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise HandoffError(
            f"{name}: padding and end-of-sequence are one token ({tokenizer.eos_token!r}), so the real end would be "
            "taken for padding; set another pad_token in tokenizer_config.json"
        )


def check_encoded(encoded: Encoded, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Refuse an example with nothing to learn, or with two end-of-sequence tokens in a row.

    Raises:
        HandoffError: naming the example.
    """
    if not any(encoded.loss_mask):
        raise HandoffError(f"{where}: no token is trained on; its loss mask is empty")
    eos = tokenizer.eos_token_id
    ids = encoded.input_ids
    if any(a == b == eos for a, b in itertools.pairwise(ids)):
        raise HandoffError(
            f"{where}: two end-of-sequence tokens follow one another; the answer's text ends with {tokenizer.eos_token!r} "
            "already: remove it from the data"
        )


def coloured_mask(tokenizer: PreTrainedTokenizerBase, encoded: Encoded) -> str:
    """The example as text: tokens that are trained on in green on a terminal, in ⟦brackets⟧ elsewhere."""
    start, end = ("\x1b[32m", "\x1b[0m") if sys.stderr.isatty() else ("⟦", "⟧")
    parts, inside = [], False
    for token, trained in zip(encoded.input_ids, encoded.loss_mask, strict=True):
        if bool(trained) != inside:
            parts.append(start if trained else end)
            inside = bool(trained)
        parts.append(str(tokenizer.decode([token])))
    return "".join(parts) + (end if inside else "")
