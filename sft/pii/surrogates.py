"""Invented values in place of real ones, from ranges reserved for examples where there are any, so that they belong to
nobody: RFC 2606 (domains), RFC 5737 and 3849 (IP addresses), RFC 7042 (MAC), Bundesnetzagentur's numbers for
films, and bank code 00000000. These ranges are small (1,000 telephone numbers of one town), so two values may get the
same one: another `attempt` draws from a wider range.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable

_Maker = Callable[[random.Random, str], str]
_GIVEN = (
    "Alex Andrea Chris Dana Eli Finn Jamie Jo Kim Lee Lou Luca Maxi Mika Nico Noa Pat Robin Sam Sascha Toni".split()
)
_FAMILY = "Adler Berg Brook Carter Fields Fischer Graf Hill Keller Lake Marsh Moor Reed Stone Vogel Weaver".split()
_STREETS = "Musterstraße Beispielweg Ahornallee Lindenplatz".split()


def surrogate(kind: str, value: str, seed: int, attempt: int = 0, shape: str | None = None) -> str:
    """An invented value of the kind. The same arguments give the same one.

    Args:
        attempt: how many were drawn before, because another value has them.
        shape: the value as it was written, whose form the invented one has; `value` is its normal form.
    """
    again = f"\0{attempt}" if attempt else ""
    digest = hashlib.sha256(f"{seed}\0{kind}\0{value}{again}".encode()).digest()
    pick = random.Random(int.from_bytes(digest[:8], "big"))
    maker = (_WIDER.get(kind) if attempt else None) or _MAKERS.get(kind)
    return (maker or in_its_shape)(pick, shape or value)


def in_its_shape(pick: random.Random, value: str) -> str:
    """The value with every digit and letter drawn anew."""
    letters = "abcdefghijklmnopqrstuvwxyz"

    def drawn(character: str) -> str:
        if character.isdigit():
            return str(pick.randrange(10))
        if character.isalpha():
            letter = pick.choice(letters)
            return letter.upper() if character.isupper() else letter
        return character

    return "".join(map(drawn, value))


def _digits(pick: random.Random, count: int) -> str:
    return "".join(str(pick.randrange(10)) for _ in range(count))


def _email(pick: random.Random) -> str:
    return f"{pick.choice(_GIVEN).lower()}.{pick.choice(_FAMILY).lower()}{pick.randrange(100)}@example.org"


def _phone(pick: random.Random, value: str) -> str:
    return f"+49 30 23125 {_digits(pick, 3)}" if value.startswith(("+", "00")) else f"030 23125 {_digits(pick, 3)}"


def _iban(pick: random.Random) -> str:
    account = "00000000" + _digits(pick, 10)
    check = 98 - int(account + "131400") % 97  # D is 13, E is 14; ISO 13616
    return f"DE{check:02d}{account}"


def _card(pick: random.Random) -> str:
    digits = "400000" + _digits(pick, 9)
    total = sum(sum(divmod(int(d) * (2 if n % 2 == 0 else 1), 10)) for n, d in enumerate(digits))
    return digits + str(-total % 10)


def _ip(pick: random.Random, value: str) -> str:
    return f"2001:db8::{pick.randrange(1, 65536):x}" if ":" in value else f"192.0.2.{pick.randrange(1, 255)}"


def _person(pick: random.Random, value: str) -> str:
    family = pick.choice(_FAMILY)
    return f"{pick.choice(_GIVEN)} {family}" if " " in value.strip() else family


def _address(pick: random.Random) -> str:
    return f"{pick.choice(_STREETS)} {pick.randrange(1, 99)}, 12345 Musterstadt"


def _date(pick: random.Random, value: str) -> str:
    """A day of another year, in the same form where it is all digits."""
    year, month, day = pick.randrange(1950, 2005), pick.randrange(1, 13), pick.randrange(1, 29)
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        return f"{year}-{month:02d}-{day:02d}"
    sign = next((s for s in "./-" if s in value), ".")
    return f"{day:02d}{sign}{month:02d}{sign}{year}"


_MAKERS: dict[str, _Maker] = {
    "EMAIL": lambda pick, value: _email(pick),
    "PHONE": _phone,
    "IBAN": lambda pick, value: _iban(pick),
    "CARD": lambda pick, value: _card(pick),
    "IP": _ip,
    "MAC": lambda pick, value: f"00:00:5E:00:53:{pick.randrange(256):02X}",
    "URL": lambda pick, value: f"https://example.org/{_digits(pick, 6)}",
    "BIRTH_DATE": _date,
    "ADDRESS": lambda pick, value: _address(pick),
    "PERSON": _person,
}

_TOWNS = (("30", "23125"), ("40", "66969"), ("69", "90009"), ("89", "99998"), ("221", "4710"))


def _wider_phone(pick: random.Random, value: str) -> str:
    town, number = pick.choice(_TOWNS)
    prefix = "+49 " if value.startswith(("+", "00")) else "0"
    return f"{prefix}{town} {number} {_digits(pick, 3)}"


def _wider_ip(pick: random.Random, value: str) -> str:
    if ":" in value:
        return f"2001:db8::{pick.randrange(1, 65536):x}:{pick.randrange(65536):x}"
    return f"{pick.choice(('192.0.2', '198.51.100', '203.0.113'))}.{pick.randrange(1, 255)}"


def _wider_person(pick: random.Random, value: str) -> str:
    family = "-".join(pick.sample(_FAMILY, 2))
    return f"{pick.choice(_GIVEN)} {family}" if " " in value.strip() else family


_WIDER: dict[str, _Maker] = {
    "EMAIL": lambda pick, value: _email(pick).replace("@", f"{_digits(pick, 4)}@"),
    "PHONE": _wider_phone,
    "IP": _wider_ip,
    "PERSON": _wider_person,
    "ADDRESS": lambda pick, value: _address(pick).replace(",", f"{pick.choice('abcdefgh')},"),
    "URL": lambda pick, value: f"https://example.org/{_digits(pick, 12)}",
}
