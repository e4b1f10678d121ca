"""Single answers to rate, review or classify: rows of a prompt and its answer, in any shape of demonstrations.

    prompt, response, task              also completion, answer, output, …; or messages that end with the answer

in any file that data is read from (`sources`), or the demonstrations of a *prepare* run. Columns that mean nothing here
are kept with the answer: they say where it is from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tiebreak.assessments import FLAGGED, SINGLE_TASKS, SingleAnswer, SingleTask
from tiebreak.data.cells import Cells, about
from tiebreak.data.images import require_text
from tiebreak.data.pairs import completion_of
from tiebreak.data.reading import fault_lines, is_run, read_own, whole_rows
from tiebreak.data.rows.content import AnswerRow
from tiebreak.data.shapes import interpret
from tiebreak.data.sources import read_file, read_source
from tiebreak.data.splits import named_split
from tiebreak.data.synthetic import marks_of_row
from tiebreak.data.text import BadRow
from tiebreak.errors import DataError, HandoffError, counted
from tiebreak.files import explain
from tiebreak.messages import Messages, check_prompt, content_id, prompt_id
from tiebreak.records import Demonstration

ANSWERS = "answers.jsonl"
"""the file of a *synthesise* run"""
_NO_COLUMNS: Mapping[str, str | None] = {}


def read_single_answers(
    source: str,
    task: SingleTask | None = None,
    columns: Mapping[str, str | None] = _NO_COLUMNS,
    stage: str = "label",
    *,
    media: bool = False,
    flagged: Mapping[str, Sequence[str]] | None = None,
) -> list[SingleAnswer]:
    """All single answers of a source.

    Args:
        task: of the rows that name none.
        columns: our name of a column → its name in the data.
        stage: the stage that reads, which refuses images and recordings unless `media` is set.
        flagged: of rows of a *prepare* run, the reasons why a step flagged them, by the prompt's id; they are kept as
            `origin["flagged"]`.

    Raises:
        DataError: with every row that cannot be used.
    """
    file = Path(source) / "final" / ANSWERS
    if is_run(source) and not file.is_file():
        own: list[Demonstration] = read_own(source, "demonstrations", stage)
        reasons = flagged or {}
        return _each_once(
            [
                _of_demonstration(
                    one,
                    _task_of(None, task),
                    {FLAGGED: list(reasons[one.prompt.id])} if one.prompt.id in reasons else {},
                )
                for one in own
            ]
        )
    table = read_file(file) if is_run(source) else read_source(source, "demonstrations")
    rows = whole_rows(table, source)
    answers: list[SingleAnswer] = []
    bad: list[BadRow] = []
    for where, row in rows:
        try:
            answers.append(_storable(_read_row(row, task, columns, table.of_text, None if media else stage)))
        except ValidationError as error:
            bad.append(BadRow(where, "; ".join(explain(error))))
        except ValueError as error:
            bad.append(BadRow(where, str(error)))
    if bad:
        raise DataError(
            f"{source}: {len(bad)} of {counted(len(rows), 'row')} hold no single answer", fault_lines(bad, len(rows))
        )
    return _each_once(answers)


def flagged_rows(run: str) -> dict[str, list[str]]:
    """Why steps of a *prepare* run flagged rows that it kept, by the prompt's id.

    Raises:
        HandoffError: it is not a *prepare* run, or has no steps.
    """
    file = Path(run) / "final" / "flagged.jsonl"
    if not is_run(run) or not file.is_file():
        raise HandoffError(f"{run} has no flagged rows: give the folder of a prepare run with steps")
    found: dict[str, list[str]] = {}
    for _, row in read_file(file).rows:
        for prompt in row.get("prompt_ids", ()):
            found.setdefault(prompt, []).append(f"{row['step']}: {row['reason']}")
    return found


def names_tasks(source: str) -> bool:
    """Whether a file's rows are single answers: one of them names a task."""
    if is_run(source):
        return (Path(source) / "final" / ANSWERS).is_file()
    return any("task" in row for _, row in read_source(source, "demonstrations").rows)


