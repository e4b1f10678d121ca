"""Synthetic rows through the labelling app: synthesised, reviewed by a person, and learned by SFT as edited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from label_support import open_store
from support import TINY_TRAINING, read_rows, run_here, write_config, write_rows
from test_label_single import export_of, make_single

from labeling_ui import label
from labeling_ui.exchange.importing import import_records
from labeling_ui.store.answers import Submission
from tiebreak.assessments import Assessment
from tiebreak.data.reading import read_demonstrations, read_records
from tiebreak.data.single import read_single_answers
from tiebreak.records import Demonstration
from tiebreak.runs.run import read_manifest

PROMPTS = (
    "How do I clean the shade?",
    "Which bulb fits the socket?",
    "Why does the lamp hum loudly?",
    "May I return it later?",
)


def test_synthesised_rows_are_reviewed_and_learned_as_edited(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": text, "completion": f"Answer {n}.", "split": "train"} for n, text in enumerate(PROMPTS)]
    real, made = write_rows(tmp_path / "real.jsonl", rows), tmp_path / "made"
    words = ["--demonstrations", json.dumps([str(real)]), "--methods", '{"typos": 12}', "--tracking.mode", "disabled"]
    assert run_here("synthesise", "--output", made, *words)[0] == 0
    answers = read_single_answers(str(made), "review")
    assert len(answers) == len(read_rows(made / "final" / "answers.jsonl")) >= 3
    assert all("synthetic" in one.tags and one.origin["method"] == "typos" for one in answers)

    store = open_store(f"sqlite:///{tmp_path / 'label.db'}", list(answers), overlap=1, raters=1)
    given = []
    while (assignment := store.claim("r0", given)) is not None:
        given.append(assignment.item_id)
        verdicts = ({"value": "accept"}, {"value": "edit", "edited_text": "As a person wrote it."})
        verdict = verdicts[len(given) - 1] if len(given) <= 2 else {"value": "reject", "rationale": "Wrong."}
        store.submit("r0", Submission(client_id=f"r0 {len(given)}", pair_id=assignment.item_id, **verdict))
    assert len(given) == len(answers)
    label.main(["export", "--store", store.url, "--output", str(tmp_path / "reviewed")])
    (following,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("next: ")]
    assert following.startswith(f"next: tiebreak sft --demonstrations {tmp_path / 'reviewed'} ")

    shown = read_demonstrations(str(tmp_path / "reviewed"))
    assert sorted(one.prompt.tags[-1] for one in shown) == ["reviewed:accepted", "reviewed:edited"]
    assert [one.text for one in shown if one.prompt.tags[-1] == "reviewed:edited"] == ["As a person wrote it."]
    assert read_manifest(tmp_path / "reviewed")["synthetic"] == {"rows": 2, "of": 2, "reviewed": 2}
    config = write_config(
        tmp_path / "sft.yaml",
        output=tmp_path / "sft",
        policy=tiny_model,
        demonstrations=tmp_path / "reviewed",
        training={**TINY_TRAINING, "max_steps": 1},
        tracking={"mode": "disabled"},
    )
    status, err = run_here("sft", "--config", config)
    assert status == 0, err
    assert read_manifest(tmp_path / "sft")["synthetic"] == {"rows": 2, "of": 2, "reviewed": 2}


def test_a_programs_review_is_no_review(url: str, tmp_path: Path) -> None:
    """Two answers that a model's judge accepted, one of them also a person."""
    answers = [make_single(n, "review", f"text {n}", tags=("synthetic", "reviewed:none")) for n in range(2)]
    store = open_store(url, list(answers), overlap=1, raters=1)
    about = {"rater_id": "judge", "kind": "model", "task": "review", "value": "accept"}
    verdicts = [
        Assessment.model_validate(
            {**about, "pair_id": f"answer-{n}", "left": f"{n}-only", "judge": {"model": "m", "answers": (1, 1)}}
        )
        for n in range(2)
    ]
    assert import_records(store, [], verdicts, source="judged", source_id="j").judgments == 2
    given = store.claim("r0")
    assert given is not None
    store.submit("r0", Submission(client_id="r0", pair_id=given.item_id, value="accept"))
    shown = read_records(export_of(store, tmp_path / "out") / "demonstrations.jsonl", Demonstration)
    tags = {one.prompt.tags for one in shown}
    assert tags == {("synthetic", "reviewed:none"), ("synthetic", "reviewed:accepted")}
    assert sum(one.prompt.tags[-1] == "reviewed:accepted" for one in shown) == 1
    assert read_manifest(tmp_path / "out")["synthetic"] == {"rows": 2, "of": 2, "reviewed": 1}
