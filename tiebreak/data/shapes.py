"""What a row is, by the columns that it has: prompts, demonstrations and preferences in the shapes of popular data sets.

A shape that two readings fit is refused with the key that decides (`columns: {completion: output}`). Columns beside the
text (weight, split, kind, …) are read by `columns` and `splits`.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, TypeVar

from tiebreak.content import ImagePart
from tiebreak.data.bbq import COLUMNS as BBQ_COLUMNS
from tiebreak.data.bbq import READ_BY_YARDSTICKS as BBQ_READ_BY_YARDSTICKS
from tiebreak.data.bbq import is_bbq
from tiebreak.data.bbq import prompt_of as bbq_prompt
from tiebreak.data.cells import Cells
from tiebreak.data.conversations import (
    is_conversation,
    is_printed_conversation,
    is_transcript,
    to_messages,
    to_tools,
    turns_without_roles,
)
from tiebreak.data.documents import DOCUMENT
from tiebreak.data.images import IMAGES, has_placeholders, place_images, read_images
from tiebreak.data.tickets import is_ticket, ticket_of
from tiebreak.records import MAX_STRENGTH, Message, Messages, RecordKind, Tools, check_prompt, check_side, text_of

PROMPTS = ("prompt", "question", "instruction", "query", "problem")
LATE_PROMPTS = ("input", "context")
"""Names of a prompt where there is no better one; beside a prompt they are its material: the passage that it asks about."""
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
SYSTEMS = ("system", "system_prompt", "system_message")
ANSWERS = ("completion", "response", "answer", "output", "solution")
CONVERSATIONS = ("messages", "conversations", "conversation")
SIDES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_j", "response_k"),
    ("preferred_output", "non_preferred_output"),
)
PAIRS = (
    *(
        (f"{name}{first}", f"{name}{second}")
        for name in ("response", "answer", "completion", "output", "generation", "conversation")
        for first, second in (("_a", "_b"), ("_0", "_1"), ("_1", "_2"), ("1", "2"))
    ),
    ("human_ref_A", "human_ref_B"),
)
WINNERS = ("preferred", "preference", "winner", "choice", "better_response_id", "label", "labels", "result")
"""the last three are often about something else, so they count only beside two answers that nobody calls chosen"""
SIGNED_WINNERS = ("overall_preference", "preference_strength")
"""HelpSteer's: −3 (the first is much better) … 0 (a tie) … 3 (the second is)."""
SIDE_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
"""Columns with ratings of a preference's two sides, which must not contradict it."""
LISTS = ("answers", "responses", "completions", "generations")
RANKS = ("rank", "ranks", "ranking", "rankings")
SCORES = ("score", "rating", "overall_score", "helpfulness", "quality", "reward", "scores", "ratings")
TIE_FLAGS = ("tie", "is_tie", "winner_tie", "both_bad")
"""Columns that mark two answers as equally good."""
ONE_HOT_WINNERS = ("winner_model", "winner", "preferred", "is_better")
"""Prefixes of a column per answer, 1 for the better one (`winner_model_a`)."""
PAIR_SCORES = ("score", "rating", "reward")
"""Prefixes of a column per answer with its rating (`score_0`)."""
TIES = ("tie", "tie (bothbad)", "both_bad", "bothbad", "both", "same", "equal", "neither", "none", "draw")
NOT_READ = ("video", "videos", "audio", "audios")


@dataclass(frozen=True)
class PromptRow:
    """A prompt."""

    prompt: Messages
    tools: Tools = ()
    image_column: str | None = field(default=None, kw_only=True)
    """the column of its images, if its messages have no parts for them"""


@dataclass(frozen=True)
class AnswerRow(PromptRow):
    """A prompt and its answer."""

    answer: Messages = ()


@dataclass(frozen=True)
class LabelRow(AnswerRow):
    """A prompt, its answer, and whether that is a good one."""

    good: bool = True


@dataclass(frozen=True)
class PreferenceRow(PromptRow):
    """A prompt with a better and a worse answer."""

    chosen: Messages = ()
    rejected: Messages = ()
    strength: float | None = None


@dataclass(frozen=True)
class RatingRow(PromptRow):
    """A prompt, an answer and its rating, to be compared with other answers to the same prompt."""

    answer: Messages = ()
    score: float = 0.0


@dataclass(frozen=True)
class Omission:
    """A valid row without a record of the wanted kind."""

    reason: str


Content = PromptRow | Omission
R = TypeVar("R", bound=Content)


@dataclass
class Interpretation:
    """A row's interpretation: the shape's name, and the row's content."""

    shape: str
    results: list[Content] = field(default_factory=list)


def interpret(cells: Cells, wanted: RecordKind) -> Interpretation:
    """A row's content of the wanted kind.

    Raises:
        ValueError: there is none, or it is ambiguous; the message names the columns and the key that decides.
    """
    _refuse_unread(cells)
    _refuse_printed(cells)
    _flatten(cells)
    for shape in _SHAPES[wanted]:
        if (interpretation := shape(cells)) is not None:
            if cells.of_text:
                _refuse_formulas(cells)
            if images := read_images(cells):
                interpretation.results = [_with_images(result, images, cells) for result in interpretation.results]
            return interpretation
    raise ValueError(_missing(cells, wanted))


