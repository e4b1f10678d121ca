"""The runs that a card is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tiebreak.card.content import Manifest
from tiebreak.stages import find_stage


@dataclass(frozen=True)
class Subject:
    """A model or data, the runs that made it (inputs first), and an evaluation that measured the model."""

    manifest: Manifest
    chain: Sequence[Manifest]
    evaluation: Manifest | None = None
    policy: str = ""
    """its name in the evaluation"""
    previous: Sequence[Manifest] | None = None
    """the runs that made the version before; None: none was named"""

    @property
    def trained(self) -> list[Manifest]:
        return [one for one in self.chain if find_stage(str(one["stage"])).trains]

    @property
    def data(self) -> list[Manifest]:
        return [one for one in self.chain if find_stage(str(one["stage"])).makes == "data"]
