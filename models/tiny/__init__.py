"""Small checkpoints of the true classes: random ones of every family, and the shape of dualfocus-nano."""
