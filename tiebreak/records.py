"""The records that stages exchange, and how they are read from and written to disk.

Every record is a frozen pydantic model; a file of them is JSON Lines, one object a line, UTF-8. Readers take what DESIGN
names an input: a finished run folder, a `.jsonl` or `.parquet` file in TRL's columns, or `hub:NAME@SPLIT`. They check every
row and report every fault with its file and line, so that one broken line never hides the next.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tiebreak.errors import DataError, RunError

Split = Literal["train", "validation", "test"]
Kind = Literal["human", "simulated", "model", "unstated"]


class Record(BaseModel):
    """A frozen row. Unknown fields are refused: a misspelt column would otherwise be lost in silence."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


Messages = tuple[Message, ...]


def content_id(prefix: str, *parts: object) -> str:
    """A short id made from content alone: the same content has the same id on every machine."""
    canonical = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=_as_json)
    return f"{prefix}-{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"


def _as_json(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"cannot hash a {type(value).__name__}")


def prompt_id(messages: Sequence[Message]) -> str:
    """The id of a prompt: a hash of its messages."""
    return content_id("prompt", [(message.role, message.content) for message in messages])


class Prompt(Record):
    """A conversation that waits for the assistant's answer."""

    id: str
    messages: Messages
    split: Split = "train"
    source: str = ""
    tags: tuple[str, ...] = ()


class Demonstration(Record):
    """A prompt with the answer an expert gave."""

    prompt: Prompt
    completion: str


class SamplingSettings(Record):
    """How a completion was drawn."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int


class Completion(Record):
    """One answer to a prompt, drawn from `policy` (a manifest id, or the name of a model that has none)."""

    id: str
    text: str
    policy: str
    sampling: SamplingSettings | None = None
    seed: int | None = None
    finished: bool = True
    """False where the answer was cut off at `max_new_tokens`."""


class Pair(Record):
    """Two or more completions of one prompt, in no order, waiting for judgments. Carries its prompt's messages."""

    id: str
    prompt_id: str
    messages: Messages
    completions: tuple[Completion, ...]
    round: int = 0
    split: Split = "train"

    @model_validator(mode="after")
    def _distinct(self) -> Pair:
        if len(self.completions) < 2:
            raise ValueError("a pair needs two or more completions")
        if len({completion.text.strip() for completion in self.completions}) < len(self.completions):
            raise ValueError("two completions of the pair are the same: there is nothing to judge")
        if any(not completion.text.strip() for completion in self.completions):
            raise ValueError("a completion of the pair is empty")
        return self


class Judgment(Record):
    """One rater's answer about a pair, with the sides as they were shown.

    `answer` runs from −3 (left much better) through 0 (a tie) to +3 (right much better); it is None when the rater
    skipped, called both bad, or put more than two completions in order.
    """

    pair_id: str
    rater_id: str
    left: str
    right: str
    answer: int | None = Field(default=None, ge=-3, le=3)
    both_bad: bool = False
    skip: bool = False
    skip_reason: str = ""
    ranking: tuple[tuple[str, ...], ...] | None = None
    """completions from best to worst; those within a group are equal"""
    shown: tuple[str, ...] = ()
    """of a ranking: its completions in the order in which they were shown, `left` and `right` being the first two"""
    aspects: dict[str, int] = {}
    rationale: str = ""
    edited_text: str | None = None
    flags: tuple[str, ...] = ()
    guideline_version: str = ""
    seconds_active: float | None = None
    kind: Literal["human", "simulated", "model"]

    @model_validator(mode="after")
    def _answered_once(self) -> Judgment:
        if (self.answer is not None) + self.both_bad + self.skip + (self.ranking is not None) != 1:
            raise ValueError("exactly one of answer, both_bad, skip and ranking must be given")
        if self.left == self.right:
            raise ValueError("left and right are the same completion")
        if self.skip_reason and not self.skip:
            raise ValueError("skip_reason is given, and nothing was skipped")
        if self.ranking is not None and sorted(chain.from_iterable(self.ranking)) != sorted(set(self.shown)):
            raise ValueError("ranking must hold every completion that was shown, once")
        return self

    def pairwise(self) -> list[Judgment]:
        """Itself; or of K completions shown together the K(K−1)/2 judgments that it implies.

        An order tells which is better and not by how much: its answers are −1, 0 and +1. An edit is of the first one, and
        goes with the comparisons that it wins. Where all were called bad, or skipped, every two were.
        """
        if not self.shown:
            return [self]
        return [self._about(left, right) for left, right in combinations(self.shown, 2)]

    def _about(self, left: str, right: str) -> Judgment:
        """What it says about two of those that were shown."""
        said: dict[str, Any] = {"left": left, "right": right, "ranking": None, "shown": ()}
        if self.ranking is not None:
            place = {identity: n for n, group in enumerate(self.ranking) for identity in group}
            said["answer"] = (place[left] > place[right]) - (place[left] < place[right])
            if 0 not in (place[left], place[right]):
                said["edited_text"] = None
        return self.model_copy(update=said)


