"""How DPO's losses cope with wrong votes, in worlds whose best policy is known.

    python benchmarks/wrong_votes.py           # about a minute; prints the table and writes benchmarks/wrong_votes.json
    python benchmarks/wrong_votes.py --docs    # also into docs/benchmarks.md

A world has a random reference policy over 16 answers to each of 12 prompts, and a reward that is linear in 8 random
features of an answer. Policies are log-linear in the same features, so the best one under the KL penalty is known (Rafailov
et al. 2023, Eq. 4): its weights are the reward's, divided by beta. Of each pair, drawn from the reference, the better
answer follows Bradley and Terry's model. Three of five raters vote; a vote is wrong with the rater's error rate, whatever
the pair.

The losses, targets, weights and margins are those of `tiebreak dpo` (preference.losses, tiebreak.training.labels,
preference.rater_em); its model, optimizer and batches are not. `dawid_skene` is the plain loss on preferences by
`aggregation.method: dawid_skene` with their weights; all other losses but `rater_em` take the majority's. All start at the
reference and take the same steps of Adam on all pairs.

The figure is the share of the attainable gain: the objective E[r] − β·KL(π ‖ π_ref), 0 at the reference and 1 at the best
policy, which is 1 − KL(π ‖ π*)/KL(π_ref ‖ π*). Below 0, the reference is better. Losses differ in how far a policy goes and
in how well it orders the answers. The first can be tuned by beta, so there is a second figure: the same, with all weights
multiplied by the best factor, one for all worlds of a case. Intervals are 95%, over worlds.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labeling_ui.quality.reliability import UNKNOWN, Ballots, fit_dawid_skene
from preference.configuration import RaterEMConfig
from preference.losses import Pairs, labelled_loss
from preference.rater_em import RATERS, VOTES, PairVotes, RaterEM, collate_votes
from tiebreak.measures.statistics import student_quantile
from tiebreak.training.labels import margin_of, mean_one, target_of

RESULTS = Path(__file__).with_name("wrong_votes.json")
PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- wrong votes: begin -->", "<!-- wrong votes: end -->"
"""in the page, around the table"""
PROMPTS, ANSWERS, FEATURES = 12, 16, 8
REWARD_SCALE = 0.7
"""standard deviation of each feature's weight: rewards differ by about 2 between answers"""
BETA = 1.0
VOTES_A_PAIR = 3
STEPS, LEARNING_RATE = 300, 0.02
FACTORS = tuple(2.0 ** (step / 4) for step in range(-16, 13))
"""of the weights, 1/16 to 8"""


@dataclass(frozen=True)
class Case:
    """Which votes are wrong."""

    name: str
    error_rates: tuple[float, ...]
    """of each rater"""

    @property
    def share(self) -> float:
        """The share of wrong votes."""
        return sum(self.error_rates) / len(self.error_rates)


CASES = (
    Case("none", (0.0,) * 5),
    Case("20%, all raters alike", (0.2,) * 5),
    Case("20%, two raters of five wrong in 40%", (0.4, 0.4, 0.05, 0.05, 0.1)),
    Case("40%, all raters alike", (0.4,) * 5),
    Case("40%, three raters of five wrong in 55%", (0.55, 0.55, 0.55, 0.15, 0.2)),
)


@dataclass(frozen=True)
class Worlds:
    """Many worlds at once; W worlds, P prompts, A answers, F features."""

    features: Tensor
    """(W, P, A, F)"""
    reference: Tensor
    """log π_ref, (W, P, A)"""
    reward: Tensor
    """the weight of each feature, (W, F)"""

    def policy(self, weights: Tensor) -> Tensor:
        """log π ∝ log π_ref + φ·θ, of weights θ of shape (W, F); shape (W, P, A)."""
        return (self.reference + torch.einsum("wpaf,wf->wpa", self.features, weights)).log_softmax(-1)

    @property
    def best(self) -> Tensor:
        """log π*, shape (W, P, A)."""
        return self.policy(self.reward / BETA)

    def gained(self, weights: Tensor) -> Tensor:
        """The share of the attainable gain of each world's policy, shape (W,)."""
        return 1 - _kl(self.policy(weights), self.best) / _kl(self.reference, self.best)


def _kl(one: Tensor, other: Tensor) -> Tensor:
    return (one.exp() * (one - other)).sum(-1).mean(-1)


