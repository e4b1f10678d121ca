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


def _absent(value: object) -> bool:
    """Absent fields are not written, so files and ids of data without them stay as they were."""
    return value is None or value == ()


class FunctionCall(Record):
    """The function that an assistant calls."""

    name: str = Field(min_length=1)
    arguments: dict[str, Any] = {}

    def __hash__(self) -> int:
        return hash(content_id("call", self.name, self.arguments))

    @field_validator("arguments", mode="before")
    @classmethod
    def _as_mapping(cls, value: object) -> object:
        """OpenAI writes them as a JSON string."""
        if value is None or value == "":
            return {}
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__}, not a JSON object")
        return value


class ToolCall(Record):
    """One call of a tool, in OpenAI's form. `{name, arguments}` alone is read as well."""

    id: str | None = Field(default=None, exclude_if=_absent)
    type: Literal["function"] = "function"
    function: FunctionCall

    @model_validator(mode="before")
    @classmethod
    def _wrapped(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        value = {key: part for key, part in value.items() if part is not None}
        if "function" in value or "name" not in value:
            return value
        flat = {key: value.pop(key) for key in ("name", "arguments") if key in value}
        return {**value, "function": flat}


class Message(Record):
    """One turn of a conversation, in OpenAI's form."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = Field(default=(), exclude_if=_absent)
    """what the assistant calls"""
    tool_call_id: str | None = Field(default=None, exclude_if=_absent)
    """of a tool's result: the call that it answers"""
    name: str | None = Field(default=None, exclude_if=_absent)
    """who speaks, or which tool"""
    reasoning_content: str | None = Field(default=None, exclude_if=_absent)
    """what the assistant thinks before it answers; also read from `thinking`"""
    weight: Literal[0, 1] | None = Field(default=None, exclude_if=_absent)
    """0: the assistant's turn is context and is not trained on"""

    @model_validator(mode="before")
    @classmethod
    def _understood(cls, value: object) -> object:
        """One form of what OpenAI, TRL and Arrow write: no null keys, `thinking` by its other name, text alone as a string.

        A key that plays no part is refused by name: what is dropped in silence is trained on wrongly.
        """
        if not isinstance(value, dict):
            return value
        message = {key: part for key, part in value.items() if part is not None}
        if isinstance(message.get("tool_calls"), str):
            message["tool_calls"] = _parse_json(message["tool_calls"], "tool_calls")
        thought = message.pop("thinking", "")
        if thought and message.setdefault("reasoning_content", thought) != thought:
            raise ValueError("thinking and reasoning_content differ: keep one of them")
        for key in ("tool_calls", "reasoning_content"):
            if key in message and not message[key]:
                del message[key]
        if unknown := sorted(message.keys() - cls.model_fields.keys()):
            raise ValueError(
                f"unknown message key {', '.join(map(repr, unknown))}; a message has {', '.join(cls.model_fields)}: "
                "rename or remove it"
            )
        if isinstance(message.get("content"), Sequence) and not isinstance(message["content"], str):
            message["content"] = _text_of_parts(message["content"])
        elif "content" not in message and message.get("tool_calls"):
            message["content"] = ""
        elif "content" not in message and "content" in value:
            raise ValueError("content is null: only a message with tool_calls may have none")
        return message

    @model_validator(mode="after")
    def _belongs_to_its_role(self) -> Message:
        for key in ("tool_calls", "reasoning_content", "weight"):
            if not _absent(getattr(self, key)) and self.role != "assistant":
                raise ValueError(f"{key} on the message of the {self.role}: only an assistant's message has it")
        if self.tool_call_id is not None and self.role != "tool":
            raise ValueError(f"tool_call_id on the message of the {self.role}: only a tool's message has it")
        return self

    @property
    def is_empty(self) -> bool:
        """Whether it neither says nor calls anything."""
        return not self.content.strip() and not self.tool_calls

    @property
    def is_plain(self) -> bool:
        """Whether it has a role and text alone."""
        return all(_absent(getattr(self, key)) for key in type(self).model_fields if key not in ("role", "content"))


def _parse_json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what}: not JSON ({error.msg} at column {error.colno})") from None