def _flatten(cells: Cells) -> None:
    """Questions within an object (WebGPT's `full_text`), conversations without roles (Capybara, LIMA), and prompts and
    answers as lists of turns (LMSYS's arena)."""
    for name in CONVERSATIONS:
        if (messages := turns_without_roles(cells.values.get(name))) is not None:
            cells.values[name] = messages
    question = cells.values.get("question")
    if isinstance(question, Mapping) and isinstance(question.get("full_text"), str):
        cells.values["question"] = question["full_text"]
    questions = _turns_of(cells.values.get("prompt"))
    names = next((names for names in PAIRS if _one_hot(cells, names)), None) if questions else None
    first, second = (_turns_of(cells.values.get(name)) for name in names or ("", ""))
    if (
        names is None
        or not questions
        or first is None
        or second is None
        or not len(questions) == len(first) == len(second)
    ):
        return
    cells.values["prompt"] = questions[0]
    for name, answers in zip(names, (first, second), strict=True):
        turns = [
            (role, text)
            for pair in zip(questions, answers, strict=True)
            for role, text in zip(_SPEAKERS, pair, strict=True)
        ]
        whole = [{"role": role, "content": text} for role, text in turns]
        cells.values[name] = answers[0] if len(answers) == 1 else whole


_SPEAKERS = ("user", "assistant")


def _turns_of(value: object) -> list[str] | None:
    """A list of texts, or its JSON; an empty turn is empty text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if not isinstance(value, list) or not all(isinstance(text, str | None) for text in value):
        return None
    return [text or "" for text in value]


def _with_images(result: R, images: Sequence[ImagePart], cells: Cells) -> R:
    """A row's content with the images of its column in its messages."""
    if isinstance(result, PromptRow) and not has_placeholders(messages_of(result)):
        result = replace(result, image_column=next(name for name in IMAGES if name in cells.used))
    if isinstance(result, PreferenceRow):
        prompt, chosen, rejected = place_images(images, result.prompt, result.chosen, result.rejected)
        return replace(result, prompt=prompt, chosen=chosen, rejected=rejected)
    if isinstance(result, AnswerRow | RatingRow):
        prompt, answer = place_images(images, result.prompt, result.answer)
        return replace(result, prompt=prompt, answer=answer)
    if isinstance(result, PromptRow):
        return replace(result, prompt=place_images(images, result.prompt)[0])
    return result


def _refuse_unread(cells: Cells) -> None:
    for name in NOT_READ:
        if cells.values.get(name):
            raise ValueError(f"column {name!r}: only text and images are read; columns: {{{name}: null}} leaves it out")
    if cells.values.get("chat_template_kwargs"):
        raise ValueError(
            "column 'chat_template_kwargs': template arguments are set for a whole stage (template_arguments); columns: "
            "{chat_template_kwargs: null} leaves it out"
        )


_FORMULA = re.compile(r"[=+@-][A-Z][A-Z0-9.]*\(.*\)|[=+@-]\w+\|.*!.*", re.DOTALL | re.IGNORECASE)
"""A cell that is a formula as a whole, or a command of Dynamic Data Exchange."""
_SPREADSHEET_ERRORS = ("#REF!", "#NAME?", "#VALUE!", "#DIV/0!", "#N/A", "#NULL!", "#NUM!")


def _refuse_formulas(cells: Cells) -> None:
    """Refuse formulas in the place of text: a spreadsheet was saved without its values."""
    for name in sorted(cells.used):
        value = cells.values.get(name)
        if isinstance(value, str) and (_FORMULA.fullmatch(value.strip()) or value.strip() in _SPREADSHEET_ERRORS):
            raise ValueError(
                f"{name}: {value.strip()[:40]!r} is a spreadsheet's formula or error, no text: save its values"
            )


def _refuse_printed(cells: Cells) -> None:
    for name, value in cells.values.items():
        if isinstance(value, str) and is_printed_conversation(value):
            raise ValueError(
                f"column {name!r} holds messages as Python or NumPy prints them, which cannot be read back: save the data "
                "as JSON Lines or Parquet"
            )


def _missing(cells: Cells, wanted: RecordKind) -> str:
    there = ", ".join(cells.values) or "none"
    if isinstance(cells.values.get(DOCUMENT), str):
        return f"a document is a prompt without an answer: give it as prompts, not as {wanted}"
    for name in ("prompt", "completion", "messages", *SIDES[0]):
        if name in cells.empty:
            return f"column {name!r} is empty in this row"
    pair = next((names for names in PAIRS if all(name in cells for name in names)), None)
    if wanted == "preferences" and pair is not None:
        return (
            f"{pair[0]} and {pair[1]}, and no column that names the better one: add 'preferred' ({pair[0]}, {pair[1]} or "
            "tie), or name yours with columns: {preferred: …}; 'tiebreak label' asks people"
        )
    if wanted == "preferences":
        missing = [name for name in SIDES[0] if name not in cells] or ["prompt"]
        return (
            f"no column {missing[0]!r}: a preference needs prompt, chosen and rejected; the columns are {there}: name "
            f"yours with columns: {{{missing[0]}: …}}"
        )
    if "text" in cells and wanted == "demonstrations" and not any(name in cells for name in PROMPTS):
        return "a 'text' column holds conversations that are rendered already: give messages, or prompt and completion"
    if wanted == "prompts" or any(name in cells for name in ANSWERS):
        return (
            f"no column 'prompt' (a string, or messages with role and content); the columns are {there}: name yours with "
            "columns: {prompt: …}"
        )
    if all(name in cells for name in SIDES[0]):
        return (
            "these are preferences: 'tiebreak dpo' takes them; columns: {completion: chosen} trains on the chosen ones"
        )
    return (
        f"no column 'completion' or 'messages'; the columns are {there}: name yours with columns: {{completion: …}} or "
        "columns: {messages: …}"
    )


# --- parts of a row -----------------------------------------------------------------------------------------------------


def _one_of(cells: Cells, names: Sequence[str], part: str) -> str | None:
    """The column of a part. Our own name, or one named in `columns`, has precedence; two others are refused."""
    present = [name for name in names if name in cells]
    if part in present:
        return part
    if len(present) < 2:
        return present[0] if present else None
    listed = " and ".join(map(repr, present))
    raise ValueError(f"{listed} could each be the {part}: name one with columns: {{{part}: {present[0]}}}")


