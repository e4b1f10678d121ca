"""Marked passages as token-level preferences: each answer in segments, each with the raters' marks.

Segments add up to the answer's text, so that a tokenizer's offsets (`return_offsets_mapping=True`) give every token its
value. A segment's value is the mean over the raters who judged the answer: -1 where all of them mark it bad, 1 where all
mark it good, and a rater who marks nothing there counts as 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from tiebreak.messages import assistant
from tiebreak.records import Completion, Judgment, Kind, Pair, Span


def marked_answers(pairs: Sequence[Pair], judgments: Sequence[Judgment]) -> Iterator[dict[str, Any]]:
    """A row for each answer in which a rater marked a passage, by kind of rater.

    Of a rater's several judgments of a pair, the first counts.
    """
    by_pair: dict[tuple[str, Kind], dict[str, Judgment]] = {}
    for judgment in judgments:
        if not judgment.skip:
            by_pair.setdefault((judgment.pair_id, judgment.kind), {}).setdefault(judgment.rater_id, judgment)
    pair_of = {pair.id: pair for pair in pairs}
    for (pair_id, kind), by_rater in by_pair.items():
        for completion in pair_of[pair_id].completions:
            seen = {
                rater: [span for span in judgment.spans if span.completion == completion.id]
                for rater, judgment in by_rater.items()
                if completion.id in (judgment.shown or (judgment.left, judgment.right))
            }
            if any(seen.values()):
                yield _row(pair_of[pair_id], completion, kind, seen)


def _row(pair: Pair, completion: Completion, kind: Kind, seen: dict[str, list[Span]]) -> dict[str, Any]:
    return {
        "prompt": [message.model_dump(mode="json") for message in pair.messages],
        "completion": [message.model_dump(mode="json") for message in assistant(completion.text)],
        "segments": segments(completion.text, list(seen.values())),
        "raters": sorted(seen),
        "kind": kind,
        "pair_id": pair.id,
        "prompt_id": pair.prompt_id,
        "completion_id": completion.id,
        "split": pair.split,
    }


def segments(text: str, by_rater: Sequence[Sequence[Span]]) -> list[dict[str, Any]]:
    """A text cut at every end of a span; `start` and `end` in code points.

    Where a rater's spans overlap, their values add up, to 1 or -1 at most.
    """
    spans = [span for of_rater in by_rater for span in of_rater]
    edges = sorted({0, len(text), *(span.start for span in spans), *(span.end for span in spans)})
    rows = []
    for start, end in pairwise(edges):
        over = [[span for span in of_rater if span.start <= start and end <= span.end] for of_rater in by_rater]
        values = [max(-1, min(1, sum(span.value for span in of_rater))) for of_rater in over]
        labels = Counter(label for of_rater in over for label in {span.label for span in of_rater})
        value = round(sum(values) / len(values), 6)
        rows.append(
            {
                "text": text[start:end],
                "start": start,
                "end": end,
                "value": value,
                "labels": dict(sorted(labels.items())),
            }
        )
    return rows
