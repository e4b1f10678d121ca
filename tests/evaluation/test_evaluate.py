"""The stage from prompts to report.json, on policies whose every probability is written down: all figures by hand."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bigrams import EOS, Language, Script, build_bigrams, build_scorer, sequence_logp
from safetensors.torch import load_file, save_file
from support import read_rows, run_here, write_config, write_rows
from transformers import AutoTokenizer

from evaluation.configuration import EvaluateConfig
from evaluation.evaluate import kinds_behind, named_source, policy_figures
from evaluation.trained_on import made_by
from tiebreak.config import StageConfig, TrackingConfig
from tiebreak.files import write_json
from tiebreak.runs.run import Run, start_run

ACID = "Lower the pH to 5.8 with 1 ml of acid per litre, wait 30 minutes,"
AGAIN = "then measure it again and repeat until it stays between 5.5 and 6.2."
GROW = "Plants grow."
SURE = "Sure, roots like air."
WARM = "warm water helps roots"
ADD = "Add 2 ml of feed."
ADD_AND = "Add 2 ml of feed, and"
CRITERIA = ("concrete", "actionable", "direct", "unrepeated", "length", "finished")
MET = {
    f"{ACID} {AGAIN}": (1, 1, 1, 1, 1, 1),  # 28 words
    GROW: (0, 0, 1, 1, 0, 1),
    SURE: (0, 0, 0, 1, 0, 1),
    f"{WARM} {WARM} {WARM}": (0, 0, 1, 0, 0, 0),  # 12 words, four runs of four that come again and again
    ADD: (1, 1, 1, 1, 0, 1),
    ADD_AND: (1, 1, 1, 1, 0, 0),
}
"""the rubric's criteria, read off the answers"""

LANGUAGE = Language(
    ("one", "two", "three", "four", "five", "six", "ask"), (ACID, AGAIN, GROW, SURE, WARM, ADD, ADD_AND)
)
PROMPTS = {
    "one": "ask one",
    "two": "ask ask two",
    "three": "three",
    "four": "ask ask ask four",
    "five": "five",
    "six": "ask six",
}
SFT = Script(
    {
        "one": (GROW, EOS),
        "two": (GROW, EOS),
        "three": (ACID, AGAIN, EOS),
        "four": (ADD, EOS),
        "five": (SURE, EOS),
        "six": (WARM, WARM, WARM),
    },
    certainty=0.6,
)
DPO = Script(
    {
        "one": (ACID, AGAIN, EOS),
        "two": (ADD, EOS),
        "three": (ACID, AGAIN, EOS),
        "four": (GROW, EOS),
        "five": (ADD_AND, EOS),
        "six": (WARM, WARM, WARM),
    },
    certainty=0.9,
)
BASE = Script(dict.fromkeys(PROMPTS, (SURE, EOS)), certainty=0.7)


@dataclass(frozen=True)
class Bench:
    """What the stage reads."""

    folder: Path
    prompts: Path
    base: Path
    sft: Path
    dpo: Path
    scorer: Path


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    rows = [{"prompt": [{"role": "user", "content": text}], "split": "test"} for text in PROMPTS.values()]
    models = {
        name: build_bigrams(folder / name, LANGUAGE, script)
        for name, script in {"base": BASE, "sft": SFT, "dpo": DPO}.items()
    }
    scores = {EOS: 0.5, WARM: -2.0, AGAIN: 4.0, GROW: 1.0}
    scorer = build_scorer(models["sft"], folder / "scorer", LANGUAGE, scores, kind="human")
    return Bench(folder, write_rows(folder / "prompts.jsonl", rows), scorer=scorer, **models)


Start = Callable[..., tuple[int, str, Path]]


@pytest.fixture
def start(bench: Bench, tmp_path: Path) -> Start:
    """`tiebreak evaluate` on the bench's policies, greedily: (exit status, standard error, output folder)."""

    def run(**values: Any) -> tuple[int, str, Path]:
        settings = {
            "output": tmp_path / "evaluate",
            "policies": {"base": bench.base, "sft": bench.sft, "dpo": bench.dpo},
            "baseline": "sft",
            "prompts": bench.prompts,
            "sampling": {"temperature": 0.0, "max_new_tokens": 3},
            "batch_size": 2,
            "tracking": {"mode": "disabled"},
        } | values
        status, printed = run_here("evaluate", "--config", write_config(tmp_path / "evaluate.yaml", **settings))
        return status, printed, Path(settings["output"])

    return run


