"""Synthetic rows: rules by hand, an endpoint that fails in every way, and nothing unreviewed in training."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import REPOSITORY, TINY_TRAINING, read_rows, run_here, run_of, write_config, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft.synthesis.configuration import SynthesiseConfig
from sft.synthesis.methods import Draft, Material, draft_rows, missing_step, platitude, with_typos, wrong_number
from sft.synthesis.synthesise import Screen, diversity, read_material
from sft.synthesis.writers import ModelWriter
from tiebreak.data.reading import Rules, read_demonstrations, read_preferences, read_prompts
from tiebreak.data.single import read_single_answers
from tiebreak.errors import DataError, HandoffError
from tiebreak.messages import Message
from tiebreak.records import Prompt
from tiebreak.runs.run import read_manifest

sys.path.append(str(REPOSITORY / "tests" / "evaluation"))
from api_stand_in import Api, serving

REAL = [
    {
        "prompt": f"How do I fix the {thing} of lamp {n}?",
        "completion": f"Turn the {thing} by {n} degrees. Then wait 5 minutes.",
    }
    for n, thing in enumerate(("switch", "shade", "cable", "socket", "dimmer", "base"), start=1)
]
TEST = {
    "prompt": "Which bulb is best for a reading corner in winter?",
    "completion": "A warm one of about eight hundred lumens, with a shade that spreads its light.",
    "split": "test",
}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-this-test")
    with serving() as found:
        yield found


@pytest.fixture
def real(tmp_path: Path) -> list[str | Path]:
    rows = write_rows(tmp_path / "real.jsonl", [{**row, "split": "train"} for row in REAL])
    tests = write_rows(tmp_path / "tests.jsonl", [TEST])
    return ["--demonstrations", json.dumps([str(rows)]), "--against", json.dumps([str(tests)])]


def synthesise(output: Path, *words: str | Path, **methods: int) -> tuple[int, str]:
    asked = json.dumps({name.replace("_", "-"): rows for name, rows in methods.items()})
    return run_here("synthesise", "--output", output, "--methods", asked, *words, "--tracking.mode", "disabled")


def by_endpoint(api: Api) -> list[str]:
    return ["--endpoint.url", api.url, "--endpoint.model", "m", "--asking.parallel", "1"]


def writes(prompt: str) -> str:
    """An obedient writer: a new request for what asks for one, an answer otherwise."""
    number = sum(map(ord, prompt)) % 9973
    if "Reply with the request alone" in prompt:
        return f'Request: "Where can {number} people buy part {number * 7} near town {number * 3}?"'
    return f"Buy {number} of them online. They arrive in {number % 9 + 1} days."


# --- rules -------------------------------------------------------------------------------------------------------------


def test_corruptions_by_hand() -> None:
    chance = Random(0)
    for _ in range(50):
        text = wrong_number("Add 5 ml to 10 litres.", chance)
        assert (text.startswith("Add 5 ml to ")) != (text.endswith(" ml to 10 litres."))
    assert wrong_number("No digits here.", chance) == ""
    assert wrong_number("It is 1,5 m.", Random(1)).endswith(",5 m.")
    steps = {missing_step("One. Two! Three?", Random(seed)) for seed in range(30)}
    assert steps == {"Two! Three?", "One. Three?", "One. Two!"}
    assert missing_step("Only one.", chance) == ""
    assert platitude("Das ist der Weg und nicht die Wand.", chance).startswith("Das ist eine gute Frage")
    typed = {with_typos("Please replace the broken lampshade", Random(seed)) for seed in range(30)}
    assert len(typed) > 10
    assert all(
        sum(a != b for a, b in zip(text.split(), "Please replace the broken lampshade".split(), strict=True)) <= 1
        for text in typed
    )
    assert diversity(["a b c", "a b d"]) == {"prompts": 2, "distinct_2": 0.75, "words_median": 3}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"prompt": "Is {lamp} {colour}?", "values": {"lamp": ["Arc"]}}, "{colour} has no values"),
        ({"prompt": "Is {lamp} on?", "values": {"lamp": ["Arc"], "room": ["hall"]}}, "values: {room} is neither in"),
        ({"prompt": "Is it on?", "answer": "Yes."}, "a template has prompt, completion and values"),
        ({"prompt": "Is it on?", "completion": 1}, "a template has prompt, completion and values"),
        ({"prompt": r"Simplify \frac{a}{b} for {n}.", "completion": "$x_{n}$", "values": {"n": [1, 2]}}, ""),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(tmp_path: Path, template: Any, message: str) -> None:
    file = write_rows(tmp_path / "templates.jsonl", [template])
    status, err = synthesise(tmp_path / "made", "--templates", file, templates=4)
    assert (status != 0, message in err) == (bool(message), True), err
    if not message:
        made = [row["prompt"][0]["content"] for row in read_rows(tmp_path / "made" / "final" / "answers.jsonl")]
        assert made[:1] == [r"Simplify \frac{a}{b} for 1."]


def test_fewer_rows_than_templates_make_are_a_sample_of_them(tmp_path: Path) -> None:
    """20 of 2 × 100 rows: the first 20 would be of the first template alone."""
    numbers = [str(n) for n in range(100)]
    rows = [{"prompt": f"{word} {{n}}?", "values": {"n": numbers}} for word in ("Lamp", "Shade")]
    file = write_rows(tmp_path / "templates.jsonl", rows)

    def drafts(seed: int) -> list[str]:
        config = SynthesiseConfig(output="x", methods={"templates": 20}, templates=str(file), seed=seed)
        return [one.prompt for one in draft_rows(config, Material(templates=rows))]

    made = drafts(0)
    assert len(set(made)) == 20
    assert {one.split()[0] for one in made} == {"Lamp", "Shade"}
    assert drafts(0) == made != drafts(1)


def test_rules_leave_tags_as_they_are() -> None:
    """`anonymise` put them there: <ORDER_4> in place of <ORDER_1> is no wrong number, and <EMIAL> no typing error."""
    for seed in range(40):
        wrong = wrong_number("Send <ORDER_1> and <EMAIL_3f9a12> within 5 days.", Random(seed))
        assert wrong.startswith("Send <ORDER_1> and <EMAIL_3f9a12> within ")
        assert "within 5 days" not in wrong
        assert "<EMAIL>" in with_typos("Write <EMAIL> about lamps <PERSON_1>", Random(seed))
    assert wrong_number("Send <ORDER_1>.", Random(0)) == ""


def test_no_pair_is_made_twice(tmp_path: Path) -> None:
    """Of one answer with two sentences and no number, rules make three worse ones: without either, and a platitude."""
    row = {"prompt": "Why does it hum?", "completion": "The dimmer is too old. Replace it.", "split": "train"}
    rows = write_rows(tmp_path / "real.jsonl", [row])
    status, err = synthesise(tmp_path / "made", "--demonstrations", json.dumps([str(rows)]), corruption=20)
    assert status == 0, err
    pairs = read_rows(tmp_path / "made" / "final" / "pairs.jsonl")
    assert len(pairs) == len({pair["id"] for pair in pairs}) == 3
    reasons = {one["reason"] for one in read_rows(tmp_path / "made" / "final" / "dropped.jsonl")}
    assert reasons == {"the same as an earlier synthetic pair"}


def test_rules_alone_make_rows_with_their_provenance(tmp_path: Path, real: list[str | Path]) -> None:
    templates = write_rows(
        tmp_path / "templates.jsonl",
        [
            {
                "prompt": "Does the {lamp} work in {place}?",
                "completion": "The {lamp} does.",
                "values": {"lamp": ["Arc", "Line"], "place": ["Oslo", "rain"]},
            }
        ],
    )
    output = tmp_path / "made"
    status, err = synthesise(output, *real, "--templates", templates, typos=4, templates=9, corruption=6)
    assert status == 0, err
    answers = read_rows(output / "final" / "answers.jsonl")
    filled = [row["prompt"][0]["content"] for row in answers if row["method"] == "templates"]
    assert filled == [f"Does the {lamp} work in {place}?" for lamp in ("Arc", "Line") for place in ("Oslo", "rain")]
    typos = [row for row in answers if row["method"] == "typos"]
    assert typos
    assert all(row["response"] in [one["completion"] for one in REAL] for row in typos)
    for row in answers:
        assert (row["kind"], row["writer"], row["task"], row["seed"]) == ("synthetic", "rules", "review", 0)
        assert {"synthetic", f"method:{row['method']}"} <= set(row["tags"])
    page = (output / "report.html").read_text()
    assert page.count("<ins>") == page.count("<del>") > 0, "an answer is marked only beside a rejected one"
    pairs = read_rows(output / "final" / "pairs.jsonl")
    texts = [{side["text"] for side in pair["completions"]} for pair in pairs]
    assert texts
    assert all(len(sides & {one["completion"] for one in REAL}) == 1 for sides in texts)
    again = tmp_path / "again"
    assert synthesise(again, *real, "--templates", templates, typos=4, templates=9, corruption=6)[0] == 0
    assert read_rows(again / "final" / "answers.jsonl") == answers
    assert not (output / "final" / "demonstrations.jsonl").exists()


# --- an endpoint -------------------------------------------------------------------------------------------------------


def test_an_endpoint_writes_prompts_and_answers_with_their_cost(
    tmp_path: Path, api: Api, real: list[str | Path]
) -> None:
    api.answer = writes
    gaps = write_rows(
        tmp_path / "gaps.jsonl",
        [{"kind": "tag", "value": "returns", "rows": 0, "wanted": 3, "examples": ["May I return it?"]}],
    )
    words = [*real, *by_endpoint(api), "--endpoint.input-price", "10", "--endpoint.output-price", "100", "--gaps", gaps]
    methods = {
        "self_instruct": 3,
        "evol_instruct": 2,
        "persona": 2,
        "back_translation": 2,
        "paraphrase": 2,
        "gap_cards": 2,
    }
    output = tmp_path / "made"
    status, err = synthesise(output, *words, **methods)
    assert status == 0, err
    rows = read_rows(output / "final" / "answers.jsonl")
    assert {row["method"] for row in rows} == {name.replace("_", "-") for name in methods}
    for row in rows:
        assert row["prompt"][0]["content"].startswith("Where can ")  # without “Request:” and quotation marks
        asked = 1 if row["method"] in ("back-translation", "paraphrase") else 2
        assert row["tokens"] == asked * 110
        assert row["cost"] == pytest.approx(asked * (100 * 10 + 10 * 100) / 1e6)
        assert row["writer"] == "m"
    kept_answers = {row["response"] for row in rows if row["method"] in ("back-translation", "paraphrase")}
    assert kept_answers <= {one["completion"] for one in REAL}
    assert next(row["tags"] for row in rows if row["method"] == "gap-cards")[0] == "returns"
    report = json.loads((output / "final" / "report.json").read_text())
    assert report["cost"] == pytest.approx(api.paid.total() * (100 * 10 + 10 * 100) / 1e6)  # dropped rows, too
    paid = api.paid.total()
    assert synthesise(output, *words, **methods)[0] == 0
    assert api.paid.total() == paid
    assert "sk-of-this-test" not in "".join(f.read_text() for f in output.rglob("*") if f.is_file())


def test_what_an_endpoint_should_not_write_is_dropped(tmp_path: Path, api: Api, real: list[str | Path]) -> None:
    replies = iter(
        [
            REAL[0]["prompt"],
            TEST["prompt"],
            "",
            "I'm sorry, I cannot help with that request.",
            "Please call Ann at ann.b@example.org about the green lamp",
            "x" * 5000,
            "How many lamps fit on one long table?",
            "How many lamps fit on one long table?",
            "",  # the request itself
            "Is there a shade for tall lamps in red?",
            "How many lamps fit on one long table?",  # the answer to the first of the two that are left
            TEST["completion"],  # to the second
        ]
    )
    api.answer = lambda prompt: next(replies) or (prompt if "one more" in prompt and next(empty) else "")
    empty = iter([False, True])
    output = tmp_path / "made"
    status, err = synthesise(output, *real, *by_endpoint(api), self_instruct=10)
    assert status == 0, err
    dropped = [row["reason"] for row in read_rows(output / "final" / "dropped.jsonl")]
    assert dropped == [
        "nearly the same as a real prompt",
        "nearly the same as a test prompt",
        "empty",
        "a refusal",
        "holds personal data",
        "longer than 4000 characters",
        "nearly the same as an earlier synthetic prompt",
        "the request itself",
        "the answer repeats the prompt",
        "nearly the same as a test answer",
    ]
    assert read_rows(output / "final" / "answers.jsonl") == []
    report = json.loads((output / "final" / "report.json").read_text())
    assert sum(report["tokens"].values()) == 110 * api.paid.total(), "what is dropped is paid for"
    written = "".join(file.read_text(errors="replace") for file in output.rglob("*") if file.is_file())
    assert "ann.b@example.org" not in written
    assert "How many lamps fit" in (output / "answers.jsonl").read_text()


@pytest.mark.parametrize("method", ["corruption", "typos"])
def test_a_real_prompt_that_is_a_test_prompt_makes_no_rows(method: str) -> None:
    """A real prompt is its rows' nearest one, so that the test prompt, a little further away, was never looked at."""
    texts = "Which bulb is best for a reading corner in winter?", "How do I wipe a green floor lamp?"
    leaked, clean = (Prompt(id=text, messages=(Message(role="user", content=text),)) for text in texts)
    tested = "Which bulb is best for a reading corner in winter, please?"
    screen = Screen(
        Material([leaked, clean], [], [], []), [Prompt(id="t", messages=(Message(role="user", content=tested),))], 0.7
    )
    drafts = [Draft(method, 0, (), prompt=text, completion="It is warm.", rejected="No.") for text in texts]
    assert [screen.fault(one) for one in drafts] == ["nearly the same as a test prompt", ""]


