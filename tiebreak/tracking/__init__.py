"""Metrics of a run: our own file, and its copy in W&B."""
