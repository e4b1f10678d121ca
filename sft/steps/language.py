"""The step `language`: drops rows in other languages than the configured ones."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from sft.configuration import PrepareConfig
from sft.steps.step import Drop, Ledger, Row, RowStep, require_package
from tiebreak.errors import ConfigError


class Language(RowStep):
    """The step. A row's language is py3langid's most probable one for prompt and answer together, without system texts."""

    def __init__(self, config: PrepareConfig) -> None:
        super().__init__(config)
        require_package("py3langid", "language")
        self.settings = config.language
        self.min_probability = config.language.min_probability
        codes = {str(label) for label in self._identifier.labels}
        if unknown := sorted(set(config.language.keep) - codes):
            raise ConfigError(
                f"language.keep: no language {', '.join(unknown)}: give ISO 639-1 codes, of {', '.join(sorted(codes))}"
            )

    @cached_property
    def _identifier(self) -> Any:
        return load_identifier()

    def look(self, row: Row, ledger: Ledger) -> Row | Drop:
        texts = [m.text for m in (*row.prompt.messages, *row.answers) if m.role in ("user", "assistant")]
        text = "\n".join(texts)
        if len(text) < self.settings.min_characters:
            ledger.now.count("too short to judge")
            return row
        found, probability = self._identifier.classify(text)
        if found not in self.settings.keep and probability >= self.min_probability:
            return Drop(f"language is {found}")
        ledger.now.count(f"{found}: kept" if found in self.settings.keep else "not clear: kept")
        asked, answered = (self._surely(part) for part in (row.prompt.messages[-1].text, row.answer_text))
        if asked and answered and asked != answered:
            ledger.flag(row, f"the prompt is {asked}, the answer {answered}", "prompt and answer in two languages")
        return row

    def _surely(self, text: str) -> str:
        """A text's language; empty if it is too short, or not clear."""
        if len(text) < self.settings.min_characters:
            return ""
        found, probability = self._identifier.classify(text)
        return str(found) if probability >= self.min_probability else ""


def load_identifier() -> Any:
    """py3langid's model, whose `classify(text)` gives a language and its probability."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
