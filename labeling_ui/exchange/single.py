"""Outcomes of raters' judgments of single answers, in files: `ratings.jsonl`, `reviews.jsonl` and `classes.jsonl`.

A row is one answer with its outcome and every judgment of it. A rating is the mean. A review accepts an answer where more
raters accept or edit it than reject it, and takes the first edit where at least as many edit as accept. A class needs more
votes than any other. A lead's settlement overrides the votes. Answers without an outcome are in `undecided.jsonl`.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from labeling_ui.quality.single import measure_assessments
from tiebreak.assessments import NOT_FLAGGED, SINGLE_TASKS, ExportedAssessment, SingleAnswer, decide_review
from tiebreak.data.synthetic import REVIEWED, UNREVIEWED
from tiebreak.files import write_jsonl
from tiebreak.messages import Messages, assistant
from tiebreak.records import Demonstration, Prompt

FILES = {"rate": "ratings.jsonl", "review": "reviews.jsonl", "classify": "classes.jsonl"}


@dataclass(frozen=True)
class Assessed:
    """A single answer with its raters' votes, one for each rater, and all their judgments."""

    answer: SingleAnswer
    votes: tuple[ExportedAssessment, ...]
    """the first judgment of each rater, without skips"""
    judgments: tuple[ExportedAssessment, ...]
    outcome: str | float | None
    """the mean rating; accept, edit or reject; the class; None: undecided"""
    text: str
    """the answer, as edited where the outcome is edit"""
    lot: str | None = None
    """the batch whose sample passed inspection, or of the rows that were not flagged: nobody has seen this answer of it"""
    settled: ExportedAssessment | None = None
    """a lead's answer, which is the outcome"""

    @property
    def was_not_flagged(self) -> bool:
        """Whether it is kept because no step of *prepare* flagged it: that is not a review."""
        return self.lot is not None and self.lot.endswith(NOT_FLAGGED)

    @property
    def is_reviewed(self) -> bool:
        """Whether people decided on it, or accepted it by a sample of its lot. A program's judgment is no review."""
        if self.lot is not None:
            return not self.was_not_flagged
        return self.settled.kind == "human" if self.settled else any(vote.kind == "human" for vote in self.votes)

    @property
    def is_text(self) -> bool:
        """Whether it is text alone: an edited answer always is."""
        return self.outcome == "edit" or self.answer.completions[0].content is None

    @property
    def messages(self) -> Messages:
        """The answer, as edited, with its images and recordings."""
        return assistant(self.text) if self.is_text else (self.answer.completions[0].message,)


def decide_assessments(
    answers: Sequence[SingleAnswer],
    assessments: Sequence[ExportedAssessment],
    unseen: Mapping[str, str],
    settled: Sequence[ExportedAssessment] = (),
) -> list[Assessed]:
    """The judged answers with their outcomes, in campaign order. People's judgments decide where there are any.

    Args:
        unseen: answers that were accepted by a sample of their lot, each with its batch.
        settled: leads' answers, which override the votes.
    """
    by_lead = {one.pair_id: one for one in settled}
    by_answer: dict[str, list[ExportedAssessment]] = {}
    for one in assessments:
        by_answer.setdefault(one.pair_id, []).append(one)
    return [
        _decide(answer, by_answer.get(answer.id, []), by_lead.get(answer.id))
        if answer.id in by_answer or answer.id in by_lead
        else Assessed(answer, (), (), "accept", answer.text, unseen[answer.id])
        for answer in answers
        if answer.id in by_answer or answer.id in unseen or answer.id in by_lead
    ]


def _decide(
    answer: SingleAnswer, judgments: Sequence[ExportedAssessment], settled: ExportedAssessment | None
) -> Assessed:
    kinds = {one.kind for one in judgments}
    kind = next((kind for kind in ("human", "simulated", "model") if kind in kinds), "human")
    firsts: dict[str, ExportedAssessment] = {}
    for one in judgments:
        if one.kind == kind and one.value is not None and not one.repeat:
            firsts.setdefault(one.rater_id, one)
    votes = tuple(firsts.values())
    if settled is not None and settled.value is not None:
        decided = float(settled.value) if isinstance(settled.value, int) else settled.value
        text = settled.edited_text if settled.edited_text is not None else answer.text
        return Assessed(answer, votes, tuple(judgments), decided, text, settled=settled)
    outcome: str | float | None
    if answer.task == "rate":
        outcome = fmean(int(vote.value or 0) for vote in votes) if votes else None
    elif answer.task == "review":
        outcome = decide_review([str(vote.value) for vote in votes])
    else:
        outcome = _most([str(vote.value) for vote in votes])
    edits = [vote.edited_text for vote in votes if vote.edited_text is not None]
    return Assessed(answer, votes, tuple(judgments), outcome, edits[0] if outcome == "edit" else answer.text)


def _most(values: Sequence[str]) -> str | None:
    """The value that is there more often than any other."""
    counts = [*Counter(values).most_common(2), ("", 0), ("", 0)]
    return counts[0][0] if counts[0][1] > counts[1][1] else None