def _text_of_parts(parts: Sequence[object]) -> str:
    """The text of a list of parts. Chat templates write them one after another with nothing in between."""
    texts: list[str] = []
    for number, part in enumerate(parts):
        if isinstance(part, dict):
            part = {key: value for key, value in part.items() if value is not None}
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and part.keys() == {"type", "text"} and isinstance(part["text"], str):
            texts.append(part["text"])
        else:
            kind = part.get("type", "untyped") if isinstance(part, dict) else type(part).__name__
            raise ValueError(
                f"content[{number}] is a part of type {kind!r}: only text can be trained on; remove the row or the part"
            )
    return "".join(texts)


Messages = tuple[Message, ...]
Tools = tuple[dict[str, Any], ...]
"""JSON schemas of the functions that the assistant may call, each `{type: function, function: {…}}`."""


def content_id(prefix: str, *parts: object) -> str:
    """A short id made from content alone: the same content has the same id on every machine."""
    canonical = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=_as_json)
    return f"{prefix}-{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"


def _as_json(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"cannot hash a {type(value).__name__}")


def prompt_id(messages: Sequence[Message], tools: Tools = ()) -> str:
    """The id of a prompt: a hash of its messages, and of the tools that it offers.

    `weight` is no part of it: it changes what is trained on, and not what is asked.
    """
    said = [(message.role, message.content, *_further_fields(message)) for message in messages]
    return content_id("prompt", said, tools) if tools else content_id("prompt", said)


def _further_fields(message: Message) -> list[object]:
    further = message.model_dump(mode="json", exclude={"role", "content", "weight"})
    return [further] if further else []


class Prompt(Record):
    """A conversation that waits for the assistant's answer."""

    id: str
    messages: Messages
    split: Split = "train"
    source: str = ""
    tags: tuple[str, ...] = ()
    tools: Tools = Field(default=(), exclude_if=_absent)


class Demonstration(Record):
    """A prompt with the answer an expert gave."""

    prompt: Prompt
    completion: str | Messages
    """the answer's text; messages where it is more: tool calls, thoughts, or several turns of assistant and tools"""

    @model_validator(mode="after")
    def _answered(self) -> Demonstration:
        if isinstance(self.completion, tuple):
            check_side(self.completion, "the completion")
        return self

    @property
    def answers(self) -> Messages:
        """All messages after the prompt: the assistant's and, between them, its tools'."""
        return assistant(self.completion) if isinstance(self.completion, str) else self.completion

    @property
    def answer(self) -> Message:
        """The last message."""
        return self.answers[-1]

    @property
    def text(self) -> str:
        """What the answer says and calls, for people and for comparison."""
        return text_of(self.answers)


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
    policy: str = "unknown"
    sampling: SamplingSettings | None = None
    seed: int | None = None
    finished: bool = True
    """False where the answer was cut off at `max_new_tokens`."""
    ids: tuple[int, ...] | None = Field(default=None, exclude_if=_absent)
    """the token ids as they were drawn, an end of turn included"""
    tokenizer_sha256: str | None = Field(default=None, exclude_if=_absent)
    """the tokenizer of `ids`"""


class Pair(Record):
    """Two or more completions of one prompt, in no order, waiting for judgments. Carries its prompt's messages."""

    id: str
    prompt_id: str
    messages: Messages
    completions: tuple[Completion, ...]
    round: int = 0
    split: Split = "train"
    tools: Tools = Field(default=(), exclude_if=_absent)

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
    tools: Tools = Field(default=(), exclude_if=_absent)
    chosen_ids: tuple[int, ...] | None = Field(default=None, exclude_if=_absent)
    """the chosen answer's token ids as its policy drew them, an end of turn included"""
    rejected_ids: tuple[int, ...] | None = Field(default=None, exclude_if=_absent)
    tokenizer_sha256: str | None = Field(default=None, exclude_if=_absent)
    """the tokenizer of `chosen_ids` and `rejected_ids`"""

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
        check_prompt(self.prompt)
        check_side(self.chosen, "chosen")
        check_side(self.rejected, "rejected")
        if [_compared(m) for m in self.chosen] == [_compared(m) for m in self.rejected]:
            raise ValueError("chosen and rejected are the same")
        return self

    @property
    def chosen_text(self) -> str:
        return text_of(self.chosen)

    @property
    def rejected_text(self) -> str:
        return text_of(self.rejected)


