"""Rows that compare answers: a better and a worse one, two and a verdict, rankings, ratings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from tiebreak.data.cells import Cells, refuse_comma
from tiebreak.data.conversations import is_conversation, is_transcript
from tiebreak.data.rows.content import Content, Interpretation, Omission, PreferenceRow, RatingRow
from tiebreak.data.rows.parts import (
    ANSWERS,
    LATE_PROMPTS,
    PROMPTS,
    SYSTEMS,
    conversation_column,
    one_of,
    prompt_column,
    read_label,
    read_messages,
    read_number,
    read_prompt,
    read_tools,
    with_system,
)
from tiebreak.messages import Messages, Tools, text_of
from tiebreak.records import MAX_STRENGTH

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


CLEAR_WINNERS = ("preferred", "preference", "winner", "choice", "better_response_id")
UNCLEAR_WINNERS = ("label", "labels", "result")
"""often about something else, so they count only beside two answers that nobody calls chosen"""
WINNERS = (*CLEAR_WINNERS, *UNCLEAR_WINNERS)


SIGNED_WINNERS = ("overall_preference", "preference_strength")
"""HelpSteer's: −3 (the first is much better) … 0 (a tie) … 3 (the second is)."""


SIDE_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_avg_rating", "rejected_avg_rating"),
    ("chosen_reward", "rejected_reward"),
    ("reward_chosen", "reward_rejected"),
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


def has_pair(cells: Cells) -> bool:
    """Whether a row holds two or more answers to compare."""
    return any(all(name in cells for name in names) for names in (*SIDES, *PAIRS)) or _is_ranking(cells)


def two_sides(cells: Cells, *, judged: bool = True) -> Interpretation | None:
    """A better and a worse answer.

    Args:
        judged: the row is wanted as a preference: ratings and verdicts beside it may not contradict it.
    """
    sides = next((names for names in SIDES if all(name in cells for name in names)), None)
    if sides is None:
        return None
    _refuse_names(cells, sides)
    chosen, rejected = (cells.get(name) for name in sides)
    if _is_texts(chosen) or _is_texts(rejected):
        return _one_better_than_several(cells, sides, judged=judged)
    name = one_of(cells, PROMPTS, "prompt")
    if name is None and isinstance(chosen, str) and not is_transcript(chosen):
        name = one_of(cells, LATE_PROMPTS, "prompt")
    if name is None and not _holds_prompt(cells, chosen):
        name = conversation_column(cells) or one_of(cells, LATE_PROMPTS, "prompt")
    if judged and (tied := _check_side_scores(cells) or _check_verdict(cells, sides)):
        return Interpretation(f"ties ({sides[0]}, {sides[1]})", [Omission(tied)])
    if name is None:
        shape = "HH-RLHF (Human and Assistant in one text)" if isinstance(chosen, str) else "whole conversations"
        preference = _implicit(cells, *_both(cells, sides, chosen, rejected))
        return Interpretation(f"{shape} in {sides[0]} and {sides[1]}", [preference])
    whole = _holds_prompt(cells, chosen)
    prompt = read_prompt(cells, name, checked_alone=whole)
    if whole != _holds_prompt(cells, rejected):
        raise ValueError(f"one of {sides[0]} and {sides[1]} is a whole conversation, but the other is only an answer")
    if whole:
        preference = _implicit(cells, *_both(cells, sides, chosen, rejected), column=prompt)
        return Interpretation(f"UltraFeedback ({name}, whole conversations in {sides[0]} and {sides[1]})", [preference])
    better, worse = _both(cells, sides, chosen, rejected, "assistant")
    system = ", system" if {*SYSTEMS} & cells.used else ""
    shape = f"preferences ({name}{system}, {sides[0]}, {sides[1]})"
    return Interpretation(shape, [PreferenceRow(prompt, read_tools(cells), better, worse)])


def _refuse_names(cells: Cells, sides: tuple[str, str]) -> None:
    """Refuse sides that name two other columns, which hold the answers.

    Raises:
        ValueError: with the keys that read them as a verdict.
    """
    pair = next((names for names in PAIRS if all(name in cells for name in names)), None)
    values = [cells.values[name] for name in sides]
    if pair is None or any(value in [cells.values[name] for name in pair] for value in values):
        return
    try:
        named = {_winner(sides[0], value, pair, cells)[0] for value in values}
    except ValueError:
        return
    if named == {0, 1}:
        raise ValueError(
            f"{sides[0]}: {values[0]!r} names one of {pair[0]} and {pair[1]}, and is no answer: columns: {{preferred: "
            f"{sides[0]}, {sides[1]}: null}} reads it as the better one's name"
        )


def _is_texts(side: object) -> bool:
    return isinstance(side, list) and bool(side) and all(isinstance(text, str) for text in side)


