"""Preparation: what counts as one text, what is dropped and why, and splits that no prompt crosses."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import random
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import read_rows, write_rows

from sft import duplicates, store
from sft.configuration import PrepareConfig, SplitShares
from sft.duplicates import (
    Codes,
    Table,
    band_codes,
    bands_of,
    kind_code,
    minhashes,
    near_by_bands,
    near_duplicates,
    prompt_number,
    trigram_codes,
    trigrams,
)
from sft.normalising import normalise, split_words
from sft.prepare import SPLITS, assign_splits, prepare
from sft.reading import file_names, read_sources
from sft.store import Store
from tiebreak.data.reading import read_demonstrations, read_prompts
from tiebreak.errors import DataError
from tiebreak.messages import Message, content_id, prompt_id
from tiebreak.records import Prompt
from tiebreak.runs.run import read_manifest


def make_prompt(text: str) -> Prompt:
    messages = (Message(role="user", content=text),)
    return Prompt(id=prompt_id(messages), messages=messages)


def run(
    folder: Path, model: Path, prompts: Sequence[Any] = (), demonstrations: Sequence[Any] = (), **values: Any
) -> Path:
    """A finished prepare run on these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        name: [str(write_rows(folder / f"{name}.jsonl", list(rows)))]
        for name, rows in (("prompts", prompts), ("demonstrations", demonstrations))
        if rows
    }
    prepare(PrepareConfig.model_validate({"output": str(folder / "run"), "policy": str(model), **files, **values}))
    return folder / "run"


def texts(folder: Path) -> list[str]:
    return [row["messages"][-1]["content"] for row in read_rows(folder / "final" / "prompts.jsonl")]


def report_of(folder: Path) -> Any:
    return json.loads((folder / "final" / "report.json").read_text())


# --- one text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("  a \r\n b\t\r c ", "a\n b\n c"),
        ("e\u0301", "é"),
        ("e\u200b\u0301", "é"),
        ("a\u200b\ufeff\u2060b\x00\x07", "ab"),
        ("a\n\n\n", "a"),
        ("a\tb", "a\tb"),
    ],
)
def test_normalising_by_hand(raw: str, expected: str) -> None:
    assert normalise(raw) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("aé e\u0301\u200b\ufeff\r\n\t\x00 \u2028\u0307İ")))
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert once == once.strip()


def test_what_is_empty_but_for_unseen_characters_is_a_fault(tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": "fine?"}, {"prompt": "\u200b\ufeff"}])
    shown = write_rows(
        tmp_path / "d.jsonl", [{"prompt": "a?", "completion": "\u2060"}, {"prompt": "\u200b", "completion": "b"}]
    )
    config = PrepareConfig(output="x", prompts=[str(prompts)], demonstrations=[str(shown)])
    with pytest.raises(DataError) as caught:
        read_sources(config, Store(tmp_path / "work"))
    assert caught.value.faults == [
        f"{prompts}:2: the prompt is empty but for characters that cannot be seen",
        f"{shown}:1: the completion is empty but for characters that cannot be seen",
        f"{shown}:2: the prompt is empty but for characters that cannot be seen",
    ]


def test_trigrams_by_hand() -> None:
    assert trigrams("Why are the Roots, brown?") == {
        ("why", "are", "the"),
        ("are", "the", "roots"),
        ("the", "roots", "brown"),
    }
    assert trigrams("Why so?") == {("why", "so")}
    assert trigrams("?!") != trigrams("!?")


def test_scripts_without_spaces_have_a_word_a_letter() -> None:
    assert split_words("Why 葉が黄色? ph 6,5") == ["Why", "葉", "が", "黄", "色", "ph", "6", "5"]
    assert split_words("ใบไม้ für Öl") == ["ใ", "บ", "ไ", "ม", "้", "für", "Öl"]
    assert trigrams("植物的叶子") == {("植", "物", "的"), ("物", "的", "叶"), ("的", "叶", "子")}


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("What is 5 + 3?", "What is 5 * 3?", False),
        ("Is it 5 < 3 then?", "Is it 5 > 3 then?", False),
        ("Heat it to -5 degrees", "Heat it to 5 degrees", False),
        ("How do I sort in C++?", "How do I sort in C?", False),
        ("How do I sort in C#?", "How do I sort in C++?", False),
        ("What is 5 + 3?", "what is 5+3", True),
        ("- Water it. - Wait.", "* Water it. * Wait.", True),
        ("See # 1 (note) a_b#c", "See # 1 note a_b#c", True),
    ],
)
def test_operators_and_signs_need_other_answers(one: str, other: str, alike: bool) -> None:
    """Their words are the same, so that one was dropped as a copy of the other."""
    assert trigrams(one) == trigrams(other) or "C" in one
    assert (kind_code(one, ()) == kind_code(other, ())) is alike


