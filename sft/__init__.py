"""Preparation of data, and supervised fine-tuning."""

from tiebreak.process.ending import report_uncaught

report_uncaught()