def _one_better_than_several(cells: Cells, sides: tuple[str, str], *, judged: bool) -> Interpretation:
    """A preference for each text in the list of worse answers.

    Raises:
        ValueError: the better answer is not text.
    """
    better, worse = sides
    if not isinstance(cells.values[better], str):
        raise ValueError(f"{better}: give one text: only {worse} may be a list of texts, each a worse answer")
    texts, each = cells.values[worse], []
    for text in texts:
        cells.values[worse] = text
        each += [one for one in [two_sides(cells, judged=judged)] if one is not None]
    cells.values[worse] = texts
    return Interpretation(f"{each[0].shape}, each of {worse}", [result for one in each for result in one.results])


def _check_side_scores(cells: Cells) -> str:
    """Why two sides are no preference by their own ratings; empty where they are one.

    Raises:
        ValueError: the rejected one is rated the better.
    """
    for names in SIDE_SCORES:
        for name in names:
            refuse_comma(name, cells.values.get(name))
        try:
            high, low = (read_number(name, cells.values.get(name)) for name in names)
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
        if column not in cells or column in UNCLEAR_WINNERS:
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
    return is_conversation(side) and read_messages(cells, side[:1])[0].role != "assistant"


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
    return PreferenceRow(with_system(cells, prompt), read_tools(cells), chosen[shared:], rejected[shared:])


def _matches_prompt(column: Messages, prompt: Messages) -> bool:
    """Whether the prompt's column matches the conversations' beginning: all of it, or one turn of the user."""
    turns = [(message.role, message.display_text.strip()) for message in prompt]
    wanted = [(message.role, message.display_text.strip()) for message in column if message.role != "system"]
    return wanted == [turn for turn in turns if turn[0] != "system"] or (len(wanted) == 1 and wanted[0] in turns)


def _both(
    cells: Cells, names: Sequence[str], chosen: object, rejected: object, role: str = "user"
) -> tuple[Messages, Messages]:
    """The messages in the columns of two sides."""
    return read_messages(cells, chosen, role, names[0]), read_messages(cells, rejected, role, names[1])


def pair_with_winner(cells: Cells) -> Interpretation | None:
    if (names := two_columns(cells)) is None or (verdict := _verdict(cells, names)) is None:
        return None
    first, second = names
    shape = f"pairs ({first}, {second}, {verdict.columns})"
    sides = [cells.get(first), cells.get(second)]
    name = prompt_column(cells) or conversation_column(cells)
    if verdict.better is None:
        cells.used |= {name or first, *(({*SYSTEMS, "tools"}) & cells.values.keys())}
        return Interpretation(shape, [Omission("a tie")])
    chosen, rejected = sides if verdict.better == 0 else sides[::-1]
    columns = names if verdict.better == 0 else names[::-1]
    if _holds_prompt(cells, chosen):
        column = read_prompt(cells, name) if name else ()
        whole = _implicit(cells, *_both(cells, columns, chosen, rejected), column)
        return Interpretation(shape, [replace(whole, strength=verdict.strength)])
    if name is None:
        return None
    first_answer, second_answer = _both(cells, columns, chosen, rejected, "assistant")
    preference = PreferenceRow(
        read_prompt(cells, name), read_tools(cells), first_answer, second_answer, verdict.strength
    )
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
        columns = one_hot(cells, names)
        if sum(_is_set(cells, column) for column in columns):
            raise ValueError(f"{' and '.join((*columns, flag))}: more than one of them is 1")
        return Verdict(" and ".join(columns) or flag, None)
    if (column := next((name for name in (*SIGNED_WINNERS, *WINNERS) if name in cells), None)) is not None:
        verdict = Verdict(column, *_winner(column, cells.get(column), names, cells))
        _refuse_contradiction(cells, names, verdict)
        return verdict
    if columns := one_hot(cells, names):
        won = [_is_set(cells, column) for column in columns]
        if sum(won) != 1:
            raise ValueError(
                f"{' and '.join(columns)}: {'both are' if all(won) else 'neither is'} 1, but no column marks a tie"
            )
        return Verdict(" and ".join(columns), won.index(True))
    if columns := _of_each(cells, names, PAIR_SCORES):
        first, second = (read_number(column, cells.get(column)) for column in columns)
        return Verdict(" and ".join(columns), None if first == second else int(second > first))
    return None


def _refuse_contradiction(cells: Cells, names: tuple[str, str], verdict: Verdict) -> None:
    """Refuse a verdict beside another one, or beside ratings, by which the other answer is the better one.

    Raises:
        ValueError: names the columns, and how to ignore one of them.
    """
    if verdict.better is None:
        return
    for other in CLEAR_WINNERS if verdict.columns in SIGNED_WINNERS else ():
        if other in cells and _named_winner(cells, names, other) == 1 - verdict.better:
            cells.used.add(other)
            raise ValueError(
                f"{verdict.columns} and {other} name different answers as the better one; {_ignoring(other)} ignores one"
            )
    if rated := _of_each(cells, names, PAIR_SCORES):
        for name in rated:
            refuse_comma(name, cells.values[name])
        try:
            scores = [read_number(name, cells.values[name]) for name in rated]
        except ValueError:
            return  # not a rating
        if scores[verdict.better] < scores[1 - verdict.better]:
            raise ValueError(
                f"{verdict.columns}: {cells.values[verdict.columns]!r} names {names[verdict.better]}, but "
                f"{' and '.join(f'{name} is {score:g}' for name, score in zip(rated, scores, strict=True))}; "
                f"{_ignoring(rated[0])} ignores the ratings"
            )


