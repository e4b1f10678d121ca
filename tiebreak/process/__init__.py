"""Processes: settings, signals, children, and how the processes of one command end together."""
