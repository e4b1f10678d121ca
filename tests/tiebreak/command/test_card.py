"""`tiebreak card`: every fact is a manifest's, everything else is the same for every model."""

from __future__ import annotations

import json
import re
import shutil
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from study import finished
from support import run_here

from tiebreak.card.command import as_markdown, read_subject
from tiebreak.card.content import Fact, look_up, shown
from tiebreak.card.datasheet import QUESTIONS, data_sheet
from tiebreak.card.forms import BLANKS, FORMS
from tiebreak.card.labels import label_facts
from tiebreak.card.subject import Subject

FACT = re.compile(r"^\| (?P<name>.*?) \| (?P<value>.*) \| (?P<stage>\w+) (?P<run>\w+) \|$")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("card")
    prompts = root / "prompts.jsonl"
    prompts.write_text('{"prompt": "Why?"}\n')
    data = {"dropped": {"the same as": 4321}, "steps": {"repair": {"read": 9, "changed": 3}}, "hidden": {"EMAIL": 17}}
    counts = {"prompts": {"train": 1234}}
    prepare = finished(root / "prepare", "prepare", {"data_0": str(prompts)}, counts=counts, data=data)
    sft = finished(
        root / "sft", "sft", {"policy": "org/base", "demonstrations": prepare}, metrics={"eval_loss": 1.23456}
    )
    label = finished(root / "label", "label", {"pairs": prepare}, kinds={"human": 77}, judgments=77)
    dpo = finished(root / "dpo", "dpo", {"policy": sft, "preferences": label}, metrics={"rewards/accuracies": 0.625})
    figures = {"win_rate_vs_baseline": 0.6789, "win_rate_interval": [0.55, 0.78], "n_prompts": 64}
    slices = {"lamps": {"n_prompts": 12, "win_rate_vs_baseline": 0.5417, "win_rate_interval": [0.3125, 0.75]}}
    metrics = {
        "dpo": {**figures, "yardsticks": {"refusal": {"mean": 0.125}}, "slices": slices},
        "sft": {"n_prompts": 64},
    }
    inputs = {"prompts": prepare, "policy_sft": sft, "policy_dpo": dpo}
    finished(root / "evaluate", "evaluate", inputs, metrics=metrics)
    return root


def card_of(runs: Path, *words: str | Path, suffix: str = "md") -> str:
    file = runs / f"out.{suffix}"
    status, message = run_here("card", runs / "dpo", "--output", file, *words)
    assert status == 0, message
    return file.read_text()


def test_a_data_sheet_states_what_its_manifests_state_and_asks_the_rest(runs: Path) -> None:
    manifest = json.loads((runs / "prepare" / "manifest.json").read_text())
    status, message = run_here("card", runs / "prepare", "--form", "data_sheet")
    assert status == 0, message
    text = (runs / "prepare" / "data-sheet.md").read_text()
    subject = read_subject(str(runs / "prepare"), None, of_data=True)
    stated = [entry for part in data_sheet(subject) for entry in part.entries if isinstance(entry, Fact)]
    assert all(shown(look_up(manifest, one.key), one.key) == one.shown for one in stated)
    assert len([line for line in text.splitlines() if FACT.match(line)]) == len(stated)
    for wanted in ("1,234", "4,321", "EMAIL 17", "read 9, changed 3", "prompts.jsonl"):
        assert wanted in text, wanted
    assert all(f"- **[blank: {name}]** {question}" in text for name, question in QUESTIONS.items())
    sections = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert sections[:2] == ["Motivation", "Composition"]  # Gebru et al. 2021, in their order
    assert sections[-2:] == ["Maintenance", "Data governance (Article 10)"]
    status, message = run_here("card", runs / "dpo", "--form", "data_sheet")
    assert (status, "a data sheet is of a run that made data" in message) == (1, True), message


