"""The report on a duel, from the judgments of its pairs.

    tiebreak duel report --duel runs/x/duel --judgments runs/x/duel-label --output runs/x/duel-report

It puts people's win rates and ratings beside what judges, the evaluation's reward model and its yardstick say of the same
answers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.duel.configuration import DuelReportConfig
from evaluation.duel.page import build_page, claim_of
from evaluation.duel.win_rates import Program, build_figures, judge_of, programs_of
from tiebreak.command.launch import stage_main
from tiebreak.data.judgments import of_people, read_judgments
from tiebreak.data.pairs import read_pairs
from tiebreak.data.reading import is_run
from tiebreak.errors import DataError, HandoffError, counted
from tiebreak.files import read_jsonl, write_json, write_text_atomically
from tiebreak.records import ExportedJudgment, Pair
from tiebreak.runs.run import Run, read_manifest, start_run
from tiebreak.terminal import say
from tiebreak.tracking.recorder import tracked

MEASURES = "answers.jsonl"
"""in a duel's `final/`: what the evaluation measured of each compared answer"""


def report(config: DuelReportConfig) -> None:
    """The command."""
    with start_run(config, "duel report", inputs_of(config)) as run, tracked(run):
        if run.finished:
            say(f"{run.folder} holds this report already: nothing to do")
            return
        final = _final_of(config.duel)
        made: dict[str, Any] = json.loads((final / "report.json").read_text(encoding="utf-8"))
        policies, pairs = list(made["policies"]), read_pairs(config.duel)
        judgments = judgments_of(config.judgments, pairs)
        people = of_people(judgments)
        if left_out := sum(one.kind != "model" for one in judgments) - len(people):
            say(f"{counted(left_out, 'judgment')} of simulated raters left out: people judged too")
        if not people:
            raise DataError(f"judgments: no rater has judged a pair of {config.duel} in {config.judgments}")
        in_part = judged_in_part(config, judgments)
        people = finished_of(people, in_part)
        rows = list(read_jsonl(final / MEASURES))
        programs = [
            *judges_of(config, pairs, judgments, policies),
            *programs_of(rows, policies, made["yardstick_name"]),
        ]
        judged = len({one.pair_id for one in people if not one.skip})
        counts = {**made["counts"], "judged": judged, "in_part": len(in_part or ())}
        empty = made.get("empty_answers")
        figures = build_figures(pairs, people, policies, programs, counts, config.no_difference, empty)
        if in_part is None:
            figures["caveats"] += unknown_overlap(people, config.judgments)
        figures["sources"] = made["policies"]
        write_report(run, figures)
        run.facts |= {"kinds": figures["kinds"], "counts": figures["counts"], "metrics": to_metrics(figures)}
        run.finish()
        say(claim_of(figures), *figures["caveats"], f"report: {(run.folder / 'report.html').resolve().as_uri()}")


def inputs_of(config: DuelReportConfig) -> dict[str, str]:
    """Its inputs, by name in the manifest."""
    judges = {f"judges.{n}": source for n, source in enumerate(config.judges)}
    return {"duel": config.duel, "judgments": config.judgments, **judges}


def _final_of(duel: str) -> Path:
    manifest = read_manifest(duel)
    if manifest["stage"] != "duel":
        raise HandoffError(f"duel: {duel} is a finished '{manifest['stage']}' run: give the folder of a duel run")
    return Path(duel) / "final"


def judgments_of(source: str, pairs: Sequence[Pair]) -> list[ExportedJudgment]:
    """The judgments of these pairs.

    Raises:
        DataError: there are none.
    """
    ids = {pair.id for pair in pairs}
    judgments = read_judgments(source)
    ours = [one for one in judgments if one.pair_id in ids and not one.repeat]
    if not ours:
        raise DataError(
            f"judgments: none of {len(judgments)} in {source} is of the duel's pairs: serve them with 'tiebreak label "
            "--pairs DUEL', let raters judge, and export"
        )
    sides = {pair.id: {one.id for one in pair.completions} for pair in pairs}
    if other := [one for one in ours if not {one.left, one.right} <= sides[one.pair_id]]:
        raise DataError(
            f"judgments: {len(other)} in {source} name a completion that the pair does not have, the first in pair "
            f"{other[0].pair_id}: give the judgments of this very duel"
        )
    return ours


