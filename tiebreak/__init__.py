"""Tiebreak: from raw prompts to an aligned language model, through the judgments of expert raters."""

__version__ = "0.1.0"
