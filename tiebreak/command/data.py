"""How a file is read: its recognised format, rows, splits and errors, and three rows as the model is trained on them.

    tiebreak data ultrafeedback.jsonl
    tiebreak data FOLDER --as preferences --policy Qwen/Qwen3-0.6B
    tiebreak data rows.csv --columns.prompt question --on-bad-row drop

The keys are those of the stages, so settings tried here can be copied into their files. The exit status is 1 if a stage
would refuse the file.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tiebreak.command.help import print_help, wants_help
from tiebreak.config import ChatSettings, Section, load_config
from tiebreak.data import shapes
from tiebreak.data.cells import Cells
from tiebreak.data.images import messages_of
from tiebreak.data.reading import (
    DEFAULT,
    FINAL_NAMES,
    Reading,
    Rules,
    drop_leaked,
    faults_of,
    is_run,
    read,
    read_own,
)
from tiebreak.data.sources import read_source
from tiebreak.data.splits import VALIDATION_SHARE, assign
from tiebreak.data.trees import holds_trees
from tiebreak.errors import ConfigError, DataError, HandoffError, counted
from tiebreak.extras import INSTALL, has_training_packages
from tiebreak.messages import prompt_id, text_of
from tiebreak.process.ending import exit_with_message
from tiebreak.records import Demonstration, LabelledAnswer, Preference, Prompt, RecordKind, Split
from tiebreak.shipped import find_shipped
from tiebreak.terminal import has_colours

if TYPE_CHECKING:
    from tiebreak.chat.chat import Chat

STAGES: dict[RecordKind, str] = {
    "prompts": "prepare, sample, ppo and evaluate",
    "demonstrations": "prepare and sft",
    "preferences": "dpo and reward",
    "answers": "dpo --algorithm kto",
}
FAULTS_SHOWN = 10
LONGEST = 3000
"""longest rendered row, in characters"""


class DataArguments(Section):
    """`tiebreak data`"""

    wanted: RecordKind | None = Field(default=None, alias="as")
    """kind of rows; null: determined from the columns"""
    policy: str | None = "bundled:smollm2-135m-instruct"
    """the model whose chat template renders the rows; null: do not render them"""
    trust_remote_code: bool = False
    """run Python code that the model contains"""
    rows: int = Field(default=3, ge=0)
    """number of rows to show"""
    columns: dict[str, str | None] = {}
    """columns with other names: Tiebreak's name, then the file's, such as {prompt: question, message.content: text};
    null: ignore the column"""
    on_bad_row: Literal["refuse", "drop"] = "refuse"
    """refuse: list unusable rows, and end with status 1; drop: leave them out, and count them"""
    validation_share: float = Field(default=VALIDATION_SHARE, ge=0.0, lt=1.0)
    """share to hold out of the prompts whose rows name no split"""
    chat_template: str | None = None
    """a .jinja file, or the name of one of the tokenizer's or TRL's templates; null: the model's own"""
    template_arguments: dict[str, Any] = {}
    """arguments of the chat template, such as {enable_thinking: false}"""
    thinking: Literal["keep", "drop", "mask"] = "keep"
    """thoughts before answers. keep: train on them; drop: remove them; mask: keep them without training on them"""


@dataclass(frozen=True)
class ShownRecord:
    """A record with its place and split."""

    where: str
    split: Split
    record: Prompt | Demonstration | Preference | LabelledAnswer


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `tiebreak data`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    exit_with_message(lambda: print_help(["data", *words]) if wants_help(words) else _show(words))


