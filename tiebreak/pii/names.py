"""Names of people, found by a model of the user's: spaCy's, or GLiNER's (Zaratiana et al. 2024).

    nlp.to_disk(FOLDER)                     # spaCy: the folder has config.cfg
    model.save_pretrained(FOLDER)           # GLiNER: the folder has gliner_config.json

A GLiNER model reads a limited number of words and silently ignores the rest, so longer texts are given to it in
pieces that overlap.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from tiebreak.errors import ConfigError
from tiebreak.pii.finding import Finding

LABELS = {"PER": "PERSON", "PERSON": "PERSON"}
SPACY_FILE, GLINER_FILE = "config.cfg", "gliner_config.json"
"""Files by which the folder of a model is recognised."""


class Names(Protocol):
    """A model that finds names."""

    def find(self, text: str) -> list[Finding]:
        """The names in a text."""
        ...


def load_names(folder: str) -> Names:
    """The model in a folder.

    Raises:
        ConfigError: it is neither spaCy's nor GLiNER's, cannot be loaded, or its package is missing.
    """
    if (Path(folder) / GLINER_FILE).is_file():
        return GlinerNames(folder)
    if (Path(folder) / SPACY_FILE).is_file():
        return SpacyNames(folder)
    there = "" if Path(folder).is_dir() else ": there is no such folder"
    raise ConfigError(
        f"anonymise.model: {folder} has neither a spaCy model ({SPACY_FILE}, which nlp.to_disk(FOLDER) writes) nor a "
        f"GLiNER model ({GLINER_FILE}, which model.save_pretrained(FOLDER) writes){there}"
    )


class SpacyNames:
    """A spaCy model."""

    def __init__(self, folder: str) -> None:
        try:
            import spacy

            self._model: Any = spacy.load(Path(folder))  # a name could be that of an installed package
        except (ImportError, OSError, ValueError) as error:
            raise _unloadable(folder, error) from error
        if not {"ner", "entity_ruler", "span_ruler"} & set(self._model.pipe_names):
            raise ConfigError(
                f"anonymise.model: {folder} finds no entities: its pipeline is "
                f"{', '.join(self._model.pipe_names) or 'empty'}"
            )

    def find(self, text: str) -> list[Finding]:
        """The names in a text."""
        return [
            Finding(entity.start_char, entity.end_char, LABELS[entity.label_], 0.85)
            for entity in self._model(text).ents
            if entity.label_ in LABELS
        ]


class GlinerNames:
    """A GLiNER model. Its scores are the findings' scores, so uncertain names are flagged."""

    label = "person"
    threshold = 0.3
    """Names with a lower score are ignored."""
    most_words = 128
    """words of a piece: few enough that their tokens fit into encoders of 512 positions"""
    overlap = 16
    """words that a piece shares with the one before: no name is cut in both"""

    def __init__(self, folder: str) -> None:
        try:
            from gliner import GLiNER
        except ImportError as error:
            raise ConfigError(
                f"anonymise.model: {folder} is a GLiNER model, which needs the package gliner. It allows no transformers "
                "from 5.17 on: install it by 'pip install --no-deps gliner sentencepiece', or name a spaCy model"
            ) from error
        try:
            self._model: Any = GLiNER.from_pretrained(folder, local_files_only=True)
            longest = int(json.loads((Path(folder) / GLINER_FILE).read_text(encoding="utf-8")).get("max_len", 384))
        except Exception as error:  # whatever its loader raises, this model cannot be used
            raise _unloadable(folder, error) from error
        self.words = max(2 * self.overlap, min(self.most_words, longest))

    def find(self, text: str) -> list[Finding]:
        """The names in a text."""
        return [
            Finding(start + one["start"], start + one["end"], "PERSON", float(one["score"]))
            for start, end in self._pieces(text)
            for one in self._model.predict_entities(text[start:end], [self.label], threshold=self.threshold)
        ]

    def _pieces(self, text: str) -> Iterator[tuple[int, int]]:
        words = [(one.start(), one.end()) for one in _WORD.finditer(text)]
        for first in range(0, max(1, len(words) - self.overlap), self.words - self.overlap):
            piece = words[first : first + self.words]
            if piece:
                yield piece[0][0], piece[-1][1]


_WORD = re.compile(r"\w+(?:[-_]\w+)*|\S")
"""GLiNER's words"""


def _unloadable(folder: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"anonymise.model: {folder} cannot be loaded: {(str(error) or type(error).__name__).splitlines()[0]}"
    )
