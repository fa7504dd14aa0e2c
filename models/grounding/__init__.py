"""Regions that need a model: GroundingDINO, and the model's own attention."""
