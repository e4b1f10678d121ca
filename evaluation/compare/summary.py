"""From finished run folders to the figures of the report: `report.json`.

Nothing here draws. Everything in the report except the key `timings` is independent of time, place and speed, so two
runs of one recipe give the same figures, byte for byte.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.compare.lineage import Lineage
from evaluation.compare.pulls import find_pulls
from evaluation.compare.reading import Evaluation, Link, finite, kinds_of
from evaluation.compare.settings import training_settings
from evaluation.compare.verdicts import (
    Verdicts,
    corrected_rows,
    count_comparisons,
    find_verdicts,
    guard_decision,
    headline,
    verdict,
)
from evaluation.compare.words import distinct_names
from tiebreak.data.reading import read_rows
from tiebreak.errors import HandoffError
from tiebreak.measures.statistics import difference_interval
from tiebreak.stages import find_stage

__all__ = ["build_report", "distinct_names", "guard_decision", "verdict"]

TIMING_WORDS = ("seconds", "runtime", "per_second", "flos", "memory")


def build_report(
    evaluation: Evaluation,
    links: Sequence[Link],
    against: Sequence[Evaluation],
    title: str,
    chains: Sequence[Sequence[Link]] = (),
) -> dict[str, Any]:
    """The content of `report.json`.

    Args:
        links: the runs behind `evaluation`, and those that the user added.
        against: further evaluations.
        chains: the runs behind each of them.
    """
    everyone = [evaluation, *against]
    names = distinct_names([one.folder for one in everyone])
    behind = dict(zip(names, [links, *(chains or [[] for _ in against])], strict=True))
    every_link = list({link.id: link for chain in reversed(behind.values()) for link in chain}.values())
    stated = {kind for one in everyone for kind in one.kinds}
    kinds = sorted({*stated, *(kind for link in every_link for kind in kinds_of(link.manifest))})
    by_name = dict(zip(names, everyone, strict=True))
    verdicts = find_verdicts(by_name, behind)
    report: dict[str, Any] = {
        "title": title,
        "headline": headline(by_name, behind, kinds),
        "policies": policy_rows(evaluation, verdicts[names[0]]),
        "comparisons": count_comparisons(verdicts),
        "baseline": evaluation.baseline,
        "yardstick": evaluation.yardstick,
        "yardstick_name": evaluation.yardstick_name,
        "yardstick_scale": evaluation.yardstick_scale,
        "sampling": evaluation.sampling,
        "kinds": kinds,
        "changes": changes(evaluation, Lineage(evaluation, links)),
        "stages": [stage_facts(link) for link in every_link],
        "data": [row for link in every_link for row in data_counts(link)],
        "chain": [chain_entry(link) for link in every_link],
    }
    if evaluation.yardsticks:
        report["yardsticks"] = list(evaluation.yardsticks)
    if evaluation.gaps:
        report["gaps"] = list(evaluation.gaps)
    if pulls := find_pulls(evaluation, every_link):
        report["pulls"] = pulls
    if against:
        report["against"] = side_by_side(by_name, verdicts)
    report["timings"] = {"stages": [timing(link) for link in every_link]}
    return report


def policy_rows(evaluation: Evaluation, verdicts: Verdicts) -> dict[str, dict[str, Any]]:
    """Each policy's figures, with wins counted from the answers, and its verdict."""
    rows = {}
    for name, figures in evaluation.policies.items():
        # `source` is a path: paths belong to `timings`
        row = {k: v for k, v in figures.model_dump(mode="json").items() if k != "source" and not _is_timing(k)}
        if name != evaluation.baseline and evaluation.baseline in evaluation.policies:
            outcomes = evaluation.outcomes(name, evaluation.baseline)
            row |= {
                "win_rate_vs_baseline": outcomes.win_rate,
                "win_rate_vs_sft": outcomes.win_rate,
                "win_rate_interval": list(outcomes.interval),
                "outcomes": {"wins": outcomes.wins, "ties": outcomes.ties, "losses": outcomes.losses},
            }
        if "yardsticks" in row:
            row["yardsticks"] = corrected_rows(evaluation, name, verdicts)
        rows[name] = {**row, **(verdicts.policies[name].figures() if name in verdicts.policies else {})}
    return rows


