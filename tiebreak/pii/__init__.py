"""Finding personal data in text: patterns, Presidio's recognisers, and names by a model of the user's."""
