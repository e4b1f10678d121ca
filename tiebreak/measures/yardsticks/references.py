"""Text metrics against reference answers, each the best over a prompt's references; None without any.

ROUGE is the package rouge-score's; BLEU and chrF are sacrebleu's, at the level of sentences; METEOR is NLTK's with exact
and stemmed matches alone, since its synonyms need WordNet. Exact match and token F1 are SQuAD's (Rajpurkar et al. 2016).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tiebreak.errors import ConfigError
from tiebreak.extras import require_package
from tiebreak.measures.yardsticks.inputs import Function, YardstickInput

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(kind: str) -> Function:
    """ROUGE's F1, with Porter's stemmer, from 0 to 1 (Lin 2004)."""
    if kind not in ROUGE_TYPES:
        raise ConfigError(f"yardsticks: rouge:{kind}: there are {', '.join(ROUGE_TYPES)}")
    scorers = require_package("rouge_score.rouge_scorer", "the yardstick rouge", "eval")
    scorer = scorers.RougeScorer([kind], use_stemmer=True)
    return _against(lambda answer, references: float(scorer.score_multi(references, answer)[kind].fmeasure))


def bleu(_: str) -> Function:
    """Sentence BLEU with exponential smoothing, from 0 to 100 (Post 2018)."""
    sacrebleu = require_package("sacrebleu", "the yardstick bleu", "eval")
    return _against(lambda answer, references: float(sacrebleu.sentence_bleu(answer, references).score))


def chrf(_: str) -> Function:
    """chrF2, from 0 to 100 (Popović 2015)."""
    sacrebleu = require_package("sacrebleu", "the yardstick chrf", "eval")
    return _against(lambda answer, references: float(sacrebleu.sentence_chrf(answer, references).score))


class _NoSynonyms:
    """WordNet's place in NLTK's METEOR."""

    def synsets(self, _: str) -> list[Any]:
        return []


def meteor(_: str) -> Function:
    """METEOR by exact and stemmed matches, from 0 to 1 (Banerjee and Lavie 2005)."""
    nltk = require_package("nltk.translate.meteor_score", "the yardstick meteor", "eval")

    def score(answer: str, references: list[str]) -> float:
        tokens = [_tokens(reference) for reference in references]
        return float(nltk.meteor_score(tokens, _tokens(answer), wordnet=_NoSynonyms()))

    return _against(score)


def exact_match(_: str) -> Function:
    """1 if the answer is a reference, apart from case, punctuation and articles."""
    return _against(lambda answer, references: float(any(_plain(answer) == _plain(one) for one in references)))


def token_f1(_: str) -> Function:
    """F1 of the words that answer and reference share."""
    return _against(lambda answer, references: max(f1(_plain(answer).split(), _plain(r).split()) for r in references))


def f1(words: Sequence[str], others: Sequence[str]) -> float:
    """Harmonic mean of precision and recall, each word counted as often as it occurs.

    >>> f1(["a", "b", "b"], ["b", "c"])
    0.4
    """
    if not words or not others:
        return float(words == others)
    shared = sum((Counter(words) & Counter(others)).values())
    return 2 * shared / (len(words) + len(others))


def _against(score: Callable[[str, list[str]], float]) -> Function:
    def measure(asked: YardstickInput, answers: Sequence[str]) -> list[float | None]:
        references = list(asked.references)
        return [score(answer, references) if references else None for answer in answers]

    return measure


def _tokens(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _plain(text: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, no articles, single blanks."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())
