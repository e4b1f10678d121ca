"""What a row is, by the columns that it has: prompts, demonstrations and preferences in the shapes of popular data sets.

A shape that two readings fit is refused with the key that decides (`columns: {completion: output}`). Columns beside the
text (weight, split, kind, …) are read by `columns` and `splits`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from tiebreak.content import ImagePart
from tiebreak.data.bbq import COLUMNS as BBQ_COLUMNS
from tiebreak.data.bbq import READ_BY_YARDSTICKS as BBQ_READ_BY_YARDSTICKS
from tiebreak.data.bbq import is_bbq
from tiebreak.data.bbq import prompt_of as bbq_prompt
from tiebreak.data.cells import Cells
from tiebreak.data.conversations import is_printed_conversation, turns_without_roles
from tiebreak.data.documents import DOCUMENT
from tiebreak.data.images import IMAGES, has_placeholders, place_images, read_images
from tiebreak.data.rows.content import (
    AnswerRow,
    Content,
    Interpretation,
    LabelRow,
    PreferenceRow,
    PromptRow,
    RatingRow,
    messages_of,
)
from tiebreak.data.rows.demonstrations import (
    answered_ticket,
    conversation,
    prompt_and_answer,
    ticket_prompt,
    two_parts,
    whole_conversation,
)
from tiebreak.data.rows.logs import has_answer, is_logged, logged_answer, logged_prompt
from tiebreak.data.rows.parts import (
    ANSWERS,
    CONVERSATIONS,
    PROMPTS,
    conversation_column,
    prompt_column,
    read_label,
    read_messages,
    read_prompt,
    read_tools,
    with_system,
)
from tiebreak.data.rows.preferences import (
    LISTS,
    PAIRS,
    SIDES,
    has_pair,
    one_hot,
    pair_with_winner,
    preference_rows,
    ranking,
    rating,
    two_columns,
    two_sides,
)
from tiebreak.data.tickets import is_ticket
from tiebreak.errors import first_names
from tiebreak.messages import Message, Messages
from tiebreak.records import RecordKind

NOT_READ = ("video", "videos", "audio", "audios")
R = TypeVar("R", bound=Content)


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
    names = next((names for names in PAIRS if one_hot(cells, names)), None) if questions else None
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
_SIGNS = r"[\s\d()+*/^&%.,;:$<>=!-]*"
_OF_CELLS = re.compile(rf"={_SIGNS}(?:\b[A-Z]{{1,3}}\$?\d{{1,7}}\b{_SIGNS})+")
"""A formula of cells alone: `=A1`, `=A1+2*$B$3`."""
_SPREADSHEET_ERRORS = ("#REF!", "#NAME?", "#VALUE!", "#DIV/0!", "#N/A", "#NULL!", "#NUM!")
_ABSENT = ("nan", "NaN", "<NA>", "NULL", "\\N")
"""what pandas and databases write in a table for a cell without a value"""


def _refuse_formulas(cells: Cells) -> None:
    """Refuse formulas in place of text: a spreadsheet was saved without its values. Refuse marks of absent ones as well."""
    for name in sorted(cells.used):
        value = cells.values.get(name)
        if isinstance(value, str) and value.strip() in _ABSENT:
            raise ValueError(
                f"{name}: {value.strip()} is how programs write an absent value: leave the cell empty, or save the data as "
                "JSON Lines if it is a text"
            )
        if isinstance(value, str) and _is_formula(value.strip()):
            raise ValueError(
                f"{name}: {value.strip()[:40]!r} is a spreadsheet's formula or error, no text: save its values"
            )


def _is_formula(cell: str) -> bool:
    return bool(_FORMULA.fullmatch(cell) or _OF_CELLS.fullmatch(cell)) or cell in _SPREADSHEET_ERRORS


def _refuse_printed(cells: Cells) -> None:
    for name, value in cells.values.items():
        if isinstance(value, str) and is_printed_conversation(value):
            raise ValueError(
                f"column {name!r} holds messages as Python or NumPy prints them, which cannot be read back: save the data "
                "as JSON Lines or Parquet"
            )


def _missing(cells: Cells, wanted: RecordKind) -> str:
    there = first_names(cells.values) or "none"
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


# --- prompts of benchmarks ---


def _bbq_prompt(cells: Cells) -> Interpretation | None:
    """A question of BBQ's with its context and answers; the other columns are read by the yardstick `bbq`."""
    if not is_bbq(cells.values):
        return None
    cells.used |= {*BBQ_COLUMNS, *BBQ_READ_BY_YARDSTICKS} & cells.values.keys()
    return Interpretation("BBQ's questions", [PromptRow((Message(role="user", content=bbq_prompt(cells.values)),))])


# --- prompts ---


