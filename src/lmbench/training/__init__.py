"""The LightningModule, and what touches Lightning's private state."""
