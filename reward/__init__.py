"""The reward model, and the report on whether to trust it."""
