"""Reads and checks finished run folders for the report: the evaluation, and everything it was made from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from tiebreak.data.reading import read_rows
from tiebreak.errors import HandoffError, RunError
from tiebreak.files import explain
from tiebreak.hashing import hash_file
from tiebreak.measures.statistics import Interval, Outcomes, count_outcomes
from tiebreak.measures.yardstick import RUBRIC, RUBRIC_NAME
from tiebreak.measures.yardsticks.registry import COMPARED
from tiebreak.messages import Message
from tiebreak.runs import run as runs
from tiebreak.runs.chain import manifest_chain

OLDER_NAMES = {
    "yardstick_mean": "rubric_mean",
    "yardstick_interval": "rubric_interval",
    "win_rate_vs_baseline": "win_rate_vs_sft",
    "yardstick_score": "rubric_score",
}
"""Figures by their names in older reports; new reports have both."""


def beside(metric: str, figure: str) -> str:
    """The name of a further figure of a benchmark's metric, in lm-eval's form.

    >>> beside("acc", "stderr"), beside("f1,strict", "stderr")
    ('acc_stderr', 'f1_stderr,strict')
    """
    name, comma, kind = metric.partition(",")
    return f"{name}_{figure}{comma}{kind}"


class _WithOlderNames(BaseModel):
    """A row in which a figure may have either of its names."""

    @model_validator(mode="before")
    @classmethod
    def _both_names(cls, row: object) -> object:
        if not isinstance(row, dict):
            return row
        both = dict(row)
        for new, old in OLDER_NAMES.items():
            for one, other in ((new, old), (old, new)):
                if other in both and one in cls.model_fields:
                    both.setdefault(one, both[other])
        return both


class PolicyFigures(_WithOlderNames):
    """One policy's row of evaluate's report. Unknown fields are passed on."""

    model_config = ConfigDict(frozen=True, extra="allow")

    yardstick_mean: float
    yardstick_interval: Interval | None
    rubric_mean: float
    rubric_interval: Interval | None
    criteria: dict[str, float] = {}
    win_rate_vs_baseline: float | None = None
    win_rate_vs_sft: float | None = None
    win_rate_interval: Interval | None = None
    score_mean: float | None = None
    score_interval: Interval | None = None
    kl_per_sequence: float | None = None
    kl_per_token: float | None = None
    length_tokens_mean: float
    unfinished_share: float | None = None
    repetition_mean: float | None = None
    n_prompts: int
    source: str = ""
    id: str = ""


class Answer(_WithOlderNames):
    """One row of evaluate's completions.jsonl."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt_id: str
    messages: tuple[Message, ...]
    policy: str
    text: str
    finished: bool = True
    rubric: dict[str, bool] = {}
    yardstick_score: float
    score: float | None = None
    kl: float | None = None
    length_tokens: int
    repetition: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """A finished *evaluate* run, read and checked."""

    folder: str
    manifest: dict[str, Any]
    policies: dict[str, PolicyFigures]
    baseline: str
    yardstick: str
    """rubric, or package.module:function"""
    yardstick_name: str
    yardstick_scale: Interval | None
    sampling: dict[str, Any]
    kinds: tuple[str, ...]
    answers: tuple[Answer, ...]
    yardsticks: tuple[dict[str, Any], ...] = ()
    """of several: their names, titles, directions and failures"""
    gaps: tuple[dict[str, Any], ...] = ()
    """between counterfactual prompts"""

    @property
    def prompt_ids(self) -> frozenset[str]:
        return frozenset(answer.prompt_id for answer in self.answers)

    def per_prompt(self, policy: str) -> dict[str, float]:
        """The yardstick's value by prompt; the mean of several answers."""
        scores: dict[str, list[float]] = {}
        for answer in self.answers:
            if answer.policy == policy:
                scores.setdefault(answer.prompt_id, []).append(answer.yardstick_score)
        return {prompt: math.fsum(values) / len(values) for prompt, values in scores.items()}

    def outcomes(self, policy: str, other: str) -> Outcomes:
        """Wins, ties and losses of a policy against another on the same prompts."""
        mine, theirs = self.per_prompt(policy), self.per_prompt(other)
        return count_outcomes(list(mine.values()), [theirs[prompt] for prompt in mine])

    @property
    def first_source(self) -> str:
        """The first of several yardsticks; empty if there is only one."""
        return str(self.yardsticks[0]["source"]) if self.yardsticks else ""

    def yardstick_rows(self, policy: str) -> dict[str, dict[str, Any]]:
        """A policy's figures by yardstick, of several; {} of one."""
        return dict((self.policies[policy].model_extra or {}).get("yardsticks") or {})

    @property
    def yardstick_id(self) -> str | None:
        """The hash of the yardstick's source file, or the id of the run of its judgments; None for other yardsticks, and if
        the manifest lacks it."""
        inputs = self.manifest["inputs"]
        one = inputs.get("yardstick") or inputs.get(f"judgments_{self.yardstick.partition(':')[2]}")
        return str(one["id"]) if one else None

    @property
    def baseline_id(self) -> str | None:
        """The id of the baseline's run or model; None if the manifest lacks it."""
        one = self.manifest["inputs"].get(f"policy_{self.baseline}")
        return str(one["id"]) if one else None

    @property
    def against_baseline(self) -> bool:
        """Whether the yardstick is a share of judgments against the baseline's answers, of which one half is the
        baseline's own."""
        return self.yardstick.partition(":")[0] in COMPARED


