"""Pairs to judge: those of a *sample* run, Pair records, or rows as people have them.

    prompt, response_a, response_b      also response_1 and response_2, answer_a and answer_b, completion_1, output1, …
    prompt, answers                     a list of two or more
    prompt, chosen, rejected            preferences, to be judged anew

in any file that data is read from (`sources`): JSON Lines, a JSON array, CSV, TSV, compressed or not. In such rows
`Response A` is `response_a`, and `columns` names what is called otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from tiebreak.data.cells import Cells, about
from tiebreak.data.images import require_text
from tiebreak.data.reading import fault_lines, is_run, read_rows, whole_rows
from tiebreak.data.rows.preferences import PAIRS
from tiebreak.data.shapes import answers_to_judge
from tiebreak.data.sources import read_source
from tiebreak.data.splits import named_split
from tiebreak.data.synthetic import marks_of_row
from tiebreak.data.text import BadRow
from tiebreak.errors import DataError, counted, first_names
from tiebreak.files import explain
from tiebreak.messages import Messages, check_prompt, content_id, prompt_id, text_of
from tiebreak.records import Completion, Pair
from tiebreak.terminal import say

_RECORD = ("id", "messages", "completions")
_NO_COLUMNS: Mapping[str, str | None] = {}


def read_pairs(
    source: str,
    columns: Mapping[str, str | None] = _NO_COLUMNS,
    stage: str = "label",
    *,
    media: bool = False,
    report: Callable[[str], None] = say,
) -> list[Pair]:
    """All pairs of a source. Reports how rows were read, and which of their columns were ignored.

    Args:
        columns: our name of a column → its name in the data.
        stage: the stage that reads, which refuses images and audio unless `media` is set.
        report: gets each line that says how the rows were read.

    Raises:
        DataError: with every row that holds no pair.
    """
    if is_run(source):
        rows, of_text = read_rows(source, "pairs.jsonl"), False
    else:
        table = read_source(source, "preferences")
        rows, of_text = whole_rows(table, source), table.of_text
    pairs: list[Pair] = []
    bad: list[BadRow] = []
    found: Counter[str] = Counter()
    ignored: dict[str, None] = {}
    for where, row in rows:
        try:
            if _is_record(row):
                record = Pair.model_validate(row)
                if not media:
                    answers = (one.message for one in record.completions)
                    require_text((*record.messages, *answers), stage, media_key=stage == "label")
                pairs.append(_storable(record))
                continue
            cells = Cells(_plain_names(row, columns), columns, of_text)
            shape, pair = _pair_of(cells, stage, media)
            pairs.append(_storable(pair))
            found[shape] += 1
            ignored |= dict.fromkeys(cells.unused())
        except ValidationError as error:
            bad.append(BadRow(where, "; ".join(explain(error))))
        except ValueError as error:
            bad.append(BadRow(where, str(error)))
    if bad:
        raise DataError(
            f"{source}: {len(bad)} of {counted(len(rows), 'row')} contain no pair", fault_lines(bad, len(rows))
        )
    if found:
        _say_how(source, found, list(ignored), report)
    return pairs


def _say_how(source: str, found: Counter[str], ignored: list[str], report: Callable[[str], None]) -> None:
    shape = ", ".join(name if len(found) == 1 else f"{name}: {count}" for name, count in found.most_common())
    report(f"{source}: {counted(found.total(), 'row')} read as {shape}")
    if ignored:
        report(f"{source}: ignored columns: {first_names(sorted(ignored))}")


def _is_record(row: Mapping[str, Any]) -> bool:
    return all(name in row for name in _RECORD)


def _plain_names(row: Mapping[str, Any], columns: Mapping[str, str | None]) -> dict[str, Any]:
    """`Response A` as `response_a`; a name that `columns` holds, or that would be another's, stays."""
    plain = {name: "_".join(name.strip().lower().replace("-", " ").split()) for name in row}
    often = Counter(plain.values())
    named = {theirs.partition(".")[0] for theirs in columns.values() if theirs}
    kept = {*named, *columns.values(), *(name for names in PAIRS for name in names)}
    return {name if name in kept or often[plain[name]] > 1 else plain[name]: value for name, value in row.items()}


def _pair_of(cells: Cells, stage: str, media: bool) -> tuple[str, Pair]:
    shape, asked, answers = answers_to_judge(cells)
    if not media:
        require_text(asked.prompt, stage, asked.image_column, media_key=stage == "label")
    identity = prompt_id(asked.prompt, asked.tools)
    completions = tuple(completion_of(identity, answer, media=media) for answer in answers)
    pair = Pair(
        id=content_id("pair", identity, sorted(one.id for one in completions)),
        prompt_id=identity,
        messages=asked.prompt,
        completions=completions,
        split=named_split(cells.get("split")) or "train",
        tags=_marks(cells),
        tools=asked.tools,
    )
    return shape, pair


def _marks(cells: Cells) -> tuple[str, ...]:
    """The marks of a synthetic row. Other tags are not kept: the column then counts as ignored, which is reported."""
    tags = about(cells, ("tags",)).get("tags", ()) if "tags" in cells else ()
    marks = marks_of_row(cells.values)
    if set(tags) - set(marks):
        cells.used.discard("tags")
    elif marks:
        cells.used |= {"kind", "tags"}
    return marks


def completion_of(identity: str, answer: Messages, *, media: bool) -> Completion:
    """The completion of a prompt, from its messages.

    Args:
        identity: the prompt's id.
        media: whether it may have images and recordings.

    Raises:
        ValueError: it has more than raters can be shown.
    """
    if media and len(answer) == 1 and answer[0].model_copy(update={"content": ""}).is_plain:
        content = answer[0].content
        if not isinstance(content, str):
            text = answer[0].numbered_text
            return Completion(id=content_id("completion", identity, content), text=text, content=content)
    text = _text(answer)
    return Completion(id=content_id("completion", identity, text), text=text)


def _text(answer: Messages) -> str:
    if len(answer) != 1 or not answer[0].is_plain:
        raise ValueError(
            "this answer has several messages, tool calls, thoughts or images, but raters are shown plain text"
        )
    return answer[0].text


def _storable(pair: Pair) -> Pair:
    """The pair, if its prompt has content and a label store can keep it."""
    check_prompt(pair.messages)
    if "\0" in text_of(pair.messages) or any("\0" in one.text for one in pair.completions):
        raise ValueError("holds a NUL character, which a label store cannot keep: remove it")
    return pair