def test_an_endpoint_that_fails_is_asked_again_and_nothing_is_paid_twice(
    tmp_path: Path, api: Api, real: list[str | Path]
) -> None:
    faults = ["429", "500", "broken", "nonsense", "dropped"]
    api.answer = writes
    failed: set[str] = set()

    def fail_once(prompt: str, number: int) -> str:
        if number == 1 and faults:
            failed.add(prompt)
            return faults.pop()
        return ""

    api.faults = fail_once
    output = tmp_path / "made"
    words = [*real, *by_endpoint(api), "--asking.longest-wait-seconds", "0.05", "--asking.max-tokens", "900"]
    status, err = synthesise(output, *words, self_instruct=8)
    assert status == 1
    assert "stopped before asking.max_tokens (900)" in err
    assert "or ask for fewer rows (methods)" in err
    assert len(failed) == 5
    paid = dict(api.paid)
    words[words.index("900")] = "90000"
    status, err = synthesise(output, *words, self_instruct=8)
    assert status == 0, err
    assert all(api.paid[prompt] == count == 1 for prompt, count in paid.items())
    for fault, message in (("401", "refuses the key"), ("404", "no such model")):
        api.faults = lambda prompt, number, fault=fault: fault  # type: ignore[misc]
        status, err = synthesise(tmp_path / fault, *words, self_instruct=2)
        assert (status, message in err) == (2, True), err


