"""CAILA: concept-aware adapters inside both towers."""
