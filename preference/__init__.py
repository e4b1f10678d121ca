"""Sampling pairs, and preference optimisation: DPO and PPO."""