def read_report(output: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((output / "final" / "report.json").read_text())
    return report


def rows_of(output: Path, policy: str) -> dict[str, dict[str, Any]]:
    """A policy's rows of completions.jsonl by the last word of the prompt."""
    rows = [row for row in read_rows(output / "final" / "completions.jsonl") if row["policy"] == policy]
    return {row["messages"][-1]["content"].split()[-1]: row for row in rows}


def bootstrap_ends(values: list[float]) -> tuple[float, float]:
    """The expanded percentiles of all 6⁶ resamples."""
    stats = pytest.importorskip("scipy.stats")
    means = np.sort([sum(resample) / 6 for resample in itertools.product(values, repeat=6)])
    tail = stats.norm.cdf(-stats.t.ppf(0.975, 5) * math.sqrt(6 / 5))
    return float(np.quantile(means, tail)), float(np.quantile(means, 1 - tail))


def test_every_figure_by_hand(bench: Bench, start: Start) -> None:
    status, printed, output = start(reward_model=bench.scorer)
    assert status == 0, printed
    report = read_report(output)
    assert list(report["policies"]) == ["base", "sft", "dpo"]
    figures = report["policies"]["dpo"]

    # answers: each policy's script, on its own prompt
    for name, script in (("base", BASE), ("sft", SFT), ("dpo", DPO)):
        rows = rows_of(output, name)
        for word, prompt in PROMPTS.items():
            text = " ".join(phrase for phrase in script.answers[word] if phrase != EOS)
            row = rows[word]
            assert (row["text"], row["messages"]) == (text, [{"role": "user", "content": prompt}])
            assert row["rubric"] == {c: bool(m) for c, m in zip(CRITERIA, MET[text], strict=True)}
            assert row["yardstick_score"] == row["rubric_score"] == sum(MET[text]) / 6
            assert row["finished"] == (script.answers[word][-1] == EOS)
            assert row["length_tokens"] == len(script.answers[word])

    # criteria met of six: SFT 3 3 6 5 2 1, DPO 6 5 6 3 4 1, base 2 2 2 2 2 2
    assert figures["yardstick_mean"] == figures["rubric_mean"] == pytest.approx(25 / 36)
    assert report["policies"]["sft"]["yardstick_mean"] == pytest.approx(20 / 36)
    assert figures["yardstick_interval"] == figures["rubric_interval"]
    ends = bootstrap_ends([1, 5 / 6, 1, 3 / 6, 4 / 6, 1 / 6])
    assert figures["yardstick_interval"] == pytest.approx(ends, abs=0.02)
    assert figures["criteria"] == pytest.approx(
        {"concrete": 4 / 6, "actionable": 4 / 6, "direct": 1, "unrepeated": 5 / 6, "length": 2 / 6, "finished": 4 / 6}
    )

    # DPO against SFT: three wins, two ties, one loss; base: one win (six), one tie (five), four losses
    assert figures["outcomes"] == {"wins": 3, "ties": 2, "losses": 1}
    assert figures["win_rate_vs_baseline"] == figures["win_rate_vs_sft"] == pytest.approx(4 / 6)
    assert figures["win_rate_interval"] == pytest.approx((0.27601, 0.92247), abs=1e-4)  # 3, 2, 1: see test_statistics
    assert report["policies"]["base"]["outcomes"] == {"wins": 1, "ties": 1, "losses": 4}
    assert report["policies"]["base"]["win_rate_vs_baseline"] == pytest.approx(1.5 / 6)
    assert report["policies"]["sft"]["win_rate_vs_baseline"] is None
    assert report["policies"]["sft"]["outcomes"] is None

    # KL, in the order of the prompts: what DPO gave its answers less what SFT gives them. A step of DPO's script has .9,
    # one of SFT's .6 or, off its script, .4/7, or 1/8 after a phrase that SFT never comes to
    sure, on, off = math.log(0.9), math.log(0.6), math.log(0.4 / 7)
    kl = {
        "one": 3 * sure - off - 2 * on,
        "two": 2 * sure - off - on,
        "three": 3 * sure - 3 * on,
        "four": 2 * sure - off - on,
        "five": 2 * sure - off - math.log(1 / 8),
        "six": 3 * sure - 3 * on,
    }
    assert {word: row["kl"] for word, row in rows_of(output, "dpo").items()} == pytest.approx(kl, abs=1e-4)
    assert figures["kl_per_sequence"] == pytest.approx(sum(kl.values()) / 6, abs=1e-4)
    assert figures["kl_per_token"] == pytest.approx(sum(kl.values()) / 15, abs=1e-4)
    assert report["policies"]["sft"]["kl_per_sequence"] == 0.0

    # score by the last token: .5 for a finished answer, −2 for one cut off in the loop
    assert {w: row["score"] for w, row in rows_of(output, "dpo").items()} == pytest.approx(
        {word: -2.0 if word == "six" else 0.5 for word in PROMPTS}, abs=1e-4
    )
    assert figures["score_mean"] == pytest.approx((5 * 0.5 - 2) / 6, abs=1e-4)
    assert figures["score_interval"] == pytest.approx(bootstrap_ends([0.5] * 5 + [-2.0]), abs=0.03)

    assert figures["length_tokens_mean"] == pytest.approx((3 + 2 + 3 + 2 + 2 + 3) / 6)
    assert figures["unfinished_share"] == pytest.approx(1 / 6)
    assert report["policies"]["base"]["unfinished_share"] == 0.0
    # nine runs of four words in the loop's twelve, four of them different
    assert rows_of(output, "dpo")["six"]["repetition"] == pytest.approx(5 / 9)
    assert figures["repetition_mean"] == pytest.approx(5 / 9 / 6)
    assert figures["n_prompts"] == 6
    assert report["kinds"] == ["human"]  # the reward model's judgments
    assert (figures["source"], figures["id"]) == (str(bench.dpo), str(bench.dpo))
    assert (report["baseline"], report["yardstick"], report["yardstick_name"]) == ("sft", "rubric", "Rubric score")
    assert report["yardstick_scale"] == [0.0, 1.0]
    assert ["dpo", f"{25 / 36:.3f}", "0.67", "2"] in [line.split() for line in printed.splitlines()]


def test_scores_stand_beside_the_answers_that_they_are_of(bench: Bench, start: Start) -> None:
    """Cut off after two tokens: SFT's answers to the prompts end in different tokens."""
    status, printed, output = start(reward_model=bench.scorer, sampling={"temperature": 0.0, "max_new_tokens": 2})
    assert status == 0, printed
    last = {"one": 0.5, "two": 0.5, "three": 4.0, "four": 0.5, "five": 0.5, "six": -2.0}
    assert {w: row["score"] for w, row in rows_of(output, "sft").items()} == pytest.approx(last, abs=1e-4)
    assert read_report(output)["policies"]["sft"]["unfinished_share"] == pytest.approx(2 / 6)
    status, printed, output = start(
        output=output.with_name("shorter"),
        reward_model=bench.scorer,
        sampling={"temperature": 0.0, "max_new_tokens": 1},
    )
    assert status == 0, printed
    last = {"one": 1.0, "two": 1.0, "three": 0.0, "four": 0.0, "five": 0.0, "six": -2.0}
    assert {w: row["score"] for w, row in rows_of(output, "sft").items()} == pytest.approx(last, abs=1e-4)
    assert read_report(output)["policies"]["sft"]["unfinished_share"] == 1.0


def drawn_tokens(row: dict[str, Any], language: Language) -> list[str]:
    """The phrases of an answer's text, and its end."""
    rest, tokens = row["text"], []
    while rest:
        phrase = max((p for p in language.phrases if rest.startswith(p)), key=len)
        tokens.append(phrase)
        rest = rest[len(phrase) :].lstrip()
    return [*tokens, EOS] if row["finished"] else tokens


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_the_kl_is_that_of_the_policies_as_they_were_sampled(start: Start, temperature: float) -> None:
    """Both sides under softmax(logits / temperature), by the definition."""
    status, printed, output = start(sampling={"temperature": temperature, "max_new_tokens": 6}, seed=3)
    assert status == 0, printed
    lengths = set()
    for name, script in (("base", BASE), ("dpo", DPO)):
        for word, row in rows_of(output, name).items():
            answer = drawn_tokens(row, LANGUAGE)
            lengths.add(len(answer))
            assert row["length_tokens"] == len(answer)
            own = sequence_logp(script, LANGUAGE, word, answer, temperature)
            assert row["kl"] == pytest.approx(own - sequence_logp(SFT, LANGUAGE, word, answer, temperature), abs=1e-3)
    assert len(lengths) > 1
    figures = read_report(output)["policies"]["dpo"]
    assert figures["kl_per_sequence"] == pytest.approx(sum(r["kl"] for r in rows_of(output, "dpo").values()) / 6)


def test_a_policy_of_another_tokenizer_has_no_kl_but_all_other_figures(bench: Bench, start: Start) -> None:
    """Of one whose prompts read otherwise, and of one that differs in the ids of two phrases alone."""
    reversed_words = Language(LANGUAGE.words[::-1], LANGUAGE.phrases)
    swapped = Language(LANGUAGE.words, (AGAIN, ACID, *LANGUAGE.phrases[2:]))
    policies = {
        "sft": bench.sft,
        "dpo": bench.dpo,
        "other": build_bigrams(bench.folder / "other", reversed_words, DPO),
        "swapped": build_bigrams(bench.folder / "swapped", swapped, DPO),
    }
    status, printed, output = start(policies=policies)
    assert status == 0, printed
    figures = read_report(output)["policies"]
    assert figures["dpo"]["kl_per_sequence"] is not None
    for name in ("other", "swapped"):
        assert figures[name]["kl_per_sequence"] is None
        assert figures[name]["kl_per_token"] is None
        for key in ("yardstick_mean", "win_rate_vs_baseline", "length_tokens_mean", "unfinished_share"):
            assert figures[name][key] == figures["dpo"][key]


def test_a_reward_model_that_would_misread_a_policy_is_refused_before_anything_is_drawn(
    bench: Bench, start: Start
) -> None:
    other = build_bigrams(bench.folder / "reader", Language(LANGUAGE.words[::-1], LANGUAGE.phrases), DPO)
    status, printed, output = start(policies={"sft": bench.sft, "other": other}, reward_model=bench.scorer)
    assert status == 1
    assert "policy other and reward model" in printed
    assert not (output / "partial").exists()


def test_a_prompt_without_room_for_its_answer_is_refused_before_anything_is_drawn(bench: Bench, start: Start) -> None:
    """The longest of six, four of which are drawn at a time: what fits is not drawn either."""
    limit = json.loads((bench.base / "config.json").read_text())["max_position_embeddings"]
    asked = [{"role": "user", "content": PROMPTS["four"]}]
    tokenizer = AutoTokenizer.from_pretrained(bench.base)
    longest = len(tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False))
    sampling = {"temperature": 0.0, "max_new_tokens": limit - longest + 2}  # the last token takes no position
    status, printed, output = start(sampling=sampling, batch_size=1)
    assert (status, "a prompt and sampling.max_new_tokens" in printed) == (2, True), printed
    assert not list((output / "partial").rglob("*.json*"))


