"""Recipes, collation, the trainer and its checkpoints."""
