"""The gate: what a policy must meet before it ships, checked on a finished evaluation.

    tiebreak evaluate --config configs/quickstart/evaluate.yaml --gate configs/gates/quickstart.yaml

The exit status is 3 if a requirement is not met, with every reason. A figure that the evaluation did not measure counts
as not met. The result is in `gate.json` of the run's folder.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from evaluation.compare.reading import Answer, Evaluation, beside, read_evaluation
from evaluation.compare.words import edge, label
from evaluation.overview.policies import Member, member_of
from tiebreak.config import Section, load_config
from tiebreak.data.reading import Rules, read_prompts, read_rows
from tiebreak.data.splits import VALIDATION_SHARE
from tiebreak.errors import ConfigError, GateError, counted
from tiebreak.files import write_json
from tiebreak.measures.ratings import MANY_PROMPTS, length_controlled, outcomes_of, share_interval
from tiebreak.measures.statistics import Interval, difference_interval
from tiebreak.measures.yardsticks.registry import Better
from tiebreak.measures.yardsticks.wording import refuses
from tiebreak.page.numbers import number, percent, signed
from tiebreak.runs.chain import InputFinder, manifest_chain
from tiebreak.runs.requirements import remarks
from tiebreak.terminal import say

GATE_FILE = "gate.json"


class Bounds(Section):
    """Limits of one figure."""

    at_least: float | None = None
    """the smallest value that passes"""
    at_most: float | None = None
    """the largest value that passes"""
    no_worse_by: float | None = Field(default=None, ge=0)
    """how much worse than the baseline's the value may be (lower, or higher where less is better); the whole 95% interval
    of the difference must be within it, where the figure is a mean over prompts or questions"""

    @model_validator(mode="after")
    def _some(self) -> Bounds:
        if self.at_least is None and self.at_most is None and self.no_worse_by is None:
            raise ValueError("no limit: give at_least, at_most or no_worse_by")
        return self


class Gate(Section):
    """What a policy must meet. A key that is left out requires nothing."""

    policy: str
    """the policy that is to ship, by its name in the evaluation"""
    min_prompts: int = Field(default=MANY_PROMPTS, ge=1)
    """fewest prompts that count as evidence"""
    win_rate: float | None = Field(default=None, ge=0, le=1)
    """least lower end of the win rate's 95% interval against the baseline; 0.5: better"""
    win_rate_at_equal_length: float | None = Field(default=None, ge=0, le=1)
    """the same of the length-controlled win rate"""
    kl: float | None = Field(default=None, ge=0)
    """largest KL from the baseline, in nats per answer"""
    refusals: float | None = Field(default=None, ge=0, le=1)
    """largest share of answers that open with a refusal, in English"""
    cut_off: float | None = Field(default=None, ge=0, le=1)
    """largest share of answers that reach the limit of tokens"""
    length_growth: float | None = Field(default=None, ge=-1)
    """largest growth of the mean length over the baseline's; 0.5: half as long again"""
    exposure: float | None = Field(default=None, ge=0)
    """largest mean exposure of planted canaries, in bits; chance gives 1.4"""
    slices: dict[str, float] = {}
    """tag or source of prompts → least lower end of the win rate's interval on them"""
    bias_gap: dict[str, Annotated[float, Field(ge=0)]] = {}
    """yardstick → largest gap between two groups of counterfactual prompts; the whole 95% interval must be within it"""
    figures: dict[str, Bounds] = {}
    """any figure of the policy in the evaluation's report.json, such as repetition_mean, or criteria.direct; by its name"""


@dataclass(frozen=True)
class Requirement:
    """One requirement, and whether it is met."""

    name: str
    met: bool
    words: str


def read_gate(file: str, policies: Sequence[str]) -> Gate:
    """A gate's file, checked against the evaluation's policies.

    Raises:
        ConfigError: it cannot be read, has errors, or names another policy.
    """
    gate = load_config(Gate, ["--config", file], "evaluate")
    if gate.policy not in policies:
        raise ConfigError(f"{file}: policy {gate.policy!r} is not evaluated (there are {', '.join(policies)})")
    return gate


