"""The data report of *prepare* as a page."""
