"""Meaning of a reward model's scores: several members' scores combined into one, and their scale.

A reward run writes `final/score_scale.json` after measuring the saved model; PPO and reports read it.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from tiebreak.files import write_json
from tiebreak.messages import Record

SCALE_FILE = "score_scale.json"


class ScoreScale(Record):
    """The scale of a reward model's scores."""

    temperature: float | None = None
    """σ(difference of two scores / temperature) is the probability that the first answer is the better one (Guo et al.
    2017), fitted on the held-out preferences; None if there were none"""
    offsets: tuple[float, ...] = (0.0,)
    """each member's mean score minus the mean of all, over answers not used in training: training on differences leaves a
    member's origin free, so it is subtracted before members are compared. They sum to 0."""
    score_mean: float | None = None
    """over `samples` completions of PPO's initial policy; None if none were given"""
    score_std: float | None = None
    """over the same, with n below the root"""
    samples: int = 0


def read_score_scale(final: Path) -> ScoreScale:
    """The scale in a reward run's `final/`; of unknown scale with one member if the run wrote none."""
    path = final / SCALE_FILE
    return ScoreScale.model_validate(json.loads(path.read_text())) if path.is_file() else ScoreScale()


def write_score_scale(final: Path, scale: ScoreScale) -> None:
    """Write the scale beside the model."""
    write_json(final / SCALE_FILE, scale.model_dump())


def score_spread(members: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Standard deviation over the members of an ensemble, (…, K) to (…,): their disagreement. 0 for one member."""
    return (members if offsets is None else members - offsets).std(-1, correction=0)


def combine_scores(members: Tensor, spread_penalty: float = 0.0, offsets: Tensor | None = None) -> Tensor:
    """Combined score of an ensemble, (…, K) to (…,): mean − spread_penalty · spread.

    0 is the plain mean; a positive penalty favours answers on which members agree (mean minus standard deviation:
    Eisenstein et al. 2023; as a guard against over-optimisation: Coste et al. 2024).
    """
    mean = members.mean(-1)
    return mean - spread_penalty * score_spread(members, offsets) if spread_penalty else mean