@pytest.mark.parametrize("form", ["hub", "annex_iv", "annex_xi", "annex_xii", "article_53"])
def test_a_card_claims_nothing_that_no_manifest_says(runs: Path, form: str) -> None:
    """Each fact is looked up by hand in the manifest that it names; all other lines are those of a model without facts."""
    text = card_of(runs, "--form", form, "--evaluation", runs / "evaluate")
    manifests = {
        json.loads(file.read_text())["id"]: json.loads(file.read_text()) for file in runs.glob("*/manifest.json")
    }
    subject = read_subject(str(runs / "dpo"), str(runs / "evaluate"))
    stated = [entry for part in FORMS[form](subject) for entry in part.entries if isinstance(entry, Fact)]
    for one in stated:
        manifest = manifests[one.run]
        metric = one.key.removeprefix("metrics/")  # whose name may have a slash
        value = (manifest.get("metrics") or {}).get(metric, look_up(manifest, one.key))
        assert value is not None, one
        assert shown(value, one.key) == one.shown
        assert manifest["stage"] == one.stage
    lines = text.splitlines()
    facts = [found for line in lines if (found := FACT.match(line))]
    whole = form in ("hub", "annex_iv", "annex_xi")
    assert len(facts) == len(stated) > (20 if whole else 5)
    everywhere = ("1,234", "org/base")
    for wanted in (*everywhere, "0.6789", "0.55 to 0.78", "human 77", "1.235", "0.625") if whole else everywhere:
        assert any(wanted in found["value"] for found in facts), wanted

    empty: dict[str, Any] = {"id": "x", "stage": "dpo", "inputs": {}, "config": {}}
    bare = as_markdown("T", FORMS[form](Subject(empty, [empty])), Subject(empty, [empty]), {}, form).splitlines()
    constant = {line for line in bare if not FACT.match(line)}
    constant |= {f"- **[blank: {name}]** {question}" for name, question in BLANKS.items()}
    constant |= {"| fact | value | run |", "| --- | --- | --- |"}
    front = lines.index("---", 1) if form == "hub" else -1
    claimed = {line for line in lines[front + 1 :] if not FACT.match(line)} - constant
    claimed = {line for line in claimed if not line.startswith("# ")}  # the title has the run folder's name
    assert claimed == set()


def test_a_card_states_who_judged_and_no_consent_or_guidelines_of_simulated_raters() -> None:
    config = {"guideline_version": "4", "consent": "I agree.", "consent_version": "7", "overlap": 3}
    people = {"kinds": {"human": 9, "simulated": 3}, "raters": {"human": 2, "simulated": 1}}
    agreement = {"human": {"share": 0.75, "interval": [0.5, 0.875], "comparisons": 4}}
    label = {"id": "x", "stage": "label", "config": config}

    def stated(**keys: Any) -> dict[str, str]:
        return {one.name: one.shown for one in label_facts({**label, **keys})}

    found = stated(**people, agreement=agreement, guideline_versions={"3": 5, "4": 4})
    assert found["raters, by kind"] == "human 2, simulated 1"
    assert found["agreement of two raters, by kind"] == "human (share 0.75, interval 0.5 to 0.875, comparisons 4)"
    assert found["judgments, by version of the guidelines"] == "version 3: 5, version 4: 4"
    assert found["version of the consent"] == "7"
    assert "version of the guidelines" not in found, "it is by judgments"
    assert not any("consent" in name or "guidelines" in name for name in stated(kinds={"simulated": 3}))
    assert "version of the consent" not in stated(kinds={"human": 9}, config={**config, "consent": ""})
    assert stated(kinds={"human": 9})["version of the guidelines"] == "4", "a manifest of an older version"


@pytest.mark.parametrize("form", ["annex_iv", "annex_xi"])
def test_class_and_size_of_a_model_are_asked_for_only_where_no_manifest_has_them(
    runs: Path, tmp_path: Path, form: str
) -> None:
    base = {"class": "LlamaForCausalLM", "parameters": 134_515_008}
    sft = finished(tmp_path / "sft", "sft", {"policy": "org/base"}, base_model=base, saved_parameters=7)
    dpo = finished(tmp_path / "dpo", "dpo", {"policy": sft}, base_model={"class": "Other"}, saved_parameters=4_884_480)
    text = as_markdown("T", FORMS[form](read_subject(dpo, None)), read_subject(dpo, None), {}, form)
    rows = [found.groups() for line in text.splitlines() if (found := FACT.match(line))]
    for name, value, stage in (
        ("class", "LlamaForCausalLM", "sft"),
        ("parameters", "134,515,008", "sft"),
        ("parameters that the run saved", "4,884,480", "dpo"),
    ):
        assert [row[1:3] for row in rows if row[0] == name] == [(value, stage)]
    assert "[blank: architecture]" not in text
    assert "[blank: architecture]" in card_of(runs, "--form", form)


