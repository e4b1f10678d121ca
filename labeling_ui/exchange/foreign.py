"""Pairs and judgments from files: our own records, and the exports of Argilla, Label Studio and Potato.

    tiebreak label import --format argilla --judgments records.json --store URL
    tiebreak label import --format label_studio --judgments project.json --fields.first answer_a … --store URL
    tiebreak label import --format potato --pairs data.jsonl --judgments annotation_output --store URL

These are the tools' own formats: Argilla 2.8's `dataset.records.to_json`, Label Studio's JSON (not JSON-MIN) with a
Pairwise or Choices tag, Potato 2.12's `user_state.json` of every annotator beside the data file. Only Potato's scale has
a strength; otherwise the answer is 2, *better*. Raters get pseudonyms made from their ids: names and addresses are not
imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from labeling_ui.database.errors import RefusedError
from labeling_ui.exchange.outward import PROGRAMS
from labeling_ui.store.pairs.campaign import Gold
from labeling_ui.store.pairs.items import Item, items_of
from labeling_ui.store.pairs.known import check_value
from tiebreak.assessments import ExportedAssessment, SingleAnswer, SingleTask
from tiebreak.config import Section
from tiebreak.data.conversations import to_messages
from tiebreak.data.images import require_text
from tiebreak.data.pairs import read_pairs
from tiebreak.data.reading import read_rows
from tiebreak.data.single import read_single_answers
from tiebreak.data.splits import named_split
from tiebreak.data.text import Row
from tiebreak.errors import DataError, counted
from tiebreak.files import explain, first_line
from tiebreak.messages import Messages, content_id, prompt_id
from tiebreak.records import Completion, ExportedJudgment, Judgment, Pair

Format = Literal["tiebreak", "argilla", "label_studio", "potato"]
BETTER = 2
"""The answer where the tool does not ask for the strength."""
Vote = dict[str, Any]
"""One of answer, both_bad and skip."""

FIRST_WORDS = ("left", "a", "1", "first")
SECOND_WORDS = ("right", "b", "2", "second")
TIE_WORDS = ("tie", "equal", "same", "no preference", "neither is better", "0")
BOTH_BAD_WORDS = ("both bad", "both_bad", "both are bad")
SKIP_WORDS = ("skip", "skipped")


class FieldNames(Section):
    """Names in the other tool's project."""

    prompt: str = "prompt"
    """the field that holds the prompt"""
    first: str = "response1"
    """the field of the first completion: left, or A"""
    second: str = "response2"
    """the field of the second completion"""
    items: str = "items"
    """Potato's `items_key`: a list of the two completions; rows without it have `first` and `second`"""
    id: str = "id"
    """Potato's `id_key`"""
    question: str = ""
    """the question, control tag or scheme that compares the completions; empty if the project has only one"""


@dataclass
class Records:
    """Contents of files, with the place of each judgment."""

    pairs: list[Pair] = field(default_factory=list)
    judgments: list[Judgment] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    settled: list[Judgment] = field(default_factory=list)
    """leads' answers, which override the votes"""
    settled_places: list[str] = field(default_factory=list)
    gold: set[str] = field(default_factory=set)
    """pairs that were gold where their judgments were exported"""
    faults: list[str] = field(default_factory=list)


SETTLED_FILE = "adjudications.jsonl"
"""The file of an export that holds settled answers; those of earlier versions have no mark."""


def read_own(
    pairs: str | None,
    judgments: str | None,
    adjudications: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    answers: str | None = None,
    task: SingleTask | None = None,
) -> Records:
    """Pairs and single answers, as `tiebreak label` reads them, Judgment records, and settled answers.

    Raises:
        DataError: rows that are neither; all are listed with file and line.
    """
    if pairs is None and answers is None:
        raise DataError(
            "label import: --pairs is missing: a run folder of sample, or a file of prompt, response_a and response_b; "
            "for single answers, set --answers"
        )
    result = Records(pairs=[] if pairs is None else read_pairs(pairs, columns or {}, "label import"))
    if answers is not None:
        result.pairs += read_single_answers(answers, task, stage="label import")
    for path in (judgments, adjudications):
        if path is None:
            continue
        all_settled = path == adjudications or Path(path).name == SETTLED_FILE
        for where, one in _read_judgments(path):
            settled = one.settled or all_settled
            result.gold |= {one.pair_id} if one.gold else set()
            (result.settled if settled else result.judgments).append(one.judgment)
            (result.settled_places if settled else result.places).append(where)
    return result