def judged_in_part(config: DuelReportConfig, judgments: Sequence[ExportedJudgment]) -> set[str] | None:
    """The ids of the pairs that have some of their judgments, but not all; None if the number that they need is unknown.

    Their outcomes can still change, so a verdict that may be read early must not count them.
    """
    if config.overlap is not None:
        got = Counter(one.pair_id for one in judgments if not one.skip and not one.repeat and one.kind != "model")
        return {pair_id for pair_id, number in got.items() if number < config.overlap}
    file = Path(config.judgments) / "final" / "report.json"
    if not is_run(config.judgments) or not file.is_file():
        return None
    recorded = json.loads(file.read_text(encoding="utf-8")).get("evaluation", {}).get("judged_in_part")
    if recorded is None:
        return None
    return {one.pair_id for one in judgments} & set(recorded)


def finished_of(judgments: Sequence[ExportedJudgment], in_part: set[str] | None) -> list[ExportedJudgment]:
    """The judgments of pairs that have all of theirs.

    Raises:
        DataError: there are none.
    """
    found = [one for one in judgments if one.pair_id not in (in_part or ())]
    if not any(not one.skip for one in found):
        raise DataError(
            f"judgments: no pair of the duel has all its judgments yet ({counted(len(in_part or ()), 'pair')} judged in "
            "part): let raters go on, and export again"
        )
    return found


def unknown_overlap(judgments: Sequence[ExportedJudgment], source: str) -> list[str]:
    """The caveat where pairs have different numbers of judgments, and may be judged in part."""
    numbers = sorted(Counter(one.pair_id for one in judgments if not one.skip).values())
    if numbers[0] == numbers[-1]:
        return []
    return [
        f"Pairs have {numbers[0]} to {numbers[-1]} judgments each, and {source} does not say how many they need: all "
        "count. With --overlap, pairs that have fewer are left out."
    ]


def judges_of(
    config: DuelReportConfig, pairs: Sequence[Pair], judgments: Sequence[ExportedJudgment], policies: Sequence[str]
) -> list[Program]:
    """The judges of judge runs, and those in the label store."""
    verdicts = [one for one in judgments if one.kind == "model"]
    runs: dict[str, str] = {}
    for source in config.judges:
        if (stage := read_manifest(source)["stage"]) != "judge":
            raise HandoffError(f"judges: {source} is a finished '{stage}' run: give the folder of a judge run")
        found = judgments_of(source, pairs)
        for name in {one.rater_id for one in found}:
            if (other := runs.setdefault(name, source)) != source:
                raise HandoffError(
                    f"judges: {other} and {source} are both of {name}, whose verdict on a pair counts once: give one of "
                    "them, or judge again with another name (rater)"
                )
        verdicts += found
    by_judge: dict[str, list[ExportedJudgment]] = {}
    for verdict in verdicts:
        by_judge.setdefault(verdict.rater_id, []).append(verdict)
    return [judge_of(name, pairs, own, policies) for name, own in sorted(by_judge.items())]


def write_report(run: Run, figures: Mapping[str, Any]) -> None:
    """Write `report.json`, also into `final/`, and `report.html`."""
    write_json(run.final / "report.json", figures)
    write_json(run.folder / "report.json", figures)
    made_from = {name: one.source for name, one in run.inputs.items()}
    write_text_atomically(run.folder / "report.html", build_page(figures, made_from))


def to_metrics(figures: Mapping[str, Any]) -> dict[str, float]:
    """The manifest's figures: people's win rates."""
    return {f"win_rate/{' vs '.join(one['policies'])}": one["people"]["value"] for one in figures["contests"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak duel report`, or `python -m evaluation.duel.report`."""
    stage_main("duel report", DuelReportConfig, report, arguments)


if __name__ == "__main__":
    main()
