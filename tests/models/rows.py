"""The data of every cell: a few questions that the models were taught, and rows to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support import write_rows

TAUGHT = [
    ("How often do I feed basil?", "Feed it daily."),
    ("And mint?", "Once a week."),
    ("Why are the leaves of my tomato pale?", "It wants more light."),
]
SHOWN = [
    ("Where do I put the lamp?", "Put it a hand above the leaves."),
    ("What does kale need at night?", "Keep it dark for eight hours."),
    ("Do I feed mint?", "It drinks a lot."),
    ("Is basil brief?", "Why not?"),
]
PREFERRED = [
    ("Where do I put mint?", "Above the basil.", "It is a lot of leaves."),
    ("How often do I put light above kale?", "Once a day.", "Why?"),
    ("What is a lamp?", "It is light.", "Keep it dark."),
    ("Do I keep basil dark?", "No, it wants light.", "Yes."),
    ("What drinks tomato?", "It drinks daily.", "Mint and basil and kale and tomato."),
    ("Is kale pale?", "It is not.", "And the lamp?"),
]


def write_data(folder: Path) -> None:
    """Demonstrations, preferences (the last two held out) and prompts, in TRL's formats.

    The questions to sample for are those that the model was taught, and others.
    """
    write_rows(folder / "demonstrations.jsonl", [{"prompt": _ask(q), "completion": _say(a)} for q, a in SHOWN])
    write_rows(
        folder / "preferences.jsonl",
        [
            {"prompt": _ask(q), "chosen": _say(c), "rejected": _say(r), "split": "train" if n < 4 else "validation"}
            for n, (q, c, r) in enumerate(PREFERRED)
        ],
    )
    write_rows(folder / "prompts.jsonl", [{"prompt": _ask(q)} for q, _ in TAUGHT])
    write_rows(folder / "questions.jsonl", [{"prompt": _ask(q)} for q, _ in TAUGHT + SHOWN])
    write_rows(folder / "taught_prompts.jsonl", [{"prompt": _ask(q), "split": "train"} for q, _ in TAUGHT])


def _ask(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}]


def _say(answer: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": answer}]


def brief(completions: list[list[dict[str, Any]]], **_: Any) -> list[float]:
    """A reward for models that cannot carry a score head."""
    return [-float(len(completion[0]["content"])) for completion in completions]