def _read_row(
    row: dict[str, Any],
    task: SingleTask | None,
    columns: Mapping[str, str | None],
    of_text: bool,
    text_only: str | None,
) -> SingleAnswer:
    """`text_only`: the stage that refuses images and recordings."""
    if all(name in row for name in ("id", "messages", "completions", "task")):
        answer = SingleAnswer.model_validate(row)
        _require_text((*answer.messages, answer.completions[0].message), text_only)
        return answer
    if isinstance(row.get("prompt"), dict) and "messages" in row["prompt"]:
        demonstration = Demonstration.model_validate({name: row.get(name) for name in ("prompt", "completion")})
        _require_text((*demonstration.prompt.messages, *demonstration.answers), text_only)
        origin = {name: value for name, value in row.items() if name not in ("prompt", "completion", "task")}
        return _of_demonstration(demonstration, _task_of(row.get("task"), task), origin, media=text_only is None)
    cells = Cells(row, columns, of_text)
    wanted = _task_of(cells.get("task"), task)
    found = interpret(cells, "demonstrations").results
    if len(found) != 1 or not isinstance(found[0], AnswerRow):
        raise ValueError("it must hold one prompt with one answer")
    _require_text(found[0].prompt, text_only, found[0].image_column)
    split = named_split(cells.get("split")) or "train"
    facts = about(cells, ("source", "tags"))
    if marks := marks_of_row(cells.values):
        facts["tags"] = tuple(dict.fromkeys((*facts.get("tags", ()), *marks)))
    about_it = {"origin": cells.unused(), "split": split, "tools": found[0].tools, **facts}
    return _single(found[0].prompt, found[0].answer, wanted, media=text_only is None, **about_it)


def _require_text(messages: Messages, text_only: str | None, column: str | None = None) -> None:
    if text_only is not None:
        require_text(messages, text_only, column, media_key=text_only == "label")


def _of_demonstration(
    one: Demonstration, task: SingleTask, origin: dict[str, Any], *, media: bool = False
) -> SingleAnswer:
    prompt = one.prompt
    facts = {"split": prompt.split, "tools": prompt.tools, "source": prompt.source, "tags": prompt.tags}
    return _single(prompt.messages, one.answers, task, media=media, origin=origin, **facts)


def _single(messages: Messages, answer: Messages, task: SingleTask, *, media: bool, **facts: Any) -> SingleAnswer:
    identity = prompt_id(messages, facts.get("tools", ()))
    completion = completion_of(identity, answer, media=media)
    return SingleAnswer(
        id=content_id("answer", identity, completion.id, task),
        prompt_id=identity,
        messages=messages,
        completions=(completion,),
        task=task,
        **facts,
    )


def _task_of(named: object, task: SingleTask | None) -> SingleTask:
    if named in (None, ""):
        if task is None:
            raise ValueError(f"task: missing: name one of {', '.join(SINGLE_TASKS)} in the row, or one for all of them")
        return task
    found = next((one for one in SINGLE_TASKS if one == named), None)
    if found is None:
        raise ValueError(f"task: {str(named)[:40]!r} is not one of {', '.join(SINGLE_TASKS)}")
    return found


def _storable(answer: SingleAnswer) -> SingleAnswer:
    """The answer, if its prompt has content and a label store can keep it."""
    check_prompt(answer.messages)
    if _has_nul(answer.model_dump()):
        raise ValueError("holds a NUL character, which a label store cannot keep: remove it")
    return answer


def _has_nul(value: object) -> bool:
    if isinstance(value, dict):
        return any(_has_nul(part) for one in value.items() for part in one)
    return any(map(_has_nul, value)) if isinstance(value, list | tuple) else isinstance(value, str) and "\0" in value


def _each_once(answers: list[SingleAnswer]) -> list[SingleAnswer]:
    """Without rows that repeat another: the first of them stays."""
    firsts: dict[str, SingleAnswer] = {}
    for one in answers:
        firsts.setdefault(one.id, one)
    return list(firsts.values())
