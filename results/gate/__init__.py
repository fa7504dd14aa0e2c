"""The check of a run against a baseline."""
