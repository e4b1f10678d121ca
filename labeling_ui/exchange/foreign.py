"""Pairs and judgments from files: our own records, and the exports of Argilla, Label Studio and Potato.

    tiebreak label import --format argilla --judgments records.json --store URL
    tiebreak label import --format label_studio --judgments project.json --fields.first answer_a … --store URL
    tiebreak label import --format potato --pairs data.jsonl --judgments annotation_output --store URL

The shapes are those that the tools write: Argilla 2.8's `dataset.records.to_json`, Label Studio's JSON (not JSON-MIN)
with a Pairwise or Choices tag, Potato 2.12's `user_state.json` of every annotator beside the data file. They say which
completion is better, and only Potato's scale says how much; where that is not said, the answer is 2, *better*. Raters
get pseudonyms made from their ids there: names and addresses stay behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from labeling_ui.store.campaign import Gold
from labeling_ui.store.items import items_of
from tiebreak.config import Section
from tiebreak.data.conversations import to_messages
from tiebreak.data.reading import read_pairs, read_records, read_rows
from tiebreak.data.text import Row
from tiebreak.errors import DataError
from tiebreak.records import (
    Completion,
    Judgment,
    Messages,
    Pair,
    content_id,
    first_line,
    prompt_id,
)

Format = Literal["tiebreak", "argilla", "label_studio", "potato"]
BETTER = 2
"""The answer where the tool does not ask how much."""
Said = dict[str, Any]
"""One of answer, both_bad and skip."""

FIRST_WORDS = ("left", "a", "1", "first")
SECOND_WORDS = ("right", "b", "2", "second")
TIE_WORDS = ("tie", "equal", "same", "no preference", "neither is better", "0")
BOTH_BAD_WORDS = ("both bad", "both_bad", "both are bad")
SKIP_WORDS = ("skip", "skipped")


class FieldNames(Section):
    """What the other tool's project calls things."""

    prompt: str = "prompt"
    """the field that holds the prompt"""
    first: str = "response1"
    """the field of the first completion: left, or A"""
    second: str = "response2"
    """the field of the second completion"""
    items: str = "items"
    """Potato's `items_key`: a list of the two completions; a row without it has `first` and `second`"""
    id: str = "id"
    """Potato's `id_key`"""
    question: str = ""
    """the question, control tag or scheme that compares them; empty if the project has only one"""


@dataclass
class Found:
    """What files hold, with the place of each judgment."""

    pairs: list[Pair] = field(default_factory=list)
    judgments: list[Judgment] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def read_own(pairs: str | None, judgments: str | None) -> Found:
    """Pair and Judgment records.

    Raises:
        DataError: rows that are not such records; all are listed with file and line.
    """
    if pairs is None:
        raise DataError("label import: --pairs is missing: a run folder of sample, or a .jsonl file of Pair records")
    found = Found(pairs=read_pairs(pairs))
    if judgments:
        found.judgments = read_records(Path(judgments), Judgment)
        found.places = [where for where, _ in read_rows(judgments)]
    return found


def read_gold(path: str, pairs: Sequence[Pair]) -> list[Gold]:
    """Items with their known answers.

    Raises:
        DataError: rows that name no pair of two, or no completion of it; all are listed with file and line.
    """
    items = {item.id: item for pair in pairs for item in items_of(pair)}
    gold, faults = [], []
    for where, row in read_rows(path):
        item, preferred = items.get(str(row.get("item_id"))), row.get("preferred_id")
        if item is None:
            faults.append(f"{where}: there is no pair of two named {row.get('item_id')}")
        elif "preferred_id" not in row or preferred not in (None, item.first_id, item.second_id):
            faults.append(f"{where}: preferred_id is {item.first_id}, {item.second_id} or null, not {preferred}")
        else:
            gold.append(Gold(item.id, preferred))
    if faults:
        raise DataError(f"{path}: {len(faults)} fault(s); nothing was made gold", faults)
    return gold


