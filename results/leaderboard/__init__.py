"""Published numbers and measured ones."""
