"""Presidio's recognisers of values with a published form: national numbers, telephone numbers, network addresses.

They are called one by one. Presidio's engine would load a language model for every text, and its recognisers of e-mail
addresses and URLs ask the network (see patterns).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tiebreak.pii.finding import SURE, Finding, with_context

RECOGNISERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "IpRecognizer": ("IP", ()),
    "MacAddressRecognizer": ("MAC", ()),
    "CryptoRecognizer": ("WALLET", ()),
    "UsSsnRecognizer": ("NATIONAL_ID", ("en",)),
    "UsItinRecognizer": ("NATIONAL_ID", ("en",)),
    "UkNinoRecognizer": ("NATIONAL_ID", ("en",)),
    "NhsRecognizer": ("NATIONAL_ID", ("en",)),
    "DeTaxIdRecognizer": ("NATIONAL_ID", ("de",)),
    "DeSocialSecurityRecognizer": ("NATIONAL_ID", ("de",)),
    "DeHealthInsuranceRecognizer": ("NATIONAL_ID", ("de",)),
    "DeIdCardRecognizer": ("NATIONAL_ID", ("de",)),
    "DePassportRecognizer": ("NATIONAL_ID", ("de",)),
}
"""Presidio's class → our kind, and the languages that it is for; none: all."""
_MAY_MATCH: dict[str, re.Pattern[str]] = {
    name: re.compile(expression, re.IGNORECASE)
    for name, expression in {
        "IpRecognizer": r"\d\.\d{1,3}\.\d{1,3}\.\d|:[0-9a-f]{0,4}:",
        "MacAddressRecognizer": r":[0-9a-f]{2}:|-[0-9a-f]{2}-|\.[0-9a-f]{4}\.",
        "CryptoRecognizer": r"[a-z0-9]{26}",
        "UsSsnRecognizer": r"\d(?:[-. ]?\d){8}",
        "UsItinRecognizer": r"\d(?:[- ]?\d){8}",
        "UkNinoRecognizer": r"\d{2} ?\d{2} ?\d{2} ?[a-d]",
        "NhsRecognizer": r"\d{3}[- ]?\d{3}[- ]?\d{4}",
        "DeTaxIdRecognizer": r"\d{11}",
        "DeSocialSecurityRecognizer": r"\d{8}[a-z]\d{3}",
        "DeHealthInsuranceRecognizer": r"[a-z]\d{9}",
        "DeIdCardRecognizer": r"[a-z][a-z0-9]{7}\d",
        "DePassportRecognizer": r"[a-z][a-z0-9]{7}\d",
    }.items()
}
"""What every match of a recogniser contains: it is not called on other texts."""
_MAY_BE_PHONE = re.compile(r"\d(?:(?:[^\w\n]|x){0,4}\d){6}", re.IGNORECASE)
"""Seven digits: shorter numbers are extensions, or no telephone numbers at all."""
_DIGIT = re.compile(r"\d")
REGIONS_OF = {"de": ("DE", "AT", "CH"), "en": ("GB", "US")}
"""language → countries whose telephone numbers are recognised without a country code"""
REGIONS = tuple(region for regions in REGIONS_OF.values() for region in regions)
_PHONE_WORDS = (
    "phone", "call", "telephone", "tel", "cell", "mobile", "fax", "whatsapp", "text me", "reach me", "ring me", "my number",
    "my nr",
    "telefon", "handy", "mobil", "ruf", "rufnummer", "anrufen", "erreichbar", "erreichen", "durchwahl", "meine nr",
    "meine nummer",
)  # fmt: skip


class Presidio:
    """The recognisers for some languages."""

    def __init__(self, languages: Sequence[str]) -> None:
        self.languages = languages

    @cached_property
    def _recognisers(self) -> list[tuple[str, re.Pattern[str], Any]]:
        import presidio_analyzer.predefined_recognizers as predefined

        return [
            (kind, _MAY_MATCH[name], getattr(predefined, name)())
            for name, (kind, languages) in RECOGNISERS.items()
            if not languages or set(languages) & set(self.languages)
        ]

    @cached_property
    def _phones(self) -> Any:
        from presidio_analyzer.predefined_recognizers import PhoneRecognizer

        return PhoneRecognizer(supported_regions=REGIONS)

    def find(self, text: str) -> list[Finding]:
        """The findings in a text."""
        if _DIGIT.search(text) is None:
            return []
        found = []
        for kind, may_match, recogniser in self._recognisers:
            if may_match.search(text) is None:
                continue
            for one in recogniser.analyze(text, recogniser.supported_entities, None) or []:
                if kind == "IP" and _is_of_longer_number(text, one.start, one.end):
                    continue
                score = min(one.score, SURE - 0.1) if one.score <= SURE and kind == "NATIONAL_ID" else one.score
                found.append(with_context(text, Finding(one.start, one.end, kind, score), recogniser.context or ()))
        return [*found, *(self._numbers(text) if _MAY_BE_PHONE.search(text) else ())]

    def _numbers(self, text: str) -> list[Finding]:
        """Telephone numbers: sure with a country code, or in groups after a 0, or announced."""
        found = []
        for one in self._phones.analyze(text, ["PHONE_NUMBER"], None):
            start, end = one.start, one.end
            digits = text[start:end]
            if start and text[start - 1] in "+(":
                start -= 1
                digits = text[start:end]
            grouped = re.match(r"\(?0", digits) and re.search(r"[ /()-]", digits)
            score = 0.7 if digits.startswith(("+", "00")) or grouped else 0.3
            found.append(with_context(text, Finding(start, end, "PHONE", score), _PHONE_WORDS))
        return found


def international_number(value: str, languages: Sequence[str]) -> str | None:
    """A telephone number in the form of E.164: +491711234567. None of what is no valid number.

    Args:
        languages: a number without a country code is one of the first country where it is valid, theirs before others.
    """
    import phonenumbers

    first = [region for language in languages for region in REGIONS_OF.get(language, ())]
    for region in dict.fromkeys((*first, *REGIONS)):
        try:
            number = phonenumbers.parse(value, region)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number(number):
            form = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
            return f"{form}x{number.extension}" if number.extension else form
    return None


def _is_of_longer_number(text: str, start: int, end: int) -> bool:
    """Whether it is a version, or dots and digits continue, as in a section's number, 10.1.2.3.4."""
    before = text[max(0, start - 16) : start]
    return bool(
        re.match(r"\.\d", text[end : end + 2]) or re.search(r"\d\.$|\bv(?:ersion)?\W{0,2}$", before, re.IGNORECASE)
    )
