"""Personal data: finding it in text, and replacing it."""