class Preference(Record):
    """What training learns from: TRL's `prompt`, `chosen`, `rejected`, and how far the label can be trusted."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    strength: float | None = None
    """1 (slightly better) to 3 (much better), the mean over the raters who agree; None where it was not asked."""
    margin: float | None = None
    """TRL's column, 0 or more: by how much the scores must differ. Exports give strength / 3 (Touvron et al. 2023, Table
    27, small margin)."""
    agreement: float | None = Field(default=None, ge=0, le=1)
    """Share of the votes, ties among them, that prefer `chosen`."""
    confidence: float | None = Field(default=None, ge=0, le=1)
    """Soft label: the chance that `chosen` is the better one; 0.5 for a tie that is kept."""
    raters: tuple[str, ...] | None = None
    """Pseudonymous ids of the raters behind it; None where the data does not say."""
    weight: float = Field(default=1.0, ge=0)
    adjudicated: bool = False
    """Settled by a lead, who then is the only one in `raters`."""
    kind: Kind = "unstated"
    pair_id: str | None = None
    prompt_id: str = ""
    source: str = ""
    tags: tuple[str, ...] = ()
    split: Split | None = None
    chosen_finished: bool = True
    rejected_finished: bool = True

    @field_validator("margin", "strength")
    @classmethod
    def _of_the_right_sign(cls, value: float | None) -> float | None:
        if value is not None and value < 0:
            raise ValueError(
                f"{value:g} is below 0 and says that the rejected answer is the better one: swap chosen and rejected, or "
                "mend its sign"
            )
        return value

    @field_validator("raters")
    @classmethod
    def _someone(cls, raters: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if raters is not None and not raters:
            raise ValueError("no rater stands behind this preference: drop the row, or leave the column out")
        return raters

    @model_validator(mode="after")
    def _differ(self) -> Preference:
        if not self.prompt or self.prompt[-1].role != "user" or not self.prompt[-1].content.strip():
            raise ValueError("a prompt ends with what the user says")
        if any([message.role for message in side] not in ([], ["assistant"]) for side in (self.chosen, self.rejected)):
            raise ValueError("chosen and rejected must each be one message of the assistant, after the same prompt")
        if not _text(self.chosen).strip() or not _text(self.rejected).strip():
            raise ValueError("a completion is empty")
        if _text(self.chosen).strip() == _text(self.rejected).strip():
            raise ValueError("chosen and rejected are the same text")
        return self

    @property
    def chosen_text(self) -> str:
        return _text(self.chosen)

    @property
    def rejected_text(self) -> str:
        return _text(self.rejected)


def _text(messages: Sequence[Message]) -> str:
    return "\n".join(message.content for message in messages)


def assistant(text: str) -> Messages:
    """`text` as TRL's conversational completion."""
    return (Message(role="assistant", content=text),)


# --- files ---