def _show(words: list[str]) -> None:
    if not words or words[0].startswith("--"):
        raise ConfigError(
            "data takes one source before its flags: tiebreak data FILE [--as preferences] [--policy MODEL]"
        )
    arguments = load_config(DataArguments, words[1:], "data")
    source = str(find_shipped(Path(words[0])))
    rules = Rules(arguments.columns, arguments.on_bad_row, arguments.validation_share)
    if is_run(source):
        wanted = arguments.wanted or _made_by(source)
        records = read_own(source, wanted)
        print(f"{source}: a finished run's {wanted}: {counted(len(records), 'row')}")
        _print_rows(
            [ShownRecord(f"{source} row {n}", _split(one), one) for n, one in enumerate(records, start=1)], arguments
        )
        return
    wanted = arguments.wanted or guess_kind(source, rules)
    reading = read(source, wanted, rules)
    if arguments.on_bad_row == "drop":
        drop_leaked(reading)
    print(
        f"{source}: read as {wanted}"
        + ("" if arguments.wanted else f" (to read it as something else: --as {_others(wanted)})")
    )
    shown = _with_splits(reading, rules)
    print("\n".join(_table(reading, shown)))
    _print_rows(shown, arguments)
    with_images = _with_images(shown)
    if (reading.bad or with_images) and arguments.on_bad_row == "refuse":
        raise SystemExit(1)
    if len(with_images) == len(reading.drafts):
        raise DataError(f"{source}: no {wanted} of text in it" if with_images else f"{source}: no {wanted} in it")
    takes, key = ("takes", "preferences") if wanted == "answers" else ("take", wanted)
    print(f"\ntiebreak {STAGES[wanted]} {takes} it as --{key} {source}")


def _others(wanted: RecordKind) -> str:
    return " or ".join(name for name in FINAL_NAMES if name != wanted)


def _made_by(source: str) -> RecordKind:
    for wanted, name in reversed(FINAL_NAMES.items()):
        if (Path(source) / "final" / name).is_file():
            return wanted
    raise DataError(f"{source} is a run without prompts, demonstrations or preferences: 'tiebreak inspect' shows it")


_BY_COLUMNS: tuple[RecordKind, ...] = ("preferences", "demonstrations", "prompts")
"""The kinds, the one with the most columns first: a row that lacks some looks like a later kind."""


def guess_kind(source: str, rules: Rules = DEFAULT) -> RecordKind:
    """The kind of a source's records, from the columns of its first rows."""
    table = read_source(source, "preferences")
    if holds_trees(table):
        return "preferences"
    guesses = Counter(shapes.guess(Cells(row, rules.columns, table.of_text)) for _, row in table.rows[:100])
    return max(_BY_COLUMNS, key=lambda kind: guesses[kind]) if guesses else "prompts"


def _with_splits(reading: Reading, rules: Rules) -> list[ShownRecord]:
    """The records with their splits.

    Raises:
        DataError: a prompt is in two splits.
    """
    splits = assign([(one.where, one.prompt, one.split) for one in reading.drafts], rules.validation_share)
    return [ShownRecord(one.where, split, one.placed(split)) for one, split in zip(reading.drafts, splits, strict=True)]


def _with_images(shown: Sequence[ShownRecord]) -> list[ShownRecord]:
    return [one for one in shown if any(message.images for message in messages_of(one.record))]


def _split(record: Prompt | Demonstration | Preference | LabelledAnswer) -> Split:
    return record.prompt.split if isinstance(record, Demonstration) else record.split or "train"


# --- output -------------------------------------------------------------------------------------------------------------


def _table(reading: Reading, shown: Sequence[ShownRecord]) -> Iterator[str]:
    yield f"  rows      {reading.rows:,}"
    for shape, count in reading.shapes.most_common():
        yield f"  shape     {shape}" + ("" if len(reading.shapes) == 1 else f": {count:,}")
    yield f"  makes     {len(shown):,} {reading.wanted}, of {counted(len({_prompt_of(one) for one in shown}), 'prompt')}"
    named = any(draft.split for draft in reading.drafts)
    splits = ", ".join(f"{split} {count:,}" for split, count in sorted(Counter(one.split for one in shown).items()))
    yield f"  splits    {splits or 'none'} ({'as rows name them, the others' if named else 'held out'} by prompt)"
    for reason, count in reading.left_out.most_common():
        yield f"  left out  {count:,}: {reason}"
    if reading.ignored:
        yield f"  ignored   {reading.ignored_columns()}"
    if with_images := _with_images(shown):
        yield (
            f"  images    in {counted(len(with_images), 'row')}: refused by tiebreak {STAGES[reading.wanted]}, or "
            "dropped with on_bad_row: drop"
        )
    if reading.bad:
        yield from _faults(reading)