def _prompt_column(cells: Cells) -> str | None:
    late = "history" if isinstance(cells.values.get("history"), str) else None  # of the Stanford Human Preferences
    return _one_of(cells, PROMPTS, "prompt") or _one_of(cells, LATE_PROMPTS, "prompt") or late


def _messages(cells: Cells, value: object, role: str = "user") -> Messages:
    return to_messages(value, role, cells.message_keys)


def _prompt(cells: Cells, name: str, *, checked_alone: bool = False) -> Messages:
    """The prompt in a column, with the material, earlier turns and system message that stand beside it.

    Args:
        checked_alone: true for a prompt that is only compared with whole conversations, which hold its material already
    """
    value = cells.get(name)
    messages = _messages(cells, value)
    if isinstance(value, str) and not checked_alone and (material := _material(cells, name, value)):
        messages = (Message(role="user", content=f"{value}\n\n{material}" if value.strip() else material),)
    history = cells.values.get("history")
    if isinstance(value, str) and isinstance(history, list) and _is_history(history):
        cells.used.add("history")
        earlier = [(role, text) for turn in history for role, text in zip(("user", "assistant"), turn, strict=True)]
        messages = (*(Message.model_validate({"role": r, "content": t}) for r, t in earlier), *messages)
    return _with_system(cells, messages)


def _material(cells: Cells, name: str, prompt: str) -> str:
    """What a prompt asks about, where a column beside it holds that; empty where none does.

    Raises:
        ValueError: no key says whether that belongs to the prompt.
    """
    texts = {other: cells.values.get(other) for other in LATE_PROMPTS if other != name}
    beside = {other: text for other, text in texts.items() if isinstance(text, str) and text.strip()}
    cells.used |= {other for other, text in texts.items() if isinstance(text, str) and not text.strip()}
    if "input" in cells.explicit and "input" in beside:
        return str(cells.get("input"))
    if name == "instruction" and len(beside) == 1:
        return str(cells.get(next(iter(beside))))
    other = next((other for other, text in beside.items() if text.strip() not in prompt), None)
    if other is not None and name not in LATE_PROMPTS:
        raise ValueError(
            f"{other!r} is a column beside {name!r}: columns: {{input: {other}}} puts it after the {name}, columns: "
            f"{{{other}: null}} leaves it out"
        )
    return ""


def _is_history(turns: list[Any]) -> bool:
    return all(isinstance(turn, list) and len(turn) == 2 and all(isinstance(s, str) for s in turn) for turn in turns)


def _with_system(cells: Cells, messages: Messages) -> Messages:
    """The messages, preceded by a `system` column."""
    name = _one_of(cells, SYSTEMS, "system")
    text = cells.values.get(name) if name else None
    if isinstance(text, list | dict):
        raise ValueError(
            f"column {name!r} holds a {type(text).__name__}, not text; columns: {{{name}: null}} leaves it out"
        )
    if name is None or not isinstance(text, str):
        return messages
    cells.used.add(name)
    if not text.strip():
        return messages
    if messages[0].role != "system":
        return (Message(role="system", content=text), *messages)
    if messages[0].display_text.strip() != text.strip():
        raise ValueError(f"column {name!r} and the conversation's system message differ: keep one of them")
    return messages


def _tools(cells: Cells) -> Tools:
    return to_tools(cells.get("tools") or cells.get("functions"))


def _conversation_column(cells: Cells) -> str | None:
    name = _one_of(cells, CONVERSATIONS, "messages")
    if name and not (isinstance(cells.values[name], str) or is_conversation(cells.values[name])):
        return name if name == "messages" else None
    return name


# --- prompts of benchmarks ---------------------------------------------------------------------------------------------


def _bbq_prompt(cells: Cells) -> Interpretation | None:
    """A question of BBQ's with its context and answers; the other columns are read by the yardstick `bbq`."""
    if not is_bbq(cells.values):
        return None
    cells.used |= {*BBQ_COLUMNS, *BBQ_READ_BY_YARDSTICKS} & cells.values.keys()
    return Interpretation("BBQ's questions", [PromptRow((Message(role="user", content=bbq_prompt(cells.values)),))])


# --- prompts -----------------------------------------------------------------------------------------------------------


def _bare_prompt(cells: Cells) -> Interpretation | None:
    name = _prompt_column(cells)
    if name is None:
        return None
    shape = "prompts" if name == "prompt" else f"prompts ({name})"
    return Interpretation(shape, [PromptRow(_prompt(cells, name), _tools(cells))])


def _conversation_prompt(cells: Cells) -> Interpretation | None:
    """A conversation up to the assistant's last answer."""
    name = _conversation_column(cells)
    if name is None:
        return None
    messages = _with_system(cells, _messages(cells, cells.get(name)))
    prompt = messages
    while prompt and prompt[-1].role == "assistant":
        prompt = prompt[:-1]
    shape = f"prompts ({name})" if prompt == messages else f"prompts ({name}, less the last answer)"
    return Interpretation(shape, [PromptRow(prompt, _tools(cells))])


def _common_prompt(cells: Cells) -> Interpretation | None:
    """The common beginning of both sides of a preference."""
    preferences = _two_sides(cells, judged=False)
    if preferences is None:
        return None
    return Interpretation(
        f"prompts of {preferences.shape}", [PromptRow(row.prompt, row.tools) for row in _preference_rows(preferences)]
    )


def _document(cells: Cells) -> Interpretation | None:
    if not isinstance(cells.values.get(DOCUMENT), str) or _prompt_column(cells) is not None:
        return None
    return Interpretation("documents", [PromptRow(_with_system(cells, _messages(cells, cells.get(DOCUMENT))))])


# --- tickets -----------------------------------------------------------------------------------------------------------


def _ticket_prompt(cells: Cells) -> Interpretation | None:
    """A ticket's thread up to the last answer."""
    return _ticket(cells, answered=False)


