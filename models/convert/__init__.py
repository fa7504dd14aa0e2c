"""Checkpoints in LLaVA's original format to the Hugging Face format."""
