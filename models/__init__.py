"""Everything that holds weights. Imports nothing heavy: ask for a module by name."""
