"""An explanation in the terminal and as a page: words or tokens coloured by their effect, and training pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tiebreak.explain.words import Part
from tiebreak.page.document import build_document
from tiebreak.page.markup import Markup, el, join
from tiebreak.page.tables import cell, figure, heading, note, table
from tiebreak.terminal import paint, plain
from tiebreak.terminal import table as aligned

STEPS = 4
"""shades of a colour"""
LISTED = 8
"""parts listed in the terminal"""
STYLE = """
.parts { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 1.05rem; line-height: 2; }
.parts span { border-radius: 3px; padding: 2px 0; }
.up { --shade: var(--ppo); } .down { --shade: var(--dpo); }
.shade-1 { background: color-mix(in srgb, var(--shade) 14%, transparent); }
.shade-2 { background: color-mix(in srgb, var(--shade) 28%, transparent); }
.shade-3 { background: color-mix(in srgb, var(--shade) 44%, transparent); }
.shade-4 { background: color-mix(in srgb, var(--shade) 62%, transparent); }
.down { text-decoration: underline dotted; text-underline-offset: 4px; }
@media print { .parts span { print-color-adjust: exact; } }
"""


@dataclass(frozen=True)
class Influence:
    """A training pair and how it moved the result."""

    influence: float
    row: int
    """among the training pairs, from 1"""
    pair_id: str
    raters: tuple[str, ...] | None
    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Explanation:
    """A result, its parts, and the training pairs behind it."""

    run: str
    prompt: str
    measure: str
    """score, or log-ratio"""
    value: float
    unit: str
    parts: tuple[Part, ...]
    meaning: str
    against: str = ""
    """the policy that a log-ratio is to"""
    pairs: tuple[Influence, ...] = ()

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @property
    def largest(self) -> float:
        return max((abs(part.effect) for part in self.parts if part.effect is not None), default=0.0)

    def shade(self, effect: float | None) -> int:
        """0: none, to STEPS: of the largest effect."""
        if effect is None or not self.largest:
            return 0
        return round(STEPS * abs(effect) / self.largest)


# --- in the terminal ---


def lines_of(explanation: Explanation, colours: bool) -> list[str]:
    """The result, the coloured answer, its strongest parts, and the training pairs."""
    shown = "".join(_painted(explanation, part, colours) for part in explanation.parts)
    ranked = [part for part in explanation.parts if part.effect is not None]
    ranked = sorted(ranked, key=lambda part: -abs(part.effect or 0.0))[:LISTED]
    rows = [(part.text.strip() or repr(part.text), f"{part.effect:+.3f}") for part in ranked]
    lines = [
        f"{explanation.measure} {explanation.value:+.3f}{_against(explanation)}",
        "",
        shown,
        "",
        *aligned(rows, left=(0,), colours=colours),
        "",
        explanation.meaning,
    ]
    return [*lines, *_pair_lines(explanation.pairs, colours)]


def _against(explanation: Explanation) -> str:
    return f" against {explanation.against}" if explanation.against else ""


def _painted(explanation: Explanation, part: Part, colours: bool) -> str:
    text = plain(part.text)
    if not colours or not explanation.shade(part.effect):
        return text
    return paint(text, "green" if (part.effect or 0.0) > 0 else "red")


def _pair_lines(pairs: Sequence[Influence], colours: bool) -> Iterator[str]:
    if pairs:
        yield from ("", "Training pairs that raised it (+) or lowered it (−):")
        rows = [
            (f"{one.influence:+.2e}", one.pair_id or f"row {one.row}", _short(one.chosen), _short(one.rejected))
            for one in pairs
        ]
        yield from aligned([("influence", "pair", "chosen", "rejected"), *rows], left=(1, 2, 3), colours=colours)


def _short(text: str, most: int = 40) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


# --- as a page ---


def build_page(explanation: Explanation) -> str:
    """One self-contained page."""
    title = f"Why this {explanation.measure}?"
    unit = "" if explanation.unit == explanation.measure else f" {explanation.unit}"
    head = join(
        el("p", "Tiebreak: explanation", cls="eyebrow"),
        el("h1", title),
        el("p", f"{explanation.measure} {explanation.value:+.3f}{unit}, by {explanation.run}", cls="lead"),
    )
    spans = [
        el(
            "span",
            part.text,
            cls=f"{'up' if (part.effect or 0) > 0 else 'down'} shade-{shade}" if shade else "",
            title=None if part.effect is None else f"{part.effect:+.4f}",
        )
        for part in explanation.parts
        for shade in [explanation.shade(part.effect)]
    ]
    answer = join(
        el("p", spans, cls="parts"),
        note(explanation.meaning),
        note(
            f"Green raises it; orange, with a dotted line below, lowers it. The strongest: {explanation.largest:.3f}."
        ),
        _parts_table(explanation),
    )
    sections = [
        ("prompt", "Prompt", el("p", explanation.prompt, cls="parts")),
        ("answer", "Answer", answer),
        ("pairs", "Training pairs", _pairs_table(explanation.pairs)),
    ]
    return build_document(title, head, sections, explanation.document(), style=STYLE)


def _signed(value: float) -> str:
    return f"{value:+.4f}"


def _parts_table(explanation: Explanation) -> Markup:
    ranked = [part for part in explanation.parts if part.effect is not None]
    rows = [
        el("tr", el("th", part.text.strip() or repr(part.text), scope="row"), figure("Effect", part.effect, _signed))
        for part in sorted(ranked, key=lambda part: -abs(part.effect or 0.0))
    ]
    listing = table([heading("Part"), heading("Effect", explanation.unit, numeric=True)], rows)
    return el("details", el("summary", "All parts, strongest first"), listing)


def _pairs_table(pairs: Sequence[Influence]) -> Markup | None:
    if not pairs:
        return None
    rows = [
        el(
            "tr",
            cell("Influence", f"{one.influence:+.2e}", cls="n"),
            cell("Pair", el("code", one.pair_id or f"row {one.row}")),
            cell("Raters", ", ".join(one.raters or ()) or "–"),
            cell("Prompt", one.prompt),
            cell("Chosen", one.chosen),
            cell("Rejected", one.rejected),
        )
        for one in pairs
    ]
    headings = [heading("Influence", numeric=True), *map(heading, ("Pair", "Raters", "Prompt", "Chosen", "Rejected"))]
    text = (
        "The judgments that raised (+) or lowered (−) the result most, by gradients at the last checkpoint (TracIn, Pruthi "
        "et al. 2020). An estimate: it ranks pairs. To be sure of one, leave it out and train again."
    )
    return join(note(text), el("div", table(headings, rows), cls="scroll"))
