"""The raters' app: a durable store of judgments, assignment, pages, simulated raters, export. Never imports torch."""

from tiebreak.process.ending import report_uncaught

report_uncaught()
