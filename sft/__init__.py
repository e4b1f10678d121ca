"""Preparation of data, and supervised fine-tuning."""

from tiebreak.errors import report_uncaught

report_uncaught()