# --- a local model -----------------------------------------------------------------------------------------------------


def test_a_local_model_writes_what_transformers_generates(
    tmp_path: Path, tiny_model: Path, real: list[str | Path]
) -> None:
    """At temperature 0, after the chat template; a random model does not end, so that each text is cut off."""
    output = tmp_path / "made"
    sampling = ["--model", tiny_model, "--sampling.temperature", "0", "--sampling.max-new-tokens", "6"]
    words = [*real, *sampling, "--batch-size", "2"]
    status, err = synthesise(output, *words, paraphrase=3)
    assert status == 0, err
    report = json.loads((output / "final" / "report.json").read_text())
    assert (report["counts"], report["dropped"]) == (
        {"tried": 3, "kept": 0, "dropped": 3},
        {"cut off at sampling.max_new_tokens": 3},
    )
    assert report["writer"] == str(tiny_model)
    assert not (output / "partial").exists()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    config = SynthesiseConfig.model_validate(
        {
            "output": "x",
            "methods": {"paraphrase": 3},
            "demonstrations": [str(tmp_path / "real.jsonl")],
            "model": str(tiny_model),
            "sampling": {"temperature": 0.0, "max_new_tokens": 6},
            "batch_size": 2,
        }
    )
    material, _ = read_material(config)
    requests = [(one.id, one.request) for one in draft_rows(config, material)]
    written = ModelWriter(config).write(run_of(tmp_path / "w", "synthesise", config), requests, "prompts")
    for (_, request), one in zip(requests, written, strict=True):
        turns = [{"role": "user", "content": request}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)
        expected = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        assert one.text.strip() == expected.strip()
        assert (one.prompt_tokens, one.completion_tokens) == (ids.shape[1], 6)


