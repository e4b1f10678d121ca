"""Held-out evaluation, and the comparison of runs."""

from tiebreak.process.ending import report_uncaught

report_uncaught()