def _answered_ticket(cells: Cells) -> Interpretation | None:
    return _ticket(cells, answered=True)


def _ticket(cells: Cells, *, answered: bool) -> Interpretation | None:
    if not is_ticket(cells.values):
        return None
    ticket = ticket_of(cells.values)
    cells.used |= {"comments", "conversation_parts", "requester_id", "subject"} & cells.values.keys()
    if ticket.system == "Intercom":
        cells.used.add("source")
    results: list[Content] = [Omission(reason) for reason, count in ticket.left_out.items() for _ in range(count)]
    turns = ticket.messages
    while answered and turns and turns[-1]["role"] == "user":
        turns.pop()  # thanks for the last answer
    if not answered and any(turn["role"] == "assistant" for turn in turns):
        turns = turns[: max(n for n, turn in enumerate(turns) if turn["role"] == "assistant")]
    shape = f"{ticket.system} tickets"
    if len(turns) < 1 + answered:
        missing = "an answer" if answered else "a question"
        return Interpretation(shape, [*results, Omission(f"tickets without {missing}")])
    messages = _with_system(cells, _messages(cells, turns))
    row = AnswerRow(messages[:-1], (), messages[-1:]) if answered else PromptRow(messages)
    return Interpretation(shape, [*results, row])


# --- demonstrations ----------------------------------------------------------------------------------------------------


def _conversation(cells: Cells) -> Interpretation | None:
    if (parts := _whole_conversation(cells)) is None:
        return None
    shape, answer_row = parts
    return Interpretation(shape, [_label(cells, answer_row)])


def _whole_conversation(cells: Cells) -> tuple[str, AnswerRow] | None:
    """(the shape's name, the last answer of a conversation)."""
    name = _conversation_column(cells)
    if name is None or ("completion" in cells.explicit and "messages" not in cells.explicit):
        return None
    if "completion" in cells and "messages" not in cells.explicit:
        raise ValueError(
            f"{name!r} and 'completion' could each be the conversation to learn from: name one with columns: {{messages: "
            f"{name}}} or columns: {{completion: completion}}"
        )
    value = cells.get(name)
    messages = _with_system(cells, _messages(cells, value))
    if messages[-1].role != "assistant":
        raise ValueError(
            f"{name} must end with the assistant's answer, and ends with a message of the {messages[-1].role}"
        )
    if len(messages) < 2:
        raise ValueError(f"{name} has an answer but no prompt")
    shape = f"conversations ({name})"
    if isinstance(value, str):
        shape = f"Human and Assistant in one text ({name})"
    elif isinstance(value[0], dict) and "from" in value[0]:
        shape = f"ShareGPT ({name} of from and value)"
    return shape, AnswerRow(messages[:-1], _tools(cells), messages[-1:])


def _prompt_and_answer(cells: Cells) -> Interpretation | None:
    if (parts := _two_parts(cells)) is None:
        return None
    name, answer, answer_row = parts
    result = _label(cells, answer_row)
    shape = f"{name} and {answer}"
    if name == "instruction" and answer == "output":
        shape = "Alpaca (instruction, input, output)"
    if "label" in cells.used:
        shape = f"KTO rows ({name}, {answer}, label)"
    return Interpretation(shape, [result])


def _two_parts(cells: Cells) -> tuple[str, str, AnswerRow] | None:
    """(the prompt's column, the answer's, both)."""
    answer = _one_of(cells, ANSWERS, "completion")
    name = _prompt_column(cells)
    if answer is None or name is None:
        return None
    prompt = _prompt(cells, name)
    completion = _with_thought(cells, _messages(cells, cells.get(answer), "assistant"))
    return name, answer, AnswerRow(prompt, _tools(cells), completion)


def _with_thought(cells: Cells, answer: Messages) -> Messages:
    """A column of thoughts is what the assistant thinks before it answers."""
    name = _one_of(cells, THOUGHTS, "reasoning_content")
    thought = cells.values.get(name) if name else None
    if name is None or not isinstance(thought, str) or not thought.strip():
        return answer
    if len(answer) != 1 or answer[0].reasoning_content not in (None, thought):
        raise ValueError(f"column {name!r} and the answer's own thought differ: keep one of them")
    cells.used.add(name)
    return (answer[0].model_copy(update={"reasoning_content": thought}),)


def _label(cells: Cells, answer_row: AnswerRow) -> Content:
    """KTO's label: an answer labelled bad is not a demonstration."""
    good = _as_label(cells)
    if good is None:
        return answer_row
    cells.used.add("label")
    return answer_row if good else Omission("labelled false (an undesirable answer)")


def _as_label(cells: Cells) -> bool | None:
    """Whether the answer is labelled good; None if the column has another meaning."""
    value = cells.values.get("label")
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("0", "1", "0.0", "1.0"):
        if "label" not in cells.explicit:
            raise ValueError(
                f"label: {value} may rate the answer or mean something else: columns: {{label: label}} reads 1 as good "
                "and 0 as bad; columns: {label: null} ignores the column"
            )
        return float(word) == 1
    return _VERDICTS.get(word)


_VERDICTS = {
    **dict.fromkeys(("true", "desirable", "good", "chosen"), True),
    **dict.fromkeys(("false", "undesirable", "bad", "rejected"), False),
}


# --- answers with a label ----------------------------------------------------------------------------------------------


def _labelled_answer(cells: Cells) -> Interpretation | None:
    if _has_pair(cells):
        raise ValueError(
            "a pair, but KTO learns from single answers with a label: train on pairs with --algorithm dpo; a label run "
            "exports both (formats: [unpaired])"
        )
    if (parts := _two_parts(cells)) is not None:
        name, answer, answer_row = parts
        shape = f"KTO rows ({name}, {answer}, label)"
    elif (whole := _whole_conversation(cells)) is not None:
        shape, answer_row = whole
    else:
        return None
    good = _as_label(cells)
    if good is None:
        held = f"{cells.values['label']!r} in it is neither true nor false" if "label" in cells else "missing"
        raise ValueError(
            f"label: {held}: KTO needs a label for each answer, true (desirable) or false; name its column with columns: "
            "{label: NAME}"
        )
    cells.used.add("label")
    return Interpretation(shape, [LabelRow(answer_row.prompt, answer_row.tools, answer_row.answer, good)])


