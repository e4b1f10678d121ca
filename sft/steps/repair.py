"""The step `repair`: encodings, HTML, white space, and what mail programs add.

Every repair is applied until it changes nothing, so that repairing twice is repairing once. Code, in fences or
backticks, keeps its markup and its spaces.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence

from sft.configuration import PrepareConfig
from sft.normalising import normalise
from sft.steps.step import Drop, Ledger, Row, RowStep, require_package

MOST_ROUNDS = 8
"""Text that nests further (`&amp;amp;amp;…`) keeps the rest."""

_CODE = re.compile(r"(```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`)", re.DOTALL)
_BLOCKS = (
    "address article blockquote div dl dd dt footer h1 h2 h3 h4 h5 h6 header hr main ol p pre section table tr ul"
).split()
_INLINE = (
    "a abbr b body center em font head html i img li meta o:p s small span strong style sub sup td th tbody thead title u"
).split()
_ATTRIBUTES = r"""(?:\s+[\w:-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'>]+))*\s*/?"""
_HIDDEN = re.compile(rf"<(script|style|head)\b{_ATTRIBUTES}>.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_COMMENT = re.compile(r"<!--.*?-->|<!doctype[^>]*>", re.DOTALL | re.IGNORECASE)
_BREAK = re.compile(rf"<br{_ATTRIBUTES}>\n?", re.IGNORECASE)
_ITEM = re.compile(rf"\s*<li{_ATTRIBUTES}>\s*", re.IGNORECASE)
_BLOCK = re.compile(rf"(?:\s*</?(?:{'|'.join(_BLOCKS)}){_ATTRIBUTES}>\s*)+", re.IGNORECASE)
_TAG = re.compile(rf"</?(?:{'|'.join(_INLINE)}){_ATTRIBUTES}>", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")

_SPACES = re.compile(r"(?<=\S)[ \u00a0]{2,}(?=\S)")
_SENDERS = (
    r"-- ",  # RFC 3676, 4.3
    r"Sent from my \w.*",
    r"Sent from (?:Mail|Outlook|Yahoo Mail) (?:for|on) \w.*",
    r"Von meinem \w+ gesendet.*",
    r"Gesendet mit (?:der )?\w.*",
    r"Gesendet von (?:meine[mr] \w|(?:Mail|Outlook|Yahoo Mail) (?:für|auf) \w).*",
    r"Get Outlook for \w+.*",
    r"On .{4,80} wrote:",
    r"Am .{4,80} schrieb.{0,80}:",
    r"-{2,} ?(?:Original Message|Ursprüngliche Nachricht|Forwarded message|Weitergeleitete Nachricht) ?-{2,}",
    r"(?:This|The information (?:contained )?in this) (?:e-?mail|message).{0,80}\b(?:confidential|privileged)\b.*",
    r"Diese (?:E-?Mail|Nachricht) (?:enthält|ist).{0,80}\bvertraulich.*",
)
_CUT = re.compile(rf"^(?:{'|'.join(_SENDERS)})$", re.IGNORECASE)
_WRAPPED = re.compile(r"^(?:On .{4,160} wrote:|Am .{4,160} schrieb.{0,160}:)$", re.IGNORECASE)
"""A line before a quoted mail that a mail program broke in two; one half has the address."""
_HEADERS = (
    re.compile(r"^\W*(?:Von|From):\W*\w", re.IGNORECASE),
    re.compile(r"^\W*(?:Gesendet|Datum|Sent|Date):\W*\w", re.IGNORECASE),
    re.compile(r"^\W*(?:An|To|Betreff|Subject):\W*\w", re.IGNORECASE),
)
"""The lines with which Outlook begins a quoted mail."""
MOST_HEADERS = 5
_RULE = re.compile(r"^\s*_{5,}\s*$")
_CLOSING = re.compile(
    r"^(?:(?:many )?thanks,? and )?(?:(?:kind|best|warm)(?:est)? regards|regards|yours (?:sincerely|faithfully|truly)|"
    r"sincerely|best wishes|cheers)[,.!]?$|"
    r"^(?:(?:vielen |besten |lieben |herzlichen )?danke? (?:im voraus )?und )?"
    r"(?:(?:(?:mit )?(?:freundliche|beste|viele|liebe|herzliche|schöne|sonnige)[nmr]? )?gr(?:ü|ue|u)(?:ß|ss)e?n?|mfg|vg|lg)"
    r"(?: (?:aus|vom|von der) [\w. -]{2,40})?[,.!]?$",
    re.IGNORECASE,
)
MOST_AFTER_CLOSING = 8
"""Lines below “Kind regards” that are still a signature: name, firm, telephone, address, site."""


class Repair(RowStep):
    """The step."""

    def __init__(self, config: PrepareConfig) -> None:
        super().__init__(config)
        settings = config.repair
        self.repairs: list[tuple[str, Callable[[str], str], Sequence[str]]] = []
        everyone = ("system", "user", "assistant", "tool")
        if settings.encoding:
            require_package("ftfy", "repair")
            self.repairs.append(("encoding", lambda text: normalise(fix_encoding(text)), everyone))
        if settings.markup:
            self.repairs.append(("markup", without_markup, everyone))
        if settings.signatures:
            self.repairs.append(("signature", without_signature, ("user",)))
        if settings.whitespace:
            self.repairs.append(("white space", fix_whitespace, everyone))

    def look(self, row: Row, ledger: Ledger) -> Row | Drop:
        reasons: dict[str, None] = {}
        now = row
        for _ in range(MOST_ROUNDS):
            before = now.record
            for reason, repair, roles in self.repairs:
                after = now.map_text(repair, roles)
                if after.record != now.record:
                    reasons[reason] = None
                now = after
            if now.record == before:
                break
        if reasons:
            ledger.change(row, now, list(reasons))
        return now


def repair_text(text: str) -> str:
    """All repairs of one text of a user, until they change nothing."""
    for _ in range(MOST_ROUNDS):
        before = text
        text = normalise(fix_whitespace(without_signature(without_markup(fix_encoding(text)))))
        if text == before:
            break
    return text


def fix_encoding(text: str) -> str:
    """Text that was decoded by the wrong encoding, decoded rightly. Quotation marks and ligatures stay as they are."""
    import ftfy

    return ftfy.fix_text(
        text, unescape_html=False, uncurl_quotes=False, fix_latin_ligatures=False, fix_character_width=False
    )


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """The text with `change` applied between its pieces of code."""
    return "".join(part if number % 2 else change(part) for number, part in enumerate(_CODE.split(text)))


def without_markup(text: str) -> str:
    """HTML as plain text: blocks on lines of their own, items with a dash, entities as characters. Code stays.

    A tag is one of HTML's, whose attributes have values: `a <b and c> d` is not a tag.
    """
    return outside_code(text, _plain)


def _plain(text: str) -> str:
    if "<" in text:
        text = _COMMENT.sub("", _HIDDEN.sub("", text))
        text = _ITEM.sub("\n- ", _BREAK.sub("\n", text))
        text = _TAG.sub("", _BLOCK.sub("\n", text).replace("</li>", ""))
    return _ENTITY.sub(lambda found: html.unescape(found.group()), text) if "&" in text else text


def fix_whitespace(text: str) -> str:
    """At most one blank line, and one space between words. Code, tables and indentation stay."""

    def change(part: str) -> str:
        lines = (line if "|" in line or "\t" in line else _SPACES.sub(" ", line) for line in part.split("\n"))
        return re.sub(r"\n(?:[ \t]*\n){2,}", "\n\n", "\n".join(lines))

    return outside_code(text, change)


def without_signature(text: str) -> str:
    """A mail without its signature, the mail that it quotes at its end, and its disclaimer; never an empty text."""
    lines = text.split("\n")
    kept = lines[: next((n for n in range(1, len(lines)) if _is_cut(lines, n)), len(lines))]
    while kept and (
        not kept[-1].strip() or kept[-1].startswith(">") or (len(kept) < len(lines) and _RULE.match(kept[-1]))
    ):
        kept.pop()
    for n in range(len(kept) - 1, max(0, len(kept) - 2 - MOST_AFTER_CLOSING), -1):
        if _CLOSING.match(kept[n].strip()):
            kept = kept[:n]
            break
    shortened = "\n".join(kept).rstrip()
    return shortened if shortened.strip() else text


def _is_cut(lines: Sequence[str], at: int) -> bool:
    """Whether what a mail program added begins at this line."""
    line = lines[at]
    if _CUT.match(line if line == "-- " else line.strip()):
        return True
    if at + 1 < len(lines) and "@" in (both := f"{line.strip()} {lines[at + 1].strip()}") and _WRAPPED.match(both):
        return True
    sender, *others = _HEADERS
    following = lines[at + 1 : at + 1 + MOST_HEADERS]
    return bool(sender.match(line)) and all(any(other.match(one) for one in following) for other in others)
