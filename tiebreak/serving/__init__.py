"""Talking to a finished policy: in the terminal, and by an OpenAI-compatible server."""
