"""What runs left behind, read and compared without torch."""