def _has_pair(cells: Cells) -> bool:
    """Whether a row holds two or more answers to compare."""
    return any(all(name in cells for name in names) for names in (*SIDES, *PAIRS)) or _is_ranking(cells)


# --- preferences -------------------------------------------------------------------------------------------------------


def _two_sides(cells: Cells, *, judged: bool = True) -> Interpretation | None:
    """A better and a worse answer.

    Args:
        judged: the row is wanted as a preference: ratings and verdicts beside it may not contradict it.
    """
    sides = next((names for names in SIDES if all(name in cells for name in names)), None)
    if sides is None:
        return None
    chosen, rejected = (cells.get(name) for name in sides)
    if _is_texts(chosen) or _is_texts(rejected):
        return _one_better_than_several(cells, sides, judged=judged)
    name = _one_of(cells, PROMPTS, "prompt")
    if name is None and isinstance(chosen, str) and not is_transcript(chosen):
        name = _one_of(cells, LATE_PROMPTS, "prompt")
    if name is None and not _holds_prompt(cells, chosen):
        name = _conversation_column(cells) or _one_of(cells, LATE_PROMPTS, "prompt")
    if judged and (tied := _check_side_scores(cells) or _check_verdict(cells, sides)):
        return Interpretation(f"ties ({sides[0]}, {sides[1]})", [Omission(tied)])
    if name is None:
        shape = "HH-RLHF (Human and Assistant in one text)" if isinstance(chosen, str) else "whole conversations"
        preference = _implicit(cells, _messages(cells, chosen), _messages(cells, rejected))
        return Interpretation(f"{shape} in {sides[0]} and {sides[1]}", [preference])
    whole = _holds_prompt(cells, chosen)
    prompt = _prompt(cells, name, checked_alone=whole)
    if whole != _holds_prompt(cells, rejected):
        raise ValueError(f"one of {sides[0]} and {sides[1]} is a whole conversation, but the other is only an answer")
    if whole:
        preference = _implicit(cells, _messages(cells, chosen), _messages(cells, rejected), column=prompt)
        return Interpretation(f"UltraFeedback ({name}, whole conversations in {sides[0]} and {sides[1]})", [preference])
    better, worse = (_messages(cells, side, "assistant") for side in (chosen, rejected))
    system = ", system" if {*SYSTEMS} & cells.used else ""
    shape = f"preferences ({name}{system}, {sides[0]}, {sides[1]})"
    return Interpretation(shape, [PreferenceRow(prompt, _tools(cells), better, worse)])


def _is_texts(side: object) -> bool:
    return isinstance(side, list) and bool(side) and all(isinstance(text, str) for text in side)


def _one_better_than_several(cells: Cells, sides: tuple[str, str], *, judged: bool) -> Interpretation:
    """A preference for each text in the list of worse answers.

    Raises:
        ValueError: the better answer is no text.
    """
    better, worse = sides
    if not isinstance(cells.values[better], str):
        raise ValueError(f"{better}: give one text: only {worse} may be a list of texts, each a worse answer")
    texts, each = cells.values[worse], []
    for text in texts:
        cells.values[worse] = text
        each += [one for one in [_two_sides(cells, judged=judged)] if one is not None]
    cells.values[worse] = texts
    return Interpretation(f"{each[0].shape}, each of {worse}", [result for one in each for result in one.results])


def _check_side_scores(cells: Cells) -> str:
    """Why two sides are no preference by their own ratings; empty where they are one.

    Raises:
        ValueError: the rejected one is rated the better.
    """
    for names in SIDE_SCORES:
        try:
            high, low = (_number(name, cells.values.get(name)) for name in names)
        except ValueError:  # absent, or something else
            continue
        cells.used |= {*names}
        ignoring = f"columns: {{{names[0]}: null}}"
        if high < low:
            raise ValueError(
                f"{names[0]} is {high:g} and {names[1]} {low:g}, so the rejected answer is rated the better one: swap the "
                f"two, or ignore the ratings with {ignoring}"
            )
        if high == low:
            return f"{names[0]} and {names[1]} are equal, a tie ({ignoring} keeps them)"
    return ""


def _check_verdict(cells: Cells, sides: tuple[str, str]) -> str:
    """Why two sides are no preference by a verdict in a column beside them; empty where they are one.

    Raises:
        ValueError: the verdict names the rejected one, or neither of them.
    """
    if flag := next((name for name in TIE_FLAGS if name in cells and _is_set(cells, name)), None):
        return f"{flag} is true ({_ignoring(flag)} keeps them)"
    pair = next((names for names in PAIRS if all(name in cells for name in names)), None)
    for column in (*SIGNED_WINNERS, *WINNERS):
        if column not in cells or column in WINNERS[-3:]:
            continue
        word, of_side = str(cells.values[column]).strip().lower(), [cells.values[name] for name in sides]
        signed = column in SIGNED_WINNERS
        if word in TIES or (signed and word in ("0", "0.0")):
            cells.used.add(column)
            return f"{column} is {word}, a tie ({_ignoring(column)} keeps them)"
        if signed:
            continue  # its sign is about the answers in their first order
        if pair is not None:
            better, _ = _winner(column, cells.values[column], pair, cells)
            named = (
                of_side.index(value)
                if better is not None and (value := cells.values[pair[better]]) in of_side
                else None
            )
        else:
            named = next((n for n, name in enumerate(sides) if word in _names_of(name, cells)), None)
        if named == 1:
            raise ValueError(
                f"{column}: {cells.values[column]!r} names the rejected answer: swap the two, or ignore the column with "
                f"{_ignoring(column)}"
            )
        if named is None:
            raise ValueError(
                f"{column}: {cells.values[column]!r} names neither {sides[0]} nor {sides[1]}; {_ignoring(column)} ignores "
                "the column"
            )
        cells.used.add(column)
    return ""