def changes(evaluation: Evaluation, lineage: Lineage) -> list[dict[str, Any]]:
    """Each policy's changes against the policy that it was trained from, paired by prompt."""
    rows = []
    for name, figures in evaluation.policies.items():
        origin = lineage.origin_of(name)
        if origin is None:
            continue
        before, run = evaluation.policies[origin.policy], lineage.run_of(name)
        mine, theirs = evaluation.per_prompt(name), evaluation.per_prompt(origin.policy)
        differences = [mine[prompt] - theirs[prompt] for prompt in sorted(mine)]
        outcomes = evaluation.outcomes(name, origin.policy)
        mean = math.fsum(differences) / len(differences)
        interval = difference_interval(differences)
        rows.append(
            {
                "policy": name,
                "from": origin.policy,
                "trained_from": origin.trained,
                "through": list(origin.through),
                "run": run.id if run else None,
                "yardstick_difference": mean,
                "yardstick_difference_interval": interval,
                "rubric_difference": mean,  # the names of older reports
                "rubric_difference_interval": interval,
                "prompts_better": outcomes.wins,
                "prompts_equal": outcomes.ties,
                "prompts_worse": outcomes.losses,
                "criteria": {
                    c: share - before.criteria[c] for c, share in figures.criteria.items() if c in before.criteria
                },
                "length_tokens_difference": figures.length_tokens_mean - before.length_tokens_mean,
                "unfinished_difference": difference(figures.unfinished_share, before.unfinished_share),
                "repetition_difference": difference(figures.repetition_mean, before.repetition_mean),
            }
        )
    return rows


def difference(now: float | None, before: float | None) -> float | None:
    """`now` − `before`; None if either is unknown."""
    return None if now is None or before is None else now - before


def stage_facts(link: Link) -> dict[str, Any]:
    """A stage's entries from its manifest, without those that depend on time or the machine."""
    counts, metrics = _noted_counts(link), link.manifest.get("metrics")
    facts: dict[str, Any] = {"stage": link.stage, "id": link.id, "kinds": list(kinds_of(link.manifest))}
    if counts:
        facts["counts"] = finite(counts)
    if isinstance(metrics, dict):
        steady = {k: v for k, v in finite(metrics).items() if not _is_timing(k)}
        facts |= {"metrics": steady} if steady else {}
    if settings := training_settings(link.manifest):
        facts["settings"] = settings
    if isinstance(guard := link.manifest.get("guard"), dict):
        facts["guard"] = {**finite(guard), "decision": guard_decision(link.stage, guard)}
    return facts


def _noted_counts(link: Link) -> dict[str, Any]:
    """Counts in a stage's manifest, and the reasons for dropped rows from its data report."""
    recorded = link.manifest.get("counts")
    counts = dict(recorded) if isinstance(recorded, dict) else {}
    path = Path(link.folder) / "final" / "report.json"
    if find_stage(link.stage).makes == "data" and path.is_file():
        report = json.loads(path.read_text(encoding="utf-8"))
        preferences = report.get("preferences")
        if isinstance(report.get("dropped"), dict):
            counts["dropped, by reason"] = report["dropped"]
        if isinstance(preferences, dict):
            counts["preferences"] = {k: v for k, v in preferences.items() if k in ("total", "dropped", "outcomes")}
    return counts


def _is_timing(key: str) -> bool:
    return any(word in key for word in TIMING_WORDS)


def timing(link: Link) -> dict[str, Any]:
    """Time, place and duration of a stage."""
    keys = ("seconds", "peak_memory_bytes", "finished_at", "machine", "git_commit", "packages", "tiebreak")
    return {
        "stage": link.stage,
        "id": link.id,
        "folder": link.folder,
        **{key: link.manifest.get(key) for key in keys},
        "sources": {name: one["source"] for name, one in link.manifest["inputs"].items()},
    }


