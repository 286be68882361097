"""What is printed: to a terminal, a log or a pipe."""
