"""A model's outputs before it was saved: every load repeats them and refuses a model that differs."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from tiebreak.errors import HandoffError
from tiebreak.files import write_json
from tiebreak.packed.fused import own_computation

PROBE_FILE = "probe.json"


PROBE_TOLERANCE = 1e-5
"""In a fresh process on the machine that trained, float32."""


PROBE_TOLERANCE_ELSEWHERE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Another machine's kernels add in another order; per log-probability, in nats."""


@torch.no_grad()
def probe_values(model: nn.Module, ids: list[int]) -> list[float]:
    """A model's outputs for fixed ids: log-probabilities of ids[1:], or a reward model's score by each member."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    batch = torch.tensor([ids], device=device)
    with own_computation(model):
        logits = model(input_ids=batch, attention_mask=torch.ones_like(batch), use_cache=False).logits
    model.train(training)
    if logits.ndim == 2:
        return [float(score) for score in logits[0]]
    logps = torch.log_softmax(logits[0, :-1].float(), dim=-1)
    return [float(v) for v in logps.gather(-1, batch[0, 1:, None]).squeeze(-1)]


def write_probe(folder: Path, ids: list[int], values: list[float], model: nn.Module) -> None:
    """Write the model's current outputs beside it."""
    dtypes = [p.dtype for p in model.parameters() if p.dtype.is_floating_point]
    coarsest = max(dtypes, key=lambda dtype: PROBE_TOLERANCE_ELSEWHERE[dtype])  # QLoRA adapters train in bfloat16
    names = {"dtype": dtypes[0], "coarsest_dtype": coarsest}
    written = {key: str(dtype).removeprefix("torch.") for key, dtype in names.items()}
    write_json(folder / PROBE_FILE, {"input_ids": ids, "values": values, **written})


def probe_difference(model: nn.Module, folder: Path) -> float:
    """The largest difference between a loaded model's outputs and those before it was saved."""
    probe = json.loads((folder / PROBE_FILE).read_text())
    now = probe_values(model, probe["input_ids"])
    return max(abs(float(a) - float(b)) for a, b in zip(now, probe["values"], strict=True))


def verify_probe(model: nn.Module, folder: Path, tolerance: float | None = None) -> float:
    """Refuse a loaded model whose outputs differ from those before it was saved.

    Raises:
        HandoffError: states the difference.
    """
    if not (folder / PROBE_FILE).is_file():
        raise HandoffError(f"{folder} has no {PROBE_FILE}: it was not written by a finished training stage")
    saved = getattr(torch, json.loads((folder / PROBE_FILE).read_text())["coarsest_dtype"])
    here = next(p.dtype for p in model.parameters() if p.dtype.is_floating_point)
    coarser = max((saved, here), key=lambda dtype: PROBE_TOLERANCE_ELSEWHERE[dtype])
    allowed = PROBE_TOLERANCE_ELSEWHERE[coarser] if tolerance is None else tolerance
    difference: float = probe_difference(model, folder)
    if not difference <= allowed:
        raise HandoffError(
            f"{folder}: the model's outputs differ from those before it was saved (largest difference {difference:.3g}, "
            f"allowed {allowed:.0e}); its weights, its base or a library changed"
        )
    return difference