def test_a_prompt_that_one_policys_template_refuses_is_refused_or_dropped_for_all(
    bench: Bench, start: Start, tmp_path: Path
) -> None:
    picky = Path(shutil.copytree(bench.dpo, tmp_path / "picky"))
    template = picky / "chat_template.jinja"
    refusal = f"{{% if messages[0].content == '{PROMPTS['six']}' %}}{{{{ raise_exception('not six') }}}}{{% endif %}}"
    template.write_text(refusal + template.read_text())
    policies = {"base": bench.base, "sft": bench.sft, "dpo": picky}
    status, printed, output = start(policies=policies)
    assert status == 1
    assert "1 of 6 prompts, as policy dpo reads them, cannot be rendered" in printed
    assert "not six" in printed
    assert not (output / "partial").exists()  # before anything is drawn

    status, printed, output = start(policies=policies, on_bad_row="drop", output=tmp_path / "dropped")
    assert status == 0, printed
    assert "1 of 6 prompts, as policy dpo reads them, dropped (on_bad_row: drop)" in printed
    figures = read_report(output)["policies"]
    assert {name: one["n_prompts"] for name, one in figures.items()} == {"base": 5, "sft": 5, "dpo": 5}
    left = {"one": 6, "two": 5, "three": 6, "four": 3, "five": 4}  # criteria met, of six
    assert figures["dpo"]["yardstick_mean"] == pytest.approx(sum(left.values()) / 6 / 5)
    assert set(rows_of(output, "base")) == set(left)
    assert "not six" in (output / "rows_not_rendered.txt").read_text()


