"""Export of preferences from the store, and import of pairs and judgments made elsewhere."""
