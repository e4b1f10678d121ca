"""Examples on the data report: a few rows of each step and reason, with their differences word by word."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from tiebreak.page.markup import Markup, el, join
from tiebreak.page.numbers import number

Lines = Iterable[Mapping[str, str]]
EXAMPLES = 4
"""of each step, of different kinds"""
LONGEST = 600
"""Characters of an example that are shown."""
_TAG = re.compile(r"(<[A-Z][A-Z0-9_]*>)", re.IGNORECASE)


def examples(lines: Lines) -> Markup | None:
    """A few rows of each step and reason."""
    counts: Counter[str] = Counter()
    distinct: dict[str, dict[str, Mapping[str, str]]] = {}
    for line in lines:
        kind = _kind(line["reason"])
        step = line.get("step") or kind
        counts[step] += 1
        shown = distinct.setdefault(step, {})
        if kind not in shown and len(shown) < EXAMPLES:
            shown[kind] = line
    parts = []
    for step, of_step in distinct.items():
        parts.append(el("h3", f"{step} ", el("small", f"{number(len(of_step))} of {number(counts[step])}")))
        parts += [_example(line) for line in of_step.values()]
    return join(parts) if parts else None


def _kind(reason: str) -> str:
    """The reason without what is special to the row."""
    return re.sub(r"(?:(?<= of)|(?<= as)|(?<= with)|(?<=, against)) .*|\b\d+ ", "", reason)


def _example(line: Mapping[str, str]) -> Markup:
    if "before" in line and "after" in line:
        body = difference(shortened(line["before"]), shortened(line["after"]))
    elif "after" in line:
        body = with_tags(shortened(line["after"]))
    else:
        body = join(shortened(line.get("text", "")))
    return el("figure", el("figcaption", f"{line['where']} · {line['reason']}"), el("p", body, cls="example"))


def shortened(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def with_tags(text: str) -> Markup:
    """A text in which tags took the place of values that no file shows."""
    return join([el("ins", piece) if _TAG.fullmatch(piece) else piece for piece in _TAG.split(text)])


def difference(before: str, after: str) -> Markup:
    """A text with what was removed and what was inserted, word by word."""
    old, new = (re.findall(r"\s+|\w+|[^\w\s]", one) for one in (before, after))
    pieces: list[object] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        removed, inserted = "".join(old[a:b]), "".join(new[c:d])
        if kind == "equal":
            pieces.append(inserted)
        else:
            pieces += [el("del", removed) if removed else None, el("ins", inserted) if inserted else None]
    return join(pieces)
