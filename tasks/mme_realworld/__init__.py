"""The benchmark's documents as tasks, and its YAML."""