def _prompt_of(one: ShownRecord) -> str:
    record = one.record
    if isinstance(record, Preference | LabelledAnswer):
        return record.prompt_id or prompt_id(record.prompt, record.tools)
    return record.prompt.id if isinstance(record, Demonstration) else record.id


def _faults(reading: Reading) -> Iterator[str]:
    faults = faults_of(reading)
    yield f"  errors    {len(reading.bad):,} of {counted(reading.rows, 'row')} cannot be used"
    yield from (f"            {fault}" for fault in faults[:FAULTS_SHOWN])
    if len(faults) > FAULTS_SHOWN:
        yield f"            … and {len(faults) - FAULTS_SHOWN:,} more"
    keys = dict.fromkeys(key for fault in faults for key in re.findall(r"columns: \{[^}]*\}", fault))
    if reading.drafts:
        keys["on_bad_row: drop"] = None
    yield from (f"  key       {key}" for key in keys)


def _print_rows(shown: Sequence[ShownRecord], given: DataArguments) -> None:
    picked = shown[: given.rows]
    if not picked:
        return
    if given.policy is None:
        print("\nnot rendered: --policy MODEL shows the rows as a model is trained on them")
        return
    if not has_training_packages():
        print(f"\nnot rendered: that takes the training packages: {INSTALL}")
        return
    chat = _load_chat(given)
    print(
        f"\nas {given.policy} reads them; {'in green' if has_colours(sys.stdout) else '⟦in brackets⟧'}: trained tokens"
    )
    for one in picked:
        for part, text in _as_text(one) if _with_images([one]) else _rendered(chat, one):
            print(f"\n{one.where} ({one.split}){part}\n{text}")


def _load_chat(given: DataArguments) -> Chat:
    from tiebreak.process.settings import quiet_upstream

    quiet_upstream()
    from tiebreak.models.find import find_model
    from tiebreak.models.tokenizers import load_chat

    stated = {key: getattr(given, key) for key in ("chat_template", "template_arguments", "thinking")}
    asked = {key: value for key, value in stated.items() if key in given.model_fields_set}
    return load_chat(
        find_model(str(given.policy), trust_remote_code=given.trust_remote_code),
        ChatSettings(**asked) if asked else None,
    )


def _as_text(one: ShownRecord) -> Iterator[tuple[str, str]]:
    """A record with images, which are not rendered: its messages, each after its role."""
    lines = (f"{message.role}: {text_of([message])}" for message in messages_of(one.record))
    yield ", not rendered (has images)", "\n".join(lines)


def _rendered(chat: Chat, one: ShownRecord) -> Iterator[tuple[str, str]]:
    """(part, its text with the mask) of a record; or the template's refusal."""
    from tiebreak.chat.chat import AssistantAnswer, EncodedSequence

    def of(written: AssistantAnswer) -> EncodedSequence:
        return EncodedSequence(written.prompt + written.completion, [0] * len(written.prompt) + written.trained)

    record = one.record
    try:
        if isinstance(record, Preference):
            chosen, rejected = chat.encode_preference(record)
            yield ", chosen", _coloured(chat, of(chosen))
            yield ", rejected", _coloured(chat, of(rejected))
        elif isinstance(record, LabelledAnswer):
            yield f", label {str(record.label).lower()}", _coloured(chat, of(chat.encode_answer(record)))
        elif isinstance(record, Demonstration):
            asked = record.prompt
            conversation = (*asked.messages, *record.answers)
            for example in chat.encode_conversation(conversation, True, asked.tools, len(asked.messages)):
                yield "", _coloured(chat, example)
        else:
            ids = chat.encode_prompt(record.messages, record.tools)
            yield "", _coloured(chat, EncodedSequence(ids, [0] * len(ids)))
    except HandoffError as error:
        yield "", f"refused: {error}"


def _coloured(chat: Chat, encoded: Any) -> str:
    from tiebreak.chat.rows import coloured_mask

    text = coloured_mask(chat.tokenizer, encoded, colour=has_colours(sys.stdout))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text) - LONGEST:,} more characters)"


if __name__ == "__main__":
    main()