def test_the_prompts_are_of_the_split_each_once_and_a_subset_does_not_depend_on_their_order(
    start: Start, tmp_path: Path
) -> None:
    def row(text: str, split: str) -> dict[str, Any]:
        return {"prompt": [{"role": "user", "content": text}], "split": split}

    rows = [row(f"{'ask ' * n}{word}", "test") for n in range(4) for word in PROMPTS]
    others = [row("ask ask ask ask one", "train"), row("ask ask ask ask two", "validation")]
    chosen = []
    for name, ordered in (("one", [*rows, *others]), ("two", [*others, *reversed(rows)])):
        file = write_rows(tmp_path / f"{name}.jsonl", ordered)
        status, printed, output = start(output=tmp_path / name, prompts=file, max_prompts=7)
        assert status == 0, printed
        chosen.append([r["messages"][0]["content"] for r in read_rows(output / "final" / "completions.jsonl")])
        assert read_report(output)["policies"]["dpo"]["n_prompts"] == 7
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) == 7
    assert set(chosen[0]) <= {r["prompt"][0]["content"] for r in rows}
    status, printed, _ = start(output=tmp_path / "none", prompts=write_rows(tmp_path / "none.jsonl", others))
    assert (status, "no prompts of the test split" in printed) == (1, True)


def test_one_prompt_gives_figures_and_no_interval_of_a_mean(start: Start) -> None:
    status, printed, output = start(max_prompts=1)
    assert status == 0, printed
    figures = read_report(output)["policies"]["dpo"]
    assert (figures["n_prompts"], figures["yardstick_interval"]) == (1, None)
    low, high = figures["win_rate_interval"]
    assert low < 0.5 < high


