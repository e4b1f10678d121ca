"""The quickstart's written wish, made measurable: practical, immediate advice and no platitudes.

Six criteria, each met (1) or not (0); the score of an answer is their mean. Two readers use it, and they must not be
confused: simulated raters judge pairs by it, with errors; `evaluate` measures with it, as the yardstick that training
never sees (training sees the raters' judgments alone). `yardstick: rubric` names it; a yardstick of your own is such a
file beside your configuration.

The criteria are plain text rules on purpose: anyone can read them, work an example by hand, and disagree.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

MIN_WORDS, MAX_WORDS = 20, 70
REPEATED_WORDS = 4
"""A run of this many words that occurs twice is a repetition."""

_UNIT = (
    r"(?:%|°\s?[cf]?\b|degrees?|celsius|fahrenheit|ppm|ec\b|ms(?:/cm)?\b|µs|us/cm|ph\b|mg(?:/l)?\b|ml(?:/l)?\b|g(?:/l)?\b|grams?|kg|"
    r"l\b|lit(?:er|re)s?|gal(?:lon)?s?|cups?|tablespoons?|teaspoons?|tsp|tbsp|drops?|oz|ounces?|"
    r"mm|cm|m\b|inch(?:es)?|in\b|feet|foot|ft|seconds?|minutes?|min\b|hours?|hrs?|h\b|days?|weeks?|months?|"
    r"watts?|w\b|lux|umol|µmol|ppfd|volts?|v\b|amps?|times|plants?|leaves|lph|gph|l/h|l/min|rpm)"
)
_NUMBER_WITH_UNIT = re.compile(
    rf"(?<![\w.])\d+(?:[.,]\d+)?(?:\s?(?:-|–|to|and)\s?\d+(?:[.,]\d+)?)?\s?-?{_UNIT}", re.IGNORECASE
)
_PH_VALUE = re.compile(r"\b(?:ph|ec)\b\D{0,20}\d+(?:\.\d+)?", re.IGNORECASE)

IMPERATIVES = frozenset(
    """add adjust aerate aim apply ask avoid begin blend bring build buy calibrate change check choose clean clear clip
    confirm cool cover cut darken dilute dim dip discard dissolve drain drill drop dry dump empty ensure feed
    fill filter finish fit fix flush give grow hang harvest hold increase inspect insulate install isolate keep
    leave let lift limit look lower maintain make mark measure mix mount move nip open overlap paint pick pinch
    place plant plug pour prune pull pump put raise record reduce refill remove repeat replace reset rinse
    rotate run scrub seal separate set shade shake shorten shut siphon skip slow soak sow space spray spread
    squeeze sprinkle stake start stir stop store strip supply swap switch take test thin throw tie tilt top
    track transplant treat trim try tuck turn unplug use vent wait wash water wear wipe wrap""".split()
)
_LEADS_IN = r"(?:first|then|next|now|also|instead|finally|always|once a \w+|every \w+|for \w+|to \w+[^,.]{0,40}),?\s+"

FILLER_OPENINGS = (
    "great question", "good question", "i'm sorry", "i am sorry", "sorry to hear", "i understand", "i'd be happy",
    "i would be happy", "happy to help", "sure", "certainly", "of course", "absolutely", "as an ai", "it is important",
    "it's important", "it's great", "it is great", "thank you", "thanks", "hello", "hi", "well,",
    "there are many", "there are several", "there could be", "you're right", "you are right", "congratulations",
    "i'm glad", "i am glad", "i'm happy", "to answer your question", "hydroponics is", "a great", "that's a", "that is a",
)  # fmt: skip
_FILLER = re.compile(rf"(?:{'|'.join(map(re.escape, FILLER_OPENINGS))})(?!\w)")


@dataclass(frozen=True)
class RubricResult:
    """Which criteria an answer meets."""

    concrete: bool
    """names a number with a unit, or a pH or EC value"""
    actionable: bool
    """a sentence tells the grower to do something"""
    direct: bool
    """opens without filler"""
    unrepeated: bool
    """no run of four words comes twice"""
    length: bool
    """20 to 70 words"""
    finished: bool
    """ends as a sentence does"""

    @property
    def score(self) -> float:
        """Share of the criteria met, 0 to 1."""
        met = [bool(value) for value in asdict(self).values()]
        return sum(met) / len(met)


def score_rubric(answer: str) -> RubricResult:
    """Judge one answer.

    >>> score_rubric("Lower the pH to 5.8 with 1 ml of acid per litre, wait 30 minutes, then measure it again and "
    ...              "repeat until it stays between 5.5 and 6.2.").score
    1.0
    """
    text = answer.strip()
    words = _words(text)
    return RubricResult(
        concrete=bool(_NUMBER_WITH_UNIT.search(text) or _PH_VALUE.search(text)),
        actionable=any(_is_imperative(sentence) for sentence in _sentences(text)),
        direct=bool(text) and not _FILLER.match(text.lower()),
        unrepeated=bool(words) and not _repeats(words),
        length=MIN_WORDS <= len(words) <= MAX_WORDS,
        finished=bool(re.search(r"[.!?][\"')]?$", text)),
    )


def criteria(_prompt: str, answer: str) -> dict[str, bool]:
    """Which criteria the answer to a prompt meets."""
    return asdict(score_rubric(answer))


def score(_prompt: str, answer: str) -> float:
    """Share of the criteria that the answer to a prompt meets."""
    return score_rubric(answer).score


score.name = "Rubric score"  # type: ignore[attr-defined]
score.scale = (0.0, 1.0)  # type: ignore[attr-defined]
score.criteria = criteria  # type: ignore[attr-defined]


def _repeats(words: list[str]) -> bool:
    runs = [tuple(words[i : i + REPEATED_WORDS]) for i in range(len(words) - REPEATED_WORDS + 1)]
    return len(set(runs)) < len(runs)


def _words(text: str) -> list[str]:
    return re.findall(r"[\w°%'.-]*\w[\w°%']*", text.lower())


def _sentences(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.!?;:])\s+|\n+", text) if part.strip()]


def _is_imperative(sentence: str) -> bool:
    bare = re.sub(r"^(?:[-*•]|\d+[.)])\s*", "", sentence.lower())
    bare = re.sub(rf"^{_LEADS_IN}", "", bare)
    first = re.match(r"[a-z]+", bare)
    return bool(first) and first.group() in IMPERATIVES if first else False
