"""The packed forward: no padding, shared prompts computed once, and the proof that it is exact."""