@pytest.mark.parametrize("threshold", [0.3, 0.56, 0.7, 0.8, 1.0])
def test_near_duplicates_are_those_that_comparing_all_finds(threshold: float) -> None:
    pick = random.Random(0)
    sets = [frozenset(pick.sample(range(30), pick.choice([1, 4, 10, 20]))) for _ in range(120)]
    # pairs that overlap by exactly 14 of 25 (0.56·25 is a little more than 14 in floating point), and by 4 of 5
    sets += [frozenset(range(n, m)) for n, m in ((100, 125), (111, 125), (200, 205), (200, 204))]
    expected: dict[int, float] = {}
    for number, one in enumerate(sets):
        overlaps = [len(one & sets[k]) / len(one | sets[k]) for k in range(number) if k not in expected]
        if any(overlap >= threshold for overlap in overlaps):
            expected[number] = next(overlap for overlap in overlaps if overlap >= threshold)
    found = near_duplicates(sets, threshold).earlier
    assert {number: overlap for number, (_, overlap) in found.items()} == expected
    assert all(len(sets[n] & sets[k]) / len(sets[n] | sets[k]) == overlap for n, (k, overlap) in found.items())
    if threshold < 1:
        assert expected


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_rows_that_are_kept_are_grouped_and_compared_with_all_later_ones(threshold: float) -> None:
    """Groups by an oracle that merges every two that overlap, through any number of others."""
    sets = [frozenset(one.tolist()) for one in drawn_sets(random.Random(1))[:200]]
    kept = 120

    def near(one: int, other: int) -> bool:
        return len(sets[one] & sets[other]) / len(sets[one] | sets[other]) >= threshold

    groups = [{n} for n in range(kept)]
    for one, other in itertools.combinations(range(kept), 2):
        if near(one, other) and (first := groups[one]) is not (second := groups[other]):
            for member in second:
                first.add(member)
                groups[member] = first
    found = near_duplicates(sets, threshold, kept)
    assert found.alike == {n: min(group) for n, group in enumerate(groups) if n > min(group)}
    dropped: set[int] = set()
    for n in range(kept, len(sets)):
        earlier = next((k for k in range(n) if k not in dropped and near(n, k)), None)
        assert found.earlier.get(n, (None,))[0] == earlier
        dropped |= set() if earlier is None else {n}
    assert len(found.alike) > 10
    assert len(dropped) > 10


def test_trigrams_as_numbers_overlap_as_the_trigrams_do() -> None:
    texts = [
        "",
        "?!",
        "!?",
        "a",
        "a b",
        "b a",
        "a b c",
        "a b c a b c",
        "Why are the Roots, brown?",
        "why are the roots old",
    ]
    for one, other in itertools.product(texts, texts):
        codes, others = (set(trigram_codes(text).tolist()) for text in (one, other))
        assert len(codes & others) == len(trigrams(one) & trigrams(other))
        assert len(codes) == len(trigrams(one))


def drawn_sets(pick: random.Random) -> list[Codes]:
    """Sets of numbers, many of which overlap."""
    sets: list[Codes] = []
    for _ in range(400):
        members = set(pick.sample(range(10**6), pick.randrange(20, 60)))
        if sets and pick.random() < 0.5:
            other = pick.choice(sets).tolist()
            members = {
                *pick.sample(other, round(len(other) * pick.uniform(0.7, 1))),
                *list(members)[: pick.randrange(4)],
            }
        sets.append(np.unique(np.array([*members], dtype=np.uint64)))
    return sets


