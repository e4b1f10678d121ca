"""Several yardsticks through the command line, on policies whose every answer is written down."""

from __future__ import annotations

import itertools
import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bigrams import EOS, TEMPLATE, Language, Script, build_bigrams
from support import read_rows, run_here, write_config, write_rows
from transformers import AutoModel, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from evaluation.configuration import EvaluateConfig
from evaluation.evaluate import means_by_prompt, seed_of, yardsticks_table
from evaluation.yardstick_figures import figures_of, gaps_of
from evaluation.yardstick_scores import (
    Failure,
    _encode,
    _file_name,
    _measure_by_model,
    _of_logps,
    _try,
    add_yardsticks,
    compare_answers,
    facts,
    leave_out_unmeasured,
    read_references,
)
from tiebreak.config import StageConfig
from tiebreak.errors import DataError, HandoffError
from tiebreak.measures.compared import answer_id
from tiebreak.measures.statistics import win_interval
from tiebreak.measures.yardsticks.inputs import YardstickInput
from tiebreak.measures.yardsticks.registry import build_measure, parse
from tiebreak.messages import Message, prompt_id
from tiebreak.models.find import find_model
from tiebreak.models.tokenizers import load_chat
from tiebreak.packed.generation import row_seed
from tiebreak.records import Prompt
from tiebreak.runs.run import start_run

