"""Loads an exported folder in a fresh process without Tiebreak, and compares its outputs with the run's probe."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tiebreak.chat.chat import Chat
from tiebreak.chat.templates import in_parts, render_messages
from tiebreak.chat.turns import with_fixed_date
from tiebreak.errors import HandoffError
from tiebreak.export.model_to_export import ModelToExport, Probe
from tiebreak.messages import Message

TOLERANCE: Mapping[str, float] = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.25, "q8_0": 0.5}
"""largest difference of a log-probability in nats, or of a score, that a format's rounding explains"""
_SCRIPT = Path(__file__).with_name("alone.py")
_ASK, _REPLY = {"role": "user", "content": "Why is the sky blue?"}, {"role": "assistant", "content": "Air scatters it."}
CONVERSATIONS: tuple[tuple[dict[str, str], ...], ...] = (
    (_ASK,),
    ({"role": "system", "content": "Be brief."}, _ASK),
    (_ASK, _REPLY, {"role": "user", "content": "And at night?"}),
)


@dataclass(frozen=True)
class Comparison:
    """How an export's answers differ from the run's."""

    largest: float
    mean: float
    allowed: float
    unit: str

    def __str__(self) -> str:
        found = f"largest difference from the run's probe {self.largest:.2g} {self.unit}"
        return f"{found} (mean {self.mean:.2g}, allowed {self.allowed:g})"


def ask_alone(
    origin: ModelToExport,
    probe: Probe,
    folder: Path,
    *,
    file: str = "",
    adapter: bool = False,
    rope: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The folder's outputs, computed in a process of its own.

    Args:
        file: a GGUF file in the folder; empty: the folder is transformers'.
        adapter: the folder holds an adapter.
        rope: the run's rope scaling, which transformers does not read from GGUF.

    Raises:
        HandoffError: it cannot be loaded there.
    """
    held = origin.weights
    request = {
        "folder": str(folder),
        "file": file,
        "adapter": adapter,
        "rope": rope,
        "scores": len(probe.values) if origin.kind == "reward" else 0,
        "quantized": held.name if adapter and held else "",
        "double_quantized": bool(held and held.double),
        "dtype": probe.dtype,
        "ids": probe.ids,
        "conversations": messages_of(origin.chat),
        "trust_remote_code": origin.source.trust_remote_code,
        "threads": torch.get_num_threads(),
    }
    done = subprocess.run(
        [sys.executable, "-I", str(_SCRIPT)], input=json.dumps(request), capture_output=True, text=True, check=False
    )
    if done.returncode or not done.stdout.strip():
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise HandoffError(f"{origin.source.name} was exported, but transformers alone cannot load it: {last[:300]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def messages_of(chat: Chat) -> list[list[dict[str, Any]]]:
    """The compared conversations as the template takes them."""
    return [[in_parts(one) if chat.content_in_parts else dict(one) for one in many] for many in CONVERSATIONS]


def compare(origin: ModelToExport, probe: Probe, answer: Mapping[str, Any], dtype: str) -> Comparison:
    """The export's answers beside the run's.

    Raises:
        HandoffError: they differ by more than the format explains.
    """
    apart = [abs(a - b) for a, b in zip(answer["values"], probe.values, strict=True)]
    unit = "of a score" if origin.kind == "reward" else "nats of a log-probability"
    largest = max(apart) if all(map(math.isfinite, apart)) else math.nan
    found = Comparison(largest, sum(apart) / len(apart), max(TOLERANCE[dtype], probe.tolerance), unit)
    if not found.largest <= found.allowed:
        raise HandoffError(f"{origin.source.name}: exported as {dtype}, its outputs differ from its run's: {found}")
    return found


def require_same_text(origin: ModelToExport, answer: Mapping[str, Any]) -> None:
    """Refuse an export that would read conversations otherwise, or not stop where the run does.

    Raises:
        HandoffError: names what would be lost.
    """
    name = origin.source.name
    for messages, ids in zip(CONVERSATIONS, answer["conversations"], strict=True):
        if ids != expected_ids(origin, messages):
            roles = ", ".join(one["role"] for one in messages)
            raise HandoffError(
                f"{name}: the exported chat template and tokenizer read a conversation of {roles} otherwise than the run "
                "does, so the model would see text that it was not trained on"
            )
    if answer["ends"] is not None and (lost := set(origin.ends) - set(answer["ends"])) and origin.kind == "policy":
        texts = [text for end, text in zip(origin.ends, origin.end_texts, strict=True) if end in lost]
        raise HandoffError(f"{name}: the export would not stop at {', '.join(texts)}, at which the run stops")


def expected_ids(origin: ModelToExport, messages: Sequence[Mapping[str, str]]) -> list[int] | None:
    """A conversation's ids by the run, checked to be those of the exported template; None: the template refuses it.

    Raises:
        HandoffError: the exported template renders other text.
    """
    chat = origin.chat
    taken = [in_parts(one) if chat.content_in_parts else one for one in messages]
    try:
        wanted = chat.encode_prompt([Message.model_validate(one) for one in messages])
        fixed = render_messages(chat.tokenizer, with_fixed_date(origin.template), taken, True)
        today = render_messages(chat.tokenizer, origin.template, taken, True)
    except HandoffError:
        return None
    if list(chat.tokenizer(fixed, add_special_tokens=False)["input_ids"]) != wanted:
        raise HandoffError(
            f"{origin.source.name}: without template_arguments, which others do not pass, its chat template renders "
            "another conversation: give the run a template that needs none"
        )
    return list(chat.tokenizer(today, add_special_tokens=False)["input_ids"])