def test_values_that_are_no_numbers_are_refused_by_name(
    bench: Bench, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a policy whose weights are broken, and of a reward model that overflows on some answers."""
    broken = build_bigrams(bench.folder / "broken", LANGUAGE, BASE)
    weights = load_file(broken / "model.safetensors")
    weights["lm_head.weight"][:] = math.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    status, printed, _ = start(output=tmp_path / "policy", policies={"sft": bench.sft, "broken": broken})
    assert status == 1
    assert f"{broken}, policy 'broken': the model gives probabilities that are not finite numbers" in printed

    def overflow(_: object, sequences: list[list[int]], *rest: object) -> list[float]:
        assert rest
        return [math.inf if len(sequence) > 7 else 1.0 for sequence in sequences]

    monkeypatch.setattr("evaluation.evaluate.scores_in_batches", overflow)
    status, printed, _ = start(output=tmp_path / "reward", reward_model=bench.scorer)
    assert status == 1
    assert f"{bench.scorer} gives 1 of 6 answers of policy 'base' a value that is not a finite number" in printed


# --- figures ---


def row_of(value: float, **more: Any) -> dict[str, Any]:
    plain = {"rubric": {}, "score": None, "kl": None, "length_tokens": 4, "finished": True, "repetition": 0.0}
    return {"yardstick_score": value, **plain, **more}


def test_figures_of_rows_by_hand() -> None:
    rows = [
        row_of(0.5, kl=3.0, score=1.0, rubric={"short": True, "polite": False}, repetition=0.5),
        row_of(1.0, kl=5.0, score=-2.0, length_tokens=12, finished=False, rubric={"short": False}),
    ]
    figures = policy_figures(rows, [0.25, 1.0], seed=0)
    assert {key: value for key, value in figures.items() if "interval" not in key} == {
        "yardstick_mean": 0.75,
        "rubric_mean": 0.75,
        "criteria": {"short": 0.5, "polite": 0.0},  # of the answers that each was asked of
        "win_rate_vs_baseline": 0.75,
        "win_rate_vs_sft": 0.75,
        "outcomes": {"wins": 1, "ties": 1, "losses": 0},
        "score_mean": -0.5,
        "kl_per_sequence": 4.0,
        "kl_per_token": 0.5,
        "length_tokens_mean": 8.0,
        "unfinished_share": 0.5,
        "repetition_mean": 0.25,
        "n_prompts": 2,
    }
    low, high = figures["yardstick_interval"]
    assert 0.5 <= low < 0.75 < high <= 1.0
    assert figures["score_interval"] is not None
    # Two prompts, drawn twice: the first alone, the second alone, or both. The ends of the interval are the first two.
    assert figures["kl_per_sequence_interval"] == (3.0, 5.0)
    assert figures["kl_per_token_interval"] == pytest.approx((5 / 12, 3 / 4))
    assert not [key for key in policy_figures(rows, None, seed=0) if key.startswith("kl") and "interval" in key]


def test_what_was_not_measured_has_no_figure() -> None:
    figures = policy_figures([row_of(0.5), row_of(0.5)], None, seed=0)
    for key in ("score_mean", "score_interval", "kl_per_sequence", "kl_per_token", "win_rate_vs_baseline", "outcomes"):
        assert figures[key] is None, key
    assert policy_figures([row_of(0.5, score=1.0)], None, seed=0)["score_interval"] is None
    some = policy_figures([row_of(0.5, kl=2.0, score=1.0), row_of(0.5)], None, seed=0)
    assert (some["kl_per_sequence"], some["score_mean"], some["score_interval"]) == (2.0, 1.0, None)


def test_whose_judgments_are_behind_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of finished runs alone, each read as what it is; a policy is named by its stage or its base, not by its path."""
    kinds = {"dpo": ["model", "human"], "sft": [], "reward": ["simulated"]}
    asked = []

    def find(name: str, kind: str = "policy", *_: object, **__: object) -> Any:
        asked.append((name, kind))
        folder = None if name == "hub/base" else Path(name) / "final"
        return SimpleNamespace(folder=folder, stage=name if name in kinds else None, base="hub/base", id=f"id-{name}")

    monkeypatch.setattr("evaluation.evaluate.find_model", find)
    monkeypatch.setattr("evaluation.evaluate.read_manifest", lambda folder: {"kinds": kinds[folder.name]})
    policies = {name: name for name in ("hub/base", "adapter", "sft", "dpo")}
    config = EvaluateConfig(output="x", policies=policies, prompts="x", baseline="sft", reward_model="reward")
    assert kinds_behind(config) == ["human", "model", "simulated"]
    assert asked == [*((name, "policy") for name in policies), ("reward", "reward")]
    assert kinds_behind(config.model_copy(update={"reward_model": None})) == ["human", "model"]
    assert [named_source(name, False) for name in policies] == [
        {"source": "hub/base", "id": "id-hub/base"},
        {"source": "adapter on hub/base", "id": "id-adapter"},
        {"source": "sft", "id": "id-sft"},
        {"source": "dpo", "id": "id-dpo"},
    ]


def test_a_run_that_was_copied_alone_is_as_much_of_its_chain_as_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stages(folder: Path | None) -> list[str]:
        policy: Any = SimpleNamespace(folder=folder, stage="dpo")
        return sorted(manifest["stage"] for _, manifest in made_by(policy))

    monkeypatch.chdir(tmp_path)
    for stage, inputs in (("sft", {}), ("dpo", {"policy": "runs/sft"})):
        config = StageConfig(output=f"runs/{stage}", tracking=TrackingConfig(mode="disabled"))
        run = start_run(config, stage, inputs)
        write_json(run.final / "adapter.json", {})
        run.finish()
    assert stages(Path("runs/dpo/final")) == ["dpo", "sft"]
    shutil.copytree("runs/dpo", "elsewhere/in/dpo")
    shutil.rmtree("runs")
    assert stages(Path("elsewhere/in/dpo/final")) == ["dpo"]
    assert stages(None) == []


# --- yardsticks ---

YARDSTICK = """
def grade(prompt, answer):
    return 50.0 + 10 * len(prompt.split()) - answer.count(".")
grade.name = "Clarity"
grade.scale = (0, 100)
"""


def write_yardstick(folder: Path, source: str, name: str = "mine.py") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(source)
    return folder / name


def test_a_yardstick_beside_the_configuration_measures_prompt_and_answer(start: Start, tmp_path: Path) -> None:
    write_yardstick(tmp_path, YARDSTICK)
    status, printed, output = start(yardstick="mine:grade")
    assert status == 0, printed
    report = read_report(output)
    # words of the prompts 2 3 1 4 1 2; full stops, decimals included, of SFT 1 1 4 1 1 0 and of DPO 4 1 4 1 0 0
    values = [50 + 20 - 1, 50 + 30 - 1, 50 + 10 - 4, 50 + 40 - 1, 50 + 10 - 1, 50 + 20]
    assert [row["yardstick_score"] for row in rows_of(output, "sft").values()] != []
    assert {w: r["yardstick_score"] for w, r in rows_of(output, "sft").items()} == dict(
        zip(PROMPTS, values, strict=True)
    )
    assert report["policies"]["sft"]["yardstick_mean"] == pytest.approx(sum(values) / 6)
    assert report["policies"]["dpo"]["outcomes"] == {"wins": 1, "ties": 4, "losses": 1}
    assert report["policies"]["dpo"]["criteria"] == {}
    assert (report["yardstick"], report["yardstick_name"], report["yardstick_scale"]) == (
        "mine:grade",
        "Clarity",
        [0, 100],
    )
    shown = [line.split() for line in printed.splitlines()]
    assert ["policy", "Clarity"] in [words[:2] for words in shown]
    assert ["sft", f"{sum(values) / 6:.3f}"] in [words[:2] for words in shown]
    assert json.loads((output / "manifest.json").read_text())["inputs"]["yardstick"]["kind"] == "file"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def grades(p, a): return 1", "has no function 'grade'; is it 'grades'?"),
        ("def grade(p): return 1", "cannot be called as grade(prompt, answer)"),
        ("grade = 7", "mine:grade is not a function, but a int"),
        ("def grade(p, a): return 1\ngrade.scale = 5", "grade.scale must be two numbers"),
        ("def grade(p, a): return 1\ngrade.scale = (1, 0)", "grade.scale is (1, 0): the first must be less"),
        ("import nothing_of_this_name", "needs the module 'nothing_of_this_name'"),
    ],
)
def test_a_yardstick_that_cannot_measure_is_refused_before_anything_is_drawn(
    source: str, message: str, start: Start, tmp_path: Path
) -> None:
    write_yardstick(tmp_path, source + "\n")
    status, printed, output = start(yardstick="mine:grade")
    assert (status, message in printed) == (2, True), printed
    assert "Traceback" not in printed
    assert not output.exists()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("None", "returned None, which is not a finite number, for the answer of policy 'base'"),
        ("float('nan')", "returned nan, which is not a finite number,"),
        ("float('inf')", "returned inf, which"),
        ("'0.5'", "returned '0.5' (str), which"),
        ("[1.0]", "returned [1.0] (list), which"),
        ("101", "returned 101, outside its declared scale, 0 to 100, for"),
        ("1 / 0", "raised ZeroDivisionError: division by zero ("),
        ("exit(3)", "raised SystemExit: 3 ("),
    ],
)
def test_what_is_no_measure_is_refused_by_name_on_the_first_answer(
    returned: str, message: str, start: Start, tmp_path: Path
) -> None:
    file = write_yardstick(
        tmp_path, f"from sys import exit\ndef grade(p, a):\n    return {returned}\ngrade.scale = (0, 100)\n"
    )
    status, printed, output = start(yardstick="mine:grade")
    assert (status, f"the yardstick mine:grade {message}" in printed) == (1, True), printed
    assert "to prompt prompt-" in printed
    assert "Traceback" not in printed
    if "raised" in message:
        assert f"{file}, line 3)" in printed
    assert (
        len(list((output / "partial").iterdir())) == 1
    )  # the base's first batch, and nothing of the policies after it