# --- nothing unreviewed in training ------------------------------------------------------------------------------------


def sft(tmp_path: Path, model: Path, demonstrations: Path, name: str) -> tuple[int, str]:
    config = write_config(
        tmp_path / f"{name}.yaml",
        output=tmp_path / name,
        policy=model,
        demonstrations=demonstrations,
        training={**TINY_TRAINING, "max_steps": 1},
        tracking={"mode": "disabled"},
    )
    return run_here("sft", "--config", config)


def test_synthetic_rows_reach_training_after_review_or_by_key(
    tmp_path: Path, tiny_model: Path, real: list[str | Path]
) -> None:
    made = tmp_path / "made"
    assert synthesise(made, *real, typos=5)[0] == 0
    status, err = sft(tmp_path, tiny_model, made / "final" / "answers.jsonl", "unreviewed")
    assert (status, "synthetic, and reviewed by nobody: review them" in err) == (1, True), err
    status, err = sft(tmp_path, tiny_model, made, "run")
    assert status == 1, err
    # through prepare, the mark stays
    prepared = tmp_path / "prepared"
    source = json.dumps([str(made / "final" / "answers.jsonl")])
    words = ["--demonstrations", source, "--policy", tiny_model, "--near-duplicate", "1", "--output", prepared]
    assert run_here("prepare", *words)[0] == 0
    status, err = sft(tmp_path, tiny_model, prepared, "prepared-sft")
    assert (status, "reviewed by nobody" in err) == (1, True), err
    # by key, and the manifest says so
    free = tmp_path / "free"
    assert synthesise(free, *real, "--review", "none", typos=5)[0] == 0
    status, err = sft(tmp_path, tiny_model, free, "free-sft")
    assert status == 0, err
    facts = read_manifest(tmp_path / "free-sft")["synthetic"]
    assert facts == {"rows": facts["of"], "of": facts["of"], "reviewed": 0}
    # reviewed by people, as the labelling app exports it
    rows = read_rows(made / "final" / "answers.jsonl")
    seen: list[dict[str, Any]] = [{**row, "tags": [*row["tags"], "reviewed:accepted"]} for row in rows]
    status, err = sft(tmp_path, tiny_model, write_rows(tmp_path / "seen.jsonl", seen), "seen-sft")
    assert status == 0, err
    assert read_manifest(tmp_path / "seen-sft")["synthetic"]["reviewed"] == len(rows)


