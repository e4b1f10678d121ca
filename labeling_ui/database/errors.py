"""Errors of the label store."""

from __future__ import annotations

from tiebreak.errors import TiebreakError


class StoreError(TiebreakError):
    """The label store cannot be opened, belongs to another campaign or a newer version, or has been tampered with."""


class RefusedError(TiebreakError):
    """The store refuses a request: another rater's pair, an expired lease, a second answer."""