def _read_judgments(path: str) -> list[tuple[str, ExportedJudgment]]:
    """Judgments of pairs and of single answers, with their places."""
    judgments: list[tuple[str, ExportedJudgment]] = []
    faults = []
    for where, row in read_rows(path):
        try:
            judgments.append((where, (ExportedAssessment if "task" in row else ExportedJudgment).model_validate(row)))
        except ValidationError as error:
            faults += [f"{where}: {fault}" for fault in explain(error)]
    if faults:
        raise DataError(f"{path}: {counted(len(faults), 'error')} in its rows", faults)
    return judgments


def read_gold(path: str, pairs: Sequence[Pair], answers: Sequence[SingleAnswer] = ()) -> list[Gold]:
    """Items with their known answers.

    Raises:
        DataError: rows without a pair of two or a single answer, with another pair's completion, with a value that the
            task cannot have, or with two known answers; all are listed, with file and line.
    """
    tasks = {answer.id: answer.task for answer in answers}
    items = {item.id: item for pair in pairs for item in items_of(pair)}
    known: dict[str, Gold] = {}
    faults = []
    for where, row in read_rows(path):
        try:
            one = _gold_of(row, items, tasks)
        except RefusedError as error:
            faults.append(f"{where}: {error}")
            continue
        if known.setdefault(one.item_id, one) != one:
            faults.append(f"{where}: {one.item_id} has another known answer in an earlier row")
    if faults:
        raise DataError(f"{path}: {counted(len(faults), 'error')}; nothing was made gold", faults)
    return list(known.values())


def _gold_of(row: Mapping[str, Any], items: Mapping[str, Item], tasks: Mapping[str, SingleTask]) -> Gold:
    """A row's item with its known answer.

    Raises:
        RefusedError: there is no such item, or it cannot have the answer.
    """
    name, preferred = str(row.get("item_id")), row.get("preferred_id")
    if name in tasks:
        try:
            check_value(tasks[name], row.get("value"))
        except RefusedError as error:
            raise RefusedError(f"value: {error}") from error
        return Gold(name, value=row.get("value"))
    item = items.get(name)
    if item is None:
        raise RefusedError(f"there is no pair of two completions with the id {row.get('item_id')}")
    if "preferred_id" not in row or preferred not in (None, item.first_id, item.second_id):
        raise RefusedError(f"preferred_id must be {item.first_id}, {item.second_id} or null, not {preferred}")
    return Gold(item.id, preferred)


def read_foreign(kind: Format, pairs: str | None, judgments: str | None, names: FieldNames) -> Records:
    """The pairs and judgments of another tool's export.

    Raises:
        DataError: rows that cannot be read; all errors are listed with file and line.
    """
    if judgments is None:
        raise DataError(f"label import --format {kind}: --judgments is missing: {kind}'s export")
    result = Records()
    if kind == "potato":
        if pairs is None:
            raise DataError("label import --format potato: --pairs is missing: Potato's data file, which has the texts")
        _read_potato(result, pairs, Path(judgments), names)
    else:
        read = _read_argilla if kind == "argilla" else _read_label_studio
        for where, row in read_objects(Path(judgments)):
            _collect(result, where, lambda row=row, where=where: read(result, where, row, names))  # type: ignore[misc]
    if result.faults:
        raise DataError(f"{judgments}: {counted(len(result.faults), 'error')}; nothing was imported", result.faults)
    return result


