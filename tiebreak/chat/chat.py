"""Converts conversations to token ids and loss masks; no other code does.

One rule everywhere: the prompt is the template's text up to the assistant's turn, and a completion is
what the assistant writes there, the token that ends its turn included. That token is the one that the template writes
after an answer, and sampling stops at it and at every other end token of the model (tiebreak.chat.turns). What a template
appends after it (ChatML's newline) is not written by the policy, so it is neither trained on nor scored. An answer that
was cut off has no end token, so that no stage teaches the policy to stop in the middle of a sentence. A completion that
was sampled is trained on as the ids that were drawn: the text alone need not lead back to them.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tiebreak.chat.templates import (
    TOOL_CALL_FORMS,
    Part,
    Tools,
    as_template_message,
    ending_mark,
    in_parts,
    opening_mark,
    parts_of,
    render_messages,
)
from tiebreak.chat.turns import (
    Turn,
    special_ids,
)
from tiebreak.config import ChatSettings
from tiebreak.errors import HandoffError
from tiebreak.records import LabelledAnswer, Message, Messages, Preference, assistant

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NOT_A_PREFIX = (
    "the chat template renders a prompt differently once the answer follows it, so the policy would be trained on a "
    "context it never sees when it writes"
)
_WITHOUT_THOUGHTS = "it takes the conversation without its thoughts, which thinking: drop leaves out"
_NOTHING_TO_LEARN = (
    "nothing is left to learn from: every answer has weight 0, or is a thought that thinking: mask leaves out; remove the "
    "row, or set a weight to 1"
)
_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class EncodedSequence:
    """Token ids, with a mask of those that the policy writes."""

    input_ids: list[int]
    loss_mask: list[int]
    """1 on the assistant's tokens, including its end-of-turn token; same length as `input_ids`."""


@dataclass(frozen=True)
class AssistantAnswer:
    """An assistant's answer to a prompt, as token ids."""

    prompt: list[int]
    completion: list[int]
    trained: list[int]
    """1 on the completion's tokens to learn from, 0 on those of a masked thought; same length as `completion`"""