FEED, WATER, SORRY = "Feed it daily.", "Water it, then wait.", "I'm sorry, but I can't help."
LANGUAGE = Language(("one", "two", "three", "four"), (FEED, WATER, SORRY))
SFT = Script({"one": (FEED, EOS), "two": (SORRY, EOS), "three": (WATER, EOS), "four": (SORRY, EOS)}, certainty=0.5)
DPO = Script({"one": (FEED, EOS), "two": (FEED, EOS), "three": (WATER, EOS), "four": (WATER, EOS)}, certainty=0.9)
YARDSTICKS = """
def words(prompt, answer, tags=(), references=()):
    if answer.startswith("Water") and "three" in prompt:
        raise ValueError("no water")
    return len(answer.split()) + 100 * len(references) + 1000 * ("safe" in tags)
words.better = "neither"

def longer(prompt, answer):
    return float(len(answer.split()))

def strict(prompt, answer):
    if "two" in prompt:
        raise ValueError("no two")
    return float("daily" in answer)
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    tags = {"three": ["late"], "four": ["safe", "late"]}
    rows = [{"prompt": word, "split": "test", "tags": tags.get(word, [])} for word in LANGUAGE.words]
    write_rows(folder / "prompts.jsonl", rows)
    write_rows(
        folder / "references.jsonl", [{"prompt": "one", "completion": FEED}, {"prompt": "two", "completion": "No"}]
    )
    instruction = {"instruction_id_list": ["punctuation:no_comma", "keywords:existence"]}
    write_rows(folder / "instructions.jsonl", [{**instruction, "kwargs": [{}, {"keywords": ["it"]}]}])
    (folder / "mine.py").write_text(YARDSTICKS)
    for name, script in (("sft", SFT), ("dpo", DPO)):
        build_bigrams(folder / name, LANGUAGE, script)
    return folder


def evaluate(bench: Path, output: Path, **values: Any) -> tuple[int, str]:
    settings = {
        "output": output,
        "policies": {"sft": bench / "sft", "dpo": bench / "dpo"},
        "prompts": bench / "prompts.jsonl",
        "sampling": {"temperature": 0.0, "max_new_tokens": 3},
        "batch_size": 2,
        "tracking": {"mode": "disabled"},
    } | values
    return run_here("evaluate", "--config", write_config(bench / f"{output.name}.yaml", **settings))


def report_of(output: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((output / "final" / "report.json").read_text())
    return report


def by_word(output: Path, policy: str, yardstick: str) -> dict[str, Any]:
    rows = [row for row in read_rows(output / "final" / "completions.jsonl") if row["policy"] == policy]
    return {row["messages"][-1]["content"]: row["yardsticks"][yardstick] for row in rows}


def table_in(printed: str) -> dict[str, list[str]]:
    """The rows of the table of yardsticks."""
    lines = printed.splitlines()
    start = next((n for n, line in enumerate(lines) if line.split() == ["yardstick", "sft", "dpo"]), len(lines))
    rows = itertools.takewhile(bool, (line.split() for line in lines[start + 1 :]))
    return {name: figures for name, *figures in rows}


def test_the_table_of_yardsticks_by_hand() -> None:
    figures = {"sft": {"a": {"mean": 0.5}, "b": {"mean": None}}, "dpo": {"a": {"mean": 2 / 3, "verdict": "better"}}}
    figures["dpo"]["b"] = {"mean": 1234.5, "verdict": "too few"}
    report = {"yardsticks": [{"source": "a"}, {"source": "b"}], "policies": {}}
    report["policies"] = {name: {"yardsticks": values} for name, values in figures.items()}
    printed = "\n".join(yardsticks_table(report, colours=False))
    assert table_in(printed) == {"a": ["0.5", "0.667", "better"], "b": ["-", "1.23e+03"]}


def test_several_yardsticks_by_hand_and_one_more_samples_nothing(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instructions = f"instructions:{bench / 'instructions.jsonl'}"
    names = ["token_f1", "exact_match", "refusal", "over_refusal", instructions, "perplexity", "mine:words"]
    given = {"references": bench / "references.jsonl"}
    first = tmp_path / "first"
    status, printed = evaluate(bench, first, yardsticks=["length", *names], **given)
    assert status == 2
    assert "verdicts go by the first, and of length more is not better" in printed
    status, printed = evaluate(bench, first, yardsticks=["rubric", *names], **given)
    assert status == 0, printed
    none_of_the_others = {"three": None, "four": None}
    assert by_word(first, "dpo", "exact_match") == {"one": 1.0, "two": 0.0, **none_of_the_others}
    assert by_word(first, "dpo", "refusal") == dict.fromkeys(LANGUAGE.words, 0.0)
    assert by_word(first, "sft", "over_refusal") == {"one": None, "two": None, "three": None, "four": 1.0}
    # no comma and the word "it": Feed both, Water the second, Sorry neither
    assert by_word(first, "sft", instructions) == {"one": 1.0, "two": 0.0, "three": 0.5, "four": 0.0}
    # under the baseline: every step of its own answers has probability 1/2
    assert by_word(first, "sft", "perplexity") == pytest.approx(dict.fromkeys(LANGUAGE.words, 2.0), abs=1e-3)
    # a function that fails on one row: reported, and the others have their values
    assert by_word(first, "dpo", "mine:words") == {"one": 103.0, "two": 103.0, "three": None, "four": 1004.0}
    assert (
        "the yardstick mine:words failed on 2 rows, which have no value; the first: the yardstick mine:words" in printed
    )
    report = report_of(first)
    assert [one["source"] for one in report["yardsticks"]] == ["rubric", *names]
    assert [one.get("failed") for one in report["yardsticks"]] == [*[None] * 7, 2]
    figures = report["policies"]["dpo"]["yardsticks"]
    assert figures["refusal"]["difference"] == pytest.approx(-0.5)
    assert figures["refusal"]["outcomes"] == {"wins": 0, "ties": 2, "losses": 2}
    assert figures["over_refusal"]["outcomes"] == {"wins": 1, "ties": 0, "losses": 0}  # fewer is better
    assert (figures["exact_match"]["n_prompts"], figures["refusal"]["verdict"]) == (2, "too few")
    assert (report["yardstick_name"], report["yardstick_scale"]) == ("Rubric score", [0.0, 1.0])
    assert (report["yardstick"], report["policies"]["dpo"]["yardstick_mean"]) == ("rubric", figures["rubric"]["mean"])

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("sampled anew")

    for function in (
        "evaluation.evaluate.sample_completions",
        "evaluation.yardstick_scores.completion_logps_in_batches",
    ):
        monkeypatch.setattr(function, refuse)
    second = tmp_path / "second"
    status, printed = evaluate(bench, second, yardsticks=["rubric", *names, "length"], **given)
    assert status == 0, printed
    assert by_word(second, "sft", "length") == {"one": 3.0, "two": 6.0, "three": 4.0, "four": 6.0}
    assert by_word(second, "sft", "perplexity") == by_word(first, "sft", "perplexity")
    swapped, third = {"sft": bench / "dpo", "dpo": bench / "sft"}, tmp_path / "third"
    monkeypatch.undo()
    status, printed = evaluate(bench, third, policies=swapped, yardsticks=["rubric", "perplexity"])
    assert status == 0, printed  # the cache goes by content, not by name: each step has probability .9 now
    assert by_word(third, "sft", "perplexity") == pytest.approx(dict.fromkeys(LANGUAGE.words, 1 / 0.9), abs=1e-3)


def test_without_the_new_keys_nothing_changes_and_with_rubric_alone_the_figures_are_the_same(
    bench: Path, tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for output, keys in ((old, {}), (new, {"yardsticks": ["rubric"]})):
        status, printed = evaluate(bench, output, **keys)
        assert (status, table_in(printed)) == (0, {})
    assert not {"sample"} & read_rows(old / "final" / "completions.jsonl")[0].keys()
    assert not {"samples_per_prompt"} & report_of(old).keys()
    manifest = json.loads((old / "manifest.json").read_text())
    assert not {"yardsticks", "references", "samples_per_prompt"} & manifest["config"].keys()
    rows, others = (read_rows(one / "final" / "completions.jsonl") for one in (old, new))
    assert [{k: v for k, v in row.items() if k != "yardsticks"} for row in others] == rows
    mine, theirs = report_of(old)["policies"], report_of(new)["policies"]
    assert {name: {k: v for k, v in row.items() if k != "yardsticks"} for name, row in theirs.items()} == mine


def test_a_prompt_that_the_first_yardstick_fails_on_is_left_out_for_every_policy(bench: Path, tmp_path: Path) -> None:
    output = tmp_path / "strict"
    status, printed = evaluate(bench, output, yardsticks=["mine:strict", "refusal"])
    assert status == 0, printed
    assert "1 prompt left out: the first yardstick, mine:strict, has no value for them" in printed
    assert table_in(printed).keys() == {"mine:strict", "refusal"}
    report = report_of(output)["policies"]
    assert [row["n_prompts"] for row in report.values()] == [3, 3]
    assert report["sft"]["yardstick_mean"] == report["dpo"]["yardstick_mean"] == pytest.approx(1 / 3)
    assert set(by_word(output, "sft", "refusal")) == {"one", "three", "four"}


def test_several_answers_to_a_prompt_count_once(bench: Path, tmp_path: Path) -> None:
    output = tmp_path / "samples"
    drawn = {"temperature": 1.0, "max_new_tokens": 2}
    status, printed = evaluate(
        bench, output, yardsticks=["rubric", "self_bleu", "distinct_n:1"], samples_per_prompt=3, sampling=drawn
    )
    assert status == 0, printed
    rows = [row for row in read_rows(output / "final" / "completions.jsonl") if row["policy"] == "sft"]
    assert [row["sample"] for row in rows] == [0, 1, 2] * 4
    assert len({row["text"] for row in rows if row["messages"][-1]["content"] == "one"}) > 1
    figures = report_of(output)["policies"]
    assert figures["sft"]["n_prompts"] == 4
    assert sum(figures["dpo"]["outcomes"].values()) == 4
    two = tmp_path / "two"
    assert evaluate(bench, two, samples_per_prompt=2, sampling=drawn)[0] == 0
    numbers = [row["sample"] for row in read_rows(two / "final" / "completions.jsonl") if row["policy"] == "sft"]
    assert (numbers, report_of(two)["samples_per_prompt"]) == ([0, 1] * 4, 2)
    single = tmp_path / "single"
    assert evaluate(bench, single, sampling=drawn)[0] == 0  # the first sample is the one without further ones
    alone = [row["text"] for row in read_rows(single / "final" / "completions.jsonl") if row["policy"] == "sft"]
    assert [row["text"] for row in rows if row["sample"] == 0] == alone
    status, printed = run_here("compare", "--evaluation", output, "--output", tmp_path / "compare")
    assert status == 0, printed
    page = (tmp_path / "compare" / "report.html").read_text()
    assert "Self-BLEU" in page
    assert "Other yardsticks" in page


def test_a_mean_over_the_answers_to_each_prompt() -> None:
    rows = [{"prompt_id": "a", "s": 0.25}, {"prompt_id": "b", "s": 3.0}, {"prompt_id": "a", "s": 0.75}]
    assert means_by_prompt(rows, "s") == {"a": 0.5, "b": 3.0}
    assert means_by_prompt([{"s": 0.1 + 0.2}, {"s": 1.0}], "s") == {"0": 0.1 + 0.2, "1": 1.0}  # of reports without ids


def test_the_first_answers_seed_does_not_depend_on_how_many_there_are() -> None:
    config = EvaluateConfig(output="o", policies={"sft": "p"}, prompts="x", seed=3)
    prompt = Prompt(id="prompt-1", messages=(Message(role="user", content="one"),), split="test")
    seeds = [seed_of(config, prompt, sample) for sample in range(3)]
    named = ("evaluate", prompt.id)
    assert seeds == [row_seed(3, *named), row_seed(3, *named, 1), row_seed(3, *named, 2)]


def test_judges_and_people_as_yardsticks_of_judged_pairs(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policies differ on two prompts, where SFT refuses. A judge prefers the longer answer there, and so SFT's."""
    first, judged, people = tmp_path / "first", tmp_path / "judged", tmp_path / "people"
    assert evaluate(bench, first)[0] == 0
    pairs = read_rows(first / "final" / "pairs.jsonl")
    assert [pair["split"] for pair in pairs] == ["test", "test"]
    texts = {one["id"]: one["text"] for pair in pairs for one in pair["completions"]}
    assert sorted(texts.values()) == sorted([FEED, WATER, SORRY, SORRY])
    config = write_config(bench / "judge.yaml", pairs=str(first), output=str(judged), function="mine:longer")
    status, printed = run_here("judge", "--config", config, "--tracking.mode", "disabled")
    assert status == 0, printed
    by_prompt = {pair["messages"][-1]["content"]: pair for pair in pairs}

    def vote(rater: str, word: str, answer: int) -> dict[str, Any]:
        left, right = (one["id"] for one in sorted(by_prompt[word]["completions"], key=lambda one: one["text"]))
        return {
            "pair_id": by_prompt[word]["id"],
            "rater_id": rater,
            "left": left,
            "right": right,  # SORRY, which is the last in the alphabet except for Water
            "answer": answer,
            "kind": "human",
        }

    with start_run(StageConfig(output=str(people)), "label", {}) as run:
        votes = [vote("ann", "two", -3), vote("ben", "two", 1), vote("ann", "four", 2)]
        write_rows(run.final / "judgments.jsonl", votes)
        run.finish()
    output, names = tmp_path / "second", ["rubric", f"judge:{judged}", f"people:{people}"]
    status, printed = evaluate(bench, output, yardsticks=names)
    assert status == 0, printed
    same = {"one": 0.5, "three": 0.5}
    assert by_word(output, "dpo", names[1]) == {**same, "two": 0.0, "four": 0.0}
    assert by_word(output, "sft", names[1]) == {**same, "two": 1.0, "four": 1.0}
    assert by_word(output, "dpo", names[2]) == {**same, "two": 0.5, "four": 1.0}  # Water is right of Sorry
    figures = report_of(output)["policies"]["dpo"]["yardsticks"]
    assert figures[names[1]]["outcomes"] == {"wins": 0, "ties": 2, "losses": 2}
    assert figures[names[1]]["difference"] == pytest.approx(-0.5)
    assert figures[names[2]]["outcomes"] == {"wins": 1, "ties": 3, "losses": 0}
    status, printed = evaluate(bench, tmp_path / "none", yardsticks=["rubric", f"people:{judged}"])
    assert (status, "has no people's judgment of these answers" in printed) == (1, True), printed

    # As the first yardstick: people prefer dpo once of four, with three ties; of the judge's, two are ties and two losses.
    monkeypatch.setattr("evaluation.slices.FEWEST", 2)
    by_people, by_judge = tmp_path / "by_people", tmp_path / "by_judge"
    for folder, order in ((by_people, [names[2], "rubric"]), (by_judge, [names[1], names[2]])):
        status, printed = evaluate(bench, folder, yardsticks=order)
        assert status == 0, printed
    assert verdict_of(by_people) == (0.625, 0.625, {"wins": 1, "ties": 3, "losses": 0}, 0.5)
    assert verdict_of(by_judge) == (0.25, 0.25, {"wins": 0, "ties": 2, "losses": 2}, 0.5)
    [(name, late)] = report_of(by_people)["policies"]["dpo"]["slices"].items()  # three, a tie, and four, a win
    assert (name, late["n_prompts"], late["yardstick_mean"], late["win_rate_vs_baseline"]) == ("late", 2, 0.75, 0.75)
    status, printed = run_here("compare", "--evaluation", by_people, "--output", tmp_path / "compare")
    assert status == 0, printed
    page = (tmp_path / "compare" / "report.html").read_text()
    assert "Preferred by people (" in page
    assert "By slice" in page
    assert "), against SFT, whose own value is one half" in page

    # One of the two is judged, and by a simulated rater: the other is left out, and nobody is called people.
    with start_run(StageConfig(output=str(tmp_path / "simulated")), "label", {}) as run:
        write_rows(run.final / "judgments.jsonl", [{**vote("r", "four", 2), "kind": "simulated"}])
        run.finish()
    status, printed = evaluate(bench, tmp_path / "part", yardsticks=[f"people:{tmp_path / 'simulated'}"])
    assert status == 0, printed
    assert f"1 prompt left out: the first yardstick, people:{tmp_path / 'simulated'}, has no value" in printed
    assert verdict_of(tmp_path / "part") == (2 / 3, 2 / 3, {"wins": 1, "ties": 2, "losses": 0}, 0.5)
    assert report_of(tmp_path / "part")["yardstick_name"].startswith("Preferred by simulated raters (")


