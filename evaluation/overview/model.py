"""The content of the overview's report.json. `schema.json` is its JSON schema.

python -m evaluation.overview.model      # writes schema.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FORMAT = 1
SCHEMA = Path(__file__).with_name("schema.json")
Interval = tuple[float, float]
Outcome = Literal["better", "no worse", "worse", "undecided", "too few"]


class Part(BaseModel):
    """A part of the report. Unknown keys, as a later version's, are kept."""

    model_config = ConfigDict(extra="allow")


class Cost(Part):
    """A run's time, memory, tokens and labels."""

    seconds: float | None = None
    """of the run itself"""
    seconds_in_all: float | None = None
    """of the run and of all runs that it was made from"""
    peak_memory_bytes: int | None = None
    energy_kwh: float | None = None
    """of the run itself, by its machine's counters; None: not measured"""
    tokens: float | None = None
    """trained on"""
    judgments: int | None = None
    """judgments that it, or a run that it was made from, learned from"""
    machine: str | None = None


class RunRow(Part):
    """One run."""

    name: str
    folder: str
    stage: str
    id: str | None
    state: str
    group: str
    """the runs of this name differ in seeds alone"""
    seeds: dict[str, Any] = {}
    config: dict[str, Any] = {}
    """every key that decides what it computes, dotted; with `STAGE: ` before it, a key of a run that it was made from"""
    inputs: dict[str, str] = {}
    """input's name → the id of its content"""
    figures: dict[str, float] = {}
    step: float | None = None
    steps: int | None = None
    """of its training, where it is in progress"""
    seconds_left: float | None = None
    """of a running training, at the pace of its last steps"""
    cost: Cost = Cost()
    git_commit: str | None = None
    packages: dict[str, str] = {}
    kinds: list[str] = []
    finished_at: str | None = None
    notes: list[str] = []


class Group(Part):
    """Runs of one stage that differ in seeds alone."""

    name: str
    stage: str
    runs: list[str]
    figures: dict[str, Spread] = {}


class Spread(Part):
    """A figure over a group's runs."""

    mean: float
    low: float
    high: float
    deviation: float | None = None
    """sample standard deviation; None of one run"""
    n: int


class Differences(Part):
    """A stage's keys, by whether its runs differ in them."""

    stage: str
    runs: list[str]
    differing: dict[str, list[Any]]
    """key → its value in each of `runs`; seeds last"""
    shared: dict[str, Any]


class Curve(Part):
    """One figure of one run over its steps."""

    run: str
    key: str
    held_out: bool
    points: list[tuple[float, float]]
    skipped: int = 0
    """values that are not finite"""
    rows_a_point: int = 1


class Panel(Part):
    """The curves of one chart."""

    stage: str
    title: str
    unit: str
    curves: list[Curve]
    reference: float | None = None
    reference_name: str = ""
    warning: str = ""
    """why the runs' levels cannot be compared; empty if they can"""


class KLPoint(Part):
    step: float | None = None
    kl: float
    score: float
    interval: Interval | None = None


class KLTrail(Part):
    """One run's, or one policy's, place in a chart of reward against KL."""

    name: str
    run: str | None = None
    points: list[KLPoint]
    kind: Literal["rollouts", "held out", "evaluated"]


class KLChart(Part):
    """Scores of one reward model against KL from one reference: only these can stand on common axes."""

    reward_model: str
    reference: str
    trails: list[KLTrail]


class Policy(Part):
    """An evaluated policy: the runs that differ in seeds alone, or a model without a run."""

    name: str
    stage: str
    members: list[str]
    """its policies, each as EVALUATION: NAME"""
    runs: list[str] = []
    """the rows of `runs` that trained it"""
    yardstick: Spread
    yardstick_interval: Interval | None = None
    rating: float | None = None
    """Bradley-Terry, on Elo's scale; the mean of all policies is 0"""
    rating_interval: Interval | None = None
    length: Spread
    unfinished: Spread | None = None
    repetition: Spread | None = None
    """share of an answer's 4-word sequences that came before in it"""
    refusals: Spread
    """share of answers that open with a refusal"""
    score: Spread | None = None
    kl: Spread | None = None
    kl_interval: Interval | None = None


