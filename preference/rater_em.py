"""Votes that may be wrong: their correctness, re-estimated while the policy trains from its own margin and from the
reliability of each rater (`rater_em`). RE-PO: Cao et al. 2025, arXiv 2509.24159.

Model. Of pair i, z_i = 1 if the chosen answer is the better one and −1 otherwise; the policy's margin is m_i = β·Δ_i, and

    p(z_i = 1) = σ(m_i)                                       (Rafailov et al. 2023, Eq. 6)
    p(v_ik = z_i) = η_k                                       for the vote v_ik = ±1 of rater k

Votes are independent given z_i; a vote for neither says nothing of z_i. The evidence bound of the votes' likelihood,
with q_i = q(z_i = 1) and c_ik = q_i if v_ik = 1, else 1 − q_i, is

    Σ_i [q_i·log σ(m_i) + (1 − q_i)·log σ(−m_i)] + Σ_ik [c_ik·log η_k + (1 − c_ik)·log(1 − η_k)] + entropy(q)

E-step: the bound is largest at the posterior, by Bayes' rule

    q_i = σ(m_i + Σ_k v_ik·log(η_k/(1 − η_k)))

With one vote a pair this is RE-PO's η·σ(m)/(η·σ(m) + (1 − η)·σ(−m)), its Eq. 5; several votes on a pair share their truth.

M-step: η_k is the mean of its c_ik, with `prior_votes` votes of the initial reliability (a Beta prior, so that no rater is
certain); the policy minimises the negative of the first sum, which is cDPO's loss with the label q_i.

The step is incremental (Neal & Hinton 1998): a batch renews the q_i of its own pairs, and η is that of the latest q of all
pairs seen so far. Every such step raises the bound or leaves it, so there is no rate to tune.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from preference.configuration import RaterEMConfig
from tiebreak.errors import DataError, HandoffError, counted
from tiebreak.records import Preference
from tiebreak.terminal import is_main_process

STATE_FILE = "rater_em.safetensors"
"""in a checkpoint: the latest q of every training pair"""
ROW, RATERS, VOTES = "row", "vote_raters", "vote_signs"
"""columns of a batch: each pair's row in the training set, shape (pairs,); raters' numbers and their votes, shape (pairs,
votes), 0 where there is none"""
COLUMNS = (ROW, RATERS, VOTES)


@dataclass(frozen=True)
class PairVotes:
    """The votes on one pair: +1 for the chosen answer, −1 for the rejected one, each with its rater."""

    raters: tuple[str, ...]
    signs: tuple[int, ...]


NO_VOTES = PairVotes((), ())


def votes_of(preference: Preference) -> PairVotes | None:
    """A preference's votes; without votes of their own, raters who all agree voted for the chosen answer. None: unknown."""
    if preference.votes is not None:
        cast = [one for one in preference.votes if one.vote]
        return PairVotes(tuple(one.rater for one in cast), tuple(one.vote for one in cast))
    if preference.raters is None or (len(preference.raters) > 1 and preference.agreement != 1.0):
        return None
    return PairVotes(preference.raters, (1,) * len(preference.raters))


def require_votes(preferences: Sequence[Preference]) -> None:
    """Refuse rows whose raters or votes are unknown, a rater with several votes on a pair, and rows without any vote.

    Raises:
        DataError: says how to get them.
    """
    votes = [votes_of(one) for one in preferences]
    unknown = sum(one is None for one in votes)
    if unknown:
        raise DataError(
            f"rater_em: {counted(unknown, 'preference')} of {len(preferences)} name no raters, or several who disagree "
            "without saying who: export the labels with aggregation.votes: true, or set rater_em: null"
        )
    raters = [one.raters for one in votes if one is not None]
    repeated = [of_pair for of_pair in raters if len(set(of_pair)) < len(of_pair)]
    if repeated:
        twice = next(rater for rater in repeated[0] if repeated[0].count(rater) > 1)
        raise DataError(
            f"rater_em: {counted(len(repeated), 'preference')} of {len(preferences)} have several votes of one rater "
            f"({twice!r}), which would count as those of several: keep one"
        )
    if preferences and not any(raters):
        raise DataError(
            "rater_em: no rater voted for either answer of any preference, so there is nothing to learn from: set "
            "rater_em: null"
        )