def test_changes_since_the_version_before_are_those_of_its_manifests(runs: Path, tmp_path: Path) -> None:
    """Another beta, rows, and preferences of a further run; what is the same, and where the runs lie, is no change."""
    sft = str(runs / "sft")
    other = tmp_path / "others.jsonl"
    other.write_text('{"prompt": "How?"}\n')
    before = finished(tmp_path / "dpo-1", "dpo", {"policy": sft, "preferences": str(other)}, keys={"beta": 0.1})
    label = finished(tmp_path / "label", "label", {"pairs": str(runs / "prepare")}, kinds={"human": 5})
    now = finished(
        tmp_path / "dpo-2", "dpo", {"policy": sft, "preferences": label}, keys={"beta": 0.3}, counts={"train": 9}
    )
    ids = {name: json.loads((Path(name) / "manifest.json").read_text())["id"][:10] for name in (before, now, label)}
    status, message = run_here("card", now, "--previous", before, "--output", tmp_path / "card.md")
    assert status == 0, message
    lines = (tmp_path / "card.md").read_text().splitlines()
    first = lines.index("| changed | before | now | run before | run now |")
    rows = list(takewhile(lambda line: line.startswith("| "), lines[first + 2 :]))
    both = f"dpo {ids[before]} | dpo {ids[now]}"
    made = json.loads((Path(label) / "manifest.json").read_text())["id"]
    assert rows == [
        f"| label: run | – | {made} | – | label {ids[label]} |",
        f"| dpo: beta | 0.1 | 0.3 | {both} |",
        f"| dpo: rows | – | train 9 | – | dpo {ids[now]} |",
    ]
    for words, expected in (
        ([now, "--previous", now], "is the run that the card is about"),
        ([now, "--previous", label], "is a run of label, which makes data, not policy"),
        ([now, "--previous", tmp_path / "none"], "no finished run in"),
    ):
        status, message = run_here("card", *words)
        assert status == 1
        assert expected in message, message


def test_answers_fill_blanks_and_are_marked_as_the_providers(runs: Path) -> None:
    answers = runs / "answers.yaml"
    answers.write_text("licence: Apache-2.0, as the base's *\n")
    text = card_of(runs, "--answers", answers)
    assert "Apache-2.0, as the base's \\* *(stated by the provider)*" in text
    assert "[blank: licence]" not in text
    assert "base_model: org/base" in text
    assert "[blank: evaluation]" in text  # none was named
    answers.write_text("license: MIT\n")
    status, message = run_here("card", runs / "dpo", "--answers", answers)
    assert (status, "no blank license; there are provider" in message) == (2, True)


def test_the_page_needs_no_network_and_shows_text_as_text(runs: Path) -> None:
    text = card_of(runs, "--format", "html", "--form", "annex_iv", suffix="html")
    assert "default-src &#x27;none&#x27;" in text
    assert "9. Monitoring after release" in text
    assert "1,234" in text
    assert "<h3>2 (b) Design and its reasons</h3><ul>" in text
    assert text.count("2 (b) Design") == 1, "links lead to whole parts"


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_a_pdf_is_printed(runs: Path) -> None:
    file = runs / "out.pdf"
    status, message = run_here("card", runs / "dpo", "--format", "pdf", "--output", file)
    assert status == 0, message
    assert file.read_bytes().startswith(b"%PDF")


def test_a_browser_that_never_ends_is_an_error_with_a_next_step(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = tmp_path / "chromium"
    browser.write_text("#!/bin/sh\nexec sleep 60\n")
    browser.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("tiebreak.card.command.PRINT_SECONDS", 0.2)
    status, message = run_here("card", runs / "dpo", "--format", "pdf", "--output", tmp_path / "out.pdf")
    assert (status != 0, "use --format html and print it" in message) == (True, True), message


def test_what_has_no_card_is_refused(runs: Path) -> None:
    for words, expected in (
        ([], "card takes one run"),
        ([runs / "prepare"], "makes no model: name one of sft"),
        ([runs / "sft", "--evaluation", runs / "dpo"], "is a run of dpo, not of evaluate"),
        ([runs / "nothing"], "no finished run in"),
    ):
        status, message = run_here("card", *words)
        assert status in (1, 2)
        assert expected in message
