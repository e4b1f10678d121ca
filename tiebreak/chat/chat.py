"""Converts conversations to token ids and loss masks; no other code does.

The rules, the same in every stage:

- The prompt is the template's text up to the assistant's turn. A completion is what the assistant writes there, with the
  token that ends its turn: the one that the template writes after an answer. Sampling stops at this token and at the
  model's other end tokens (tiebreak.chat.turns).
- The policy does not write what a template appends after the end token (ChatML's newline), so those tokens are neither
  trained nor scored.
- An answer that was cut off has no end token, so no stage teaches the policy to stop in the middle of a sentence.
- A sampled completion is trained as the ids that were drawn: its text, tokenised again, may give other ids.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from tiebreak.chat.rendering import Rendering, position_after, two_ends
from tiebreak.chat.templates import Tools
from tiebreak.chat.turns import special_ids
from tiebreak.errors import HandoffError
from tiebreak.messages import Message, Messages, assistant
from tiebreak.records import LabelledAnswer, Preference

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
    """1 on the completion's tokens to train, 0 on those of a masked thought; same length as `completion`"""


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
class Chat(Rendering):
    """A tokenizer with its chat template: conversations as token ids and loss masks, and sampled ids as answers.

    `tiebreak.models.tokenizers.load_chat` loads it.
    """

    @cached_property
    def textless_ids(self) -> tuple[int, ...]:
        """Ids that have weights in the model but no token in the tokenizer, because embeddings are often padded to a
        round size. Sampling never draws them."""
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
                differently once the answer follows it; or the answer's text contains an end token.
        """
        message = assistant(answer)[0] if isinstance(answer, str) else answer
        written = self.write(messages, message, finished, tools)
        return written.prompt, written.completion

    def encode_preference(self, preference: Preference) -> tuple[AssistantAnswer, AssistantAnswer]:
        """Ids of the chosen and the rejected side. A sampled side keeps the ids that were drawn.

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
        """Ids of a labelled answer. A sampled answer keeps the ids that were drawn.

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
        """Ids of the assistant's answer: one message, or several with tool results between them, which are not trained.

        Args:
            ids: the answer's sampled ids.
            tokenizer_sha256: hash of the tokenizer that drew `ids`.

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

    def _require_answer(self, message: Message) -> None:
        """Refuse to train on a message that has neither text nor calls, only a thought or nothing."""
        if self._settle_thought(message).is_empty:
            raise HandoffError(
                "an answer is empty, so the policy would learn to say nothing: give it weight 0, which keeps it as "
                "context alone, or remove the row"
            )

    def _require_text_of(self, ids: Sequence[int], answers: Messages) -> None:
        """Refuse ids that do not match the answer's text: it was edited after sampling."""
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
        """A conversation with the loss mask on what the assistant writes: every turn, or only the last.

        Every turn is trained in the context that the policy sees when it writes that turn. If the template renders
        earlier turns as the policy wrote them, one example covers several turns. If it rewrites them (Qwen3 leaves out the
        thoughts of earlier turns, gpt-oss ends them with another token), each turn that differs becomes an example of its
        own. Turns of weight 0 are only context.

        Args:
            prompt_messages: number of messages in the prompt; `last_only` trains every turn after them. None: all
                messages but one.

        Raises:
            HandoffError: as `encode_completion`; or there is no turn to train.
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
        """A template's refusal, with the key that solves it if thoughts are the reason."""
        helps = self._takes_without_thoughts(conversation, tools)
        return HandoffError(f"{error}; {_WITHOUT_THOUGHTS}" if helps else str(error))

    def _takes_without_thoughts(self, conversation: Sequence[Message], tools: Tools) -> bool:
        """Whether a conversation contains thoughts, and the template takes it without them."""
        if not any(message.reasoning_content for message in conversation):
            return False
        *messages, last = (message.model_copy(update={"reasoning_content": None}) for message in conversation)
        try:
            return self._render((*messages, last), tools).startswith(self._render(messages, tools, True))
        except HandoffError:
            return False

    def _encode_after(self, before: str, prompt: list[int], text: str) -> list[int]:
        """Ids of the text that follows a prompt, taken from prompt and text tokenised together. If that would merge the
        text's first blanks with the prompt's last token, the text is tokenised alone, since the policy continues the
        prompt's own ids.

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
            raise two_ends(self.tokenizer.decode([rest[ends[0]]]), text)
        return rest[: ends[0] + 1]

    def _trained(self, messages: Sequence[Message], tools: Tools, completion: list[int], further: int) -> list[int]:
        """Mask of a completion's trained tokens. A masked thought is not trained, and where the template marks the
        assistant's text (`{% generation %}`), unmarked tokens are not either. The end token is always trained.

        Args:
            further: number of tokens that the template writes after the completion; −1: the template does not write the
                completion's last token.
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
            end = position_after(self.tokenizer, completion, self.turn.thought_close.strip())
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
        """The answer in sampled ids, separated from its thought. A thought that was cut off leaves an empty answer."""
        finished = bool(ids) and ids[-1] in self.stop_ids
        body = list(ids[:-1] if finished else ids)
        end = self._end_of_thought(body)
        if end != 0:
            opening, closing = (self.turn.thought_open or "").strip(), self.turn.thought_close.strip()
            thought = self._plain(body[:end], opening, closing)
            return Answer(self._plain(body[end:]), thought or None, finished) if end else Answer("", thought, False)
        lead = self.turn.lead.strip()
        if lead:
            end = position_after(self.tokenizer, body, lead)
            text = str(self.tokenizer.decode(body, skip_special_tokens=False)).lstrip()
            if end is not None and text.startswith(lead):
                body = body[end:]
        return Answer(self._plain(body), None, finished)

    def decode_completion(self, ids: Sequence[int]) -> str:
        """The text of a sampled answer, without its thought and special tokens."""
        return self.read(ids).text

    def without_marks(self, text: str) -> str:
        """A text from another source, without marks that would end a turn or a thought."""
        for mark in (*self._names_of_ends(), *self.marks, self.turn.thought_close.strip(), self.turn.thought_mark):
            text = text.replace(mark, "") if mark else text
        return text

    def ends(self, ids: Sequence[int]) -> bool:
        """Whether a completion's last token ends a turn."""
        return bool(ids) and ids[-1] in self.stop_ids

    def _plain(self, ids: Sequence[int], opening: str = "", closing: str = "") -> str:
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=not (opening or closing))).strip()
        text = text.removeprefix(opening).removesuffix(closing)
        for token in self.tokenizer.all_special_tokens if opening or closing else ():
            text = text.replace(token, "")
        return text.strip()


def textless_ids(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> tuple[int, ...]:
    """The ids below `vocabulary` that a tokenizer has no token for."""
    return tuple(sorted(set(range(vocabulary)).difference(tokenizer.get_vocab().values())))