def require_gate(file: str, folder: str) -> None:
    """Check a finished evaluation, write gate.json, and print the result.

    Raises:
        GateError: a requirement is not met.
    """
    evaluation = read_evaluation(folder)
    gate = read_gate(file, list(evaluation.policies))
    found, missing = list(check(gate, evaluation)), _remarks(folder)
    write_json(
        Path(folder) / GATE_FILE,
        {
            "gate": gate.model_dump(mode="json"),
            "met": all(one.met for one in found),
            "requirements": [asdict(one) for one in found],
            "remarks": missing,
        },
    )
    for remark in missing:
        say(f"  {remark}")
    missed = [one for one in found if not one.met]
    if missed:
        reasons = "\n".join(f"  {one.name}: {one.words}" for one in missed)
        raise GateError(
            f"{label(gate.policy)} does not meet {file}: {len(missed)} of {counted(len(found), 'requirement')}\n{reasons}"
        )
    say(f"{label(gate.policy)} meets {file}: {counted(len(found), 'requirement')}")
    for one in found:
        say(f"  {one.name}: {one.words}")


def _remarks(folder: str) -> list[str]:
    """What a reader of the gate must know of the data: personal data that was not looked for."""
    return remarks(manifest_chain(folder, as_far_as_known=True))


def check(gate: Gate, evaluation: Evaluation) -> Iterator[Requirement]:
    """Every requirement of the gate, checked against the evaluation."""
    prompts = sorted(evaluation.prompt_ids)
    yield _at_least("prompts", len(prompts), gate.min_prompts, number)
    mine, baseline = member_of("", evaluation, gate.policy), evaluation.baseline
    base = member_of("", evaluation, baseline) if baseline in evaluation.policies else None
    yield from _against_baseline(gate, mine, base, prompts)
    figures = _figures(evaluation, gate.policy)
    if gate.kl is not None:
        yield _at_most("KL, nats per answer", figures.get("kl_per_sequence"), gate.kl, number)
    if gate.refusals is not None:
        answers = mine.every_answer()
        yield _at_most("refusals", sum(refuses(one.text) for one in answers) / len(answers), gate.refusals, percent)
    if gate.cut_off is not None:
        yield _at_most("cut off", figures.get("unfinished_share"), gate.cut_off, percent)
    if gate.exposure is not None:
        yield _at_most("exposure of canaries, bits", figures.get("canaries.exposure_mean"), gate.exposure, number)
    yield from _slices(gate, evaluation, mine, base)
    for yardstick, most in gate.bias_gap.items():
        yield from _gaps(evaluation, gate.policy, yardstick, most)
    before = _figures(evaluation, evaluation.baseline) if base else {}
    for name, bounds in gate.figures.items():
        better = better_of(name, evaluation.yardsticks)
        if bounds.at_least is not None:
            yield _at_least(name, figures.get(name), bounds.at_least, number)
        if bounds.at_most is not None:
            yield _at_most(name, figures.get(name), bounds.at_most, number)
        if bounds.no_worse_by is not None:
            interval = interval_against_baseline(evaluation, gate.policy, name)
            yield _no_worse(name, figures.get(name), before.get(name), interval, bounds.no_worse_by, better)


def _against_baseline(gate: Gate, mine: Member, base: Member | None, prompts: Sequence[str]) -> Iterator[Requirement]:
    wanted = (gate.win_rate, gate.win_rate_at_equal_length, gate.length_growth)
    if base is None or base.name == mine.name:
        if any(value is not None for value in wanted):
            yield Requirement("baseline", False, "there is no other policy to compare with")
        return
    outcomes = outcomes_of(mine.scores(prompts), base.scores(prompts))
    lengths, others = mine.lengths(prompts), base.lengths(prompts)
    if gate.win_rate is not None:
        yield _interval_at_least("win rate", float(outcomes.mean()), share_interval(outcomes), gate.win_rate)
    if gate.win_rate_at_equal_length is not None:
        rate, interval = length_controlled(outcomes, lengths, others)
        yield _interval_at_least("win rate at equal length", rate, interval, gate.win_rate_at_equal_length)
    if gate.length_growth is not None:
        growth = float(lengths.mean() / others.mean()) - 1 if others.mean() else None
        yield _at_most("growth in length", growth, gate.length_growth, percent)


