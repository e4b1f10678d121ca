"""Sampling pairs, and preference optimisation: DPO and PPO."""

from tiebreak.errors import report_uncaught

report_uncaught()
