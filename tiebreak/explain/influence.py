"""How training pairs moved a score or an answer: TracIn at the last checkpoint (Pruthi et al. 2020).

A step of gradient descent on a pair with loss L moves a value f by −η ∇f·∇L; the influence of the pair is −∇f·∇L, over the
adapter's LoRA matrices. Gradients are projected to 512 dimensions by a count sketch (Charikar et al. 2002), which keeps
their products up to noise of relative size 1/√512. Weights, margins and the order of training are ignored, so it
ranks pairs and gives no amounts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiebreak.errors import HandoffError
from tiebreak.packed.logprobs import completion_logps, pad_right

DIMENSIONS = 512
_SEED = 0
Example = tuple[list[int], list[int]]
"""prompt ids, completion ids"""


@dataclass(frozen=True)
class TokenPair:
    """A training pair as token ids."""

    chosen: Example
    rejected: Example


class Sketch:
    """A random projection of gradients, the same for every gradient of a model.

    Args:
        parameters: whose gradients are projected.
        dimensions: of the projection; None: no projection.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], dimensions: int | None = DIMENSIONS) -> None:
        self.parameters, self.dimensions = list(parameters), dimensions
        generator = torch.Generator().manual_seed(_SEED)
        self.places: list[Tensor] = []
        self.signs: list[Tensor] = []
        for parameter in self.parameters if dimensions else ():
            count, device = parameter.numel(), parameter.device
            self.places.append(torch.randint(dimensions or 1, (count,), generator=generator).to(device))
            self.signs.append((torch.randint(2, (count,), generator=generator) * 2 - 1).to(device))

    def gradient(self, value: Tensor) -> Tensor:
        """The projected gradient of a scalar, shape (dimensions,)."""
        found = torch.autograd.grad(value, self.parameters, allow_unused=True)
        flat = [
            torch.zeros_like(parameter).flatten() if one is None else one.flatten().float()
            for parameter, one in zip(self.parameters, found, strict=True)
        ]
        if self.dimensions is None:
            return torch.cat(flat)
        total = torch.zeros(self.dimensions, device=flat[0].device)
        for one, places, signs in zip(flat, self.places, self.signs, strict=True):
            total.index_add_(0, places, one * signs)
        return total


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The LoRA matrices of a model, set to have gradients; all else has none.

    Raises:
        HandoffError: there are none.
    """
    model.requires_grad_(False)
    found = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    if not found:
        raise HandoffError("--pairs: the model has no LoRA adapter; its influences are not computed")
    for parameter in found:
        parameter.requires_grad_(True)
    return found


def influences(
    target: Tensor, losses: Iterable[Callable[[], Tensor]], sketch: Sketch, advance: Callable[[], object] = lambda: None
) -> list[float]:
    """−∇target·∇loss for each loss; positive: the pair raised the target.

    Args:
        target: a scalar with its graph.
        losses: each computes its scalar when called, so that only one graph is held at a time.
    """
    aim = sketch.gradient(target)
    found = []
    for loss in losses:
        found.append(-float(aim @ sketch.gradient(loss())))
        advance()
    return found


def pulls(
    losses: Iterable[Callable[[], Tensor]], sketch: Sketch, advance: Callable[[], object] = lambda: None
) -> list[float]:
    """How each pair moved the others: ∇loss · the mean gradient of all other pairs' losses, in units of the mean absolute
    value. Negative: a step on the pair raises the others' loss.

    Args:
        losses: each computes its scalar when it is its turn, so that one graph is held at a time.
    """
    gradients = []
    for loss in losses:
        gradients.append(sketch.gradient(loss()))
        advance()
    return relative_pulls(torch.stack(gradients)) if len(gradients) > 1 else [0.0] * len(gradients)


def relative_pulls(gradients: Tensor) -> list[float]:
    """gᵢ · mean of the other g, divided by its mean absolute value. Gradients, shape (pairs, dimensions).

    >>> relative_pulls(torch.tensor([[1.0], [1.0], [-2.0]]))
    [-0.5, -0.5, -2.0]
    """
    others = (gradients.sum(0) - gradients) / (len(gradients) - 1)
    products = (gradients * others).sum(1)
    scale = float(products.abs().mean())
    return [float(one) / scale for one in products] if scale else [0.0] * len(products)


# --- reward models ---


def score_of(model: Any, example: Example, pad_id: int) -> Tensor:
    """A reward model's score, with its graph; the mean of an ensemble. Shape ()."""
    return _scores(model, [example], pad_id)[0]


def _scores(model: Any, examples: Sequence[Example], pad_id: int) -> Tensor:
    """Shape (examples,)."""
    device = next(model.parameters()).device
    ids, mask = pad_right([[*prompt, *completion] for prompt, completion in examples], pad_id, device)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = base.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    last = hidden[torch.arange(len(examples), device=device), mask.sum(1) - 1]
    scores: Tensor = base.score(last).float().mean(-1)
    return scores


def reward_loss(model: Any, pair: TokenPair, pad_id: int) -> Tensor:
    """−log σ(chosen − rejected). Shape ()."""
    chosen, rejected = _scores(model, [pair.chosen, pair.rejected], pad_id)
    return -F.logsigmoid(chosen - rejected)


# --- policies ---


def logp_of(model: nn.Module, example: Example, pad_id: int) -> Tensor:
    """The answer's log-probability, with its graph. Shape ()."""
    return completion_logps(model, [example], pad_id)[0].sum()


def dpo_loss(model: nn.Module, pair: TokenPair, reference: tuple[float, float], beta: float, pad_id: int) -> Tensor:
    """−log σ(β·(log-ratio of chosen − that of rejected)) (Rafailov et al. 2023, Eq. 7). Shape ().

    Args:
        reference: the reference's log-probabilities of chosen and rejected.
    """
    logps = completion_logps(model, [pair.chosen, pair.rejected], pad_id)[0].sum(-1)
    margin = (logps[0] - reference[0]) - (logps[1] - reference[1])
    return -F.logsigmoid(beta * margin)


def strongest(values: Sequence[float], count: int) -> Iterator[int]:
    """Numbers of the `count` highest and the `count` lowest values, highest first.

    >>> list(strongest([0.5, -2.0, 3.0, 0.1], 1))
    [2, 1]
    """
    order = sorted(range(len(values)), key=lambda n: -values[n])
    yield from dict.fromkeys([*order[:count], *order[-count:]])