@dataclass(frozen=True)
class Link:
    """One finished run that the evaluation was made from, or that the user added."""

    folder: str
    manifest: dict[str, Any]

    @property
    def stage(self) -> str:
        return str(self.manifest["stage"])

    @property
    def id(self) -> str:
        return str(self.manifest["id"])


# --- reading ---


def read_evaluation(folder: str) -> Evaluation:
    """A finished *evaluate* run.

    Raises:
        RunError: there is no such folder, or it is not finished.
        HandoffError: it is another stage's, its files have changed, or they are incomplete.
    """
    manifest = _evaluate_manifest(folder)
    for name in ("report.json", "completions.jsonl"):
        _verify_output(folder, manifest, f"final/{name}")
    try:
        report = finite(json.loads((Path(folder) / "final" / "report.json").read_text(encoding="utf-8")))
        policies = {str(name): PolicyFigures.model_validate(row) for name, row in report["policies"].items()}
        answers = tuple(Answer.model_validate(finite(row)) for _, row in read_rows(folder, "completions.jsonl"))
    except ValidationError as error:
        raise _unreadable(folder, "; ".join(list(explain(error))[:5])) from error
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise _unreadable(folder, f"{type(error).__name__}: {error}") from error
    yardstick = str(report.get("yardstick", RUBRIC))
    is_rubric = yardstick == RUBRIC
    evaluation = Evaluation(
        folder=folder,
        manifest=manifest,
        policies=policies,
        baseline=str(report.get("baseline", "sft")),
        yardstick=yardstick,
        yardstick_name=str(report.get("yardstick_name") or (RUBRIC_NAME if is_rubric else yardstick)),
        yardstick_scale=_scale(report.get("yardstick_scale") or ([0.0, 1.0] if is_rubric else None)),
        sampling=dict(report.get("sampling") or {}),
        kinds=kinds_of(report),
        answers=answers,
        yardsticks=tuple(report.get("yardsticks") or ()),
        gaps=tuple(report.get("gaps") or ()),
    )
    _check_prompts(evaluation)
    return evaluation


def _scale(ends: Any) -> Interval | None:
    return (float(ends[0]), float(ends[1])) if ends else None


def _evaluate_manifest(folder: str) -> dict[str, Any]:
    if not Path(folder).is_dir():
        raise RunError(f"no such run folder: {folder}; run 'tiebreak evaluate --config FILE' first, or fix the path")
    runs.identify_input(folder)  # names the command that would finish an interrupted run
    manifest = runs.read_manifest(folder)
    if manifest["stage"] != "evaluate":
        raise HandoffError(
            f"{folder} is a finished '{manifest['stage']}' run: compare reads the folder of an 'evaluate' run; "
            "give that with --evaluation"
        )
    return manifest


def _verify_output(folder: str, manifest: Mapping[str, Any], name: str) -> None:
    path, recorded = Path(folder) / name, manifest.get("outputs", {}).get(name)
    if recorded is None or not path.is_file():
        raise HandoffError(f"{folder} is finished, but has no {name}: run 'tiebreak evaluate' into a new folder")
    if hash_file(path) != recorded:
        raise HandoffError(
            f"{path} has changed since the run finished (its hash differs from the manifest's): "
            "run 'tiebreak evaluate' into a new folder"
        )


def _unreadable(folder: str, reason: str) -> HandoffError:
    return HandoffError(f"{folder}/final lacks what compare reads: {reason}; run 'tiebreak evaluate' into a new folder")


def _check_prompts(evaluation: Evaluation) -> None:
    """All figures of one table must be from the same prompts."""
    if not evaluation.policies or not evaluation.answers:
        raise HandoffError(f"{evaluation.folder} evaluated nothing: there is nothing to compare")
    everything = evaluation.prompt_ids
    for name in evaluation.policies:
        missing = everything - set(evaluation.per_prompt(name))
        if missing:
            raise HandoffError(
                f"{evaluation.folder}: policy '{name}' has no completion for {len(missing)} of {len(everything)} "
                f"prompts (first: {min(missing)}): its figures are not comparable with the others'; evaluate again"
            )


def finite(value: Any) -> Any:
    """JSON with NaN and infinities as null: a browser's JSON reader refuses them."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_chain(evaluation: str, further: Sequence[str] = ()) -> list[Link]:
    """The evaluation, all it was made from, and the `further` runs: inputs first, each once.

    Raises:
        RunError: a further run is not finished, or an input run is not found.
        HandoffError: a folder now holds another run than the one used.
    """
    links: dict[str, Link] = {}
    for folder in (*further, evaluation):
        if not Path(folder).is_dir():
            raise RunError(f"no such run folder: {folder}; fix the path in 'runs'")
        runs.identify_input(folder)
        for where, manifest in manifest_chain(folder):
            links.setdefault(str(manifest["id"]), Link(str(where), manifest))
    return list(links.values())


def kinds_of(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """The kinds of judges, from a list of kinds or their counts."""
    kinds = facts.get("kinds") or ()
    return (kinds,) if isinstance(kinds, str) else tuple(sorted(str(kind) for kind in kinds))
