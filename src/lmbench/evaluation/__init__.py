"""Scoring a trained model, target by target, and sampling text from it."""