def verdict_of(output: Path) -> tuple[float, float, dict[str, int], float]:
    """(dpo's mean, its win rate, its outcomes, the baseline's mean)."""
    own, baseline = (report_of(output)["policies"][name] for name in ("dpo", "sft"))
    return own["yardstick_mean"], own["win_rate_vs_baseline"], own["outcomes"], baseline["yardstick_mean"]


def test_prompts_that_lack_a_judgment_of_a_policy_are_left_out() -> None:
    """b's answer to the second prompt was judged by nobody, so no figure is of that prompt."""
    prompts = [Prompt(id=name, messages=(Message(role="user", content="?"),)) for name in ("p", "q")]
    [measure] = [build_measure(parse("people:x"))]
    shares = {"a": [0.0, 1.0], "b": [1.0, None], "sft": [0.5, 0.0]}
    answers = {
        name: [{"text": "", "yardsticks": {"people:x": share}} for share in values] for name, values in shares.items()
    }
    kept = leave_out_unmeasured([measure], prompts, answers, [], "sft")
    assert [one.id for one in kept] == ["p"]
    assert {name: own[0]["measured"]["value"] for name, own in answers.items()} == {"a": 0.0, "b": 1.0, "sft": 0.5}
    answers = {name: [{"text": "", "yardsticks": {"people:x": None}}] for name in ("a", "sft")}
    with pytest.raises(HandoffError, match="no prompt has a judgment of each"):
        leave_out_unmeasured([measure], prompts[:1], answers, [], "sft")


