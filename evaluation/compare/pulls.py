"""Judgments that pull against the rest: training pairs of a reward model from which learning raised the others' loss.

    tiebreak reward report --reward-model RUN --output REPORT --influence_pairs 1000
    tiebreak compare --config compare.yaml --runs REPORT

`tiebreak reward report` estimates the pulls; this page lists them with the policies and the raters who judged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.compare.reading import Evaluation, Link
from tiebreak.data.reading import read_records
from tiebreak.files import read_jsonl
from tiebreak.hashing import hash_text
from tiebreak.measures.statistics import wilson_interval
from tiebreak.page.charts import Scale, swatch
from tiebreak.page.markup import Markup, el, join
from tiebreak.page.numbers import number, percent, short, signed
from tiebreak.page.tables import cell, heading, measured, note, table
from tiebreak.records import ExportedJudgment, Pair

STAGE = "reward report"
PULLS = Path("final") / "pulls.jsonl"
Row = Mapping[str, Any]
Supporters = Mapping[tuple[str, str], tuple[str, ...]]
"""a pair's id and the hash of an answer's text → the raters who prefer that answer"""

_SHARE = Scale(0.0, 1.0, ((0.0, "0%"), (0.5, "50%"), (1.0, "100%")))
_RATER, _CHOSEN, _REJECTED = ("base", "circle"), ("sft", "square"), ("dpo", "diamond")


# --- figures ---


def find_pulls(evaluation: Evaluation, links: Sequence[Link]) -> list[dict[str, Any]]:
    """The pulls of the reward reports among the links: the strongest pairs against the rest, and each rater's share.

    A rater answers for a pair if their judgment, in the label runs that the reward model was made from, prefers its chosen
    answer. Where there is no such judgment, it is the pair's only rater, or the lead who settled it; of several, none.
    """
    behind = {link.id for link in _behind(str(evaluation.manifest["id"]), links)}
    reports = [link for link in links if link.stage == STAGE and (Path(link.folder) / PULLS).is_file()]
    return [_pulls_of(link, _supporters(_behind(link.id, links)), behind) for link in reports]


def _pulls_of(link: Link, supporters: Supporters, behind: set[str]) -> dict[str, Any]:
    summary = json.loads((Path(link.folder) / "final" / "report.json").read_text(encoding="utf-8"))["against_the_rest"]
    pulls = list(read_jsonl(Path(link.folder) / PULLS))
    against: dict[str, list[bool]] = {}
    for one in pulls:
        for rater in _responsible(one, supporters):
            against.setdefault(rater, []).append(one["pull"] < 0)
    rows = [
        {**row, "preferred_by": list(_responsible(one, supporters))}
        for row, one in zip(summary["rows"], pulls, strict=False)  # the strongest of all, in the same order
    ]
    model = link.manifest["inputs"]["reward_model"]["id"]
    return {
        "report": link.id,
        "reward_model": model,
        "behind_the_policies": model in behind,
        "pairs": summary["pairs"],
        "of": summary["of"],
        "against": summary["against"],
        "rows": rows,
        "raters": [_share(rater, signs) for rater, signs in sorted(against.items())],
    }


def _responsible(one: Row, supporters: Supporters) -> tuple[str, ...]:
    """The raters who prefer the chosen answer of a row of `PULLS`."""
    named = tuple(one["raters"] or ())
    known = supporters.get((str(one["pair_id"]), str(one.get("chosen", ""))))
    if known is not None and not one.get("adjudicated"):
        return known
    return named if len(named) == 1 else ()


def _share(rater: str, against: Sequence[bool]) -> dict[str, Any]:
    count = sum(against)
    interval = wilson_interval(count, len(against))
    return {"rater": rater, "value": count / len(against), "interval": list(interval), "n": len(against)}


def _supporters(links: Sequence[Link]) -> dict[tuple[str, str], tuple[str, ...]]:
    texts: dict[tuple[str, str], str] = {}
    for link in links:
        if (file := Path(link.folder) / "final" / "pairs.jsonl").is_file():
            for pair in read_records(file, Pair):
                texts |= {(pair.id, one.id): hash_text(one.text) for one in pair.completions}
    found: dict[tuple[str, str], dict[str, None]] = {}
    for pair_id, rater, chosen, rejected in _votes(links):
        for side in (chosen, rejected):
            if (text := texts.get((pair_id, side))) is not None:
                prefers = found.setdefault((pair_id, text), {})
                if side == chosen:
                    prefers[rater] = None
    return {key: tuple(raters) for key, raters in found.items()}


def _votes(links: Sequence[Link]) -> Iterator[tuple[str, str, str, str]]:
    """Pair, rater, and the completions that they chose and rejected; of each rater the first judgment of a comparison."""
    seen: set[tuple[str, str, frozenset[str]]] = set()
    for link in links:
        file = Path(link.folder) / "final" / "judgments.jsonl"
        for judgment in read_records(file, ExportedJudgment) if link.stage == "label" and file.is_file() else ():
            if judgment.kind == "model" or judgment.repeat or judgment.settled:
                continue
            for one in judgment.pairwise():
                key = (one.pair_id, one.rater_id, frozenset((one.left, one.right)))
                if one.skip or not one.answer or key in seen:
                    continue
                seen.add(key)
                chosen, rejected = (one.right, one.left) if one.answer > 0 else (one.left, one.right)
                yield one.pair_id, one.rater_id, chosen, rejected


def _behind(run: str, links: Sequence[Link]) -> list[Link]:
    """A run, by its id, and all that it was made from."""
    by_id = {link.id: link for link in links}
    found: dict[str, Link] = {}
    left = [run]
    while left:
        identity = left.pop()
        if identity in by_id and identity not in found:
            found[identity] = by_id[identity]
            left += [str(one["id"]) for one in by_id[identity].manifest["inputs"].values()]
    return list(found.values())


# --- the page ---


def pulls_part(report: Row) -> Markup | None:
    """Each report's raters and its strongest pairs."""
    found: Sequence[Row] = report.get("pulls", [])
    parts = [part for one in found for part in _part(one, len(found) > 1)]
    return join(*parts) if parts else None