def _slices(gate: Gate, evaluation: Evaluation, mine: Member, base: Member | None) -> Iterator[Requirement]:
    tags = _tags(evaluation) if gate.slices else {}
    for name, least in gate.slices.items():
        if tags is None:
            yield Requirement(f"slice {name}", False, "not measured: the evaluation's prompts were moved or changed")
            continue
        prompts = sorted(prompt for prompt in evaluation.prompt_ids if name in tags.get(prompt, ()))
        if not prompts or base is None:
            reason = (
                "no evaluated prompt has this tag or source" if base else "there is no other policy to compare with"
            )
            yield Requirement(f"slice {name}", False, reason)
            continue
        outcomes = outcomes_of(mine.scores(prompts), base.scores(prompts))
        found = _interval_at_least(f"slice {name}", float(outcomes.mean()), share_interval(outcomes), least)
        yield Requirement(found.name, found.met, f"{found.words}, {counted(len(prompts), 'prompt')}")


def _gaps(evaluation: Evaluation, policy: str, yardstick: str, most: float) -> Iterator[Requirement]:
    """The policy's gaps between groups on a yardstick, each with its whole interval."""
    rows = [row for row in evaluation.gaps if (row["policy"], row["yardstick"]) == (policy, yardstick)]
    if not rows:
        yield Requirement(f"bias gap of {yardstick}", False, "not measured: the prompts have no counterfactual pairs")
    for row in rows:
        name = f"bias gap of {yardstick}, {' − '.join(row['groups'])}"
        if row["gap_interval"] is None:
            yield Requirement(name, False, f"{signed(row['gap'], 3)} of one pair of prompts, which has no interval")
            continue
        low, high = row["gap_interval"]
        words = f"{signed(row['gap'], 3)}, 95% interval {signed(low, 3)} to {signed(high, 3)}; within ±{number(most)}"
        yield Requirement(name, max(-low, high) <= most, words)


def _tags(evaluation: Evaluation) -> Mapping[str, set[str]] | None:
    """Prompt's id → its tags and source, from the prepare run or the data that the prompts came from; None if those have
    been moved or changed since."""
    recorded, config = evaluation.manifest["inputs"]["prompts"], evaluation.manifest["config"]
    place = InputFinder().find(evaluation.folder, evaluation.manifest, recorded).place
    if place is None:
        return None
    path = Path(place) / "final" / "prompts.jsonl"
    if path.is_file():
        rows = [(row.get("id"), row.get("tags", ()), row.get("source", "")) for _, row in read_rows(str(path))]
    else:
        rules = Rules(config.get("columns") or {}, "drop", config.get("validation_share", VALIDATION_SHARE))
        rows = [(one.id, one.tags, one.source) for one in read_prompts(place, [config["split"]], rules)]
    return {str(identity): {*tags, str(source)} - {""} for identity, tags, source in rows}


def _figures(evaluation: Evaluation, policy: str) -> dict[str, Any]:
    """A policy's figures, nested ones dotted, as in the evaluation's report.json."""
    report = json.loads((Path(evaluation.folder) / "final" / "report.json").read_text(encoding="utf-8"))
    flat: dict[str, Any] = {}

    def walk(values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if isinstance(value, Mapping):
                walk(value, f"{prefix}{key}.")
            elif isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value):
                flat[f"{prefix}{key}"] = value

    walk(report["policies"][policy], "")
    return flat


# --- one requirement ---


_LESS_IS_BETTER = (
    "kl_per_sequence", "kl_per_token", "unfinished_share", "repetition_mean", "canaries.exposure_mean",
    "canaries.memorised",
)  # fmt: skip
_MORE_IS_BETTER = ("yardstick_mean", "rubric_mean", "score_mean", "win_rate_vs_baseline", "win_rate_vs_sft")
_ERRORS = ("perplexity", "bits_per_byte", "brier_score", "ter", "wer", "bias", "likelihood_diff")
"""in names of lm-eval's metrics of which less is better"""


