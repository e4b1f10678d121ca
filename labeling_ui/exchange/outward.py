"""Judgments for other tools: records of Argilla, tasks of Label Studio, and a data set for the Hugging Face hub.

    final/argilla.json            as Argilla 2.8's `dataset.records.to_json`; `records.from_json` reads it
    final/label_studio.json       tasks with annotations, and label_studio.xml, the project's labelling interface
    final/hub/                    a data card and Parquet files: preferences, and judgments as a second configuration

`tiebreak label import` reads the first two again. They have the side of an answer, not its strength, which neither tool
has. Repeats are left out: the tools have one answer for each person and record. Raters are pseudonyms.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from tiebreak.data.synthetic import count_synthetic
from tiebreak.files import write_json, write_text_atomically
from tiebreak.messages import Message, Messages
from tiebreak.records import ExportedJudgment, Judgment, Pair, Preference

QUESTION = "preference"
FIRST, SECOND = "response1", "response2"
PROGRAMS = "programs"
"""the key with the ids of raters who are no people, each with its kind"""
_NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")
LABEL_STUDIO_XML = """<View>
  <Paragraphs name="prompt" value="$prompt" nameKey="role" textKey="content" layout="dialogue"/>
  <Pairwise name="preference" toName="response1,response2" leftClass="left" rightClass="right"/>
  <Text name="response1" value="$response1"/>
  <Text name="response2" value="$response2"/>
  <Choices name="neither" toName="prompt" choice="single"><Choice value="Tie"/><Choice value="Both bad"/></Choices>
</View>
"""


class _Compared:
    """Two completions of a pair and all judgments of them."""

    def __init__(self, pair: Pair, first: str, second: str) -> None:
        self.pair = pair
        self.texts = {completion.id: completion.text for completion in pair.completions}
        self.first, self.second = first, second
        self.judgments: list[Judgment] = []

    @property
    def id(self) -> str:
        """The pair's id; with those of the completions where it has more than two."""
        return self.pair.id if len(self.texts) == 2 else f"{self.pair.id}:{self.first}:{self.second}"


def _compared(pairs: Sequence[Pair], judgments: Sequence[ExportedJudgment]) -> list[_Compared]:
    by_id = {pair.id: pair for pair in pairs}
    found: dict[tuple[str, str, str], _Compared] = {}
    for judgment in chain.from_iterable(one.pairwise() for one in judgments if not one.repeat and one.pair_id in by_id):
        pair = by_id[judgment.pair_id]
        places = {completion.id: n for n, completion in enumerate(pair.completions)}
        first, second = sorted((judgment.left, judgment.right), key=places.__getitem__)
        found.setdefault((pair.id, first, second), _Compared(pair, first, second)).judgments.append(judgment)
    return list(found.values())


def _word(judgment: Judgment, first: str) -> str:
    """The answer in words, whichever side the first completion was on."""
    if judgment.skip:
        return "Skip"
    if judgment.both_bad:
        return "Both bad"
    side = (judgment.answer or 0) if judgment.left == first else -(judgment.answer or 0)
    return FIRST if side < 0 else SECOND if side > 0 else "Tie"


def argilla_records(pairs: Sequence[Pair], judgments: Sequence[ExportedJudgment]) -> Iterator[dict[str, Any]]:
    """Records for a data set with a text or chat field `prompt`, two text fields, and a label question."""
    compared = _compared(pairs, judgments)
    as_chat = any(_words_of(one.pair.messages) is None for one in compared)
    for one in compared:
        responses = [
            {"value": _word(judgment, one.first), "user_id": _uuid(judgment.rater_id)} for judgment in one.judgments
        ]
        prompt = _turns(one.pair.messages) if as_chat else _words_of(one.pair.messages)
        yield {
            "id": one.id,
            "fields": {"prompt": prompt, FIRST: one.texts[one.first], SECOND: one.texts[one.second]},
            "metadata": _about(one, {judgment.rater_id: _uuid(judgment.rater_id) for judgment in one.judgments}),
            "suggestions": {},
            "responses": {QUESTION: responses},
            "vectors": {},
            "status": "completed",
        }


def label_studio_tasks(pairs: Sequence[Pair], judgments: Sequence[ExportedJudgment]) -> Iterator[dict[str, Any]]:
    """Tasks with one annotation for each rater, who is a number."""
    numbers = {rater: n for n, rater in enumerate(sorted({one.rater_id for one in judgments}), start=1)}
    serial = 0
    for n, one in enumerate(_compared(pairs, judgments), start=1):
        annotations = []
        for judgment in one.judgments:
            serial += 1
            annotations.append(_annotation(judgment, one.first, serial, numbers[judgment.rater_id]))
        data = {"prompt": _turns(one.pair.messages), FIRST: one.texts[one.first], SECOND: one.texts[one.second]}
        about = {"tiebreak_id": one.id, **_about(one, numbers)}
        yield {"id": n, "data": data, "meta": about, "annotations": annotations, "predictions": []}


