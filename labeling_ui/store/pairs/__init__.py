"""Pairs, the items made from them, and the batches that leads manage."""