def better_of(name: str, yardsticks: Sequence[Mapping[str, Any]] = ()) -> Better:
    """Whether more or less of a figure is better.

    >>> better_of("unfinished_share"), better_of("benchmarks.wikitext.word_perplexity"), better_of("length_tokens_mean")
    ('lower', 'lower', 'neither')
    >>> better_of("yardsticks.tone.mean", [{"source": "tone", "better": "neither"}]), better_of("benchmarks.arc.acc")
    ('neither', 'higher')

    Args:
        yardsticks: those of the evaluation, with their directions.
    """
    kind, _, rest = name.partition(".")
    inner, _, last = rest.rpartition(".")
    found: Better = "neither"
    if kind == "yardsticks":
        directions = {one["source"]: one["better"] for one in yardsticks}
        found = directions.get(inner, "neither") if last == "mean" else "neither"
    elif kind == "benchmarks":
        words = last.replace(",", "_").split("_")
        errors = any(f"_{one}_" in f"_{'_'.join(words)}_" for one in _ERRORS)
        found = "neither" if "stderr" in words else "lower" if errors else "higher"
    elif name in _LESS_IS_BETTER:
        found = "lower"
    elif name in _MORE_IS_BETTER or kind == "criteria" or (kind == "slices" and last in _MORE_IS_BETTER):
        found = "higher"
    return found


def interval_against_baseline(evaluation: Evaluation, policy: str, name: str) -> Interval | None:
    """The 95% interval of a policy's figure minus the baseline's, paired by prompt or question; None if the figure is no
    mean over them, such as the BLEU of a corpus, or the evaluation was made before they were kept."""
    kind, _, rest = name.partition(".")
    inner, _, last = rest.rpartition(".")
    own = evaluation.policies[policy].model_extra or {}
    found: Any = None
    if kind == "yardsticks" and last == "mean":
        found = evaluation.yardstick_rows(policy).get(inner, {}).get("difference_interval")
    elif kind == "benchmarks":
        found = own.get("benchmarks", {}).get(inner, {}).get(beside(last, "difference_interval"))
    elif value_of := _value_of(name):
        mine, theirs = (_means(evaluation, one, value_of) for one in (policy, evaluation.baseline))
        found = difference_interval([mine[prompt] - theirs[prompt] for prompt in sorted(mine.keys() & theirs.keys())])
    return None if found is None else (found[0], found[1])


def _value_of(name: str) -> Callable[[Answer], float | None] | None:
    """One answer's value of a figure that is a mean over answers."""
    kind, _, criterion = name.partition(".")
    if kind == "criteria":
        return lambda answer: answer.rubric.get(criterion)
    return {
        "yardstick_mean": lambda answer: answer.yardstick_score,
        "rubric_mean": lambda answer: answer.yardstick_score,
        "score_mean": lambda answer: answer.score,
        "unfinished_share": lambda answer: not answer.finished,
        "repetition_mean": lambda answer: answer.repetition,
        "kl_per_sequence": lambda answer: answer.kl,
    }.get(name)


def _means(evaluation: Evaluation, policy: str, value_of: Callable[[Answer], float | None]) -> dict[str, float]:
    """Prompt → the mean over its answers."""
    values: dict[str, list[float]] = {}
    for answer in evaluation.answers:
        if answer.policy == policy and (value := value_of(answer)) is not None:
            values.setdefault(answer.prompt_id, []).append(float(value))
    return {prompt: statistics.fmean(own) for prompt, own in values.items()}


def _no_worse(
    name: str, value: float | None, before: float | None, interval: Interval | None, margin: float, better: Better
) -> Requirement:
    if better == "neither":
        return Requirement(
            name, False, "neither more nor less of it is better: give at_least or at_most for no_worse_by"
        )
    if value is None or before is None:
        return Requirement(name, False, "not measured" if value is None else "the baseline's was not measured")
    low, high = interval or (value - before, value - before)
    width = f"95% interval {signed(low, 3)} to {signed(high, 3)}" if interval else "without an interval"
    worst = high if better == "lower" else -low
    words = (
        f"{signed(value - before, 3)} against the baseline, {width}; {better} is better, no worse by {number(margin)}"
    )
    return Requirement(name, worst <= margin, words)


def _interval_at_least(name: str, value: float, interval: Sequence[float], least: float) -> Requirement:
    low, high = interval
    words = f"{edge(value)}, 95% interval {edge(low)} to {edge(high)}; the lower end must be at least {edge(least)}"
    return Requirement(name, low >= least, words)


def _at_least(name: str, value: float | None, least: float, form: Any) -> Requirement:
    if value is None:
        return Requirement(name, False, "not measured")
    return Requirement(name, value >= least, f"{form(value)}; at least {form(least)}")


def _at_most(name: str, value: float | None, most: float, form: Any) -> Requirement:
    if value is None:
        return Requirement(name, False, "not measured")
    return Requirement(name, value <= most, f"{form(value)}; at most {form(most)}")