def check_prompt(messages: Messages) -> None:
    """Raises ValueError where the assistant has nothing to answer."""
    if not messages:
        raise ValueError("the prompt is empty")
    if messages[-1].role not in ("user", "tool"):
        raise ValueError(f"the last message is the {messages[-1].role}'s: a prompt ends with the user's or a tool's")
    if messages[-1].role == "user" and not messages[-1].content.strip():
        raise ValueError("the prompt is empty")


def check_side(messages: Messages, name: str) -> None:
    """Raises ValueError where messages are no answer: what the assistant writes, with its tools' results in between."""
    roles = [message.role for message in messages]
    if not messages or all(message.is_empty for message in messages):
        raise ValueError(f"{name} is empty")
    if other := sorted({*roles} - {"assistant", "tool"}):
        raise ValueError(f"{name} holds a message of the {other[0]}: an answer is the assistant's and its tools' alone")
    if roles[0] != "assistant" or roles[-1] != "assistant":
        raise ValueError(f"{name} must begin and end with a message of the assistant")
    if messages[-1].is_empty:
        raise ValueError(f"{name} ends with an empty message")


def _compared(message: Message) -> Message:
    return message.model_copy(update={"content": message.content.strip(), "weight": None})


def text_of(messages: Sequence[Message]) -> str:
    """What messages say and call, for people and for comparison."""
    return "\n".join(part for message in messages for part in _parts_of(message))


def _parts_of(message: Message) -> list[str]:
    calls = [json.dumps(call.function.model_dump(), ensure_ascii=False) for call in message.tool_calls]
    return [message.content, *calls] if message.content or not calls else calls


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
    return tuple(Message.model_validate(message) for message in value)


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
    check_prompt(messages)
    tools = parse_tools(row.get("tools"))
    return Prompt(
        id=prompt_id(messages, tools),
        messages=messages,
        split=row.get("split") or split,
        source=str(row.get("source") or source),
        tags=tuple(row.get("tags") or ()),
        tools=tools,
    )


def parse_tools(value: object) -> Tools:
    """A row's `tools`: a list of JSON schemas, or its JSON text. A bare `{name, parameters}` is wrapped as OpenAI does."""
    if isinstance(value, str) and value.strip():
        value = _parse_json(value, "tools")
    if not value:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"tools: a {type(value).__name__}, not a list of JSON schemas")
    tools = [_parse_json(tool, "tools") if isinstance(tool, str) else tool for tool in value]
    return tuple(_wrap_tool(tool) for tool in tools)


def _wrap_tool(tool: object) -> dict[str, Any]:
    inner = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise ValueError("tools: each is a JSON schema with a name: {type: function, function: {name, parameters}}")
    return tool if "function" in tool else {"type": "function", "function": tool}


def parse_demonstration(row: dict[str, Any], split: Split = "train", source: str = "") -> Demonstration:
    """One raw row in TRL's prompt-completion or `messages` format as a demonstration."""
    if "completion" in row:
        completion = to_messages(row["completion"], role="assistant")
    elif "messages" in row:
        messages = to_messages(row["messages"])
        if len(messages) < 2 or messages[-1].role != "assistant":
            raise ValueError("messages must end with the assistant's answer")
        completion = messages[-1:]
        row = {**{k: v for k, v in row.items() if k != "messages"}, "prompt": messages[:-1]}
    else:
        raise ValueError("no column 'completion' or 'messages'")
    check_side(completion, "the completion")
    plain = len(completion) == 1 and completion[0].is_plain
    return Demonstration(
        prompt=parse_prompt(row, split=split, source=source),
        completion=completion[0].content if plain else completion,
    )


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
    "strength margin agreement confidence raters weight adjudicated kind pair_id split chosen_finished rejected_finished "
    "chosen_ids rejected_ids tokenizer_sha256"
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
    tools = parse_tools(row.get("tools"))
    identity = prompt_id(prompt, tools)
    return Preference(prompt=prompt, chosen=chosen, rejected=rejected, prompt_id=identity, tools=tools, **extras)


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
        identity = preference.prompt_id or prompt_id(preference.prompt, preference.tools)
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
