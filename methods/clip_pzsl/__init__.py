"""CLIP-PZSL (our reading): zero-shot learning from candidate labels on a frozen CLIP."""
