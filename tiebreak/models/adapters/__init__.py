"""Adapters: PEFT's methods, their files, and one object that builds, mounts, merges and compares them."""
