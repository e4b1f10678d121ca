"""Reward functions as a user would write them."""

from __future__ import annotations

import functools
from collections.abc import Callable
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


class FailsLater:
    """A reward that is well until it has been called a number of times."""

    def __init__(self, fault: Callable[..., Any], good_calls: int) -> None:
        self.fault, self.good_calls, self.calls = fault, good_calls, 0
        functools.update_wrapper(self, fault)

    def __call__(self, completions: list[list[dict[str, str]]], **rest: Any) -> Any:
        self.calls += 1
        ask = wants_more if self.calls <= self.good_calls else self.fault
        return ask(completions=completions, **rest)


raises_later = FailsLater(raises, good_calls=3)
too_few_later = FailsLater(too_few, good_calls=3)
not_numbers_later = FailsLater(not_numbers, good_calls=3)


def indifferent(completions: list[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


NOTHING = 3