R = TypeVar("R", bound=BaseModel)


def write_text_atomically(path: Path, text: str) -> None:
    """Write to a temporary name, fsync, rename: a reader sees the old file or the whole new one, never a part."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: object) -> None:
    """Write one JSON document atomically."""
    write_text_atomically(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: Path, records: Iterable[BaseModel | dict[str, Any]]) -> None:
    """Write JSON Lines atomically."""
    rows = (r.model_dump(mode="json") if isinstance(r, BaseModel) else r for r in records)
    write_text_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_records(path: Path, model: type[R]) -> list[R]:
    """Read a file of our own records.

    Raises:
        DataError: with every broken line.
    """
    return _validated(_file_rows(path), model, str(path))


Row = tuple[str, dict[str, Any]]
"""Where a row stands (`file:line`), and the row."""


def read_rows(source: str, final_name: str | None = None) -> list[Row]:
    """Raw rows of a run folder's `final/{final_name}`, a `.jsonl` or `.parquet` file, or `hub:NAME@SPLIT`.

    Raises:
        DataError: the source is missing, of an unknown kind, or has lines that are not JSON objects (all listed).
        RunError: the source is a folder that no stage has finished.
    """
    if source.startswith("hub:"):
        return _hub_rows(source)
    path = Path(source)
    if path.is_dir():
        if not (path / "manifest.json").is_file():
            raise RunError(f"no finished run in {path} (it has no manifest.json): run the stage that writes it first")
        if final_name is None or not (path / "final" / final_name).is_file():
            raise RunError(f"{path} is a finished run, but holds no {final_name}: it is not an input to this stage")
        return _file_rows(path / "final" / final_name)
    if not path.is_file():
        raise DataError(f"no such file or run folder: {source}")
    return _file_rows(path)


def _file_rows(path: Path) -> list[Row]:
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    if path.suffix not in (".jsonl", ".json"):
        raise DataError(f"{path}: unknown kind of file; give a .jsonl or a .parquet file")
    rows: list[Row] = []
    faults = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line.decode("utf-8").rstrip("\r\n"))
            except UnicodeDecodeError as error:
                faults.append(f"{where}: not UTF-8 ({error.reason} at byte {error.start})")
                continue
            except json.JSONDecodeError as error:
                faults.append(f"{where}: not JSON ({error.msg} at column {error.colno})")
                continue
            if isinstance(row, dict):
                rows.append((where, row))
            else:
                faults.append(f"{where}: a {type(row).__name__}, not an object")
    if faults:
        raise DataError(f"{path}: {len(faults)} broken line(s); mend or remove them", faults)
    return rows


def _parquet_rows(path: Path) -> list[Row]:
    from pyarrow import ArrowException, parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    return [(f"{path}:row {n}", row) for n, row in enumerate(rows, start=1)]


def _hub_rows(source: str) -> list[Row]:
    name, _, split = source.removeprefix("hub:").partition("@")
    if not split:
        raise DataError(f"{source}: name the split, as in hub:trl-lib/ultrafeedback_binarized@train")
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, split=split)
    except Exception as error:
        raise DataError(
            f"cannot read {source} from the hub: {error}. Offline, give a .jsonl or .parquet file"
        ) from error
    return [(f"{source} row {n}", dict(row)) for n, row in enumerate(dataset, start=1)]


def _validated(rows: Sequence[Row], model: type[R], source: str) -> list[R]:
    records, faults = [], []
    for where, row in rows:
        try:
            records.append(model.model_validate(row))
        except ValidationError as error:
            faults += [f"{where}: {fault}" for fault in explain(error)]
    if faults:
        raise DataError(f"{source}: {len(faults)} fault(s) in its rows", faults)
    return records


def explain(error: ValidationError) -> Iterator[str]:
    """A pydantic error as short lines: `key: what is wrong`."""
    for fault in error.errors(include_url=False):
        key = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        yield f"{key}: {message}" if key else message


# --- inputs in TRL's formats ---


def to_messages(value: object, role: str = "user") -> Messages:
    """TRL's standard (a string) or conversational (a list of role and content) text as messages."""
    if isinstance(value, str):
        return (Message.model_validate({"role": role, "content": value}),)
    if not isinstance(value, Sequence) or not value:
        raise ValueError("neither a string nor a list of messages")
    return tuple(
        Message.model_validate({k: m[k] for k in ("role", "content") if k in m} if isinstance(m, dict) else m)
        for m in value
    )


