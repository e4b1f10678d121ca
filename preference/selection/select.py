"""Select the pairs that people are to judge: some at random, the others by a strategy.

    tiebreak select --pairs runs/quickstart/sample --selected-pairs 40 --output runs/quickstart/select
    tiebreak select … --strategy margin --reward-model runs/quickstart/reward

Every selected pair carries its arm, its score and its probability of selection, to the label store, the export and the
reports. Held-out pairs are selected at random alone, so figures on them need no weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from preference.selection.configuration import SelectConfig
from preference.selection.page import build_page
from preference.selection.pool import Candidate, Pool, read_pool
from preference.selection.scores import hidden_vectors, scores_of
from preference.selection.strategies import (
    Floats,
    Shares,
    arms,
    choose,
    farthest_first,
    most_central,
    share_out,
    to_selection,
)
from tiebreak.command.launch import stage_main
from tiebreak.errors import counted
from tiebreak.files import write_json, write_jsonl, write_text_atomically
from tiebreak.messages import content_id
from tiebreak.records import Pair, Split
from tiebreak.runs.run import Run, clear_partial, start_run
from tiebreak.terminal import say
from tiebreak.tracking.recorder import tracked

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Chosen:
    """A split's pairs, and the arms that selected them."""

    split: Split
    pairs: list[Pair]
    shares: Shares
    pool: int


def select(config: SelectConfig) -> None:
    """The stage."""
    with start_run(config, "select") as run, tracked(run):
        if run.finished:
            say(f"{run.folder} is finished with this configuration and these inputs: nothing to do")
            return
        pool = read_pool(config)
        by_split = [[one for one in pool.candidates if one.pair.split == split] for split in SPLITS]
        numbers = share_out(config.selected_pairs, [len(inside) for inside in by_split])
        chosen = [
            select_from(config, run, split, inside, number)
            for split, inside, number in zip(SPLITS, by_split, numbers, strict=True)
            if number
        ]
        pairs = sorted(
            (pair for part in chosen for pair in part.pairs), key=lambda pair: content_id("order", config.seed, pair.id)
        )
        write_jsonl(run.final / "pairs.jsonl", pairs)
        report = build_report(config, pool, chosen)
        write_json(run.final / "report.json", report)
        made_from = {name: one.source for name, one in run.inputs.items()}
        write_text_atomically(run.folder / "report.html", build_page(report, made_from))
        run.facts |= {"counts": report["counts"], "selection": {"strategy": name_of(config), "arms": report["arms"]}}
        run.finish()
        clear_partial(run)
        say(*lines_of(report), f"report: {(run.folder / 'report.html').resolve().as_uri()}")


def name_of(config: SelectConfig) -> str:
    """The strategy's name, as pairs carry it."""
    return f"{config.strategy}+diverse" if config.diverse else config.strategy


def select_from(config: SelectConfig, run: Run, split: Split, candidates: Sequence[Candidate], number: int) -> Chosen:
    """The selected pairs of a split; the strategy applies to the training pairs only."""
    shares = Shares(number, 0)
    ranking, scores = _by_lot(config, candidates), None
    if split == "train" and config.strategy != "random":
        shares = arms(number, config.random_share)
        ranking, scores = rank(config, run, candidates, number)
    ids = [one.pair.id for one in candidates]
    chosen = choose(ids, ranking, shares, config.seed)
    pairs = []
    for row, (arm, probability) in chosen.items():
        score = None if scores is None else float(scores[row])
        one = candidates[row]
        selection = to_selection(arm, probability, score, name_of(config), one.set_id)
        pairs.append(one.pair.model_copy(update={"selection": selection}))
    return Chosen(split, pairs, shares, len(candidates))


def _by_lot(config: SelectConfig, candidates: Sequence[Candidate]) -> list[int]:
    """Rows in an order that depends on the seed alone, and not on the random arm."""
    return sorted(range(len(candidates)), key=lambda row: content_id("equal", config.seed, candidates[row].pair.id))


def rank(config: SelectConfig, run: Run, candidates: Sequence[Candidate], number: int) -> tuple[list[int], Floats]:
    """Rows from the best to the worst by the strategy, and their scores."""
    lot = _by_lot(config, candidates)
    scores = scores_of(config, run, candidates)
    ranking = lot if scores is None else [lot[place] for place in np.argsort(-scores[lot], kind="stable")]
    if not config.is_diverse:
        return ranking, np.zeros(len(lot)) if scores is None else scores
    best = lot if scores is None else ranking[: max(number, int(np.ceil(config.candidates * number)))]
    vectors = hidden_vectors(config, run, [candidates[row] for row in best])
    order, distances = farthest_first(vectors, most_central(vectors) if scores is None else 0, min(number, len(best)))
    unlike = [best[place] for place in order]
    rest = [row for row in ranking if row not in set(unlike)]
    if scores is None:
        scores = np.full(len(lot), np.nan)
        scores[unlike] = distances
    return [*unlike, *rest], scores


# --- the report ---


def build_report(config: SelectConfig, pool: Pool, chosen: Sequence[Chosen]) -> dict[str, Any]:
    """Counts, the arms, and what the scores are."""
    selected = [pair for part in chosen for pair in part.pairs]
    by_arm = Counter(pair.selection.strategy for pair in selected if pair.selection)
    return {
        "counts": {
            "pool": len(pool.candidates),
            "duplicates": pool.duplicates,
            "already_judged": pool.judged,
            "selected": len(selected),
        },
        "strategy": name_of(config),
        "arms": {name: _arm(name, selected) for name in sorted(by_arm, key=lambda name: name != "random")},
        "splits": {
            part.split: {"pool": part.pool, "selected": len(part.pairs), "at_random": part.shares.drawn}
            for part in chosen
        },
    }


def _arm(name: str, selected: Sequence[Pair]) -> dict[str, Any]:
    mine = [pair.selection for pair in selected if pair.selection and pair.selection.strategy == name]
    scores = [one.score for one in mine if one.score is not None]
    quartiles = [round(float(edge), 6) for edge in np.quantile(scores, (0.0, 0.25, 0.5, 0.75, 1.0))] if scores else None
    return {
        "pairs": len(mine),
        "smallest_probability": min(one.probability for one in mine),
        "score_quartiles": quartiles,
    }


def lines_of(report: dict[str, Any]) -> list[str]:
    """The report in the terminal."""
    counts = report["counts"]
    arms_there = ", ".join(f"{arm['pairs']} {_by(name)}" for name, arm in report["arms"].items())
    lines = [f"{counts['selected']} of {counted(counts['pool'], 'pair')} selected: {arms_there}"]
    left_out = [f"{counts[key]} {words}" for key, words in _LEFT_OUT.items() if counts[key]]
    return [*lines, *([f"left out of the pool: {', '.join(left_out)}"] if left_out else [])]


_LEFT_OUT = {"already_judged": "already judged", "duplicates": "twice in it"}


def _by(name: str) -> str:
    return "at random" if name == "random" else f"by {name}"


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak select`, or `python -m preference.selection.select`."""
    stage_main("select", SelectConfig, select, arguments)


if __name__ == "__main__":
    main()
