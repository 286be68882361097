"""Which run a command is about: its directory and its config."""
