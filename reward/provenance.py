"""Origin of preferences: the prompts' tags and sources, and each rater's own votes.

A preference has what training needs. The rest is in the runs that it was made from: the label run's judgments, the sample
run's answers, the prepare run's prompts. They are read if they still match the manifests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tiebreak.data.pairs import read_pairs
from tiebreak.data.reading import read_prompts, read_records
from tiebreak.records import ExportedJudgment, Judgment, Prompt
from tiebreak.runs.chain import InputFinder
from tiebreak.runs.run import MANIFEST, read_manifest
from tiebreak.terminal import say


@dataclass(frozen=True)
class Vote:
    """One rater's choice between two answers to a prompt."""

    rater: str
    pair_id: str
    better: str
    """text of the answer that the rater preferred"""
    worse: str
    first_was_better: bool
    """whether the better one was shown first, on the left"""


@dataclass(frozen=True)
class Origin:
    """Empty if the preferences come from a separate file."""

    prompts: Mapping[str, Prompt] = field(default_factory=dict)
    """by id"""
    votes: tuple[Vote, ...] = ()
    """of judgments that prefer a side; ties and skips left out"""


def trace_origin(preferences: str) -> Origin:
    """The origin of a label run's preferences; empty for a file or a hub data set."""
    prompts: dict[str, Prompt] = {}
    texts: dict[tuple[str, str], str] = {}
    judgments: list[Judgment] = []
    for final in _finals(preferences, InputFinder()):
        if (final / "prompts.jsonl").is_file():
            found = read_prompts(str(final.parent), ["train", "validation", "test"])
            prompts |= {prompt.id: prompt for prompt in found}
        if (final / "pairs.jsonl").is_file():
            pairs = read_pairs(str(final.parent), stage="reward")
            texts |= {(pair.id, one.id): one.text for pair in pairs for one in pair.completions}
        if (final / "judgments.jsonl").is_file():
            judgments += read_records(final / "judgments.jsonl", ExportedJudgment)
    return Origin(prompts, tuple(vote for judgment in judgments for vote in _votes(judgment, texts)))


def _finals(source: str, finder: InputFinder) -> Iterator[Path]:
    """`final/` of a run, and of the runs it was made from, wherever they are now."""
    if not (Path(source) / MANIFEST).is_file():
        return
    yield Path(source) / "final"
    manifest = read_manifest(source)
    for name, one in manifest["inputs"].items():
        if one["kind"] != "run":
            continue
        found = finder.find(source, manifest, one)
        if found.place is None:
            say(f"{one['source']}, the {name} that {source} was made from, is {found.state}: the report lacks its part")
        else:
            yield from _finals(found.place, finder)


def _votes(judgment: Judgment, texts: Mapping[tuple[str, str], str]) -> Iterator[Vote]:
    left, right = (texts.get((judgment.pair_id, side)) for side in (judgment.left, judgment.right))
    if judgment.answer and left is not None and right is not None:
        first = judgment.answer < 0
        better, worse = (left, right) if first else (right, left)
        yield Vote(judgment.rater_id, judgment.pair_id, better, worse, first)
