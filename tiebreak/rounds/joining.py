"""The labels that a round trains on, as one run folder: those of several label runs, and a judge's on training pairs that
people were not given. Held-out pairs have only people's labels: a judge's would measure agreement with the judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from tiebreak.command.pipeline import make_room
from tiebreak.config import Section, StageConfig, TrackingConfig
from tiebreak.data.pairs import read_pairs
from tiebreak.data.reading import EDITS, read_records
from tiebreak.files import write_jsonl
from tiebreak.messages import assistant, comparison_key
from tiebreak.records import MAX_STRENGTH, Completion, ExportedJudgment, Judgment, Pair, Preference
from tiebreak.runs.run import folder_state, identify, read_manifest, start_run

STAGE = "join"


class Judged(Section):
    """A judge's verdicts on a pool; people judged a part of it."""

    judge: str
    """the judge run"""
    pool: str
    """the pairs that it judged"""
    selected: str = ""
    """the select run whose pairs people were given; empty: none"""


class JoinConfig(StageConfig):
    """The sources of a join."""

    labels: list[str]
    """label runs"""
    judged: list[Judged] = []
    """judges' verdicts on pairs that people were not given"""
    apart: bool = Field(default=False, exclude_if=lambda apart: not apart)
    """the label runs are exports of one store: leave out of each the pairs that an earlier one has"""
    earlier: list[str] = Field(default_factory=list, exclude_if=lambda runs: not runs)
    """with apart, the label runs before the first one"""


def join_labels(config: JoinConfig, replace: bool = False) -> str:
    """Write the joined preferences, unless they are there; returns the run's folder.

    The run's inputs are the label and judge runs, so that what is trained on it can be traced to them.

    Args:
        replace: move a folder that holds another join aside.

    Raises:
        RunError: the folder holds another join.
    """
    inputs = {f"labels.{n}": source for n, source in enumerate(config.labels)}
    inputs |= {f"earlier.{n}": source for n, source in enumerate(config.earlier)}
    for n, one in enumerate(config.judged):
        inputs |= {f"judges.{n}": one.judge, f"pools.{n}": one.pool}
        inputs |= {f"selected.{n}": one.selected} if one.selected else {}
    clear_other_run(config, STAGE, inputs, replace)
    with start_run(config, STAGE, inputs) as run:
        if run.finished:
            return str(run.folder)
        preferences = rows_of(config, "preferences.jsonl")
        with_people = [pair for one in config.judged if one.selected for pair in read_pairs(one.selected)]
        of_judge: list[Preference] = []
        for one in config.judged:
            judgments = read_records(Path(one.judge) / "final" / "judgments.jsonl", ExportedJudgment)
            pool = [pair for pair in read_pairs(one.pool) if not one.selected or pair.split == "train"]
            of_judge += preferences_of_judge(pool, judgments, with_people)
        preferences += each_once(of_judge)
        write_jsonl(run.final / "preferences.jsonl", preferences)
        if edits := rows_of(config, EDITS):
            write_jsonl(run.final / EDITS, edits)
        kinds = sorted({kind for source in inputs.values() for kind in read_manifest(source).get("kinds", [])})
        run.facts |= {"kinds": kinds, "preferences": len(preferences)}
        run.finish()
    return str(run.folder)


def clear_other_run(config: StageConfig, stage: str, inputs: Mapping[str, str], replace: bool) -> None:
    """Move a folder that holds another run aside, where that is allowed.

    Raises:
        RunError: it is not.
    """
    if not (folder := Path(config.output)).exists():
        return
    state, why = folder_state(folder, identify(config, stage, inputs))
    if state == "other":
        make_room(folder, why, replace)


def rows_of(config: JoinConfig, name: str) -> list[Preference]:
    """The rows of a file of the label runs: preferences, or raters' edits, each preferred to the answers that it improves
    on."""
    found: list[Preference] = []
    for n, source in enumerate(config.labels):
        file = Path(source) / "final" / name
        rows = list(read_records(file, Preference)) if file.is_file() or name != EDITS else []
        before = judged_in([*config.earlier, *config.labels[:n]]) if config.apart else set()
        found += [row for row in rows if row.pair_id not in before]
    return found


def judged_in(labels: Sequence[str]) -> set[str]:
    """The ids of the pairs that label runs have judgments of."""
    return {
        judgment.pair_id
        for source in labels
        for judgment in read_records(Path(source) / "final" / "judgments.jsonl", ExportedJudgment)
    }


def share_pairs(labels: Sequence[str]) -> bool:
    """Whether a label run has pairs of one before it, as exports of one store have."""
    return any(judged_in([source]) & judged_in(labels[:n]) for n, source in enumerate(labels) if n)


def join_config(
    output: Path, labels: Sequence[str], judged: Sequence[Judged], *, apart: bool = False, earlier: Sequence[str] = ()
) -> JoinConfig:
    """The configuration of a join, which is not tracked in W&B."""
    return JoinConfig(
        output=str(output),
        labels=list(labels),
        judged=list(judged),
        apart=apart,
        earlier=list(earlier),
        tracking=TrackingConfig(mode="disabled"),
    )


def preferences_of_judge(
    pool: Sequence[Pair], judgments: Sequence[Judgment], selected: Sequence[Pair]
) -> list[Preference]:
    """A judge's decided verdicts on comparisons of the pool that were not selected, as preferences of kind model.

    Args:
        selected: the pairs that people got, of all rounds that are joined.
    """
    with_people = {_texts(pair, pair.completions) for pair in selected}
    by_id = {pair.id: pair for pair in pool}
    found = []
    for judgment in judgments:
        pair = by_id.get(judgment.pair_id)
        if pair is None or not judgment.answer:
            continue
        completions = {one.id: one for one in pair.completions}
        left, right = completions[judgment.left], completions[judgment.right]
        if _texts(pair, (left, right)) in with_people:
            continue
        chosen, rejected = (right, left) if judgment.answer > 0 else (left, right)
        found.append(_preference(pair, chosen, rejected, judgment))
    return found


def each_once(preferences: Sequence[Preference]) -> list[Preference]:
    """The first row of each comparison: the pools of two rounds, or of two policies, may have the same answers."""
    first: dict[tuple[str, frozenset[str]], Preference] = {}
    for one in preferences:
        first.setdefault(comparison_key(one.prompt, one.tools, (one.chosen_text, one.rejected_text)), one)
    return list(first.values())


def _texts(pair: Pair, completions: Sequence[Completion]) -> tuple[str, frozenset[str]]:
    return comparison_key(pair.messages, pair.tools, (one.text for one in completions))


def _preference(pair: Pair, chosen: Completion, rejected: Completion, judgment: Judgment) -> Preference:
    strength = abs(judgment.answer or 0)
    drawn = {one.tokenizer_sha256 for one in (chosen, rejected) if one.ids is not None}
    same = len(drawn) == 1
    return Preference(
        prompt=pair.messages,
        chosen=assistant(chosen.text),
        rejected=assistant(rejected.text),
        strength=strength,
        margin=round(strength / MAX_STRENGTH, 6),
        confidence=judgment.judge.confidence if judgment.judge else None,
        raters=(judgment.rater_id,),
        kind="model",
        pair_id=pair.id,
        prompt_id=pair.prompt_id,
        source=pair.source,
        tags=pair.tags,
        split=pair.split,
        chosen_finished=chosen.finished,
        rejected_finished=rejected.finished,
        tools=pair.tools,
        chosen_ids=chosen.ids if same else None,
        rejected_ids=rejected.ids if same else None,
        tokenizer_sha256=drawn.pop() if same else None,
    )
