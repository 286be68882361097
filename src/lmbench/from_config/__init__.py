"""Objects from the plain values of a config."""
