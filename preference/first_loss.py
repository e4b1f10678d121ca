"""Checks of the first batch, before the first update: the reference is the policy, and the loss is what its paper says.

Policy and reference must give every answer the same log-probability. Then implicit rewards are 0, and each loss has a
value that can be worked out by hand: ln 2 for the sigmoid loss, 1 for hinge, 1/(4β²) for IPO, ½ for KTO
(docs/losses.md lists all). Whatever the loss, its first value is compared with our own function of the same
log-probabilities (preference.losses).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tiebreak.errors import HandoffError
from tiebreak.packed.proof import coarsest_dtype

REFERENCE_APART = {
    torch.float64: (1e-6, 1e-8),
    torch.float32: (2e-4, 2e-6),
    torch.float16: (0.06, 6e-4),
    torch.bfloat16: (0.5, 5e-3),
}
"""Allowed difference of policy and reference on an answer before the first update: nats, plus nats per nat of its
log-probability. For a 135M model's answers of 45 to 400 tokens, −190 to −2600 nats, computed in other batches, rounding
caused 1.2e-4 in float32, and 1.4 in bfloat16."""
LOSS_APART = 1e-3
"""Allowed difference of two computations of a loss from the same log-probabilities, relative to 1 + its size."""


def check_reference(policy: Tensor, reference: Tensor, dtype: torch.dtype, *, routed: bool = False) -> None:
    """Check that policy and reference are equal before the first update, for any loss.

    Args:
        policy, reference: log-probabilities of answers, shape (answers,).
        routed: a mixture of experts, where rounding sometimes sends a token to another expert: half of the answers must
            be equal.

    Raises:
        HandoffError: they differ by more than rounding.
    """
    nats, share = REFERENCE_APART[dtype]
    excess = (policy - reference).abs() / (nats + share * reference.abs())
    if not bool((excess.median() if routed else excess.max()) <= 1):
        worst = int(excess.argmax())
        raise HandoffError(
            f"the reference is not the policy that training starts from: they give an answer {float(reference[worst]):.4f} "
            f"and {float(policy[worst]):.4f} nats, but rounding explains {nats + share * abs(float(reference[worst])):.1e} "
            "at most; nothing was trained"
        )


def check_first_loss(loss: Tensor, expected: Tensor, names: str) -> None:
    """Check a trainer's first loss against our own function of the same log-probabilities.

    Args:
        loss, expected: shape ().
        names: of the loss, for the message.

    Raises:
        HandoffError: they differ, so the installed trainer computes another loss.
    """
    found, own = float(loss.detach()), float(expected.detach())
    if not abs(found - own) <= LOSS_APART * (1 + abs(own)):
        raise HandoffError(
            f"the first loss ({names}) is {found:.6f}, and its formula gives {own:.6f} for the same log-probabilities: the "
            "installed trl computes another loss than the one that Tiebreak was tested with; nothing was trained"
        )


def computed_dtype(trainer: Any) -> torch.dtype:
    """The coarsest dtype in a trainer's computation of log-probabilities."""
    if trainer.args.bf16 or trainer.args.fp16:
        return torch.bfloat16 if trainer.args.bf16 else torch.float16
    return coarsest_dtype(trainer.model)


class RecordingModel:
    """A model called by TRL's loss, which records its output."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.output: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.output = self._model(*args, **kwargs)
        return self.output
