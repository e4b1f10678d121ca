"""What the command line consists of: the table of commands, their help."""
