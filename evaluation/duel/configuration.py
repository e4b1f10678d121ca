"""The configurations of *duel* and *duel report*. They import no model code, so that help and errors answer at once."""

from __future__ import annotations

from pydantic import Field, field_validator

from tiebreak.config import StageConfig


class DuelConfig(StageConfig):
    """`tiebreak duel`"""

    evaluation: str
    """a finished evaluate run on held-out prompts; people compare its answers"""
    policies: list[str] = []
    """names of policies in the evaluation, two or more; empty: all"""
    max_prompts: int | None = Field(default=None, ge=1)
    """compare answers to at most this many prompts, always the same ones; null: all"""
    seed: int = Field(default=0, ge=0)
    """random seed of the order of the pairs"""

    @field_validator("policies")
    @classmethod
    def _two_or_more(cls, names: list[str]) -> list[str]:
        if len(names) == 1 or len(set(names)) < len(names):
            raise ValueError("needs two or more policies, each once, or none for all")
        return names


class DuelReportConfig(StageConfig):
    """`tiebreak duel report`"""

    duel: str
    """a finished duel run"""
    judgments: str
    """the judgments of its pairs: a label run (tiebreak label export), or a file of judgments"""
    judges: list[str] = []
    """finished judge runs on the duel's pairs, to compare with the raters"""
    overlap: int | None = Field(default=None, ge=1, exclude_if=lambda number: number is None)
    """judgments that each pair needs; null: as many as its batch asks for, and for a file of judgments, any number"""
    no_difference: float = Field(default=0.1, gt=0.0, lt=0.5, exclude_if=lambda gap: gap == 0.1)
    """a win rate within this distance of 0.5 counts as no difference"""
