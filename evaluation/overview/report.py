"""From run folders to the overview's content. Nothing here draws."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.compare.reading import Evaluation, Link, kinds_of, read_evaluation
from evaluation.compare.verdicts import caveats_of
from evaluation.compare.words import edge, label, listed
from evaluation.configuration import OverviewArguments
from evaluation.overview.curves import kl_charts, overlay
from evaluation.overview.grouping import (
    ancestors_of,
    group_names,
    make_groups,
    short_names,
    stage_differences,
    whole_config,
)
from evaluation.overview.labels import agreement_of, calibration_of
from evaluation.overview.model import (
    Cost,
    Edge,
    Field,
    FurtherMeasures,
    Headline,
    Match,
    Node,
    Overview,
    RunRow,
    TrainingAnswers,
)
from evaluation.overview.policies import Corrected, correct, evaluated_trails, find_comparable, make_fields
from evaluation.overview.reading import RunRecord, find_runs, is_number, read_runs
from evaluation.yardstick_figures import conclusion
from tiebreak.errors import RunError, TiebreakError
from tiebreak.page.numbers import number, percent, two_digits
from tiebreak.stages import STAGES
from tiebreak.tracking.contents import read_rows as read_table

PACED_BY = 20
"""number of last steps from which the time left is estimated"""
MOST_NODES = 40
"""of the lineage graph; with more, it shows groups instead"""


def read_overview(folders: Sequence[str], given: OverviewArguments) -> Overview:
    """The content of the report on the runs in, and below, the folders.

    Raises:
        RunError: a folder does not exist, or there is no readable run.
    """
    output = Path(given.output).resolve()
    found = [folder for folder in find_runs(folders) if Path(folder).resolve() != output]
    records, left_out = read_runs(found)
    if not records:
        raise RunError("none of the runs can be read:\n" + "\n".join(f"  {why}" for why in left_out.values()))
    return build_overview(records, left_out, given.title, given.samples)


def build_overview(records: Sequence[RunRecord], left_out: Mapping[str, str], title: str, samples: int) -> Overview:
    """The content of report.json.

    Args:
        records: in recipe order.
        samples: prompts whose answers are shown.
    """
    everyone = _with_ancestors(records)
    names, groups = short_names(records), group_names(everyone)
    evaluations, faults = _evaluations(records, names)
    sets = find_comparable(evaluations, groups)
    corrected = correct(sets)
    fields = make_fields(sets, corrected, {one.id: one.stage for one in everyone}, names, samples)
    nodes, edges = lineage_graph(records, everyone, names, groups)
    agreement = [
        found for one in everyone for found in agreement_of(one, names)
    ]  # may add notes to the runs, as the next
    calibration = [held_out for one in everyone if (held_out := calibration_of(one, names))]
    return Overview(
        title=title,
        headline=make_headline(records, fields, evaluations, names, faults),
        runs=[_row(one, names, groups, faults) for one in records],
        groups=make_groups(records, names, groups),
        differences=stage_differences(records, names, groups),
        panels=overlay(records, names),
        reward_against_kl=kl_charts(records, names, evaluated_trails(evaluations, names)),
        fields=fields,
        training_answers=[found for one in records if (found := training_answers(one, names))],
        further=[more for name, one in evaluations.items() if (more := further_measures(name, one, corrected))],
        comparisons=corrected.comparisons,
        agreement=agreement,
        calibration=calibration,
        nodes=nodes,
        edges=edges,
        left_out=dict(left_out),
    )


def seconds_left(one: RunRecord) -> float | None:
    """Of a running training, at the median pace of its last steps; None if its length or pace is not known yet."""
    steps, rows = one.record.get("steps"), [row for row in one.rows if is_number(row.get("step_seconds"))]
    paces = [row["step_seconds"] for row in rows if "loss" in row or "objective/kl" in row][-PACED_BY:]
    if one.state != "running" or not isinstance(steps, int) or not paces:
        return None
    return float(max(steps - max(row["step"] for row in rows), 0) * statistics.median(paces))


def training_answers(one: RunRecord, names: Mapping[str, str]) -> TrainingAnswers | None:
    """The last rows of a run's completions.jsonl."""
    rows = [row for row in read_table(Path(one.folder) / "completions.jsonl") if is_number(row.get("step"))]
    if not rows:
        return None
    step = max(row["step"] for row in rows)
    shown = ("prompt", "before_training", "completion")
    newest = [{key: row.get(key) for key in shown} for row in rows if row["step"] == step]
    return TrainingAnswers(run=names[one.id], step=int(step), rows=newest)


