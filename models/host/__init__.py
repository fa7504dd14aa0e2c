"""What lmms-eval sees: model classes, requests, options, the command, and replay."""
