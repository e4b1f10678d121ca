"""All detectors of personal data, as one object."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Sequence

from tiebreak.pii.checksums import find_checked
from tiebreak.pii.finding import Finding, settle
from tiebreak.pii.names import load_names
from tiebreak.pii.patterns import PATTERNS, Pattern, find_patterns
from tiebreak.pii.plain import plain
from tiebreak.pii.presidio import RECOGNISERS, Presidio

KINDS = tuple(
    sorted(
        {pattern.kind for pattern in PATTERNS}
        | {kind for kind, _ in RECOGNISERS.values()}
        | {"PHONE", "PERSON", "IBAN", "CARD"}
    )
)
"""The kinds that are found without patterns of the user's; PERSON needs a model."""


class Detector:
    """Finds personal data in texts.

    Args:
        languages: of the patterns with a language.
        kinds: to look for; empty: all.
        model: folder of a spaCy or GLiNER model that finds names, or None.
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
        self.names = load_names(model) if model else None

    def find(self, text: str) -> list[Finding]:
        """The findings in a text, unsure ones (`Finding.is_sure`) included, in order and without overlaps."""
        seen = plain(text)
        found = self._find(text if seen is None else seen.text)
        if seen is not None:
            found = [seen.in_original(one) for one in found]
        names = self.names.find(text) if self.names is not None else []
        if self.kinds:
            found, names = ([one for one in some if one.kind in self.kinds] for some in (found, names))
        return settle(found, [*names, *find_patterns(text, self.further)])

    def _find(self, text: str) -> list[Finding]:
        found = [*find_patterns(text, self.patterns), *find_checked(text), *self.presidio.find(text)]
        for one in _ENCODED.finditer(text):
            if inside := [hidden for hidden in self._find(_decoded(one.group())) if hidden.is_sure]:
                found.append(Finding(one.start(), one.end(), inside[0].kind, inside[0].score))
        return found


_ENCODED = re.compile(r"(?<![\w+/=-])[A-Za-z0-9+/]{20,}={0,2}(?![\w+/=-])")
"""what may be Base64"""


def _decoded(encoded: str) -> str:
    """The text in Base64; empty if there is none."""
    try:
        content = base64.b64decode(encoded, validate=True).decode("utf-8")
    except ValueError:
        return ""
    return content if content.isprintable() or "\n" in content else ""
