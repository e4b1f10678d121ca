"""The step `contamination`: drops rows that hold a test prompt, so that held-out figures are of unseen prompts.

A row holds a test prompt if it shares `contamination.words` words in a row with it (13 in Brown et al. 2020, appendix C);
if the whole test prompt is shorter, if it occurs in the row as a whole; or if their word trigrams overlap by
`contamination.overlap`. Test prompts are those of `contamination.against`, of every split, and the rows of the data that
name the split test, which are never dropped themselves.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from sft.configuration import PrepareConfig
from sft.normalising import split_words
from sft.steps.step import Drop, Ledger, Row, RowStep, Tally
from tiebreak.data.reading import Rules, read, settle
from tiebreak.errors import DataError
from tiebreak.messages import text_of

SHORTEST = 5
"""A test prompt of fewer words (“What is pH?”) is compared as a whole prompt, not looked for inside of rows."""


class Contamination(RowStep):
    """The step."""

    def __init__(self, config: PrepareConfig) -> None:
        super().__init__(config)
        self.tests: list[tuple[str, list[str]]] = []
        for source in config.contamination.against:
            rules = Rules(config.columns, config.on_bad_row)
            try:
                drafts = settle(read(source, "prompts", rules), rules)
            except DataError as error:
                raise DataError(f"contamination.against: {str(error).partition(chr(10))[0]}", error.faults) from error
            self.tests += [(draft.where, words_of(_asked(draft.record))) for draft in drafts]
        self.index = Index([], config.contamination.words, config.contamination.overlap)

    def begin(self, rows: Iterable[Row]) -> None:
        self.tests += [(row.where, words_of(_asked(row.prompt))) for row in rows if row.split == "test"]
        self.index = Index(self.tests, self.config.contamination.words, self.config.contamination.overlap)

    def look(self, row: Row, ledger: Ledger) -> Row | Drop:
        if row.split == "test":
            return row
        found = self.index.find(words_of(_asked(row.prompt)), words_of(row.text))
        return row if found is None else Drop(" ".join(found), found[0])

    def finish(self, tally: Tally) -> None:
        tally.facts["test_prompts"] = len(self.tests)


def _asked(prompt: object) -> str:
    """The text of the user's turns: system texts and formatting are shared by rows that are otherwise apart."""
    messages = getattr(prompt, "messages", ())
    return "\n".join(m.text for m in messages if m.role == "user") or text_of(messages)


def words_of(text: str) -> list[str]:
    """Its words, in lower case. Test sets are compared in whatever form of Unicode they come, with soft hyphens or
    without."""
    if not text.isascii():
        text = _UNSEEN.sub("", unicodedata.normalize("NFKC", text))
    return split_words(text.casefold())


_UNSEEN = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")
"""soft hyphens and zero-width characters, which would split words"""


def runs_of(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    """All runs of `length` consecutive words."""
    return zip(*(words[start:] for start in range(length)), strict=False)


class Index:
    """Test prompts, found by what they share with a row."""

    def __init__(self, tests: Iterable[tuple[str, list[str]]], words: int, overlap: float) -> None:
        self.words, self.overlap = words, overlap
        self.whole: dict[tuple[str, ...], str] = {}
        self.runs: dict[tuple[str, ...], str] = {}
        self.short: dict[int, dict[tuple[str, ...], str]] = defaultdict(dict)
        """shorter test prompts, by their number of words"""
        self.trigrams: list[tuple[str, frozenset[tuple[str, ...]]]] = []
        self.by_trigram: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for where, test in tests:
            self._add(where, test)

    def _add(self, where: str, test: list[str]) -> None:
        if not test:
            return
        self.whole.setdefault(tuple(test), where)
        for run in runs_of(test, self.words):
            self.runs.setdefault(run, where)
        if SHORTEST <= len(test) < self.words:
            self.short[len(test)].setdefault(tuple(test), where)
        trigrams = frozenset(runs_of(test, 3))
        for one in trigrams:
            self.by_trigram[one].append(len(self.trigrams))
        self.trigrams.append((where, trigrams))

    def find(self, prompt: Sequence[str], row: Sequence[str]) -> tuple[str, str] | None:
        """(what is shared, the test prompt's place), or None.

        Args:
            prompt: the words of the row's own question.
            row: all of its words.
        """
        if where := self.whole.get(tuple(prompt)):
            return "the same prompt as", where
        for run in runs_of(row, self.words):
            if where := self.runs.get(run):
                return f"{self.words} words in a row with", where
        for length, tests in self.short.items():
            for run in runs_of(row, length):
                if where := tests.get(run):
                    return "contains the whole of", where
        return self._near(frozenset(runs_of(prompt, 3)))

    def _near(self, trigrams: frozenset[tuple[str, ...]]) -> tuple[str, str] | None:
        shared: dict[int, int] = defaultdict(int)
        for one in trigrams:
            for number in self.by_trigram.get(one, ()):
                shared[number] += 1
        for number in sorted(shared):
            where, test = self.trigrams[number]
            if shared[number] / (len(trigrams) + len(test) - shared[number]) >= self.overlap:
                return "nearly the same as", where
        return None