def _part(one: Row, several: bool) -> list[Markup | None]:
    sampled = "" if one["pairs"] == one["of"] else f", drawn from {number(one['of'])}"
    remark = (
        f"Of {number(one['pairs'])} training pairs{sampled} of the reward model, learning from {number(one['against'])} "
        "raised the loss of the others, as far as their gradients show (TracIn, Pruthi et al. 2020). A pull of −2 is twice "
        "the average pair's. Such a judgment may be a slip, or a view that other raters do not share."
    )
    stranger = note("None of the policies above was made from this reward model.")
    return [
        el("h3", "Reward model ", el("code", short(one["reward_model"]))) if several else None,
        note(remark),
        None if one["behind_the_policies"] else stranger,
        _raters(one["raters"]),
        join([_card(row) for row in one["rows"]]),
    ]


def _raters(raters: Sequence[Row]) -> Markup | None:
    if not raters:
        return None
    headings = [
        heading("Rater"),
        heading("Pairs that pull against the rest", "share, 95% interval", scale=_SHARE),
        heading("Pairs", "whose answer they prefer", numeric=True),
    ]
    rows = [
        el(
            "tr",
            el("th", row["rater"], scope="row"),
            measured("Against the rest", row["value"], row["interval"], _SHARE, percent, _RATER),
            cell("Pairs", number(row["n"]), cls="n"),
        )
        for row in sorted(raters, key=lambda row: (-row["value"], row["rater"]))
    ]
    return table(headings, rows)


def _card(row: Row) -> Markup:
    several = len(row["prompt"]) > 1
    turns = [
        el("p", el("span", turn["role"], cls="role") if several else None, turn["content"], cls="turn")
        for turn in row["prompt"]
    ]
    answers = [
        _answer("Chosen", _CHOSEN, row["chosen"], _who(row)),
        _answer("Rejected", _REJECTED, row["rejected"], f"pull {signed(row['pull'], 1)}"),
    ]
    return el("article", el("div", turns, cls="prompt"), el("div", answers, cls="answers"), cls="sample")


def _who(row: Row) -> str:
    """The pair, and who prefers its chosen answer or, where that is not known, who judged it."""
    names = row["preferred_by"] or row["raters"] or ()
    verb = "preferred" if row["preferred_by"] else "judged"
    place = str(row["pair_id"] or "")[:17]
    return ", ".join(part for part in (place, f"{verb} by {', '.join(names)}" if names else "") if part)


def _answer(title: str, mark: tuple[str, str], text: str, foot: str) -> Markup:
    return el(
        "div",
        el("header", el("strong", swatch(*mark), title)),
        el("p", text, cls="turn") if text.strip() else el("p", "an empty answer", cls="empty"),
        el("footer", foot) if foot else None,
        cls="answer",
    )
