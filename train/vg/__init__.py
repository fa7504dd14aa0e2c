"""Visual Genome's questions as two-round samples."""
