"""Common parts of the training stages."""
