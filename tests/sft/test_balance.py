"""What is rare: counts by hand, topics that are planted, and the same topics in any order."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from support import read_rows, run_here, write_rows

from sft.configuration import PrepareConfig
from sft.steps.balance import Balance, gaps_of, length_of, topics_of

WORDS = {
    "pump": "pump valve hose leaking water",
    "mail": "password login account mail reset",
    "tax": "invoice tax price refund bank",
}


def planted(seed: int) -> list[tuple[str, str]]:
    """Texts of three vocabularies, in an order of the seed."""
    made = random.Random(0)
    rows = [
        (name, " ".join(made.sample(words.split(), 4)) + f" {n}") for name, words in WORDS.items() for n in range(12)
    ]
    random.Random(seed).shuffle(rows)
    return rows


def test_planted_topics_are_found_and_named_by_their_words() -> None:
    rows = planted(1)
    topics = topics_of([text for _, text in rows], 3, 0)
    by_plant = {
        name: {topic for (plant, _), topic in zip(rows, topics, strict=True) if plant == name} for name in WORDS
    }
    assert all(len(found) == 1 for found in by_plant.values())
    assert len({topic for found in by_plant.values() for topic in found}) == 3
    for name, (topic,) in by_plant.items():
        assert set(topic.split(", ")) <= set(WORDS[name].split())
    assert topics_of(["1 2", "3"], 0, 0) == ["without words"] * 2
    assert topics_of(["the same"] * 9, 4, 0) == ["same"] * 9


def test_gaps_by_hand() -> None:
    # twelve rows: tags a 8, b 3, c 1, so an even share is 4; half of it 2: c alone is rare
    tags = [["a"]] * 8 + [["b"]] * 3 + [["c"]]
    languages = [["en"], ["de"]] * 4 + [["en"]] * 3 + [["en"]]  # de: 4 of 12, en: 8; even 6
    values = {"tag": tags, "language": languages}
    found = gaps_of(values, [f"text {n}" for n in range(12)], 0.5)
    assert [(gap["kind"], gap["value"], gap["rows"], gap["wanted"]) for gap in found] == [("tag", "c", 1, 3)]
    # a in German: expected 10·4/12 = 3.3; there are none
    tags, languages = [["a"]] * 8 + [["b"]] * 4, [["en"]] * 8 + [["de"]] * 4
    found = gaps_of({"tag": tags, "language": languages}, [""] * 12, 0.5)
    assert [(gap["value"], gap["rows"], gap["even_share"]) for gap in found] == [("a, de", 0, 2.7), ("b, en", 0, 2.7)]
    assert [length_of("w " * n) for n in (1, 20, 21, 51, 151)] == [
        "up to 20 words",
        "up to 20 words",
        "21 to 50 words",
        "51 to 150 words",
        "over 150 words",
    ]


def test_a_language_that_is_not_clear_is_no_gap() -> None:
    """py3langid calls this German sentence Luxembourgish, with a probability of .38."""
    step = Balance(PrepareConfig(output="x", prompts=["p.jsonl"], steps=["balance"]))
    texts = [
        "Die Lampe brummt beim Dimmen.",
        "Kann die Lampe um 6:30 von selbst angehen?",
        "Where is my order now?",
        "ok",
    ]
    assert [step._language(text) for text in texts] == ["not clear", "de", "en", "too short"]
    # en 6 and de 1: an even share is 3.5, whatever is not clear
    languages = [["en"]] * 6 + [["de"]] + [["not clear"]] + [["too short"]] * 2
    found = gaps_of({"tag": [[]] * 10, "language": languages}, [""] * 10, 0.5)
    assert [(gap["value"], gap["rows"], gap["even_share"], gap["wanted"]) for gap in found] == [("de", 1, 3.5, 3)]


@pytest.mark.slow
def test_gaps_do_not_depend_on_the_order_of_rows_and_hold_no_personal_data(tmp_path: Path, tiny_model: Path) -> None:
    written = []
    for seed in (1, 2):
        rows = [{"prompt": text, "tags": [name]} for name, text in planted(seed)]
        rows.append({"prompt": "Where is my lamp? Write to anna.k@example.org please", "tags": ["lamp"]})
        source = write_rows(tmp_path / str(seed) / "rows.jsonl", rows)
        words = ["prepare", "--prompts", json.dumps([str(source)]), "--policy", tiny_model, "--near-duplicate", "1"]
        steps = ["--steps", "anonymise", "balance", "--output", tmp_path / f"run{seed}"]
        status, err = run_here(*words, *steps)
        assert status == 0, err
        written.append(read_rows(tmp_path / f"run{seed}" / "final" / "gaps.jsonl"))
    assert written[0] == written[1]
    assert ("tag", "lamp", 1) in [(gap["kind"], gap["value"], gap["rows"]) for gap in written[0]]
    lamp = next(gap for gap in written[0] if gap["value"] == "lamp")
    assert "anna" not in str([gap["value"] for gap in written[0]]), "an address names no topic"
    assert lamp["examples"] == ["Where is my lamp? Write to <EMAIL_1> please"]
    status, err = run_here(*words, "--steps", "balance", "anonymise", "--output", tmp_path / "turned")
    assert (status, "balance before anonymise: names could name a topic" in err) == (2, True), err


def test_long_work_shows_its_progress(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"prompt": text} for _, text in planted(1)])
    words = ["prepare", "--prompts", json.dumps([str(source)]), "--policy", tiny_model, "--near-duplicate", "1"]
    steps = ["--steps", "repair", "anonymise", "--output"]
    assert "measured" not in run_here(*words, *steps, tmp_path / "few")[1]
    monkeypatch.setattr("sft.store.MANY_ROWS", 36)
    status, err = run_here(*words, *steps, tmp_path / "many")
    assert status == 0, err
    assert all(f"{what}: 36 of 36" in err for what in ("rows, step repair", "rows, step anonymise", "rows measured"))