def chain_entry(link: Link) -> dict[str, Any]:
    """A run's inputs: ids only, no paths."""
    inputs = {name: {"kind": one["kind"], "id": one["id"]} for name, one in link.manifest["inputs"].items()}
    return {"stage": link.stage, "id": link.id, "inputs": inputs, "outputs": len(link.manifest.get("outputs", {}))}


def data_counts(link: Link) -> list[dict[str, Any]]:
    """Rows in a data stage's files, counted in the files, by split or by kind of judge."""
    rows = []
    for what in find_stage(link.stage).rows:
        path = Path(link.folder) / "final" / f"{what}.jsonl"
        if path.is_file():
            by: Counter[str] = Counter()
            total = 0
            for _, row in read_rows(str(path)):
                total += 1
                key = row.get("kind") or row.get("split") or _prompt_split(row)
                by.update([str(key)] if key else [])
            rows.append({"stage": link.stage, "what": what, "rows": total, "by": dict(sorted(by.items()))})
    return rows


def _prompt_split(row: Mapping[str, Any]) -> object:
    prompt = row.get("prompt")
    return prompt.get("split") if isinstance(prompt, dict) else None


# --- several evaluations side by side ---


def side_by_side(evaluations: Mapping[str, Evaluation], verdicts: Mapping[str, Verdicts]) -> dict[str, Any]:
    """The figures of several evaluations, after checking that they are comparable.

    Reward-model scores are included only if they are all from the same reward model: two models' scores have different
    scales.

    Raises:
        HandoffError: prompts, yardstick, criteria, baseline or sampling differ.
    """
    first, *others = everyone = list(evaluations.values())
    for other in others:
        _refuse_incomparable(first, other)
    judges = {reward_model_id(one) for one in everyone}
    return {
        "score_comparable": len(judges) == 1 and None not in judges,
        "evaluations": [
            {
                "id": str(one.manifest["id"]),
                "name": name,
                "seed": one.sampling.get("seed"),
                "policies": policy_rows(one, verdicts[name]),
            }
            for name, one in evaluations.items()
        ],
    }


def _refuse_incomparable(first: Evaluation, other: Evaluation) -> None:
    def refuse(what: str) -> HandoffError:
        return HandoffError(
            f"{other.folder} is not comparable with {first.folder}: {what}. Evaluate both with the same prompts and "
            "settings, or leave it out of 'against'"
        )

    if first.prompt_ids != other.prompt_ids:
        only_first, only_other = first.prompt_ids - other.prompt_ids, other.prompt_ids - first.prompt_ids
        raise refuse(f"the prompts differ ({len(only_first)} only in the first, {len(only_other)} only in the second)")
    if first.yardstick != other.yardstick:
        raise refuse(f"the yardsticks differ ({first.yardstick} and {other.yardstick})")
    if first.yardstick_id != other.yardstick_id:
        if first.against_baseline:
            raise refuse(f"the judgments of {first.yardstick} have changed")
        raise refuse(f"the function {first.yardstick} has changed (its source file differs)")
    if _criteria(first) != _criteria(other):
        raise refuse(f"the rubric's criteria differ ({', '.join(sorted(_criteria(first) ^ _criteria(other)))})")
    if first.baseline != other.baseline:
        raise refuse(f"the win rates have different baselines ({first.baseline} and {other.baseline})")
    if first.against_baseline and first.baseline_id != other.baseline_id:
        raise refuse(f"the answers were judged against two baselines, both named {first.baseline}")
    keys = sorted(k for k in first.sampling.keys() | other.sampling.keys() if k != "seed")
    unlike = [k for k in keys if first.sampling.get(k) != other.sampling.get(k)]
    if unlike:
        listed = ", ".join(f"{k}: {first.sampling.get(k)} and {other.sampling.get(k)}" for k in unlike)
        raise refuse(f"the answers were sampled differently ({listed})")


def _criteria(evaluation: Evaluation) -> set[str]:
    return {criterion for figures in evaluation.policies.values() for criterion in figures.criteria}


def reward_model_id(evaluation: Evaluation) -> str | None:
    """The id of the scoring reward model; None if there was none or the manifest lacks it."""
    one = evaluation.manifest["inputs"].get("reward_model")
    return str(one["id"]) if one else None
