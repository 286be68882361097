"""What the commands are made of, but for what they are about."""
