"""Models behind an OpenAI-compatible API: `configuration`, and `asking` under a rate limit and a spend limit."""
