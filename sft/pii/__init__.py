"""Personal data: finding it in text, and putting something else in its place."""