def further_measures(name: str, evaluation: Evaluation, corrected: Corrected) -> FurtherMeasures | None:
    """Its yardsticks after the first, and benchmarks; None without any."""
    policies: dict[str, dict[str, Any]] = {}
    for policy, figures in evaluation.policies.items():
        benchmarks = figures.model_dump(mode="json").get("benchmarks")
        rows = {one: _corrected(name, policy, one, evaluation, corrected) for one in evaluation.yardstick_rows(policy)}
        policies[policy] = {k: v for k, v in (("yardsticks", rows), ("benchmarks", benchmarks)) if v}
    if len(evaluation.yardsticks) < 2 and not any("benchmarks" in row for row in policies.values()):
        return None
    return FurtherMeasures(
        evaluation=name, baseline=evaluation.baseline, yardsticks=list(evaluation.yardsticks), policies=policies
    )


def _corrected(name: str, policy: str, yardstick: str, evaluation: Evaluation, corrected: Corrected) -> dict[str, Any]:
    """A yardstick's figures with the report's verdict; the first has none here, since its verdicts are in the matches."""
    row = evaluation.yardstick_rows(policy)[yardstick]
    p_value = corrected.further.get((name, policy, yardstick))
    if p_value is None:
        return {key: value for key, value in row.items() if key not in ("p_value", "verdict")}
    better = next(one["better"] for one in evaluation.yardsticks if one["source"] == yardstick)
    return {**row, **conclusion(row["outcomes"], better, p_value)}


