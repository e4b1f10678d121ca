"""All detectors of personal data, as one object."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tiebreak.pii.finding import Finding, settle
from tiebreak.pii.names import Names
from tiebreak.pii.patterns import PATTERNS, Pattern, find_patterns
from tiebreak.pii.presidio import RECOGNISERS, Presidio

KINDS = tuple(
    sorted({pattern.kind for pattern in PATTERNS} | {kind for kind, _ in RECOGNISERS.values()} | {"PHONE", "PERSON"})
)
"""The kinds that are found without patterns of the user's; PERSON needs a model."""


class Detector:
    """Finds personal data in texts.

    Args:
        languages: of the patterns with a language.
        kinds: to look for; empty: all.
        model: folder of a spaCy model that finds names, or None.
        further: the user's patterns.
    """

    def __init__(
        self,
        languages: Sequence[str] = ("de", "en"),
        kinds: Collection[str] = (),
        model: str | None = None,
        further: Sequence[Pattern] = (),
    ) -> None:
        self.kinds, self.patterns, self.further = frozenset(kinds), PATTERNS, further
        self.presidio = Presidio(languages)
        self.names = Names(model) if model else None

    def find(self, text: str) -> list[Finding]:
        """The findings in a text, unsure ones (`Finding.is_sure`) included, in order and without overlaps."""
        found = [*find_patterns(text, self.patterns), *self.presidio.find(text)]
        if self.names is not None:
            found += self.names.find(text)
        if self.kinds:
            found = [one for one in found if one.kind in self.kinds]
        return settle([*found, *find_patterns(text, self.further)])
