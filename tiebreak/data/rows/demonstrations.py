"""Rows with one answer: conversations, prompt and answer, tickets."""

from __future__ import annotations

from tiebreak.data.cells import Cells
from tiebreak.data.rows.content import AnswerRow, Content, Interpretation, Omission, PromptRow
from tiebreak.data.rows.parts import (
    ANSWERS,
    THOUGHTS,
    conversation_column,
    one_of,
    prompt_column,
    read_label,
    read_messages,
    read_prompt,
    read_tools,
    with_system,
)
from tiebreak.data.tickets import AFTER, is_ticket, ticket_of
from tiebreak.messages import Messages


def ticket_prompt(cells: Cells) -> Interpretation | None:
    """A ticket's thread up to the last answer."""
    return _ticket(cells, answered=False)


def answered_ticket(cells: Cells) -> Interpretation | None:
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
    if answered and len(turns) > 1 and turns[-1]["role"] == "user":
        turns.pop()  # neighbours have different roles: it is the only one
        results.append(Omission(AFTER))
    if not answered and any(turn["role"] == "assistant" for turn in turns):
        turns = turns[: max(n for n, turn in enumerate(turns) if turn["role"] == "assistant")]
    shape = f"{ticket.system} tickets"
    if len(turns) < 1 + answered:
        missing = "an answer" if answered else "a question"
        return Interpretation(shape, [*results, Omission(f"tickets without {missing}")])
    messages = with_system(cells, read_messages(cells, turns))
    row = AnswerRow(messages[:-1], (), messages[-1:]) if answered else PromptRow(messages)
    return Interpretation(shape, [*results, row])


def conversation(cells: Cells) -> Interpretation | None:
    if (parts := whole_conversation(cells)) is None:
        return None
    shape, answer_row = parts
    return Interpretation(shape, [_label(cells, answer_row)])


def whole_conversation(cells: Cells) -> tuple[str, AnswerRow] | None:
    """(the shape's name, the last answer of a conversation)."""
    name = conversation_column(cells)
    if name is None or ("completion" in cells.explicit and "messages" not in cells.explicit):
        return None
    if "completion" in cells and "messages" not in cells.explicit:
        raise ValueError(
            f"{name!r} and 'completion' could each be the conversation to learn from: name one with columns: {{messages: "
            f"{name}}} or columns: {{completion: completion}}"
        )
    value = cells.get(name)
    messages = with_system(cells, read_messages(cells, value, column=name))
    if messages[-1].role != "assistant":
        raise ValueError(
            f"{name} must end with the assistant's answer, but the last message is the {messages[-1].role}'s"
        )
    if len(messages) < 2:
        raise ValueError(f"{name} has an answer but no prompt")
    shape = f"conversations ({name})"
    if isinstance(value, str):
        shape = f"Human and Assistant in one text ({name})"
    elif isinstance(value[0], dict) and "from" in value[0]:
        shape = f"ShareGPT ({name} of from and value)"
    return shape, AnswerRow(messages[:-1], read_tools(cells), messages[-1:])


def prompt_and_answer(cells: Cells) -> Interpretation | None:
    if (parts := two_parts(cells)) is None:
        return None
    name, answer, answer_row = parts
    result = _label(cells, answer_row)
    shape = f"{name} and {answer}"
    if name == "instruction" and answer == "output":
        shape = "Alpaca (instruction, input, output)"
    if "label" in cells.used:
        shape = f"KTO rows ({name}, {answer}, label)"
    return Interpretation(shape, [result])


def two_parts(cells: Cells) -> tuple[str, str, AnswerRow] | None:
    """(the prompt's column, the answer's, both)."""
    answer = one_of(cells, ANSWERS, "completion")
    name = prompt_column(cells)
    if answer is None or name is None:
        return None
    prompt = read_prompt(cells, name)
    completion = _with_thought(cells, read_messages(cells, cells.get(answer), "assistant", answer))
    return name, answer, AnswerRow(prompt, read_tools(cells), completion)


def _with_thought(cells: Cells, answer: Messages) -> Messages:
    """A column of thoughts is what the assistant thinks before it answers."""
    name = one_of(cells, THOUGHTS, "reasoning_content")
    thought = cells.values.get(name) if name else None
    if name is None or not isinstance(thought, str) or not thought.strip():
        return answer
    if len(answer) != 1 or answer[0].reasoning_content not in (None, thought):
        raise ValueError(f"column {name!r} and the answer's own thought differ: keep one of them")
    if thought.strip() in answer[0].text and "<think" in answer[0].text:
        raise ValueError(
            f"column {name!r} repeats the thought in the answer's text, which would be learned twice; columns: "
            f"{{{name}: null}} leaves the column out"
        )
    cells.used.add(name)
    return (answer[0].model_copy(update={"reasoning_content": thought}),)


def _label(cells: Cells, answer_row: AnswerRow) -> Content:
    """KTO's label: an answer labelled bad is not a demonstration."""
    good = read_label(cells)
    if good is None:
        return answer_row
    cells.used.add("label")
    return answer_row if good else Omission("labelled false (an undesirable answer)")