def read_foreign(kind: Format, pairs: str | None, judgments: str | None, names: FieldNames) -> Found:
    """The pairs and judgments of another tool's export.

    Raises:
        DataError: what cannot be read or understood; all faults are listed with file and line.
    """
    if judgments is None:
        raise DataError(f"label import --format {kind}: --judgments is missing: the export of {kind}")
    found = Found()
    if kind == "potato":
        if pairs is None:
            raise DataError("label import --format potato: --pairs is missing: Potato's data file holds the texts")
        _read_potato(found, pairs, Path(judgments), names)
    else:
        read = _read_argilla if kind == "argilla" else _read_label_studio
        for where, row in read_objects(Path(judgments)):
            _collect(found, where, lambda row=row, where=where: read(found, where, row, names))  # type: ignore[misc]
    if found.faults:
        raise DataError(f"{judgments}: {len(found.faults)} fault(s); nothing was imported", found.faults)
    return found


def read_objects(path: Path) -> list[Row]:
    """The objects of a JSON array (or of JSON Lines), each with its file and line.

    Raises:
        DataError: the file is missing, or is neither.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    decoder, rows, at, line, counted = json.JSONDecoder(), [], 0, 1, 0
    while (at := _next_value(text, at)) < len(text):
        line, counted = line + text.count("\n", counted, at), at
        where = f"{path}:{line}"
        try:
            value, at = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({getattr(error, 'msg', 'nested too deeply')})") from error
        if not isinstance(value, dict):
            raise DataError(f"{where}: a {type(value).__name__}, not an object: give the tool's own JSON export")
        rows.append((where, value))
    return rows


def _next_value(text: str, at: int) -> int:
    """Past blanks, and what stands between the elements of an array."""
    while at < len(text) and (text[at].isspace() or text[at] in "[,]\ufeff"):
        at += 1
    return at


# --- the three tools ---


def _read_argilla(found: Found, where: str, row: dict[str, Any], names: FieldNames) -> None:
    fields = _mapping(row, "fields")
    pair = _add_pair(found, _text_of(fields, names.prompt), fields, names)
    responses = {
        name: given for name, given in _mapping(row, "responses").items() if names.question in ("", name) and given
    }
    if len(responses) > 1:
        raise ValueError(f"has answers to {', '.join(sorted(responses))}: name one with --fields.question")
    for given in next(iter(responses.values()), ()):
        value = given["value"]
        if isinstance(value, list):  # a ranking: the best one stands first
            value = value[0]["value"] if isinstance(value[0], dict) else value[0]
        _add_judgment(found, where, pair, "argilla", given["user_id"], _understand(value, names))


def _read_label_studio(found: Found, where: str, row: dict[str, Any], names: FieldNames) -> None:
    data = _mapping(row, "data")
    pair = _add_pair(found, _text_of(data, names.prompt), data, names)
    for annotation in row.get("annotations") or ():
        by = annotation.get("completed_by")
        rater = by.get("id") if isinstance(by, dict) else by
        said: Said = {"skip": True} if annotation.get("was_cancelled") else _label_studio_answer(annotation, names)
        _add_judgment(found, where, pair, "label-studio", rater, said, annotation.get("lead_time"))


def _label_studio_answer(annotation: Mapping[str, Any], names: FieldNames) -> Said:
    """The annotation's answer. One that was submitted empty answers nothing, and is a skip."""
    said = [
        _understand(value, names)
        for region in annotation.get("result") or ()
        if region.get("type") in ("pairwise", "choices") and names.question in ("", region.get("from_name"))
        for value in _label_studio_values(region)
    ]
    if len(said) > 1:
        raise ValueError(f"annotation {annotation.get('id')} has {len(said)} answers: name one with --fields.question")
    return said[0] if said else {"skip": True}


def _label_studio_values(region: Mapping[str, Any]) -> Sequence[Any]:
    value = _mapping(region, "value")
    return [value["selected"]] if region["type"] == "pairwise" else value["choices"]


def _read_potato(found: Found, data: str, output: Path, names: FieldNames) -> None:
    pairs: dict[str, Pair] = {}
    rows = read_objects(Path(data)) if Path(data).suffix == ".json" else read_rows(data)
    for where, row in rows:
        _collect(found, where, lambda row=row: pairs.update({str(row[names.id]): _potato_pair(found, row, names)}))  # type: ignore[misc]
    files = sorted(output.rglob("user_state.json")) if output.is_dir() else [output]
    if not files:
        raise DataError(f"{output}: no user_state.json in it: give Potato's output_annotation_dir")
    for file in files:
        for where, state in read_objects(file):
            _collect(found, where, lambda s=state, w=where: _read_potato_rater(found, w, s, pairs, names))  # type: ignore[misc]


