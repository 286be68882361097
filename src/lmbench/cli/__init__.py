"""The commands, and what Hydra and the shell need of them."""