def build_worlds(count: int, chance: torch.Generator) -> Worlds:
    """Random worlds."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=chance, dtype=torch.float64)

    features = normal(count, PROMPTS, ANSWERS, FEATURES)
    return Worlds(features, normal(count, PROMPTS, ANSWERS).log_softmax(-1), REWARD_SCALE * normal(count, FEATURES))


@dataclass(frozen=True)
class Votes:
    """Votes on N pairs of each of W worlds; K raters vote on each."""

    features: Tensor
    """of the first answer of each pair, less those of the second, (W, N, F)"""
    raters: Tensor
    """(W, N, K)"""
    signs: Tensor
    """1 for the first answer, −1 for the second, (W, N, K)"""
    strengths: Tensor
    """how much better the better answer is, in thirds of all pairs: 1 to 3, (W, N)"""


def draw_votes(worlds: Worlds, pairs: int, case: Case, chance: torch.Generator) -> Votes:
    """Pairs drawn from the reference, and the votes on them."""
    count = len(worlds.reward)
    prompts = torch.randint(PROMPTS, (count, pairs), generator=chance)
    rows = torch.arange(count)[:, None]
    first = torch.multinomial(worlds.reference[rows, prompts].exp().flatten(0, 1), 2, generator=chance)
    answers = first.view(count, pairs, 2)
    apart = worlds.features[rows, prompts, answers[..., 0]] - worlds.features[rows, prompts, answers[..., 1]]
    difference = torch.einsum("wnf,wf->wn", apart, worlds.reward)
    truth = _sign(torch.rand(count, pairs, generator=chance) < difference.sigmoid())
    raters = torch.rand(count, pairs, len(case.error_rates), generator=chance).argsort(-1)[..., :VOTES_A_PAIR]
    wrong = torch.rand(raters.shape, generator=chance) < torch.tensor(case.error_rates)[raters]
    edges = difference.abs().flatten().quantile(torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
    strengths = 1 + torch.bucketize(difference.abs(), edges)
    return Votes(apart, raters, truth[..., None] * _sign(~wrong), strengths)


def _sign(true: Tensor) -> Tensor:
    return torch.where(true, 1, -1)


# --- the losses


@dataclass(frozen=True)
class Labelled:
    """Preferences by majority, all worlds in one batch of W·N rows."""

    features: Tensor
    """of the chosen answer, less those of the rejected one, (W, N, F)"""
    agreement: Tensor
    """share of the votes for the chosen answer, (W·N,)"""
    strength: Tensor
    """(W·N,)"""

    def pairs(self, weights: Tensor, margin: Tensor | None, smoothing: float) -> Pairs:
        """The loss's inputs; a common part of both log-ratios cancels, so the rejected one is left at 0."""
        difference = torch.einsum("wnf,wf->wn", self.features, weights).flatten()
        ones = torch.ones_like(difference)
        none = torch.zeros_like(difference)
        return Pairs(difference, none, ones, ones, none if margin is None else margin, BETA, smoothing)


def label_by_majority(votes: Votes) -> Labelled:
    """What the export makes of an odd number of votes."""
    total = votes.signs.sum(-1)
    agreement = (1 + total.abs() / VOTES_A_PAIR) / 2
    return Labelled(votes.features * total.sign()[..., None], agreement.flatten(), votes.strengths.flatten())


def majority_error(case: Case) -> float:
    """The share of preferences that are wrong if all raters are alike: two or three wrong votes of three."""
    return case.share**2 * (3 - 2 * case.share)


Objective = Callable[[Tensor], Tensor]
"""weights of the policies (W, F) → the loss"""


def objective_of(name: str, votes: Votes, case: Case) -> Objective:
    """The loss of `tiebreak dpo` with the keys of this name."""
    if name == "rater_em":
        return _rater_em(votes)
    if name == "dawid_skene":
        return _dawid_skene(votes)
    rows = label_by_majority(votes)
    ones = torch.ones_like(rows.agreement)
    target, weight, margin, loss = ones, ones, None, "sigmoid"
    if name == "weights":
        weight = torch.from_numpy(mean_one(rows.agreement[:, None].numpy())[:, 0])
    elif name == "soft labels (cDPO)":
        target = _each(rows.agreement, lambda share: target_of(share, VOTES_A_PAIR))
    elif name == "margin (ODPO)":
        margin = _each(rows.strength, lambda strength: margin_of(strength, 1.0))
    elif name in ("ipo", "robust"):
        loss = name
    smoothing = majority_error(case)
    return lambda weights: labelled_loss([loss], rows.pairs(weights, margin, smoothing), target, weight)


def _each(values: Tensor, function: Callable[[float], float]) -> Tensor:
    """A function of a few distinct values."""
    distinct, place = values.double().unique(return_inverse=True)
    return torch.tensor([function(value) for value in distinct.tolist()], dtype=torch.float64)[place]


def _rater_em(votes: Votes) -> Objective:
    """All worlds in one estimation: a rater of one world is none of another."""
    count, pairs, _ = votes.signs.shape
    rows = [
        PairVotes(tuple(f"{world}-{rater}" for rater in raters), tuple(signs))
        for world in range(count)
        for raters, signs in zip(votes.raters[world].tolist(), votes.signs[world].tolist(), strict=True)
    ]
    em = RaterEM(rows, RaterEMConfig())
    batch = collate_votes([em.columns(row) for row in range(len(rows))])
    unlabelled = Labelled(votes.features, torch.ones(count * pairs), torch.ones(count * pairs))
    ones = torch.ones(count * pairs, dtype=torch.float64)

    def loss(weights: Tensor) -> Tensor:
        inputs = unlabelled.pairs(weights, None, 0.0)
        posterior = em.posterior(inputs.beta * inputs.difference, batch[RATERS], batch[VOTES])
        em.renew(range(len(rows)), posterior.tolist())
        return labelled_loss(["sigmoid"], inputs, posterior, ones)

    return loss


