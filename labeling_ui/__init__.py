"""The raters' app: a store of judgments that loses nothing, assignment, pages, simulated raters, export. Never
torch."""