def _with_ancestors(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs and those that they were made from, inputs first."""
    found: dict[str, RunRecord] = {}
    for one in records:
        for ancestor in (*ancestors_of(one), one):
            found.setdefault(ancestor.id, ancestor)
    order = {name: place for place, name in enumerate(STAGES)}
    return sorted(found.values(), key=lambda one: order.get(one.stage, len(order)))


def _evaluations(
    records: Sequence[RunRecord], names: Mapping[str, str]
) -> tuple[dict[str, Evaluation], dict[str, str]]:
    """(evaluations by name, run's id → why its evaluation cannot be read)."""
    found, faults = dict[str, Evaluation](), dict[str, str]()
    for one in records:
        if one.stage == "evaluate" and one.state == "finished":
            try:
                found[_evaluation_name(names[one.id])] = read_evaluation(one.folder)
            except TiebreakError as error:
                faults[one.id] = str(error)
    return found, faults


def _evaluation_name(name: str) -> str:
    """seed-0/evaluate → seed-0."""
    return name.removesuffix("/evaluate") or name


def _row(one: RunRecord, names: Mapping[str, str], groups: Mapping[str, str], faults: Mapping[str, str]) -> RunRow:
    record = one.record
    return RunRow(
        name=names[one.id],
        folder=one.folder,
        stage=one.stage,
        id=record.get("id"),
        state=one.state,
        group=groups[one.id],
        seeds=one.seeds,
        config=whole_config(one),
        inputs={name: str(entry["id"]) for name, entry in one.inputs().items()},
        figures=one.metrics,
        step=max((row["step"] for row in one.rows if is_number(row["step"])), default=None),
        steps=record.get("steps"),
        seconds_left=seconds_left(one),
        cost=cost_of(one),
        git_commit=record.get("git_commit"),
        packages=dict(record.get("packages") or {}),
        kinds=list(kinds_of(record)),
        finished_at=record.get("finished_at"),
        notes=[*one.notes, *one.not_finite(), *([faults[one.id]] if one.id in faults else [])],
    )


def cost_of(one: RunRecord) -> Cost:
    """Time, memory, tokens and labels; what is not recorded is left out."""
    chain = [*ancestors_of(one), one]
    seconds = [link.record.get("seconds") for link in chain]
    judged = [link.record.get("judgments") for link in chain if link.stage == "label"]
    return Cost(
        seconds=one.record.get("seconds"),
        seconds_in_all=sum(s for s in seconds if is_number(s)) if all(is_number(s) for s in seconds) else None,  # type: ignore[misc]
        peak_memory_bytes=one.record.get("peak_memory_bytes"),
        energy_kwh=(one.record.get("energy") or {}).get("kwh"),
        tokens=tokens_of(one),
        judgments=sum(n for n in judged if isinstance(n, int)) if judged else None,
        machine=one.record.get("machine"),
    )


def tokens_of(one: RunRecord) -> float | None:
    """Tokens trained on, as logged; of PPO and its like, those of the answers that they sampled. None if not known."""
    counts = [
        row[key] for row in one.rows for key in ("num_tokens", "num_input_tokens_seen") if is_number(row.get(key))
    ]
    if counts or one.every > 1:
        return max(counts, default=None)
    total, episodes = 0.0, 0.0
    for row in one.rows:
        length, episode = row.get("completions/mean_length"), row.get("episode")
        if is_number(length) and is_number(episode):
            total += length * (episode - episodes)  # type: ignore[operator]
            episodes = episode  # type: ignore[assignment]
    return float(round(total)) or None


# --- lineage ---


def lineage_graph(
    records: Sequence[RunRecord],
    everyone: Sequence[RunRecord],
    names: Mapping[str, str],
    groups: Mapping[str, str],
) -> tuple[list[Node], list[Edge]]:
    """The runs and what they were made from; with many, each node is a group of runs."""
    grouped = len(everyone) > MOST_NODES
    key = {one.id: f"{one.stage} {groups[one.id]}" if grouped else one.id for one in everyone}
    nodes: dict[str, Node] = {}
    edges: dict[tuple[str, str], Edge] = {}
    given = {one.id for one in records}
    for one in everyone:
        name = groups[one.id] if grouped else names.get(one.id, Path(one.folder).name)
        node = nodes.setdefault(key[one.id], Node(id=key[one.id], name=name, stage=one.stage, runs=0, given=False))
        node.runs += 1
        node.given = node.given or one.id in given
        for role, ancestor in one.ancestors.items():
            ends = (key[ancestor.id], key[one.id])
            edges.setdefault(ends, Edge(source=ends[0], target=ends[1], role=role))
    return list(nodes.values()), list(edges.values())


# --- the headline ---


def make_headline(
    records: Sequence[RunRecord],
    fields: Sequence[Field],
    evaluations: Mapping[str, Evaluation],
    names: Mapping[str, str],
    faults: Mapping[str, str],
) -> Headline:
    """The main claim, and its caveats.

    Args:
        faults: run's id → why its evaluation cannot be read.
    """
    unread = [f"{names[identity]} is not among the figures: {fault}." for identity, fault in faults.items()]
    if not fields:
        return Headline(claim=_counted(records), caveats=[*unread, *_states(records, names)])
    first = fields[0]
    used = {name: evaluations[name] for name in first.evaluations}
    chains = {name: _links(one, records) for name, one in used.items()}
    kinds = sorted({kind for chain in chains.values() for link in chain for kind in kinds_of(link.manifest)})
    caveats = [*unread, *caveats_of(used, chains, kinds), *_states(records, names)]
    apart = [name for one in fields[1:] for name in one.evaluations]
    if apart:
        reasons = "; ".join(dict.fromkeys(reason for one in fields[1:] for reason in one.unlike))
        caveats.append(f"{listed(apart)} cannot be compared with the rest and stands apart: {reasons}.")
    sentences = [*_sentences(first), *_over_seeds(first, records, names)]
    return Headline(claim=_claim(first), sentences=sentences, caveats=list(dict.fromkeys(caveats)))


def _links(evaluation: Evaluation, records: Sequence[RunRecord]) -> list[Link]:
    mine = next(one for one in records if one.folder == evaluation.folder)
    return [Link(one.folder, dict(one.record)) for one in (*ancestors_of(mine), mine)]


def _counted(records: Sequence[RunRecord]) -> str:
    stages = [
        f"{len(list(mine))} of {label(stage)}" for stage, mine in itertools.groupby(records, key=lambda one: one.stage)
    ]
    return f"{len(records)} run{'s' if len(records) > 1 else ''}: {listed(stages)}"


def _states(records: Sequence[RunRecord], names: Mapping[str, str]) -> list[str]:
    rows = []
    for state, words in (("running", "still running"), ("interrupted", "interrupted"), ("failed", "failed")):
        mine = [names[one.id] for one in records if one.state == state]
        if mine:
            rows.append(
                f"{listed(mine[:6])}{' and others' if len(mine) > 6 else ''}: {words}; figures are of what is done."
            )
    return rows


def _match(field: Field, policy: str, other: str) -> Match:
    return next(one for one in field.matches if (one.policy, one.other) == (policy, other))


def _claim(field: Field) -> str:
    """The best policy, if the figures show one."""
    names = [one.name for one in field.policies]
    if len(names) == 1:
        return f"Only {names[0]} was evaluated"
    best, rest = names[0], names[1:]
    matches = {other: _match(field, best, other) for other in rest}
    if any(one.outcome == "too few" for one in matches.values()):
        return f"{field.prompts} prompt{'s are' if field.prompts > 1 else ' is'} too few to rank {len(names)} policies"
    beaten = [other for other in rest if matches[other].outcome == "better"]
    open_ = [other for other in rest if other not in beaten]
    if not open_:
        return f"{best} is the best of {len(names)} policies"
    if not beaten:
        return f"No policy is shown to be better than the others: {best} leads"
    return f"{best} leads; no clear difference from {listed(open_)}"


def _sentences(field: Field) -> list[str]:
    """The leader against the baseline and the runner-up, in figures."""
    names = [one.name for one in field.policies]
    if len(names) == 1:
        return []
    best = names[0]
    others = dict.fromkeys([field.baseline or names[1], names[1]])
    return [sentence(_match(field, best, other), field.prompts) for other in others if other != best]


def _over_seeds(field: Field, records: Sequence[RunRecord], names: Mapping[str, str]) -> list[str]:
    """Whether the leader's seeds agree that it is ahead of the runner-up."""
    if len(field.policies) == 1:
        return []
    best, second = field.policies[:2]
    seeds = {tuple(sorted(one.seeds.items())) for one in records if names[one.id] in best.runs}
    if not seeds or len(best.runs) < len(best.members):  # a model without a run, or a run that is not there
        return []
    if len(seeds) == 1:
        return [f"Only one seed of {best.name} was evaluated: another seed may change the order."]
    own, other = best.yardstick, second.yardstick
    means = (
        f"{two_digits(own.low)} to {two_digits(own.high)} against {two_digits(other.low)} to {two_digits(other.high)}"
    )
    ahead = (
        f"{'both' if len(seeds) == 2 else f'all {len(seeds)}'} seeds are"
        if own.low > other.high
        else "not every seed is"
    )
    return [f"By mean score ({means}), {ahead} ahead of {second.name}."]


def sentence(match: Match, prompts: int) -> str:
    """One match in words, with its verdict."""
    low, high = match.interval
    return (
        f"{match.policy} wins {percent(match.win_rate)} of {number(prompts)} prompts against {match.other} "
        f"(95% interval {edge(low)} to {edge(high)}): {verdict_words(match)}."
    )


def verdict_words(match: Match) -> str:
    """better, no worse, worse, or how many more prompts would decide."""
    return {
        "better": "better",
        "worse": "worse",
        "no worse": "no worse, by a margin of 5 points",
        "undecided": f"undecided: about {number(match.more)} more prompts would tell",
        "too few": f"too few prompts: about {number(match.more)} more are needed",
    }[match.outcome]


def to_json(report: Overview) -> dict[str, Any]:
    return report.model_dump(mode="json")
