"""Questions in batches that fit into memory, and their traces."""
