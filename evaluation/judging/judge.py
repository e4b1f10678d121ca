"""A model judges pairs: a function, a reward model, a language model here or behind an API.

    tiebreak judge --pairs runs/quickstart/sample --function rubric --output runs/quickstart/judge

Every two completions are judged in both orders. A verdict that changes with the order is a tie, and is counted; an
unreadable verdict is a skip with its reason. The judgments carry `kind: model` from then on; `tiebreak label` adds them
to people's, and reports both.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, Protocol

from evaluation.judging.configuration import JudgeConfig
from evaluation.judging.questions import (
    TOO_LONG,
    Comparison,
    Instruction,
    Question,
    Rater,
    Reply,
    comparisons_of,
    to_judgment,
    with_injection,
)
from evaluation.judging.report import (
    Caveats,
    Injection,
    build_report,
    kind_of_skip,
    measure_injections,
    say_report,
    write_report,
)
from tiebreak.command.launch import stage_main
from tiebreak.data.judgments import of_people, read_judgments
from tiebreak.data.pairs import read_pairs
from tiebreak.data.reading import is_run
from tiebreak.errors import ConfigError, DataError, HandoffError, counted
from tiebreak.files import write_jsonl
from tiebreak.measures.duels import policies_of
from tiebreak.messages import content_id
from tiebreak.records import ExportedJudgment, Judgment, Pair
from tiebreak.runs.chain import manifest_chain
from tiebreak.runs.requirements import require
from tiebreak.runs.run import Run, clear_partial, start_run
from tiebreak.terminal import is_main_process, process_count, say
from tiebreak.tracking.recorder import tracked

TRIED = 10
"""comparisons on which an endpoint is tried first"""


class Judge(Protocol):
    """Answers questions, and writes each answer to disk at once."""

    model: str
    """its name, for records"""
    model_id: str
    """its manifest's id, or a base model's name; empty if it is not a model of ours"""
    prompt_version: str

    def ask(self, run: Run, questions: Sequence[Question], what: str) -> list[Reply]:
        """The replies, in order."""
        ...


def judge(config: JudgeConfig) -> None:
    """The stage."""
    asked_of = build_judge(config)
    with start_run(config, "judge") as run, tracked(run):
        if run.finished:
            say(f"{run.folder} is finished with this configuration and these inputs: nothing to do")
            return
        pairs = choose_pairs(config)
        people = read_people(config, pairs)
        rater = Rater(
            rater_id(config, asked_of), asked_of.model, asked_of.prompt_version, config.seed, version_of(config)
        )
        comparisons = comparisons_of(pairs, config.seed)
        judgments = judge_all(config, run, asked_of, comparisons, rater)
        injections = inject(config, run, asked_of, comparisons, judgments)
        if not is_main_process():
            return
        caveats = Caveats(config.judges[0], tuple(caveats_of(config, asked_of, pairs)))
        report = build_report(rater, judgments, people, pairs, injections, caveats)
        write_jsonl(run.final / "judgments.jsonl", judgments)
        write_report(run, report)
        run.facts |= {
            "kinds": ["model"],
            "judge": {"rater": rater.id, "model": rater.model, "prompt_version": rater.prompt_version},
            "counts": report["counts"],
            "metrics": report["metrics"],
        }
        run.finish()
        clear_partial(run)
        say_report(run, report)


def build_judge(config: JudgeConfig) -> Judge:
    """The configured judge. A configuration that cannot work is refused here, before the first question.

    Raises:
        ConfigError: several processes are to ask one endpoint, whose limits of rate and cost each would count for itself.
    """
    if config.endpoint is not None and process_count() > 1:
        raise ConfigError("endpoint: one process asks it, asking.parallel questions at a time: leave --accelerate out")
    module, name = config.kind.judge.split(":")
    judge: Judge = getattr(importlib.import_module(module), name)(
        config, Instruction(_guidelines(config), tuple(config.aspects), config.writes)
    )
    return judge


def _guidelines(config: JudgeConfig) -> str:
    """The Markdown in the configuration, or in the .md file that it names."""
    if not config.guidelines.endswith(".md") or "\n" in config.guidelines:
        return config.guidelines.strip()
    try:
        return Path(config.guidelines).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"guidelines: cannot read {config.guidelines}: {error}") from error


def version_of(config: JudgeConfig) -> str:
    """The guidelines' version as judgments carry it."""
    return config.guideline_version if config.guidelines else ""


def rater_id(config: JudgeConfig, asked_of: Judge) -> str:
    """The judge's id among raters: as configured, or of its kind and model."""
    name = Path(asked_of.model).name if Path(asked_of.model).exists() else asked_of.model
    return config.rater or f"judge-{config.kind.rater}-{name}"


def choose_pairs(config: JudgeConfig) -> list[Pair]:
    """The pairs, cut to `max_pairs` by a hash of seed and id: a smaller number is a part of a larger one.

    Raises:
        DataError: there are none.
    """
    require(config.require, config.pairs)
    pairs = list({pair.id: pair for pair in read_pairs(config.pairs, config.columns, "judge")}.values())
    if not pairs:
        raise DataError(f"{config.pairs} contains no pairs: there is nothing to judge")
    ranked = sorted(pairs, key=lambda pair: content_id("judged", config.seed, pair.id))
    return ranked[: config.max_pairs]


def read_people(config: JudgeConfig, pairs: Sequence[Pair]) -> list[ExportedJudgment]:
    """People's judgments of these pairs, or those of simulated raters if no person judged; gold is easier, and left out.

    Raises:
        DataError: there are none.
    """
    if config.people is None:
        return []
    judged = of_people(read_judgments(config.people))
    ids = {pair.id for pair in pairs}
    judged = [one if one.pair_id in ids else of_its_set(one) for one in judged]
    shared = [one for one in judged if one.pair_id in ids and not one.gold]
    if not shared:
        raise DataError(
            f"people: none of {len(judged)} judgments in {config.people} is of the pairs in {config.pairs}: give people's "
            "judgments of these pairs, or leave the key out"
        )
    return shared


