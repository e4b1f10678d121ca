"""Conversations as token ids: chat templates, turns, and loss masks."""