def _names_of(side: str, cells: Cells) -> tuple[str, ...]:
    ours = {"chosen": "chosen", "rejected": "rejected"}.get(side, side)
    text = cells.values[side]
    return (side, cells.theirs.get(ours, side).lower(), *([text.strip().lower()] if isinstance(text, str) else []))


def _ignoring(column: str) -> str:
    return f"columns: {{{column}: null}}"


def _is_set(cells: Cells, name: str) -> bool:
    """Whether a column of yes and no says yes.

    Raises:
        ValueError: it holds something else.
    """
    word = str(cells.get(name)).strip().lower()
    if word in ("true", "1", "1.0", "yes"):
        return True
    if word in ("false", "0", "0.0", "no"):
        return False
    raise ValueError(f"{name}: {cells.values[name]!r} is neither true nor false; {_ignoring(name)} ignores the column")


def _holds_prompt(cells: Cells, side: Any) -> bool:
    """Whether a side is a whole conversation, prompt included."""
    if isinstance(side, str):
        return is_transcript(side)
    return is_conversation(side) and _messages(cells, side[:1])[0].role != "assistant"


def _implicit(cells: Cells, chosen: Messages, rejected: Messages, column: Messages = ()) -> PreferenceRow:
    """TRL's implicit prompt: the longest common beginning of both conversations."""
    if chosen == rejected:
        raise ValueError("chosen and rejected are the same")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and chosen[shared - 1].role == "assistant":
        shared -= 1  # both answers begin with the same call or remark
    if shared == 0:
        raise ValueError("no column 'prompt', and chosen and rejected share no first messages to take as one")
    prompt = chosen[:shared]
    if any(message.role == "user" for message in (*chosen[shared:], *rejected[shared:])):
        raise ValueError(
            f"chosen and rejected differ from message {shared + 1} on, and later turns are the user's: a preference "
            "compares answers to one conversation"
        )
    if column and not _matches_prompt(column, prompt):
        raise ValueError(
            "the prompt differs from the beginning of chosen and rejected: correct it, or ignore its column with "
            "columns: {prompt: null}"
        )
    return PreferenceRow(_with_system(cells, prompt), _tools(cells), chosen[shared:], rejected[shared:])


def _matches_prompt(column: Messages, prompt: Messages) -> bool:
    """Whether the prompt's column matches the conversations' beginning: all of it, or one turn of the user."""
    turns = [(message.role, message.display_text.strip()) for message in prompt]
    wanted = [(message.role, message.display_text.strip()) for message in column if message.role != "system"]
    return wanted == [turn for turn in turns if turn[0] != "system"] or (len(wanted) == 1 and wanted[0] in turns)


def _pair_with_winner(cells: Cells) -> Interpretation | None:
    if (names := _two_columns(cells)) is None or (verdict := _verdict(cells, names)) is None:
        return None
    first, second = names
    shape = f"pairs ({first}, {second}, {verdict.columns})"
    sides = [cells.get(first), cells.get(second)]
    name = _prompt_column(cells) or _conversation_column(cells)
    if verdict.better is None:
        cells.used |= {name or first, *(({*SYSTEMS, "tools"}) & cells.values.keys())}
        return Interpretation(shape, [Omission("a tie")])
    chosen, rejected = sides if verdict.better == 0 else sides[::-1]
    if _holds_prompt(cells, chosen):
        column = _prompt(cells, name) if name else ()
        whole = _implicit(cells, _messages(cells, chosen), _messages(cells, rejected), column)
        return Interpretation(shape, [replace(whole, strength=verdict.strength)])
    if name is None:
        return None
    first_answer, second_answer = (_messages(cells, side, "assistant") for side in (chosen, rejected))
    preference = PreferenceRow(_prompt(cells, name), _tools(cells), first_answer, second_answer, verdict.strength)
    return Interpretation(shape, [preference])


@dataclass(frozen=True)
class Verdict:
    """The better of two answers."""

    columns: str
    """names of the columns that say so"""
    better: int | None
    """0: the first; 1: the second; None: a tie"""
    strength: float | None = None
    """1 to 3, where a column says it"""


def _verdict(cells: Cells, names: tuple[str, str]) -> Verdict | None:
    """The better of the answers in two columns; None where no column says it.

    Raises:
        ValueError: a column says something else.
    """
    if flag := next((name for name in TIE_FLAGS if name in cells and _is_set(cells, name)), None):
        columns = _one_hot(cells, names)
        if sum(_is_set(cells, column) for column in columns):
            raise ValueError(f"{' and '.join((*columns, flag))}: more than one of them is 1")
        return Verdict(" and ".join(columns) or flag, None)
    if (column := next((name for name in (*SIGNED_WINNERS, *WINNERS) if name in cells), None)) is not None:
        return Verdict(column, *_winner(column, cells.get(column), names, cells))
    if columns := _one_hot(cells, names):
        won = [_is_set(cells, column) for column in columns]
        if sum(won) != 1:
            raise ValueError(
                f"{' and '.join(columns)}: {'both are' if all(won) else 'neither is'} 1, but no column marks a tie"
            )
        return Verdict(" and ".join(columns), won.index(True))
    if columns := _of_each(cells, names, PAIR_SCORES):
        first, second = (_number(column, cells.get(column)) for column in columns)
        return Verdict(" and ".join(columns), None if first == second else int(second > first))
    return None


