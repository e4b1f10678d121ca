"""The command line and its help."""