def of_its_set(judgment: ExportedJudgment) -> ExportedJudgment:
    """The judgment as one of the set in the pool that its pair is from: `select` makes pairs of a set's comparisons."""
    set_id = judgment.selection.set_id if judgment.selection is not None else ""
    return judgment.model_copy(update={"pair_id": set_id}) if set_id else judgment


def judge_all(
    config: JudgeConfig, run: Run, asked_of: Judge, comparisons: Sequence[Comparison], rater: Rater
) -> list[Judgment]:
    """A judgment of every comparison. An endpoint is tried on the first ones, so that one that cannot judge costs little.

    Raises:
        HandoffError: no verdict can be read.
    """
    if config.endpoint is not None and len(comparisons) > TRIED:
        require_a_verdict(config, asked_of, judge_each(run, asked_of, comparisons[:TRIED], rater))
    judgments = judge_each(run, asked_of, comparisons, rater)
    require_a_verdict(config, asked_of, judgments)
    return judgments


def judge_each(run: Run, asked_of: Judge, comparisons: Sequence[Comparison], rater: Rater) -> list[Judgment]:
    """A judgment of each comparison, from both orders.

    The number of questions names what is kept on disk: fewer pairs are the first of more, but in other batches.
    """
    questions = [question for comparison in comparisons for question in comparison.questions()]
    replies = asked_of.ask(run, questions, f"{len(questions)} verdicts")
    both = zip(comparisons, replies[0::2], replies[1::2], strict=True)
    return [to_judgment(comparison, (one, other), rater) for comparison, one, other in both]


def require_a_verdict(config: JudgeConfig, asked_of: Judge, judgments: Sequence[Judgment]) -> None:
    """Refuse a judge none of whose verdicts can be read: its judgments would all be skips.

    Raises:
        HandoffError: the reasons, and what to change.
    """
    if not all(one.skip for one in judgments):
        return
    reasons = Counter(kind_of_skip(one.skip_reason) for one in judgments).most_common()
    listed = ", ".join(f"{reason} ({count})" for reason, count in reasons)
    change = "name a model that reads more"
    if config.writes:
        shorter = all(reason == TOO_LONG for reason, _ in reasons)
        change = f"name another model, or {'lower' if shorter else 'raise'} sampling.max_new_tokens"
    if config.model is not None and config.writes:
        change += ", or set answers_by: letters"
    raise HandoffError(
        f"{asked_of.model} gave no readable verdict on any of {counted(len(judgments), 'comparison')}: {listed}. The "
        f"first: {judgments[0].skip_reason}. Its answers are kept in {config.output}; {change}, and give another output"
    )


def inject(
    config: JudgeConfig,
    run: Run,
    asked_of: Judge,
    comparisons: Sequence[Comparison],
    judgments: Sequence[Judgment],
) -> list[Injection]:
    """Judge some decided comparisons again, with an injected demand in the answer that lost."""
    injected = [
        (judgment, questions)
        for comparison, judgment in zip(comparisons, judgments, strict=True)
        if (questions := with_injection(comparison, judgment)) is not None
    ][: config.injection_pairs]
    if not injected:
        return []
    again = [question for _, both in injected for question in both]
    replies = asked_of.ask(run, again, f"{len(again)} injections")
    asked = zip(injected, replies[0::2], replies[1::2], strict=True)
    return measure_injections([(judgment, one, other) for (judgment, _), one, other in asked])


def caveats_of(config: JudgeConfig, asked_of: Judge, pairs: Sequence[Pair]) -> list[str]:
    """Caveats about the judge and the policies it judged."""
    found = []
    if asked_of.model_id:
        chain = manifests_behind(config.pairs)
        policies = policies_behind(pairs, chain)
        if asked_of.model_id in policies:
            found.append("The judge is the policy whose answers it judges: models prefer their own answers.")
        if config.reward_model is not None and asked_of.model_id in trained_against(policies, chain):
            found.append("A policy whose answers are judged was trained to please this very reward model.")
    if config.function is not None:
        found.append("The judge is a program: it measures what its author wrote down, not what people prefer.")
    return found


def manifests_behind(pairs: str) -> list[dict[str, Any]]:
    """The manifests of the run of the pairs and of what it was made from, where they are found; none of a file."""
    return [manifest for _, manifest in manifest_chain(pairs, as_far_as_known=True)] if is_run(pairs) else []


def policies_behind(pairs: Sequence[Pair], chain: Sequence[dict[str, Any]]) -> set[str]:
    """The ids of the policies that gave the pairs' answers. A duel's answers have names instead, and its manifest the ids
    of these."""
    names = {name for pair in pairs for completion in pair.completions for name in policies_of(completion)}
    of_duels = [manifest["policies"] for manifest in chain if manifest["stage"] == "duel"]
    return names | {str(policies[name]["id"]) for policies in of_duels for name in names & policies.keys()}


def trained_against(policies: Container[str], chain: Sequence[dict[str, Any]]) -> set[str]:
    """The ids of the reward models that the policies were trained with."""
    return {
        one["id"]
        for manifest in chain
        if manifest["id"] in policies
        for name, one in manifest["inputs"].items()
        if name == "reward_model" or name.startswith("rewards.")
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak judge`, or `python -m evaluation.judging.judge`."""
    stage_main("judge", JudgeConfig, judge, arguments)


if __name__ == "__main__":
    main()
