"""Models: finding, loading, rendering of conversations, saving and reloading."""
