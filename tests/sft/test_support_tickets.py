"""The commands of docs/data.md take the dirty tickets to reviewed, anonymous, split data."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY, read_rows, run_here

from labeling_ui.store.answers import Submission
from labeling_ui.store.store import Store
from tiebreak.data.reading import read_demonstrations
from tiebreak.data.single import read_single_answers
from tiebreak.records import Demonstration
from tiebreak.runs.run import identify_input

TICKETS = REPOSITORY / "data" / "support-tickets" / "tickets.json"
VALUES = re.compile(
    r"[a-zöäü.]+@example\.(?:org|com|net)|020 7946 \d+|030 23125 \d+|DE\d{2}[ \d]{18,}|4242[ \d]{12,}|LM-\d{6}|"
    r"hunter2-lamp|"
    r"(?:Fennel Row|Cobbler Street|Marrow Lane|Tidewell Road|Orchard Mews|Birnbaumweg|Ziegelgasse|Am Mühlteich|"
    r"Lerchenstraße|Kastanienallee)"
)
"""Invented personal data, as it was put in."""


def customers() -> list[str]:
    return (TICKETS.parent / "customers.txt").read_text(encoding="utf-8").splitlines()


def commands() -> list[list[str]]:
    """The commands of the guide."""
    guide = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"## From dirty tickets.*?```sh\n(.*?)```", guide, re.DOTALL)
    return [shlex.split(line)[1:] for line in block.splitlines()]


@pytest.mark.slow
def test_the_guides_commands_make_anonymous_split_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = TICKETS.read_text(encoding="utf-8")
    assert len(set(VALUES.findall(raw))) > 90
    assert sum(name in raw for name in customers()) > 35
    monkeypatch.chdir(tmp_path)
    *own, review = commands()
    assert len(own) == 5
    for words in own:
        status, err = run_here(*words)
        assert status == 0, (words, err)
    run = tmp_path / "runs" / "support-tickets" / "prepare"
    for file in run.rglob("*"):
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            assert not VALUES.findall(text), file
            assert not [name for name in customers() if name in text], file
    sheet = (run / "data-sheet.md").read_text()
    assert "- personal data hidden, by kind: ADDRESS " in sheet
    assert "- step anonymise: read " in sheet
    assert review[:3] == ["label", "--answers", "runs/support-tickets/prepare"]
    answers = read_single_answers("runs/support-tickets/prepare", "review")
    assert len(answers) == len(read_rows(run / "final" / "demonstrations.jsonl"))
    report = json.loads((run / "final" / "report.json").read_text())
    done = {tally["step"]: tally for tally in report["steps"]}
    assert done["language"]["dropped"] >= 4  # French, Spanish, Dutch, Italian
    assert done["contamination"]["dropped"] == 4
    assert done["contradictions"]["flagged"] >= 1
    assert report["dropped"]["the same as"] >= 6
    counts = done["balance"]["facts"]["balance"]
    assert counts["tag"]["en"] > 40
    assert counts["language"]["de"] > 40
    gaps = read_rows(run / "final" / "gaps.jsonl")
    assert len(gaps) == done["balance"]["facts"]["gaps"] > 0
    shown = read_rows(run / "final" / "demonstrations.jsonl")
    assert {one["prompt"]["split"] for one in shown} == {"train", "validation"}
    texts = json.dumps(shown, ensure_ascii=False)
    assert "Ã" not in texts
    assert "<p>" not in texts
    assert all(
        f"<{kind}_1>" in texts for kind in ("EMAIL", "PHONE", "IBAN", "CARD", "ADDRESS", "BIRTH_DATE", "ORDER", "WORD")
    )
    questions = read_rows(TICKETS.with_name("questions.jsonl"))
    tests = {row["prompt"] for row in questions if row["split"] == "test"}
    kept = [row for row in read_rows(run / "final" / "prompts.jsonl") if row["split"] == "test"]
    assert {row["messages"][0]["content"] for row in kept} == tests
    reviewed = review_in_a_store(tmp_path, str(run))
    assert [one.prompt.tags[-1] for one in reviewed].count("reviewed:edited") == 1
    assert len(reviewed) == len(answers) - 1
    assert {one.prompt.split for one in reviewed} == {"train", "validation"}


def review_in_a_store(folder: Path, run: str) -> list[Demonstration]:
    """The rows after a person edited the first, rejected the second and accepted the others."""
    store = Store.open(f"sqlite:///{folder}/labels.sqlite", create=True)
    store.require(["anonymised"])
    about: dict[str, Any] = {"source": run, "source_id": identify_input(run).id}
    store.add_pairs(read_single_answers(run, "review"), overlap=1, seed=0, **about)
    store.add_rater("r0", rater_id="r0")
    verdicts = iter(
        [{"value": "edit", "edited_text": "As a person wrote it."}, {"value": "reject", "rationale": "No."}]
    )
    given: list[str] = []
    while (assignment := store.claim("r0", given)) is not None:
        given.append(assignment.item_id)
        verdict: dict[str, Any] = next(verdicts, {"value": "accept"})
        store.submit("r0", Submission(client_id=f"r0 {len(given)}", pair_id=assignment.item_id, **verdict))
    status, err = run_here("label", "export", "--store", store.url, "--output", folder / "reviewed")
    assert status == 0, err
    return read_demonstrations(str(folder / "reviewed"))
