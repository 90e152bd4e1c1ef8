"""ClusPro (ICLR 2025): clustered prototypes of attributes and objects."""