def _dawid_skene(votes: Votes) -> Objective:
    """Raters' reliability estimated from the votes alone, before training; each world has raters of its own."""
    first_better = torch.from_numpy(np.stack([fit_dawid_skene(one).first_better for one in ballots_of(votes)]))
    side = torch.where(first_better >= 0.5, 1.0, -1.0)
    weight = (2 * first_better - 1).abs()  # as decide_by_model's
    weight = weight / weight.mean(dim=1, keepdim=True)
    ones = torch.ones(weight.numel(), dtype=torch.float64)
    rows = Labelled(votes.features * side[..., None], ones, ones)
    return lambda weights: labelled_loss(["sigmoid"], rows.pairs(weights, None, 0.0), ones, weight.flatten())


def ballots_of(votes: Votes) -> list[Ballots]:
    """Each world's votes as the label export's, a pair being an item of a prompt of its own."""
    count, pairs, each = votes.signs.shape
    items, nothing = np.arange(pairs, dtype=np.int64), np.zeros(pairs, dtype=np.int64)
    raters = int(votes.raters.max()) + 1
    return [
        Ballots(
            tuple(map(str, range(raters))),
            items.repeat(each),
            votes.raters[world].flatten().numpy(),
            votes.signs[world].flatten().numpy(),
            np.ones(pairs * each),
            items,
            nothing,
            nothing + 1,
            np.full(pairs, UNKNOWN, dtype=np.int64),
        )
        for world in range(count)
    ]


LOSSES = (
    "plain", "weights", "soft labels (cDPO)", "margin (ODPO)", "robust", "ipo", "dawid_skene", "rater_em"
)  # fmt: skip


def train(objective: Objective, worlds: int, steps: int) -> Tensor:
    """The policies' weights, from the reference on; shape (W, F)."""
    weights = torch.zeros(worlds, FEATURES, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=LEARNING_RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(weights).backward()
        assert weights.grad is not None
        weights.grad *= worlds  # each world's own mean loss
        optimizer.step()
    return weights.detach()


# --- figures


def measure(worlds: int, pairs: int, steps: int, cases: Sequence[Case] = CASES) -> dict[str, Any]:
    """All losses and cases, on the same worlds, pairs and votes."""
    rows = []
    for case in cases:
        chance = torch.Generator().manual_seed(0)
        built = build_worlds(worlds, chance)
        votes = draw_votes(built, pairs, case, chance)
        for name in LOSSES:
            weights = train(objective_of(name, votes, case), worlds, steps)
            factor, tuned = at_best_factor(built, weights)
            figures = {**_figures(built.gained(weights), "gained"), **_figures(tuned, "tuned")}
            rows.append({"case": case.name, "loss": name, **figures, "factor": round(factor, 3)})
            print(f"{case.name}, {name}: {figures['gained']:.2f}, tuned {figures['tuned']:.2f}", flush=True)
    return {"worlds": worlds, "pairs": pairs, "steps": steps, "rows": rows}


def at_best_factor(worlds: Worlds, weights: Tensor) -> tuple[float, Tensor]:
    """The factor of the weights with the largest mean gain, and what each world gains with it, shape (W,)."""
    gained = [worlds.gained(factor * weights) for factor in FACTORS]
    best = max(range(len(FACTORS)), key=lambda number: float(gained[number].mean()))
    return FACTORS[best], gained[best]


def _figures(values: Tensor, name: str) -> dict[str, Any]:
    mean, count = float(values.mean()), len(values)
    half = student_quantile(count - 1) * float(values.std()) / math.sqrt(count)
    return {name: round(mean, 4), f"{name}_interval": [round(mean - half, 4), round(mean + half, 4)]}


def tables(found: Mapping[str, Any]) -> list[str]:
    """Markdown tables of both figures: a row a case, the best loss in bold."""
    return [
        *_table("share of the attainable gain", found["rows"], "gained"),
        "",
        *_table("with the best factor", found["rows"], "tuned"),
    ]


def _table(title: str, rows: Sequence[Mapping[str, Any]], figure: str) -> list[str]:
    lines = [f"| {title}; votes wrong: | {' | '.join(LOSSES)} |", f"|---|{'---|' * len(LOSSES)}"]
    for case in dict.fromkeys(row["case"] for row in rows):
        mine = {row["loss"]: row for row in rows if row["case"] == case}
        best = max(row[figure] for row in mine.values())
        cells = []
        for name in LOSSES:
            value, (low, high) = mine[name][figure], mine[name][f"{figure}_interval"]
            shown = f"**{value:.2f}**" if value == best else f"{value:.2f}"
            cells.append(f"{shown} ± {(high - low) / 2:.2f}")
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return lines


def write_table(page: Path, lines: Sequence[str]) -> None:
    """Replace what is between the page's marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} has no marks {BEGIN} and {END}")
    text = "\n".join(lines)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--worlds", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=240)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", action="store_true", help="also write the table into docs/benchmarks.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(given.worlds, given.pairs, given.steps)
    given.results.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print("\n".join(tables(found)))
    if given.docs:
        write_table(PAGE, tables(found))


if __name__ == "__main__":
    main()