class Match(Part):
    """One policy against another, on the same prompts."""

    policy: str
    other: str
    win_rate: float
    interval: Interval
    p_value: float
    """adjusted over all comparisons of the report (Holm)"""
    outcome: Outcome
    more: int = 0
    length_controlled: float | None = None
    length_controlled_interval: Interval | None = None
    seeds_low: float | None = None
    seeds_high: float | None = None
    """the smallest and largest win rate among pairs of seeds"""


class Noise(Part):
    """A policy against itself, sampled with other seeds."""

    policy: str
    seeds: list[Any]
    win_rate: float
    interval: Interval
    tied: float
    difference: float
    """of the yardstick's means, absolute"""


class Sample(Part):
    prompt_id: str
    messages: list[dict[str, str]]
    answers: dict[str, Answer]
    """by policy; of several seeds, the first"""


class Answer(Part):
    text: str
    value: float
    score: float | None = None
    tokens: int
    finished: bool = True


class Field(Part):
    """Evaluations on the same prompts, with the same yardstick and sampling, and what they show."""

    evaluations: list[str]
    yardstick: str
    yardstick_scale: Interval | None = None
    against_baseline: bool = False
    """the yardstick is a share of judgments against the baseline's answers"""
    prompts: int
    sampling: dict[str, Any] = {}
    baseline: str | None = None
    policies: list[Policy]
    """the best rated first"""
    matches: list[Match]
    noise: list[Noise] = []
    samples: list[Sample] = []
    unlike: list[str] = []
    """why it cannot be compared with the first field"""


class Agreement(Part):
    """How far the raters of one labelling run agree."""

    run: str
    kind: str
    measures: dict[str, dict[str, Any]]
    raters: int | None = None
    judgments: int | None = None
    ties: int | None = None
    preferences: int | None = None


class Calibration(Part):
    """Whether verdicts of confidence c are right in a share c of cases: a reward model's, or a judge's against people."""

    run: str
    stage: str
    pairs: int
    """held-out pairs of a reward model; comparisons in which a judge and people prefer a side"""
    accuracy: float | None = None
    """share of the pairs in which the preferred answer is the chosen one"""
    accuracy_interval: Interval | None = None
    ece: float
    """expected calibration error, a share"""
    nll: float | None = None
    """negative log-likelihood, nats"""
    temperature: float | None = None
    """that fits a reward model's scores best; None if none helps"""
    ece_scaled: float | None = None
    """after a temperature that was fitted on other prompts"""
    nll_scaled: float | None = None
    bins: list[dict[str, Any]]
    """of a reliability diagram, each with n, confidence, accuracy and interval"""


class Node(Part):
    """A run, or a group of them, in the lineage graph."""

    id: str
    name: str
    stage: str
    runs: int = 1
    given: bool = True
    """False: found as an ancestor"""


class Edge(Part):
    source: str
    target: str
    role: str


class Headline(Part):
    claim: str
    sentences: list[str] = []
    caveats: list[str] = []


class TrainingAnswers(Part):
    """A policy's newest answers to held-out prompts while it trained, beside those before its first step."""

    run: str
    step: int
    rows: list[dict[str, Any]]
    """each with prompt, before_training and completion"""


class FurtherMeasures(Part):
    """What an evaluation measured besides its first yardstick."""

    evaluation: str
    baseline: str
    yardsticks: list[dict[str, Any]] = []
    policies: dict[str, dict[str, Any]] = {}
    """name → its figures by yardstick, and by benchmark"""


class Overview(Part):
    """The report."""

    format: int = FORMAT
    title: str
    headline: Headline
    runs: list[RunRow]
    groups: list[Group] = []
    differences: list[Differences] = []
    panels: list[Panel] = []
    reward_against_kl: list[KLChart] = []
    fields: list[Field] = []
    training_answers: list[TrainingAnswers] = []
    further: list[FurtherMeasures] = []
    agreement: list[Agreement] = []
    calibration: list[Calibration] = []
    nodes: list[Node] = []
    edges: list[Edge] = []
    comparisons: int = 0
    """number of comparisons for which p-values are corrected: all pairs of policies, and those of further yardsticks"""
    left_out: dict[str, str] = {}
    """folder → why"""


def schema() -> str:
    """The JSON schema of report.json, as in `schema.json`."""
    return json.dumps(Overview.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(schema(), encoding="utf-8")