def _one_hot(cells: Cells, names: tuple[str, str]) -> tuple[str, ...]:
    return _of_each(cells, names, ONE_HOT_WINNERS)


def _of_each(cells: Cells, names: tuple[str, str], beginnings: Sequence[str]) -> tuple[str, ...]:
    """The two columns that say something of each answer: `score_0` and `score_1` of `answer_0` and `answer_1`."""
    endings = [re.sub(r".*?(_?[^_])$", r"\1", name) for name in names]
    pairs = [tuple(f"{beginning}{ending}" for ending in endings) for beginning in beginnings]
    return next((pair for pair in pairs if all(name in cells for name in pair)), ())


def answers_to_judge(cells: Cells) -> tuple[str, PromptRow, list[Messages]]:
    """(the shape's name, a prompt, two or more answers to it), whoever compared them before.

    Answers that a row calls chosen and rejected come in an order that does not say which is which.

    Raises:
        ValueError: the row has no such columns, or more than one set of them; the message names the key that decides.
    """
    _refuse_unread(cells)
    _flatten(cells)
    shape, prompt, answers = _answers_to_judge(cells)
    if images := read_images(cells):
        prompt = _with_images(prompt, images, cells)
    return shape, prompt, answers


def _answers_to_judge(cells: Cells) -> tuple[str, PromptRow, list[Messages]]:
    names = _two_columns(cells)
    if names is not None:
        sides = [_messages(cells, cells.get(name), "assistant") for name in names]
        return f"pairs ({', '.join(names)})", _prompt_row(cells), sides
    if (preferences := _two_sides(cells, judged=False)) is not None:
        first, *others = _preference_rows(preferences)
        answers = sorted([first.chosen, first.rejected, *(row.rejected for row in others)], key=repr)
        return f"{preferences.shape}, to judge anew", PromptRow(first.prompt, first.tools), answers
    name = next((name for name in LISTS if isinstance(cells.values.get(name), list)), None)
    if name is None or len(cells.values[name]) < 2:
        raise ValueError(
            "no two answers: give response_a and response_b, chosen and rejected, or a list in 'answers'; the columns are "
            f"{', '.join(cells.values) or 'none'}: name yours with columns: {{response_a: …, response_b: …}}"
        )
    answers = [_messages(cells, answer, "assistant") for answer in cells.get(name)]
    return f"lists of answers ({name})", _prompt_row(cells), answers


def _prompt_row(cells: Cells) -> PromptRow:
    name = _prompt_column(cells) or _conversation_column(cells)
    if name is None:
        raise ValueError(_missing(cells, "prompts"))
    return PromptRow(_prompt(cells, name), _tools(cells))


def _two_columns(cells: Cells) -> tuple[str, str] | None:
    """The two columns of answers that a row has."""
    present = [names for names in PAIRS if all(name in cells for name in names)]
    if len(present) > 1 and not {"response_a", "response_b"} <= cells.explicit:
        listed = ", ".join(name for name in dict.fromkeys(name for names in present for name in names))
        raise ValueError(f"more than two answers ({listed}): name two with columns: {{response_a: …, response_b: …}}")
    return present[0] if present else None


def _winner(column: str, value: object, names: tuple[str, str], cells: Cells) -> tuple[int | None, float | None]:
    """(0: the first is better, 1: the second, None: a tie; how much better, from 1 to 3, where the column says it)."""
    word = str(value).strip().lower()
    if word in TIES:
        return None, None
    if column in SIGNED_WINNERS:
        return _signed(column, value)
    if names == PAIRS[-1] and word in ("0", "1"):  # Stanford Human Preferences: 1 is the first
        return 1 - int(word), None
    endings = [re.split(r"_|(?<=\D)(?=\d)", name)[-1] for name in names]
    models = [str(cells.values.get(f"model_{ending}", "")) for ending in endings]
    for side, (name, ending) in enumerate(zip(names, endings, strict=True)):
        letter = "ab"[side]
        of_side = (
            *(name, cells.theirs.get(name, name), ending, f"model_{ending}", f"response {ending}"),
            *(letter, f"model_{letter}", f"response {letter}", ("first", "second")[side]),
            *([models[side]] if models[0] != models[1] else []),
        )
        if word in [one.lower() for one in of_side]:
            return side, None
    if word == "0" and names[1].endswith("2"):
        return None, None
    raise ValueError(
        f"{column}: {value!r} does not say which of {names[0]} and {names[1]} is better: write their names, or tie"
    )


def _signed(column: str, value: object) -> tuple[int | None, float | None]:
    """HelpSteer's scale. A mean of it below 1 names the better one without a strength."""
    number = _number(column, value)
    if abs(number) > MAX_STRENGTH:
        raise ValueError(f"{column}: {number:g} is outside its scale, -{MAX_STRENGTH} to {MAX_STRENGTH}: rescale it")
    return (None, None) if number == 0 else (int(number > 0), abs(number) if abs(number) >= 1 else None)


def unsettled_winner(rows: Sequence[Cells]) -> str | None:
    """The column that names the better of two answers numbered from 1 by 0 and 1 alone: is 0 a tie, or the first?"""
    words: dict[str, set[str]] = {}
    for cells in rows:
        names = next((names for names in PAIRS if all(name in cells for name in names)), None)
        column = next((name for name in WINNERS if name in cells), None)
        if names and column and names[1].endswith("2") and not any(name in cells for name in SIGNED_WINNERS):
            words.setdefault(column, set()).add(str(cells.values[column]).strip().lower())
    return next((column for column, found in words.items() if found == {"0", "1"}), None)


