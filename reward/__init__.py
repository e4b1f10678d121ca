"""The reward model, and the report on whether to trust it."""

from tiebreak.process.ending import report_uncaught

report_uncaught()
