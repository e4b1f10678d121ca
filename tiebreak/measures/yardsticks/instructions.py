"""Instructions that a program can check: "answer in lower case", "use the word basil twice".

The 25 kinds, with their names and arguments, are those of IFEval (Zhou et al. 2023, arXiv 2311.07911), so that its prompts
can be measured; the checkers are our own, and need no download. A file of instructions has a row for each prompt, in
IFEval's form:

    {"prompt": "…", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}

The instructions of a row without a prompt hold for every prompt. As a yardstick: `ifeval:FILE`, `ifeval_loose:FILE`,
`instructions:FILE`; as a reward of PPO or GRPO: `rewards: [{instructions: FILE}]`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiebreak.errors import DataError
from tiebreak.measures.yardsticks.inputs import Function, YardstickInput, each
from tiebreak.measures.yardsticks.wording import count_words, language_of
from tiebreak.shipped import find_shipped

Arguments = Mapping[str, Any]
Check = Callable[[str, Arguments], bool]


@dataclass(frozen=True)
class Instruction:
    """One checkable instruction."""

    kind: str
    arguments: Arguments = field(default_factory=dict)

    def followed(self, answer: str) -> bool:
        """Whether an answer follows it. An empty answer follows none."""
        return bool(answer.strip()) and CHECKS[self.kind](answer, self.arguments)


def followed_loosely(instruction: Instruction, answer: str) -> bool:
    """Whether the answer follows it without its first line, its last line, its asterisks, or any of these together."""
    lines = answer.split("\n")
    cut = ["\n".join(part).strip() for part in (lines, lines[1:], lines[:-1], lines[1:-1])]
    return any(instruction.followed(text) for one in cut for text in (one, one.replace("*", "")))


# --- the file ---


@dataclass(frozen=True)
class Instructions:
    """The instructions of a file, by prompt."""

    by_prompt: Mapping[str, tuple[Instruction, ...]]
    for_all: tuple[Instruction, ...] = ()

    def of(self, question: str) -> tuple[Instruction, ...]:
        """Those of a prompt, by the text of its last message."""
        return (*self.for_all, *self.by_prompt.get(_key(question), ()))


def read_instructions(file: str) -> Instructions:
    """A file of instructions.

    Raises:
        DataError: it cannot be read, or has rows with errors, all of which are listed.
    """
    by_prompt: dict[str, tuple[Instruction, ...]] = {}
    for_all: list[Instruction] = []
    faults = []
    try:
        lines = find_shipped(Path(file)).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"instructions: {file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found = tuple(_read_row(row))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            faults.append(f"{file}:{number}: {error if isinstance(error, ValueError) else repr(error)}")
            continue
        if "prompt" in row:
            by_prompt[_key(str(row["prompt"]))] = found
        else:
            for_all += found
    if faults:
        raise DataError(
            "\n".join([f"{file}: {len(faults)} rows with errors", *(f"  {fault}" for fault in faults[:20])])
        )
    if not by_prompt and not for_all:
        raise DataError(f"instructions: {file} has no rows")
    return Instructions(by_prompt, tuple(for_all))


def _read_row(row: Mapping[str, Any]) -> list[Instruction]:
    kinds = row["instruction_id_list"]
    arguments = [{}] * len(kinds) if row.get("kwargs") is None else row["kwargs"]
    if len(kinds) != len(arguments):
        raise ValueError(f"{len(kinds)} instructions with {len(arguments)} kwargs")
    prompt = {"prompt_to_repeat": row["prompt"]} if "prompt" in row else {}
    found = []
    for kind, given in zip(kinds, arguments, strict=True):
        if kind not in CHECKS:
            raise ValueError(f"no instruction {kind!r}; there are {', '.join(CHECKS)}")
        stated = {key: value for key, value in given.items() if value is not None}
        stated = {**prompt, **stated} if kind == "combination:repeat_prompt" else stated
        if missing := [key for key in ARGUMENTS.get(kind, ()) if key not in stated]:
            raise ValueError(f"{kind}: kwargs lack {', '.join(missing)}")
        if stated.get("relation", "at least") not in RELATIONS:
            raise ValueError(f"{kind}: relation is one of {', '.join(RELATIONS)}, not {stated['relation']!r}")
        found.append(Instruction(kind, stated))
    return found


def _key(question: str) -> str:
    return " ".join(question.split())


# --- yardsticks and reward ---


def all_followed(file: str, loose: bool = False) -> Function:
    """1 for an answer that follows all of its prompt's instructions; None of a prompt without any."""
    instructions, follows = read_instructions(file), followed_loosely if loose else Instruction.followed

    def measure(asked: YardstickInput, answer: str) -> float | None:
        mine = instructions.of(asked.question)
        return float(all(follows(one, answer) for one in mine)) if mine else None

    return each(measure)


