"""A model in a folder, read as if it came from a stranger."""