def test_a_tie_beside_a_win_of_another_policy_stays_a_tie() -> None:
    """The baseline's own mean is over all of its comparisons; a policy is compared with it directly."""
    prompts = [Prompt(id="p", messages=(Message(role="user", content="?"),))]
    source = "judge:x"
    won = {"a": 0.5, "b": 1.0}
    answers = {name: [{"yardsticks": {source: share}, "won": {source: share}}] for name, share in won.items()}
    answers["sft"] = [{"yardsticks": {source: 0.25}}]
    figures = figures_of([build_measure(parse(source))], prompts, answers, "sft", 0)
    assert figures["a"][source]["outcomes"] == {"wins": 0, "ties": 1, "losses": 0}
    assert figures["b"][source]["outcomes"] == {"wins": 1, "ties": 0, "losses": 0}


def test_toxicity_and_bertscore_by_named_models(bench: Path, tmp_path: Path, tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(1)
    classifier = LlamaForSequenceClassification(
        LlamaConfig.from_pretrained(tiny_model, id2label={0: "fine", 1: "Toxic"}, label2id={"fine": 0, "Toxic": 1})
    )
    classifier.save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    toxicity, bertscore = f"toxicity:{tmp_path / 'classifier'}", f"bertscore:{tiny_model}#1"
    given = {"references": bench / "references.jsonl", "yardsticks": ["rubric", toxicity, bertscore]}
    status, printed = evaluate(bench, tmp_path / "read", **given)
    assert status == 0, printed
    with torch.no_grad():
        logits = classifier.eval()(**tokenizer(SORRY, return_tensors="pt")).logits[0]
    expected = float(torch.exp(logits[1]) / torch.exp(logits).sum())
    assert by_word(tmp_path / "read", "sft", toxicity)["two"] == pytest.approx(expected, abs=1e-6)
    scores = by_word(tmp_path / "read", "sft", bertscore)
    assert scores["one"] == pytest.approx(1.0, abs=1e-5)  # the reference itself
    assert scores["two"] == pytest.approx(bertscore_by_hand(tiny_model, SORRY, "No"), abs=1e-5)
    assert (scores["three"], scores["four"]) == (None, None)
    unnamed = f"{toxicity}#rude"
    status, printed = evaluate(bench, tmp_path / "unnamed", yardsticks=["rubric", unnamed])
    assert (status, "Its labels are fine, Toxic" in printed) == (1, True), printed


def bertscore_by_hand(model: Path, text: str, other: str) -> float:
    """Word by word, with Python's loops."""
    tokenizer, encoder = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model)

    def vectors(words: str) -> list[list[float]]:
        with torch.no_grad():
            found: list[list[float]] = (
                encoder(**tokenizer(words, return_tensors="pt"), output_hidden_states=True).hidden_states[1][0].tolist()
            )
        return found

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    mine, theirs = vectors(text), vectors(other)
    precision = sum(max(cosine(a, b) for b in theirs) for a in mine) / len(mine)
    recall = sum(max(cosine(a, b) for a in mine) for b in theirs) / len(theirs)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"yardsticks": ["rubric", "bertscore:x"]}, "bertscore:x needs references"),
        ({"yardsticks": ["rubric", "toxicity"]}, "toxicity needs an argument: toxicity:MODEL"),
        ({"yardsticks": ["rogue"]}, "no yardstick 'rogue'; did you mean rouge?"),
        ({"yardsticks": ["qqq"]}, "no yardstick 'qqq'. There are rubric, "),
        ({"yardsticks": ["rouge"]}, "rouge needs references"),
        ({"yardsticks": ["reward"]}, "reward needs reward_model"),
        ({"yardsticks": ["rubric", "self_bleu"]}, "self_bleu needs samples_per_prompt of at least 2"),
        ({"yardsticks": ["rubric", "rubric"]}, "rubric is given twice"),
        ({"yardsticks": ["rubric"], "yardstick": "mine:strict"}, "make it the first of yardsticks"),
        ({"samples_per_prompt": 2}, "at temperature 0, all answers to a prompt are the same"),
        ({"references": "references.jsonl"}, "no yardstick reads them"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_drawn(
    bench: Path, tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    status, printed = evaluate(bench, tmp_path / "refused", **values)
    assert (status, words in printed) == (2, True), printed


# --- statistics ---


def drawn_of(values: dict[str, list[list[float | None]]], tags: list[tuple[str, ...]]) -> tuple[Any, Any]:
    """Prompts, one for each answer, and answers with the values of the yardstick refusal."""
    count = len(next(iter(values.values())))
    prompts = [
        Prompt(id=f"p{n:03d}", messages=(Message(role="user", content=str(n)),), tags=tags[n] if tags else ())
        for n in range(count)
    ]
    each = len(next(iter(values.values()))[0])
    drawn = [prompt for prompt in prompts for _ in range(each)]
    answers = {
        name: [{"yardsticks": {"refusal": value}} for prompt in own for value in prompt] for name, own in values.items()
    }
    return drawn, answers


def test_one_correction_over_all_yardsticks_and_policies() -> None:
    """McNemar's p of 20 losses and no win is (19/√20)² on one degree; Holm multiplies the smaller of two by two."""
    base: list[list[float | None]] = [[0.0]] * 40
    worse: list[list[float | None]] = [[1.0]] * 20 + [[0.0]] * 20
    slightly: list[list[float | None]] = [[1.0]] * 5 + [[0.0]] * 34 + [[None]]
    drawn, answers = drawn_of({"sft": base, "a": worse, "b": slightly}, [])
    figures = figures_of([build_measure(parse("refusal"))], drawn, answers, "sft", 0)
    p = math.erfc(19 / math.sqrt(2 * 20))
    assert figures["a"]["refusal"]["p_value"] == pytest.approx(2 * p)
    assert figures["a"]["refusal"]["verdict"] == "higher"
    assert figures["b"]["refusal"]["p_value"] == pytest.approx(math.erfc(4 / math.sqrt(10)))
    assert (figures["b"]["refusal"]["n_prompts"], figures["b"]["refusal"]["verdict"]) == (39, "undecided")
    assert "p_value" not in figures["sft"]["refusal"]


def test_identical_policies_are_seldom_told_apart() -> None:
    """60 reports on coin flips: a false verdict in at most 5% of them, within chance."""
    pick = random.Random(0)
    false = 0
    measure = build_measure(parse("refusal"))
    for _ in range(60):
        drawn, answers = drawn_of(
            {name: [[float(pick.random() < 0.5)] for _ in range(40)] for name in ("sft", "a", "b", "c")}, []
        )
        figures = figures_of([measure], drawn, answers, "sft", 0)
        false += any(row["refusal"].get("verdict") in ("higher", "lower") for row in figures.values())
    assert false <= 7  # of 60 at 5%, more than 7 come by chance less than once in a hundred


def test_gaps_between_counterfactual_prompts_by_hand() -> None:
    tags = [
        ("pair:1", "group:women", "attribute:gender"),
        ("pair:1", "group:men", "attribute:gender"),
        ("pair:2", "group:women", "attribute:gender"),
        ("pair:2", "group:men", "attribute:gender"),
        ("pair:3", "group:old"),
    ]
    drawn, answers = drawn_of({"sft": [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 1.0], [1.0, 1.0]]}, tags)
    (row,) = gaps_of([build_measure(parse("refusal"))], drawn, answers, 0)
    # men less women: 1 − ½ and ½ − 0
    assert (row["attribute"], row["groups"], row["pairs"], row["gap"]) == ("gender", ["men", "women"], 2, 0.5)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_one_value_has_no_interval_and_none_no_mean(count: int) -> None:
    base: list[list[float | None]] = [[0.0]] * 2
    own: list[list[float | None]] = [[1.0]] * count + [[None]] * (2 - count)
    drawn, answers = drawn_of({"sft": base, "a": own}, [])
    figures = figures_of([build_measure(parse("refusal"))], drawn, answers, "sft", 0)["a"]["refusal"]
    if not count:
        assert figures == {"mean": None, "interval": None, "n_prompts": 0}
        return
    wilson = (pytest.approx(2 / (2 + 1.959964**2)), 1.0)  # of two successes in two trials
    assert (figures["mean"], figures["n_prompts"]) == (1.0, count)
    assert figures["interval"] == (wilson if count == 2 else None)
    low, high = win_interval(2, 0, 0)
    both = (2 * low - 1, 2 * high - 1) if count == 2 else None
    assert (figures["difference"], figures["difference_interval"]) == (1.0, both)


@pytest.mark.parametrize(("count", "verdict"), [(29, "too few"), (30, "better")])
def test_a_verdict_takes_thirty_prompts(count: int, verdict: str) -> None:
    """McNemar's p of 29 wins and no loss is far below 5%, also for the policy that is worse."""
    zeros: list[list[float | None]] = [[0.0]] * count
    ones: list[list[float | None]] = [[1.0]] * count
    for base, own, expected in ((ones, zeros, verdict), (zeros, ones, verdict.replace("better", "worse"))):
        drawn, answers = drawn_of({"sft": base, "a": own}, [])
        values = [{"yardsticks": {"over_refusal": one["yardsticks"]["refusal"]}} for one in answers["a"]]
        before = [{"yardsticks": {"over_refusal": one["yardsticks"]["refusal"]}} for one in answers["sft"]]
        measure = build_measure(parse("over_refusal"))  # fewer is better
        figures = figures_of([measure], drawn, {"sft": before, "a": values}, "sft", 0)
        assert figures["a"]["over_refusal"]["verdict"] == expected


def test_gaps_are_of_whole_pairs_alone() -> None:
    """A prompt of a pair without a group, and one without a value, are in none; a single pair has no interval."""
    pair = ("pair:1", "attribute:age")
    tags = [
        (*pair, "group:old"),
        (*pair, "group:young"),
        pair,
        ("pair:2", "group:men", "attribute:gender"),
        ("pair:2", "group:women", "attribute:gender"),
        ("pair:3", "group:men", "attribute:gender"),
        ("pair:3", "group:women", "attribute:gender"),
    ]
    values: list[list[float | None]] = [[None], [1.0], [1.0], [1.0], [0.5], [None], [0.0]]
    drawn, answers = drawn_of({"sft": values}, tags)
    (row,) = gaps_of([build_measure(parse("refusal"))], drawn, answers, 0)
    assert (row["attribute"], row["pairs"], row["gap"], row["gap_interval"]) == ("gender", 1, 0.5, None)
    values[5] = [0.5]
    drawn, answers = drawn_of({"sft": values}, tags)
    (row,) = gaps_of([build_measure(parse("refusal"))], drawn, answers, 0)
    assert (row["pairs"], row["gap"], row["gap_interval"]) == (2, 0.5, (0.5, 0.5))


# --- parts of measuring, each alone


def asked(*words: str) -> list[Prompt]:
    rows = [(Message(role="user", content=word),) for word in words]
    return [Prompt(id=prompt_id(row), messages=row) for row in rows]


def settings(**values: Any) -> EvaluateConfig:
    return EvaluateConfig(**{"output": "o", "policies": {"sft": "p"}, "prompts": "x", **values})


def test_prompts_without_a_reference_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_rows(tmp_path / "references.jsonl", [{"prompt": "one", "completion": FEED}])
    config = settings(references=str(file), yardsticks=["exact_match"])
    run: Any = SimpleNamespace(config=config, stage="evaluate", facts={})
    found = read_references(config, run, asked("one"))
    assert list(found.values()) == [(FEED,)]
    assert "without a reference" not in capsys.readouterr().err
    assert read_references(config, run, asked("one", "two", "three")) == found
    assert "2 prompts of 3 without a reference" in capsys.readouterr().err
    with pytest.raises(DataError, match="has no answer to any of the 2 evaluated prompts"):
        read_references(config, run, asked("two", "three"))
    assert read_references(settings(), run, asked("one")) == {}


def test_the_reward_models_score_is_a_yardstick() -> None:
    answers: dict[str, list[dict[str, Any]]] = {"sft": [{"text": "a", "score": 2.5}]}
    run: Any = SimpleNamespace()
    assert add_yardsticks(settings(), run, [build_measure(parse("reward"))], asked("one"), answers, {}) == []
    assert answers["sft"][0]["yardsticks"] == {"reward": 2.5}


def test_names_of_files_hold_no_other_signs() -> None:
    assert _file_name("mine/a:b of d_é-1.x#2") == "mine.a.b of d_é-1.x.2"
    assert _file_name("x" * 200) == "x" * 120


def test_a_models_values_are_kept_by_model_label_and_text(
    tmp_path: Path, bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two evaluations beside each other share what both would compute, and nothing else."""

    def measured(output: str, label: str, text: str, value: float) -> float:
        class Stub:
            def measure(self, text: str, wanted: object) -> float:
                return value

        monkeypatch.setattr("evaluation.yardstick_scores.build_reader", lambda *_: Stub())
        source = f"toxicity:{bench / 'sft'}#{label}"
        answers: dict[str, list[dict[str, Any]]] = {"sft": [{"text": text, "yardsticks": {}}]}
        inputs = {f"yardstick_model_{bench / 'sft'}": str(bench / "sft")}
        with start_run(StageConfig(output=str(tmp_path / output)), "evaluate", inputs) as run:
            assert not _measure_by_model(settings(), run, build_measure(parse(source)), asked("one"), answers, {})
        return float(answers["sft"][0]["yardsticks"][source])

    assert measured("a", "rude", "text", 0.25) == 0.25
    assert measured("b", "rude", "text", 0.5) == 0.25
    assert measured("c", "fine", "text", 0.75) == 0.75
    assert measured("d", "rude", "other", 1.0) == 1.0


def test_answers_that_nobody_compared_have_no_share_unless_they_are_equal(tmp_path: Path) -> None:
    drawn = asked("one", "two", "three")
    texts = {"sft": ["a", "b", "c"], "dpo": ["x", "y", " c"]}
    run: Any = SimpleNamespace(inputs={f"policy_{name}": SimpleNamespace(id=name) for name in texts})
    left, right = (answer_id(drawn[0], name, texts[name][0]) for name in ("sft", "dpo"))
    vote = {"pair_id": "p", "rater_id": "r", "left": left, "right": right, "answer": 2, "kind": "human"}
    write_rows(tmp_path / "final" / "judgments.jsonl", [vote])
    answers = {name: [{"text": text, "yardsticks": {}} for text in own] for name, own in texts.items()}
    measure, config = build_measure(parse(f"people:{tmp_path}")), settings(policies={"sft": "p", "dpo": "q"})
    compare_answers(run, measure, drawn, answers, config)
    found = {name: [one["yardsticks"][measure.source] for one in own] for name, own in answers.items()}
    assert found == {"sft": [0.0, None, 0.5], "dpo": [1.0, None, 0.5]}


def test_an_empty_answer_has_no_perplexity(bench: Path, tmp_path: Path) -> None:
    mute = Script({"one": (EOS,), "two": (FEED, EOS), "three": (FEED, EOS), "four": (FEED, EOS)}, certainty=0.9)
    build_bigrams(tmp_path / "mute", LANGUAGE, mute)
    policies = {"sft": bench / "sft", "mute": tmp_path / "mute"}
    names = ["rubric", "perplexity", "bits_per_byte"]
    status, printed = evaluate(bench, tmp_path / "out", policies=policies, yardsticks=names)
    assert status == 0, printed
    for name in names[1:]:
        values = by_word(tmp_path / "out", "mute", name)
        assert values["one"] is None
        assert None not in (values["two"], values["three"])
    # the values of the same answers under the other policy, beside the first evaluation: its own have 1/0.9
    turned = {"sft": tmp_path / "mute", "mute": bench / "sft"}
    status, printed = evaluate(bench, tmp_path / "turned", policies=turned, yardsticks=names)
    assert status == 0, printed
    assert by_word(tmp_path / "out", "sft", "perplexity")["two"] == pytest.approx(2.0, abs=1e-3)
    assert by_word(tmp_path / "turned", "sft", "perplexity")["two"] == pytest.approx(1 / 0.9, abs=1e-3)


@pytest.mark.parametrize(
    ("prompt", "text", "drawn"), [([1], "a", True), ([1], "other", False), ([2], "a", False), ([2], "other", False)]
)
def test_drawn_ids_are_measured_where_they_mean_the_same(prompt: list[int], text: str, drawn: bool) -> None:
    chat: Any = SimpleNamespace(
        encode_prompt=lambda messages, tools: prompt,
        decode_completion=lambda ids: text,
        encode_completion=lambda messages, text, finished, tools: ([7], [8, len(text)]),
    )
    answer = {"prompt_ids": [1], "ids": [3, 4], "text": "a", "finished": True}
    assert _encode(chat, asked("one")[0], answer) == (([1], [3, 4]) if drawn else ([7], [8, 1]))


def test_a_perplexity_is_a_number_however_improbable_the_answer() -> None:
    assert _of_logps("perplexity", [-900.0, -800.0], "ab") == math.exp(700.0)


def test_failures_are_counted_by_yardstick_with_the_beginning_of_the_first() -> None:
    measures = [build_measure(parse(name)) for name in ("refusal", "length")]
    failures = [Failure("length", "sft", "p", message) for message in ("x" * 900, "second", "third")]
    fine, failed = facts(measures, failures)
    assert "failed" not in fine
    assert failed["failed"] == 3
    assert failed["first_failure"] == "x" * 400 + "…"


def test_criteria_are_of_the_last_question() -> None:
    turns = ("user", "first"), ("assistant", "answer"), ("user", "last")
    drawn = [Prompt(id="p", messages=tuple(Message(role=role, content=text) for role, text in turns))]  # type: ignore[arg-type]
    users: Any = SimpleNamespace(criteria_of=lambda question, text: {f"{question}: {text}": True})
    measure = replace(build_measure(parse("refusal")), users=users)
    answers: dict[str, list[dict[str, Any]]] = {"sft": [{"text": "a", "yardsticks": {"refusal": 1.0}}]}
    assert leave_out_unmeasured([measure], drawn, answers, [], "sft") == drawn
    assert answers["sft"][0]["measured"] == {"value": 1.0, "criteria": {"last: a": True}}


def test_bits_per_byte_by_hand() -> None:
    """½ and ⅛ are four bits, of two bytes."""
    logps = [math.log(1 / 2), math.log(1 / 8)]
    assert _of_logps("bits_per_byte", logps, "ab") == pytest.approx(2.0)
    assert _of_logps("bits_per_byte", logps, "é€") == pytest.approx(4 / 5)
    assert _of_logps("perplexity", logps, "ab") == pytest.approx(4.0)


def test_why_the_first_yardstick_measured_nothing_is_its_own_failure() -> None:
    answers: dict[str, list[dict[str, Any]]] = {"sft": [{"text": "a", "yardsticks": {"refusal": None}}]}
    failures = [Failure("length", "sft", "p", "another's"), Failure("refusal", "sft", "p", "its own")]
    with pytest.raises(HandoffError, match="measured no prompt for all policies: its own"):
        leave_out_unmeasured([build_measure(parse("refusal"))], asked("one"), answers, failures, "sft")


def test_a_yardstick_that_raises_leaves_all_answers_of_its_prompt_without_a_value() -> None:
    def fail(*_: Any) -> list[float | None]:
        raise ZeroDivisionError("no words")

    measure = replace(build_measure(parse("length")), function=fail)
    found = _try(measure, YardstickInput(asked("one")[0], ()), ["a", "b", "c"])
    assert found["values"] == [None, None, None]
    assert found["failure"].startswith("ZeroDivisionError: no words (")
    assert found["failure"].endswith(f" on prompt {asked('one')[0].id}")


def test_perplexity_under_a_model_that_cannot_read_a_prompt_or_an_answer(bench: Path, tmp_path: Path) -> None:
    """The model's template refuses the word two; each token of its own answer to one has probability 1/2."""
    shutil.copytree(bench / "sft", tmp_path / "reader")
    refusing = "{% if messages[0].content == 'two' %}{{ raise_exception('no two') }}{% endif %}"
    (tmp_path / "reader" / "chat_template.jinja").write_text(refusing + TEMPLATE)
    source = f"perplexity:{tmp_path / 'reader'}"
    config = settings(output=str(tmp_path / "run"), prompts=str(bench / "prompts.jsonl"), yardsticks=["rubric", source])
    inputs = {
        "prompts": str(bench / "prompts.jsonl"),
        f"yardstick_model_{tmp_path / 'reader'}": str(tmp_path / "reader"),
    }
    drawn = LANGUAGE.tokens.index(FEED), LANGUAGE.tokens.index(EOS)
    chat = load_chat(find_model(str(bench / "sft")))
    prompts = asked("two", "one", "three", "four")
    texts = (FEED, FEED, "", "  ")
    ids: tuple[list[int], ...] = ([*drawn], [*drawn], [drawn[1]], [])
    answers: dict[str, list[dict[str, Any]]] = {
        "sft": [
            {"prompt_ids": chat.encode_prompt(prompt.messages), "ids": own, "text": text, "finished": bool(own)}
            for prompt, own, text in zip(prompts, ids, texts, strict=True)
        ]
    }
    with start_run(config, "evaluate", inputs) as run:
        (failure,) = add_yardsticks(config, run, [build_measure(parse(source))], prompts, answers, {})
    assert (failure.yardstick, failure.policy, failure.prompt_id) == (source, "sft", prompts[0].id)
    assert "no two" in failure.message
    values = [one["yardsticks"][source] for one in answers["sft"]]
    assert values == [None, pytest.approx(2.0, abs=1e-3), None, None]
