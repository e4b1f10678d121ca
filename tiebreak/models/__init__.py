"""Models: where they come from, how text is rendered for them, and how they are saved and reloaded."""
