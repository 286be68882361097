"""Scoring a trained model, target by target, and drawing text from it."""
