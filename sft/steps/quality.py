"""The step `quality`: published heuristics, each by its name, for prompts and answers of a few hundred words.

Gopher is Rae et al. 2021, appendix A1.1; C4 is Raffel et al. 2020, section 2.2; FineWeb is Penedo et al. 2024, section
3.6. Their limits on the length of documents are left out, since an answer of one sentence is not a fault; `prepare` has
limits of its own. Rules that count lines are not applied to texts of fewer than four.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from sft.configuration import PrepareConfig
from sft.steps.step import Drop, Ledger, Row, RowStep
from tiebreak.errors import ConfigError

FEWEST_LINES = 4
FEWEST_WORDS = 20
"""Rules about shares of words are not applied to shorter texts."""
FEWEST_BYTES = 200
"""Compression says nothing about shorter texts."""
STOP_WORDS = frozenset("the be to of and that have with der die das und zu ist von mit".split())
"""Gopher's, and the same in German."""


class Text:
    """A text, with what the rules count, counted once."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def words(self) -> list[str]:
        return self.text.split()

    @cached_property
    def lower_words(self) -> list[str]:
        return [word.lower() for word in self.words]

    @cached_property
    def _repeating(self) -> dict[int, bool]:
        return {}

    def _grams(self, n: int) -> Iterator[tuple[str, ...]]:
        return zip(*(self.lower_words[start:] for start in range(n)), strict=False)

    def repeats(self, n: int) -> bool:
        """Whether an n-gram of words occurs twice. A longer one can only if a shorter one does."""
        if n not in self._repeating:
            may = n <= 2 or self.repeats(n - 1)
            self._repeating[n] = may and len(set(self._grams(n))) < len(self.words) - n + 1
        return self._repeating[n]

    @cached_property
    def lines(self) -> list[str]:
        return [line.strip() for line in self.text.split("\n") if line.strip()]

    @property
    def has_lines(self) -> bool:
        return len(self.lines) >= FEWEST_LINES

    @property
    def has_words(self) -> bool:
        return len(self.words) >= FEWEST_WORDS

    def share_of_lines(self, holds: Callable[[str], bool]) -> float:
        """The share of its lines for which `holds`."""
        return sum(map(holds, self.lines)) / len(self.lines)

    def share_in_grams(self, n: int, most_common: bool) -> float:
        """The share of its characters in the most common n-gram of words, or in all n-grams that occur twice or more."""
        if not self.repeats(n):
            return 0.0
        words = self.lower_words
        grams = Counter(self._grams(n))
        if most_common:
            gram, count = max(
                grams.items(), key=lambda item: (item[1] * sum(map(len, item[0])), item[0]), default=((), 0)
            )
            return count * sum(map(len, gram)) / sum(map(len, words)) if count > 1 else 0.0
        inside = [False] * len(words)
        for start in range(len(words) - n + 1):
            if grams[tuple(words[start : start + n])] > 1:
                inside[start : start + n] = [True] * n
        return sum(len(word) for word, is_in in zip(words, inside, strict=True) if is_in) / sum(map(len, words))


@dataclass(frozen=True)
class Rule:
    """A heuristic that a sound text passes."""

    name: str
    groups: tuple[str, ...]
    fails: Callable[[Text], bool]


def _repeated_lines(text: Text) -> float:
    return 1 - len(set(text.lines)) / len(text.lines)


def _top_gram(n: int, most: float) -> Rule:
    return Rule(f"top_{n}_gram", ("gopher", "repetition"), lambda t: t.has_words and t.share_in_grams(n, True) > most)


def _repeated_grams(n: int, most: float) -> Rule:
    return Rule(
        f"repeated_{n}_grams", ("gopher", "repetition"), lambda t: t.has_words and t.share_in_grams(n, False) > most
    )


_ELLIPSIS = ("…", "...")
_SYMBOLS = re.compile(r"#|…|\.\.\.")
_BULLETS = ("•", "-", "*", "‣", "●")
_ENDS = (".", "!", "?", '"', "”", "“", "’", ":", "…", "`", "|", "}", ")")
_WRAPPED = 30

RULES: tuple[Rule, ...] = (
    Rule(
        "mean_word_length", ("gopher",), lambda t: t.has_words and not 3 <= sum(map(len, t.words)) / len(t.words) <= 10
    ),
    Rule(
        "symbols_per_word",
        ("gopher", "symbols"),
        lambda t: t.has_words and len(_SYMBOLS.findall(t.text)) / len(t.words) > 0.1,
    ),
    Rule(
        "bullet_lines",
        ("gopher",),
        lambda t: t.has_lines and t.share_of_lines(lambda line: line.startswith(_BULLETS)) > 0.9,
    ),
    Rule(
        "ellipsis_lines",
        ("gopher",),
        lambda t: t.has_lines and t.share_of_lines(lambda line: line.endswith(_ELLIPSIS)) > 0.3,
    ),
    Rule(
        "words_with_letters",
        ("gopher", "symbols"),
        lambda t: t.has_words and sum(any(c.isalpha() for c in w) for w in t.words) / len(t.words) < 0.8,
    ),
    Rule(
        "stop_words",
        ("gopher",),
        lambda t: t.has_words and len(STOP_WORDS & {w.lower().strip(",.;:!?") for w in t.words}) < 2,
    ),
    Rule("repeated_lines", ("gopher", "repetition"), lambda t: t.has_lines and _repeated_lines(t) > 0.3),
    *(_top_gram(n, most) for n, most in ((2, 0.20), (3, 0.18), (4, 0.16))),
    *(_repeated_grams(n, most) for n, most in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))),
    Rule("lorem_ipsum", ("c4", "filler"), lambda t: "lorem ipsum" in t.text.lower()),
    Rule(
        "javascript_notice",
        ("c4", "filler"),
        lambda t: bool(re.search(r"enable javascript|javascript (?:is )?(?:required|disabled)", t.text, re.IGNORECASE)),
    ),
    Rule(
        "policy_notice",
        ("c4", "filler"),
        lambda t: bool(
            re.search(r"(?:we|this site) uses? cookies|cookie policy|all rights reserved", t.text, re.IGNORECASE)
        ),
    ),
    Rule("curly_bracket", ("c4",), lambda t: "{" in t.text),
    Rule(
        "lines_end_in_punctuation",
        ("fineweb",),
        lambda t: t.has_lines and t.share_of_lines(lambda line: line.endswith(_ENDS)) <= 0.12,
    ),
    Rule(
        "characters_in_repeated_lines",
        ("fineweb", "repetition"),
        lambda t: t.has_lines and _in_repeated_lines(t) >= 0.1,
    ),
    Rule(
        "short_lines",
        ("fineweb",),
        lambda t: t.has_lines and t.share_of_lines(lambda line: len(line) < _WRAPPED) >= 0.67,
    ),
    Rule(
        "compression", ("repetition",), lambda t: len(t.text.encode()) >= FEWEST_BYTES and compression_of(t.text) < 0.2
    ),
    Rule("mostly_symbols", ("symbols",), lambda t: len(t.text) >= FEWEST_WORDS and symbol_share(t.text) > 0.4),
)


def _in_repeated_lines(text: Text) -> float:
    counts = Counter(text.lines)
    repeats = sum(len(line) * (count - 1) for line, count in counts.items())
    return repeats / sum(map(len, text.lines))


def compression_of(text: str) -> float:
    """Its size after DEFLATE by its size before."""
    raw = text.encode()
    return len(zlib.compress(raw, 9)) / max(1, len(raw))


def symbol_share(text: str) -> float:
    """The share of characters, spaces apart, that are neither letters nor digits."""
    shown = len(text) - len(_SPACE.findall(text))
    return len(_SYMBOL.findall(text)) / max(1, shown)


_SPACE, _SYMBOL = re.compile(r"\s"), re.compile(r"[^\w\s]|_")


def rules_of(names: Sequence[str]) -> list[Rule]:
    """The rules of these names and groups.

    Raises:
        ConfigError: a name is neither.
    """
    names_of_rules = {rule.name for rule in RULES} | {group for rule in RULES for group in rule.groups}
    if unknown := sorted(set(names) - names_of_rules):
        groups = sorted({group for rule in RULES for group in rule.groups})
        raise ConfigError(
            f"quality.rules: no rule {', '.join(unknown)}; groups: {', '.join(groups)}; rules: "
            f"{', '.join(rule.name for rule in RULES)}"
        )
    return [rule for rule in RULES if {rule.name, *rule.groups} & set(names)]


class Quality(RowStep):
    """The step. Prompt and answer are checked separately."""

    def __init__(self, config: PrepareConfig) -> None:
        super().__init__(config)
        self.rules = rules_of(config.quality.rules)
        self.drops = config.quality.action == "drop"

    def look(self, row: Row, ledger: Ledger) -> Row | Drop:
        texts = {"prompt": row.prompt.messages[-1].text, "answer": row.answers[-1].text if row.answers else ""}
        parts = {part: Text(text) for part, text in texts.items() if text}
        failed = [
            f"{rule.name} of the {part}" for part, text in parts.items() for rule in self.rules if rule.fails(text)
        ]
        if not failed:
            return row
        if self.drops:
            return Drop(", ".join(failed), failed[0])
        ledger.flag(row, ", ".join(failed), failed[0])
        return row