def test_minhash_finds_what_the_exact_method_finds() -> None:
    sets = drawn_sets(random.Random(0))
    kinds = np.array([n % 2 for n in range(len(sets))], dtype=np.uint64)
    expected: dict[int, tuple[int, float]] = {}
    for kind in (0, 1):
        there = np.flatnonzero(kinds == kind).tolist()
        found = near_duplicates([frozenset(sets[n].tolist()) for n in there], 0.8).earlier
        expected |= {there[one]: (there[other], overlap) for one, (other, overlap) in found.items()}
    assert len(expected) > 40
    same = np.zeros(len(sets), dtype=np.uint64)
    exact = near_duplicates([frozenset(one.tolist()) for one in sets], 0.8, 200)
    assert near_by_bands(band_codes(sets, same, *bands_of(0.8)), lambda n: sets[n], 0.8, 200) == exact
    assert near_by_bands(band_codes(sets, kinds, *bands_of(0.8)), lambda n: sets[n], 0.8).earlier == expected


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95])
def test_bands_are_as_long_as_recall_allows(threshold: float) -> None:
    bands, hashes = bands_of(threshold)
    assert bands * hashes <= 128
    assert 1 - (1 - threshold**hashes) ** bands >= 0.999
    longer = hashes + 1
    assert 1 - (1 - threshold**longer) ** (128 // longer) < 0.999


def test_minhashes_agree_as_often_as_sets_overlap() -> None:
    """The share of equal hashes estimates the Jaccard overlap (Broder 1997): standard error .044 at .5 of 128 hashes."""
    sets = [trigram_codes(" ".join(f"w{n}" for n in range(start, start + 302))) for start in (0, 100)]
    first, second = minhashes(sets)
    assert abs(float((first == second).mean()) - 200 / 400) < 4 * 0.044


# --- parts, processes and kills ---------------------------------------------------------------------------------------


def many_rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Prompts and demonstrations with duplicates of every kind, repairs, contradictions and splits."""
    text = "the lamp flickers when it is switched on in a cold room at night and nobody can tell us why that is so"
    words = text.split()
    prompts: list[dict[str, Any]] = [{"prompt": f"{' '.join(words[n % 5 :])} &amp; {n // 9}?"} for n in range(40)]
    prompts[7]["split"] = "test"
    shown = [
        {"prompt": f"Is lamp {n // 3} safe in the bath?", "completion": ["Yes.", "No,   never.", "Yes."][n % 3]}
        for n in range(30)
    ]
    return prompts, [*shown, {"prompt": prompts[3]["prompt"], "completion": "Because of <b>rust</b>.", "tags": ["a"]}]


STEPS = {"steps": ["repair", "contamination", "contradictions", "quality"], "max_near_duplicate_share": 1}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "final").iterdir())}


def test_parts_and_processes_change_no_byte(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = files_of(run(tmp_path / "whole", tiny_model, *many_rows(), **STEPS))
    assert len(read_rows(tmp_path / "whole" / "run" / "final" / "dropped.jsonl")) > 20
    monkeypatch.setattr(store, "PART_ROWS", 7)
    assert files_of(run(tmp_path / "parts", tiny_model, *many_rows(), **STEPS)) == whole
    monkeypatch.setattr(store, "MANY_ROWS", 1)
    monkeypatch.setattr(duplicates, "EXACT_ROWS", 1)  # by MinHash
    assert files_of(run(tmp_path / "processes", tiny_model, *many_rows(), **STEPS)) == whole
    assert not (tmp_path / "processes" / "run" / "work").exists()


def test_a_run_that_was_stopped_at_any_part_resumes_to_the_same_bytes(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start writes six more summaries, then stops."""
    whole = files_of(run(tmp_path / "whole", tiny_model, *many_rows(), **STEPS))
    monkeypatch.setattr(store, "PART_ROWS", 25)
    real, starts, left = store.write_json, 0, 0

    def until_none_is_left(path: Path, value: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        real(path, value)

    monkeypatch.setattr(store, "write_json", until_none_is_left)
    finished = None
    while finished is None:
        starts, left = starts + 1, 6
        with contextlib.suppress(KeyboardInterrupt):
            finished = run(tmp_path / "stopped", tiny_model, *many_rows(), **STEPS)
    assert starts > 4
    assert files_of(finished) == whole


def test_hostile_files_are_listed_together_and_leave_nothing(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiebreak.data.compression.LONGEST_LINE_BYTES", 1000)
    monkeypatch.setattr("tiebreak.data.compression.SURELY_FINE_BYTES", 10_000)
    monkeypatch.setattr(store, "PART_ROWS", 2)
    good = json.dumps({"prompt": "Why?", "completion": "So."}).encode() + b"\n"
    long = json.dumps({"prompt": "x" * 2000, "completion": "y"}).encode() + b"\n"
    files = {
        "long.jsonl": good + long + good,
        "deep.jsonl": good + b'{"prompt": ' + b"[" * 200 + b"]" * 200 + b"}\n",
        "bomb.jsonl.gz": gzip.compress(good * 100_000),
        "sheet.csv": b'prompt,completion\nWhy?,"=HYPERLINK(1)"\nWhy?,So.\n',
        "latin.jsonl": good + '{"prompt": "Käse?", "completion": "Ja."}\n'.encode("latin-1"),
        "utf16.jsonl": good.decode().encode("utf-16"),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    sources = [str(tmp_path / name) for name in files]
    settings = {"output": str(tmp_path / "run"), "policy": str(tiny_model), "demonstrations": sources}
    with pytest.raises(DataError, match=r"6 errors in the data; nothing was written") as caught:
        prepare(PrepareConfig.model_validate(settings))
    expected = {
        "long.jsonl:2": "a line of more than 64 MB",
        "deep.jsonl:2": "nested more than 100 levels deep",
        "bomb.jsonl.gz": "a decompression bomb?",
        "sheet.csv:2": "a spreadsheet's formula",
        "latin.jsonl:2": "not UTF-8",
        "utf16.jsonl": "UTF-16, not UTF-8",
    }
    for place, reason in expected.items():
        assert any(f"{tmp_path / place}: " in fault and reason in fault for fault in caught.value.faults), place
    assert not (tmp_path / "run" / "work").exists()
    # the same folder takes the data once it is whole, and drops what it may
    kept = [path for path in sources if not path.endswith((".gz", "utf16.jsonl"))]
    prepare(PrepareConfig.model_validate({**settings, "demonstrations": kept, "on_bad_row": "drop"}))
    assert len(read_rows(tmp_path / "run" / "bad_rows.jsonl")) == 4
    assert report_of(tmp_path / "run")["counts"]["dropped"] == 4  # copies of the good row


# --- what is dropped -------------------------------------------------------------------------------------------------


def test_duplicates_are_dropped_with_where_and_why(tmp_path: Path, tiny_model: Path) -> None:
    ask = "Why do the roots of my lettuce turn brown in a warm summer tank"
    prompts = [
        {"prompt": f"{ask}?"},
        {"prompt": f"  {ask}?\r\n"},  # the same once normalised
        {"prompt": f"{ask} now?"},  # 11 trigrams of 12 in common
        {"prompt": "How often should basil be fed in winter?"},  # has a demonstration
        {"prompt": "What light does mint need?"},
    ]
    shown = [
        {"prompt": "How often should basil be fed in winter?", "completion": "Feed it once a week."},
        {"prompt": "How often should basil be fed in winter?", "completion": "Halve the dose and wait."},
        {"prompt": "How often should basil be fed in winter?", "completion": "Feed it once a week."},
    ]
    folder = run(tmp_path, tiny_model, prompts, shown)
    assert texts(folder) == [f"{ask}?", "What light does mint need?", "How often should basil be fed in winter?"]
    assert [r["completion"] for r in read_rows(folder / "final" / "demonstrations.jsonl")] == [
        "Feed it once a week.",
        "Halve the dose and wait.",
    ]
    dropped = {r["where"]: r["reason"] for r in read_rows(folder / "final" / "dropped.jsonl")}
    assert set(dropped) == {"prompts.jsonl:2", "prompts.jsonl:3", "prompts.jsonl:4", "demonstrations.jsonl:3"}
    assert dropped["prompts.jsonl:2"] == "the same as prompts.jsonl:1"
    assert "near duplicate" in dropped["prompts.jsonl:3"]
    assert "(overlap 0.92)" in dropped["prompts.jsonl:3"]  # 11/12
    assert "the same prompt as demonstration" in dropped["prompts.jsonl:4"]
    counts = report_of(folder)["counts"]
    assert counts["read"] == {"prompts": 5, "demonstrations": 3}
    assert (counts["dropped"], counts["normalised"]) == (4, 1)
    assert read_manifest(folder)["counts"] == counts


def test_a_long_system_message_makes_no_copies_of_different_questions(tmp_path: Path, tiny_model: Path) -> None:
    """Of 100 words: two questions of 6 words under it share 98 trigrams of 114, and the later one was dropped."""
    system = " ".join(f"rule-{chr(97 + n % 26) * (n // 26 + 1)}" for n in range(50))
    rows = [
        {"prompt": "How do I prune my basil?", "system": system},
        {"prompt": "When should mint be cut back?", "system": system},
        {"prompt": "How do I prune my basil today?", "system": system},  # 4 trigrams of 5
        {"prompt": "How do I prune my basil?", "system": "Answer in one word."},
    ]
    assert texts(run(tmp_path, tiny_model, rows, max_near_duplicate_share=1.0, max_prompt_tokens=2000)) == [
        rows[n]["prompt"] for n in (0, 1, 3)
    ]


def test_a_threshold_of_one_drops_exact_duplicates_alone(tmp_path: Path, tiny_model: Path) -> None:
    rows = [
        {"prompt": "Why are the roots brown?"},
        {"prompt": "why are the roots brown"},
        {"prompt": "Why are the roots brown?"},
    ]
    assert len(texts(run(tmp_path / "a", tiny_model, rows, near_duplicate=1.0))) == 2
    assert len(texts(run(tmp_path / "b", tiny_model, rows, near_duplicate=0.99))) == 1


def test_what_is_too_long_is_dropped_and_counted(tmp_path: Path, tiny_model: Path) -> None:
    prompts = [{"prompt": "Short one?"}, {"prompt": "A much longer question " * 30 + "?"}]
    shown = [
        {"prompt": "What does cress need?", "completion": "Light."},
        {"prompt": "What does dill need?", "completion": "Light and then more of it, " * 10},
    ]
    folder = run(tmp_path, tiny_model, prompts, shown, max_prompt_tokens=60, max_completion_tokens=20)
    assert set(texts(folder)) == {"Short one?", "What does cress need?"}
    reasons = [r["reason"] for r in read_rows(folder / "final" / "dropped.jsonl")]
    assert any("more than max_prompt_tokens (60)" in reason for reason in reasons)
    assert report_of(folder)["dropped"] == {"too long": 2}
    with pytest.raises(DataError, match="every row is longer"):
        run(tmp_path / "all", tiny_model, prompts, max_prompt_tokens=5)


def test_lengths_are_those_of_the_models_own_template(tmp_path: Path, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    asked = ["Why?", "How cold may it get at night in the tank?"]
    folder = run(tmp_path, tiny_model, [{"prompt": p} for p in asked])
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    lengths = sorted(
        len(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": p}], add_generation_prompt=True, return_dict=False
            )
        )
        for p in asked
    )
    found = report_of(folder)["lengths"]["prompt_tokens"]
    assert (found["min"], found["max"], found["mean"]) == (lengths[0], lengths[1], sum(lengths) / 2)


# --- splits ----------------------------------------------------------------------------------------------------------


def test_nearly_equal_prompts_are_in_one_split(tmp_path: Path, tiny_model: Path) -> None:
    """Each question twice, with another end and another answer: 6 trigrams of 7, both kept. Half of them is held out. One
    of two names its split, which is the other's too."""
    crops = "basil lettuce mint tomato pepper kale chard cress dill rocket thyme sage".split()
    asked = [f"Why are the leaves of my {crop} pale" for crop in crops]
    answers = ("Add iron to the tank and wait a week.", "It gets too little light: move the lamp down.")
    rows = [{"prompt": ask + end, "completion": answers[n]} for n, end in enumerate(("?", " now?")) for ask in asked]
    rows[12]["split"] = "test"  # the later one of two
    rows[1]["split"] = "test"
    share = {"demonstrations_validation": 0.5, "validation": 0.0, "test": 0.0}
    for folder, shuffled in ((tmp_path / "a", rows), (tmp_path / "b", rows[::-1])):
        shown = read_rows(run(folder, tiny_model, (), shuffled, split=share) / "final" / "demonstrations.jsonl")
        found = {one["prompt"]["messages"][0]["content"]: one["prompt"]["split"] for one in shown}
        assert len(found) == 24
        assert all(found[f"{ask}?"] == found[f"{ask} now?"] for ask in asked)
        assert [list(found.values()).count(split) for split in SPLITS] == [10, 10, 4]


def test_prompts_that_a_third_one_connects_are_in_one_split(tmp_path: Path, tiny_model: Path) -> None:
    """Of ten trigrams, the second shares nine with the first, and the third nine with the second, but eight with the
    first. A prompt without an answer that is near to the second alone would be held out beside it."""
    middle = "do the leaves of my basil turn so very pale at"
    first, second, third = (
        f"{one} {middle} {end}" for one, end in (("Why", "noon"), ("Why", "night"), ("When", "night"))
    )
    shown = [
        {"prompt": first, "completion": "Add iron.", "split": "test"},
        {"prompt": second, "completion": "Move the lamp down by a hand."},
        {"prompt": third, "completion": "From the third week on, as a rule."},
    ]
    rows = read_rows(run(tmp_path / "a", tiny_model, (), shown) / "final" / "demonstrations.jsonl")
    assert [one["prompt"]["split"] for one in rows] == ["test"] * 3
    folder = run(tmp_path / "b", tiny_model, [{"prompt": third}, {"prompt": "How deep is it?"}], shown[:2])
    assert report_of(folder)["dropped"] == {"near duplicate of": 1}
    asked = {one["messages"][0]["content"] for one in read_rows(folder / "final" / "prompts.jsonl")}
    assert asked == {first, second, "How deep is it?"}


def compared(count: int, shown: int, seed: int = 0) -> Table:
    """As many prompts as asked for, and as many demonstrations of half as many prompts."""
    prompts = [make_prompt(f"Question {n}?") for n in range(count)]
    prompts += [make_prompt(f"Shown {n // 2}?") for n in range(shown)]
    ranks = [int(content_id("rank", seed, prompt.id)[5:], 16) for prompt in prompts]
    codes = np.array([prompt_number(prompt.id) for prompt in prompts], dtype=np.uint64)
    is_shown = np.arange(count + shown) >= count
    return Table(is_shown, codes, codes, np.array(ranks, dtype=np.uint64), {}, {}, [], np.array([0]), {})


def splits_of(table: Table, shares: SplitShares) -> dict[int, str]:
    """prompt → split; fails if one has two."""
    found: dict[int, str] = {}
    for code, split in zip(table.prompts.tolist(), every_split(table, shares), strict=True):
        assert found.setdefault(code, split) == split
    return found


def every_split(table: Table, shares: SplitShares) -> list[str]:
    return [SPLITS[n] for n in assign_splits(table, np.ones(len(table.prompts), dtype=bool), shares)]


def test_a_prompt_in_two_splits_of_two_files_is_refused_or_its_held_out_rows_are_kept(
    tmp_path: Path, tiny_model: Path
) -> None:
    prompts = [{"prompt": "Why pale?", "split": "test"}, {"prompt": "When to water?"}]
    shown = [
        {"prompt": "Why pale? ", "completion": "Iron.", "split": "train"},
        {"prompt": "What is loam?", "completion": "Soil."},
    ]
    with pytest.raises(DataError, match="in two splits"):
        run(tmp_path / "refused", tiny_model, prompts, shown)
    folder = run(tmp_path / "dropped", tiny_model, prompts, shown, on_bad_row="drop")
    kept = {row["messages"][0]["content"]: row["split"] for row in read_rows(folder / "final" / "prompts.jsonl")}
    assert kept["Why pale?"] == "test"
    assert [row["completion"] for row in read_rows(folder / "final" / "demonstrations.jsonl")] == ["Soil."]
    [bad] = read_rows(folder / "bad_rows.jsonl")
    assert bad["where"].endswith("demonstrations.jsonl:1")
    assert bad["reason"].startswith("its prompt is in the test split too (")


def test_rows_that_the_template_refuses_are_listed_together_or_dropped(tmp_path: Path, tiny_model: Path) -> None:
    """Gemma takes no system message and no two messages of one role."""
    ask = {"role": "user", "content": "Why pale?"}
    prompts = [{"prompt": [ask]}, {"prompt": [{"role": "system", "content": "Be brief."}, ask]}]
    shown = [
        {"prompt": [ask, ask], "completion": "Add iron."},
        {"prompt": "How much?", "completion": "2 ml<|im_end|>."},
    ]
    gemma = {"chat_template": "gemma"}
    with pytest.raises(DataError, match=r"3 rows cannot be rendered; nothing was written") as caught:
        run(tmp_path / "refused", tiny_model, prompts, shown, **gemma)
    assert [fault.split(":")[1] for fault in caught.value.faults] == ["2", "1", "2"]
    assert "System role not supported" in caught.value.faults[0]
    assert "two end-of-sequence tokens" in caught.value.faults[2]
    dropped = run(tmp_path / "dropped", tiny_model, prompts, shown, **gemma, on_bad_row="drop")
    assert texts(dropped) == ["Why pale?"]
    assert [row["where"] for row in read_rows(dropped / "final" / "dropped.jsonl")] == [
        "prompts.jsonl:2",
        "demonstrations.jsonl:1",
        "demonstrations.jsonl:2",
    ]


def test_a_conversation_whose_earlier_turns_the_template_rewrites_is_prepared(tmp_path: Path, tiny_model: Path) -> None:
    """Qwen3 writes a call otherwise once its answer follows: SFT learns two examples of it, and the longer one counts."""
    from tiebreak.config import ChatSettings
    from tiebreak.models.find import find_model
    from tiebreak.models.tokenizers import load_chat

    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "look", "arguments": {}}]}
    turns = [call, {"role": "tool", "content": "Yellow."}, {"role": "assistant", "content": "Add iron."}]
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    row = {"prompt": "Why pale?", "completion": turns, "tools": [tool]}
    made = run(tmp_path, tiny_model, (), [row], chat_template="qwen3")
    chat = load_chat(find_model(str(tiny_model)), ChatSettings(chat_template="qwen3"))
    (shown,) = read_demonstrations(str(made))
    conversation = (*shown.prompt.messages, *shown.answers)
    whole = chat.tokenizer.apply_chat_template(
        [
            {"role": m.role, "content": m.content, "tool_calls": [c.model_dump() for c in m.tool_calls]}
            for m in conversation
        ],
        tools=[tool],
        tokenize=True,
        return_dict=False,
    )
    asked = chat.encode_prompt(shown.prompt.messages, shown.prompt.tools)
    newline = 1  # after the answer's end, which the policy does not write
    assert report_of(made)["lengths"]["completion_tokens"]["max"] == len(whole) - newline - len(asked)


def test_the_shares_are_met_to_the_row_and_no_prompt_crosses() -> None:
    table, shares = compared(50, 40), SplitShares(validation=0.1, test=0.3)
    assert len(splits_of(table, shares)) == 70
    found = every_split(table, shares)
    assert Counter(found[:50]) == {"train": 30, "validation": 5, "test": 15}
    # 20 prompts have two demonstrations each: a tenth of the prompts is 2, so 4 demonstrations, and none is tested on
    assert Counter(found[50:]) == {"train": 36, "validation": 4}


def test_splits_depend_on_content_and_seed_and_not_on_order() -> None:
    table, shares = compared(40, 0), SplitShares()
    turned = replace(table, prompts=table.prompts[::-1], ranks=table.ranks[::-1])
    assert splits_of(turned, shares) == splits_of(table, shares)
    assert splits_of(compared(40, 0, seed=1), shares) != splits_of(table, shares)


def test_a_split_that_a_row_names_is_kept(tmp_path: Path, tiny_model: Path) -> None:
    """30 of 40 prompts are left to be shared out: 9 test, 3 validation."""
    named = ["test"] * 4 + ["validation"] * 3 + ["train"] * 3
    rows: list[dict[str, Any]] = [{"prompt": f"{n} litres: what now?", "split": split} for n, split in enumerate(named)]
    rows += [{"prompt": f"{n} plants: what now?"} for n in range(30)]
    folder = run(tmp_path, tiny_model, rows, near_duplicate=1.0)
    prompts = read_prompts(str(folder), ["train", "validation", "test"])
    found = {p.messages[0].content: p.split for p in prompts}
    assert [found[row["prompt"]] for row in rows[:10]] == named
    assert Counter(found[row["prompt"]] for row in rows[10:]) == {"train": 18, "validation": 3, "test": 9}


def test_one_prompt_in_two_named_splits_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"prompt": "Why?", "split": "train"}, {"prompt": "How?"}, {"prompt": "Why? ", "split": "test"}]
    with pytest.raises(DataError) as raised:
        run(tmp_path, tiny_model, rows)
    (fault,) = raised.value.faults
    file = tmp_path / "prompts.jsonl"
    assert fault == f"{make_prompt('Why?').id}: train at {file}:1, test at {file}:3"


