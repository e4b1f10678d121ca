"""Whatever a row holds, it is used, left out or refused with a reason: no value of any column ends in a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiebreak.data.columns import OUR_COLUMNS
from tiebreak.data.pairs import read_pairs
from tiebreak.data.reading import Rules, read, read_rows
from tiebreak.data.rows import parts, preferences
from tiebreak.errors import TiebreakError
from tiebreak.records import RecordKind

COLUMNS = sorted(
    {
        *OUR_COLUMNS,
        *parts.PROMPTS,
        *parts.LATE_PROMPTS,
        *parts.ANSWERS,
        *parts.CONVERSATIONS,
        *preferences.WINNERS,
        *preferences.SIGNED_WINNERS,
        *preferences.LISTS,
        *preferences.RANKS,
        *preferences.SCORES,
        *(name for names in (*preferences.SIDES, *preferences.PAIRS) for name in names),
        *("history", "functions", "system_prompt", "images", "text", "id", "chosen_ids", "tokenizer_sha256"),
    }
)
texts = st.sampled_from(
    ["", " ", "a", "b", "1", "tie", "train", "\n\nHuman: a\n\nAssistant: b", "[1]", '[{"role": "user"}]', "\x00"]
)
keys = st.sampled_from(
    ["role", "content", "from", "value", "tool_calls", "name", "weight", "rank", "answer", "score", "text"]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(-3, 3)
    | texts
    | st.sampled_from(["user", "assistant", "gpt"])
)
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": texts | st.none()},
    optional={"tool_calls": scalars, "thinking": texts, "weight": scalars},
)
conversations = st.lists(turns, min_size=1, max_size=4)
values = (
    scalars
    | conversations
    | st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
    )
)
SHAPES = [
    ("prompt", "chosen", "rejected"),
    ("chosen", "rejected"),
    ("prompt", "completion", "label"),
    ("prompt", "response", "score"),
    ("prompt", "answers"),
    ("prompt", "generations", "ratings"),
    ("prompt", "response_a", "response_b", "winner"),
    ("context", "response1", "response2", "overall_preference"),
    ("conversation_a", "conversation_b", "winner"),
    ("messages", "tools"),
    ("conversations", "system"),
    ("instruction", "input", "output", "history"),
    ("question", "system", "answer"),
]
rows = st.one_of(
    *(
        st.tuples(
            st.fixed_dictionaries(dict.fromkeys(names, values)),
            st.dictionaries(st.sampled_from(COLUMNS), values, max_size=3),
        )
        for names in SHAPES
    )
).map(lambda parts: {**parts[1], **parts[0]})
wanted_names: list[RecordKind] = ["prompts", "demonstrations", "preferences", "answers"]


@pytest.mark.parametrize("wanted", wanted_names)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(some=st.lists(rows, min_size=1, max_size=3))
def test_every_row_is_used_or_named(tmp_path: Path, wanted: RecordKind, some: list[dict[str, Any]]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in some))
    try:
        reading = read(str(path), wanted, Rules(on_bad_row="drop"))
    except TiebreakError:
        return
    assert reading.rows == len(some)
    assert all(bad.reason for bad in reading.bad)
    assert reading.lines()


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(some=st.lists(rows, min_size=1, max_size=3))
def test_every_pair_is_used_or_named(tmp_path: Path, some: list[dict[str, Any]]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in some))
    try:
        read_pairs(str(path))
    except TiebreakError:
        return


@pytest.mark.parametrize(
    "ending", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".jsonl.zst", ".csv.xz"]
)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=60) | st.text('[]{}",:\n a1\\ud', max_size=40).map(str.encode))
def test_every_file_is_read_or_refused(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"rows{ending}"
    path.write_bytes(content)
    try:
        read_rows(str(path))
    except TiebreakError:
        return
