"""Tiebreak: from raw prompts to an aligned language model, through expert raters' judgments."""

__version__ = "0.1.0"
