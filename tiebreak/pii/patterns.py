"""Our own patterns of personal data, and the user's. Each has a kind, a score, and words that make it sure.

Presidio's recognisers of e-mail addresses and URLs are not used: through `tldextract` they ask the network for the list
of public suffixes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tiebreak.pii.finding import Finding, with_context


@dataclass(frozen=True)
class Pattern:
    """The form of one kind of personal data. A group named `value` is the part to hide; without one, the whole
    match."""

    kind: str
    regex: re.Pattern[str]
    score: float
    context: tuple[str, ...] = ()
    signs: tuple[str, ...] = ()
    """a text without any of these, in lower case, has no match; none: any text may"""
    needs_digit: bool = False
    """a text without a digit has no match"""

    def find(self, text: str, lowered: str = "", has_digit: bool = True) -> Iterator[Finding]:
        """Its findings in a text.

        Args:
            lowered: the text in lower case, if signs are to be looked for first.
            has_digit: whether the text has one.
        """
        if (self.needs_digit and not has_digit) or (lowered and self.signs and not _has_any(lowered, self.signs)):
            return
        group = "value" if "value" in self.regex.groupindex else 0
        for found in self.regex.finditer(text):
            start, end = found.span(group)
            if start < end:
                yield with_context(text, Finding(start, end, self.kind, self.score), self.context)


def _has_any(lowered: str, signs: Iterable[str]) -> bool:
    return any(sign in lowered for sign in signs)


_I = re.IGNORECASE
_MONTHS = (
    r"(?:jan(?:uary|uar)?|feb(?:ruary|ruar)?|mar(?:ch)?|märz|mrz|apr(?:il)?|may|mai|jun[ei]?|jul[yi]?|aug(?:ust)?|"
    r"sep(?:t(?:ember)?)?|o[ck]t(?:ober)?|nov(?:ember)?|de[cz](?:ember)?)"
)
_DATE = (
    rf"(?:\d{{1,2}}[./-]\d{{1,2}}[./-]\d{{2,4}}|\d{{4}}-\d{{2}}-\d{{2}}|\d{{1,2}}(?:st|nd|rd|th|\.)?\s+(?:of\s+)?{_MONTHS}\.?,?\s+\d{{4}}|"
    rf"{_MONTHS}\.?\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+\d{{4}}|"
    rf"[a-zäöüß-]{{2,22}}(?:st|nd|rd|th|ten)\s+(?:of\s+)?{_MONTHS},?\s+\d{{4}})"
)
_GAP = r"[\s:=,]*(?:(?:is|am|on|the|ist|war|den|der|date)[\s:=]+){0,3}"

EMAIL = Pattern(
    "EMAIL",
    re.compile(
        r"(?<![\w.+%-])[\w.+%'-]{1,64}\s?(?:@|\(at\)|\[at\]|\{at\})\s?"
        r"(?:[^\W_](?:(?:[^\W_]|-){0,61}[^\W_])?(?:\.|\s?[\[({](?:dot|punkt)[\])}]\s?))+"
        r"(?:xn--[a-z0-9]{2,59}|[^\W\d_]{2,24})(?![\w@])",
        _I,
    ),
    0.9,
    signs=("@", "(at)", "[at]", "{at}"),
)
_SECRET_WORDS = (
    r"(?:pass(?:word|wort|phrase|code)|passwd|pwd|\bpw|kennwort|secret|api[_ -]?key|access[_ -]?(?:token|key)|"
    r"auth[_ -]?token|private[_ -]?key|account[_ -]?key|client[_ -]?secret|\bPIN|\bPUK|\bTAN)"
)
PATTERNS: tuple[Pattern, ...] = (
    EMAIL,
    Pattern(
        "EMAIL",
        re.compile(
            r"(?<![\w.+%-])[\w.+%'-]{2,64}\s(?:at|ät)\s(?:[a-z0-9-]{2,63}\s(?:dot|punkt)\s)+"
            r"(?:com|org|net|info|edu|gov|io|eu|de|at|ch|uk|ie|us|fr|nl)\b",
            _I,
        ),
        0.8,
        signs=(" dot ", " punkt "),
    ),
    Pattern(
        "URL",
        re.compile(
            r"\b(?:https?|ftp)://[^\s<>\"']*?(?:[?&#;][^\s<>\"'=&]*(?:token|key|auth|session|sid|secret|password|pwd|sig|"
            r"signature|code|invite|reset|jwt)[^\s<>\"'=&]*=[^\s<>\"']+|//[^\s/@:]+:[^\s/@]+@[^\s<>\"']+)",
            _I,
        ),
        0.9,
        signs=("://",),
    ),
    Pattern(
        "URL",
        re.compile(r"\b(?:https?|ftp|postgres(?:ql)?|mysql|mongodb|redis|amqp)://[^\s/@:]+:[^\s/@]+@[^\s<>\"']+", _I),
        0.95,
        signs=("://",),
    ),
    Pattern(
        "URL",
        re.compile(r"\bhttps?://[^\s<>\"']*?/(?=[\w-]*\d)(?=[\w-]*[a-z])[\w-]{20,}[^\s<>\"']*", _I),
        0.4,
        ("link", "reset", "invite", "login", "einladung"),
        signs=("://",),
        needs_digit=True,
    ),
    Pattern(
        "SECRET",
        re.compile(
            r"\b(?:sk-(?:proj-|ant-)?[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|"
            r"xox[abprs]-[\w-]{10,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|hf_[A-Za-z0-9]{20,}|"
            r"(?:sk|pk|rk)_(?:live|test)_[A-Za-z0-9]{10,}|npm_[A-Za-z0-9]{30,}|SG\.[\w-]{16,}\.[\w-]{16,}|"
            r"eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{5,})"
        ),
        0.95,
        signs=(
            "sk-",
            "sk_",
            "pk_",
            "rk_",
            "ghp_",
            "gho_",
            "ghu_",
            "ghs_",
            "ghr_",
            "github_pat_",
            "glpat-",
            "xox",
            "akia",
            "asia",
            "aiza",
            "hf_",
            "npm_",
            "sg.",
            "eyj",
        ),
    ),
    Pattern(
        "SECRET",
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
        0.99,
        signs=("-----begin",),
    ),
    Pattern(
        "SECRET",
        re.compile(
            _SECRET_WORDS
            + r"(?:[_-]\w{1,24})?[\"']?\s*(?:(?:\bis\b|\bist\b|\blautet\b)\s*[:=]?|[:=]{1,2}>?)\s*[\"'“„`]?"
            r"(?!(?:not|nicht|wrong|falsch|required|invalid|the|a|an|my|to|too|being|expired|abgelaufen|korrekt|correct|reset)\b)"
            r"(?P<value>[^\s\"'“”„`,;<>]{3,})",
            _I,
        ),
        0.8,
        signs=(
            "passw",
            "passphrase",
            "passcode",
            "pwd",
            "pw",
            "kennwort",
            "secret",
            "key",
            "token",
            "pin",
            "puk",
            "tan",
        ),
    ),
    Pattern("SECRET", re.compile(r"\bBearer\s+(?P<value>[\w.~+/-]{16,}=*)"), 0.9, signs=("bearer",)),
    Pattern(
        "SECRET",
        re.compile(
            r"\bauthorization[\"']?\s*[:=]\s*[\"']?(?:basic|digest|token|apikey)\s+(?P<value>[^\s\"',;<>]{8,})", _I
        ),
        0.9,
        signs=("authorization",),
    ),
    Pattern(
        "PHONE",
        re.compile(r"(?<![\w+/])\+[1-9]\d{0,2}(?:[\s./()-]{0,3}\d){7,12}(?![\w-])"),
        0.6,
        signs=("+",),
        needs_digit=True,
    ),
    Pattern("PHONE", re.compile(r"(?<![\w.,/+-])01[5-7]\d{8,9}(?![\w-])"), 0.6, needs_digit=True),
    Pattern(
        "PLATE",
        re.compile(
            r"(?:kennzeichen|nummernschild|number plate|licen[cs]e plate)[\s:]*(?:ist|is|lautet)?[\s:]*"
            r"(?P<value>[a-z]{2}\d{2}\s?[a-z]{3}|[a-zäöü]{1,3}[- ]?[a-z]{1,2}[- ]?\d{1,4}[eh]?)\b",
            _I,
        ),
        0.8,
        signs=("kennzeichen", "nummernschild", " plate"),
        needs_digit=True,
    ),
    Pattern(
        "ADDRESS",
        re.compile(
            r"\b[a-zäöüß-]{2,30}(?:stra(?:ß|ss)e|str\.)\s?\d{1,4}\s?[a-h]?(?![\w%°])(?:\s*,?\s*(?:D-)?\d{5}\s+[a-zäöüß]+)?",
            _I,
        ),
        0.6,
        signs=("straße", "strasse", "str."),
        needs_digit=True,
    ),
    Pattern(
        "ADDRESS",
        re.compile(
            r"\b(?:Postfach|P\.?\s?O\.?\s?Box)\s\d[\d ]{0,10}(?<=\d)(?:,?\s+(?:D-)?\d{5}\s+[A-ZÄÖÜ][\wäöüß]+|"
            r",\s[A-Z][a-z]+(?:\s[A-Z][a-z]+)?,?\s[A-Z]{2}\s\d{5}(?:-\d{4})?)?"
        ),
        0.7,
        needs_digit=True,
    ),
    Pattern(
        "URL",
        re.compile(
            r"\bhttps?://[^\s<>\"']*?/(?:reset|invite|verify|confirm|login|magic|activate|unsubscribe|einladung)[^\s<>\"'/]*/"
            r"(?=[\w-]*\d)[\w-]{12,}[^\s<>\"']*",
            _I,
        ),
        0.8,
        signs=("://",),
        needs_digit=True,
    ),
    Pattern(
        "BIRTH_DATE",
        re.compile(
            rf"(?:\bborn\b|date of birth|birth\s?da(?:y|te)|\bd\.?o\.?b\b\.?|geb(?:oren|\.)|geburts(?:datum|tag)){_GAP}"
            rf"(?P<value>{_DATE})",
            _I,
        ),
        0.9,
        signs=("born", "birth", "d.o", "dob", "do.b", "geb"),
        needs_digit=True,
    ),
    Pattern(
        "BIRTH_DATE", re.compile(r"(?:\*)\s?(?P<value>\d{1,2}\.\d{1,2}\.\d{4})"), 0.6, signs=("*",), needs_digit=True
    ),
    Pattern(
        "BIRTH_DATE",
        re.compile(rf"\b{_DATE}\b", _I),
        0.2,
        ("born", "birthday", "date of birth", "dob", "geboren", "geburtsdatum", "geburtstag", "geb."),
        needs_digit=True,
    ),
    Pattern(
        "ADDRESS",
        re.compile(
            r"\b(?:(?:[A-ZÄÖÜ][a-zäöüß]*(?:[ -][A-ZÄÖÜ][a-zäöüß]*){0,3}[ -]?)?"
            r"(?:[Ss]tra(?:ß|ss)e|[Ss]tr\.|[Ww]eg|[Aa]llee|[Pp]latz|[Gg]asse|[Rr]ing|[Uu]fer|[Dd]amm|[Cc]haussee|[Ss]teig|[Hh]of))\s\d{1,4}\s?[a-hA-H]?(?![\w%°])"
            r"(?:\s*,?\s*(?:D-)?\d{5}\s+[A-ZÄÖÜ][\wäöüß]+(?:[ -](?:am|an|der|im|[A-ZÄÖÜ][\wäöüß]+|\([\w ]+\))){0,3})?"
        ),
        0.7,
        needs_digit=True,
    ),
    Pattern(
        "ADDRESS",
        re.compile(
            r"\b(?:Am|Im|An de[rnm]|Auf de[rnm]|In de[rnm]|Zum|Zur)\s[A-ZÄÖÜ][a-zäöüß]+\s\d{1,4}\s?[a-hA-H]?,?\s+"
            r"\d{5}\s+[A-ZÄÖÜ][\wäöüß]+"
        ),
        0.7,
        needs_digit=True,
    ),
    Pattern(
        "ADDRESS",
        re.compile(
            r"\b\d{1,5}[a-cA-C]?,?\s(?:[A-Z][\w'.]*\s){1,3}(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Court|Ct|Boulevard|Blvd|"
            r"Way|Close|Crescent|Terrace|Square|Place|Pl|Gardens|Grove|Parkway|Pkwy|Highway|Hwy|Mews|Row)\b\.?"
            r"(?:,?\s(?:Apt|Apartment|Flat|Unit|Suite|#)\.?\s?\w{1,5})?"
            r"(?:,?\s[A-Z][a-z]+(?:\s[A-Z][a-z]+)?,?\s(?:[A-Z]{2}\s\d{5}(?:-\d{4})?|[A-Z]{1,2}\d[A-Z\d]?\s?\d[A-Z]{2}))?"
        ),
        0.7,
        needs_digit=True,
    ),
    Pattern(
        "ADDRESS",
        re.compile(r"\b(?:D-?)?\d{5}\s+[A-ZÄÖÜ][a-zäöüß]+(?:[ -](?:am|an|der|im|[A-ZÄÖÜ][a-zäöüß]+)){0,3}\b"),
        0.35,
        (
            "plz",
            "postleitzahl",
            "adresse",
            "wohne",
            "wohnhaft",
            "wohnt",
            "anschrift",
            "lieferadresse",
            "straße",
            "str.",
        ),
        needs_digit=True,
    ),
    Pattern(
        "ADDRESS",
        re.compile(r"\b[A-Z]{1,2}\d[A-Z\d]?\s\d[ABD-HJLNP-UW-Z]{2}\b"),
        0.5,
        ("postcode", "post code", "address", "live", "delivery"),
        needs_digit=True,
    ),
    Pattern(
        "PLATE",
        re.compile(r"(?<![\w-])[A-ZÄÖÜ]{1,3}[- ]\s?[A-Z]{1,2}[- ]?\s?\d{1,4}[EH]?(?![\w-])"),
        0.3,
        (
            "kennzeichen",
            "kfz",
            "nummernschild",
            "zugelassen",
            "mein auto",
            "wagen",
            "license plate",
            "licence plate",
            "number plate",
            "plate",
            "registration",
        ),
        needs_digit=True,
    ),
    Pattern(
        "PLATE",
        re.compile(r"(?<![\w-])[A-Z]{2}\d{2}\s?[A-Z]{3}(?![\w-])"),
        0.3,
        ("license plate", "licence plate", "number plate", "plate", "reg", "registration", "my car", "my van"),
        needs_digit=True,
    ),
    Pattern(
        "NATIONAL_ID",
        re.compile(
            r"\b(?:passport|reisepass|personalausweis|ausweis|id[- ]card|national id|identity card|driving licen[cs]e|"
            r"führerschein)(?:\s?(?:no\.?|number|nummer|nr\.?|-nr\.?|-nummer))?[\s:#=]*(?:is|ist|lautet)?[\s:]*"
            r"(?P<value>(?=[A-Z0-9]*\d)[A-Z0-9]{7,16})(?!\w)",
            _I,
        ),
        0.8,
        signs=("passport", "reisepass", "ausweis", "card", "national id", "licen", "führerschein"),
        needs_digit=True,
    ),
)


def find_patterns(text: str, patterns: Iterable[Pattern]) -> list[Finding]:
    """The findings of all patterns."""
    lowered, has_digit = text.lower(), _DIGIT.search(text) is not None
    return [found for pattern in patterns for found in pattern.find(text, lowered, has_digit)]


_DIGIT = re.compile(r"\d")


def users_patterns(patterns: Mapping[str, str], words: Sequence[str]) -> list[Pattern]:
    """The user's patterns by kind, and the words of the user's list (kind WORD).

    Raises:
        re.error: an expression is not valid; the caller checked them.
    """
    found = [Pattern(kind, re.compile(expression), 1.0) for kind, expression in patterns.items()]
    if words:
        either = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
        found.append(Pattern("WORD", re.compile(rf"(?<!\w)(?:{either})(?!\w)", _I), 1.0))
    return found
