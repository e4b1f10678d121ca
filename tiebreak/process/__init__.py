"""Processes: how they are set up, how they stop, and how those of one command end together."""
