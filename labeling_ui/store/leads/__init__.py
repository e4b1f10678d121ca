"""Decisions of leads: disputes, rejected work, and the search over items and judgments."""
