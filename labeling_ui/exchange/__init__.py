"""Judgments that leave the store as preferences, and pairs and judgments that come into it from elsewhere."""