def _uuid(rater_id: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, rater_id))


def _about(one: _Compared, ids: Mapping[str, str | int]) -> dict[str, Any]:
    """What an import needs to know of the pair and its raters: programs stay programs, synthetic pairs synthetic.

    Args:
        ids: rater → their id in the tool.
    """
    kinds = {judgment.rater_id: judgment.kind for judgment in one.judgments}
    programs = {str(ids[rater]): kind for rater, kind in kinds.items() if kind != "human"}
    pair = one.pair
    return {
        "split": pair.split,
        "kind": "+".join(sorted(set(kinds.values()))),
        **({PROGRAMS: [f"{name} {kind}" for name, kind in sorted(programs.items())]} if programs else {}),
        **({"tags": list(pair.tags)} if pair.tags else {}),
        **({"purpose": pair.purpose} if pair.purpose != "training" else {}),
        **_files(pair),
    }


def _files(pair: Pair) -> dict[str, list[str]]:
    """Names and descriptions of the pair's files, in order: the texts have `[image 1]` in their place."""
    files = [f"{part.mark}: {part.alt}" if part.alt else part.mark for part in pair.media]
    return {"files": files} if files else {}


def _annotation(judgment: Judgment, first: str, number: int, rater: int) -> dict[str, Any]:
    word = _word(judgment, first)
    region: dict[str, Any] = {
        "id": f"r{number}",
        "from_name": QUESTION,
        "to_name": f"{FIRST},{SECOND}",
        "type": "pairwise",
    }
    if word in (FIRST, SECOND):
        region["value"] = {"selected": "left" if word == FIRST else "right"}
    else:
        region |= {"from_name": "neither", "to_name": "prompt", "type": "choices", "value": {"choices": [word]}}
    return {
        "id": number,
        "completed_by": rater,
        "was_cancelled": judgment.skip,
        "ground_truth": False,
        "lead_time": judgment.seconds_active,
        "result": [] if judgment.skip else [region],
    }


def _words_of(messages: Messages) -> str | None:
    """A prompt of one message as text."""
    [*before, last] = messages
    return last.numbered_text if not before and last.role == "user" else None


def _turns(messages: Messages) -> list[dict[str, str]]:
    return [{"role": message.role, "content": _content(message)} for message in messages]


def _content(message: Message) -> str:
    calls = [json.dumps(call.function.model_dump(), ensure_ascii=False) for call in message.tool_calls]
    return "\n".join([message.numbered_text, *calls]) if calls else message.numbered_text


def write_argilla(folder: Path, pairs: Sequence[Pair], judgments: Sequence[ExportedJudgment]) -> None:
    """argilla.json"""
    write_json(folder / "argilla.json", list(argilla_records(pairs, judgments)))


def write_label_studio(folder: Path, pairs: Sequence[Pair], judgments: Sequence[ExportedJudgment]) -> None:
    """label_studio.json and label_studio.xml"""
    write_json(folder / "label_studio.json", list(label_studio_tasks(pairs, judgments)))
    write_text_atomically(folder / "label_studio.xml", LABEL_STUDIO_XML)


def hub_card(preferences: Sequence[Preference], judgments: Sequence[ExportedJudgment]) -> str:
    """The data set's card: its configurations for the hub, and what the labels are."""
    splits = Counter[str](one.split or "train" for one in preferences)
    there = [split for split in ("train", "validation", "test") if splits[split]]
    files = "\n".join(f"  - split: {split}\n    path: data/{split}.parquet" for split in there)
    kinds = sorted({one.kind for one in judgments})
    rows = "\n".join(f"| {split} | {splits[split]:,} |" for split in there)
    raters = len({one.rater_id for one in judgments})
    made = count_synthetic(preferences)
    judged = f"(tag `synthetic`), {made['reviewed']:,} of these judged by people."
    synthetic = f"\n{made['rows']:,} of them are of synthetic rows {judged}\n" if made["rows"] else ""
    return f"""---
configs:
- config_name: default
  data_files:
{files}
- config_name: judgments
  data_files:
  - split: train
    path: judgments/judgments.jsonl
tags:
- preference
- dpo
- tiebreak
---

# Preferences

{len(preferences):,} preferences from {len(judgments):,} {" and ".join(kinds)} judgments of {raters:,} raters, in TRL's
columns, made with Tiebreak.
{synthetic}
| split | preferences |
|---|---|
{rows}

`kind` says who judged: `human`, `model` or `simulated`. Raters are pseudonyms. The configuration `judgments` has
every judgment.

Licence, guidelines of the raters and intended use: to be written before this is published.
"""


def judgment_rows(judgments: Sequence[ExportedJudgment]) -> list[dict[str, Any]]:
    """Judgments with the same columns in every row; what has keys of its own is JSON."""
    names = dict.fromkeys(name for one in judgments for name in one.model_dump(mode="json"))
    rows = []
    for one in judgments:
        values = one.model_dump(mode="json")
        rows.append({name: _flat(values.get(name)) for name in names})
    return rows


def _flat(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