def read_objects(path: Path) -> list[Row]:
    """The objects of a JSON array (or of JSON Lines), each with its file and line.

    Raises:
        DataError: the file is missing, or is neither.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"cannot read {path}: not a file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if text.lstrip().startswith("[") and not text.rstrip().endswith("]"):
        raise DataError(f"{path}: not JSON (the array that begins it does not end): is the file cut off?")
    decoder, rows, at, line, counted = json.JSONDecoder(), [], 0, 1, 0
    while (at := _next_value(text, at)) < len(text):
        line, counted = line + text.count("\n", counted, at), at
        where = f"{path}:{line}"
        try:
            value, at = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({getattr(error, 'msg', 'nested too deeply')})") from error
        if not isinstance(value, dict):
            raise DataError(f"{where}: a {type(value).__name__}, not an object: give the tool's JSON export")
        rows.append((where, value))
    return rows


def _next_value(text: str, at: int) -> int:
    """Index of the next element of an array."""
    while at < len(text) and (text[at].isspace() or text[at] in "[,]\ufeff"):
        at += 1
    return at


# --- the three tools ---


def _read_argilla(result: Records, where: str, row: dict[str, Any], names: FieldNames) -> None:
    fields = _mapping(row, "fields")
    about = _of_our_export(row.get("metadata"))
    pair = _add_pair(result, _text_of(fields, names.prompt), fields, names, about)
    responses = {
        name: given for name, given in _mapping(row, "responses").items() if names.question in ("", name) and given
    }
    if len(responses) > 1:
        raise ValueError(f"has answers to {', '.join(sorted(responses))}: choose one with --fields.question")
    for response in next(iter(responses.values()), ()):
        status = response.get("status")
        if status == "draft":  # an answer that its rater has not given yet
            continue
        vote = {"skip": True} if status == "discarded" else _understand(_best_of(response["value"]), names)
        _add_judgment(result, where, pair, "argilla", response["user_id"], vote, about=about)


def _best_of(value: Any) -> Any:
    """The best of a ranking: of names from the best to the worst, or of names with ranks, which may be equal."""
    if not isinstance(value, list):
        return value
    if not all(isinstance(one, dict) for one in value):
        return value[0]
    ranked = sorted(value, key=lambda one: int(one["rank"]))
    return "tie" if len(ranked) > 1 and int(ranked[0]["rank"]) == int(ranked[1]["rank"]) else ranked[0]["value"]


def _read_label_studio(result: Records, where: str, row: dict[str, Any], names: FieldNames) -> None:
    data = _mapping(row, "data")
    about = _of_our_export(row.get("meta"))
    pair = _add_pair(result, _text_of(data, names.prompt), data, names, about)
    for annotation in row.get("annotations") or ():
        by = annotation.get("completed_by")
        rater = by.get("id") if isinstance(by, dict) else by
        vote: Vote = {"skip": True} if annotation.get("was_cancelled") else _label_studio_answer(annotation, names)
        _add_judgment(result, where, pair, "label-studio", rater, vote, annotation.get("lead_time"), about)


def _label_studio_answer(annotation: Mapping[str, Any], names: FieldNames) -> Vote:
    """The annotation's answer. An empty annotation is a skip."""
    votes = [
        _understand(value, names)
        for region in annotation.get("result") or ()
        if region.get("type") in ("pairwise", "choices") and names.question in ("", region.get("from_name"))
        for value in _label_studio_values(region)
    ]
    if len(votes) > 1:
        raise ValueError(
            f"annotation {annotation.get('id')} has {len(votes)} answers: choose one with --fields.question"
        )
    return votes[0] if votes else {"skip": True}


def _label_studio_values(region: Mapping[str, Any]) -> Sequence[Any]:
    value = _mapping(region, "value")
    return [value["selected"]] if region["type"] == "pairwise" else value["choices"]


def _read_potato(result: Records, data: str, output: Path, names: FieldNames) -> None:
    pairs: dict[str, Pair] = {}
    rows = read_objects(Path(data)) if Path(data).suffix == ".json" else read_rows(data)
    for where, row in rows:
        _collect(result, where, lambda row=row: pairs.update({str(row[names.id]): _potato_pair(result, row, names)}))  # type: ignore[misc]
    files = sorted(output.rglob("user_state.json")) if output.is_dir() else [output]
    if not files:
        raise DataError(f"{output}: no user_state.json in it: give Potato's output_annotation_dir")
    for file in files:
        for where, state in read_objects(file):
            _collect(result, where, lambda s=state, w=where: _read_potato_rater(result, w, s, pairs, names))  # type: ignore[misc]


def _potato_pair(result: Records, row: dict[str, Any], names: FieldNames) -> Pair:
    listed = row.get(names.items)
    if isinstance(listed, list) and len(listed) == 2:
        row = {**row, names.first: listed[0], names.second: listed[1]}
    return _add_pair(result, _text_of(row, names.prompt), row, names)


def _read_potato_rater(
    result: Records, where: str, state: dict[str, Any], pairs: Mapping[str, Pair], names: FieldNames
) -> None:
    for instance, labels in _mapping(state, "instance_id_to_label_to_value").items():
        answers = [
            (label["name"], value)
            for label, value in labels
            if label["name"] in ("selection", "scale_value") and names.question in ("", label["schema"])
        ]
        if not answers:
            continue
        if len(answers) > 1:
            raise ValueError(f"instance {instance} has {len(answers)} answers: choose one with --fields.question")
        if instance not in pairs:
            raise ValueError(f"instance {instance} is not in the data file")
        ((name, value),) = answers
        vote = _scale(value) if name == "scale_value" else _understand(value, names)
        _add_judgment(result, where, pairs[instance], "potato", state["user_id"], vote)