class RaterEM:
    """The posterior of every training pair, and the reliability of every rater."""

    def __init__(self, votes: Sequence[PairVotes], config: RaterEMConfig) -> None:
        self.config = config
        self.names = sorted({rater for one in votes for rater in one.raters})
        numbers = {name: n for n, name in enumerate(self.names)}
        self.raters = [[numbers[rater] for rater in one.raters] for one in votes]
        self.signs = [list(one.signs) for one in votes]
        self.posteriors = torch.full((len(votes),), math.nan, dtype=torch.float64)
        """q of each pair; nan of a pair that no batch had yet"""
        width = max((len(row) for row in self.raters), default=0)
        self._raters, self._signs = _table(self.raters, width), _table(self.signs, width).double()
        self.reliability = self._reliabilities()
        """η of each rater, shape (raters,)"""

    def columns(self, row: int) -> dict[str, Any]:
        """A training row's columns."""
        return {ROW: row, RATERS: self.raters[row], VOTES: self.signs[row]}

    def posterior(self, margin: Tensor, raters: Tensor, signs: Tensor) -> Tensor:
        """The E-step: q of pairs with these margins, shape (pairs,), from their votes, shape (pairs, votes)."""
        odds = torch.logit(self.reliability)[raters.cpu()] * signs.cpu()
        return torch.sigmoid(margin.detach().double().cpu() + odds.sum(1)).to(margin.device, margin.dtype)

    def renew(self, rows: Sequence[int], posteriors: Sequence[float]) -> None:
        """The M-step of the reliabilities, with new q of some pairs."""
        self.posteriors[list(rows)] = torch.tensor(posteriors, dtype=torch.float64)
        self.reliability = self._reliabilities()

    def _reliabilities(self) -> Tensor:
        q = self.posteriors[:, None]
        counted_here = (self._signs != 0) & ~torch.isnan(q)
        right = torch.where(counted_here, torch.where(self._signs > 0, q, 1 - q), torch.zeros(()).double())
        prior = self.config.prior_votes
        total = torch.full((len(self.names),), prior * self.config.reliability, dtype=torch.float64)
        count = torch.full((len(self.names),), prior, dtype=torch.float64)
        total.index_add_(0, self._raters.flatten(), right.flatten())
        count.index_add_(0, self._raters.flatten(), counted_here.double().flatten())
        return total / count

    def facts(self) -> dict[str, Any]:
        """For the manifest: each rater's reliability, and the pairs whose label is more likely wrong than right."""
        votes = torch.zeros(len(self.names), dtype=torch.long)
        votes.index_add_(0, self._raters.flatten(), (self._signs != 0).long().flatten())
        rows = zip(self.names, self.reliability.tolist(), votes.tolist(), strict=True)
        return {
            "rater_em": {
                "raters": {name: {"reliability": round(value, 6), "votes": count} for name, value, count in rows},
                "doubted_pairs": int((self.posteriors < 0.5).sum()),
                "pairs": len(self.posteriors),
            }
        }


def _table(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    """Rows of different lengths as one tensor, 0 where there is nothing."""
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long).reshape(len(rows), width)


def collate_votes(examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """The columns of a batch; none if its rows have none."""
    if ROW not in examples[0]:
        return {}
    width = max(1, *(len(example[RATERS]) for example in examples))
    raters, signs = (_table([example[name] for example in examples], width) for name in (RATERS, VOTES))
    return {ROW: torch.tensor([example[ROW] for example in examples]), RATERS: raters, VOTES: signs}


class RenewedRaters(TrainerCallback):
    """Renews the reliabilities after each optimizer step, and keeps the posteriors in checkpoints.

    Within a step they stay, so that it does not matter in how many batches, passes and processes it is computed.
    """

    def __init__(self, em: RaterEM) -> None:
        self.em = em
        self.pending: list[tuple[int, float]] = []
        """(row, q) of this step's pairs on this process"""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.pending.clear()  # of the check of the computation
        if state.global_step:
            self._resume(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        everywhere = dict(gather_object(self.pending) if args.world_size > 1 else self.pending)
        self.pending.clear()
        if everywhere:
            self.em.renew(list(everywhere), list(everywhere.values()))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if is_main_process():
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            save_file({"posteriors": self.em.posteriors}, folder / STATE_FILE)

    def _resume(self, checkpoint: Path) -> None:
        file = checkpoint / STATE_FILE
        if not file.is_file():
            raise HandoffError(f"{checkpoint} lacks {STATE_FILE}: remove it, to resume from an earlier one")
        posteriors = load_file(file)["posteriors"]
        seen = ~torch.isnan(posteriors)
        self.em.posteriors = posteriors
        self.em.renew(seen.nonzero().flatten().tolist(), posteriors[seen].tolist())
