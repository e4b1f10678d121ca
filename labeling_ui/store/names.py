"""Names of accounts that people tell apart: no two look alike.

A lead who sees `lead` and `LEAD`, or `anna` with a Cyrillic а, would take one for the other. After Unicode's UTS 39, a
name has a skeleton, and two names with the same one are confusable. The table has the letters of Cyrillic and Greek that
look like Latin ones, from its `confusables.txt`.
"""

from __future__ import annotations

import unicodedata

_LOOK_ALIKE = str.maketrans(
    "авекмнорстухіјѕԁһӏԛԝьгп" + "αβεηικμνορτυχγωϲ" + "01ı",
    "abekmhopctyxijsdhlqwbrn" + "abenikuvoptuxywc" + "oli",
)
_ALPHABETS = ("LATIN", "CYRILLIC", "GREEK")


def composed(name: str) -> str:
    """The name in one form, however it was typed.

    >>> composed("Zoe\u0301") == "Zo\u00e9"
    True
    """
    return unicodedata.normalize("NFC", name)


def pool_name(name: str) -> str:
    """A pool's name in one form: raters get the pairs of a pool only if both have the same name.

    >>> pool_name(" Ete\u0301 ") == "Et\u00e9"
    True
    """
    return composed(name).strip()


def skeleton(name: str) -> str:
    """The same for names that look alike.

    >>> skeleton("LEAD") == skeleton("l\u0435ad") == skeleton("ｌｅａｄ") == skeleton("1ead")
    True
    >>> skeleton("Zo\u00e9") == skeleton("ZOE\u0301"), skeleton("Zoe") == skeleton("Zo\u00e9")
    (True, False)
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return " ".join(folded.translate(_LOOK_ALIKE).split())


def mixes_scripts(name: str) -> bool:
    """Whether letters of several alphabets that look alike are in one name.

    >>> mixes_scripts("l\u0435ad"), mixes_scripts("\u0410\u043d\u043d\u0430"), mixes_scripts("rater \u7532")
    (True, False, False)
    """
    used = {unicodedata.name(letter, "").split(" ", 1)[0] for letter in name if letter.isalpha()}
    return len(used & set(_ALPHABETS)) > 1
