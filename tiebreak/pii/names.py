"""Names of people, found by a spaCy model of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiebreak.errors import ConfigError
from tiebreak.pii.finding import Finding

LABELS = {"PER": "PERSON", "PERSON": "PERSON"}


class Names:
    """A spaCy model that finds names."""

    def __init__(self, folder: str) -> None:
        if not (Path(folder) / "config.cfg").is_file():
            raise ConfigError(
                f"anonymise.model: {folder} is not the folder of a spaCy model: it has no config.cfg (nlp.to_disk(FOLDER) "
                "writes one)"
            )
        try:
            import spacy

            self._model: Any = spacy.load(folder)
        except (ImportError, OSError, ValueError) as error:
            raise ConfigError(f"anonymise.model: {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
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