def read_prompts(source: str, splits: Sequence[Split]) -> list[Prompt]:
    """Prompts of the given splits, from a *prepare* run, or raw rows with a `prompt` (or `messages`) column.

    A raw row that names no split counts for every split: the file itself is the choice then.
    """
    rows = read_rows(source, "prompts.jsonl")
    if Path(source).is_dir():
        records = _validated(rows, Prompt, source)
        return [prompt for prompt in records if prompt.split in splits]
    prompts, faults = [], []
    for where, row in rows:
        if _in_other_split(row, splits):
            continue
        try:
            prompts.append(parse_prompt(row, split=splits[0]))
        except ValueError as error:
            faults.append(f"{where}: {first_line(error)}")
    _refuse(faults, source)
    return prompts


def _in_other_split(row: dict[str, Any], splits: Sequence[Split]) -> bool:
    """Whether a row belongs to a split that is not wanted. A name that is no split's is left for the parser to refuse."""
    return row.get("split") in get_args(Split) and row["split"] not in splits


def parse_prompt(row: dict[str, Any], split: Split = "train", source: str = "") -> Prompt:
    """One raw row as a prompt. Raises ValueError with the reason if it cannot be one."""
    if "prompt" in row:
        messages = to_messages(row["prompt"])
    elif "messages" in row:
        messages = to_messages(row["messages"])
    else:
        raise ValueError("no column 'prompt' (a string, or messages with role and content)")
    if messages[-1].role != "user":
        raise ValueError(f"the last message is the {messages[-1].role}'s: a prompt ends with the user's")
    if not messages[-1].content.strip():
        raise ValueError("the prompt is empty")
    return Prompt(
        id=prompt_id(messages),
        messages=messages,
        split=row.get("split") or split,
        source=str(row.get("source") or source),
        tags=tuple(row.get("tags") or ()),
    )


def parse_demonstration(row: dict[str, Any], split: Split = "train", source: str = "") -> Demonstration:
    """One raw row in TRL's prompt-completion or `messages` format as a demonstration."""
    if "completion" in row:
        completion = to_messages(row["completion"], role="assistant")
        if [message.role for message in completion] != ["assistant"]:
            raise ValueError("the completion must be one assistant message")
        text = completion[0].content
    elif "messages" in row:
        messages = to_messages(row["messages"])
        if len(messages) < 2 or messages[-1].role != "assistant":
            raise ValueError("messages must end with the assistant's answer")
        text = messages[-1].content
        row = {**{k: v for k, v in row.items() if k != "messages"}, "prompt": messages[:-1]}
    else:
        raise ValueError("no column 'completion' or 'messages'")
    if not text.strip():
        raise ValueError("the completion is empty")
    return Demonstration(prompt=parse_prompt(row, split=split, source=source), completion=text)


def read_demonstrations(source: str, splits: Sequence[Split]) -> list[Demonstration]:
    """Demonstrations of the given splits, from a *prepare* run or raw rows in TRL's SFT formats."""
    rows = read_rows(source, "demonstrations.jsonl")
    if Path(source).is_dir():
        return [d for d in _validated(rows, Demonstration, source) if d.prompt.split in splits]
    demonstrations, faults = [], []
    for where, row in rows:
        if _in_other_split(row, splits):
            continue
        try:
            demonstrations.append(parse_demonstration(row, split=splits[0]))
        except ValueError as error:
            faults.append(f"{where}: {first_line(error)}")
    _refuse(faults, source)
    return demonstrations


