"""What replaces personal data in text; tiebreak.pii finds it."""
