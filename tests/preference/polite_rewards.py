"""Reward functions as a user would write them."""

from __future__ import annotations

from typing import Any


def short(prompts: list[list[dict[str, str]]], completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    assert all(prompt[-1]["role"] == "user" for prompt in prompts)
    return [-float(len(completion[0]["content"])) for completion in completions]


def wants_more(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """How often an answer says "more"."""
    return [float(completion[0]["content"].split().count("more")) for completion in completions]


def raises(**_: Any) -> list[float]:
    raise KeyError("no such shelf")


def too_few(completions: list[Any], **_: Any) -> list[float]:
    return [1.0] * (len(completions) - 1)


def words(completions: list[Any], **_: Any) -> list[str]:
    return ["good"] * len(completions)


def not_numbers(completions: list[Any], **_: Any) -> list[float]:
    return [float("nan")] + [0.0] * (len(completions) - 1)


NOTHING = 3
