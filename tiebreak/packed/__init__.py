"""The packed forward: no padding, shared prompts computed once, and a check that it equals the plain forward."""
