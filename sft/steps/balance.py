"""The step `balance`: counts rows by tag, topic, language and length, and lists what is rare.

It changes no row. Topics are clusters of the prompts' words (TF-IDF, then k-means; Salton and Buckley 1988, Lloyd 1982),
named by their most frequent typical words; they depend on the seed and the rows, not on the rows' order. What is rare is
written to gaps.jsonl, from which `tiebreak synthesise` makes prompts.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sft.configuration import PrepareConfig
from sft.steps.language import load_identifier
from sft.steps.step import Ledger, Row, Step, require_package
from tiebreak.measures.canaries import is_canary

LENGTHS = ((20, "up to 20 words"), (50, "21 to 50 words"), (150, "51 to 150 words"), (math.inf, "over 150 words"))
MOST_TOPICS = 24
WORDS_IN_NAME = 3
EXAMPLES = 3
TOO_SHORT, NOT_CLEAR = "too short", "not clear"
"""in place of a language: nothing is rare about these"""
LEAST_PROBABILITY = 0.5
"""of a text's language: with less, the others together are as probable"""
MANY_ROWS = 20_000
"""From this number of rows on, k-means uses mini-batches (Sculley 2010)."""
_STOP_WORDS = frozenset(
    """a about am an and any are as at be but by can could do does for from had has have hello her his how i if in into
    is it its just me my no not of on or our please so than thanks that the their them then there they this to
    up was we were what when where which who why will with would you your aber als am an auch auf aus bei bin
    bitte da danke dann das dass dem den der des die doch ein eine einen einer eines er es für guten habe haben
    hallo hat hier ich ihr ihre im in ist ja kann können man mein meine mich mir mit nach nicht noch nur oder
    schon sehr sein sich sie sind so tag über um und uns unter vom von vor war warum was welche wenn wer werden
    wie wir wird wo zu zum zur""".split()
)


class Balance(Step):
    """The step."""

    order = "all at once"

    def __init__(self, config: PrepareConfig) -> None:
        super().__init__(config)
        self.settings = config.balance
        require_package("sklearn", "balance")
        require_package("py3langid", "balance")
        self.languages = load_identifier()

    def run(self, rows: Sequence[Row], ledger: Ledger) -> Sequence[Row]:
        unique = {row.prompt.id: (row.prompt_text, row.prompt.tags) for row in rows if not is_canary(row.prompt)}
        ordered = [unique[identity] for identity in sorted(unique)]
        texts, tags = [text for text, _ in ordered], [of_row for _, of_row in ordered]
        topics = topics_of(texts, self.settings.topics, self.settings.seed)
        values: dict[str, list[list[str]]] = {
            "tag": [list(of_row) for of_row in tags],
            "topic": [[topic] for topic in topics],
            "language": [[self._language(text)] for text in texts],
            "length": [[length_of(text)] for text in texts],
        }
        counts = {
            kind: dict(Counter(v for of_row in listed for v in of_row).most_common()) for kind, listed in values.items()
        }
        gaps = gaps_of(values, texts, self.settings.rare)
        ledger.now.facts.update(balance=counts, gaps=len(gaps))
        ledger.gaps = gaps
        return rows

    def _language(self, text: str) -> str:
        if len(text) < self.settings.min_characters:
            return TOO_SHORT
        language, probability = self.languages.classify(text)
        return str(language) if probability > LEAST_PROBABILITY else NOT_CLEAR


def length_of(text: str) -> str:
    """The band of a text's length."""
    words = len(text.split())
    return next(name for most, name in LENGTHS if words <= most)


# --- topics ---


def topics_of(texts: Sequence[str], number: int, seed: int) -> list[str]:
    """The topic of each text, by name.

    Args:
        number: of topics; 0: the square root of half the texts, 24 at most.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    number = min(number or min(MOST_TOPICS, max(1, round(math.sqrt(len(texts) / 2)))), len(texts))
    vectors = TfidfVectorizer(
        token_pattern=r"(?u)\b[^\W\d_]{2,}\b", stop_words=sorted(_STOP_WORDS), max_features=20_000, sublinear_tf=True
    )
    try:
        matrix = vectors.fit_transform([_without_tags(text) for text in texts])
    except ValueError:  # no words in any of them
        return ["without words"] * len(texts)
    number = min(number, len({tuple(row.indices) for row in matrix}))
    method: Any = MiniBatchKMeans if len(texts) > MANY_ROWS else KMeans
    labels = method(number, random_state=seed, n_init=4).fit_predict(matrix)
    words = vectors.get_feature_names_out()
    weights: dict[int, Any] = {
        label: matrix[[n for n, one in enumerate(labels) if one == label]].sum(axis=0).A1 for label in set(labels)
    }
    names = {
        label: _name([words[n] for n in weights[label].argsort()[::-1][:WORDS_IN_NAME] if weights[label][n] > 0])
        for label in weights
    }
    return [names[label] for label in labels]


def _without_tags(text: str) -> str:
    """A text without addresses and what `anonymise` put into it, which are no topic."""
    return re.sub(r"<[A-Z_]+[^<>]*>|\S+@\S+|https?://\S+", " ", text)


def _name(words: Sequence[str]) -> str:
    return ", ".join(words) or "without words"


# --- what is rare ---


def gaps_of(values: Mapping[str, Sequence[Sequence[str]]], texts: Sequence[str], rare: float) -> list[dict[str, Any]]:
    """Values with fewer rows than the share `rare` of an even distribution, and tags that are rare in a language.

    Args:
        values: kind → the values of each row.
    """
    gaps = []
    for kind, of_rows in values.items():
        places: dict[str, list[int]] = defaultdict(list)
        for number, found in enumerate(of_rows):
            for value in found:
                places[value].append(number)
        for unknown in (TOO_SHORT, NOT_CLEAR) if kind == "language" else ():
            places.pop(unknown, None)
        even = sum(map(len, places.values())) / max(len(places), 1)
        for value, there in sorted(places.items()):
            if len(there) < rare * even:
                gaps.append(_gap(kind, value, len(there), even, [texts[n] for n in there]))
    return gaps + _crossed(values, texts, rare)


def _crossed(values: Mapping[str, Sequence[Sequence[str]]], texts: Sequence[str], rare: float) -> list[dict[str, Any]]:
    """Tags that are rare in one of the languages, though not by themselves."""
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, (of_row, (language,)) in enumerate(zip(values["tag"], values["language"], strict=True)):
        for tag in of_row:
            places[tag, language].append(number)
    tags, languages = (Counter(key[n] for key, there in places.items() for _ in there) for n in (0, 1))
    total, gaps = sum(tags.values()), []
    for tag in sorted(tags):
        for language in sorted(languages.keys() - {TOO_SHORT, NOT_CLEAR}):
            expected, there = tags[tag] * languages[language] / total, places.get((tag, language), [])
            if expected >= 2 and len(there) < rare * expected and tag not in languages:
                gaps.append(
                    _gap("tag in a language", f"{tag}, {language}", len(there), expected, [texts[n] for n in there])
                )
    return gaps


def _gap(kind: str, value: str, rows: int, even: float, texts: Sequence[str]) -> dict[str, Any]:
    wanted = max(1, round(even) - rows)
    return {
        "kind": kind,
        "value": value,
        "rows": rows,
        "even_share": round(even, 1),
        "wanted": wanted,
        "suggestion": f"about {wanted} more prompts ({kind}: {value})",
        "examples": list(texts[:EXAMPLES]),
    }