def _ranking(cells: Cells) -> Interpretation | None:
    name = next((name for name in LISTS if isinstance(cells.values.get(name), list) and cells.values[name]), None)
    prompt = _prompt_column(cells) or _conversation_column(cells)
    if name is None or prompt is None:
        return None
    ranked = _ranked(cells, name)
    if ranked is None:
        return None
    by, entries = ranked
    cells.used.add(name)
    messages, tools = _prompt(cells, prompt), _tools(cells)
    answers = [(_messages(cells, text, "assistant"), place) for text, place in entries]
    results = list(_pairs_of(messages, tools, answers))
    return Interpretation(
        f"rankings ({prompt}, {name} by {by})", results or [Omission("no answer is better than another")]
    )


def _ranked(cells: Cells, name: str) -> tuple[str, list[tuple[object, float]]] | None:
    """(the ranking's name, (answer, goodness) of each)."""
    listed = cells.values[name]
    if all(isinstance(entry, dict) for entry in listed):
        by = next((key for key in (*RANKS, *SCORES) if all(entry.get(key) is not None for entry in listed)), None)
        text = next((k for k in (*ANSWERS, "text", "content") if all(isinstance(e.get(k), str) for e in listed)), None)
        if by is None or text is None:
            return None
        return by, [(entry[text], _goodness(by, entry[by])) for entry in listed]
    by = next((key for key in (*RANKS, *SCORES) if isinstance(cells.values.get(key), list)), None)
    if by is None or not all(isinstance(entry, str) for entry in listed):
        return None
    places = cells.get(by)
    if len(places) != len(listed):
        raise ValueError(f"{name} holds {len(listed)} answers and {by} {len(places)}")
    return by, [(entry, _goodness(by, place)) for entry, place in zip(listed, places, strict=True)]


def _goodness(by: str, value: Any) -> float:
    return -_number(by, value) if by in RANKS else _number(by, value)


def _number(column: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{column}: {value!r} is not a number")
    return number


def _pairs_of(prompt: Messages, tools: Tools, answers: Sequence[tuple[Messages, float]]) -> Iterator[Content]:
    """All pairs of answers of which one is better, as the labelling app splits a ranking."""
    best_first = sorted(answers, key=lambda answer: -answer[1])
    for (better, high), (worse, low) in combinations(best_first, 2):
        if high > low and text_of(better).strip() == text_of(worse).strip():
            yield Omission("two equal answers with different ratings")
        elif high > low:
            yield PreferenceRow(prompt, tools, better, worse)


def _rating(cells: Cells) -> Interpretation | None:
    """One answer with a rating; KTO's label is a rating of two values."""
    name, answer = _prompt_column(cells), _one_of(cells, ANSWERS, "response")
    if name is None or answer is None:
        return None
    by = _one_of(cells, SCORES, "score")
    good = _as_label(cells) if by is None else None
    if by is None and good is None:
        return None
    by, score = (by, _goodness(by, cells.values[by])) if by else ("label", float(bool(good)))
    cells.used.add(by)
    prompt, response = _prompt(cells, name), _messages(cells, cells.get(answer), "assistant")
    shape = "KTO rows" if by == "label" else "ratings"
    return Interpretation(
        f"{shape} ({name}, {answer}, {by}), paired by prompt", [RatingRow(prompt, _tools(cells), response, score)]
    )


def pair_up(rated: Sequence[RatingRow]) -> list[Content]:
    """The preferences from the rated answers to one prompt."""
    return list(_pairs_of(rated[0].prompt, rated[0].tools, [(row.answer, row.score) for row in rated]))


_SHAPES: dict[RecordKind, tuple[Callable[[Cells], Interpretation | None], ...]] = {
    "prompts": (_ticket_prompt, _bbq_prompt, _bare_prompt, _conversation_prompt, _common_prompt, _document),
    "demonstrations": (_answered_ticket, _conversation, _prompt_and_answer),
    "preferences": (_two_sides, _pair_with_winner, _ranking, _rating),
    "answers": (_labelled_answer,),
}


def guess(cells: Cells) -> RecordKind:
    """The kind of record that a row most likely is."""
    if _has_pair(cells):
        return "preferences"
    if is_ticket(cells.values) or any(name in cells for name in (*CONVERSATIONS, *ANSWERS)):
        return "demonstrations"
    return "prompts"


def _is_ranking(cells: Cells) -> bool:
    """Also of a ranking with a fault, which is an error of its row when that is read."""
    try:
        return any(isinstance(cells.values.get(name), list) and _ranked(cells, name) is not None for name in LISTS)
    except ValueError:
        return True


def check(result: PromptRow) -> None:
    """Raises ValueError if the prompt or the answer is empty."""
    check_prompt(result.prompt)
    if result.prompt[-1].role == "user":
        _require_visible(result.prompt[-1:], "the prompt")
    if isinstance(result, AnswerRow | RatingRow):
        check_side(result.answer, "the completion")
        _require_visible(result.answer[-1:], "the completion")
    if isinstance(result, PreferenceRow):
        for name, side in (("chosen", result.chosen), ("rejected", result.rejected)):
            _require_visible(side[-1:], name)


def _require_visible(messages: Messages, name: str) -> None:
    """Refuse zero-width and control characters alone: to a reader that is an empty text."""
    for message in messages:
        unseen = message.text.strip() and all(unicodedata.category(letter) in _UNSEEN for letter in message.text)
        if unseen and not message.media and not message.tool_calls:
            raise ValueError(f"{name} is empty but for characters that cannot be seen")


_UNSEEN = ("Cc", "Cf", "Zl", "Zp", "Zs")
"""Unicode's categories of control and format characters, and of separators"""


def messages_of(result: Content) -> Messages:
    """All messages of a row's content."""
    if isinstance(result, PreferenceRow):
        return (*result.prompt, *result.chosen, *result.rejected)
    if isinstance(result, AnswerRow | RatingRow):
        return (*result.prompt, *result.answer)
    return result.prompt if isinstance(result, PromptRow) else ()


def _preference_rows(interpretation: Interpretation) -> list[PreferenceRow]:
    return [row for row in interpretation.results if isinstance(row, PreferenceRow)]
