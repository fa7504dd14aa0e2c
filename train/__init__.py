"""Data building and training."""