@pytest.mark.parametrize(
    "row",
    [
        {"kind": "synthetic"},
        {"kind": "Synthetic"},
        {"source": "synthetic:typos"},
        {"tags": ["synthetic"]},
        {"tags": "synthetic, method:typos"},
        {"tags": "['synthetic', 'method:typos']"},
        {"tags": '["synthetic", "method:typos"]'},
    ],
)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_synthetic_row_is_recognised_however_it_was_saved(tmp_path: Path, row: dict[str, Any], form: str) -> None:
    """A spreadsheet, or pandas' to_csv, writes a list as text."""
    file = tmp_path / f"rows.{form}"
    for marked, refused in ((row, True), ({"tags": "synthetic leather"}, False)):
        whole = {"prompt": "Is it waterproof?", "completion": "It is.", **marked}
        if form == "jsonl":
            write_rows(file, [whole])
        else:
            with file.open("w", newline="") as opened:
                table = csv.DictWriter(opened, list(whole))
                table.writeheader()
                table.writerow(whole)
        with pytest.raises(HandoffError, match="1 of 1 row synthetic") if refused else nullcontext():
            read_demonstrations(str(file))
        single = read_single_answers(str(file), "review")[0]
        assert ("synthetic" in single.tags or single.source.startswith("synthetic:")) is refused


