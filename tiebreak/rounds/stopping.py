"""Whether another round follows: pure functions of the figures so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tiebreak.errors import counted
from tiebreak.rounds.configuration import StopConfig

Round = dict[str, Any]
"""a round's figures, as in rounds.json"""


def why_undecided(figures: Round) -> str:
    """Why a round's labels cannot be trained on; empty if they can, that is, if some pair has a preferred answer."""
    if figures["decided"]:
        return ""
    return (
        f"none of its {counted(figures['labels'], 'judgment')} prefers an answer: ties, both bad, skips or split votes"
    )


def why_distrust(agreement: dict[str, Any], stop: StopConfig) -> str:
    """Why a round's labels are not trusted: its raters' agreement is not above chance. Empty if they are, and if too few
    pairs were judged twice to tell."""
    value, n, interval = agreement["value"], agreement["n"], agreement["interval"]
    if value is None or n < stop.judged_twice or interval[0] > 0.5:
        return ""
    low, high = interval
    return (
        f"the raters agree in {value:.0%} of {n} pairs of votes (95% interval {low:.0%} to {high:.0%}), which is not above "
        "chance (50%)"
    )


def why_stop(rounds: Sequence[Round], stop: StopConfig) -> str:
    """Why no further round follows the last one; empty if one does."""
    last = rounds[-1]
    low = last["over_start"]["interval"][0]
    if stop.win_rate_above is not None and low > stop.win_rate_above:
        return f"the win rate over the start is above {stop.win_rate_above:.0%}: its lower bound is {low:.0%}"
    if stop.max_kl is not None and last["kl"] is not None and last["kl"] > stop.max_kl:
        return (
            f"the policy is {last['kl']:.1f} nats per answer from the start, further than stop.max_kl ({stop.max_kl:g})"
        )
    if last.get("guard_step") == 0:
        return "the guard kept the policy that the round's training began with: its reward model scored no step higher"
    wanted = stop.rounds_without_gain
    if wanted is not None and len(rounds) >= wanted and not any(_gained(one) for one in rounds[-wanted:]):
        return f"no gain over the previous policy in {wanted} rounds"
    return ""


def _gained(one: Round) -> bool:
    return bool(one["over_previous"]["interval"][0] > 0.5)