def _scale(value: Any) -> Vote:
    """Potato's slider from −3 (A is much better) to 3, the same as our answers."""
    try:
        answer = int(str(value))
    except ValueError:
        answer = 9
    if not -3 <= answer <= 3:
        raise ValueError(f"the scale's value {value!r} is not a whole number from -3 to 3")
    return {"answer": answer}


# --- shared by the tools ---


def _collect(result: Records, where: str, read: Callable[[], None]) -> None:
    """Read one object; an error is recorded with its place."""
    try:
        read()
    except (ValidationError, ValueError) as error:
        result.faults.append(f"{where}: {first_line(error)}")
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        result.faults.append(f"{where}: not in the tool's format ({type(error).__name__}: {error})")


def _mapping(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = row.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"has no object {name!r}: is this another format?")
    return value


def _text_of(fields: Mapping[str, Any], name: str) -> Messages:
    if name not in fields:
        raise ValueError(f"has no field {name!r}, only {', '.join(sorted(fields))}: choose one with --fields")
    messages = to_messages(fields[name])
    require_text(messages, "label import")
    return messages


@dataclass(frozen=True)
class _About:
    """What an export of ours says of a pair and its raters."""

    pair: Mapping[str, Any] = field(default_factory=dict)
    """fields of the pair"""
    kinds: Mapping[str, Any] = field(default_factory=dict)
    """the tool's id of a rater who is no person → their kind"""


_HUMAN = _About()


def _of_our_export(about: Any) -> _About:
    """What a record's metadata say, if an export of ours wrote them.

    Raises:
        ValueError: people and programs judged, and it does not say which.
    """
    about = about if isinstance(about, dict) else {}
    kinds = {*str(about.get("kind", "")).split("+")}
    if not kinds <= {"human", "model", "simulated"}:
        return _HUMAN
    programs = dict(str(one).rsplit(" ", 1) for one in about.get(PROGRAMS, ()))
    if kinds != {"human"} and not programs:
        raise ValueError(f"kind: {about['kind']}, but no {PROGRAMS} says which raters are no people: export it again")
    split = named_split(about.get("split"))
    stated = {"split": split, "tags": tuple(about.get("tags", ())), "purpose": about.get("purpose")}
    return _About({name: value for name, value in stated.items() if value}, programs)


def _add_pair(
    result: Records, messages: Messages, fields: Mapping[str, Any], names: FieldNames, about: _About = _HUMAN
) -> Pair:
    texts = [_text_of(fields, name)[-1].text for name in (names.first, names.second)]
    identity = content_id("pair", messages, texts)
    completions = tuple(
        Completion(id=content_id("completion", identity, n, text), text=text, policy=name)
        for n, (text, name) in enumerate(zip(texts, (names.first, names.second), strict=True))
    )
    pair = Pair(id=identity, prompt_id=prompt_id(messages), messages=messages, completions=completions, **about.pair)
    result.pairs.append(pair)  # duplicates are merged in the store
    return pair


def _add_judgment(
    result: Records,
    where: str,
    pair: Pair,
    tool: str,
    rater: Any,
    vote: Vote,
    seconds: float | None = None,
    about: _About = _HUMAN,
) -> None:
    if rater is None:
        raise ValueError("an answer without a rater")
    first, second = pair.completions
    rater_id = content_id(tool, str(rater))
    result.judgments.append(
        Judgment(
            pair_id=pair.id,
            rater_id=rater_id,
            left=first.id,
            right=second.id,
            seconds_active=seconds,
            kind=about.kinds.get(str(rater), "human"),
            **vote,
        )
    )
    result.places.append(where)


def _understand(value: Any, names: FieldNames) -> Vote:
    """An answer in words: a field's name, a side, a tie, both bad or a skip."""
    word = str(value).strip()
    for words, vote in _vocabulary(names):
        if word.casefold() in words:
            return vote
    raise ValueError(
        f"{word[:60]!r} is not an answer: expected {names.first}, {names.second}, left, right, A, B, "
        "1, 2, tie, both bad or skip"
    )


def _vocabulary(names: FieldNames) -> Iterator[tuple[tuple[str, ...], Vote]]:
    yield (names.first.casefold(), *FIRST_WORDS), {"answer": -BETTER}
    yield (names.second.casefold(), *SECOND_WORDS), {"answer": BETTER}
    yield TIE_WORDS, {"answer": 0}
    yield BOTH_BAD_WORDS, {"both_bad": True}
    yield SKIP_WORDS, {"skip": True}
