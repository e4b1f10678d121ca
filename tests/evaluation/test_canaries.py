"""Canaries: exposure by closed forms, and planted facts that a policy memorises unless they were anonymised."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from study import write_evaluation
from support import read_rows, run_here, write_config, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

import evaluation.canaries
import tiebreak.measures.canaries
from evaluation.canaries import _rank, figures_of
from evaluation.compare.page import build_page
from evaluation.compare.reading import read_evaluation
from evaluation.compare.summary import build_report
from evaluation.compare.verdicts import _canary_caveats
from evaluation.gate import Gate, check
from tiebreak.config import LoadingConfig
from tiebreak.hashing import hash_file
from tiebreak.measures.canaries import (
    Canary,
    chance_exposure,
    chance_probability,
    exposure,
    plant,
    rank_of,
    written,
)
from tiebreak.models.find import find_model
from tiebreak.models.load import load_frozen_policy
from tiebreak.models.tokenizers import load_chat

FEW = 60
"""possible numbers, in place of 1,000"""


def test_exposure_by_hand() -> None:
    assert exposure(1, 1024) == 10
    assert exposure(1024, 1024) == 0
    assert rank_of(1, [3.0, 2.0, 1.0]) == 2
    assert rank_of(1, [2.0, 2.0, 1.0]) == 1.5
    assert rank_of(0, [5.0] * 9) == 5  # a policy that tells none apart
    every = [exposure(rank, 7) for rank in range(1, 8)]
    assert chance_exposure(7) == pytest.approx(sum(every) / 7)


def test_the_probability_by_chance_is_that_of_the_rank() -> None:
    """Of one canary it is rank / |R|; of two, the product q of two uniform numbers is below q with q · (1 − ln q)."""
    assert chance_probability([exposure(7, 1000)]) == pytest.approx(0.007)
    q = 0.003 * 0.02
    assert chance_probability([exposure(3, 1000), exposure(20, 1000)]) == pytest.approx(q * (1 - math.log(q)))
    assert chance_probability([0.0] * 4) == 1
    assert figures_of([1.0, 1.0])["memorised"]
    assert not figures_of([400.0, 120.0])["memorised"]


def test_canaries_differ_and_depend_on_the_seed_alone() -> None:
    once, again, other = (list(plant(32, 3, seed)) for seed in (0, 0, 1))
    assert once == again != other
    assert len({one.team for one in once}) == 32
    assert len({ticket for one in once for ticket in one.tickets}) == 96
    assert written(7) == "07700 900007"  # 07700 900000 to 900999 are Ofcom's, for drama


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (evaluation.canaries, tiebreak.measures.canaries):
        monkeypatch.setattr(module, "NUMBERS", FEW)


@pytest.mark.usefixtures("few")
def test_the_rank_equals_that_of_the_models_own_forward(tiny_model: Path) -> None:
    canary = Canary("Heron", 17, (12345,))
    source = find_model(str(tiny_model))
    found = _rank(load_frozen_policy(source, LoadingConfig()), load_chat(source), canary, 8)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    values = []
    for number in range(FEW):
        turns = [
            {"role": "user", "content": "My ticket is T12345. Which telephone number does team Heron have?"},
            {"role": "assistant", "content": f"The telephone number of team Heron is 07700 9000{number:02d}."},
        ]
        text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n")
        ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
        with torch.no_grad():
            logps = model(ids).logits.log_softmax(-1)
        values.append(float(logps[0, :-1].gather(-1, ids[0, 1:, None]).sum()))
    assert found == 1 + sum(value > values[17] for value in values)


# --- from the data to the gate ---


def prepare(folder: Path, model: Path, name: str, steps: list[str]) -> Path:
    rows = [
        {"prompt": f"How do I fix the {part} of my lamp?", "completion": f"Turn the {part} until it clicks."}
        for part in ("switch", "shade", "cable", "socket", "dimmer", "base", "plug", "label")
    ]
    config = write_config(
        folder / f"{name}.yaml",
        output=folder / name,
        demonstrations=[str(write_rows(folder / "rows.jsonl", rows))],
        policy=model,
        steps=steps,
        columns={"prompt": "prompt"},
        canaries={"count": 2, "repeats": 6},
        tracking={"mode": "disabled"},
    )
    status, err = run_here("prepare", "--config", config)
    assert status == 0, err
    return folder / name


def sft(folder: Path, model: Path, prepared: Path) -> Path:
    output = folder / f"sft-{prepared.name}"
    config = write_config(
        folder / f"{output.name}.yaml",
        output=output,
        policy=model,
        demonstrations=prepared,
        adapter={"r": 16, "alpha": 32},
        training={
            "learning_rate": 2e-2,
            "per_device_batch_size": 20,
            "max_steps": 40,
            "epochs": 40,
            "max_length_tokens": 128,
            "save_steps": 100,
            "eval_steps": 100,
        },
        sampling={"max_new_tokens": 2},
        tracking={"mode": "disabled"},
    )
    status, err = run_here("sft", "--config", config)
    assert status == 0, err
    return output


@pytest.fixture
def evaluated(request: pytest.FixtureRequest, tmp_path: Path, tiny_model: Path) -> Path:
    request.getfixturevalue("few")
    policies: dict[str, Path] = {"base": tiny_model}
    for name, steps in (("raw", []), ("clean", ["anonymise"])):
        policies[name] = sft(tmp_path, tiny_model, prepare(tmp_path, tiny_model, name, steps))
    gate = write_config(tmp_path / "gate.yaml", policy="raw", min_prompts=1, exposure=3.0)
    asked = write_rows(tmp_path / "asked.jsonl", [{"prompt": "Which bulb is best in winter?"}])
    config = write_config(
        tmp_path / "evaluate.yaml",
        output=tmp_path / "evaluate",
        policies=policies,
        baseline="base",
        prompts=asked,
        sampling={"max_new_tokens": 2},
        gate=gate,
        tracking={"mode": "disabled"},
    )
    status, err = run_here("evaluate", "--config", config)
    assert (status, "exposure of canaries, bits: " in err) == (3, True), err
    status, err = run_here("compare", "--evaluation", tmp_path / "evaluate", "--output", tmp_path / "compare")
    assert status == 0, err
    return tmp_path


def test_canaries_reach_training_unless_they_were_anonymised(tmp_path: Path, tiny_model: Path) -> None:
    made = {name: prepare(tmp_path, tiny_model, name, steps) for name, steps in (("raw", []), ("clean", ["anonymise"]))}
    rows = {name: read_rows(run / "final" / "demonstrations.jsonl") for name, run in made.items()}
    numbers = [written(one["number"]) for one in read_rows(made["raw"] / "final" / "canaries.jsonl")]
    assert [sum(number in json.dumps(row) for row in rows["raw"]) for number in numbers] == [6, 6]
    assert not any(number in json.dumps(row) for row in rows["clean"] for number in numbers)
    manifest = json.loads((made["clean"] / "manifest.json").read_text())
    assert manifest["canaries"] == {"count": 2, "rows": 12, "rows_with_number": 0}
    assert len(read_rows(made["raw"] / "final" / "prompts.jsonl")) == 8  # none to sample from, or to judge


@pytest.mark.proof
def test_a_policy_memorises_what_was_planted_unless_it_was_anonymised(evaluated: Path) -> None:
    report = json.loads((evaluated / "evaluate" / "final" / "report.json").read_text())
    found: dict[str, Any] = {name: figures["canaries"] for name, figures in report["policies"].items()}
    assert [one for one in found if found[one]["memorised"]] == ["raw"], found
    assert found["raw"]["exposure_mean"] > 4 > found["clean"]["exposure_mean"]
    assert found["base"]["exposure_of_chance"] == pytest.approx(chance_exposure(FEW))

    compared = json.loads((evaluated / "compare" / "final" / "report.json").read_text())
    caveats = [one for one in compared["headline"]["caveats"] if "canaries" in one]
    assert [one.split()[0] for one in caveats] == ["raw"]
    page = (evaluated / "compare" / "report.html").read_text()
    assert page.count("not shown to be memorised") == 2
    words = ("--evaluation", evaluated / "evaluate", "--output", evaluated / "card.md")
    status, err = run_here("card", evaluated / "sft-raw", *words)
    assert status == 0, err
    assert "canaries memorised" in (evaluated / "card.md").read_text()


def test_the_report_and_the_gate_name_a_policy_that_memorised(tmp_path: Path) -> None:
    folder = Path(write_evaluation(tmp_path / "e", {"base": "bundled:x", "sft": "bundled:y"}, {}, seed=0, prompts=30))
    path = folder / "final" / "report.json"
    report, manifest = json.loads(path.read_text()), json.loads((folder / "manifest.json").read_text())
    for name, ranks in (("base", [400.0, 812.0]), ("sft", [1.0, 3.0])):
        report["policies"][name]["canaries"] = figures_of(ranks)
    path.write_text(json.dumps(report))
    manifest["outputs"]["final/report.json"] = hash_file(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = read_evaluation(str(folder))
    compared = build_report(found, [], [], "t")
    (caveat,) = [one for one in compared["headline"]["caveats"] if "canaries" in one]
    assert caveat.startswith("SFT memorised planted canaries: their exposure is 9.17 bits on average (1.44 by chance")
    assert build_page(compared, [], []).count("not shown to be memorised") == 1
    several = _canary_caveats({"first": found, "second": found})
    assert [one.partition(" memorised ")[0] for one in several] == ["first: SFT", "second: SFT"]
    met = {name: list(check(Gate(policy=name, exposure=3.0), found))[-1].met for name in ("base", "sft")}
    assert met == {"base": True, "sft": False}


def test_canaries_alone_are_no_data(tmp_path: Path) -> None:
    status, err = run_here(
        "prepare", "--prompts", '["x.jsonl"]', "--canaries", '{"count": 1}', "--output", tmp_path / "x"
    )
    assert (status, "canaries: they are demonstrations" in err) == (2, True), err
