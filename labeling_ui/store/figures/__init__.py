"""Counts and figures of a campaign: progress, hours for pay, what was exported."""
