"""What tasks share: sources, prompts, options, scoring and uncertainty."""