def demonstrations_of(assessed: Sequence[Assessed]) -> Iterator[Demonstration]:
    """Accepted and edited answers, as SFT reads them; the prompt keeps its source and tags, with a tag for the
    outcome where people decided on it."""
    for one in assessed:
        if one.answer.task == "review" and one.outcome in ("accept", "edit"):
            answer = one.answer
            done = (f"{REVIEWED}:{_how(one)}",) if one.is_reviewed else ()
            prompt = Prompt(
                id=answer.prompt_id,
                messages=answer.messages,
                split=answer.split,
                source=answer.source,
                tags=(*(tag for tag in answer.tags if tag != UNREVIEWED or not done), *done),
                tools=answer.tools,
            )
            yield Demonstration(prompt=prompt, completion=one.text if one.is_text else one.messages)


def _how(one: Assessed) -> str:
    return "by_sample" if one.lot else "accepted" if one.outcome == "accept" else "edited"


def write_assessed(folder: Path, assessed: Sequence[Assessed]) -> None:
    """Write a file for each task that somebody judged."""
    decided = [one for one in assessed if one.outcome is not None]
    for task in SINGLE_TASKS:
        if rows := [_row(one) for one in decided if one.answer.task == task]:
            write_jsonl(folder / FILES[task], rows)
    if others := [_row(one) for one in assessed if one.outcome is None]:
        write_jsonl(folder / "undecided.jsonl", others)


def _row(one: Assessed) -> dict[str, Any]:
    answer = one.answer
    about = {
        "prompt": [message.model_dump(mode="json") for message in answer.messages],
        "completion": [message.model_dump(mode="json") for message in one.messages],
    }
    kept = {
        "lot": one.lot,
        "source": answer.source,
        "tags": list(answer.tags),
        "tools": list(answer.tools),
        "origin": answer.origin,
    }
    return {
        **about,
        **_outcome(one),
        "votes": dict(sorted(Counter(str(vote.value) for vote in one.votes).items())),
        "share": _share(one),
        "raters": sorted(vote.rater_id for vote in one.votes),
        "kind": one.settled.kind if one.settled else one.judgments[0].kind if one.judgments else "unstated",
        **({"adjudicated": True, "settled_by": one.settled.rater_id} if one.settled else {}),
        "judgments": [_judgment(vote, answer) for vote in one.judgments],
        "answer_id": answer.id,
        "prompt_id": answer.prompt_id,
        "split": answer.split,
        **{name: value for name, value in kept.items() if value},
    }


def _outcome(one: Assessed) -> dict[str, Any]:
    if one.outcome is None:
        return {"task": one.answer.task}
    if one.answer.task == "rate":
        return {"rating": one.outcome}
    if one.answer.task == "classify":
        return {"class": one.outcome}
    edited = one.text != one.answer.text
    changed = {"original": one.answer.text, "difference": difference(one.answer.text, one.text)} if edited else {}
    # The label keeps rejected answers out of SFT, and lets KTO learn from both.
    return {"verdict": one.outcome, "label": one.outcome != "reject", **changed}


def _share(one: Assessed) -> float | None:
    """The share of the raters' most frequent value."""
    counts = Counter(vote.value for vote in one.votes)
    return max(counts.values()) / counts.total() if counts else None


def _judgment(vote: ExportedAssessment, answer: SingleAnswer) -> dict[str, Any]:
    empty: tuple[object, ...] = (None, "", (), [], {}, False)
    fields = vote.model_dump(mode="json", exclude={"pair_id", "task", "left", "answer", "both_bad", "ranking", "shown"})
    changed = {} if vote.edited_text is None else {"difference": difference(answer.text, vote.edited_text)}
    return {name: value for name, value in fields.items() if value not in empty} | changed


def difference(before: str, after: str) -> list[str]:
    """The lines that differ: removed ones begin with `-`, added ones with `+`.

    >>> difference("one\\ntwo", "one\\nthree")
    ['-two', '+three']
    """
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line[0] + line[2:] for line in lines if line[0] in "+-"]


def describe_assessed(assessed: Sequence[Assessed], assessments: Sequence[ExportedAssessment]) -> dict[str, Any]:
    """Counts and agreement of each task, for the report."""
    measured = measure_assessments(assessments)
    report: dict[str, Any] = {}
    for task in SINGLE_TASKS:
        those = [one for one in assessed if one.answer.task == task]
        if not those:
            continue
        names = [_name(one) for one in those]
        skipped = sum(one.skip for one in assessments if one.task == task)
        kinds = Counter(one.kind for one in assessments if one.task == task)
        report[task] = {
            "answers": len(those),
            "outcomes": dict(sorted(Counter(names).items())),
            "kinds": dict(sorted(kinds.items())),
            "skipped": skipped,
            **({"settled": settled} if (settled := sum(one.settled is not None for one in those)) else {}),
            **{
                name: measured.get(task, {}).get(name)
                for name in ("agreement", "krippendorff_alpha", "self_consistency")
            },
        }
    return report


def _name(one: Assessed) -> str:
    if one.outcome is None or one.lot:
        return "undecided" if one.outcome is None else "not flagged" if one.was_not_flagged else "accept by sample"
    return "rated" if one.answer.task == "rate" else str(one.outcome)
