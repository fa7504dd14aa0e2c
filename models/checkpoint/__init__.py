"""From a checkpoint's files to a loaded model and what it reads: chat template, image inputs, token ids."""