def _bare_prompt(cells: Cells) -> Interpretation | None:
    name = prompt_column(cells)
    if name is None:
        return None
    shape = "prompts" if name == "prompt" else f"prompts ({name})"
    return Interpretation(shape, [PromptRow(read_prompt(cells, name), read_tools(cells))])


def _conversation_prompt(cells: Cells) -> Interpretation | None:
    """A conversation up to the assistant's last answer."""
    name = conversation_column(cells)
    if name is None:
        return None
    messages = with_system(cells, read_messages(cells, cells.get(name), column=name))
    prompt = messages
    while prompt and prompt[-1].role == "assistant":
        prompt = prompt[:-1]
    shape = f"prompts ({name})" if prompt == messages else f"prompts ({name}, less the last answer)"
    return Interpretation(shape, [PromptRow(prompt, read_tools(cells))])


def _common_prompt(cells: Cells) -> Interpretation | None:
    """The common beginning of both sides of a preference."""
    preferences = two_sides(cells, judged=False)
    if preferences is None:
        return None
    return Interpretation(
        f"prompts of {preferences.shape}", [PromptRow(row.prompt, row.tools) for row in preference_rows(preferences)]
    )


def _document(cells: Cells) -> Interpretation | None:
    if not isinstance(cells.values.get(DOCUMENT), str) or prompt_column(cells) is not None:
        return None
    return Interpretation("documents", [PromptRow(with_system(cells, read_messages(cells, cells.get(DOCUMENT))))])


# --- answers with a label ---


def _labelled_answer(cells: Cells) -> Interpretation | None:
    if has_pair(cells):
        raise ValueError(
            "a pair, but KTO learns from single answers with a label: train on pairs with --algorithm dpo; a label run "
            "exports both (formats: [unpaired])"
        )
    if (parts := two_parts(cells)) is not None:
        name, answer, answer_row = parts
        shape = f"KTO rows ({name}, {answer}, label)"
    elif (whole := whole_conversation(cells)) is not None:
        shape, answer_row = whole
    else:
        return None
    good = read_label(cells)
    if good is None:
        held = f"{cells.values['label']!r} in it is neither true nor false" if "label" in cells else "missing"
        raise ValueError(
            f"label: {held}: KTO needs a label for each answer, true (desirable) or false; name its column with columns: "
            "{label: NAME}"
        )
    cells.used.add("label")
    return Interpretation(shape, [LabelRow(answer_row.prompt, answer_row.tools, answer_row.answer, good)])


# --- answers to judge ---


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
    names = two_columns(cells)
    if names is not None:
        sides = [read_messages(cells, cells.get(name), "assistant", name) for name in names]
        return f"pairs ({', '.join(names)})", _prompt_row(cells), sides
    if (preferences := two_sides(cells, judged=False)) is not None:
        first, *others = preference_rows(preferences)
        answers = sorted([first.chosen, first.rejected, *(row.rejected for row in others)], key=repr)
        return f"{preferences.shape}, to judge anew", PromptRow(first.prompt, first.tools), answers
    name = next((name for name in LISTS if isinstance(cells.values.get(name), list)), None)
    if name is None or len(cells.values[name]) < 2:
        raise ValueError(
            "no two answers: give response_a and response_b, chosen and rejected, or a list in 'answers'; the columns are "
            f"{first_names(cells.values) or 'none'}: name yours with columns: {{response_a: …, response_b: …}}"
        )
    answers = [read_messages(cells, answer, "assistant") for answer in cells.get(name)]
    return f"lists of answers ({name})", _prompt_row(cells), answers


def _prompt_row(cells: Cells) -> PromptRow:
    name = prompt_column(cells) or conversation_column(cells)
    if name is None:
        raise ValueError(_missing(cells, "prompts"))
    return PromptRow(read_prompt(cells, name), read_tools(cells))


# --- all shapes ---


_SHAPES: dict[RecordKind, tuple[Callable[[Cells], Interpretation | None], ...]] = {
    "prompts": (
        ticket_prompt,
        logged_prompt,
        _bbq_prompt,
        _bare_prompt,
        _conversation_prompt,
        _common_prompt,
        _document,
    ),
    "demonstrations": (answered_ticket, logged_answer, conversation, prompt_and_answer),
    "preferences": (two_sides, pair_with_winner, ranking, rating),
    "answers": (_labelled_answer,),
}


def guess(cells: Cells) -> RecordKind:
    """The kind of record that a row most likely is."""
    if has_pair(cells):
        return "preferences"
    if is_logged(cells.values):
        return "demonstrations" if has_answer(cells.values) else "prompts"
    if is_ticket(cells.values) or any(name in cells for name in (*CONVERSATIONS, *ANSWERS)):
        return "demonstrations"
    return "prompts"
