"""Held-out evaluation, and the comparison of runs."""

from tiebreak.errors import report_uncaught

report_uncaught()