def _named_winner(cells: Cells, names: tuple[str, str], column: str) -> int | None:
    """The better answer by a column; None if it names none."""
    try:
        return _winner(column, cells.values[column], names, cells)[0]
    except ValueError:
        return None


def one_hot(cells: Cells, names: tuple[str, str]) -> tuple[str, ...]:
    return _of_each(cells, names, ONE_HOT_WINNERS)


def _of_each(cells: Cells, names: tuple[str, str], beginnings: Sequence[str]) -> tuple[str, ...]:
    """The two columns that say something of each answer: `score_0` and `score_1` of `answer_0` and `answer_1`."""
    endings = [re.sub(r".*?(_?[^_])$", r"\1", name) for name in names]
    pairs = [tuple(f"{beginning}{ending}" for ending in endings) for beginning in beginnings]
    return next((pair for pair in pairs if all(name in cells for name in pair)), ())


def two_columns(cells: Cells) -> tuple[str, str] | None:
    """The two columns of answers that a row has."""
    present = [names for names in PAIRS if all(name in cells for name in names)]
    if len(present) > 1 and not {"response_a", "response_b"} <= cells.explicit:
        listed = ", ".join(name for name in dict.fromkeys(name for names in present for name in names))
        raise ValueError(f"more than two answers ({listed}): name two with columns: {{response_a: …, response_b: …}}")
    return present[0] if present else None


def _winner(column: str, value: object, names: tuple[str, str], cells: Cells) -> tuple[int | None, float | None]:
    """(0: the first is better, 1: the second, None: a tie; how much better, from 1 to 3, where the column says it)."""
    word = _word_of(value)
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


def _word_of(value: object) -> str:
    """A verdict in small letters. Tables with empty cells hold whole numbers as 1.0."""
    word = str(value).strip().lower()
    return word.partition(".")[0] if re.fullmatch(r"\d+\.0+", word) else word


def _signed(column: str, value: object) -> tuple[int | None, float | None]:
    """HelpSteer's scale. A mean of it below 1 names the better one without a strength."""
    number = read_number(column, value)
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
            words.setdefault(column, set()).add(_word_of(cells.values[column]))
    return next((column for column, found in words.items() if found == {"0", "1"}), None)


def ranking(cells: Cells) -> Interpretation | None:
    name = next((name for name in LISTS if isinstance(cells.values.get(name), list) and cells.values[name]), None)
    prompt = prompt_column(cells) or conversation_column(cells)
    if name is None or prompt is None:
        return None
    ranked = _ranked(cells, name)
    if ranked is None:
        return None
    by, entries = ranked
    cells.used.add(name)
    messages, tools = read_prompt(cells, prompt), read_tools(cells)
    answers = [(read_messages(cells, text, "assistant"), place) for text, place in entries]
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
    return -read_number(by, value) if by in RANKS else read_number(by, value)


def _is_ranking(cells: Cells) -> bool:
    """Also of a ranking with a fault, which is an error of its row when that is read."""
    try:
        return any(isinstance(cells.values.get(name), list) and _ranked(cells, name) is not None for name in LISTS)
    except ValueError:
        return True


def _pairs_of(prompt: Messages, tools: Tools, answers: Sequence[tuple[Messages, float]]) -> Iterator[Content]:
    """All pairs of answers in which one is better, as the labelling app splits a ranking."""
    best_first = sorted(answers, key=lambda answer: -answer[1])
    for (better, high), (worse, low) in combinations(best_first, 2):
        if high > low and text_of(better).strip() == text_of(worse).strip():
            yield Omission("two equal answers with different ratings")
        elif high > low:
            yield PreferenceRow(prompt, tools, better, worse)


def rating(cells: Cells) -> Interpretation | None:
    """One answer with a rating; KTO's label is a rating of two values."""
    name, answer = prompt_column(cells), one_of(cells, ANSWERS, "response")
    if name is None or answer is None:
        return None
    by = one_of(cells, SCORES, "score")
    good = read_label(cells) if by is None else None
    if by is None and good is None:
        return None
    by, score = (by, _goodness(by, cells.values[by])) if by else ("label", float(bool(good)))
    cells.used.add(by)
    prompt, response = read_prompt(cells, name), read_messages(cells, cells.get(answer), "assistant", answer)
    shape = "KTO rows" if by == "label" else "ratings"
    return Interpretation(
        f"{shape} ({name}, {answer}, {by}), paired by prompt", [RatingRow(prompt, read_tools(cells), response, score)]
    )


def pair_up(rated: Sequence[RatingRow]) -> list[Content]:
    """The preferences from the rated answers to one prompt."""
    return list(_pairs_of(rated[0].prompt, rated[0].tools, [(row.answer, row.score) for row in rated]))


def preference_rows(interpretation: Interpretation) -> list[PreferenceRow]:
    return [row for row in interpretation.results if isinstance(row, PreferenceRow)]
