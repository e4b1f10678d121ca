"""Pairs of policies' answers to held-out prompts, for people to compare.

    tiebreak duel --evaluation runs/quickstart/evaluate --output runs/quickstart/duel

The answers come from an evaluation; the report shows its figures beside people's. The pairs' purpose is `evaluation`: label
stores refuse them beside training pairs of the same prompts, and exports keep their judgments out of training.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from evaluation.duel import report
from evaluation.duel.configuration import DuelConfig
from tiebreak.command.launch import stage_main
from tiebreak.errors import DataError, HandoffError, counted
from tiebreak.files import read_jsonl, write_json, write_jsonl
from tiebreak.measures.duels import SHARED
from tiebreak.messages import Message, content_id
from tiebreak.records import Completion, Pair
from tiebreak.runs.run import Run, read_manifest, start_run
from tiebreak.terminal import say
from tiebreak.tracking.recorder import tracked

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Evaluated:
    """An evaluation's answers: the first of each policy to each prompt."""

    id: str
    """id of its run"""
    policies: list[str]
    report: Row
    answers: dict[str, dict[str, Row]]
    """by prompt and policy"""

    def messages(self, prompt_id: str) -> list[Row]:
        """The prompt."""
        return list(next(iter(self.answers[prompt_id].values()))["messages"])


def duel(config: DuelConfig) -> None:
    """The stage."""
    with start_run(config, "duel") as run, tracked(run):
        if run.finished:
            say(f"{run.folder} is finished with this configuration and these inputs: nothing to do")
            return
        evaluated = read_evaluation(config)
        prompts = sorted(evaluated.answers, key=lambda name: content_id("rank", name))[: config.max_prompts]
        pairs = [pair for prompt in prompts for pair in pairs_of(evaluated, prompt)]
        if not pairs:
            raise DataError(
                f"evaluation: all policies of {config.evaluation} give the same answers: nothing to compare"
            )
        pairs.sort(key=lambda pair: content_id("order", config.seed, pair.id))
        rows = [measures_of(evaluated.answers[prompt][name]) for prompt in prompts for name in evaluated.policies]
        write_jsonl(run.final / "pairs.jsonl", pairs)
        write_jsonl(run.final / report.MEASURES, rows)
        summary = describe(evaluated, prompts, pairs)
        write_json(run.final / "report.json", summary)
        _finish(run, summary)


def _finish(run: Run, summary: Row) -> None:
    run.facts |= {"counts": summary["counts"], "policies": summary["policies"]}
    run.finish()
    counts = summary["counts"]
    compared = f"{counted(counts['pairs'], 'pair')} of {len(summary['policies'])} policies"
    lines = [f"{compared} on {counted(counts['prompts'], 'prompt')}"]
    if counts["same"]:
        lines.append(f"{counted(counts['same'], 'comparison')} of equal answers: ties, not asked")
    if counts["empty"]:
        lines.append(f"{counted(counts['empty'], 'comparison')} left out: an answer is empty")
    say(*lines)


def read_evaluation(config: DuelConfig) -> Evaluated:
    """The configured policies' answers.

    Raises:
        HandoffError: it is another stage's run, or has too few policies.
        DataError: the prompts are those of training, or two policies are the same model.
    """
    manifest = read_manifest(config.evaluation)
    if manifest["stage"] != "evaluate":
        raise HandoffError(
            f"evaluation: {config.evaluation} is a finished '{manifest['stage']}' run: give the folder of an evaluate run"
        )
    final = Path(config.evaluation) / "final"
    evaluated = json.loads((final / "report.json").read_text(encoding="utf-8"))
    if evaluated["split"] == "train":
        raise DataError(
            f"evaluation: {config.evaluation} is on the train split: policies are compared on prompts that none was "
            "trained on. Evaluate with split: test"
        )
    names = _chosen(config, evaluated)
    answers: dict[str, dict[str, Row]] = {}
    for row in read_jsonl(final / "completions.jsonl"):
        if row["policy"] in names:
            answers.setdefault(row["prompt_id"], {}).setdefault(row["policy"], row)
    return Evaluated(manifest["id"], names, evaluated, answers)


def _chosen(config: DuelConfig, evaluated: Row) -> list[str]:
    there = list(evaluated["policies"])
    if unknown := [name for name in config.policies if name not in there]:
        raise HandoffError(f"policies: no {unknown[0]} in {config.evaluation}; it has {', '.join(there)}")
    names = config.policies or there
    if len(names) < 2:
        raise HandoffError(f"evaluation: {config.evaluation} has one policy: evaluate two or more together")
    if wrong := [name for name in names if SHARED in name]:
        raise HandoffError(f"policies: the name {wrong[0]!r} contains {SHARED!r}: evaluate it under another name")
    first: dict[str, str] = {}
    for name in names:
        identity = evaluated["policies"][name].get("id", name)
        if identity in first:
            raise DataError(f"policies: {first[identity]} and {name} are the same model ({identity}): leave one out")
        first[identity] = name
    return names


def pairs_of(evaluated: Evaluated, prompt_id: str) -> list[Pair]:
    """Every two different answers to a prompt, each pair once, however many policies gave them."""
    by_text: dict[str, list[str]] = {}
    for name in evaluated.policies:
        by_text.setdefault(evaluated.answers[prompt_id][name]["text"].strip(), []).append(name)
    messages = tuple(Message.model_validate(one) for one in evaluated.messages(prompt_id))
    sides = [_completion(evaluated.answers[prompt_id], prompt_id, names) for text, names in by_text.items() if text]
    return [
        Pair(
            id=content_id("duel", prompt_id, sorted(side.id for side in both)),
            prompt_id=prompt_id,
            messages=messages,
            completions=tuple(sorted(both, key=lambda side: side.id)),
            split="test" if evaluated.report["split"] == "test" else "validation",
            source=evaluated.id,
            purpose="evaluation",
        )
        for both in combinations(sides, 2)
    ]


def _completion(answers: Mapping[str, Row], prompt_id: str, names: Sequence[str]) -> Completion:
    row = answers[names[0]]
    return Completion(
        id=content_id("completion", prompt_id, row["text"]),
        text=row["text"],
        policy=SHARED.join(names),
        finished=row["finished"],
    )


def measures_of(row: Row) -> dict[str, Any]:
    """What the evaluation measured of an answer."""
    kept = ("prompt_id", "policy", "text", "score", "yardstick_score", "length_tokens")
    return {key: row[key] for key in kept}


def describe(evaluated: Evaluated, prompts: Sequence[str], pairs: Sequence[Pair]) -> dict[str, Any]:
    """What is compared."""
    texts = [[evaluated.answers[prompt][name]["text"].strip() for name in evaluated.policies] for prompt in prompts]
    both = [pair for row in texts for pair in combinations(row, 2)]
    about = evaluated.report["policies"]
    return {
        "policies": {name: {key: about[name].get(key) for key in ("source", "id")} for name in evaluated.policies},
        "split": evaluated.report["split"],
        "yardstick_name": evaluated.report["yardstick_name"],
        "empty_answers": {name: sum(not row[n] for row in texts) for n, name in enumerate(evaluated.policies)},
        "counts": {
            "prompts": len(prompts),
            "pairs": len(pairs),
            "same": sum(one == other for one, other in both),
            "empty": sum(one != other and not (one and other) for one, other in both),
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak duel`, or `python -m evaluation.duel.pairs`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["report"]:
        report.main(words[1:])
    else:
        stage_main("duel", DuelConfig, duel, words)


if __name__ == "__main__":
    main()
