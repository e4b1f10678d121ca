"""The policy under optimisation: adapters on one backbone, rollouts, rewards, and the guard against over-optimisation."""