def read_pairs(source: str) -> list[Pair]:
    """Pairs of a *sample* run, or a `.jsonl` file of Pair records."""
    return _validated(read_rows(source, "pairs.jsonl"), Pair, source)


def read_preferences(source: str) -> list[Preference]:
    """Preferences of a *label* run, or raw rows in TRL's explicit- or implicit-prompt preference formats.

    Raw rows may carry our further columns (`strength`, `raters`, `split`, …); other columns are left alone.
    """
    rows = read_rows(source, "preferences.jsonl")
    if Path(source).is_dir():
        return _validated(rows, Preference, source)
    preferences, faults = [], []
    for where, row in rows:
        try:
            preferences.append(_parse_preference(row))
        except ValidationError as error:
            faults += [f"{where}: {fault}" for fault in explain(error)]
        except ValueError as error:
            faults.append(f"{where}: {first_line(error)}")
    _refuse(faults, source)
    return preferences


_PREFERENCE_EXTRAS = (
    "strength margin agreement confidence raters weight adjudicated kind pair_id split chosen_finished rejected_finished"
).split()


def _parse_preference(row: dict[str, Any]) -> Preference:
    for column in ("chosen", "rejected"):
        if column not in row:
            raise ValueError(f"no column '{column}': a preference needs prompt, chosen and rejected")
    if "prompt" in row:
        prompt = to_messages(row["prompt"])
        chosen = to_messages(row["chosen"], role="assistant")
        rejected = to_messages(row["rejected"], role="assistant")
    else:
        prompt, chosen, rejected = _split_implicit_prompt(to_messages(row["chosen"]), to_messages(row["rejected"]))
    extras = {key: row[key] for key in _PREFERENCE_EXTRAS if row.get(key) is not None}
    for key, kind in (("source", str), ("tags", list)):  # of another type, they are columns of the data's own
        if isinstance(row.get(key), kind):
            extras[key] = row[key]
    return Preference(prompt=prompt, chosen=chosen, rejected=rejected, prompt_id=prompt_id(prompt), **extras)


def _split_implicit_prompt(chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
    """TRL's implicit prompt: the longest run of messages that both conversations begin with."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0 or (chosen[shared - 1].role == "assistant" and shared == 1):
        raise ValueError("no column 'prompt', and chosen and rejected share no first messages to take as one")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _refuse(faults: list[str], source: str) -> None:
    if faults:
        raise DataError(f"{source}: {len(faults)} fault(s) in its rows", faults)


def first_line(error: Exception) -> str:
    """The reason alone, without pydantic's frame."""
    if isinstance(error, ValidationError):
        return "; ".join(explain(error))
    return str(error).splitlines()[0]


def is_held_out(identity: str, share: float, seed: int = 0) -> bool:
    """Whether a prompt of data that names no splits is held out: decided by its id, so every stage decides alike."""
    digest = hashlib.sha256(f"{seed}:{identity}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def split_preferences(preferences: Sequence[Preference], share: float) -> tuple[list[Preference], list[Preference]]:
    """(train, validation), by prompt. Rows that name a split keep it; the test split's are left out of both.

    Raises:
        DataError: one prompt stands in two splits.
    """
    splits: dict[str, set[str]] = {}
    parts: dict[str, list[Preference]] = {"train": [], "validation": [], "test": []}
    for preference in preferences:
        identity = preference.prompt_id or prompt_id(preference.prompt)
        split = preference.split or ("validation" if is_held_out(identity, share) else "train")
        splits.setdefault(identity, set()).add(split)
        parts[split].append(preference)
    leaked = [identity for identity, names in splits.items() if len(names) > 1]
    if leaked:
        raise DataError(
            f"{len(leaked)} prompt(s) stand in two splits, so held-out figures would be false",
            [f"{identity}: {', '.join(sorted(splits[identity]))}" for identity in leaked],
        )
    return parts["train"], parts["validation"]