@dataclass(frozen=True)
class Answer:
    """A completion as text."""

    text: str
    """without thought and special tokens"""
    reasoning: str | None
    """the thought before it; None if there is none"""
    finished: bool
    """whether it is complete: the last token ends a turn, and no thought is open"""


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its chat template and ends of turns. `tiebreak.models.tokenizers.load_chat` loads it."""

    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    """tokens at which sampling stops"""
    end_id: int
    """the one of them that ends answers in training"""
    template: str
    """the chat template, with a fixed date instead of today's"""
    turn: Turn
    settings: ChatSettings
    tokenizer_sha256: str = ""
    content_in_parts: bool = False
    """whether the template accepts content only as a list of parts"""
    vocabulary: int | None = None
    """number of tokens that the model has weights for"""
    marks: tuple[str, ...] = ()
    """special tokens that the template writes around turns, and those that end one"""
    _rendered: set[tuple[object, ...]] = field(default_factory=set, compare=False, repr=False)
    """kinds of parts that the template is known to render"""
    _call_form: list[tuple[bool, bool]] = field(default_factory=list, compare=False, repr=False)
    """its form of tool calls, one of `TOOL_CALL_FORMS`, once there were some"""

    @cached_property
    def textless_ids(self) -> tuple[int, ...]:
        """Ids with weights in the model and no token in the tokenizer, as of embeddings padded to a round size: sampling
        never draws them."""
        return textless_ids(self.tokenizer, self.vocabulary or 0)

    @property
    def pad_id(self) -> int:
        """The padding token of batches."""
        return int(self.tokenizer.pad_token_id)

    # --- conversations to ids ---

    def encode_prompt(self, messages: Sequence[Message], tools: Tools = ()) -> list[int]:
        """Token ids of a conversation up to the assistant's turn.

        Raises:
            HandoffError: the template refuses the conversation, or leaves a part of it out.
        """
        return self._encode(self._render_prompt([self._settle_thought(message) for message in messages], tools))

    def encode_completion(
        self, messages: Sequence[Message], answer: str | Message, finished: bool = True, tools: Tools = ()
    ) -> tuple[list[int], list[int]]:
        """(prompt ids, completion ids) of one answer. An unfinished answer has no end token.

        Raises:
            HandoffError: the template refuses the conversation, leaves a part of it out, or renders the prompt
                differently once the answer follows it; or the answer holds an end token of its own.
        """
        message = assistant(answer)[0] if isinstance(answer, str) else answer
        written = self.write(messages, message, finished, tools)
        return written.prompt, written.completion

    def encode_preference(self, preference: Preference) -> tuple[AssistantAnswer, AssistantAnswer]:
        """Ids of the chosen and the rejected side; of a sampled side, the ids that were drawn.

        Raises:
            HandoffError: as `encode_completion`.
        """
        sides = (
            (preference.chosen, preference.chosen_ids, preference.chosen_finished),
            (preference.rejected, preference.rejected_ids, preference.rejected_finished),
        )
        chosen, rejected = (
            self.encode_side(preference.prompt, messages, finished, preference.tools, ids, preference.tokenizer_sha256)
            for messages, ids, finished in sides
        )
        if chosen == rejected:
            raise HandoffError(
                "chosen and rejected are the same tokens: all that they differ in is left out by thinking: drop, or is "
                "nothing that the chat template writes (a call's id); leave the row out"
            )
        return chosen, rejected

    def encode_answer(self, answer: LabelledAnswer) -> AssistantAnswer:
        """The ids of one labelled answer: the drawn ones, if it was sampled.

        Raises:
            HandoffError: as `encode_completion`.
        """
        return self.encode_side(
            answer.prompt, answer.completion, answer.finished, answer.tools, answer.ids, answer.tokenizer_sha256
        )

    def encode_side(
        self,
        prompt: Sequence[Message],
        answers: Messages,
        finished: bool = True,
        tools: Tools = (),
        ids: Sequence[int] | None = None,
        tokenizer_sha256: str | None = None,
    ) -> AssistantAnswer:
        """One message of the assistant, or several with its tools' results between them, which are not learned.

        Args:
            ids: as they were drawn, by the tokenizer with this hash.

        Raises:
            HandoffError: as `encode_completion`.
        """
        drawn = self.drawn(ids, tokenizer_sha256)
        if drawn is not None:
            self._require_text_of(drawn, answers)
            written = AssistantAnswer(self.encode_prompt(prompt, tools), drawn, self._learned_of_drawn(drawn))
        else:
            written = self._write_side(prompt, answers, finished, tools)
        if not any(written.trained):
            raise HandoffError(_NOTHING_TO_LEARN)
        return written

    def _write_side(
        self, prompt: Sequence[Message], answers: Messages, finished: bool, tools: Tools
    ) -> AssistantAnswer:
        for message in answers:
            if message.role == "assistant" and message.weight != 0:
                self._require_answer(message)
        last = self.write((*prompt, *answers[:-1]), answers[-1], finished, tools)
        start = self.encode_prompt(prompt, tools)
        whole = last.prompt + last.completion
        mask = [0] * len(last.prompt) + (last.trained if answers[-1].weight != 0 else [0] * len(last.trained))
        if whole[: len(start)] != start:
            raise self._not_a_prefix((*prompt, *answers), tools)
        for number, message in enumerate(answers[:-1]):
            if message.role == "assistant" and message.weight != 0:
                earlier = self.write((*prompt, *answers[:number]), message, True, tools)
                ids_so_far = earlier.prompt + earlier.completion
                if whole[: len(ids_so_far)] != ids_so_far:
                    raise HandoffError(
                        "the chat template rewrites an assistant's earlier message once others follow it, so the whole is "
                        "not what the policy would have written: make a row of each message"
                    )
                mask[len(earlier.prompt) : len(ids_so_far)] = earlier.trained
        return AssistantAnswer(start, whole[len(start) :], mask[len(start) :])

    def _require_text_of(self, ids: Sequence[int], answers: Messages) -> None:
        """Refuse ids that do not match the answer's text, which was edited after sampling."""
        if not self._are_tokens(ids):
            raise HandoffError(
                "its token ids (chosen_ids, rejected_ids or ids) are not all of this tokenizer: leave the ids out, and the "
                "text is trained on"
            )
        written = self.read(ids).text.strip()
        wanted = "\n".join(message.text for message in answers).strip()
        if written == wanted:
            return
        raise HandoffError(
            f"its token ids (chosen_ids, rejected_ids or ids) say {written[:60]!r}, and its text {wanted[:60]!r}: leave "
            "the ids out where the text was edited, and the text is trained on"
        )

    def _are_tokens(self, ids: Sequence[int]) -> bool:
        try:
            return None not in self.tokenizer.convert_ids_to_tokens(list(ids))
        except (OverflowError, IndexError, ValueError):
            return False

    def _learned_of_drawn(self, ids: list[int]) -> list[int]:
        """Mask of the sampled ids that are trained: all except a masked thought."""
        if self.settings.thinking != "mask":
            return [1] * len(ids)
        thought = self._end_of_thought(ids)
        masked = len(ids) if thought is None else thought
        return [0] * masked + [1] * (len(ids) - masked)

    def drawn(self, ids: Sequence[int] | None, tokenizer_sha256: str | None) -> list[int] | None:
        """A sampled completion's ids if they are this tokenizer's and its thought is kept; otherwise None."""
        usable = ids and tokenizer_sha256 == self.tokenizer_sha256 and self.settings.thinking != "drop"
        return list(ids or ()) if usable else None

    def encode_conversation(
        self, messages: Messages, last_only: bool = False, tools: Tools = (), prompt_messages: int | None = None
    ) -> list[EncodedSequence]:
        """A conversation with the loss mask on what the assistant writes: every turn, or the last one alone.

        Every turn is learned in the context that the policy sees when it writes it. Where the template renders earlier
        turns as the policy wrote them, that is one example with several turns in its mask. Where it rewrites them (Qwen3
        leaves out the thoughts of earlier turns, gpt-oss ends them with another token), a turn that differs is an example
        of its own. Turns of weight 0 are context alone.

        Args:
            prompt_messages: how many messages are the prompt: `last_only` learns every turn after it. None: all but one.

        Raises:
            HandoffError: as `encode_completion`; or no turn is to be learned.
        """
        if not messages or messages[-1].role != "assistant":
            raise ValueError("a conversation to learn from ends with the assistant's answer")
        first = (len(messages) - 1 if prompt_messages is None else prompt_messages) if last_only else 0
        turns = [n for n, message in enumerate(messages) if message.role == "assistant" and n >= first]
        learned = [n for n in turns if messages[n].weight != 0]
        if not learned:
            raise HandoffError(_NOTHING_TO_LEARN)
        if 0 in learned:
            raise HandoffError(
                "the conversation begins with an answer, to which there is no question: give it weight 0, which keeps it "
                "as context alone, or leave it out"
            )
        examples: list[EncodedSequence] = []
        for number in reversed(learned):
            self._require_answer(messages[number])
            written = self.write(messages[:number], messages[number], True, tools)
            ids = written.prompt + written.completion
            whole = next((e for e in examples if e.input_ids[: len(ids)] == ids), None)
            if whole is None:
                examples.append(EncodedSequence(ids, [0] * len(written.prompt) + written.trained))
            else:
                whole.loss_mask[len(written.prompt) : len(ids)] = written.trained
        return examples

    def write(
        self, messages: Sequence[Message], message: Message, finished: bool = True, tools: Tools = ()
    ) -> AssistantAnswer:
        """The assistant's ids for `message` in answer to `messages`; see `encode_completion`."""
        *messages, message = (self._settle_thought(one) for one in (*messages, message))
        self._require_no_mark(message, finished)
        self._require_no_turn_marks((*messages, message))
        self._choose_call_form((*messages, message), tools)
        if self._is_open_thought(message.text):
            before = self._render_prompt(messages, tools)
            prompt = self._encode(before)
            begun = message.text.lstrip().removeprefix(self.turn.thought_mark).lstrip()
            rest = self._encode_after(before, prompt, f"{self.turn.thought_open}{begun}")
            return AssistantAnswer(prompt, rest, [1] * len(rest))
        try:
            before = self._render(messages, tools, add_generation_prompt=True)
            after = self._render((*messages, message), tools)
        except HandoffError as error:
            raise self._with_remedy(error, (*messages, message), tools) from error
        self._require_rendered((*messages, message), tools, after)
        if not after.startswith(before):
            raise self._not_a_prefix((*messages, message), tools)
        prompt, text = self._encode(before), after[len(before) :]
        rest = self._encode_after(before, prompt, text)
        completion = self._up_to_end(rest, message.text)
        trained = self._trained((*messages, message), tools, completion, len(rest) - len(completion))
        if finished:
            return AssistantAnswer(prompt, completion, trained)
        # a template may write more than the end token after an answer (Cohere's <|END_RESPONSE|>)
        tail = self.turn.tail
        cut = self._encode_after(before, prompt, text.removesuffix(tail)) if text.endswith(tail) else completion[:-1]
        return AssistantAnswer(prompt, cut, (trained[:-1] + [1] * len(cut))[: len(cut)])

    def _not_a_prefix(self, conversation: Sequence[Message], tools: Tools) -> HandoffError:
        if self._takes_without_thoughts(conversation, tools):
            return HandoffError(f"{_NOT_A_PREFIX}: {_WITHOUT_THOUGHTS}")
        switchable = "enable_thinking" in self.settings.template_arguments
        return HandoffError(
            f"{_NOT_A_PREFIX}: give a template whose generation prompt is a prefix of the whole with chat_template, or "
            f"change what it writes with template_arguments{'' if switchable else ' (enable_thinking: false, for some)'}"
        )

    def _with_remedy(self, error: HandoffError, conversation: Sequence[Message], tools: Tools) -> HandoffError:
        """A template's refusal, with the key that helps where thoughts are the reason."""
        helps = self._takes_without_thoughts(conversation, tools)
        return HandoffError(f"{error}; {_WITHOUT_THOUGHTS}" if helps else str(error))

    def _takes_without_thoughts(self, conversation: Sequence[Message], tools: Tools) -> bool:
        """Whether a conversation holds thoughts, and can be learned from without them."""
        if not any(message.reasoning_content for message in conversation):
            return False
        *messages, last = (message.model_copy(update={"reasoning_content": None}) for message in conversation)
        try:
            return self._render((*messages, last), tools).startswith(self._render(messages, tools, True))
        except HandoffError:
            return False

    def _encode_after(self, before: str, prompt: list[int], text: str) -> list[int]:
        """Ids of the text that follows a prompt: those of the whole. Where the text's first blanks would merge with the
        prompt's last, the policy continues the unchanged prompt.

        Raises:
            HandoffError: the tokenizer has no ids for the text by itself.
        """
        whole = self._encode(before + text)
        if whole[: len(prompt)] == prompt:
            return whole[len(prompt) :]
        for anchor in ("", "\n", "."):  # SentencePiece puts a blank before its input
            start, ids = self._encode(anchor), self._encode(anchor + text)
            if ids[: len(start)] == start:
                alone = ids[len(start) :]
                if self.tokenizer.decode(prompt + alone) == self.tokenizer.decode(whole):
                    return alone
        raise HandoffError(
            "the answer's beginning becomes one token with the end of the prompt, so the policy could not write it: change "
            f"the answer's first characters, or the end of the template's generation prompt: {text[:80]!r}"
        )

    def _trained(self, messages: Sequence[Message], tools: Tools, completion: list[int], further: int) -> list[int]:
        """Mask of a completion's trained tokens: all but a masked thought, and, if the template marks the assistant's
        text (`{% generation %}`), all but what it leaves unmarked. The end token is always trained.

        Args:
            further: number of tokens that the template writes after the completion; −1: its last token is not the
                template's.
        """
        trained, message = [1] * len(completion), messages[-1]
        if _GENERATION_MARK.search(self.template):
            marks = [*self._marks(messages, tools), *[1] * -further]
            marked = marks[: len(marks) - max(further, 0)][-len(completion) :]
            if not any(marked[:-1]) and not message.is_empty:
                raise HandoffError(
                    "the chat template marks with {% generation %} what is learned, and nothing of this answer: give one "
                    f"that marks it with chat_template: {message.text[:80]!r}"
                )
            trained = marked
        if self.settings.thinking == "mask" and message.reasoning_content:
            end = _position_after(self.tokenizer, completion, self.turn.thought_close.strip())
            if end is None:
                raise HandoffError(
                    "the chat template writes no mark after a thought, so thinking: mask cannot tell it from the answer: "
                    "set thinking: keep or drop, or give a template that marks thoughts with chat_template"
                )
            trained[:end] = [0] * end
        trained[-1] = 1
        return trained

    # --- ids to text ---

    def read(self, ids: Sequence[int]) -> Answer:
        """The answer in sampled ids, with its thought separated: a cut-off thought is not an answer."""
        finished = bool(ids) and ids[-1] in self.stop_ids
        body = list(ids[:-1] if finished else ids)
        end = self._end_of_thought(body)
        if end != 0:
            opening, closing = (self.turn.thought_open or "").strip(), self.turn.thought_close.strip()
            thought = self._plain(body[:end], opening, closing)
            return Answer(self._plain(body[end:]), thought or None, finished) if end else Answer("", thought, False)
        lead = self.turn.lead.strip()
        if lead:
            end = _position_after(self.tokenizer, body, lead)
            text = str(self.tokenizer.decode(body, skip_special_tokens=False)).lstrip()
            if end is not None and text.startswith(lead):
                body = body[end:]
        return Answer(self._plain(body), None, finished)

    def decode_completion(self, ids: Sequence[int]) -> str:
        """The text of a sampled answer, without its thought and special tokens."""
        return self.read(ids).text

    def without_marks(self, text: str) -> str:
        """A text from elsewhere, without marks that would end a turn or a thought."""
        for mark in (*self._names_of_ends(), *self.marks, self.turn.thought_close.strip(), self.turn.thought_mark):
            text = text.replace(mark, "") if mark else text
        return text

    def _names_of_ends(self) -> list[str]:
        return [str(self.tokenizer.decode([token], skip_special_tokens=False)) for token in self.stop_ids]

    def ends(self, ids: Sequence[int]) -> bool:
        """Whether a completion's last token ends a turn."""
        return bool(ids) and ids[-1] in self.stop_ids

    def _plain(self, ids: Sequence[int], opening: str = "", closing: str = "") -> str:
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=not (opening or closing))).strip()
        text = text.removeprefix(opening).removesuffix(closing)
        for token in self.tokenizer.all_special_tokens if opening or closing else ():
            text = text.replace(token, "")
        return text.strip()

    # --- the template ---

    def _render(self, messages: Sequence[Message], tools: Tools = (), add_generation_prompt: bool = False) -> str:
        return render_messages(
            self.tokenizer,
            self.template,
            self._as_template_takes(messages),
            add_generation_prompt,
            self.settings.template_arguments,
            tools,
        )

    def _render_prompt(self, messages: Sequence[Message], tools: Tools) -> str:
        """The prompt's text, checked to contain every part of the conversation."""
        self._require_no_turn_marks(messages)
        self._choose_call_form(messages, tools)
        text = self._render(messages, tools, add_generation_prompt=True)
        self._require_rendered(messages, tools, text, add_generation_prompt=True)
        return text

    def _as_template_takes(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        form = self._call_form[0] if self._call_form else TOOL_CALL_FORMS[0]
        taken = [as_template_message(message, *form) for message in messages]
        return [in_parts(message) for message in taken] if self.content_in_parts else taken

    def _marks(self, messages: Sequence[Message], tools: Tools) -> list[int]:
        """1 on tokens that the template marks as the assistant's."""
        if not self.tokenizer.is_fast:
            raise HandoffError(
                "the chat template marks with {% generation %} what is learned, which a tokenizer without a fast backend "
                "(tokenizer.json) cannot find again: give a template without such marks with chat_template"
            )
        rendered = self.tokenizer.apply_chat_template(
            self._as_template_takes(messages),
            tools=list(tools) if tools else None,
            chat_template=self.template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            **self.settings.template_arguments,
        )
        return list(rendered["assistant_masks"])

    def _encode(self, text: str) -> list[int]:
        ids = self._raw_ids(text)
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise HandoffError("the chat template writes two beginning-of-sequence tokens: fix the template")
        if self.vocabulary is not None and ids and (largest := max(ids)) >= self.vocabulary:
            raise HandoffError(
                f"the tokenizer has a token ({self.tokenizer.decode([largest])!r}, number {largest}) that the model has no "
                f"weights for, whose vocabulary is of {self.vocabulary}: use the model's own tokenizer, or resize its "
                "embeddings"
            )
        return ids

    def _raw_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _up_to_end(self, rest: list[int], text: str) -> list[int]:
        """The assistant's tokens, up to and including its end of turn."""
        ends = [place for place, token in enumerate(rest) if token in self.stop_ids]
        if not ends:
            last = next((token for token in reversed(rest) if str(self.tokenizer.decode([token])).strip()), None)
            if last in special_ids(self.tokenizer):
                raise HandoffError(
                    f"the chat template ends this answer with {self.tokenizer.decode([last])!r}, at which sampling would "
                    f"not stop (it stops at {', '.join(self.tokenizer.decode([i]) for i in self.stop_ids)}): name all "
                    "tokens that end an answer with end_of_turn"
                )
            return [*rest, self.end_id]  # a template that closes a turn with no token of its own
        if str(self.tokenizer.decode(rest[ends[0] + 1 :], skip_special_tokens=True)).strip():
            raise _two_ends(self.tokenizer.decode([rest[ends[0]]]), text)
        return rest[: ends[0] + 1]

    def _require_no_turn_marks(self, messages: Sequence[Message]) -> None:
        """Refuse text that holds a mark of the template's own: a conversation that is rendered already, or one whose text
        would end its turn and begin another's."""
        ends = self._names_of_ends()
        for message in messages:
            for mark in self.marks:
                if mark in message.text:
                    if message.role == "assistant" and mark in ends:
                        raise _two_ends(mark, message.text)
                    raise HandoffError(
                        f"the text of the {message.role} holds {mark!r}, which this tokenizer reads as the chat template's "
                        f"own mark: give messages or plain text, or leave the row out: {message.text[:80]!r}"
                    )

        self._require_no_foreign_marks(messages)

    @staticmethod
    def _require_no_foreign_marks(messages: Sequence[Message]) -> None:
        """Refuse text that was rendered for another model, whose marks are plain text here and would be learned."""
        first, last = messages[0], messages[-1]
        if mark := opening_mark(first.text):
            raise HandoffError(
                f"the text of the {first.role} begins with {mark!r}, which another model's chat template writes: give "
                f"messages or plain text, or leave the row out: {first.text[:80]!r}"
            )
        if last.role == "assistant" and (mark := ending_mark(last.text)):
            raise HandoffError(
                f"the answer ends with {mark!r}, another model's end-of-turn token: remove it from the data: "
                f"{last.text[-80:]!r}"
            )

    def _require_no_mark(self, message: Message, finished: bool) -> None:
        """Refuse an answer that contains one of the template's marks."""
        text = f"{message.text}{message.reasoning_content or ''}"
        for name in self._names_of_ends():
            if name and name in text:
                raise _two_ends(name, message.text)
        closing = self.turn.thought_close.strip()
        if closing and closing in text:
            raise HandoffError(
                f"the answer holds {closing!r}, which the chat template takes for the end of a thought: give the thought "
                f"as reasoning_content, or remove the mark: {message.text[:80]!r}"
            )
        if self._is_open_thought(message.text) and (finished or self.settings.thinking != "keep"):
            raise HandoffError(
                f"the answer is a thought that is not closed ({closing!r} is missing), so it would be learned as an "
                f"answer: {message.text[:80]!r}"
            )

    # --- thoughts ---

    def _settle_thought(self, message: Message) -> Message:
        """A message with its thought in `reasoning_content`, or without it, according to `thinking`. Images are refused."""
        if message.media:
            raise HandoffError(f"{message.media[0].mark} in a message of the {message.role}: only text is rendered")
        opening, closing = self.turn.thought_open, self.turn.thought_close.strip()
        if message.role != "assistant":
            return message
        if opening is not None and closing and message.reasoning_content is None:
            body, mark = message.text.lstrip(), self.turn.thought_mark
            if closing in body and (opening.strip() == "" or body.startswith(mark)):
                thought, _, answer = body.removeprefix(mark).partition(closing)
                if not mark or mark not in thought:  # or the text speaks of marks: it is refused where it is learned
                    # blanks around them are the template's
                    changed = {"content": answer.strip(), "reasoning_content": thought.strip() or None}
                    message = message.model_copy(update=changed)
        if self.settings.thinking == "drop" and message.reasoning_content is not None:
            return message.model_copy(update={"reasoning_content": None})
        return message

    def _is_open_thought(self, text: str) -> bool:
        mark, closing = self.turn.thought_mark, self.turn.thought_close.strip()
        return bool(mark) and text.lstrip().startswith(mark) and closing not in text

    def _end_of_thought(self, ids: Sequence[int]) -> int | None:
        """Number of ids of the answer's thought; None if the thought is cut off."""
        opening, closing = self.turn.thought_open, self.turn.thought_close.strip()
        if opening is None or not closing:
            return 0
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=False)).lstrip()
        return _position_after(self.tokenizer, ids, closing) if text.startswith(opening.strip()) else 0

    def _require_answer(self, message: Message) -> None:
        """Refuse to train on a message without text and calls, other than its thought."""
        if self._settle_thought(message).is_empty:
            raise HandoffError(
                "an answer is empty, so the policy would learn to say nothing: give it weight 0, which keeps it as "
                "context alone, or remove the row"
            )

    # --- completeness ---

    def _require_rendered(
        self, messages: Sequence[Message], tools: Tools, text: str, add_generation_prompt: bool = False
    ) -> None:
        """Refuse a conversation if the template silently omits a part of it.

        A part's text is looked for in the rendering. The first part of each kind (a role after another, tools, tool
        calls, a thought, a name), and every part whose text is not found, is also replaced, which must change the
        rendering.

        Raises:
            HandoffError: naming the part.
        """
        for part in parts_of(messages, tools):
            if part.kind not in self._rendered or part.text not in text:
                if not self._differs(text, part, add_generation_prompt):
                    raise HandoffError(
                        f"the chat template leaves {part.name} out of what it renders, so the policy would never see it: "
                        f"{part.remedy}"
                    )
                self._rendered.add(part.kind)

    def _differs(self, text: str, part: Part, add_generation_prompt: bool) -> bool:
        """Whether a part changes the rendering. A part without which the template refuses the conversation does."""
        try:
            return text != self._render(*part.changed(), add_generation_prompt)
        except HandoffError:
            return True

    def _choose_call_form(self, messages: Sequence[Message], tools: Tools) -> None:
        """Find the form in which the template takes tool calls, at the first conversation that has some.

        If the template takes them in no form, the first is used, in which every message has content; what the template
        then refuses or leaves out is reported when a row is rendered.
        """
        if self._call_form or not any(message.tool_calls for message in messages):
            return
        call = next(parts_of(messages, tools))
        for form in TOOL_CALL_FORMS:
            self._call_form[:] = [form]
            with contextlib.suppress(HandoffError):
                text = self._render(messages, tools)
                if self._differs(text, call, False) and not (_holds_python(messages, text) and not form[1]):
                    return
        self._call_form.clear()


def _holds_python(messages: Sequence[Message], text: str) -> bool:
    """Whether a template printed a call's arguments as a Python dict, so that it needs them as JSON text."""
    arguments = (call.function.arguments for message in messages for call in message.tool_calls)
    return any(str(one) in text for one in arguments if str(one) != json.dumps(one, ensure_ascii=False))


def _two_ends(name: str, text: str) -> HandoffError:
    return HandoffError(
        f"two end-of-sequence tokens ({name!r}) in one answer, so the policy would learn to stop at the first: remove it "
        f"from the data, or fix the template if the text has none: {text[:80]!r}"
    )


def _position_after(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> Any:
    """Number of ids up to the end of `text`; None if they do not contain it."""

    def holds(count: int) -> bool:
        return text in str(tokenizer.decode(list(ids[:count]), skip_special_tokens=False))

    if not text or not holds(len(ids)):
        return None
    low, high = 0, len(ids)
    while low < high:  # monotonic: more ids contain it too
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high


def textless_ids(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> tuple[int, ...]:
    """The ids below `vocabulary` that a tokenizer has no token for."""
    return tuple(sorted(set(range(vocabulary)).difference(tokenizer.get_vocab().values())))
