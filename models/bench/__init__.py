"""Time, tokens and memory of every engine, as ratios to plain inference."""
