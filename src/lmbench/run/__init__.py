"""A run's directory and its config, and the directory of a sweep."""
