"""Runs as tables, plots and one page."""