def test_reviewed_rows_stay_reviewed_in_a_table(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('prompt,completion,tags\nIs it?,It is.,"synthetic, reviewed:edited"\n')
    assert read_demonstrations(str(file))[0].prompt.tags == ("synthetic", "reviewed:edited")


@pytest.fixture
def judged(tmp_path: Path, real: list[str | Path]) -> Path:
    """A label run of synthetic pairs that simulated raters judged."""
    assert synthesise(tmp_path / "made", *real, corruption=6)[0] == 0
    (tmp_path / "mine.py").write_text("def score(prompt, answer):\n    return float(len(answer))\n")
    config = write_config(
        tmp_path / "label.yaml",
        output=tmp_path / "judged",
        pairs=tmp_path / "made",
        simulate={"raters": 1, "error_rate": 0.1, "tie_threshold": 0.0, "yardstick": "mine:score"},
        formats=["unpaired"],
        tracking={"mode": "disabled"},
    )
    status, err = run_here("label", "--config", config)
    assert status == 0, err
    return tmp_path / "judged"


@pytest.mark.parametrize("stage", [("reward",), ("dpo",), ("dpo", "--algorithm", "kto")])
def test_synthetic_pairs_stay_marked_and_a_programs_judgment_is_no_review(
    judged: Path, tiny_model: Path, tmp_path: Path, stage: tuple[str, ...]
) -> None:
    for name in ("preferences", "unpaired"):
        rows = read_rows(judged / "final" / f"{name}.jsonl")
        assert rows
        assert all({"synthetic", "method:corruption"} <= set(row["tags"]) for row in rows)
    words = ("--policy", tiny_model, "--preferences", judged, "--output", tmp_path / "trained")
    status, err = run_here(*stage, *words, "--tracking.mode", "disabled")
    assert (status, "reviewed by nobody (simulated raters and model judges are no people)" in err) == (1, True), err


def test_people_who_judge_synthetic_pairs_review_them(judged: Path) -> None:
    rows = [{**row, "kind": "human"} for row in read_rows(judged / "final" / "preferences.jsonl")]
    run: Any = SimpleNamespace(config=SimpleNamespace(trains=True), facts={}, folder=judged)
    found = read_preferences(str(write_rows(judged.parent / "people.jsonl", rows)), Rules(run=run))
    assert run.facts["synthetic"] == {"rows": len(found), "of": len(found), "reviewed": len(found)}


def test_training_refuses_synthetic_prompts_that_nobody_reviewed(tmp_path: Path, real: list[str | Path]) -> None:
    assert synthesise(tmp_path / "made", *real, typos=4)[0] == 0
    run: Any = SimpleNamespace(config=SimpleNamespace(trains=True), facts={})
    with pytest.raises(HandoffError, match="synthetic, and reviewed by nobody"):
        read_prompts(str(tmp_path / "made"), ["train"], Rules(run=run))
    sampling: Any = SimpleNamespace(config=SimpleNamespace(trains=False), facts={})
    assert read_prompts(str(tmp_path / "made"), ["train"], Rules(run=sampling))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", '{"self-instuct": 3}'], "did you mean self-instruct?"),
        (["--methods", '{"self-instruct": 3}'], "self-instruct: needs a writer: endpoint or model"),
        (["--methods", '{"gap-cards": 3}', "--model", "m"], "gap-cards needs gaps"),
        (["--methods", '{"typos": 3}', "--prompts", '["x.jsonl"]'], "typos needs demonstrations"),
    ],
)
def test_impossible_configurations_say_what_is_missing(words: list[str], message: str, tmp_path: Path) -> None:
    status, err = run_here("synthesise", "--output", tmp_path / "x", *words)
    assert (status, message in err) == (2, True), err


def test_only_whole_demonstrations_are_learned_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last question of a conversation means nothing without those before it, nor does its answer."""
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Does the lamp dim?"}]
    more = [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And the other?"}]
    single = {"prompt": turns, "completion": "Yes, by 9 steps.", "split": "train"}
    several = {"prompt": [*turns, *more], "completion": "No, it has 3 levels.", "split": "train"}

    def demonstrations_of(*rows: dict[str, Any]) -> Any:
        source = write_rows(tmp_path / "d.jsonl", list(rows))
        values = {"output": "x", "demonstrations": [str(source)], "methods": {"corruption": 1}}
        return read_material(SynthesiseConfig.model_validate(values))[0].demonstrations

    assert [one.text for one in demonstrations_of(single, several)] == ["Yes, by 9 steps."]
    assert "1 demonstration of several turns: not used by back-translation, paraphrase" in capsys.readouterr().err
    with pytest.raises(DataError, match="corruption learns from demonstrations of one turn of the train split"):
        demonstrations_of(several)
    with pytest.raises(DataError, match="1 of 2 rows cannot be used as demonstrations") as caught:
        demonstrations_of(single, {"prompt": "Is it on?", "completion": 7})
    assert caught.value.faults == [
        f"{tmp_path}/d.jsonl:2: column 'completion': neither a string nor a list of messages"
    ]
