"""The pool: the comparisons of two that may be selected, each once, without those that people have judged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from preference.selection.configuration import SelectConfig
from tiebreak.data.pairs import read_pairs
from tiebreak.data.reading import is_run, read_records
from tiebreak.errors import DataError, HandoffError, counted
from tiebreak.messages import comparison_key, content_id, is_content_id
from tiebreak.records import Completion, ExportedJudgment, Pair, Preference
from tiebreak.runs.run import read_manifest


@dataclass(frozen=True)
class Candidate:
    """A pair of two completions that may be selected."""

    pair: Pair
    pool_id: str
    """the id of the pair in the pool that it belongs to"""

    @property
    def set_id(self) -> str:
        """`pool_id` if that pair is a set of three or more completions, otherwise empty."""
        return "" if self.pool_id == self.pair.id else self.pool_id

    @property
    def first(self) -> Completion:
        """The first completion, by id."""
        return min(self.pair.completions, key=lambda one: one.id)

    @property
    def second(self) -> Completion:
        """The other one."""
        return max(self.pair.completions, key=lambda one: one.id)

    @property
    def ids(self) -> frozenset[str]:
        """The ids of both completions."""
        return frozenset(one.id for one in self.pair.completions)

    @property
    def texts(self) -> tuple[str, frozenset[str]]:
        """The identity of its prompt and both texts."""
        texts = (one.text for one in self.pair.completions)
        return comparison_key(self.pair.messages, self.pair.tools, texts)


@dataclass(frozen=True)
class Pool:
    """Candidates, and counts of what was left out."""

    candidates: list[Candidate]
    duplicates: int
    judged: int


def read_pool(config: SelectConfig) -> Pool:
    """The candidates, in the order of the pairs.

    Raises:
        DataError: there are fewer than are to be selected.
    """
    pairs = read_pairs(config.pairs, config.columns, "select")
    if any(pair.purpose == "evaluation" for pair in pairs):
        raise DataError(
            f"pairs: {config.pairs} has evaluation pairs, whose judgments never reach training: select from the pairs of "
            "'tiebreak sample'"
        )
    every = [one for pair in pairs for one in _cut(pair)]
    first: dict[tuple[str, frozenset[str]], Candidate] = {}
    for one in every:
        first.setdefault(one.texts, one)
    unique = list(first.values())
    judged = read_judged(config.judged)
    left = [one for one in unique if not judged.has(one)]
    pool = Pool(left, len(every) - len(unique), len(unique) - len(left))
    if config.selected_pairs > len(left):
        gone = [
            f"{counted(number, 'pair')} {why}"
            for number, why in ((pool.judged, "already judged"), (pool.duplicates, "twice in it")) if number
        ]  # fmt: skip
        raise DataError(
            f"selected_pairs: {config.selected_pairs}, but {config.pairs} has {counted(len(left), 'pair')} to select from"
            + (f" ({' and '.join(gone)} left out)" if gone else "")
            + ": select fewer, or sample more"
        )
    return pool


def _cut(pair: Pair) -> Iterator[Candidate]:
    """A pair's comparisons of two. A pair of two stays as it is, with its id."""
    if len(pair.completions) == 2:
        yield Candidate(pair, pair.id)
        return
    for both in combinations(pair.completions, 2):
        identity = content_id("pair", pair.prompt_id, sorted(one.id for one in both), pair.round)
        yield Candidate(pair.model_copy(update={"id": identity, "completions": both}), pair.id)


@dataclass(frozen=True)
class Judged:
    """What people have judged."""

    of_pairs: set[tuple[str, frozenset[str]]]
    """a pair's id, and the ids of both completions"""
    ids: set[frozenset[str]]
    """the ids of both completions, if they are made from content: others may be the same in all pairs"""
    texts: set[tuple[str, frozenset[str]]]
    """`Candidate.texts`"""

    def has(self, one: Candidate) -> bool:
        """Whether people have judged this comparison, in whichever pair."""
        of_pairs = {(identity, one.ids) for identity in (one.pair.id, one.pool_id)}
        return bool(of_pairs & self.of_pairs) or one.ids in self.ids or one.texts in self.texts


def read_judged(sources: Sequence[str]) -> Judged:
    """The comparisons that people, or simulated raters, have judged in label runs and files of judgments; skips and model
    judges' verdicts do not count.

    Raises:
        HandoffError: a source is another stage's run.
        DataError: a source has model judges' verdicts alone.
    """
    found = Judged(set(), set(), set())
    for source in sources:
        judgments = list(read_records(_file_of_people(source), ExportedJudgment))
        if judgments and all(one.kind == "model" for one in judgments):
            raise DataError(
                f"judged: the {counted(len(judgments), 'judgment')} in {source} are all a model judge's, which leave no "
                "pair out: give judgments of people, or leave it out"
            )
        for judgment in judgments:
            if judgment.kind == "model" or judgment.skip:
                continue
            for one in judgment.pairwise():
                both = frozenset((one.left, one.right))
                found.of_pairs.add((one.pair_id, both))
                if all(is_content_id(identity, "completion") for identity in both):
                    found.ids.add(both)
        preferences = Path(source) / "final" / "preferences.jsonl"
        if preferences.is_file():
            found.texts.update(
                comparison_key(one.prompt, one.tools, (one.chosen_text, one.rejected_text))
                for one in read_records(preferences, Preference)
                if one.kind != "model"
            )
    return found


def _file_of_people(source: str) -> Path:
    if not is_run(source):
        return Path(source)
    if (stage := read_manifest(source)["stage"]) != "label":
        judges = (
            "; the verdicts of a judge are read by --judges, with strategy judge_unsure" if stage == "judge" else ""
        )
        raise HandoffError(
            f"judged: {source} is a finished '{stage}' run: give the folder of a label run, or a file of people's "
            f"judgments{judges}"
        )
    return Path(source) / "final" / "judgments.jsonl"
