"""Metrics of a run: our own file first, and a copy of it in W&B."""
