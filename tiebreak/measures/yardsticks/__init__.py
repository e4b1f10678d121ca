"""Measures of answers by name: `registry` has an entry for each, and the other modules compute them."""