def test_values_that_count_as_numbers_do(start: Start, tmp_path: Path) -> None:
    source = "import numpy as np, torch\nvalues = [True, 1, np.float32(1), torch.tensor(1.0), np.array(1.0)]\n"
    write_yardstick(tmp_path, source + "def grade(p, a):\n    return values[len(p) % 5]\n")
    status, printed, output = start(yardstick="mine:grade")
    assert status == 0, printed
    assert read_report(output)["policies"]["sft"]["yardstick_mean"] == 1.0


def test_a_yardstick_sees_each_answer_beside_its_own_question(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried on the first that was drawn, the shortest; then all, one call each. Of a conversation it is the last turn."""
    source = f"import json\ndef grade(p, a):\n    with open({str(tmp_path / 'calls')!r}, 'a') as file:\n"
    source += "        file.write(json.dumps([p, a]) + chr(10))\n    return len(a)\n"
    write_yardstick(tmp_path, source)
    questions = {word: "ask " * number + word for number, word in enumerate(PROMPTS, start=1)}
    rows = [
        {"prompt": [{"role": "system", "content": "ask"}, {"role": "user", "content": text}], "split": "test"}
        for text in questions.values()
    ]
    prompts = write_rows(tmp_path / "conversations.jsonl", rows)
    drawn: list[int] = []
    original = __import__("evaluation.evaluate").evaluate.sample_completions

    def counted(model: object, batch: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        drawn.append(len(batch))
        return original(model, batch, *args, **kwargs)

    monkeypatch.setattr("evaluation.evaluate.sample_completions", counted)
    status, printed, output = start(yardstick="mine:grade", prompts=prompts, batch_size=1)  # four answers a file
    assert status == 0, printed
    assert drawn == [4, 2] * 3  # what the first was tried on is drawn once
    calls = [tuple(json.loads(line)) for line in (tmp_path / "calls").read_text().splitlines()]

    def answer_to(script: Script, word: str) -> str:
        return " ".join(phrase for phrase in script.answers[word] if phrase != EOS)

    expected = {
        name: {(text, answer_to(script, word)) for word, text in questions.items()}
        for name, script in (("base", BASE), ("sft", SFT), ("dpo", DPO))
    }
    assert len(calls) == 3 * 7
    for at, name in enumerate(expected):
        assert calls[7 * at] == (questions["one"], answer_to({"base": BASE, "sft": SFT, "dpo": DPO}[name], "one"))
        assert set(calls[7 * at + 1 : 7 * at + 7]) == expected[name]
    for name, pairs in expected.items():
        assert {r["yardstick_score"] for r in rows_of(output, name).values()} == {len(a) for _, a in pairs}


def test_a_yardstick_that_fails_late_loses_no_answer_and_can_be_fixed(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = "def grade(p, a):\n    if a.startswith('Add'):\n        raise KeyError(a)\n    return len(a)\n"
    write_yardstick(tmp_path, faulty)
    status, printed, output = start(yardstick="mine:grade")
    assert status == 1
    assert "raised KeyError: 'Add 2 ml of feed" in printed
    assert "the answer of policy 'sft' to prompt" in printed
    assert "No answer is lost" in printed
    kept = {path: path.read_bytes() for path in (output / "partial").rglob("answers*/*.json")}
    assert len(kept) >= 2
    write_yardstick(tmp_path, faulty.replace("raise KeyError(a)", "return 0"))
    drawn: list[str] = []
    original = __import__("evaluation.evaluate").evaluate.sample_completions

    def counted(*args: Any, **kwargs: Any) -> Any:
        drawn.append("batch")
        return original(*args, **kwargs)

    monkeypatch.setattr("evaluation.evaluate.sample_completions", counted)
    status, printed, output = start(yardstick="mine:grade")
    assert status == 0, printed
    assert len(drawn) == 1  # DPO's: those of base and SFT were there
    assert {row["yardstick_score"] for row in rows_of(output, "dpo").values()} >= {0.0, float(len(GROW))}
    assert not (output / "partial").exists()


def test_a_yardstick_is_a_part_of_a_finished_runs_identity(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked: list[tuple[bool, bool]] = []

    @contextmanager
    def note(run: Run) -> Iterator[None]:
        before = run.finished
        yield
        tracked.append((before, run.finished))

    monkeypatch.setattr("evaluation.evaluate.tracked", note)
    write_yardstick(tmp_path, "def grade(p, a):\n    return 1.0\n")
    assert start(yardstick="mine:grade")[0] == 0
    assert tracked == [(False, True)]  # the copy ends after the run is safe
    status, printed, _ = start(yardstick="mine:grade")
    assert (status, "nothing to do" in printed) == (0, True)
    assert tracked == [(False, True), (True, True)]
    write_yardstick(tmp_path, "def grade(p, a):\n    return 2.0\n")
    status, printed, _ = start(yardstick="mine:grade")
    assert (status, "holds another run" in printed) == (1, True)


@pytest.mark.slow
def test_a_recipe_finds_the_yardstick_beside_the_stages_file_and_sees_when_it_changes(
    bench: Bench, tmp_path: Path
) -> None:
    write_yardstick(tmp_path / "configs", "def grade(p, a):\n    return 1.0\n")
    stage = write_config(
        tmp_path / "configs" / "evaluate.yaml",
        output=tmp_path / "evaluate",
        policies={"sft": bench.sft, "dpo": bench.dpo},
        prompts=bench.prompts,
        yardstick="mine:grade",
        sampling={"temperature": 0.0, "max_new_tokens": 3},
        tracking={"mode": "disabled"},
    )
    recipe = write_config(tmp_path / "recipe.yaml", name="one", stages=[{"stage": "evaluate", "config": stage}])
    status, printed = run_here("run", "--config", recipe)
    assert status == 0, printed
    status, printed = run_here("run", "--config", recipe)
    assert (status, "skipped" in printed) == (0, True), printed
    write_yardstick(tmp_path / "configs", "def grade(p, a):\n    return 2.0\n")
    status, printed = run_here("run", "--config", recipe)
    assert (status, "holds another run" in printed) == (1, True), printed
