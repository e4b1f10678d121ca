"""The base class of every configuration and of its sections."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator


class Section(BaseModel):
    """A frozen part of a configuration that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)
    switch: ClassVar[str | None] = None
    """The key that is set when the whole section is given as true or false."""
    retired: ClassVar[Mapping[str, Any]] = {}
    """Keys that earlier versions wrote but never read, with their defaults: so old resolved files still open."""

    @classmethod
    def upgraded(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Recorded values, under today's keys."""
        return values

    @model_validator(mode="before")
    @classmethod
    def _leave_out_retired(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if not cls._is_retired(key, value)}

    @classmethod
    def _is_retired(cls, key: str, value: object) -> bool:
        return key in cls.retired and value == cls.retired[key]

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        """YAML's `true` is not 1, though pydantic would accept it."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        options = typing.get_args(annotation) or (annotation,)
        if isinstance(value, bool) and bool not in options and not {int, float}.isdisjoint(options):
            raise ValueError("must be a number")
        return value
