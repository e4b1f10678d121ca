"""How much personal data the step `anonymise` finds, by kind, with intervals.

    python benchmarks/personal_data.py           # the table, in half a minute
    python benchmarks/personal_data.py --docs    # also into docs/data.md

It counts over the sentences of tests/sft/sentences.py, German and English: a value is found if one sure finding of its kind
covers it; a sure finding that touches no value is false. Intervals are Wilson's, 95%, as if the sentences were independent.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiebreak.measures.statistics import wilson_interval
from tiebreak.pii.detector import Detector

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "data.md"
BEGIN, END = "<!-- personal data: begin -->", "<!-- personal data: end -->"
SLACK = 2
"""characters that a finding may be longer than the value: a closing bracket, a full stop"""


@dataclass
class Counts:
    """Values found and missed, and false findings, by kind."""

    found: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    false: Counter[str] = field(default_factory=Counter)

    def f1(self) -> dict[str, float]:
        """The harmonic mean of recall and precision of each kind."""
        kinds = self.found | self.missed
        return {
            kind: 2 * self.found[kind] / (2 * self.found[kind] + self.missed[kind] + self.false[kind]) for kind in kinds
        }


def count(detector: Detector, sentences: Iterable[Any]) -> Counts:
    """What a detector finds in sentences, each with its `text` and its `spans`: (start, end) → kind."""
    counts = Counts()
    for sentence in sentences:
        found = [one for one in detector.find(sentence.text) if one.is_sure]
        for (start, end), kind in sentence.spans.items():
            covered = any(one.kind == kind and one.start <= start and end <= one.end <= end + SLACK for one in found)
            (counts.found if covered else counts.missed)[kind] += 1
        for one in found:
            counts.false[one.kind] += not any(one.start < end and start < one.end for start, end in sentence.spans)
    return counts


def table(counts: Counts) -> Iterator[str]:
    """A Markdown table with a row for each kind, and one for all."""
    yield "| kind | values | found | recall | false | precision |"
    yield "|---|---|---|---|---|---|"
    kinds = sorted(counts.found | counts.missed | +counts.false)
    for kind in kinds:
        yield _row(f"`{kind}`", counts.found[kind], counts.missed[kind], counts.false[kind])
    yield _row("all", counts.found.total(), counts.missed.total(), counts.false.total())


def _row(name: str, found: int, missed: int, false: int) -> str:
    return (
        f"| {name} | {found + missed} | {found} | {_share(found, found + missed)} | {false} | "
        f"{_share(found, found + false)} |"
    )


def _share(part: int, whole: int) -> str:
    if not whole:
        return "–"
    low, high = wilson_interval(part, whole)
    return f"{part / whole:.3f} [{low:.3f}, {high:.3f}]"


def write_page(page: Path, lines: Iterable[str]) -> None:
    """Replace what is between the page's marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} has no marks {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{chr(10).join(lines)}\n\n{END}{after}", encoding="utf-8")


def measured() -> tuple[Counts, int]:
    """(the counts, the number of sentences)."""
    sys.path.insert(0, str(ROOT / "tests" / "sft"))
    from sentences import sentences

    listed = list(sentences())
    return count(Detector(), listed), len(listed)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="also write the table into docs/data.md")
    given = parser.parse_args()
    counts, number = measured()
    lines = list(table(counts))
    print(f"{number} sentences", *lines, sep="\n")
    if given.docs:
        write_page(PAGE, lines)


if __name__ == "__main__":
    main()
