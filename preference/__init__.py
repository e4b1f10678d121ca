"""Sampling pairs, and preference optimisation: DPO and PPO."""

from tiebreak.process.ending import report_uncaught

report_uncaught()
