"""Samples, the conversations made of them, drawn scenes in the same files, and export."""