def _potato_pair(found: Found, row: dict[str, Any], names: FieldNames) -> Pair:
    listed = row.get(names.items)
    if isinstance(listed, list) and len(listed) == 2:
        row = {**row, names.first: listed[0], names.second: listed[1]}
    return _add_pair(found, _text_of(row, names.prompt), row, names)


def _read_potato_rater(
    found: Found, where: str, state: dict[str, Any], pairs: Mapping[str, Pair], names: FieldNames
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
            raise ValueError(f"instance {instance} has {len(answers)} answers: name one with --fields.question")
        if instance not in pairs:
            raise ValueError(f"instance {instance} is not in the data file")
        ((name, value),) = answers
        said = _scale(value) if name == "scale_value" else _understand(value, names)
        _add_judgment(found, where, pairs[instance], "potato", state["user_id"], said)


def _scale(value: Any) -> Said:
    """Potato's slider runs from −3 (A is much better) to 3, as our answers do."""
    try:
        answer = int(str(value))
    except ValueError:
        answer = 9
    if not -3 <= answer <= 3:
        raise ValueError(f"the scale's value {value!r} is no whole number from -3 to 3")
    return {"answer": answer}


# --- what they have in common ---


def _collect(found: Found, where: str, read: Callable[[], None]) -> None:
    """Read one object; what is wrong with it is a fault, told with its place."""
    try:
        read()
    except (ValidationError, ValueError) as error:
        found.faults.append(f"{where}: {first_line(error)}")
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        found.faults.append(f"{where}: not as the tool writes it ({type(error).__name__}: {error})")


def _mapping(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = row.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"no object {name!r}: is this another format?")
    return value


def _text_of(fields: Mapping[str, Any], name: str) -> Messages:
    if name not in fields:
        raise ValueError(f"no field {name!r} among {', '.join(sorted(fields))}: name it with --fields")
    return to_messages(fields[name])


def _add_pair(found: Found, messages: Messages, fields: Mapping[str, Any], names: FieldNames) -> Pair:
    texts = [_text_of(fields, name)[-1].content for name in (names.first, names.second)]
    identity = content_id("pair", messages, texts)
    completions = tuple(
        Completion(id=content_id("completion", identity, n, text), text=text, policy=name)
        for n, (text, name) in enumerate(zip(texts, (names.first, names.second), strict=True))
    )
    pair = Pair(id=identity, prompt_id=prompt_id(messages), messages=messages, completions=completions)
    found.pairs.append(pair)  # the same one again is one in the store
    return pair


def _add_judgment(
    found: Found, where: str, pair: Pair, tool: str, rater: Any, said: Said, seconds: float | None = None
) -> None:
    if rater is None:
        raise ValueError("an answer without its rater")
    first, second = pair.completions
    rater_id = content_id(tool, str(rater))
    found.judgments.append(
        Judgment(
            pair_id=pair.id,
            rater_id=rater_id,
            left=first.id,
            right=second.id,
            seconds_active=seconds,
            kind="human",
            **said,
        )
    )
    found.places.append(where)


def _understand(value: Any, names: FieldNames) -> Said:
    """An answer in words: the name of a field, a side, a tie, both bad or a skip."""
    word = str(value).strip()
    for known, said in _vocabulary(names):
        if word.casefold() in known:
            return said
    raise ValueError(
        f"cannot tell which side {word[:60]!r} prefers: an answer is {names.first}, {names.second}, left, right, A, B, "
        "1, 2, tie, both bad or skip"
    )


def _vocabulary(names: FieldNames) -> Iterator[tuple[tuple[str, ...], Said]]:
    yield (names.first.casefold(), *FIRST_WORDS), {"answer": -BETTER}
    yield (names.second.casefold(), *SECOND_WORDS), {"answer": BETTER}
    yield TIE_WORDS, {"answer": 0}
    yield BOTH_BAD_WORDS, {"both_bad": True}
    yield SKIP_WORDS, {"skip": True}
