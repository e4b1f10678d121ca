"""The measure of answers: the quickstart's written rubric, or a user's function.

    yardstick: rubric                # data/hydroponics/rubric.py, which comes with Tiebreak
    yardstick: mine:helpfulness      # mine.py beside the configuration file, in the current folder, or installed

    def helpfulness(prompt: str, answer: str) -> float: ...   # larger is better
    helpfulness.scale = (0, 100)                              # optional: the ends of its scale, for the report's axes
    helpfulness.name = "Helpfulness"                          # optional: its name in the report
    helpfulness.criteria = …                                  # optional: (prompt, answer) → {criterion: met or not}

A value that is not a finite number, or is outside the scale, is refused: it would count as a tie.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiebreak.errors import ConfigError, HandoffError
from tiebreak.measures.functions import (
    UserFunction,
    load_function,
    load_shipped_function,
    require_arguments,
    where_raised,
)

RUBRIC = "rubric"
RUBRIC_FILE = "data/hydroponics/rubric.py"
RUBRIC_NAME = "Rubric score"


@dataclass(frozen=True)
class Measurement:
    """An answer's value, with its criteria if there are any."""

    value: float
    criteria: dict[str, bool]


@dataclass(frozen=True)
class Yardstick:
    """A measure of answers; larger is better."""

    source: str
    """as in the configuration"""
    name: str
    """as the report prints it"""
    scale: tuple[float, float] | None
    """the lowest and highest value; None if the function declares none"""
    function: UserFunction

    @property
    def file(self) -> str | None:
        """The function's source file; None for the rubric and for built-in functions."""
        return None if self.source == RUBRIC else self.function.file

    def measure(self, prompt: str, answer: str, whose: str, **further: Any) -> Measurement:
        """One answer's value.

        Args:
            whose: the answer's description, for the message.
            further: arguments of the function beside prompt and answer.

        Raises:
            HandoffError: the function raises, or does not return a finite number on its scale.
        """
        criteria: dict[str, bool] = {}
        try:
            returned = self.function.call(prompt, answer, **further)
            if list_criteria := getattr(self.function.call, "criteria", None):
                criteria = {str(name): bool(met) for name, met in list_criteria(prompt, answer).items()}
        except (Exception, SystemExit) as error:
            where = where_raised(self.function.call, error)
            raise HandoffError(
                f"the yardstick {self.source} raised {type(error).__name__}: {error} ({where}) on {whose}. {KEPT}"
            ) from error
        fault = self._fault(returned)
        if fault:
            raise HandoffError(f"the yardstick {self.source} returned {fault} for {whose}. {KEPT}")
        return Measurement(float(returned), criteria)

    def criteria_of(self, prompt: str, answer: str) -> dict[str, bool]:
        """Which of its criteria an answer meets; none if they cannot be found out."""
        list_criteria = getattr(self.function.call, "criteria", None)
        if list_criteria is None:
            return {}
        try:
            return {str(name): bool(met) for name, met in list_criteria(prompt, answer).items()}
        except (Exception, SystemExit):  # noqa: BLE001 - whatever a user's function raises
            return {}

    def _fault(self, returned: Any) -> str:
        """The error in a returned value; empty if there is none."""
        try:
            value = math.nan if isinstance(returned, (str, bytes)) else float(returned)
        except Exception:  # noqa: BLE001 - whatever the object's own conversion raises
            value = math.nan
        if not math.isfinite(value):
            kind = "" if returned is None or isinstance(returned, float) else f" ({type(returned).__name__})"
            return f"{shortened(repr(returned))}{kind}, which is not a finite number,"
        if self.scale and not self.scale[0] <= value <= self.scale[1]:
            return f"{value:g}, outside its declared scale, {self.scale[0]:g} to {self.scale[1]:g},"
        return ""


KEPT = "No answer is lost: fix the function and run the same command again"


def find_yardstick(
    source: str, beside: Path | None = None, key: str = "yardstick", offered: Sequence[str] = ()
) -> Yardstick:
    """The rubric, or a user's function, validated as far as possible without an answer.

    Args:
        beside: the configuration file's folder.
        key: the configuration's key that names it, for messages.
        offered: further arguments; the function gets those that are among its parameters.

    Raises:
        ConfigError: there is no such function, it has other arguments, or its scale is invalid.
    """
    function = load_shipped_function(RUBRIC_FILE, "score") if source == RUBRIC else load_function(source, key, beside)
    named = dict.fromkeys(parameters_of(function.call) & set(offered))
    require_arguments(function, key, f"{source.rpartition(':')[2]}(prompt, answer)", "", "", **named)
    name = getattr(function.call, "name", None)
    return Yardstick(source, name if isinstance(name, str) and name.strip() else source, _scale(function), function)


def parameters_of(function: Callable[..., Any]) -> set[str]:
    """Names of a function's parameters; none of a built-in one without a signature."""
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()


def _scale(function: UserFunction) -> tuple[float, float] | None:
    declared = getattr(function.call, "scale", None)
    if declared is None:
        return None
    try:
        low, high = (float(end) for end in declared)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"yardstick: {function.name}.scale must be two numbers, (low, high): {error}") from error
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"yardstick: {function.name}.scale is ({low:g}, {high:g}): the first must be less")
    return low, high


def shortened(text: str, most: int = 60) -> str:
    """The beginning of a text, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]}…"
