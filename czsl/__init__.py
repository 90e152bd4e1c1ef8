"""The nouns every floor speaks of: compositions, data, clip, evaluation, retrieval, runs."""

__version__ = "0.1.0"