def share_followed(file: str) -> Function:
    """The share of its prompt's instructions that an answer follows; None of a prompt without any."""
    instructions = read_instructions(file)

    def measure(asked: YardstickInput, answer: str) -> float | None:
        mine = instructions.of(asked.question)
        return sum(one.followed(answer) for one in mine) / len(mine) if mine else None

    return each(measure)


# --- the 25 checks ---

RELATIONS = ("at least", "less than", "at most", "exactly")


def _holds(count: int, arguments: Arguments, wanted: str, relation: str = "relation") -> bool:
    least = int(arguments[wanted])
    return {
        "at least": count >= least,
        "less than": count < least,
        "at most": count <= least,
        "exactly": count == least,
    }[arguments.get(relation, "at least")]


def _contains(answer: str, word: str) -> bool:
    return word.lower() in answer.lower()


def _word_count(answer: str, word: str) -> int:
    return len(re.findall(re.escape(word), answer, re.IGNORECASE))


def _forbidden(answer: str, arguments: Arguments) -> bool:
    words = arguments["forbidden_words"]
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE) for word in words)


def _paragraphs(answer: str, divider: str) -> list[str]:
    return [part.strip() for part in re.split(divider, answer)]


def _starred_paragraphs(answer: str, arguments: Arguments) -> bool:
    """Divided by ***; empty ones are allowed only at either end."""
    parts = _paragraphs(answer, r"\s?\*\*\*\s?")
    inner = parts[1:-1]
    if not all(inner):
        return False
    return sum(bool(part) for part in parts) == int(arguments["num_paragraphs"])


def _first_word(answer: str, arguments: Arguments) -> bool:
    parts = [part for part in _paragraphs(answer, r"\n\n") if part]
    nth = int(arguments["nth_paragraph"])
    if len(parts) != int(arguments["num_paragraphs"]) or not 1 <= nth <= len(parts):
        return False
    word = re.match(r"[\"'“‘]*([^\s.,?!\"'”’]+)", parts[nth - 1])
    return word is not None and word.group(1).lower() == str(arguments["first_word"]).lower()


_ABBREVIATIONS = r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bvs)(?<!\be\.g)(?<!\bi\.e)(?<!\betc)"


def count_sentences(text: str) -> int:
    """Sentences that end in . ! or ?, or at the end of a line.

    >>> count_sentences("Dr. Lee grew 2.5 kg. Did you? Yes!")
    3
    """
    ends = rf"(?:{_ABBREVIATIONS}\.|[!?])+[\"'”’)]*(?=\s+[A-Z0-9\"'“‘(])|\n+"
    return sum(bool(re.search(r"\w", part)) for part in re.split(ends, text))


def _postscript(answer: str, arguments: Arguments) -> bool:
    letters = re.findall(r"\w", str(arguments["postscript_marker"]))
    dotted = r"\.?\s?".join(re.escape(letter) for letter in letters)
    return re.search(rf"^\W*{dotted}\b", answer, re.IGNORECASE | re.MULTILINE) is not None


def _bullets(answer: str, arguments: Arguments) -> bool:
    return len(re.findall(r"^\s*(?:\*(?!\*)|-)\s*\S", answer, re.MULTILINE)) == int(arguments["num_bullets"])


CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _highlights(answer: str, arguments: Arguments) -> bool:
    double = re.findall(r"\*\*([^\n*]+)\*\*", answer)
    single = re.findall(r"\*([^\n*]+)\*", re.sub(r"\*\*[^\n*]+\*\*", "", answer))
    return sum(bool(one.strip()) for one in (*double, *single)) >= int(arguments["num_highlights"])


def _sections(answer: str, arguments: Arguments) -> bool:
    parts = re.findall(rf"\s?{re.escape(str(arguments['section_spliter']))}\s?\d+", answer)
    return len(parts) >= int(arguments["num_sections"])


def _json(answer: str, _: Arguments) -> bool:
    bare = re.sub(r"^```(?:json)?\s*|\s*```$", "", answer.strip(), flags=re.IGNORECASE)
    try:
        json.loads(bare)
    except ValueError:
        return False
    return True


def _two_responses(answer: str, _: Arguments) -> bool:
    parts = _paragraphs(answer, r"\*{6}")
    inner = [part for part in parts if part]
    return all(parts[1:-1]) and len(inner) == 2 and inner[0] != inner[1]


def _capital_words(answer: str, arguments: Arguments) -> bool:
    words = re.findall(r"[^\W_][\w'’-]*", answer)
    return _holds(sum(word.isupper() for word in words), arguments, "capital_frequency", "capital_relation")


def _ends_with(answer: str, arguments: Arguments) -> bool:
    return answer.strip().strip('"').lower().endswith(str(arguments["end_phrase"]).strip().lower())


def _quoted(answer: str, _: Arguments) -> bool:
    bare = answer.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


def _repeats(answer: str, arguments: Arguments) -> bool:
    return answer.strip().lower().startswith(str(arguments["prompt_to_repeat"]).strip().lower())


CHECKS: Mapping[str, Check] = {
    "keywords:existence": lambda a, given: all(_contains(a, word) for word in given["keywords"]),
    "keywords:frequency": lambda a, given: _holds(_word_count(a, given["keyword"]), given, "frequency"),
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": lambda a, given: _holds(
        a.lower().count(str(given["letter"]).lower()), given, "let_frequency", "let_relation"
    ),
    "language:response_language": lambda a, given: language_of(a) == given["language"],
    "length_constraints:number_sentences": lambda a, given: _holds(count_sentences(a), given, "num_sentences"),
    "length_constraints:number_paragraphs": _starred_paragraphs,
    "length_constraints:number_words": lambda a, given: _holds(count_words(a), given, "num_words"),
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": lambda a, given: (
        len(re.findall(r"\[[^\]]*\]", a)) >= int(given["num_placeholders"])
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": lambda a, given: any(one in a for one in CONSTRAINED),
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": lambda a, given: re.search(r"<<[^\n<>]*[^\s<>][^\n<>]*>>", a) is not None,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats,
    "startend:end_checker": _ends_with,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda a, given: a.isupper() and language_of(a.lower()) == "en",
    "change_case:english_lowercase": lambda a, given: a.islower() and language_of(a) == "en",
    "punctuation:no_comma": lambda a, given: "," not in a,
    "startend:quotation": _quoted,
}
ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "keywords:existence": ("keywords",),
    "keywords:frequency": ("keyword", "frequency"),
    "keywords:forbidden_words": ("forbidden_words",),
    "keywords:letter_frequency": ("letter", "let_frequency"),
    "language:response_language": ("language",),
    "length_constraints:number_sentences": ("num_sentences",),
    "length_constraints:number_paragraphs": ("num_paragraphs",),
    "length_constraints:number_words": ("num_words",),
    "length_constraints:nth_paragraph_first_word": ("num_paragraphs", "nth_paragraph", "first_word"),
    "detectable_content:number_placeholders": ("num_placeholders",),
    "detectable_content:postscript": ("postscript_marker",),
    "detectable_format:number_bullet_lists": ("num_bullets",),
    "detectable_format:number_highlighted_sections": ("num_highlights",),
    "detectable_format:multiple_sections": ("section_spliter", "num_sections"),
    "combination:repeat_prompt": ("prompt_to_repeat",),
    "startend:end_checker": ("end_phrase",),
    "change_case:capital_word_frequency": ("capital_frequency",),
}
"""those that an instruction must have"""