def test_shares_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(ValueError, match="leave nothing to train on"):
        SplitShares(validation=0.6, test=0.4)
    with pytest.raises(ValueError, match="neither prompts nor demonstrations"):
        PrepareConfig(output="x")


def test_the_folder_is_read_back_split_by_split(tmp_path: Path, tiny_model: Path, raw_data: Path) -> None:
    config = PrepareConfig(
        output=str(tmp_path / "run"),
        prompts=[str(raw_data / "prompts.jsonl")],
        demonstrations=[str(raw_data / "demonstrations.jsonl")],
        policy=str(tiny_model),
    )
    prepare(config)
    parts = {split: read_prompts(config.output, [split]) for split in ("train", "validation", "test")}
    assert {split: len(rows) for split, rows in parts.items()} == report_of(Path(config.output))["counts"]["prompts"]
    for one, other in itertools.combinations(parts.values(), 2):
        assert not {p.id for p in one} & {p.id for p in other}
    shown = read_demonstrations(config.output)
    assert {d.prompt.id for d in shown} <= {p.id for p in parts["train"] + parts["validation"]}
    assert len(shown) == 12


def test_the_same_data_makes_the_same_run_wherever_it_lies(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"prompt": f"Question number {n % 5} about roots?"} for n in range(6)]
    first, second = (run(tmp_path / name, tiny_model, rows, near_duplicate=1.0) for name in ("a", "b"))
    assert read_manifest(first)["id"] == read_manifest(second)["id"]
    (dropped,) = read_rows(first / "final" / "dropped.jsonl")
    assert (dropped["where"], dropped["reason"]) == ("prompts.jsonl:6", "the same as prompts.jsonl:1")


def test_two_files_of_one_name_keep_their_paths_apart() -> None:
    assert file_names(["a/x.jsonl", "b/y.jsonl"]) == {"a/x.jsonl": "x.jsonl", "b/y.jsonl": "y.jsonl"}
    assert file_names(["a/x.jsonl", "b/x.jsonl"]) == {"a/x.jsonl": "a/x.jsonl", "b/x.jsonl": "b/x.jsonl"}
