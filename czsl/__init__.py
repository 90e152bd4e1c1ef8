"""Core data types, datasets, the CLIP wrapper, evaluation, retrieval and run folders. No command line, no Ray."""

__version__ = "0.1.0"
