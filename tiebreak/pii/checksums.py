"""Check digits of bank accounts, cards and German tax numbers, whatever separates their groups."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tiebreak.pii.finding import Finding

IBAN_LENGTHS = {
    country: int(length)
    for country, length in (
        entry.split(":")
        for entry in """AD:24 AE:23 AL:28 AT:20 AZ:28 BA:20 BE:16 BG:22 BH:22 BR:29 BY:28 CH:21 CR:22 CY:28 CZ:24 DE:22
        DK:18 DO:28 EE:20 EG:29 ES:24 FI:18 FO:18 FR:27 GB:22 GE:22 GI:23 GL:18 GR:27 GT:28 HR:21 HU:28
        IE:22 IL:23 IQ:23 IS:26 IT:27 JO:30 KW:30 KZ:20 LB:28 LC:32 LI:21 LT:20 LU:20 LV:21 LY:25 MC:27
        MD:24 ME:22 MK:19 MR:27 MT:31 MU:30 NL:18 NO:15 PK:24 PL:28 PS:29 PT:25 QA:29 RO:24 RS:22 SA:24
        SC:31 SD:18 SE:24 SI:19 SK:24 SM:27 ST:25 SV:28 TL:23 TN:24 TR:26 UA:29 VA:22 VG:24 XK:20""".split()
    )
}
"""Country → characters of an IBAN (ISO 13616, SWIFT's registry)."""
_GAP = r"[ \t]?[-.]?\s?"
_IBAN = re.compile(rf"(?<![A-Za-z0-9])[A-Za-z]{{2}}{_GAP}\d{_GAP}\d(?:{_GAP}[A-Za-z0-9]){{11,30}}")
_MAY_BE_CARD = re.compile(r"\d{4}(?:[ .\-\n]?\d){9}")
_CARDS = tuple(
    re.compile(rf"(?<![\w.-])[2-6]\d{{3}}(?:[ .\-\n]?\d{{3,6}}){{{groups}}}(?![\w-])") for groups in (4, 3, 2)
)
_TAX = re.compile(
    r"(?:steuer-?\s?(?:id|identifikationsnummer|ident\w*)|\bidnr|\btin)\b\W{0,4}(?:(?:nr|nummer|ist|lautet|is)\b\W{0,3})?"
    r"(?P<value>\d{2}[ -]\d{3}[ -]\d{3}[ -]\d{3})(?!\d)",
    re.IGNORECASE,
)


_TAX_WORDS = ("steuer", "idnr", "tin")


def find_checked(text: str) -> Iterator[Finding]:
    """Values whose check digits are right."""
    yield from _ibans(text)
    if _MAY_BE_CARD.search(text):
        for card in _CARDS:
            yield from _cards(text, card)
    lowered = text.lower()
    for found in _TAX.finditer(text) if any(word in lowered for word in _TAX_WORDS) else ():
        if passes_mod_11_10(re.sub(r"\D", "", found["value"])):
            yield Finding(*found.span("value"), "NATIONAL_ID", 1.0)


def _cards(text: str, form: re.Pattern[str]) -> Iterator[Finding]:
    at = 0
    while found := form.search(text, at):
        at = found.start() + 1  # another number may be before it
        digits = re.sub(r"\D", "", found.group())
        if 13 <= len(digits) <= 19 and passes_luhn(digits):
            yield Finding(found.start(), found.end(), "CARD", 1.0)


def _ibans(text: str) -> Iterator[Finding]:
    at = 0
    while found := _IBAN.search(text, at):
        at = found.start() + 1  # what looks like the beginning of one may be before the real one
        places = [n for n in range(*found.span()) if text[n].isalnum()]
        length = IBAN_LENGTHS.get("".join(text[n] for n in places[:2]).upper(), 0)
        if not length or len(places) < length:
            continue
        written = "".join(text[n] for n in places[:length])
        follows = text[places[length - 1] + 1 : places[length - 1] + 2]
        if not follows.isalnum() and passes_mod_97(written):
            at = places[length - 1] + 1
            yield Finding(found.start(), at, "IBAN", 1.0)


def passes_mod_97(iban: str) -> bool:
    """ISO 7064 MOD 97-10 of an IBAN without separators."""
    moved = (iban[4:] + iban[:4]).upper()
    if not moved.isascii() or not iban[2:4].isdigit():
        return False
    return int("".join(str(int(one, 36)) for one in moved)) % 97 == 1


def passes_luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    total = sum(sum(divmod(int(one) * (1 + n % 2), 10)) for n, one in enumerate(reversed(digits)))
    return total % 10 == 0


def passes_mod_11_10(digits: str) -> bool:
    """ISO 7064 MOD 11,10, of a German tax identification number."""
    product = 10
    for one in digits[:-1]:
        product = ((int(one) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(digits[-1])
