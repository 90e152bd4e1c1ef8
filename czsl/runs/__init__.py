"""Run folders and checkpoints: the only truth about a run."""
